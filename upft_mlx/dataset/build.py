"""solutions.jsonl to dataset/train.jsonl and dataset/valid.jsonl, one problem in memory at a time.

Two passes over solutions.jsonl: the first chooses the samples to train on, which needs the grader; the second renders
and writes them.
"""

from __future__ import annotations

import itertools
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from upft_mlx.data.problems import Problem
from upft_mlx.dataset.prefix import row_kind, structure_of, training_row, valid_numbers
from upft_mlx.dataset.selection import choose
from upft_mlx.errors import RowsError, TrainingError
from upft_mlx.escape import quoted
from upft_mlx.events import Observer, Progress, ignore
from upft_mlx.grade.graders import grader_of
from upft_mlx.models.chat import Renderer
from upft_mlx.quantities import many
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import Solution, read_rows, rows_writer
from upft_mlx.rundir import RunDir

_EVERY = 500
"""Problems between two reports of progress."""


@dataclass
class Built:
    """What building made and what it left out, and why."""

    train: int = 0
    valid: int = 0
    tokens: int = 0
    """Supervised tokens of the training rows."""
    dropped: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        rows = many(self.valid, "validation row")
        text = f"{self.train:,} training rows ({self.tokens:,} supervised tokens), {rows}"
        if self.dropped:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.most_common())
            text += f"; left out: {reasons}"
        return text


def build(recipe: Recipe, tokenizer: Any, problems: Sequence[Problem], run: RunDir, notify: Observer = ignore) -> Built:
    """Write the training and the validation rows; a problem's rows are all in the one or all in the other.

    Raises:
        TrainingError: no row is left to train on.
        RowsError: solutions.jsonl is malformed, or of other problems.
    """
    builder = _Builder(recipe, tokenizer, problems, run, notify)
    builder.choose()
    builder.write()
    built = builder.built
    if not built.train:
        raise TrainingError(
            f"no row is left to train on ({built})", "sample more problems or relax prefix.*", path=run.train
        )
    return built


class _Builder:
    """The two passes."""

    def __init__(
        self, recipe: Recipe, tokenizer: Any, problems: Sequence[Problem], run: RunDir, notify: Observer
    ) -> None:
        self.recipe, self.problems, self.run, self.notify = recipe, problems, run, notify
        self.renderer = Renderer(tokenizer, recipe.prompt)
        self.eos_id = self.renderer.end_of_turn
        self.structure = structure_of(recipe, problems)
        self.built = Built()
        self.kept = bytearray()
        """For each line of solutions.jsonl: whether to train on it."""
        self.usable = array("L")
        """The numbers of the problems that have such a line."""

    def choose(self) -> None:
        """The first pass."""
        grader = grader_of(problem.answer for problem in self.problems)
        for number, problem, solutions in self._grouped(0):
            chosen = choose(self.recipe, problem, solutions, grader)
            self.kept += bytes(position in chosen.kept for position in range(len(solutions)))
            self.built.dropped += chosen.dropped
            if chosen.kept:
                self.usable.append(number)

    def write(self) -> None:
        """The second pass."""
        held_out = valid_numbers(self.usable, self.recipe.train.valid_ratio, self.recipe.seed)
        line = 0
        with ExitStack() as stack:
            train, valid = (stack.enter_context(rows_writer(path)) for path in (self.run.train, self.run.valid))
            for number, problem, solutions in self._grouped(len(self.problems)):
                kind = row_kind(self.recipe, structure=number in self.structure)
                for solution in solutions:
                    if self.kept[line]:
                        row = training_row(
                            problem, solution, kind, recipe=self.recipe, renderer=self.renderer, eos_id=self.eos_id
                        )
                        if number in held_out:
                            valid(row)
                            self.built.valid += 1
                        else:
                            train(row)
                            self.built.train += 1
                            self.built.tokens += len(row.completion_ids)
                    line += 1

    def _grouped(self, done: int) -> Iterator[tuple[int, Problem, list[Solution]]]:
        """Each problem that has solutions, with its number and all of them; both files are in the same order."""
        numbered = enumerate(self.problems)
        groups = itertools.groupby(read_rows(self.run.solutions, Solution), key=lambda solution: solution.problem_id)
        for problem_id, solutions in groups:
            number, problem = next((pair for pair in numbered if pair[1].id == problem_id), (None, None))
            if number is None or problem is None:
                raise RowsError(
                    f"problem {quoted(problem_id)} is not among the problems, or out of their order",
                    "move the file away, `upft generate` makes it again",
                    path=self.run.solutions,
                )
            if number % _EVERY == 0:
                self.notify(Progress("build", done + number, 2 * len(self.problems), "problems"))
            yield number, problem, list(solutions)


@dataclass(frozen=True)
class Cut:
    """Full solutions, and those that were cut, at `generate.max_tokens` or because they repeat themselves."""

    full: int
    cut: int
    mean_kept: float
    """Tokens of those that ended."""
    mean_all: float
    """Tokens of all as far as they were sampled: the cut ones would have been longer."""

    def __str__(self) -> str:
        what = (
            f"{self.cut:,} of {many(self.full, 'full solution')} reached generate.max_tokens, or were cut because they "
            "repeat themselves, and train nothing"
        )
        if self.cut == self.full:
            return what
        return f"{what}: those that do have {self.mean_kept:.0f} tokens on average, all at least {self.mean_all:.0f}"


def cut_solutions(solutions: Iterable[Solution]) -> Cut:
    """How many full solutions were cut, and what their absence does to the mean length."""
    kept: list[int] = []
    cut: list[int] = []
    for solution in solutions:
        if solution.kind == "full":
            (cut if solution.finish_reason == "length" else kept).append(len(solution.completion_ids))
    every = [*kept, *cut]
    return Cut(len(every), len(cut), sum(kept) / max(1, len(kept)), sum(every) / max(1, len(every)))
