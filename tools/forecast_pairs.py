"""Forecasts beside what was measured: their correlation, and the picture of docs/measured/forecast.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from upft_mlx.forecasting.estimate import Mean
from upft_mlx.results.figures import COLOURS, FONT


@dataclass(frozen=True)
class Pair:
    """A forecast, and what was measured."""

    world: str
    rule: str
    forecast: Mean
    measured: Mean


def beyond_first(found: Sequence[Pair]) -> str:
    """What was looked at after the results: the same without what `first` gains in each world."""
    gain = {pair.world: pair.measured.mean for pair in found if pair.rule == "first"}
    chosen = [
        replace(pair, measured=replace(pair.measured, mean=pair.measured.mean - gain[pair.world]))
        for pair in found
        if pair.rule != "first" and pair.world in gain
    ]
    return (
        "Looked at after the results: a forecast says what choosing adds, and training on the model's own samples can "
        "change it without any choice, which is what `first` measures. With that taken off each world's measured "
        f"changes, the correlation over the other {len(chosen)} pairs is {spearman(chosen):.2f}."
    )


def spearman(found: Sequence[Pair]) -> float:
    """The rank correlation of forecast and measured means."""
    from scipy.stats import spearmanr

    return float(spearmanr([p.forecast.mean for p in found], [p.measured.mean for p in found]).statistic)


def picture(found: Sequence[Pair]) -> str:
    """Measured change against forecast, a dot per rule and world with both intervals.

    What is measured with few seeds has intervals that would leave no room for the dots: they are cut at the frame.
    """
    size, margin = 520, 60
    values = [v for p in found for v in (*p.forecast.ci95, p.measured.mean)]
    low, high = min(values) - 0.02, max(values) + 0.02

    def x(value: float) -> float:
        return margin + (value - low) / (high - low) * (size - 2 * margin)

    def y(value: float) -> float:
        return size - x(value)

    parts = [f"<line x1='{x(low)}' y1='{y(low)}' x2='{x(high)}' y2='{y(high)}' stroke='#bbb' stroke-dasharray='4'/>"]
    parts += [
        f"<line x1='{x(low)}' y1='{y(0)}' x2='{x(high)}' y2='{y(0)}' stroke='#ddd'/>",
        f"<line x1='{x(0)}' y1='{y(low)}' x2='{x(0)}' y2='{y(high)}' stroke='#ddd'/>",
    ]
    worlds = list(dict.fromkeys(p.world for p in found))
    for pair in found:
        colour = COLOURS[worlds.index(pair.world)]
        cx, cy = x(pair.forecast.mean), y(pair.measured.mean)
        below, above = (y(min(max(end, low), high)) for end in pair.measured.ci95)
        parts += [
            f"<line x1='{x(pair.forecast.ci95[0]):.1f}' x2='{x(pair.forecast.ci95[1]):.1f}' y1='{cy:.1f}' "
            f"y2='{cy:.1f}' "
            f"stroke='{colour}' stroke-opacity='0.5'/>",
            f"<line x1='{cx:.1f}' x2='{cx:.1f}' y1='{below:.1f}' y2='{above:.1f}' "
            f"stroke='{colour}' stroke-opacity='0.5'/>",
            f"<circle cx='{cx:.1f}' cy='{cy:.1f}' r='4' fill='{colour}'><title>{pair.rule}</title></circle>",
        ]
    for tick in range(-40, 61, 20):
        if low < tick / 100 < high:
            parts.append(f"<text x='{x(tick / 100):.1f}' y='{size - 36}' text-anchor='middle'>{tick:+d}</text>")
            parts.append(f"<text x='{margin - 8}' y='{y(tick / 100) + 4:.1f}' text-anchor='end'>{tick:+d}</text>")
    parts.append(f"<text x='{size / 2}' y='{size - 12}' text-anchor='middle'>forecast (points)</text>")
    middle = f"rotate(-90 16 {size / 2})"
    parts.append(f"<text x='16' y='{size / 2}' text-anchor='middle' transform='{middle}'>measured (points)</text>")
    for number, world in enumerate(worlds):
        parts.append(f"<circle cx='{margin + 10 + 110 * number}' cy='24' r='4' fill='{COLOURS[number]}'/>")
        parts.append(f"<text x='{margin + 20 + 110 * number}' y='28'>{world}</text>")
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {size} {size}' width='{size}' height='{size}' {FONT} "
        f"font-size='12' fill='#222'><rect width='100%' height='100%' fill='white'/>{''.join(parts)}</svg>\n"
    )
