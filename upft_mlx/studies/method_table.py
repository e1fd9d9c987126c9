"""The cells of a comparison to its table, figures and JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

from upft_mlx import escape
from upft_mlx.evaluation.pairs import one_of_many, together
from upft_mlx.evaluation.stats import ALPHA, accuracy_interval
from upft_mlx.evaluation.summary import floor_in_words
from upft_mlx.quantities import accuracy, difference, memory
from upft_mlx.results.figures import IntervalRow, intervals
from upft_mlx.studies.two_way import two_way_mean

COSTS = ("tokens_sampled", "tokens_trained", "seconds", "peak_memory_bytes")
Scores = Mapping[str, Mapping[str, float]]
"""Benchmark to problem to the mean over its samples, 0 to 1."""


@dataclass(frozen=True)
class Cell:
    """One method with one seed."""

    method: str
    """`base`, or as the recipe's `compare.methods` has it."""
    seed: int
    scores: Scores
    tokens_sampled: int
    """For training; of an evaluation only the prefixes that `best_of_prefix` picks from."""
    tokens_trained: int
    seconds: float
    """Time of generate, build and train."""
    peak_memory_bytes: int
    base: Scores = field(default_factory=dict)
    """Base's scores in the same run, where that measures both."""


@dataclass(frozen=True)
class Difference:
    """A method minus base, the mean over problems and seeds, -1 to 1."""

    delta: float
    ci95: tuple[float, float]
    """The intervals of all differences hold together with 95 % (`Methods.comparisons`)."""


@dataclass(frozen=True)
class MethodResult:
    """One method on one benchmark, over problems and seeds."""

    accuracy: float
    """A share, 0 to 1."""
    ci95: tuple[float, float]
    difference: Difference | None
    """To base on the same problems and seeds; None for base."""


@dataclass(frozen=True)
class Method:
    """One method, the mean over its seeds."""

    tokens_sampled: float
    """For training; of an evaluation only the prefixes that `best_of_prefix` picks from."""
    tokens_trained: float
    seconds: float
    """Seconds of generate, build and train."""
    peak_memory_bytes: float
    benchmarks: dict[str, MethodResult]
    """By label."""


@dataclass(frozen=True)
class Trained:
    """One method with one seed."""

    method: str
    seed: int
    accuracy: dict[str, float]
    """By benchmark, 0 to 1."""
    tokens_sampled: int
    tokens_trained: int
    seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Methods:
    """The methods side by side."""

    benchmarks: tuple[str, ...]
    """Their labels."""
    cells: tuple[Trained, ...]
    """In the order in which they ran."""
    methods: dict[str, Method]
    """Base first, then as the recipe's `compare.methods` has them."""
    comparisons: int
    """Number of differences whose intervals hold together."""


@dataclass(frozen=True)
class Comparison(Methods):
    """The content of compare.json."""

    recipe: dict[str, Any]
    """What all had in common."""
    versions: dict[str, str]
    machine: dict[str, Any]
    """Python, processor and cores."""
    rounding: dict[str, float | None]
    """By benchmark the share of base's grades that rounding alone changes; None: not measured."""

    def dump(self) -> dict[str, Any]:
        """Plain values for JSON."""
        found = asdict(self)
        return {**{name: found.pop(name) for name in ("recipe", "versions", "machine")}, **found}


