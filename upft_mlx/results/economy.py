"""What a run cost beside what full solutions would have cost on the same problems.

Tokens of this run are measured, with those of the answers that it learned from. Those of the others are computed from
the full solutions that this run sampled (all of them, or the structure rows; where it used a few answers, the samples
of these problems, right or wrong), and the result says from how many. Cut solutions are sampled, but not trained on.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from upft_mlx.data.problems import Problem
from upft_mlx.dataset.prefix import labelled
from upft_mlx.grade.graders import Task, grade, grader_of
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import Solution, TrainingRow, read_rows
from upft_mlx.rundir import RunDir
from upft_mlx.stages import LEARNING

SAMPLES, KEEP = 16, 4
"""Samples of rejection sampling in the paper, and the correct ones that are kept per problem here."""


@dataclass(frozen=True)
class Cost:
    """Tokens of one way to train."""

    tokens_sampled: float
    tokens_trained: float
    how: str
    """How it is known."""


@dataclass(frozen=True)
class Economy:
    """What a run cost beside full solutions on the same problems; None where no full solution was sampled."""

    this: Cost
    sft: Cost | None = None
    rft: Cost | None = None

    def dump(self) -> dict[str, Any]:
        """For JSON."""
        return {name: asdict(cost) for name, cost in vars(self).items() if cost is not None}


def economy(recipe: Recipe, problems: Sequence[Problem], run: RunDir) -> Economy | None:
    """This run's tokens, and those of SFT and of RFT with 16 samples; None before the run has trained.

    Sampling for evaluation is not counted. Without answers nobody knows how many samples RFT would keep; it is then
    taken to keep the most that it may.
    """
    generated, trained = run.entry("generate"), run.entry("train")
    if generated is None or trained is None or not trained.done:
        return None
    seen = _full_solutions(recipe, problems, run)
    learned = [run.entry(stage) for stage in LEARNING] if recipe.uses_answers else []
    sampled = sum(entry.tokens_sampled for entry in (generated, *learned) if entry is not None)
    this = Cost(sampled, trained.tokens_trained, "measured")
    if not seen.count:
        return Economy(this)
    epoch = sum(len(row.completion_ids) for row in read_rows(run.train, TrainingRow))
    passes = trained.tokens_trained / max(1, epoch)
    rows = (1 - recipe.train.valid_ratio) * len(problems) * passes
    length, how = seen.tokens / seen.count, f"computed from {seen.count} full solutions of this run"
    right = seen.finished if seen.right is None else seen.right
    kept = KEEP if seen.right is None else expected_kept(len(right) / seen.count)
    known = "" if seen.right is not None else ", all correct (no answers)"
    return Economy(
        this,
        sft=Cost(len(problems) * length, rows * (sum(seen.finished) + len(seen.finished)) / seen.count, how),
        rft=Cost(SAMPLES * len(problems) * length, rows * kept * (sum(right) / max(1, len(right)) + 1), how + known),
    )


@dataclass(frozen=True)
class _Seen:
    """Full solutions of a run."""

    count: int
    tokens: int
    finished: array[int]
    """Tokens of each solution that was not cut; cut ones are not trained on."""
    right: array[int] | None
    """The same for those with a right answer; None if any problem has no answer."""


def _full_solutions(recipe: Recipe, problems: Sequence[Problem], run: RunDir) -> _Seen:
    """Walks through solutions and problems side by side; both are in the same order.

    Where answers were used, solutions.jsonl holds the right samples of these problems alone, so all are read.
    """
    count = tokens = 0
    finished, right = array("L"), array("L")
    answered, path = True, run.solutions
    known: dict[str, Problem] = {}
    if recipe.uses_answers and (samples := run.answers / "samples.jsonl").exists():
        path, known = samples, {problems[n].id: problems[n] for n in labelled(recipe, problems)}
    grader = grader_of(problem.answer for problem in problems)
    waiting = iter(problems)
    problem: Problem | None = None
    for solution in read_rows(path, Solution):
        if known and solution.problem_id not in known:  # of a later forecast on more problems
            continue
        problem = known.get(solution.problem_id, problem)
        while problem is None or problem.id != solution.problem_id:
            problem = next(waiting)
        if solution.kind == "full":
            length = len(solution.completion_ids)
            count, tokens = count + 1, tokens + length
            answered = answered and problem.answer is not None
            if solution.finish_reason == "stop":
                finished.append(length)
                if answered and grade(Task(solution.completion, str(problem.answer), grader)).correct:
                    right.append(length)
    return _Seen(count, tokens, finished, right if answered else None)


def expected_kept(share: float) -> float:
    """How many of 16 samples RFT keeps on average when `share` of them are right: at most 4, duplicates not known."""
    chances = (math.comb(SAMPLES, k) * share**k * (1 - share) ** (SAMPLES - k) for k in range(SAMPLES + 1))
    return sum(min(KEEP, k) * chance for k, chance in enumerate(chances))
