"""Problems from local files, the Hugging Face Hub, or the package itself.

    {"id": "t-1", "question": "Ann has 3 apples ...", "answer": "5"}

`id` and `answer` may be missing: UPFT needs questions only.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from upft_mlx.data.columns import Columns, find_columns, names_of, value_at
from upft_mlx.data.files import file_rows
from upft_mlx.data.forms import asked, conversation, letter_of, options_of, replied, with_options
from upft_mlx.data.hub import hub_rows
from upft_mlx.data.source import SKIP, Located, Notes, Place, Row, Source
from upft_mlx.errors import ColumnError, ProblemsError
from upft_mlx.escape import half, one_line, quoted
from upft_mlx.grade.graders import LETTERS
from upft_mlx.quantities import many

_HEAD = 100
"""Number of rows on which the columns are decided."""


@dataclass(frozen=True)
class Problem:
    """A question and, if known, its answer as the dataset states it."""

    id: str
    question: str
    answer: str | None = None
    level: str | None = None
    """How hard it is, if the dataset says so: `5` (also from `Level 5`)."""
    subject: str | None = None
    wrong_answers: tuple[str, ...] = ()
    """The other options of a multiple choice, if the dataset has them."""


def load_problems(
    source: Source, *, builtin: str | None = None, limit: int | None = None, shuffle: int | None = None
) -> list[Problem]:
    """The problems of a source in memory; see `stream_problems` and `chosen`."""
    problems = list(stream_problems(source, builtin=builtin))
    return [problems[number] for number in chosen(len(problems), limit, shuffle)]


def chosen(count: int, limit: int | None, shuffle: int | None) -> Sequence[int]:
    """Which of `count` problems are taken, in order: at most `limit`, after a shuffle with the seed `shuffle`."""
    numbers = array("L", range(count))
    if shuffle is not None:
        random.Random(shuffle).shuffle(numbers)
    return numbers[:limit]


def first_rows(source: Source, count: int) -> list[Located]:
    """The first rows of a source with all their columns.

    Raises:
        ProblemsError: the source is missing or malformed there.
        OfflineError: a Hub dataset is not on this machine and cannot be downloaded.
    """
    return list(itertools.islice(_open(source, None, Notes())[1], count))


def stream_problems(source: Source, *, builtin: str | None = None, notes: Notes | None = None) -> Iterator[Problem]:
    """All problems of a source, one at a time, in a fixed order.

    Args:
        source: where to read, which columns to take, and what to do with rows that cannot be used.
        builtin: a file of the package instead (`train` or `test` of the embedded arithmetic problems).
        notes: takes what is worth saying about how the source was read.

    Raises:
        ProblemsError: the source is missing, empty or malformed; names `file:line` and the column.
        OfflineError: a Hub dataset is not on this machine and cannot be downloaded.
    """
    notes = Notes() if notes is None else notes
    name, rows = _open(source, builtin, notes)
    digests = array("q")
    for _, problem in _problems(rows, source, notes):
        digests.append(hash(problem.id))
        yield problem
    if not digests and notes.skipped:
        raise ProblemsError(
            f"none of its {many(notes.skipped, 'row')} can be used; the first: {notes.first}", path=name
        )
    if not digests:
        raise ProblemsError("no rows", "a dataset needs at least one question", path=name)
    if repeated := _first_repeated(digests):
        again = _problems(_open(source, builtin, Notes())[1], source, Notes())  # only this error needs their places
        first, *_, (place, problem) = itertools.islice(again, repeated[0], repeated[1] + 1)
        raise ProblemsError(
            f"the id {quoted(problem.id)} is already used (by {first[0]})",
            "give each row its own id, or number the rows with `id: none` (`upft new`: --id none)",
            **place._asdict(),
        )


def to_problems(rows: Iterable[Located], source: Source, notes: Notes) -> list[Problem]:
    """These rows of a source as problems.

    Raises:
        ProblemsError: a row is malformed.
    """
    return [problem for _, problem in _problems(rows, source, notes)]


def _first_repeated(digests: array[int]) -> tuple[int, int] | None:
    """The numbers of two rows with the same digest: of all such pairs, the one whose second row comes first."""
    import numpy as np

    values = np.frombuffer(digests, np.int64)
    order = np.argsort(values, kind="stable")
    again = np.flatnonzero(values[order[1:]] == values[order[:-1]])
    if not len(again):
        return None
    return min(((int(order[i]), int(order[i + 1])) for i in again), key=lambda numbers: numbers[1])


def _open(source: Source, builtin: str | None, notes: Notes) -> tuple[str, Iterable[Located]]:
    if builtin is not None:
        path = Path(__file__).parent.parent / "demo" / f"{builtin}.jsonl"
        return path.name, file_rows(path, notes)
    if source.path is not None:
        return source.path, file_rows(Path(source.path), notes)
    assert source.dataset is not None
    return source.dataset, hub_rows(source)


def named_columns(source: Source) -> Columns:
    """The columns that a recipe names; `problems` knows of three, a benchmark of all."""
    more: dict[str, Any] = {name: getattr(source, name, None) for name in ("level", "subject", "wrong_answers")}
    return Columns(question=source.question, answer=source.answer, id=source.id, **more)


def _problems(rows: Iterable[Located], source: Source, notes: Notes) -> Iterator[tuple[Place, Problem]]:
    """Rows as problems. The first rows decide which optional columns exist; some of them may lack a column."""
    rows = iter(rows)
    head = list(itertools.islice(rows, _HEAD))
    if not head:
        return
    columns = find_columns(head, named_columns(source))
    for index, (place, row) in enumerate(itertools.chain(head, rows)):
        try:
            if isinstance(row, ProblemsError):
                raise row
            problem = _problem(place, row, index, columns, notes)
            texts = filter(None, (problem.id, problem.question, problem.answer, *problem.wrong_answers))
            if wrong := half("".join(texts)):
                raise ProblemsError(wrong, SKIP, **place._asdict())
        except ProblemsError as error:
            unusable = error
        else:
            yield place, problem
            continue
        if source.bad_rows != "skip":
            raise unusable from None
        notes.skip(unusable)


def _problem(place: Place, row: Row, index: int, columns: Columns, notes: Notes) -> Problem:
    question = _question(place, row, str(columns.question), notes)
    answers = ((name, _answer(place, row, name)) for name in (columns.answer, *columns.answers))  # read up to the first
    column, answer = next((pair for pair in answers if pair[1] is not None), (None, None))
    if answer is None and (turns := conversation(value_at(row, columns.question))):
        answer = replied(turns)  # in the conversation that asks the question
    options = options_of(value_at(row, columns.options))
    if options is None:
        raise ProblemsError(
            f"expected 2 to {len(LETTERS)} options, each a text or a number",
            f"rename the column if it holds no options; {SKIP}",
            found=_shown(value_at(row, columns.options)),
            field=one_line(str(columns.options)),
            **place._asdict(),
        )
    if options:
        question = with_options(question, [text for _, text in options])
        answer = answer and _letter(place, answer if column is None else value_at(row, column), options, answer)
    wrong = (_answer(place, row, column) for column in columns.wrong_answers or ())
    name = value_at(row, columns.id)
    if isinstance(name, float) and name.is_integer():  # pandas makes 7.0 of 7 where another row has no id
        name = int(name)
    return Problem(
        id=str(name) if isinstance(name, (str, int)) and str(name) else str(index),
        question=question,
        answer=answer,
        level=_tag(row, columns.level).removeprefix("Level ") or None,
        subject=_tag(row, columns.subject) or None,
        wrong_answers=tuple(answer for answer in wrong if answer is not None),
    )


def _tag(row: Row, column: str | None) -> str:
    """A level or a subject as a text; empty if the row has none."""
    value = value_at(row, column)
    return str(value).strip() if isinstance(value, (str, int, float)) else ""


def _question(place: Place, row: Row, column: str, notes: Notes) -> str:
    value, name = value_at(row, column), one_line(column)
    if value is None and column not in row:
        there = one_line(", ".join(names_of(row)), 1000) or "none"
        raise ColumnError(f"no column {quoted(column)}; it has {there}", SKIP, column="question", **place._asdict())
    if turns := conversation(value):
        value = asked(turns, notes)
        if value is None:
            raise ProblemsError("the conversation has no user turn", SKIP, field=name, **place._asdict())
        notes.say(f"the questions are the user turns in `{name}`")
    if not isinstance(value, str):
        raise ProblemsError("expected text or a conversation", SKIP, found=_shown(value), field=name, **place._asdict())
    if not value.strip():
        raise ProblemsError("the question is empty", SKIP, field=name, **place._asdict())
    if column.rpartition(".")[2].casefold() == "instruction":
        before = column[: -len("instruction")]
        beside, wanted = (row, f"{before}input") if column in row else (value_at(row, before[:-1]), "input")
        for spelt, more in beside.items():
            if spelt.casefold() == wanted.casefold() and isinstance(more, str) and more.strip():  # Alpaca
                notes.say("the questions are `instruction` and `input`, a line each")
                return f"{value}\n{more}"
    return value


def _answer(place: Place, row: Row, column: str | None) -> str | None:
    value = value_at(row, column)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if turns := conversation(value):
        return replied(turns)
    whole = isinstance(value, int) and not isinstance(value, bool)  # of any size: too many digits for a float
    number = whole or (isinstance(value, (float, Decimal)) and math.isfinite(value))
    if isinstance(value, dict) and value:
        *_, inside = names_of({str(column): value})
        raise ColumnError(
            f"`{one_line(str(column))}` has fields of its own",
            f"name the answer's column with `answer: {one_line(inside)}`",
            found=_shown(value),
            column="answer",
            likely=one_line(inside),
            **place._asdict(),
        )
    if not number and not isinstance(value, str):
        name = one_line(str(column))
        raise ProblemsError("expected text or a number", SKIP, found=_shown(value), field=name, **place._asdict())
    if isinstance(value, float) and abs(value) >= 1e16:  # `1e+16` is no number to the grader
        value = Decimal(str(value))
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def _letter(place: Place, value: Any, options: Sequence[tuple[str, str]], answer: str) -> str:
    """The letter of the right option: `value` in the dataset, `answer` as a text."""
    letter = letter_of(value, options)
    if letter is None:
        labels = one_line(", ".join(label for label, _ in options))
        expected = f"the answer should be one of the options {labels}"
        raise ProblemsError(expected, SKIP, found=quoted(answer, 60), **place._asdict())
    return letter


def _shown(value: object) -> str:
    return one_line(json.dumps(value, default=str)[:200], 60)
