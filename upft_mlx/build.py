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
    builder = _Builder(recipe, tokenizer, problems, run, notify)
    write_rows(run.valid, builder.rows(valid=True))
    write_rows(run.train, builder.rows(valid=False))
    built = builder.built
    if not built.train:
        raise TrainingError(
            f"{run.train}: no row is left to train on ({built}); sample more problems or relax prefix.*"
        )
    return built


class _Builder:
    """Goes through solutions.jsonl once per side."""

    def __init__(
        self, recipe: Recipe, tokenizer: Any, problems: Sequence[Problem], run: RunDir, notify: Observer
    ) -> None:
        self.recipe, self.run, self.notify = recipe, run, notify
        self.by_id = {problem.id: problem for problem in problems}
        self.renderer = Renderer(tokenizer, recipe.prompt)
        self.eos_id = int(tokenizer.eos_token_id)
        self.built = Built()
        self.held_out = self._held_out()

    def _held_out(self) -> frozenset[str]:
        """Problems for the validation loss, drawn from those with a usable solution."""
        solutions = read_rows(self.run.solutions, Solution)
        usable = dict.fromkeys(s.problem_id for s in solutions if why_dropped(s, self.recipe.prefix) is None)
        return valid_ids(list(usable), self.recipe.train.valid_ratio, self.recipe.seed)

    def rows(self, *, valid: bool) -> Iterator[TrainingRow]:
        """The rows of one side; counts them."""
        for solution in self._kept(valid=valid):
            problem = self.by_id[solution.problem_id]
            row = training_row(problem, solution, recipe=self.recipe, renderer=self.renderer, eos_id=self.eos_id)
            if valid:
                self.built.valid += 1
            else:
                self.built.train += 1
                self.built.tokens += len(row.completion_ids)
            yield row

    def _kept(self, *, valid: bool) -> Iterator[Solution]:
        """The solutions of one side that pass the filters and, with rft, the grader."""
        kept: dict[str, list[str]] = {}
        total = len(self.by_id) * self.recipe.generate.samples
        for done, solution in enumerate(read_rows(self.run.solutions, Solution), start=1):
            if done % 500 == 0:
                self.notify(Progress("build", done, total, "solutions"))
            if (solution.problem_id in self.held_out) is not valid:
                continue
            reason = why_dropped(solution, self.recipe.prefix)
            if reason is None and self.recipe.method == "rft":
                texts = kept.setdefault(solution.problem_id, [])
                problem = self.by_id[solution.problem_id]
                reason = _why_rejected(solution, problem, texts, self.recipe.generate.keep)
            if reason is None:
                yield solution
            else:
                self.built.dropped[reason] += 1


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
