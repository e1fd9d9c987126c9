"""Which column of a dataset holds what: named by the recipe, or found by the usual names. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from upft_mlx.data.hub import Place
from upft_mlx.errors import ColumnError
from upft_mlx.escape import one_line, quoted

QUESTION_COLUMNS = ("question", "problem", "query", "prompt")
ANSWER_COLUMNS = ("answer", "solution", "Correct Answer")
ID_COLUMNS = ("id", "unique_id", "problem_id", "Record ID")
LEVEL_COLUMNS = ("level",)
SUBJECT_COLUMNS = ("subject", "type", "High-level domain")
WRONG_COLUMNS = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
"""GPQA's columns; in other datasets the names match in upper and lower case."""


@dataclass(frozen=True)
class Columns:
    """Which column holds what; unset ones are found by their usual names."""

    question: str | None = None
    answer: str | None = None
    id: str | None = None
    level: str | None = None
    subject: str | None = None
    wrong_answers: tuple[str, ...] | None = None


def find_columns(place: Place, row: dict[str, Any], named: Columns) -> Columns:
    """The columns to read, decided on the first row.

    Raises:
        ColumnError: there is no question, or no column of a name that was given.
    """
    question = named.question or _first(QUESTION_COLUMNS, row)
    if question is None:
        raise ColumnError(
            f"no column named {', '.join(QUESTION_COLUMNS)}; it has {_named(row)}",
            "name the question's column with `question`",
            column="question",
            **place._asdict(),
        )
    for field in ("question", "answer", "level", "subject"):
        _refuse_missing(place, row, getattr(named, field), field)
    for column in named.wrong_answers or ():
        _refuse_missing(place, row, column, "wrong_answers")
    wrong = (_first((name,), row) for name in WRONG_COLUMNS)
    found = tuple(column for column in wrong if column)
    return Columns(
        question=question,
        answer=named.answer or _first(ANSWER_COLUMNS, row),
        id=_first(ID_COLUMNS, row),
        level=named.level or _first(LEVEL_COLUMNS, row),
        subject=named.subject or _first(SUBJECT_COLUMNS, row),
        wrong_answers=found if named.wrong_answers is None else named.wrong_answers,
    )


def _refuse_missing(place: Place, row: dict[str, Any], column: str | None, field: str) -> None:
    if column is not None and column not in row:
        raise ColumnError(
            f"no column {quoted(column)}; it has {_named(row)}",
            f"name one with `{field}`",
            column=field,
            **place._asdict(),
        )


def _first(names: Sequence[str], row: dict[str, Any]) -> str | None:
    """The first of the names that is a column: an exact match, or else one that ignores upper and lower case."""
    lowered = {str(column).lower(): column for column in reversed(row)}
    return next((name for name in names if name in row), None) or next(
        (lowered[name.lower()] for name in names if name.lower() in lowered), None
    )


def _named(row: Iterable[str]) -> str:
    return one_line(", ".join(row), 1000) or "none"