def summarize(
    cells: Sequence[Cell], rounding: Mapping[str, float | None] = MappingProxyType({}), comparisons: int | None = None
) -> Methods:
    """The table: cells as they are, and each method over all seeds.

    Args:
        cells: of base and the methods.
        rounding: by benchmark the share of grades that rounding alone changes: no difference within it is claimed.
        comparisons: number of differences whose intervals hold together (Bonferroni); None: all of the table's.
    """
    methods = list(dict.fromkeys(cell.method for cell in cells))
    of = {method: sorted((c for c in cells if c.method == method), key=lambda c: c.seed) for method in methods}
    benchmarks = tuple(cells[0].scores)
    together = comparisons or max(1, (len(methods) - 1) * len(benchmarks))
    return Methods(
        benchmarks=benchmarks,
        cells=tuple(
            Trained(
                method=cell.method,
                seed=cell.seed,
                accuracy={name: _average(list(scores.values())) for name, scores in cell.scores.items()},
                **{name: getattr(cell, name) for name in COSTS},
            )
            for cell in cells
        ),
        methods={
            method: Method(
                **{name: _average([getattr(cell, name) for cell in mine]) for name in COSTS},
                benchmarks={
                    name: _result(name, mine, of["base"], rounding.get(name) or 0.0, together) for name in benchmarks
                },
            )
            for method, mine in of.items()
        },
        comparisons=together,
    )


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _result(benchmark: str, mine: Sequence[Cell], base: Sequence[Cell], floor: float, comparisons: int) -> MethodResult:
    """Accuracy, and its paired difference to base, over problems and seeds."""
    seeds = {cell.seed for cell in mine}
    own = _table(benchmark, mine)
    others = _table(benchmark, [cell for cell in base if cell.seed in seeds])
    accuracy = two_way_mean(own, (0.0, 1.0))
    changes = [[t - b for t, b in zip(*rows, strict=True)] for rows in zip(own, others, strict=True)]
    change = two_way_mean(changes, (-1.0, 1.0), ALPHA / comparisons)
    spans = accuracy.ci95, change.ci95
    if len(seeds) == 1 and all(score in (0, 1) for row in (*own, *others) for score in row):  # as `upft evaluate`
        before, after = ([score for (score,) in table] for table in (others, own))
        spans = accuracy_interval([[score == 1] for score in after]), one_of_many(before, after, comparisons).ci95
    if abs(change.mean) <= floor:
        spans = spans[0], (min(0.0, spans[1][0]), max(0.0, spans[1][1]))
    difference = None if mine[0].method == "base" else Difference(change.mean, spans[1])
    return MethodResult(accuracy.mean, spans[0], difference)


def _table(benchmark: str, cells: Sequence[Cell]) -> list[list[float]]:
    """Problems x seeds."""
    problems = list(cells[0].scores[benchmark])
    return [[cell.scores[benchmark][problem] for cell in cells] for problem in problems]


def markdown(found: Methods, rounding: Mapping[str, float | None] = MappingProxyType({})) -> str:
    """The table; one line per method. Below it what rounding alone changes (`summarize`)."""
    head = ["method", "tokens sampled", "tokens trained", "seconds", "peak memory"]
    for name in found.benchmarks:
        head += [f"{escape.markdown(name)}: accuracy", "difference to base (points)"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for method, row in found.methods.items():
        cells = [method, *(f"{tokens:,.0f}" if tokens else "" for tokens in (row.tokens_sampled, row.tokens_trained))]
        cells.append(f"{row.seconds:.1f}" if row.seconds else "")
        cells.append(memory(row.peak_memory_bytes) if row.peak_memory_bytes else "")
        for name in found.benchmarks:
            result = row.benchmarks[name]
            cells.append(accuracy(result.accuracy, result.ci95))
            if result.difference is None:
                cells.append("")
                continue
            cells.append(difference(result.difference.delta, result.difference.ci95))
        lines.append(f"| {' | '.join(cells)} |")
    told = [
        f"{escape.markdown(name)}: {floor_in_words(floor)}." for name, floor in rounding.items() if floor is not None
    ]
    if found.comparisons > 1:
        told.append(f"The differences' {together(found.comparisons)}.")
    return "\n".join([*lines, *(part for text in told for part in ("", text))]) + "\n"


def figure(found: Methods, benchmark: str) -> str:
    """The differences to base on one benchmark as SVG, with what each method cost."""
    rows = []
    for method, row in found.methods.items():
        difference = row.benchmarks[benchmark].difference
        if difference is not None:
            cost = f"{row.tokens_sampled:,.0f} sampled, {row.tokens_trained:,.0f} trained"
            rows.append(IntervalRow(method, difference.delta, *difference.ci95, cost))
    held = "interval" if found.comparisons == 1 else "intervals that hold together"
    return intervals(f"{benchmark}: difference to base", rows, f"points of accuracy, 95 % {held}; tokens on the right")
