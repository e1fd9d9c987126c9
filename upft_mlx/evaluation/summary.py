"""summary.json from graded rows (`benchmark_result`), and the completions on which base and tuned disagree. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Literal

from upft_mlx.data.benchmarks import BenchmarkSet, BenchmarkSpec
from upft_mlx.evaluation.benchmark_result import BenchmarkResult, Change, Group, Interval, Measured, Paired, Rounding
from upft_mlx.evaluation.sequential import always_valid_difference, always_valid_interval
from upft_mlx.evaluation.stats import (
    PairedDifference,
    accuracy_interval,
    drift,
    maj_at_k,
    mean_interval,
    paired_difference,
    pass_at_k,
)
from upft_mlx.events import Variant
from upft_mlx.grade.correct import normalize_answer
from upft_mlx.quantities import many, percent
from upft_mlx.recipe.evaluate import Evaluate
from upft_mlx.rows import EvaluationRow, read_rows
from upft_mlx.rundir import RunDir

VARIANTS: tuple[Variant, Variant] = ("base", "tuned")
AGAIN = "again"
"""The name of the rows of base at another batch size."""
KS = (1, 2, 4, 8, 16, 32, 64)

Until = Literal["end", "known"]
Rows = Sequence[Sequence[EvaluationRow]]
"""The rows of each problem, in the order of the samples."""


def summarize(sets: Sequence[BenchmarkSet], run: RunDir, evaluate: Evaluate) -> dict[str, BenchmarkResult]:
    """Each benchmark of summary.json from the rows on the disk; `tuned` and `paired` where there are such rows."""
    return {part.entry.label: _summarize(part, run, evaluate) for part in sets}


def _summarize(part: BenchmarkSet, run: RunDir, evaluate: Evaluate) -> BenchmarkResult:
    measured: dict[Variant, Measured] = {}
    read: dict[Variant, Rows] = {}
    for variant in VARIANTS:
        path = run.rows_of(part.entry.label, variant)
        if path.exists():
            found = by_problem(read_rows(path, EvaluationRow))
            read[variant] = [*found.values()]
            until = evaluate.until
            by_level, by_subject = (_groups(part, found, field, until) for field in ("level", "subject"))
            measured[variant] = replace(
                variant_summary(part.entry, read[variant], until), by_level=by_level, by_subject=by_subject
            )
    again = run.rows_of(part.entry.label, AGAIN)
    rounding = None
    if again.exists() and "base" in read:
        rounding = rounding_summary(read["base"], [*read_rows(again, EvaluationRow)])
    result = BenchmarkResult(base=measured.get("base"), tuned=measured.get("tuned"), rounding=rounding)
    if len(read) < len(VARIANTS):
        return result
    return replace(result, paired=paired_summary(part.entry, read["base"], read["tuned"], result, evaluate))


def by_problem(rows: Iterable[EvaluationRow]) -> dict[str, list[EvaluationRow]]:
    """The rows of each problem, in their order."""
    found: dict[str, list[EvaluationRow]] = {}
    for row in rows:
        found.setdefault(row.problem_id, []).append(row)
    return found


def rounding_summary(base: Rows, again: Sequence[EvaluationRow]) -> Rounding:
    """What changed of base's answers at another batch size."""
    first = {(row.problem_id, row.sample): row for problem in base for row in problem}
    pairs = [(first[row.problem_id, row.sample], row) for row in again if (row.problem_id, row.sample) in first]

    def share(differs: Callable[[EvaluationRow, EvaluationRow], bool]) -> float:
        return sum(differs(*pair) for pair in pairs) / len(pairs) if pairs else 0.0

    return Rounding(
        completions=len(pairs),
        texts=share(lambda a, b: (a.completion, a.tokens) != (b.completion, b.tokens)),
        answers=share(lambda a, b: _answer(a) != _answer(b)),
        grades=share(lambda a, b: a.correct != b.correct),
    )


def rounded_grades(label: str, runs: Iterable[RunDir]) -> float | None:
    """The largest share of grades that rounding changed in one of the runs; None where none measured it."""
    found = []
    for run in runs:
        again, base = run.rows_of(label, AGAIN), run.rows_of(label, "base")
        if again.exists() and base.exists():
            problems = by_problem(read_rows(base, EvaluationRow))
            found.append(rounding_summary([*problems.values()], [*read_rows(again, EvaluationRow)]).grades)
    return max(found, default=None)


def floor_in_words(grades: float) -> str:
    """What a table of differences says of the share of grades that rounding changes."""
    return f"rounding alone changes {percent(grades)} of grades; no smaller difference is claimed"


