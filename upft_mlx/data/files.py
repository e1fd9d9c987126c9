"""Rows of local files: JSON, CSV and Parquet as people have them.

The name's ending says the format. What is in the file says the rest: JSON with one object per line, spread over several
lines, joined by commas or in an array; CSV with any usual separator; text in UTF-8, or in UTF-16 with its mark. All are
read piece by piece.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import io
import json
import re
import shlex
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TextIO

from upft_mlx.data.forms import conversation
from upft_mlx.data.source import SKIP, Located, Notes, Place, Row, first_line
from upft_mlx.errors import ProblemsError
from upft_mlx.escape import one_line, quoted
from upft_mlx.quantities import many

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""The formats' usual endings."""
_ALSO = {".ndjson": ".jsonl"}
_LONGEST = 1 << 24
"""Characters of a line or a JSON value: a compressed file may unpack to anything."""
_CHUNK = 1 << 16
_FIRST = 8
"""Lines on which it is decided whether each holds an object."""
_SEPARATORS = {",": "`,`", ";": "`;`", "\t": "tabs", "|": "`|`"}
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_UNPACKED = {".zip": "unzip", ".bz2": "bunzip2 -k", ".xz": "xz -dk", ".zst": "zstd -d", ".gz": "gunzip -k"}


def kind_of(path: Path) -> str | None:
    """The usual ending of a file's format, whatever its case and whether it is compressed; None: none of ours."""
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    ending = endings[0] if len(endings) > 1 and endings[-1] == ".gz" else endings[-1] if endings else ""
    ending = _ALSO.get(ending, ending)
    packed = endings[-1:] == [".gz"]
    return ending if ending in SUFFIXES and not (packed and ending == ".parquet") else None


def file_rows(path: Path, notes: Notes) -> Iterator[Located]:
    """The rows of a file, one at a time.

    Raises:
        ProblemsError: there is no such file, or it is not of its format.
    """
    refuse_other_files(path)
    kind = kind_of(path)
    return _parquet(path) if kind == ".parquet" else _text_rows(path, str(kind), notes)


def refuse_other_files(path: Path, name: str = "set `path` to") -> None:
    """Refuse what is not there, is a folder, or is of another format, each with what to do.

    Args:
        path: of a dataset.
        name: what to do with the name of another file.

    Raises:
        ProblemsError: it is one of those.
    """
    if not path.exists():
        beside = [p.name for p in path.parent.iterdir() if kind_of(p)] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.5)
        hint = f"did you mean {quoted(near[0])}? " if near else ""
        raise ProblemsError("no such file", f"{hint}{name} a {_or(SUFFIXES)} file", path=path)
    if path.is_dir():
        remedy = f"{name} a {_or(SUFFIXES)} file in it"
        if any((path / file).exists() for file in ("dataset_info.json", "dataset_dict.json", "state.json")):
            part = "" if (path / "state.json").exists() else "['train']"
            load = f"datasets.load_from_disk({str(path)!r}){part}"
            remedy = _python(f"import datasets; {load}.to_json({f'{path}.jsonl'!r})")
        raise ProblemsError("is a folder", remedy, path=path)
    if kind_of(path) is None or not path.is_file():
        raise ProblemsError(f"not a {_or(SUFFIXES)} file", _convert(path), path=path)


def refuse_rows_inside(place: Place, row: Row) -> None:
    """Refuse the only row of a JSON file if one of its fields holds the rows, with what makes a file of them.

    Raises:
        ProblemsError: it does.
    """
    lists = {name: value for name, value in row.items() if isinstance(value, list) and value and len(name) < 60}
    inside = {name: len(v) for name, v in lists.items() if all(isinstance(r, dict) for r in v) and not conversation(v)}
    if not inside or place.line is None:
        return
    name, path = max(inside, key=lambda name: inside[name]), Path(place.path)
    opened = f"{'gzip.' if path.suffix.lower() == '.gz' else ''}open({place.path!r}, 'rb')"
    code = f"import gzip, json; [print(json.dumps(row)) for row in json.load({opened})[{name!r}]]"
    made = path.with_name(f"{Path(path.stem).stem}-rows.jsonl")
    remedy = f"make a file of them: `python3 -c {shlex.quote(code)} > {shlex.quote(str(made))}`"
    raise ProblemsError(f"its rows are inside the field {quoted(name)}, where they cannot be read", remedy, path=path)


