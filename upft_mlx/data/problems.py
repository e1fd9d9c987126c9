"""Problems from local files, the Hugging Face Hub, or the package itself.

    {"id": "t-1", "question": "Ann has 3 apples ...", "answer": "5"}

`id` and `answer` may be missing: UPFT needs questions only.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import random
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upft_mlx.data.columns import Columns, find_columns
from upft_mlx.data.hub import Located, Place, Source, first_line, hub_rows
from upft_mlx.errors import ColumnError, ProblemsError
from upft_mlx.escape import one_line, quoted

SUFFIXES = (".jsonl", ".parquet", ".csv")
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
    return list(itertools.islice(_open(source, None)[1], count))


def stream_problems(source: Source, *, builtin: str | None = None) -> Iterator[Problem]:
    """All problems of a source, one at a time, in a fixed order.

    Args:
        source: where to read and which columns to take.
        builtin: a file of the package instead (`train` or `test` of the embedded arithmetic problems).

    Raises:
        ProblemsError: the source is missing, empty or malformed; names `file:line` and the column.
        OfflineError: a Hub dataset is not on this machine and cannot be downloaded.
    """
    name, rows = _open(source, builtin)
    digests = array("q")
    for _, problem in _problems(rows, _named_columns(source)):
        digests.append(hash(problem.id))
        yield problem
    if not digests:
        raise ProblemsError("no rows", "a dataset needs at least one question", path=name)
    if repeated := _first_repeated(digests):
        (first, _), (place, problem) = (_numbered(source, builtin, number) for number in repeated)
        raise ProblemsError(
            f"the id {quoted(problem.id)} is already used (by {first})", "give each row its own id", **place._asdict()
        )


def problems_of(rows: Iterable[Located], source: Source) -> list[Problem]:
    """These rows of a source as problems.

    Raises:
        ProblemsError: a row is malformed.
    """
    return [problem for _, problem in _problems(rows, _named_columns(source))]


def _numbered(source: Source, builtin: str | None, number: int) -> tuple[Place, Problem]:
    """A problem's place, and the problem; reads the source again, because only an error needs this."""
    _, rows = _open(source, builtin)
    return next(itertools.islice(_problems(rows, _named_columns(source)), number, None))


def _first_repeated(digests: array[int]) -> tuple[int, int] | None:
    """The numbers of two rows with the same digest: of all such pairs, the one whose second row comes first."""
    import numpy as np

    values = np.frombuffer(digests, np.int64)
    order = np.argsort(values, kind="stable")
    again = np.flatnonzero(values[order[1:]] == values[order[:-1]])
    if not len(again):
        return None
    return min(((int(order[i]), int(order[i + 1])) for i in again), key=lambda numbers: numbers[1])


def _open(source: Source, builtin: str | None) -> tuple[str, Iterable[Located]]:
    if builtin is not None:
        path = Path(__file__).parent.parent / "demo" / f"{builtin}.jsonl"
        return path.name, _jsonl(path)
    if source.path is not None:
        return source.path, _local(Path(source.path))
    assert source.dataset is not None
    return source.dataset, hub_rows(source)


def _local(path: Path) -> Iterable[Located]:
    if not path.exists():
        raise ProblemsError("no such file", f"set problems.path to a {', '.join(SUFFIXES)} file", path=path)
    readers = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    if path.suffix not in readers or not path.is_file():
        raise ProblemsError(f"expected a {', '.join(SUFFIXES)} file", path=path)
    return readers[path.suffix](path)


def _jsonl(path: Path) -> Iterator[Located]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                place = Place(str(path), number)
                yield place, _object(place, line)


