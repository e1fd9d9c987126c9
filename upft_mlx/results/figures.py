"""Figures as SVG text: curves with bands, and intervals in rows. Pure.

Two kinds are all that is needed, so no plotting library is. Colours are those of Okabe and Ito, which people with
colour blindness tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from upft_mlx.escape import markup
from upft_mlx.quantities import percent

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#888888")
FONT = "font-family='system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif'"


@dataclass(frozen=True)
class Point:
    """A value with its 95 % interval."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """A named curve."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Panel:
    """One pair of axes; x on a logarithmic scale, with 0 to the left of the first tick."""

    title: str
    y_label: str
    series: Sequence[Series]
    percent: bool = False


@dataclass(frozen=True)
class IntervalRow:
    """One line of a chart of intervals: what stands left of it, the value, and what stands right of it."""

    name: str
    value: float
    low: float
    high: float
    note: str = ""


def curves(panels: Sequence[Panel], x_label: str) -> str:
    """Panels below each other, with bands for the intervals."""
    width, height, top = 720, 300, 16
    parts = [_panel(panel, x_label, top + index * height, width, height) for index, panel in enumerate(panels)]
    return _document(width, top + len(panels) * height, parts)


def _panel(panel: Panel, x_label: str, top: int, width: int, height: int) -> str:
    many = len(panel.series) > 2  # then their names stand on the right, below each other
    left, right, up, down = 70, width - (170 if many else 20), top + 34, top + height - 50
    points = [point for series in panel.series for point in series.points]
    ticks = sorted({point.x for point in points})
    scale = _log_scale(ticks)
    lowest, highest = min(point.low for point in points), max(point.high for point in points)
    least = -nice(-lowest) if lowest < 0 and not panel.percent else 0.0
    most = nice(highest) if highest > 0 and not panel.percent else 0.0 if least else 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        return left + 14 + scale(x) * (right - left - 28), down - (y - least) / (most - least) * (down - up)

    parts = [_text(left, top + 14, panel.title, size=15, weight=600)]
    for value in (most * step / 4 for step in range(5)) if not least else round_values(least, most):
        _, y = place(ticks[0], value)
        parts.append(f"<line x1='{left}' x2='{right}' y1='{y:.1f}' y2='{y:.1f}' stroke='#ddd'/>")
        parts.append(_text(left - 8, y + 4, percent(value, 0) if panel.percent else f"{value:.3g}", anchor="end"))
    last = -math.inf
    for tick in ticks:
        x, _ = place(tick, 0)
        if x - last < 26:  # pixels, so that its number has room
            continue
        last = x
        parts.append(f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{down}' y2='{down + 5}' stroke='#666'/>")
        parts.append(_text(x, down + 19, f"{tick:g}", anchor="middle"))
    parts.append(_text((left + right) / 2, down + 38, x_label, anchor="middle"))
    middle = (up + down) / 2
    parts.append(f"<g transform='rotate(-90 16 {middle})'>{_text(16, middle, panel.y_label, anchor='middle')}</g>")
    for index, series in enumerate(panel.series):
        parts.append(_curve(series, place, COLOURS[index % len(COLOURS)]))
        if len(panel.series) > 1:
            x, y = (right + 20, up + 14 + 20 * index) if many else (left + 300 + 160 * index, top + 14)
            parts.append(f"<circle cx='{x}' cy='{y - 4}' r='4' fill='{COLOURS[index % len(COLOURS)]}'/>")
            parts.append(_text(x + 9, y, series.name))
    return "".join(parts)


def _curve(series: Series, place: Callable[[float, float], tuple[float, float]], colour: str) -> str:
    line = " ".join("{:.1f},{:.1f}".format(*place(point.x, point.y)) for point in series.points)
    upper = [place(point.x, point.high) for point in series.points]
    lower = [place(point.x, point.low) for point in reversed(series.points)]
    band = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*upper, *lower])
    dots = "".join(
        f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{colour}'/>"
        for x, y in (place(point.x, point.y) for point in series.points)
    )
    return (
        f"<polygon points='{band}' fill='{colour}' fill-opacity='0.15'/>"
        f"<polyline points='{line}' fill='none' stroke='{colour}' stroke-width='2'/>{dots}"
    )


def intervals(title: str, rows: Sequence[IntervalRow], x_label: str) -> str:
    """A line with a dot for each row's value and interval, in percentage points; a darker line marks no difference."""
    left = max(190, 24 + 7 * max((len(row.name) for row in rows), default=0))  # about 7 units per character
    width, right, up = left + 530, left + 310, 54
    down = up + 30 * len(rows)
    low = min([0.0, *(row.low for row in rows)])
    high = max([0.0, *(row.high for row in rows)])
    margin = max(0.005, 0.05 * (high - low))
    low, high = low - margin, high + margin

    def place(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    parts = [_text(16, 26, title, size=15, weight=600)]
    for value in round_values(low, high):
        x, grey = place(value), "#888" if abs(value) < 1e-12 else "#ddd"
        parts.append(f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{up - 8}' y2='{down}' stroke='{grey}'/>")
        parts.append(_text(x, down + 18, f"{100 * value:+g}", anchor="middle"))
    for index, row in enumerate(rows):
        y = up + 30 * index + 8
        parts.append(_text(left - 12, y + 4, row.name, anchor="end"))
        ends = f"x1='{place(row.low):.1f}' x2='{place(row.high):.1f}'"
        parts.append(f"<line {ends} y1='{y}' y2='{y}' stroke='{COLOURS[0]}' stroke-width='2'/>")
        parts.append(f"<circle cx='{place(row.value):.1f}' cy='{y}' r='4' fill='{COLOURS[0]}'/>")
        parts.append(_text(right + 14, y + 4, row.note))
    parts.append(_text((left + right) / 2, down + 38, x_label, anchor="middle"))
    return _document(width, down + 50, parts)


def _document(width: int, height: int, parts: Sequence[str]) -> str:
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}' "
        f"{FONT} font-size='12' fill='#222'><rect width='100%' height='100%' fill='white'/>{''.join(parts)}</svg>\n"
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, weight: int = 400) -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' font-size='{size}' font-weight='{weight}'>"
        f"{markup(text)}</text>"
    )


def _log_scale(ticks: Sequence[float]) -> Callable[[float], float]:
    """0 to 1; a 0 among the ticks stands one doubling left of the least other one."""
    least = min((tick for tick in ticks if tick > 0), default=1.0)
    places = {tick: math.log2(tick) if tick > 0 else math.log2(least) - 1 for tick in ticks}
    start, span = min(places.values()), (max(places.values()) - min(places.values())) or 1.0
    return lambda x: (places[x] - start) / span


def nice(value: float) -> float:
    """The least of 1, 2, 2.5, 4, 5, 8 times a power of ten that is not below a positive value."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 4, 5, 8, 10) if step * power >= value * (1 - 1e-9))


def round_values(low: float, high: float) -> list[float]:
    """About five round numbers within a range."""
    step = nice((high - low) / 5)
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