def _or(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _convert(path: Path) -> str:
    """The command, or the menu, that makes of a file one that can be read."""
    ending, name, made = path.suffix.lower(), shlex.quote(str(path)), path.with_suffix(".jsonl")
    if ending in _UNPACKED:
        return f"unpack it: `{_UNPACKED[ending]} {name}`"
    if ending in (".xlsx", ".xls", ".numbers", ".ods"):
        return "export it as CSV (Excel: Save As, CSV UTF-8; Numbers: Export To, CSV)"
    if ending in (".arrow", ".feather"):
        return _python(f"import datasets; datasets.Dataset.from_file({str(path)!r}).to_json({str(made)!r})")
    if ending in (".txt", ".md", ""):
        rows = '[print(json.dumps({"question": q.strip()})) for q in sys.stdin if q.strip()]'
        code = shlex.quote(f"import json, sys; {rows}")
        return f"with a question per line: `python3 -c {code} < {name} > {shlex.quote(str(made))}`"
    return 'write it as JSON lines, {"question": ..., "answer": ...}'


def _python(code: str) -> str:
    return f"convert it: `python3 -c {shlex.quote(code)}`"


# Text.


@contextmanager
def _text(path: Path, notes: Notes) -> Iterator[TextIO]:
    """A file's text, unpacked and decoded; line ends stay as they are."""
    packed = path.suffix.lower() == ".gz"
    with gzip.open(path, "rb") if packed else path.open("rb") as file:
        try:
            encoding = _encoding(path, file, notes)
            with io.TextIOWrapper(file, encoding, newline="") as text:
                yield text
        except UnicodeDecodeError:
            first = None
            with gzip.open(path, "rb") if packed else path.open("rb") as again:
                for number, line in enumerate(iter(lambda: again.readline(_LONGEST), b""), start=1):
                    try:
                        line.decode()
                    except UnicodeDecodeError:
                        first = number
                        break
            raise ProblemsError("not UTF-8 text", _recode(path), path=path, line=first) from None
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ProblemsError(f"cannot be unpacked ({error})", "download or pack it again", path=path) from None


def _encoding(path: Path, file: IO[bytes] | gzip.GzipFile, notes: Notes) -> str:
    head = file.read(64)
    file.seek(0)
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            if encoding == "utf-16":
                notes.say(f"{path.name}: read as UTF-16 text")
            return encoding
    if head.startswith(b"PK\x03\x04"):
        raise ProblemsError("is a zip or Excel file", "unpack it, or export it as CSV UTF-8", path=path)
    if head.startswith(b"\x1f\x8b"):
        raise ProblemsError("is compressed", f"name it {path.name}.gz", path=path)
    if 3 * head.count(0) > len(head):
        little = head[1:2] == b"\0"
        raise ProblemsError("not UTF-8 text", _recode(path, "UTF-16LE" if little else "UTF-16BE"), path=path)
    return "utf-8"


def _recode(path: Path, encoding: str = "WINDOWS-1252") -> str:
    plain = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    name, made = shlex.quote(str(path)), shlex.quote(str(plain.with_name(f"{plain.stem}-utf8{plain.suffix}")))
    command = f"iconv -f {encoding} -t UTF-8"
    command = f"{command} {name} > {made}" if plain == path else f"gunzip -c {name} | {command} > {made}"
    return f"convert it: `{command}`{' (MACINTOSH for old Mac files)' if encoding == 'WINDOWS-1252' else ''}"


def _text_rows(path: Path, kind: str, notes: Notes) -> Iterator[Located]:
    with _text(path, notes) as file:
        if kind in (".csv", ".tsv"):
            yield from _csv(path, kind, file, notes)
            return
        start = file.read(1 << 20).lstrip()
        file.seek(0)
        yield from _json_lines(path, file) if _one_per_line(start) else _json_values(path, file)


def _lines(path: Path, file: TextIO) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(iter(lambda: file.readline(_LONGEST), ""), start=1):
        if len(line) >= _LONGEST:
            problem, remedy = f"longer than {_LONGEST:,} characters", "put each row on its own line"
            raise ProblemsError(problem, remedy, path=path, line=number)
        yield number, line


# JSON.


def _one_per_line(start: str) -> bool:
    """Whether a file that starts so has an object on each line: its first line, which may be broken, says so.

    It is broken if it is no value and begins none on several lines, but a line soon after it is a whole object.
    """
    lines, whole = start.split("\n", _FIRST)[:_FIRST], []
    for line in lines:
        try:
            whole.append(isinstance(_decoded(line), dict))
        except (ValueError, RecursionError):
            whole.append(False)
    if whole[0] or not any(whole) or re.match(r"\[\s*[\[{]", start):
        return whole[0] or not start.startswith(("{", "["))
    decode, between, at = json.JSONDecoder().raw_decode, re.compile(r"[\s,]*"), 0
    try:
        while at < len(lines[0]):
            _, end = decode(start, at)
            found = between.match(start, end)
            at = found.end() if found else end
    except (ValueError, RecursionError) as error:  # in this line, or after whole objects: it may end in a colon
        goes_on = start[: getattr(error, "pos", 0)].strip().count("\n")
        return goes_on < len(lines) and all(whole[n] or not lines[n].strip() for n in range(1, goes_on + 1))
    return False


def _decoded(line: str) -> Any:
    return json.loads(line.strip().removesuffix(","))


def _json_lines(path: Path, file: TextIO) -> Iterator[Located]:
    for number, line in _lines(path, file):
        if not line.strip():
            continue
        place = Place(str(path), number)
        try:
            yield place, _object(place, _decoded(line))
        except (ValueError, RecursionError) as error:  # a number of thousands of digits is a bare ValueError
            why = getattr(error, "msg", error)
            yield place, ProblemsError(f"not JSON: {why}", SKIP, found=_excerpt(line), **place._asdict())


def _object(place: Place, value: Any) -> Row | ProblemsError:
    if isinstance(value, dict):
        return value
    found = _excerpt(json.dumps(value))
    return ProblemsError("expected an object with columns", SKIP, found=found, **place._asdict())


def _json_values(path: Path, file: TextIO) -> Iterator[Located]:
    """Objects in an array or one after the other, however they are spread over lines."""
    decode, between = json.JSONDecoder().raw_decode, re.compile(r"[\s,]*")
    text, at, line, number, opened, ended = "", 0, 1, 0, False, False
    while True:
        found = between.match(text, at)
        start = found.end() if found else at
        line, at = line + text.count("\n", at, start), start
        if at == len(text):
            if ended:
                break
            text, at = file.read(_CHUNK), 0
            ended = not text
        elif text[at] == "[" and not opened and number == 0:
            opened, at = True, at + 1
        elif text[at] == "]" and opened:
            opened, at = False, at + 1
        else:
            try:
                value, end = decode(text, at)
            except (ValueError, RecursionError) as error:
                if not ended and _goes_on(error, text, at):
                    more = file.read(max(_CHUNK, len(text) - at))  # doubled, so that no value is decoded many times
                    text, at, ended = text[at:] + more, 0, not more
                    continue
                position = getattr(error, "pos", at)
                raise ProblemsError(
                    f"not JSON: {getattr(error, 'msg', error)}",
                    "fix the file there",
                    found=_excerpt(text[max(at, position - 20) : position + 60]),
                    path=path,
                    line=line + text.count("\n", at, position),
                ) from None
            number += 1
            place = Place(str(path), line, number)
            yield place, _object(place, value)
            line, at = line + text.count("\n", at, end), end
    if opened:
        problem, remedy = "the array has no end (`]`): the file was cut", "download or write it again"
        raise ProblemsError(problem, remedy, path=path, line=line)


def _goes_on(error: Exception, text: str, at: int) -> bool:
    """Whether a value may only be cut at the end of what was read."""
    if not isinstance(error, json.JSONDecodeError) or len(text) - at > _LONGEST:
        return False
    return error.msg.startswith("Unterminated string") or error.pos >= len(text) - 12


def _excerpt(line: str) -> str:
    text = line[:200].strip()
    return repr(text if len(text) <= 60 else text[:57] + "...")


# CSV.


def _csv(path: Path, kind: str, file: TextIO, notes: Notes) -> Iterator[Located]:
    separator, spaced = _separator(kind, file)
    mark = _SEPARATORS.get(separator, repr(separator))
    if separator != ("\t" if kind == ".tsv" else ","):
        notes.say(f"{path.name}: columns are separated by {mark}")
    header: list[str] = []
    start = 1  # a quoted field may hold line breaks: a row is known by its first line
    lines = (line for _, line in _lines(path, file))
    csv.field_size_limit(_LONGEST)  # of this process: 131,072 characters, and the error advises to quote the field
    reader = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=spaced)
    try:
        for cells in reader:
            place, start = Place(str(path), start), reader.line_num + 1
            if not header:
                names_separator = bool(cells) and cells[0].lower().startswith("sep=")  # as Excel does
                header = [] if names_separator else [cell.strip() for cell in cells]
                _refuse_twice(header, place)
            elif len(cells) == len(header) and any(cell.strip() for cell in cells):
                yield place, dict(zip(header, cells, strict=True))
            elif any(cell.strip() for cell in cells):
                columns = f"{many(len(cells), 'column')}, but the header has {len(header)}"
                remedy = f"a field that holds {mark} needs quotes; {SKIP}"
                yield place, ProblemsError(columns, remedy, **place._asdict())
    except csv.Error as error:
        field = f"a field that holds {mark}, quotes or line breaks"
        remedy = f"{field} needs quotes around all of it, and each quote in it twice"
        raise ProblemsError(f"not CSV: {error}", remedy, path=path, line=start) from None


