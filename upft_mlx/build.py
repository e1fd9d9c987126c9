"""solutions.jsonl to dataset/train.jsonl and dataset/valid.jsonl, one row in memory at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from upft_mlx.errors import TrainingError
from upft_mlx.events import Observer, Progress, ignore
from upft_mlx.grade import is_correct
from upft_mlx.prefix import training_row, valid_ids, why_dropped
from upft_mlx.problems import Problem
from upft_mlx.prompts import Renderer
from upft_mlx.recipe import Recipe
from upft_mlx.rows import Solution, TrainingRow, read_rows, write_rows
from upft_mlx.rundir import RunDir


@dataclass
class Built:
    """What building made and what it left out, and why."""

    train: int = 0
    valid: int = 0
    tokens: int = 0
    """Supervised tokens of the training rows."""
    dropped: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        text = f"{self.train} training rows ({self.tokens} supervised tokens), {self.valid} validation rows"
        if self.dropped:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.most_common())
            text += f"; left out: {reasons}"
        return text


def build(recipe: Recipe, tokenizer: Any, problems: Sequence[Problem], run: RunDir, notify: Observer = ignore) -> Built:
    """Write the training and the validation rows; a problem's rows are all in the one or all in the other.

    Raises:
        TrainingError: no row is left to train on.
        RowsError: solutions.jsonl is malformed.
    """
    built = Built()
    held_out = valid_ids([p.id for p in problems], recipe.train.valid_ratio, recipe.seed)
    write_rows(run.valid, _rows(recipe, tokenizer, problems, run, built, held_out, valid=True, notify=notify))
    write_rows(run.train, _rows(recipe, tokenizer, problems, run, built, held_out, valid=False, notify=notify))
    if not built.train:
        raise TrainingError(
            f"{run.train}: no row is left to train on ({built}); sample more problems or relax prefix.*"
        )
    return built


def _rows(
    recipe: Recipe,
    tokenizer: Any,
    problems: Sequence[Problem],
    run: RunDir,
    built: Built,
    held_out: frozenset[str],
    *,
    valid: bool,
    notify: Observer,
) -> Iterator[TrainingRow]:
    by_id = {problem.id: problem for problem in problems}
    renderer = Renderer(tokenizer, recipe.prompt)
    eos_id = int(tokenizer.eos_token_id)
    for solution in _kept(recipe, by_id, run, built, held_out, valid=valid, notify=notify):
        problem = by_id[solution.problem_id]
        row = training_row(problem, solution, recipe=recipe, renderer=renderer, eos_id=eos_id)
        if valid:
            built.valid += 1
        else:
            built.train += 1
            built.tokens += len(row.completion_ids)
        yield row


def _kept(
    recipe: Recipe,
    by_id: dict[str, Problem],
    run: RunDir,
    built: Built,
    held_out: frozenset[str],
    *,
    valid: bool,
    notify: Observer,
) -> Iterator[Solution]:
    """The solutions of one side that pass the filters and, with rft, the grader."""
    kept: dict[str, list[str]] = {}
    total = len(by_id) * recipe.generate.samples
    for done, solution in enumerate(read_rows(run.solutions, Solution), start=1):
        if done % 500 == 0:
            notify(Progress("build", done, total, "solutions"))
        if (solution.problem_id in held_out) is not valid:
            continue
        reason = why_dropped(solution, recipe.prefix)
        if reason is None and recipe.method == "rft":
            texts = kept.setdefault(solution.problem_id, [])
            reason = _why_rejected(solution, by_id[solution.problem_id], texts, recipe.generate.keep)
        if reason is None:
            yield solution
        else:
            built.dropped[reason] += 1


def _why_rejected(solution: Solution, problem: Problem, kept: list[str], keep: int) -> str | None:
    """Rejection sampling: correct, not seen before, at most `keep` per problem."""
    if len(kept) >= keep:
        return "beyond generate.keep"
    if solution.completion in kept:
        return "duplicates"
    if not is_correct(solution.completion, problem.answer or ""):
        return "wrong"
    kept.append(solution.completion)
    return None
