"""Text from models, data and paths on its way into other formats: one function for each format. Pure.

plain      a terminal or any text file: no control, bidirectional or invisible characters
message    an error: at most 60 such lines, cut
one_line   a value or a comment: `plain` on one line of bounded length
quoted     a value in a message: as Python writes it, cut
markdown   prose or a table's cell in Markdown: shown as it is, whatever it means there
code       an inline code span; `fenced` a block of code
markup     text in HTML or SVG
plain_name a name of letters, digits, `.`, `_` and `-`
to_json    JSON with no raw control or bidirectional character

YAML has a module of its own, `safe_yaml`.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

_ESCAPES = re.compile(
    r"""
    (?: \x1b\[ | \x9b ) [0-?]* [ -/]* [@-~]                  # CSI: colours, cursor movements
    | (?: \x1b[\]PX^_] | [\x90\x98\x9d-\x9f] ) .{0,2000}? (?: \x07 | \x1b\\ | \x9c )  # OSC, DCS: titles, links
    | \x1b [ -/]* [0-~]?                                     # what remains
    """,
    re.VERBOSE | re.DOTALL,
)
# Controls, the bidirectional and invisible marks that can hide or reorder text, lone surrogates (they cannot
# be encoded) and U+FFFE/FFFF (they are not XML).
_HIDDEN = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)
_BREAKS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
RAW = re.compile(f"{_HIDDEN.pattern[:-1]}\x85\u2028\u2029]")
"""What must not stand in a file as it is: what is hidden, and line breaks that editors and parsers disagree on."""
_MARKDOWN = re.compile(r"[\\`*<>|~$&]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])|^(?:[#+-]|\d+[.)])")
"""What means something: `_` inside a word does not, `]` does before what makes a link of it, and `#`, `-`, `+` and
numbers do at the beginning."""
MOST = 200
"""Characters of a value in a message."""


def plain(text: str) -> str:
    """The text without escape sequences, control, bidirectional and invisible characters; newlines and tabs stay."""
    return _HIDDEN.sub("", _BREAKS.sub("\n", _ESCAPES.sub("", text)))


def half(text: str) -> str | None:
    """What makes a text impossible to write: half of a surrogate pair; None if it has none.

    JSON and YAML can escape such halves, and Python turns a shell's bytes that are not UTF-8 into them.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"{text[error.start]!r} is half of a surrogate pair"
    return None


def one_line(text: str, most: int = MOST) -> str:
    """The text on one line of at most `most` characters, `...` at its end where it was longer."""
    line = " ".join(plain(text[: 4 * most + 4000]).split())
    return line if len(line) <= most and len(text) <= 4 * most + 4000 else f"{line[: most - 3]}..."


def message(text: str) -> str:
    """An error: its first 60 lines, each cut at 2000 characters, whatever got into it."""
    lines = plain(text[:200_000]).split("\n")
    cut = [line if len(line) <= 2000 else one_line(line, 2000) for line in lines[:60]]
    return "\n".join([*cut, "..."] if len(lines) > 60 else cut)


def plain_name(text: str, otherwise: str) -> str:
    """A text as a file's name: accents go, what else is not plain becomes `-`; `otherwise` if nothing is left."""
    bare = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    return re.sub(r"[^A-Za-z0-9._-]+", "-", bare).strip("-._") or otherwise


def quoted(value: Any, most: int = MOST) -> str:
    """A value as Python writes it, on one line of at most `most` characters.

    Only the beginning of a large value is written at all: `repr` of a text of 300 MB takes twice as much.
    """
    return one_line(repr(_beginning(value, most)), most)


def _beginning(value: Any, most: int, depth: int = 4) -> Any:
    if isinstance(value, (str, bytes)):
        return value[: most + 1]
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 4000:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, Mapping):
        items = list(value.items())[: most + 1] if depth else []
        return {_beginning(key, most, 0): _beginning(item, most, depth - 1) for key, item in items}
    if isinstance(value, (list, tuple)):
        return type(value)([_beginning(item, most, depth - 1) for item in value[: most + 1]] if depth else [])
    return value


def markdown(text: str, most: int = 2000) -> str:
    """The text as one line that Markdown shows as it is, in prose and in a table's cell."""
    return _MARKDOWN.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", one_line(text, most))


def code(text: str) -> str:
    """The text as an inline code span; a table's cell would end at a `|` in it."""
    line = one_line(text, 2000)
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if not line or "`" in (line[0], line[-1]) else ""
    return f"{ticks}{space}{line}{space}{ticks}"


def fenced(text: str, language: str) -> str:
    """The text as a block of code that ends where it ends."""
    shown = plain(text)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    return f"{fence}{language}\n{shown}{'' if shown.endswith(chr(10)) else chr(10)}{fence}"


def markup(text: str) -> str:
    """The text inside an element or a quoted attribute of HTML or SVG."""
    return html.escape(plain(text))


def to_json(value: Any, *, indent: int | None = 2) -> str:
    """JSON of plain values; what is hidden stands there as `\\uXXXX` and reads back as it was."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)  # such characters can only stand inside its texts
    return RAW.sub(lambda found: json.dumps(found[0])[1:-1], text)
