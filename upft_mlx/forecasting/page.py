"""A forecast as a table and a picture. Pure."""

from __future__ import annotations

from typing import Any

from upft_mlx.forecasting.estimate import Forecast, Mean, points
from upft_mlx.quantities import accuracy, many, percent
from upft_mlx.results.figures import Panel, Point, Series, curves


def markdown(found: Forecast) -> str:
    """What forecast.md says below its title."""
    samples = f"{many(found.problems, 'problem')} with answers, {many(found.samples, 'full solution')} each"
    asked = found.greedy_base is not None
    rows = []
    for rule in found.rules:
        cells = [rule.selection, str(rule.length), f"{percent(rule.problem_coverage, 0)}"]
        cells.append("" if rule.prefix_coverage is None else f"{percent(rule.prefix_coverage.mean, 0)}")
        cells.append("" if rule.accuracy is None else _percent(rule.accuracy))
        compared = (rule.forecast, rule.greedy) if asked else (rule.forecast,)
        cells += ["" if value is None else points(value) for value in compared]
        rows.append(f"| {' | '.join([*cells, f'{rule.tokens_per_problem:,.0f}'])} |")
    columns = (
        "rule | t (tokens) | problems with a pick | samples with its prefix | accuracy given the prefix | forecast "
    )
    against = "against greedy's prefix (points) | " if asked else ""
    columns += f"(points) | {against}tokens sampled per problem"
    greedily = f", and greedily on {_percent(found.greedy_base)} of the problems" if found.greedy_base else ""
    told = "Forecast: accuracy given the picked prefix minus base."
    if asked:
        told += (
            " Against greedy's prefix: the same minus the accuracy given the prefix that greedy decoding takes; below "
            "zero, greedy accuracy may fall though sampled accuracy rises."
        )
    if any(rule.selection == "label" for rule in found.rules):
        told += " `label` needs answers for every problem that it trains on; all other rules need none beyond these."
    lines = [
        f"**Advice: {found.advice.text}.**",
        *([f"And {found.advice.remark}."] if found.advice.remark else []),
        "",
        f"From {samples}. Base is right on {_percent(found.base)} of its samples{greedily}. Brackets: 95 % interval "
        "over problems.",
        "",
        f"| {columns} |",
        f"|{'---|' * (columns.count(' | ') + 1)}",
        *rows,
        "",
        told,
    ]
    for length, area in found.probe.items():
        if area is not None:
            lines += [
                "",
                f"Probe at t = {length}: on problems that it was not fitted on, rates a right sample above a wrong one "
                f"of the same problem in {accuracy(area['mean'], area['ci95'])} of the pairs (AUC).",
            ]
    return "\n".join(lines) + "\n"


def _percent(value: Mean) -> str:
    return accuracy(value.mean, value.ci95)


def figure(found: Forecast) -> str:
    """The forecasts against the prefix length, as SVG."""
    return curves([panel(found)], "prefix length t (tokens)")


def panel(found: Forecast) -> Panel:
    """The forecasts against the prefix length, one curve per rule."""
    curves_of: dict[str, list[Point]] = {}
    for rule in found.rules:
        if rule.forecast is not None:
            low, high = rule.forecast.ci95
            values: list[Any] = [100 * value for value in (rule.forecast.mean, low, high)]
            curves_of.setdefault(rule.selection, []).append(Point(rule.length, *values))
    series = [Series(name, values) for name, values in curves_of.items()]
    return Panel("Forecast of each rule", "points over base", series)
