"""Several runs in one table: each model's accuracy, and every pair's difference on the problems that all have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from upft_mlx.errors import RunDirError
from upft_mlx.evaluation.pairs import Pair, all_pairs
from upft_mlx.evaluation.stats import accuracy_interval, mean_interval
from upft_mlx.evaluation.summary import VARIANTS, rounded_grades
from upft_mlx.inspection.browse import refuse_changed
from upft_mlx.rows import EvaluationRow, read_rows
from upft_mlx.rundir import RunDir

Scores = dict[tuple[str, str], list[bool]]
"""A problem's id and gold answer to the grades of its samples."""


@dataclass(frozen=True)
class Model:
    """One model on one benchmark, over the problems that all models have."""

    name: str
    """The run's for tuned; `base` for the base model that runs share, `base of RUN` where they have several."""
    accuracy: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class Table:
    """One benchmark."""

    problems: int
    """That all models have."""
    models: list[Model]
    pairs: list[Pair]
    rounding: float | None
    """The share of grades that rounding alone changes, the largest of the runs'; None: not measured. No difference
    within it is claimed."""


@dataclass(frozen=True)
class SideBySide:
    """Several runs."""

    benchmarks: dict[str, Table]
    """By label, those that all runs have."""
    comparisons: int
    """In all tables, for which the differences are adjusted."""

    def dump(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def side_by_side(
    runs: Sequence[RunDir], benchmarks: Sequence[str] = (), names: Sequence[str] | None = None
) -> SideBySide:
    """Compare the models of several runs.

    Args:
        runs: two or more, each another one.
        benchmarks: labels; empty: all that all runs have.
        names: what the tuned models are called; None: as the runs' folders.

    Raises:
        RunDirError: a run has no evaluation or was changed since, or the runs have no benchmark or problem in common.
    """
    if not names:  # the folders' names, or their paths where two have the same
        short = [run.root.resolve().name for run in runs]
        names = [str(run.root) if short.count(name) > 1 else name for run, name in zip(runs, short, strict=True)]
    names = [f"tuned of {name}" if name == "base" or name.startswith("base of ") else name for name in names]
    bases = [_bases(run) for run in runs]
    common = [label for label in bases[0] if all(label in of for of in bases)]
    if unknown := [label for label in benchmarks if label not in common]:
        have = f"all of them have {', '.join(common)}" if common else "they have no benchmark in common"
        raise RunDirError(f"no benchmark {unknown[0]!r} in all of these runs", have)
    if not common:
        each = "; ".join(f"{name} has {', '.join(of)}" for name, of in zip(names, bases, strict=True))
        raise RunDirError(f"these runs have no benchmark in common: {each}", "evaluate them on the same one")
    scores = {label: _scores(label, runs, names, bases) for label in benchmarks or common}
    comparisons = sum(math.comb(len(models), 2) for models in scores.values())
    tables = {label: _table(models, comparisons, rounded_grades(label, runs)) for label, models in scores.items()}
    return SideBySide(tables, comparisons)


def _bases(run: RunDir) -> dict[str, str]:
    """The fingerprint of base's inputs by benchmark.

    Raises:
        RunDirError: nothing has been measured, or it was changed since.
    """
    entry = run.entry("evaluate")
    if entry is None or not entry.done:
        raise RunDirError("nothing has been measured yet", f"run `{run.command('evaluate')}`", path=run.root)
    refuse_changed(run, "evaluate")
    inputs = entry.inputs or {}
    return {key.removesuffix(" base"): str(value) for key, value in inputs.items() if key.endswith(" base")}


def _scores(
    label: str, runs: Sequence[RunDir], names: Sequence[str], bases: Sequence[dict[str, str]]
) -> dict[str, Scores]:
    """By model; base once for all runs in which it had the same inputs."""
    found: dict[str, Scores] = {}
    several = len({of[label] for of in bases}) > 1
    seen = set[str]()
    for run, name, of in zip(runs, names, bases, strict=True):
        for variant in VARIANTS:
            path = run.rows_of(label, variant)
            if not path.exists() or (variant == "base" and of[label] in seen):
                continue
            base = f"base of {name}" if several else "base"
            grades = found[name if variant == "tuned" else base] = Scores()
            for row in read_rows(path, EvaluationRow):
                grades.setdefault((row.problem_id, row.gold), []).append(row.correct)
        seen.add(of[label])
    return found


def _table(models: dict[str, Scores], comparisons: int, rounding: float | None) -> Table:
    first, *others = models.values()
    problems = [problem for problem in first if all(problem in other for other in others)]
    if not problems:
        raise RunDirError("these runs have no problem in common", "evaluate them on the same benchmark")
    grades = {name: [scores[problem] for problem in problems] for name, scores in models.items()}
    means = {name: [sum(marks) / len(marks) for marks in of] for name, of in grades.items()}
    found = []
    for name, of in means.items():
        single = all(len(marks) == 1 for marks in grades[name])
        interval = accuracy_interval(grades[name]) if single else mean_interval(of, (0.0, 1.0))
        found.append(Model(name, sum(of) / len(of), interval))
    return Table(
        problems=len(problems),
        models=found,
        pairs=all_pairs(means, comparisons, rounding or 0.0),
        rounding=rounding,
    )