def _refuse_twice(columns: Sequence[str], place: Place) -> None:
    if twice := [name for name in columns if name and columns.count(name) > 1]:
        raise ProblemsError(f"two columns are called {quoted(twice[0])}", "rename one", **place._asdict())


def _separator(kind: str, file: TextIO) -> tuple[str, bool]:
    """What separates the columns, and whether a space follows it: what splits the header into the most columns.

    `csv.Sniffer` looks at the rows, where questions have more commas than there are columns.
    """
    line = next((line for line in iter(lambda: file.readline(_LONGEST), "") if line.strip()), "").strip("\r\n\ufeff")
    if line[:4].lower() == "sep=":
        file.seek(0)
        return line[4:5] or ",", False
    file.seek(0)
    usual = "\t,;|" if kind == ".tsv" else ",;\t|"
    columns = {mark: next(csv.reader([line], delimiter=mark), []) for mark in usual if len(line) < 100_000}
    separator = max(columns, key=lambda mark: len(columns[mark]), default=usual[0])
    return separator, any(cell.startswith(" ") for cell in columns.get(separator, [])[1:])


# Parquet.


def _parquet(path: Path) -> Iterator[Located]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            _refuse_twice(file.schema_arrow.names, Place(str(path)))
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield Place(str(path), row=number), row
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = one_line(first_line(error))
        problem = f"{f'after row {number}: ' if number else ''}cannot be read as Parquet: {reason}"
        raise ProblemsError(problem, "download or write it again", path=path) from None
