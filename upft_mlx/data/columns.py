"""Which column of a dataset holds what: named by the recipe, or found by the usual names. Pure."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from upft_mlx.data.files import refuse_rows_inside
from upft_mlx.data.source import Located, Row
from upft_mlx.errors import ColumnError, ProblemsError
from upft_mlx.escape import one_line, quoted

QUESTION_COLUMNS = ("question", "problem", "query", "prompt", "instruction", "messages", "conversations")
ANSWER_COLUMNS = (
    *("answer", "final_answer", "expected_answer", "correct_answer", "ground_truth", "reward_model.ground_truth"),
    *("answerKey", "solution", "response", "output", "completion"),
)
ID_COLUMNS = ("id", "unique_id", "problem_id", "Record ID")
LEVEL_COLUMNS = ("level",)
SUBJECT_COLUMNS = ("subject", "type", "High-level domain")
WRONG_COLUMNS = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
"""GPQA's columns."""
OPTION_COLUMNS = ("choices", "options")
NUMBERED = "none"
"""The value of `id` with which rows are numbered, whatever ids they have."""


@dataclass(frozen=True)
class Columns:
    """Which column holds what; unset ones are found by their usual names. A dotted path names a nested field."""

    question: str | None = None
    answer: str | None = None
    id: str | None = None
    level: str | None = None
    subject: str | None = None
    wrong_answers: tuple[str, ...] | None = None
    answers: tuple[str, ...] = ()
    """Where else an answer is looked for in a row without one, in this order; empty where the recipe names a column."""
    options: str | None = None
    """The options of a multiple choice."""


def find_columns(rows: Sequence[Located], named: Columns) -> Columns:
    """The columns to read, decided on the first rows.

    Raises:
        ColumnError: there is no question, or no column of a name that was given.
        ProblemsError: the rows are inside a field of the only one.
    """
    try:
        return _found(rows, named)
    except ColumnError:
        if len(rows) == 1 and isinstance(rows[0][1], dict):
            refuse_rows_inside(rows[0][0], rows[0][1])
        raise


def _found(rows: Sequence[Located], named: Columns) -> Columns:
    head = [row for _, row in rows if isinstance(row, dict)]
    if not head and isinstance(rows[0][1], ProblemsError):
        raise rows[0][1]
    place = rows[0][0]._asdict()
    question = named.question or _first(QUESTION_COLUMNS, head)
    if question is None:
        usual = ", ".join(QUESTION_COLUMNS)
        problem = f"no column named {usual}; it has {_named(head)}"
        raise ColumnError(problem, column="question", likely=_likely("question", head), **place)
    given = {name: getattr(named, name) for name in ("question", "answer", "level", "subject")}
    given |= {"id": None if named.id == NUMBERED else named.id}
    for field, column in [*given.items(), *(("wrong_answers", column) for column in named.wrong_answers or ())]:
        if column is not None and not any(column in row or value_at(row, column) is not None for row in head):
            there = {name for row in head for name in (*row, *names_of(row))}
            near = difflib.get_close_matches(column, there, n=1)
            hint = f"did you mean {quoted(near[0])}? " if near else ""
            raise ColumnError(
                f"no column {quoted(column)}; {hint}it has {_named(head)}",
                column=field,
                likely=_likely(field, head),
                **place,
            )
    found = [name for name in _all(ANSWER_COLUMNS, head) if name != question]
    wrong = (_first((name,), head) for name in WRONG_COLUMNS)
    return Columns(
        question=question,
        answer=named.answer or (found[0] if found else None),
        id=None if named.id == NUMBERED else named.id or _first(ID_COLUMNS, head),
        level=named.level or _first(LEVEL_COLUMNS, head),
        subject=named.subject or _first(SUBJECT_COLUMNS, head),
        wrong_answers=tuple(c for c in wrong if c) if named.wrong_answers is None else named.wrong_answers,
        answers=() if named.answer else tuple(found[1:]),
        options=_first(OPTION_COLUMNS, head),
    )


def value_at(row: Row, column: str | None) -> Any:
    """A row's value in a column, or at a dotted path into its nested fields; None if it has none, or NaN."""
    if column is None:
        return None
    if column in row:
        return _present(row[column])
    value: Any = row
    for part in column.split("."):
        if isinstance(value, list) and part.isdecimal() and len(part) < 6:
            value = value[int(part)] if int(part) < len(value) else None
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return _present(value)


def _present(value: Any) -> Any:
    """A value; None for NaN, which is how Python's json and data frames write one that is missing."""
    return None if isinstance(value, float) and math.isnan(value) else value


def names_of(row: Row) -> Iterator[str]:
    """A row's columns, and with dots the fields in them."""
    for column, value in row.items():
        nested = [f"{column}.{name}" for name in value] if isinstance(value, dict) else []
        yield from nested or [str(column)]


def _all(names: Sequence[str], head: Sequence[Row]) -> list[str]:
    """Those of the names that are columns, in their order: exact matches, or else ones that are spelt alike."""
    there = dict.fromkeys(name for row in head for name in (*row, *names_of(row)))
    alike = {_plain(name): name for name in reversed(there)}
    found = [name if name in there else alike.get(_plain(name)) for name in names]
    return list(dict.fromkeys(name for name in found if name is not None))


def _first(names: Sequence[str], head: Sequence[Row]) -> str | None:
    there = {name for row in head for name in (*row, *names_of(row))}
    return next((name for name in names if name in there), None) or next(iter(_all(names, head)), None)


def _plain(name: str) -> str:
    """A name without capitals, and with any of spaces, `_` and `-` between its words."""
    return re.sub(r"[\s_-]+", " ", str(name)).strip().casefold()


def _named(head: Sequence[Row]) -> str:
    return one_line(", ".join(dict.fromkeys(name for row in head for name in names_of(row))), 1000) or "none"


def _likely(field: str, head: Sequence[Row]) -> str:
    """The column that looks most like the one with the questions: that with the longest text."""
    texts = [
        (len(value), name)
        for row in (head[:1] if field == "question" else ())
        for name in names_of(row)
        if isinstance(value := value_at(row, name), str) and len(name) < 60
    ]
    return one_line(max(texts)[1]) if texts else "COLUMN"
