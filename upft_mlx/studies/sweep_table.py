"""The runs of a sweep to its choice, table, figure and JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from upft_mlx import escape
from upft_mlx.evaluation.benchmark_result import BenchmarkResult, dump_results
from upft_mlx.evaluation.pairs import one_of_many
from upft_mlx.evaluation.stats import PairedDifference, accuracy_interval, mean_interval
from upft_mlx.evaluation.summary import floor_in_words
from upft_mlx.quantities import accuracy, difference
from upft_mlx.recipe.grid import in_words
from upft_mlx.results.figures import IntervalRow, intervals
from upft_mlx.results.report import doubts, outcome
from upft_mlx.studies.method_table import COSTS

Scores = Mapping[str, float]
"""Each problem's mean over its samples, 0 to 1."""


@dataclass(frozen=True)
class Tried:
    """One setting of a sweep, measured on the development part."""

    settings: dict[str, Any]
    """Values by field."""
    run: str
    """Its run directory."""
    accuracy: float
    """The accuracy of tuned on the development part, 0 to 1."""
    ci95: tuple[float, float]
    difference: PairedDifference
    """Tuned minus base on the same problems, as one of as many comparisons as there are settings."""
    to_chosen: PairedDifference | None
    """This one minus the chosen one on the same problems, likewise; None for the chosen one."""
    tokens_sampled: int
    tokens_trained: int
    seconds: float
    """Seconds of sampling and training."""
    peak_memory_bytes: int


@dataclass(frozen=True)
class Sweep:
    """What `upft sweep` found."""

    benchmark: str
    """The label of the benchmark whose development part was chosen on."""
    problems: int
    """In that part."""
    rounding: float | None
    """The share of grades there that rounding alone changes; None: not measured. No difference within it is claimed."""
    tried: tuple[Tried, ...]
    """In the grid's order."""
    chosen: dict[str, Any]
    """The settings with the highest accuracy there; the first of them where several have it."""
    run: str
    """The chosen one's run directory."""
    rest: dict[str, BenchmarkResult]
    """The chosen one on what was not chosen on, by benchmark."""
    reported: int
    """Settings that have been measured on the rest so far, this one included."""

    def dump(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "rest": dump_results(self.rest)}


@dataclass(frozen=True)
class Cell:
    """What a run gives the table."""

    settings: dict[str, Any]
    run: str
    base: Scores
    tuned: Scores
    tokens_sampled: int
    tokens_trained: int
    seconds: float
    peak_memory_bytes: int


def best(cells: Sequence[Cell]) -> Cell:
    """The one with the highest accuracy, the first of several."""
    return max(cells, key=lambda cell: sum(cell.tuned.values()))  # all have the same problems


def tried(cells: Sequence[Cell], samples: int, floor: float) -> tuple[Tried, ...]:
    """Each with its differences to base and to the best one.

    Args:
        cells: in the grid's order.
        samples: of each problem.
        floor: the share of grades that rounding alone changes; a difference within it is never claimed.
    """
    chosen = best(cells)
    return tuple(
        Tried(
            settings=cell.settings,
            run=cell.run,
            accuracy=sum(cell.tuned.values()) / len(cell.tuned),
            ci95=_interval(list(cell.tuned.values()), samples),
            difference=_difference(cell.base, cell.tuned, len(cells), floor),
            to_chosen=None if cell is chosen else _difference(chosen.tuned, cell.tuned, len(cells) - 1, floor),
            **{name: getattr(cell, name) for name in COSTS},
        )
        for cell in cells
    )


def _interval(scores: Sequence[float], samples: int) -> tuple[float, float]:
    if samples == 1:
        return accuracy_interval([[score == 1.0] for score in scores])
    return mean_interval(scores, (0.0, 1.0))


def _difference(first: Scores, second: Scores, comparisons: int, floor: float) -> PairedDifference:
    return one_of_many(list(first.values()), [second[problem] for problem in first], comparisons, floor)


def advice(found: Sweep) -> str:
    """What was chosen, how sure the choice is, and what the rest says of it."""
    others = [one for one in found.tried if one.to_chosen is not None]
    apart = sum(one.to_chosen.ci95[1] < 0 for one in others if one.to_chosen)
    text = f"chosen: {in_words(found.chosen)}"
    if others:
        told = f"{apart} of {len(others)} others {'is' if apart == 1 else 'are'}" if apart else "no other setting is"
        text += f"; {told} measurably worse on the {found.problems:,} development problems"
    return text


def report(found: Sweep) -> list[str]:
    """What the rest says of the chosen one, a line for each benchmark, and how often the rest was used."""
    lines = []
    for name, result in found.rest.items():
        assert result.compared
        (base, _, paired), (verdict, why) = result.compared, outcome(result)
        numbers = difference(paired.delta, paired.ci95, " points")
        lines += [f"{name}, {base.n:,} other problems: {verdict}, {why or numbers}"]
        lines += doubts(name, result, len(found.rest))
    if found.reported > 1:
        lines.append(
            f"the rest has now been used for {found.reported} chosen settings: the more, the more luck is in the last"
        )
    return lines


def markdown(found: Sweep) -> str:
    """The page: the choice, the report on the rest, and a line per setting."""
    fields = list(found.chosen)
    head = [*fields, "accuracy", "difference to base (points)", "difference to chosen (points)", "tokens trained", "s"]
    lines = [f"| {' | '.join(map(escape.markdown, head))} |", "|" + "---|" * len(head)]
    for one in found.tried:
        values = [escape.markdown(in_words({"": one.settings[field]})[1:]) for field in fields]
        cells = [accuracy(one.accuracy, one.ci95), difference(one.difference.delta, one.difference.ci95)]
        cells.append("chosen" if one.to_chosen is None else difference(one.to_chosen.delta, one.to_chosen.ci95))
        lines.append(f"| {' | '.join([*values, *cells, f'{one.tokens_trained:,}', f'{one.seconds:.1f}'])} |")
    told = [escape.markdown(line) for line in (advice(found), *report(found))]
    where = f"Chosen on {found.problems:,} development problems of {escape.markdown(found.benchmark)}. "
    where += "The best of several looks better there than it is: what counts is the result on other problems. "
    where += "The intervals of each column of differences hold together with 95 % (Bonferroni)."
    if found.rounding is not None:
        where += f" There, {floor_in_words(found.rounding)}."
    return "\n\n".join([*told, where]) + "\n\n" + "\n".join(lines) + "\n"


def figure(found: Sweep) -> str:
    """The differences to base on the development part as SVG."""
    rows = [
        IntervalRow(
            in_words({field.rpartition(".")[2]: value for field, value in one.settings.items()}),
            one.difference.delta,
            *one.difference.ci95,
            "chosen" if one.to_chosen is None else "",
        )
        for one in found.tried
    ]
    title = f"{found.benchmark}, development part: difference to base"
    return intervals(title, rows, "points of accuracy, 95 % intervals that hold together")
