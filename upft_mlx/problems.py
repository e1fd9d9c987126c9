"""Problems from local files, the Hugging Face Hub, or the package itself.

    {"id": "t-1", "question": "Ann has 3 apples ...", "answer": "5"}

`id` and `answer` may be missing: UPFT needs questions only.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from upft_mlx.errors import OfflineError, ProblemsError

QUESTION_COLUMNS = ("question", "problem", "query", "prompt")
ANSWER_COLUMNS = ("answer", "solution")
ID_COLUMNS = ("id", "unique_id", "problem_id")
SUFFIXES = (".jsonl", ".parquet", ".csv")

Located = tuple[str, dict[str, Any]]
"""Where a row stands (`file:line`) and its columns."""


@dataclass(frozen=True)
class Problem:
    """A question and, where known, its answer as the dataset states it."""

    id: str
    question: str
    answer: str | None = None


class Source(Protocol):
    """What a recipe's `problems` section and a benchmark have in common."""

    @property
    def path(self) -> str | None: ...  # noqa: D102
    @property
    def dataset(self) -> str | None: ...  # noqa: D102
    @property
    def config(self) -> str | None: ...  # noqa: D102
    @property
    def split(self) -> str | None: ...  # noqa: D102
    @property
    def revision(self) -> str | None: ...  # noqa: D102
    @property
    def question(self) -> str | None: ...  # noqa: D102
    @property
    def answer(self) -> str | None: ...  # noqa: D102


def load_problems(
    source: Source, *, builtin: str | None = None, limit: int | None = None, shuffle: int | None = None
) -> list[Problem]:
    """All problems of a source, in a fixed order.

    Args:
        source: where to read and which columns to take.
        builtin: a file of the package instead (`train` or `test` of the embedded arithmetic problems).
        limit: at most so many, taken after the shuffle.
        shuffle: the seed of a shuffle, None for the source's own order.

    Raises:
        ProblemsError: the source is missing, empty or malformed; names `file:line` and the column.
        OfflineError: a Hub dataset is not on this machine and cannot be downloaded.
    """
    name, rows = _open(source, builtin)
    problems = list(_problems(name, rows, source.question, source.answer))
    if not problems:
        raise ProblemsError(f"{name}: no rows; a dataset needs at least one question")
    _refuse_equal_ids(name, problems)
    if shuffle is not None:
        random.Random(shuffle).shuffle(problems)
    return problems[:limit]


def _open(source: Source, builtin: str | None) -> tuple[str, Iterable[Located]]:
    if builtin is not None:
        path = Path(__file__).parent / "demo" / f"{builtin}.jsonl"
        return path.name, _jsonl(path)
    if source.path is not None:
        return source.path, _local(Path(source.path))
    assert source.dataset is not None
    return source.dataset, _hub(source)


def _local(path: Path) -> Iterable[Located]:
    if not path.exists():
        raise ProblemsError(f"{path}: no such file; set problems.path to a {', '.join(SUFFIXES)} file")
    readers = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    if path.suffix not in readers or not path.is_file():
        raise ProblemsError(f"{path}: expected a {', '.join(SUFFIXES)} file")
    return readers[path.suffix](path)


def _jsonl(path: Path) -> Iterator[Located]:
    number = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path}:{number}", _object(f"{path}:{number}", line)


