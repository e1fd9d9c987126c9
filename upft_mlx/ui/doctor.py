"""The findings of `upft doctor`, line by line as they are made."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.text import Text

from upft_mlx.quantities import many
from upft_mlx.ui.console import open_console
from upft_mlx.ui.text import glyphs_for, wrapped

NAME = 23
"""Columns of a finding's name."""
INDENT = 4
STYLES = {"ok": "green", "warning": "yellow", "error": "red"}


def print_findings(findings: Iterable[dict[str, Any]], *, console: Console | None = None) -> None:
    """Print findings (`group, name, value, status, advice`), and at the end how many are not ok."""
    console = console or open_console()
    glyphs = glyphs_for(console.encoding)
    signs = {"ok": glyphs.done, "warning": "!", "error": glyphs.wrong}
    group, counts = None, {"ok": 0, "warning": 0, "error": 0}
    for finding in findings:
        status = finding["status"]
        counts[status] += 1
        if finding["group"] != group:
            group = finding["group"]
            console.print(Text(group, "bold"))
        line = Text("  ").append(signs[status], STYLES[status]).append(f" {finding['name']:{NAME}}  ")
        value = glyphs.line(finding["value"])
        if console.is_terminal:
            value = wrapped(value, max(10, console.width - line.cell_len)).replace("\n", "\n" + " " * line.cell_len)
        console.print(line.append(value), soft_wrap=True)
        if finding["advice"]:
            advice = f"{status}: {glyphs.line(finding['advice'])}"
            if console.is_terminal:  # a pipe gets one line; commands and paths stay whole in any case
                advice = wrapped(advice, max(20, console.width - INDENT))
            for part in advice.split("\n"):
                console.print(Text(" " * INDENT).append(part, STYLES[status]), soft_wrap=True)
    found = [(many(counts[k], k), STYLES[k]) for k in ("error", "warning") if counts[k]]
    console.print()
    console.print(Text(", ").join(Text(*part) for part in found or [("all is well", "green")]))
