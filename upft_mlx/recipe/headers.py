"""The comment at the head of a shipped recipe: what it is for, its command, its costs, where its numbers are from.

    # Qwen2.5-0.5B-Instruct on GSM8K: ...
    #
    #   command: upft run qwen2.5-0.5b-gsm8k
    #   Mac:     8 GB; a guess from sizes, not measured
    #            a value goes on where it is indented further

What stands before the first semicolon of `Mac` and `time` is short enough for a table. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

KEYS = ("command", "Mac", "disk", "time", "numbers", "sources", "licence")
"""What each header has."""

_ENTRY = re.compile(r"# {3}(\w+):\s+(\S.*)")
_CONTINUED = re.compile(r"# {4,}(\S.*)")


@dataclass(frozen=True)
class Header:
    """A recipe's header."""

    title: str
    """The first line, without its full stop."""
    entries: dict[str, str] = field(default_factory=dict)
    """Values by key, each on one line."""

    def short(self, key: str) -> str:
        """A value up to its first semicolon; empty where there is none."""
        return self.entries.get(key, "").partition(";")[0].strip()


def read_header(text: str) -> Header:
    """The header of a recipe's text; without one, an empty one."""
    lines: list[str] = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.rstrip())
    entries: dict[str, str] = {}
    key = None
    for line in lines[1:]:
        if entry := _ENTRY.fullmatch(line):
            key = entry[1]
            entries[key] = entry[2]
        elif key and (more := _CONTINUED.fullmatch(line)):
            entries[key] += f" {more[1]}"
        else:
            key = None
    return Header(lines[0].lstrip("# ").rstrip(".") if lines else "", entries)
