"""The contents of a dataset, and splitting it into training problems and test questions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from upft_mlx.data.columns import Columns, find_columns
from upft_mlx.data.files import kind_of, refuse_other_files
from upft_mlx.data.hub import look
from upft_mlx.data.on_disk import DiskProblems, ProblemSubset
from upft_mlx.data.problems import Problem, first_rows, named_columns, stream_problems, to_problems
from upft_mlx.data.source import Notes
from upft_mlx.errors import ProblemsError
from upft_mlx.escape import quoted
from upft_mlx.grade.answers import normalize_gold
from upft_mlx.grade.correct import is_correct
from upft_mlx.grade.graders import letter_in
from upft_mlx.quantities import many
from upft_mlx.recipe.schema import Problems

_LOOKED_AT = 100
"""Number of rows to read from a Hub dataset, and on which the columns of any dataset are decided."""
_PROSE = 80
"""Longer answers (characters) are texts rather than numbers or formulas."""
_COMPARED = 1000
"""Maximum number of pairs of equal questions whose answers are compared."""
_OTHERS = (".txt", ".xlsx", ".xls", ".gz", ".zip", ".zst", ".arrow", ".yaml")
"""Endings that a dataset on the Hub does not have either."""


@dataclass(frozen=True)
class DataFacts:
    """A dataset as `upft new` found it."""

    source: Problems
    columns: Columns
    rows: int | None
    """None if the Hub does not say."""
    seen: Sequence[Problem] = field(repr=False)
    """All problems of a file, on disk if there are many; the first ones of a Hub dataset."""
    splits: tuple[str, ...] = ()
    """The names of a Hub dataset's splits."""
    notes: tuple[str, ...] = ()
    """How it was read, where that is not obvious, and what was left out."""

    @property
    def question(self) -> str:
        """The question's column."""
        return str(self.columns.question)

    @property
    def answer(self) -> str | None:
        """The answer's column, or that of the conversations; None if no problem has an answer."""
        return self.columns.answer or (self.columns.question if self.answered else None)

    @property
    def answered(self) -> int:
        """How many of the seen problems have an answer."""
        return self._measured[0]

    @property
    def mean_length(self) -> float:
        """Mean length of the questions seen (characters)."""
        return self._measured[1] / len(self.seen)

    @property
    def longest(self) -> int:
        """Length of the longest question seen (characters)."""
        return self._measured[2]

    @cached_property
    def _measured(self) -> tuple[int, int, int]:
        """The problems with an answer, and the characters of all questions and of the longest; one pass."""
        answered = characters = longest = 0
        for problem in self.seen:
            answered += problem.answer is not None
            characters += len(problem.question)
            longest = max(longest, len(problem.question))
        return answered, characters, longest


def data_facts(source: Problems) -> DataFacts:
    """Read a whole local file, or the first rows of a Hub dataset.

    Raises:
        ProblemsError: it is missing, empty or malformed, or no column holds questions.
        OfflineError: the Hub dataset is not on this machine and the Hub cannot be reached.
    """
    notes = Notes()
    if source.path is not None:
        rows = first_rows(source, _LOOKED_AT)
        if not rows:
            raise ProblemsError("no rows", "a dataset needs at least one question", path=str(source.path))
        columns = find_columns(rows, named_columns(source))
        problems = DiskProblems(stream_problems(source, notes=notes), notes)
        return DataFacts(source, columns, len(problems), problems, notes=tuple(notes.lines()))
    found = look(source, _LOOKED_AT)
    if not found.rows:
        raise ProblemsError(f"dataset {source.dataset}: the split {quoted(source.split)} has no rows", "set --split")
    columns = find_columns(found.rows, named_columns(source))
    seen = to_problems(found.rows, source, notes)
    return DataFacts(source, columns, found.count, seen, found.splits, tuple(notes.lines()))


def is_file(dataset: str) -> bool:
    """Whether a dataset's name means a local file rather than a Hub id.

    Raises:
        ProblemsError: it means a file, and there is none, or one of another kind.
    """
    path = Path(dataset).expanduser()
    named = kind_of(path) is not None or path.suffix.lower() in _OTHERS
    if not (path.exists() or named or dataset.startswith((".", "/", "~"))):
        return False
    refuse_other_files(path, "name")
    return True


@dataclass(frozen=True)
class Split:
    """Training problems and test questions; no question is in both."""

    train: Sequence[Problem]
    test: list[Problem]
    repeated: int
    """Number of rows whose question is also in an earlier row."""
    disputed: tuple[Problem, Problem] | None
    """The first two with the same question and different answers."""


def hold_out(problems: Sequence[Problem], count: int | None) -> Split:
    """Set test questions aside, drawn with a seed from the problems with an answer; equal questions stay together.

    What is held of each problem is 20 bytes: a hash of its question and the like.

    Args:
        problems: all of them.
        count: how many to set aside; None: a fifth of those with an answer, at most 200.

    Raises:
        ProblemsError: too few problems have an answer, or none would be left to train on.
    """
    plain = (" ".join(problem.question.split()).casefold() for problem in problems)
    keys = np.fromiter(map(hash, plain), np.int64, len(problems))
    firsts = np.sort(np.unique(keys, return_index=True)[1])
    answered = np.fromiter((problem.answer is not None for problem in problems), bool, len(problems))
    testable = firsts[answered[firsts]]
    wanted = min(200, round(0.2 * len(testable))) if count is None else count
    if wanted > len(testable) or (wanted and wanted >= len(firsts)):
        raise ProblemsError(
            f"{many(len(firsts), 'different question')}, {len(testable):,} of them with an answer",
            "set fewer aside, so that some are left to train on",
            field=f"--holdout {wanted}",
        )
    drawn = testable[sorted(random.Random("holdout/0").sample(range(len(testable)), wanted))]
    train = np.flatnonzero(~np.isin(keys, keys[drawn]))
    return Split(
        ProblemSubset(problems, train),
        [problems[int(number)] for number in drawn],
        len(problems) - len(firsts),
        _disputed(problems, keys, answered),
    )


def _disputed(
    problems: Sequence[Problem], keys: npt.NDArray[np.int64], answered: npt.NDArray[np.bool_]
) -> tuple[Problem, Problem] | None:
    """Two problems with the same key and different answers, from the first pairs of equal questions."""
    numbers = np.flatnonzero(answered)
    order = numbers[np.argsort(keys[numbers], kind="stable")]
    pairs = np.stack([order[:-1], order[1:]])[:, keys[order[:-1]] == keys[order[1:]]].T
    for one, other in pairs[pairs[:, 0].argsort()][:_COMPARED]:
        first, second = problems[int(one)], problems[int(other)]
        answers = str(first.answer), str(second.answer)
        if normalize_gold(answers[0]) != normalize_gold(answers[1]) and not is_correct(*answers):
            return first, second
    return None


def all_letters(problems: Sequence[Problem]) -> bool:
    """Whether every answer is the letter of an option."""
    return bool(problems) and all(letter_in(problem.answer) for problem in problems)


def hard_to_grade(problems: Sequence[Problem]) -> list[Problem]:
    """The problems whose answer is a text of several words, which no grader compares by meaning."""
    bare = ((problem, normalize_gold(str(problem.answer))) for problem in problems)
    return [problem for problem, gold in bare if len(gold) > _PROSE or (len(gold.split()) > 3 and "\\" not in gold)]
