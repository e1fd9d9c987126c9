"""The findings of `upft doctor`, line by line as they are made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.text import Text

from upft_mlx.ui.console import open_console
from upft_mlx.ui.text import Glyphs, glyphs_for, wrapped

NAME = 23
"""Columns of a finding's name."""
INDENT = 4
STYLES = {"ok": "green", "warning": "yellow", "error": "red"}


def print_findings(findings: Iterable[dict[str, Any]], *, console: Console | None = None) -> None:
    """Print findings (`group, name, value, status, advice`), and at the end how many are not ok."""
    console = console or open_console()
    glyphs = glyphs_for(console.encoding)
    group, counts = None, {"ok": 0, "warning": 0, "error": 0}
    for finding in findings:
        if finding["group"] != group:
            group = finding["group"]
            console.print(Text(group, "bold"))
        counts[finding["status"]] += 1
        _print(finding, console, glyphs)
    console.print()
    console.print(_total(counts))


def _print(finding: dict[str, Any], console: Console, glyphs: Glyphs) -> None:
    status = finding["status"]
    sign = {"ok": glyphs.done, "warning": "!", "error": glyphs.wrong}[status]
    line = Text("  ").append(sign, STYLES[status]).append(f" {finding['name']:{NAME}}  ")
    console.print(line.append(glyphs.line(finding["value"])), soft_wrap=True)
    if finding["advice"]:
        advice = f"{status}: {glyphs.line(finding['advice'])}"
        for part in _wrapped(advice, console):
            console.print(Text(" " * INDENT).append(part, STYLES[status]), soft_wrap=True)


def _wrapped(text: str, console: Console) -> list[str]:
    """Lines that fit the terminal; commands and paths stay whole, and a pipe gets one line."""
    if not console.is_terminal:
        return [text]
    return wrapped(text, max(20, console.width - INDENT)).split("\n")


def _total(counts: dict[str, int]) -> Text:
    parts = [(f"{counts[kind]} {kind}{'s' if counts[kind] > 1 else ''}", STYLES[kind]) for kind in ("error", "warning")]
    found = [part for part in parts if not part[0].startswith("0")]
    return Text.assemble(*(found[0], ", ", found[1]) if len(found) > 1 else found or [("all is well", "green")])