def _object(place: Place, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig").strip())
    except UnicodeDecodeError:
        raise ProblemsError("not UTF-8 text", **place._asdict()) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a bare ValueError
        problem = f"not JSON: {getattr(error, 'msg', error)}"
        raise ProblemsError(problem, found=_excerpt(line), **place._asdict()) from None
    if not isinstance(row, dict):
        raise ProblemsError("expected an object with columns", found=_excerpt(line), **place._asdict())
    return row


def _excerpt(line: bytes) -> str:
    text = line.decode(errors="replace").strip()
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _csv(path: Path) -> Iterator[Located]:
    header: list[str] = []
    start = 1  # a quoted field may hold line breaks: a row is known by its first line
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            for cells in reader:
                place, start = Place(str(path), start), reader.line_num + 1
                if not header:
                    header = cells
                elif cells:
                    yield place, _csv_row(place, header, cells)
    except csv.Error as error:
        raise ProblemsError(f"not CSV: {error}", path=path, line=start) from None
    except UnicodeDecodeError:
        raise ProblemsError("not UTF-8 text", path=path, line=_first_line_not_utf8(path)) from None


def _csv_row(place: Place, header: Sequence[str], cells: Sequence[str]) -> dict[str, Any]:
    if len(cells) != len(header):
        raise ProblemsError(f"{len(cells)} columns, but the header has {len(header)}", **place._asdict())
    return dict(zip(header, cells, strict=True))


def _first_line_not_utf8(path: Path) -> int:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 1


def _parquet(path: Path) -> Iterator[Located]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield Place(str(path), row=number), row
    except (pa.ArrowException, OSError, ValueError) as error:
        where = f"after row {number}: " if number else ""
        raise ProblemsError(f"{where}cannot be read as Parquet: {first_line(error)}", path=path) from None


def _named_columns(source: Source) -> Columns:
    """The columns that a recipe names; `problems` knows of two, a benchmark of all."""
    more = {name: getattr(source, name, None) for name in ("level", "subject", "wrong_answers")}
    return Columns(question=source.question, answer=source.answer, **more)


def _problems(rows: Iterable[Located], named: Columns) -> Iterator[tuple[Place, Problem]]:
    """Rows as problems. The first rows decide which optional columns exist; some of them may lack a column."""
    rows = iter(rows)
    head = list(itertools.islice(rows, _HEAD))
    if not head:
        return
    columns = find_columns(head[0][0], {column: None for _, row in head for column in row}, named)
    for index, (place, row) in enumerate(itertools.chain(head, rows)):
        problem = _problem(place, row, index, columns)
        _refuse_surrogates(place, problem)
        yield place, problem


def _problem(place: Place, row: dict[str, Any], index: int, columns: Columns) -> Problem:
    wrong = (_answer(place, row, column) for column in columns.wrong_answers or ())
    return Problem(
        id=_id(row.get(columns.id) if columns.id else None, index),
        question=_question(place, row, str(columns.question)),
        answer=_answer(place, row, columns.answer),
        level=_tag(row, columns.level).removeprefix("Level ") or None,
        subject=_tag(row, columns.subject) or None,
        wrong_answers=tuple(answer for answer in wrong if answer is not None),
    )


def _tag(row: dict[str, Any], column: str | None) -> str:
    """A level or a subject as a text; empty if the row has none."""
    value = row.get(column) if column else None
    return str(value).strip() if isinstance(value, (str, int, float)) else ""


def _id(value: object, index: int) -> str:
    return str(value) if isinstance(value, (str, int)) and str(value) else str(index)


def _question(place: Place, row: dict[str, Any], column: str) -> str:
    if column not in row:
        there = one_line(", ".join(row), 1000) or "none"
        raise ColumnError(f"no column {quoted(column)}; it has {there}", column="question", **place._asdict())
    value = row[column]
    if not isinstance(value, str):
        raise ProblemsError("expected text", found=_shown(value), field=one_line(column), **place._asdict())
    if not value.strip():
        raise ProblemsError(
            "the question is empty", "fill it in or remove the row", field=one_line(column), **place._asdict()
        )
    return value


def _answer(place: Place, row: dict[str, Any], column: str | None) -> str | None:
    value = row.get(column) if column else None
    if value is None or value == "":
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number and not isinstance(value, str):
        raise ProblemsError(
            "expected text or a number", found=_shown(value), field=one_line(str(column)), **place._asdict()
        )
    return str(value)


def _shown(value: object) -> str:
    return json.dumps(value, default=str)[:60]


def _refuse_surrogates(place: Place, problem: Problem) -> None:
    """Refuse halves of surrogate pairs: JSON can escape them, but they are no text that can be written."""
    try:
        f"{problem.id}{problem.question}{problem.answer}".encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ProblemsError(f"{half!r} is half of a surrogate pair", "fix the text", **place._asdict()) from None
