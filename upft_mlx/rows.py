"""The JSONL rows of a run and how files are written: whole (atomically) or appended chunk by chunk.

    {"problem_id": "t-1", "sample": 0, "kind": "prefix", "completion_ids": [9, 4], "completion": "First,",
     "finish_reason": "length"}

A reader of a file that is being appended must expect a torn last line after `kill -9`; `resume` cuts it off.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from upft_mlx.errors import RowsError, RunDirError
from upft_mlx.escape import one_line, quoted, to_json

FinishReason = Literal["length", "stop"]


@dataclass(frozen=True)
class Solution:
    """A sampled completion: a line of solutions.jsonl."""

    problem_id: str
    sample: int
    """Which of the problem's samples, from 0."""
    kind: Literal["prefix", "full"]
    """Whether only the prefix or the whole solution was decoded."""
    completion_ids: list[int]
    """What the model sampled, without EOS."""
    completion: str
    finish_reason: FinishReason
    logprob: float | None = None
    """Sum of the log-probabilities (nats) of the sampled ids, EOS or a stop text's first token included, in the model's
    own distribution (before the temperature); only where `prefix.selection` looks at it."""
    stop_id: int | None = None
    """The token that ended it; None where it was cut at a limit or before a stop text, and in older files."""
    score: float | None = None
    """What the rule of `prefix.selection` gives its prefix; None: the rule rates none, or the sample must not train."""


@dataclass(frozen=True)
class TrainingRow:
    """A line of dataset/train.jsonl and dataset/valid.jsonl; the ids are the truth, the texts for people."""

    id: str
    problem_id: str
    sample: int
    kind: Literal["prefix", "structure", "full"]
    prompt: str
    """The user turn's text: the question, on prefix rows with the template, and the instruction around both."""
    completion: str
    prompt_ids: list[int]
    """The rendered prompt with system turn and generation prompt."""
    completion_ids: list[int]
    """Every one is supervised; includes EOS where EOS is trained."""


@dataclass(frozen=True)
class EvaluationRow:
    """A line of evaluation/BENCHMARK/base.jsonl and tuned.jsonl."""

    problem_id: str
    sample: int
    completion: str
    answer: str | None
    """What the grader took for the answer."""
    gold: str
    correct: bool
    tokens: int
    """Length of the completion, without EOS."""
    finish_reason: FinishReason
    grader: int = 1
    """Version of the grader (`correct.VERSION`); rows that name none are from version 1."""


@dataclass(frozen=True)
class Rollout:
    """A line of analysis/rollouts.jsonl: a solution continued from a prefix of another one."""

    problem_id: str
    arm: Literal["both", "correct", "incorrect"]
    """Whether the prefix is of a correct or an incorrect solution; both: nothing was given."""
    length: int
    """The prefix's length, in tokens."""
    sample: int
    correct: bool
    tokens: int
    """Sampled after the prefix."""
    grader: int = 1
    """As in `EvaluationRow`."""


@dataclass(frozen=True)
class Continuation:
    """A line of forecast/continuations.jsonl: a prefix of a sample, continued anew."""

    problem_id: str
    of: int
    """The sample that the prefix is of; -1: what greedy decoding gives."""
    length: int
    """The prefix's length, in tokens."""
    sample: int
    correct: bool
    tokens: int
    """Sampled after the prefix."""
    said: str | None = None
    """The answer that it gives, in the form in which answers are equal; only where votes count."""
    grader: int = 1
    """As in `EvaluationRow`."""


Plain = TypeVar("Plain")
Row = TypeVar("Row", Solution, TrainingRow, EvaluationRow, Rollout, Continuation)


def to_line(row: Any) -> str:
    """One JSON line, newline included; a field that has its default is left out."""
    # Not `asdict`: it would copy each id.
    values = {field.name: value for field in fields(row) if (value := getattr(row, field.name)) != field.default}
    return to_json(values, indent=None) + "\n"


def read_rows(path: Path, kind: type[Row], *, growing: bool = False) -> Iterator[Row]:
    """The rows of a JSONL file, one at a time.

    Args:
        path: the file.
        kind: of its rows.
        growing: whether it is being appended to: a last line that was torn is left out.

    Raises:
        RowsError: with `file:line` where a line is not JSON or not a row of that kind.
    """
    hints = get_type_hints(kind)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not (growing and not line.endswith(b"\n")):
                yield _row(path, number, line, kind, hints)


def _row(path: Path, number: int, line: bytes, kind: type[Row], hints: dict[str, Any]) -> Row:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        what = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise RowsError(
            f"not JSON: {what}", "move the file away, the stage makes it again", path=path, line=number
        ) from None
    names = [field.name for field in fields(kind) if field.default is MISSING]
    known = {field.name for field in fields(kind)}
    if not isinstance(data, dict) or not set(names) <= set(data) <= known:
        found = one_line(", ".join(data)) if isinstance(data, dict) else type(data).__name__
        raise RowsError(f"expected the fields {', '.join(names)}; found {found}", path=path, line=number)
    for name in data:
        if not _fits(data[name], hints[name]):
            raise RowsError(f"{quoted(data[name])} is not {hints[name]}", field=name, path=path, line=number)
    return kind(**data)


