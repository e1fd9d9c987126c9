"""Problems kept on the disk: a hundred thousand of them take memory for their places only."""

from __future__ import annotations

import json
import tempfile
import weakref
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from typing import overload

from upft_mlx.data.problems import Problem, chosen, stream_problems
from upft_mlx.data.source import Notes
from upft_mlx.recipe.schema import Recipe

_IN_MEMORY = 1 << 20
"""Bytes of problems that need no file."""


class _Lazy(Sequence[Problem]):
    """A sequence that reads each problem when it is needed."""

    @abstractmethod
    def _read(self, number: int) -> Problem: ...
    @overload
    def __getitem__(self, index: int) -> Problem: ...
    @overload
    def __getitem__(self, index: slice) -> list[Problem]: ...
    def __getitem__(self, index: int | slice) -> Problem | list[Problem]:
        if isinstance(index, slice):
            return [self._read(number) for number in range(*index.indices(len(self)))]
        return self._read(index)


class DiskProblems(_Lazy):
    """A sequence of problems, in a temporary file that has no name and goes with the process where they are many."""

    def __init__(self, problems: Iterable[Problem], notes: Notes | None = None) -> None:
        """Write the problems down, one at a time; `notes` says how they were read."""
        self.notes = Notes() if notes is None else notes
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115  # open as long as the sequence lives
        weakref.finalize(self, self._file.close)
        self._places = array("q")
        for problem in problems:
            self._places.append(self._file.tell())
            self._file.write(json.dumps(vars(problem)).encode() + b"\n")

    def take(self, limit: int | None, shuffle: int | None) -> None:
        """Keep at most `limit` problems, after a shuffle with the seed `shuffle`."""
        order = chosen(len(self), limit, shuffle)
        self._places = array("q", (self._places[number] for number in order))

    def __len__(self) -> int:
        return len(self._places)

    def _read(self, number: int) -> Problem:
        self._file.seek(self._places[number])
        values = json.loads(self._file.readline())
        return Problem(**{**values, "wrong_answers": tuple(values["wrong_answers"])})


class ProblemSubset(_Lazy):
    """Some of a sequence of problems, in the order of their numbers; only the numbers are held."""

    def __init__(self, problems: Sequence[Problem], numbers: Iterable[int]) -> None:
        """Nothing is read yet."""
        self._problems, self._numbers = problems, array("q", numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def _read(self, number: int) -> Problem:
        return self._problems[self._numbers[number]]


def recipe_problems(recipe: Recipe) -> DiskProblems:
    """The problems that a recipe samples solutions of.

    Raises:
        ProblemsError: they cannot be read.
        OfflineError: they are on the Hub, and it cannot be asked.
    """
    section, notes = recipe.problems, Notes()
    problems = DiskProblems(stream_problems(section, builtin="train" if section.builtin else None, notes=notes), notes)
    problems.take(section.limit, recipe.seed if section.shuffle else None)
    return problems
