"""summary.json from graded rows: what each side scored, by level and subject too, and what tells them apart. Pure.

Fields of a side are those of the design (`n`, `samples`, `temperature`, `accuracy`, `ci95`, `pass_at_k`, `maj_at_k`,
`mean_tokens`, `truncated`), and beside them:

    avg_at_k        {"4": 0.71}: the accuracy, under the name that names its samples
    answer_found    share of the completions in which the grader found an answer
    by_level, by_subject    {"5": {"n": 134, "accuracy": 0.4, "ci95": [0.3, 0.5]}}, where the benchmark knows several

`paired` has `delta`, `ci95`, `p_value`, and `gained` and `lost` (completions wrong on base and right on tuned, and the
reverse), `tokens` (tuned - base per problem: `delta`, `ci95`), and `drift` (names of what changed suspiciously).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from upft_mlx.data.benchmarks import BenchmarkSet, BenchmarkSpec
from upft_mlx.data.problems import Problem
from upft_mlx.evaluation.stats import accuracy_interval, drift, maj_at_k, mean_interval, paired_difference, pass_at_k
from upft_mlx.events import Side
from upft_mlx.grade.correct import normalize_answer
from upft_mlx.rows import EvaluationRow, read_rows
from upft_mlx.rundir import RunDir

SIDES: tuple[Side, Side] = ("base", "tuned")
KS = (1, 2, 4, 8, 16, 32, 64)

Rows = Sequence[Sequence[EvaluationRow]]
"""The rows of each problem, in the order of the samples."""


def summarize(sets: Sequence[BenchmarkSet], run: RunDir) -> dict[str, Any]:
    """The content of summary.json from the rows on the disk; `tuned` and `paired` where there are such rows."""
    return {"benchmarks": {part.entry.label: _summarize(part, run) for part in sets}}


def _summarize(part: BenchmarkSet, run: RunDir) -> dict[str, Any]:
    result: dict[str, Any] = {}
    read: dict[Side, Rows] = {}
    for side in SIDES:
        path = run.rows_of(part.entry.label, side)
        if path.exists():
            by_problem: dict[str, list[EvaluationRow]] = {}
            for row in read_rows(path, EvaluationRow):
                by_problem.setdefault(row.problem_id, []).append(row)
            read[side] = list(by_problem.values())
            result[side] = {**side_summary(part.entry, read[side]), **_groups(part.problems, by_problem)}
    if len(read) == len(SIDES):
        result["paired"] = paired_summary(part.entry, read["base"], read["tuned"], result)
    return result


def side_summary(entry: BenchmarkSpec, problems: Rows) -> dict[str, Any]:
    """One side of summary.json (see the module)."""
    rows = [row for problem in problems for row in problem]
    scores = _scores(problems)
    ks = sorted({k for k in KS if k <= entry.samples} | {entry.samples})
    accuracy = _mean(_means(scores))
    return {
        "n": len(problems),
        "samples": entry.samples,
        "temperature": entry.temperature,
        "accuracy": accuracy,
        "ci95": list(accuracy_interval(scores)),
        "avg_at_k": {str(entry.samples): accuracy},
        "pass_at_k": {str(k): _mean([pass_at_k(len(s), sum(s), k) for s in scores]) for k in ks},
        "maj_at_k": {str(k): _mean([_majority(problem, k) for problem in problems]) for k in ks},
        "mean_tokens": _mean([row.tokens for row in rows]),
        "truncated": _mean([row.finish_reason == "length" for row in rows]),
        "answer_found": _mean([row.answer is not None for row in rows]),
    }


def paired_summary(entry: BenchmarkSpec, base: Rows, tuned: Rows, sides: dict[str, Any]) -> dict[str, Any]:
    """What tells the sides apart; rows of the same problems and samples, in the same order."""
    scores = [_means(_scores(side)) for side in (base, tuned)]
    found = asdict(paired_difference(*scores))
    changes = [
        after.correct - before.correct
        for pair in zip(base, tuned, strict=True)
        for before, after in zip(*pair, strict=True)
    ]
    lengths = [[_mean([row.tokens for row in problem]) for problem in side] for side in (base, tuned)]
    longer = [after - before for before, after in zip(*lengths, strict=True)]
    most = float(entry.max_tokens)
    return {
        **found,
        "ci95": list(found["ci95"]),
        "gained": changes.count(1),
        "lost": changes.count(-1),
        "tokens": {"delta": _mean(longer), "ci95": list(mean_interval(longer, (-most, most)))},
        "drift": drift(sides["base"], sides["tuned"]),
    }


def _groups(problems: Sequence[Problem], by_problem: dict[str, list[EvaluationRow]]) -> dict[str, Any]:
    """Accuracy by level and subject, where the problems have two or more of them."""
    found: dict[str, Any] = {}
    for field in ("level", "subject"):
        groups: dict[str, list[Sequence[bool]]] = {}
        for problem in problems:
            if (value := getattr(problem, field)) is not None and problem.id in by_problem:
                groups.setdefault(value, []).append([row.correct for row in by_problem[problem.id]])
        if len(groups) > 1:
            found[f"by_{field}"] = {name: _group(groups[name]) for name in sorted(groups)}
    return found


def _group(scores: Sequence[Sequence[bool]]) -> dict[str, Any]:
    return {"n": len(scores), "accuracy": _mean(_means(scores)), "ci95": list(accuracy_interval(scores))}


@dataclass(frozen=True)
class Flip:
    """A completion on which base and tuned disagree."""

    benchmark: str
    base: EvaluationRow
    tuned: EvaluationRow

    @property
    def gained(self) -> bool:
        """Whether tuned is the right one."""
        return self.tuned.correct


def flips(label: str, run: RunDir) -> list[Flip]:
    """The flips of one benchmark, in the order of its problems; none where a side has not been measured.

    Raises:
        RowsError: a row is damaged.
    """
    paths = [run.rows_of(label, side) for side in SIDES]
    if not all(path.exists() for path in paths):
        return []
    base, tuned = ({(r.problem_id, r.sample): r for r in read_rows(path, EvaluationRow)} for path in paths)
    both = [(base[place], tuned[place]) for place in base if place in tuned]
    return [Flip(label, *pair) for pair in both if pair[0].correct != pair[1].correct]


def _scores(problems: Rows) -> list[list[bool]]:
    return [[row.correct for row in rows] for rows in problems]


def _means(scores: Sequence[Sequence[bool]]) -> list[float]:
    return [sum(samples) / len(samples) for samples in scores]


def _majority(rows: Sequence[EvaluationRow], k: int) -> float:
    answers = [None if row.answer is None else normalize_answer(row.answer) for row in rows]
    return maj_at_k(answers, [row.correct for row in rows], k)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