def _object(where: str, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ProblemsError(f"{where}: not UTF-8 text") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise ProblemsError(f"{where}: not JSON: {getattr(error, 'msg', error)}; found {_excerpt(line)}") from None
    if not isinstance(row, dict):
        raise ProblemsError(f"{where}: expected an object with columns, found {_excerpt(line)}")
    return row


def _excerpt(line: bytes) -> str:
    text = line.decode(errors="replace").strip()
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _csv(path: Path) -> Iterator[Located]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            for row in reader:
                if None in row or None in row.values():
                    raise ProblemsError(
                        f"{path}:{reader.line_num}: has not the header's {len(reader.fieldnames or ())} columns"
                    )
                yield f"{path}:{reader.line_num}", dict(row)
    except csv.Error as error:
        raise ProblemsError(f"{path}:{reader.line_num}: not CSV: {error}") from None
    except UnicodeDecodeError:
        raise ProblemsError(f"{path}: not UTF-8 text") from None


def _parquet(path: Path) -> Iterator[Located]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        number = 0
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", row
    except pa.ArrowInvalid as error:
        raise ProblemsError(f"{path}: not a Parquet file: {str(error).splitlines()[0]}") from None


def _hub(source: Source) -> Iterator[Located]:
    """Rows of a Hub dataset through `datasets`, which keeps a copy in its cache."""
    import datasets
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    name = source.dataset
    datasets.disable_progress_bars()
    try:
        data = datasets.load_dataset(name, source.config, split=source.split, revision=source.revision)
    except (ConnectionError, OSError, HfHubHTTPError, ValueError) as error:
        raise _hub_error(source, error, offline=bool(constants.HF_HUB_OFFLINE)) from None
    for number, row in enumerate(data, start=1):
        yield f"{name} ({source.split}): row {number}", dict(row)


def _hub_error(source: Source, error: Exception, *, offline: bool) -> OfflineError | ProblemsError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if offline:
        return OfflineError(
            f"dataset {source.dataset}: not on this machine, and the network is off (--offline or "
            "HF_HUB_OFFLINE=1); run once without it, or set problems.path to a local file"
        )
    if isinstance(error, ConnectionError):
        return OfflineError(f"dataset {source.dataset}: the Hub cannot be reached ({reason}); check the connection")
    return ProblemsError(
        f"dataset {source.dataset}: cannot be loaded: {reason}; check dataset, config, split and revision"
    )


def _problems(
    name: str, rows: Iterable[Located], question: str | None, answer: str | None
) -> Iterator[Problem]:
    for index, (where, row) in enumerate(rows):
        if index == 0:
            question, answer = _columns(where, row, question, answer)
            id_column = _first(ID_COLUMNS, row)
        yield Problem(
            id=_id(row.get(id_column) if id_column else None, index),
            question=_question(where, row, str(question)),
            answer=_answer(where, row, answer),
        )


def _columns(
    where: str, row: dict[str, Any], question: str | None, answer: str | None
) -> tuple[str, str | None]:
    """The columns to read, decided on the first row."""
    found = question or _first(QUESTION_COLUMNS, row)
    if found is None:
        raise ProblemsError(
            f"{where}: no column named {', '.join(QUESTION_COLUMNS)}; it has {', '.join(row) or 'none'}; "
            "name the question's column with problems.question"
        )
    for column, field in ((question, "question"), (answer, "answer")):
        if column is not None and column not in row:
            raise ProblemsError(f"{where}: no column {column!r} ({field}); it has {', '.join(row) or 'none'}")
    return found, answer or _first(ANSWER_COLUMNS, row)


def _first(names: Sequence[str], row: dict[str, Any]) -> str | None:
    return next((name for name in names if name in row), None)


def _id(value: object, index: int) -> str:
    return str(value) if isinstance(value, (str, int)) and str(value) else str(index)


def _question(where: str, row: dict[str, Any], column: str) -> str:
    if column not in row:
        raise ProblemsError(f"{where}: no column {column!r}; it has {', '.join(row) or 'none'}")
    value = row[column]
    if not isinstance(value, str):
        raise ProblemsError(f"{where}: {column}: expected text, found {json.dumps(value, default=str)[:60]}")
    if not value.strip():
        raise ProblemsError(f"{where}: {column}: the question is empty")
    return value


def _answer(where: str, row: dict[str, Any], column: str | None) -> str | None:
    value = row.get(column) if column else None
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ProblemsError(f"{where}: {column}: expected text or a number, found {json.dumps(value, default=str)[:60]}")
    return str(value)


def _refuse_equal_ids(name: str, problems: Sequence[Problem]) -> None:
    seen: set[str] = set()
    for problem in problems:
        if problem.id in seen:
            raise ProblemsError(f"{name}: two rows have the id {problem.id!r}; ids tell rows apart, make them differ")
        seen.add(problem.id)