def _fits(value: Any, hint: Any) -> bool:
    if hint == list[int]:
        return isinstance(value, list) and all(type(item) is int for item in value)
    if hint in (int, bool, str, float):
        return type(value) is hint
    if args := get_args(hint):
        return any(value is None if arg is type(None) else _fits(value, arg) for arg in args)
    return bool(value == hint)  # a literal's value


def write_atomically(path: Path, data: bytes | str) -> None:
    """Replace `path` as a whole: after a crash it holds the old content or the new, never a part."""
    with replacing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def beside(path: Path) -> Path:
    """Where a file is written before it takes its place."""
    return path.with_name(f".{path.stem}.tmp{path.suffix}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`: synced and moved to `path` if the block succeeds, else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    temporary.unlink(missing_ok=True)  # of a process that was killed, or a link that leads elsewhere
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:  # Ctrl-C as well; it is raised again below
        with suppress(OSError):  # what went wrong first is what to say
            temporary.unlink(missing_ok=True)
        raise


def write_error(error: Exception, path: Path, needed: int) -> OSError:
    """What MLX's writers mean when they fail: they say that a file cannot be written, and not why.

    Args:
        error: what they raised.
        path: what they wrote.
        needed: bytes that had to fit.
    """
    there = next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())
    if shutil.disk_usage(there).free < needed:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    return OSError(errno.EIO, f"cannot be written ({error})", str(path))


def read_error(error: Exception, path: Path) -> OSError:
    """What MLX's readers mean when they fail: they say that a file cannot be opened, and not why."""
    try:
        path.open("rb").close()
    except OSError as found:
        return found
    return OSError(errno.EIO, f"cannot be read ({error})", str(path))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    write_atomically(path, to_json(value) + "\n")


def read_json(path: Path) -> Any:
    """The value of a JSON file, None where there is no file.

    Raises:
        RowsError: if it is not JSON.
    """
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise RowsError("not JSON", "move it away and run the command again", path=path) from None


def from_plain(kind: type[Plain], found: Any, file: str) -> Plain:
    """A dataclass from what `asdict` gave, whether or not it went through JSON, without fields of later versions.

    Raises:
        RowsError: something is missing or of another kind; `file` is where it is from.
    """
    from pydantic import ValidationError

    key: Any = kind  # mypy takes a type[Plain] for not hashable
    try:
        read: Plain = _adapter(key).validate_python(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise RowsError(f"{file}: {where}: {first['msg']}", "move it away and run the command again") from None
    return read


def to_plain(value: Any, *, exclude_none: bool = False) -> dict[str, Any]:
    """A dataclass as plain values for JSON."""
    kind: Any = type(value)  # see `from_plain`
    return dict(_adapter(kind).dump_python(value, mode="json", exclude_none=exclude_none))


@cache
def _adapter(kind: Any) -> Any:
    """What reads and writes a dataclass as plain values: making it takes up to 35 ms, and a run uses several often."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def write_rows(path: Path, rows: Iterable[Any]) -> None:
    """Write a JSONL file atomically, one row in memory at a time."""
    with rows_writer(path) as write:
        for row in rows:
            write(row)


@contextmanager
def rows_writer(path: Path) -> Iterator[Callable[[Any], None]]:
    """What writes a row to the JSONL file that takes its place at `path` when the block ends well."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:

        def write(row: Any) -> None:
            file.write(to_line(row))

        yield write


def arrange(source: Path, target: Path, order: Iterable[int]) -> None:
    """Write the lines of a file in another order, atomically; only their places are held.

    Args:
        source: the file.
        target: where it goes.
        order: the numbers (from 0) of its lines as they are to follow each other.
    """
    places = array("q", [0])
    with source.open("rb") as file, replacing(target) as temporary, temporary.open("wb") as arranged:
        for line in file:
            places.append(places[-1] + len(line))
        for number in order:
            file.seek(places[number])
            arranged.write(file.read(places[number + 1] - places[number]))


def own_file(path: Path, flags: int) -> int:
    """Open a file that is written to in place, and not what a link of its name leads to.

    Returns:
        Its descriptor.

    Raises:
        RunDirError: it is a link.
        OSError: it cannot be opened.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EMLINK):
            raise
        raise RunDirError("is a link and is not written through", "remove the link", path=path) from None


def append_chunk(path: Path, rows: Sequence[Any]) -> None:
    """Append rows and wait until they are on the disk."""
    with open(own_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab") as file:
        file.write("".join(map(to_line, rows)).encode())
        file.flush()
        os.fsync(file.fileno())


def resume(path: Path, chunk_sizes: Sequence[int]) -> int:
    """Cut an appended file back to whole chunks.

    Args:
        path: the JSONL file; it need not exist.
        chunk_sizes: lines of each chunk, in order.

    Returns:
        How many chunks are complete.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    whole, position, chunks, pending = 0, 0, 0, 0
    with open(own_file(path, os.O_RDWR | os.O_CREAT), "rb+") as file:
        for line in file:
            if not line.endswith(b"\n") or chunks == len(chunk_sizes):
                break
            position += len(line)
            pending += 1
            if pending == chunk_sizes[chunks]:
                whole, pending, chunks = position, 0, chunks + 1
        file.truncate(whole)
    return chunks
