"""What can go wrong, as a tree. The command line turns each into one message and an exit status.

UpftError                 exit 1
+-- RecipeError           exit 2   the recipe (file, field, value) or an option is wrong
|   +-- UnknownRecipeError         no recipe has that name or path
+-- ProblemsError                  a dataset is missing, empty or malformed
|   +-- ColumnError                a dataset lacks a column
+-- RowsError                      a JSONL file of a run is malformed (file:line)
+-- ModelError                     a model is missing, incomplete or of an unsupported kind
+-- OfflineError                   something is not on this machine and the network is off
+-- RunDirError                    the run directory cannot be used or written
+-- TrainingError                  the data or the loss do not allow training
+-- FuseError                      fusing would lose what was trained
+-- ExportError                    another tool's format has no place for something
+-- FetchError                     there is no room for what must be downloaded
+-- PublishError                   the Hub refuses, or something must not be published
+-- MemoryLimitError               a stage needs more memory than this machine has
+-- RankError                      the processes of a job on several machines cannot work together
+-- MachineError                   MLX does not run on this machine, or not with this Python

Each carries its parts. Code that catches one decides by its class and its parts, never by its text.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of system errors that go away when there is room."""
MOST = 30
"""The number of errors in one message."""


class UpftError(Exception):
    """Base of all errors of upft_mlx; its text is `path:line: field: problem; remedy`, without the parts it lacks.

    Attributes:
        problem: what is wrong, with the value and the limit.
        remedy: what to do; empty where the problem says it.
        field: the recipe field, option or variable, for example `train.steps` or `--output`.
        path: the file or folder, or the option that took its place, for example `--set`.
        line: the line of that file, from 1.
        row: the row of that dataset, from 1, where it has no lines.
    """

    exit_status = 1

    def __init__(
        self,
        problem: str,
        remedy: str = "",
        *,
        field: str = "",
        path: str | Path = "",
        line: int | None = None,
        row: int | None = None,
    ) -> None:
        super().__init__(problem, remedy)
        self.problem, self.remedy = problem, remedy
        self.field, self.path, self.line, self.row = field, path, line, row

    @property
    def without_remedy(self) -> str:
        """Where it is, and what is wrong."""
        where = f"{self.path}:{self.line}" if self.line else str(self.path)
        row = f"row {self.row}" if self.row else ""
        return ": ".join(part for part in (where, row, self.field, self.problem) if part)

    def __str__(self) -> str:
        return f"{self.without_remedy}; {self.remedy}" if self.remedy else self.without_remedy


class RecipeError(UpftError):
    """A recipe or an option is wrong; raised before anything is loaded.

    Attributes:
        each: the single errors, where one message reports several.
    """

    exit_status = 2
    each: Sequence[RecipeError] = ()

    @classmethod
    def of_all(cls, errors: Sequence[RecipeError]) -> RecipeError:
        """The only one of the errors, or one error whose message has a line for each, up to `MOST`."""
        lines = list(dict.fromkeys(map(str, errors)))
        if len(lines) == 1:
            return errors[0]
        more = [f"and {len(lines) - MOST} more errors"] if len(lines) > MOST else []
        together = cls("\n".join([*lines[:MOST], *more]))
        together.each = tuple(errors)
        return together


class UnknownRecipeError(RecipeError):
    """No recipe has that name or path."""


class ProblemsError(UpftError):
    """A dataset cannot be turned into problems.

    Attributes:
        found: an excerpt of the dataset that shows what is there instead.
    """

    def __init__(self, problem: str, remedy: str = "", *, found: str = "", **parts: Any) -> None:
        super().__init__(problem, remedy, **parts)
        self.found = found

    @property
    def without_remedy(self) -> str:
        """See `UpftError`."""
        return f"{super().without_remedy}, found {self.found}" if self.found else super().without_remedy


class ColumnError(ProblemsError):
    """A dataset lacks a column.

    Attributes:
        column: the recipe's field for that column, for example `answer`.
        likely: the column that it may be.
    """

    def __init__(self, problem: str, remedy: str = "", *, column: str, likely: str = "COLUMN", **parts: Any) -> None:
        super().__init__(problem, remedy or f"name the {column} column with `{column}: {likely}`", **parts)
        self.column, self.likely = column, likely


class RowsError(UpftError):
    """A row of a JSONL file is malformed."""


class ModelError(UpftError):
    """A model folder cannot be used."""


class OfflineError(UpftError):
    """Something must be downloaded, and the network is off or out of reach.

    Attributes:
        fetched: what `upft fetch` downloads, for example `it`; empty where that does not help.
    """

    def __init__(self, problem: str, remedy: str = "", *, fetched: str = "") -> None:
        super().__init__(problem, remedy)
        self.fetched, self._otherwise = fetched, remedy
        self.fetch_with("upft fetch")

    def fetch_with(self, command: str) -> None:
        """Set the command in the remedy: `upft fetch` with the recipe and the options at hand."""
        if self.fetched:
            fetch = f"`{command}` downloads {self.fetched}"
            self.remedy = f"{fetch}, or {self._otherwise}" if self._otherwise else fetch


class RunDirError(UpftError):
    """The run directory cannot be used or written."""


class TrainingError(UpftError):
    """Training cannot start or go on."""


class FuseError(UpftError):
    """Fusing would lose too much of the adapter's effect, or cannot be done as asked."""


class ExportError(UpftError):
    """Another tool's format has no place for something in the model or the adapter."""


class FetchError(UpftError):
    """There is no room for what must be downloaded."""


class PublishError(UpftError):
    """The Hub refuses, or something must not be published."""


class MemoryLimitError(UpftError):
    """A stage needs more memory than there is; raised before anything is loaded."""


class RankError(UpftError):
    """The ranks of a job do not reach each other, or work on different things."""


class MachineError(UpftError):
    """MLX does not run on this machine, or not with this Python."""
