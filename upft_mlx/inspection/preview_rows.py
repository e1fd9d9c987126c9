"""Which rows a preview shows: those of the dataset, else those that the solutions would make, else made-up ones."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from upft_mlx.data.problems import Problem
from upft_mlx.dataset.prefix import RowKind, most_sampled, row_kind, structure_of, training_row
from upft_mlx.dataset.selection import choose
from upft_mlx.errors import ProblemsError
from upft_mlx.escape import quoted
from upft_mlx.grade.graders import grader_of
from upft_mlx.models.chat import Renderer
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import Solution, TrainingRow, read_rows
from upft_mlx.rundir import RunDir
from upft_mlx.training.batches import Example, to_examples

NOTES = {
    "dataset": "these rows are those of the run",
    "solutions": "no dataset yet: these rows are made from the run's solutions, as `upft build` will make them",
    "stand-in": "no solutions with these settings yet: a made-up completion replaces the model's",
}
OUTLINED = 64
"""Problems whose prompts say what all prompts begin with, as long as there is no dataset."""

SCANNED = 5000
"""Rows of a dataset that say what all prompts begin with: a hundred thousand take ten seconds to read."""

Placed = tuple[TrainingRow, str]
"""A row, and where it is: `train.jsonl`, `valid.jsonl`, or empty."""


@dataclass(frozen=True)
class Found:
    """Rows to show."""

    source: Literal["dataset", "solutions", "stand-in"]
    rows: list[Placed]
    outline: list[Example]
    """Examples that begin alike as far as all examples of the run do."""

    @property
    def note(self) -> str:
        """What the rows are."""
        return NOTES[self.source]


class Rows:
    """The rows of one recipe on its problems."""

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: Any,
        renderer: Renderer,
        problems: Sequence[Problem],
        run: RunDir,
        current: Mapping[str, bool],
    ) -> None:
        """`current` says of generate and build whether what they wrote is that of this recipe."""
        self._recipe, self._tokenizer, self._renderer = recipe, tokenizer, renderer
        self._problems, self._run = problems, run
        self._structure = structure_of(recipe, problems)
        self.eos_id = renderer.end_of_turn
        self._source: Literal["dataset", "solutions", "stand-in"] = "stand-in"
        if current["build"] and run.train.exists() and run.valid.exists():
            self._source = "dataset"
        elif current["generate"] and run.solutions.exists():
            self._source = "solutions"

    def some(self, count: int) -> Found:
        """The first rows, with both kinds among them where there are two and room for them."""
        kinds: dict[str, list[Placed]]
        if self._source == "dataset":
            scanned = itertools.islice(self._dataset(), max(SCANNED, count))
            kinds, outline = _first_and_outline(scanned, count, self._recipe.train.max_length)
            return Found("dataset", _pick(kinds, count), outline)
        kinds = {}
        expected = {self._kind(number) for number in self._spread(1) if not self._skipped(number)}
        for placed in self._from_solutions() if self._source == "solutions" else self._made_up(self._spread(count)):
            kinds.setdefault(placed[0].kind, []).append(placed)
            if set(kinds) == expected and sum(map(len, kinds.values())) >= count + 1:
                break  # further rows would not be shown
        return Found(self._source, _pick(kinds, count), self._outline())

    def training(self) -> Iterator[TrainingRow]:
        """The rows that train: the dataset's, else those that building will make; none where nothing is sampled."""
        if self._source == "dataset":
            yield from read_rows(self._run.train, TrainingRow)
        elif self._source == "solutions":
            yield from (row for row, _ in self._from_solutions())

    def of(self, problem_id: str) -> Found:
        """All rows of one problem.

        Raises:
            ProblemsError: there is no such problem, or it trains no row.
        """
        number = self.number_of(problem_id)
        if self._source == "dataset":
            rows = [placed for placed in self._dataset() if placed[0].problem_id == problem_id]
            scanned = itertools.islice(self._dataset(), SCANNED)
            outline = _first_and_outline(scanned, 0, self._recipe.train.max_length)[1]
        else:
            made = self._from_solutions(number) if self._source == "solutions" else self._made_up([number])
            rows, outline = list(made), self._outline()
        if not rows:
            why = "method structure_only trains those that were drawn, and it was not"
            if not self._skipped(number):
                solutions = [s for s in read_rows(self._run.solutions, Solution) if s.problem_id == problem_id]
                grader = grader_of(problem.answer for problem in self._problems)
                dropped = choose(self._recipe, self._problems[number], solutions, grader).dropped
                why = ", ".join(dropped) or "it has no solution"
            raise ProblemsError(f"problem {quoted(problem_id)} trains no row: {why}")
        return Found(self._source, rows, outline)

    def number_of(self, problem_id: str) -> int:
        """The number of a problem.

        Raises:
            ProblemsError: there is none of this id; suggests the nearest ones.
        """
        ids = [problem.id for problem in self._problems]
        if problem_id not in ids:
            near = difflib.get_close_matches(problem_id, ids, n=3, cutoff=0.4) or ids[:3]
            raise ProblemsError(
                f"no problem {quoted(problem_id)} among the recipe's {len(ids):,}", f"there are {', '.join(near)}"
            )
        return ids.index(problem_id)

    # Where rows come from.

    def _dataset(self) -> Iterator[Placed]:
        for path in (self._run.train, self._run.valid):
            for row in read_rows(path, TrainingRow):
                yield row, path.name

    def _from_solutions(self, number: int | None = None) -> Iterator[Placed]:
        """The rows that building makes, of all problems or one."""
        numbers = {problem.id: place for place, problem in enumerate(self._problems) if number in (None, place)}
        rows = read_rows(self._run.solutions, Solution)
        grader = grader_of(problem.answer for problem in self._problems)
        for problem_id, group in itertools.groupby(rows, key=lambda solution: solution.problem_id):
            if problem_id in numbers:
                place, solutions = numbers[problem_id], list(group)
                for index in choose(self._recipe, self._problems[place], solutions, grader).kept:
                    yield self._row(place, solutions[index]), ""

    def _made_up(self, numbers: Iterable[int]) -> Iterator[Placed]:
        """Rows with completions that no model sampled."""
        for number in numbers:
            if not self._skipped(number):
                yield self._row(number, self._stand_in(number)), ""

    def _row(self, number: int, solution: Solution) -> TrainingRow:
        return training_row(
            self._problems[number],
            solution,
            self._kind(number),
            recipe=self._recipe,
            renderer=self._renderer,
            eos_id=self.eos_id,
        )

    def _kind(self, number: int) -> RowKind:
        return row_kind(self._recipe, structure=number in self._structure)

    def _skipped(self, number: int) -> bool:
        return self._recipe.method == "structure_only" and number not in self._structure

    def _spread(self, count: int) -> list[int]:
        """The first problems, and the first ones of each kind."""
        numbers = range(len(self._problems))
        others = (number for number in numbers if number not in self._structure)
        return sorted({*itertools.islice(others, count), *sorted(self._structure)[:count]})

    def _stand_in(self, number: int) -> Solution:
        """The dataset's own solution where it is long enough to be one, else sentences that are none."""
        problem, length = self._problems[number], most_sampled(self._recipe, "prefix")
        ids = self._encoded(problem.answer or "")
        if len(ids) <= length:
            step = "First, I write down what is given. Then I take one step after the other. "
            end = f"So the answer is \\boxed{{{problem.answer}}}." if problem.answer else "This gives the answer."
            ids = self._encoded(step * (1 + length // 12) + end)  # a step is more than twelve tokens, in any tokenizer
        kind: Literal["prefix", "full"] = "prefix" if self._kind(number) == "prefix" else "full"
        ids = ids[:length] if kind == "prefix" else ids
        return Solution(problem.id, 0, kind, ids, self._renderer.text(ids), "length" if kind == "prefix" else "stop")

    def _encoded(self, text: str) -> list[int]:
        return [int(token) for token in self._tokenizer.encode(text, add_special_tokens=False)]

    def _outline(self) -> list[Example]:
        """What the trainer will see of the prompts, from the first problems."""
        found = []
        for number in {*range(min(OUTLINED, len(self._problems))), *sorted(self._structure)[:1]}:
            if not self._skipped(number):
                row = self._row(number, Solution(self._problems[number].id, 0, "full", [], "", "stop"))
                found += to_examples([row], self._recipe.train.max_length)
        return found


def _first_and_outline(
    rows: Iterable[Placed], count: int, max_length: int
) -> tuple[dict[str, list[Placed]], list[Example]]:
    """The first `count` rows of each kind, and the three examples of which all the others' beginning is to be seen.

    What the least and the greatest ids begin with, all do; the shortest prompt limits it.
    """
    kinds: dict[str, list[Placed]] = {}
    outline: list[Example] = []
    for row, place in rows:
        same = kinds.setdefault(row.kind, [])
        if len(same) < count:
            same.append((row, place))
        if examples := [*outline, *to_examples([row], max_length)]:
            by_ids = sorted(examples, key=lambda example: list(example.ids))
            outline = [by_ids[0], by_ids[-1], min(examples, key=lambda example: example.start)]
    return kinds, outline


def _pick(kinds: Mapping[str, list[Placed]], count: int) -> list[Placed]:
    """`count` rows: one of each kind but the commonest, the rest of that; kinds in the order of the paper's formula."""
    lists = [kinds[kind] for kind in ("prefix", "structure", "full") if kinds.get(kind)]
    others = [rows[0] for rows in lists[1:]][: max(0, count - 1)]
    picked = (lists[0] if lists else [])[: count - len(others)] + others
    spare = [placed for rows in lists[1:] for placed in rows[1:]]
    return picked + spare[: max(0, count - len(picked))]
