"""The small charts of report.html, as SVG that takes its colours from the page's classes. Pure.

Each is drawn for the width of a phone and scales up to a card's. Its class names: `base`, `tuned`, `other` for what is
drawn; `axis`, `zero` and text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from upft_mlx.escape import markup
from upft_mlx.results.figures import round_values

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 352, 26, 160
"""The plot inside it, in pixels."""
BINS = 24


@dataclass(frozen=True)
class Line:
    """A curve, or a staircase, perhaps with a band around it."""

    name: str
    css: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float]] = ()
    """(low, high) at each point."""
    dashed: bool = False


def lines(title: str, curves: Sequence[Line], x_label: str, shown: Callable[[float], str], *, zero: bool) -> str:
    """Curves over one pair of axes; empty where no curve has a point.

    Args:
        title: what a screen reader says of it.
        curves: what to draw; a value that is not finite is left out.
        x_label: what the x axis counts.
        shown: a value of the y axis as text.
        zero: whether the y axis holds 0.
    """
    finite = []
    for curve in curves:
        kept = [index for index, (_, y) in enumerate(curve.points) if math.isfinite(y)]
        band = [curve.band[index] for index in kept] if curve.band else ()
        finite.append(replace(curve, points=[curve.points[index] for index in kept], band=band))
    curves = [curve for curve in finite if curve.points]
    if not curves:
        return ""
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points] + [y for curve in curves for pair in curve.band for y in pair]
    x_low, x_high = min(xs), max(xs)
    low, high = min([*ys, 0.0] if zero else ys), max([*ys, 0.0] if zero else ys)
    margin = 0.05 * (high - low) or abs(high) * 0.05 or 1.0
    low, high = (low if zero and low == 0 else low - margin), high + margin

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        return LEFT + across * (RIGHT - LEFT), BOTTOM - (y - low) / (high - low) * (BOTTOM - TOP)

    parts = [_grid(low, high, place, x_low, shown), _legend(curves)]
    whole = all(float(x).is_integer() for x in xs)
    ticks = [x for x in round_values(x_low, x_high) if not whole or float(x).is_integer()] if x_high > x_low else []
    for x in ticks if len(ticks) > 1 else sorted({x_low, x_high}):  # about five, or the ends
        parts.append(_text(place(x, low)[0], BOTTOM + 16, f"{x:,.{0 if whole else 2}f}", "middle"))
    parts.append(_text((LEFT + RIGHT) / 2, HEIGHT - 6, x_label, "middle"))
    parts += [_curve(curve, place, x_label, shown) for curve in curves]
    return _svg(title, HEIGHT, parts)


def histogram(title: str, variants: Sequence[tuple[str, Sequence[float]]], x_label: str) -> str:
    """How often each size occurs in base and in tuned, as staircases in percent of each."""
    values = [value for _, found in variants for value in found]
    if not values:
        return ""
    low, high = min(values), max(values)
    width = max(1, math.ceil((high - low + 1) / BINS))
    edges = [low + width * place for place in range(math.ceil((high - low + 1) / width) + 1)]
    curves = []
    for name, found in variants:
        counts = [0] * (len(edges) - 1)
        for value in found:
            counts[int((value - low) // width)] += 1
        shares = [count / max(1, len(found)) for count in counts]
        steps = [(edge, share) for (a, b), share in zip(pairwise(edges), shares, strict=True) for edge in (a, b)]
        curves.append(Line(name, name, [(edges[0], 0.0), *steps, (edges[-1], 0.0)] if found else []))
    return lines(title, curves, x_label, lambda share: f"{100 * share:.0f} %", zero=True)


def interval(title: str, value: float, low: float, high: float, widest: float) -> str:
    """A value with its interval on a line through zero that reaches `widest` to either side, in points."""
    up, left, right = 14, 8, WIDTH - 8
    middle = (left + right) / 2
    half = max(widest, 1e-9) * 1.08

    def place(x: float) -> float:
        return middle + max(-1.0, min(1.0, x / half)) * (right - left) / 2

    parts = [
        f"<line class='axis' x1='{left}' x2='{right}' y1='{up}' y2='{up}'/>",
        f"<line class='zero' x1='{middle}' x2='{middle}' y1='2' y2='{up + 12}'/>",
        f"<line class='range' x1='{place(low):.1f}' x2='{place(high):.1f}' y1='{up}' y2='{up}'/>",
        f"<circle class='dot' cx='{place(value):.1f}' cy='{up}' r='5'/>",
        *(_text(place(x), up + 26, f"{100 * x:+g}" if x else "0", "middle") for x in round_values(-half, half)),
    ]
    return _svg(title, up + 32, parts)


def _grid(
    low: float,
    high: float,
    place: Callable[[float, float], tuple[float, float]],
    x: float,
    shown: Callable[[float], str],
) -> str:
    parts = []
    for value in round_values(low, high):
        y = place(x, value)[1]
        css = "zero" if abs(value) < 1e-12 else "axis"
        parts.append(f"<line class='{css}' x1='{LEFT}' x2='{RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>")
        parts.append(_text(LEFT - 6, y + 4, shown(value), "end"))
    return "".join(parts)


def _legend(curves: Sequence[Line]) -> str:
    """The curves' names in a row above the plot, where there are several."""
    parts, x = [], float(LEFT)
    for curve in curves if len(curves) > 1 else ():
        dash = " stroke-dasharray='4 3'" if curve.dashed else ""
        parts.append(f"<line class='curve {curve.css}' x1='{x:.0f}' x2='{x + 14:.0f}' y1='10' y2='10'{dash}/>")
        parts.append(_text(x + 18, 14, curve.name, "start"))
        x += 32 + 6.6 * len(curve.name)
    return "".join(parts)


def _curve(
    curve: Line, place: Callable[[float, float], tuple[float, float]], x_label: str, shown: Callable[[float], str]
) -> str:
    parts = []
    places = [place(x, y) for x, y in curve.points]
    if curve.band:
        xs = [x for x, _ in curve.points]
        upper = [place(x, high) for x, (_, high) in zip(xs, curve.band, strict=True)]
        lower = [place(x, low) for x, (low, _) in zip(xs, curve.band, strict=True)]
        parts.append(f"<polygon class='band {curve.css}' points='{_points([*upper, *reversed(lower)])}'/>")
    dash = " stroke-dasharray='4 3'" if curve.dashed else ""
    if len(places) > 1:
        parts.append(f"<polyline class='curve {curve.css}' points='{_points(places)}'{dash}/>")
    if len(places) <= 64:
        for (x, y), (left, top) in zip(curve.points, places, strict=True):
            tip = markup(f"{curve.name}: {shown(y)} ({x_label} {x:,g})")
            radius = 2.5 if len(places) <= 16 else 1.5
            circle = f"<circle class='dot {curve.css}' cx='{left:.1f}' cy='{top:.1f}' r='{radius}'>"
            parts.append(f"{circle}<title>{tip}</title></circle>")
    return "".join(parts)


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'>{markup(text)}</text>"


def _svg(title: str, height: int, parts: Sequence[str]) -> str:
    return f"<svg viewBox='0 0 {WIDTH} {height}' role='img' aria-label='{markup(title)}'>{''.join(parts)}</svg>"