def rounding(found: Rounding) -> str:
    """In words what rounding changed of base's answers."""
    change = "changes" if found.completions == 1 else "change"
    return (
        f"{percent(found.answers)} of {many(found.completions, 'answer')} of base, asked again at another batch size, "
        f"{change} by rounding alone ({percent(found.grades)} from right to wrong or back)"
    )


def variant_summary(entry: BenchmarkSpec, problems: Rows, until: Until = "end") -> Measured:
    """What one variant scored, without its groups."""
    rows = [row for problem in problems for row in problem]
    scores = _scores(problems)
    answers = [[_answer(row) for row in problem] for problem in problems]
    ks = sorted({k for k in KS if k <= entry.samples} | {entry.samples})
    accuracy = _mean(_means(scores))
    return Measured(
        n=len(problems),
        samples=entry.samples,
        temperature=entry.temperature,
        accuracy=accuracy,
        ci95=_interval(scores, until),
        avg_at_k={str(entry.samples): accuracy},
        pass_at_k={str(k): _mean([pass_at_k(len(s), sum(s), k) for s in scores]) for k in ks},
        maj_at_k={str(k): _mean([maj_at_k(*of, k) for of in zip(answers, scores, strict=True)]) for k in ks},
        mean_tokens=_mean([row.tokens for row in rows]),
        truncated=_mean([row.finish_reason == "length" for row in rows]),
        answer_found=_mean([row.answer is not None for row in rows]),
    )


def _interval(scores: Sequence[Sequence[bool]], until: Until) -> Interval:
    """The 95 % interval of an accuracy."""
    return accuracy_interval(scores) if until == "end" else always_valid_interval(_means(scores), (0.0, 1.0))


def difference(base: Rows, tuned: Rows, floor: float, until: Until) -> PairedDifference:
    """The paired difference of rows of the same problems and samples, in the same order."""
    test = paired_difference if until == "end" else always_valid_difference
    return test(_means(_scores(base)), _means(_scores(tuned)), floor)


def paired_summary(entry: BenchmarkSpec, base: Rows, tuned: Rows, found: BenchmarkResult, evaluate: Evaluate) -> Paired:
    """What tells the variants apart; rows of the same problems and samples, in the same order."""
    assert found.base is not None
    assert found.tuned is not None
    told = difference(base, tuned, found.rounding.grades if found.rounding else 0.0, evaluate.until)
    changes = [
        after.correct - before.correct
        for pair in zip(base, tuned, strict=True)
        for before, after in zip(*pair, strict=True)
    ]
    lengths = [[_mean([row.tokens for row in problem]) for problem in variant] for variant in (base, tuned)]
    longer = [after - before for before, after in zip(*lengths, strict=True)]
    bounds = (-float(entry.max_tokens), float(entry.max_tokens))
    tokens = (mean_interval if evaluate.until == "end" else always_valid_interval)(longer, bounds)
    return Paired(
        delta=told.delta,
        ci95=told.ci95,
        p_value=told.p_value,
        gained=changes.count(1),
        lost=changes.count(-1),
        tokens=Change(delta=_mean(longer), ci95=tokens),
        drift=drift(found.base, found.tuned),
        effect=evaluate.effect / 100,
        until=evaluate.until,
    )


def _groups(
    part: BenchmarkSet, answered: dict[str, list[EvaluationRow]], field: str, until: Until
) -> dict[str, Group] | None:
    """Accuracy by level or subject; None where the problems do not have two or more of them."""
    groups: dict[str, list[Sequence[bool]]] = {}
    for problem in part.problems:
        if (value := getattr(problem, field)) is not None and problem.id in answered:
            groups.setdefault(value, []).append([row.correct for row in answered[problem.id]])
    if len(groups) < 2:
        return None
    return {
        name: Group(n=len(scores), accuracy=_mean(_means(scores)), ci95=_interval(scores, until))
        for name, scores in sorted(groups.items())
    }


def flips(label: str, run: RunDir) -> list[tuple[EvaluationRow, EvaluationRow]]:
    """Base and tuned where they disagree, in the order of the problems; none where a variant has not been measured.

    Raises:
        RowsError: a row is damaged.
    """
    paths = [run.rows_of(label, variant) for variant in VARIANTS]
    if not all(path.exists() for path in paths):
        return []
    base, tuned = ({(r.problem_id, r.sample): r for r in read_rows(path, EvaluationRow)} for path in paths)
    both = [(base[place], tuned[place]) for place in base if place in tuned]
    return [pair for pair in both if pair[0].correct != pair[1].correct]


def _scores(problems: Rows) -> list[list[bool]]:
    return [[row.correct for row in rows] for rows in problems]


def _means(scores: Sequence[Sequence[bool]]) -> list[float]:
    return [sum(samples) / len(samples) for samples in scores]


def _answer(row: EvaluationRow) -> str | None:
    return None if row.answer is None else normalize_answer(row.answer)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
