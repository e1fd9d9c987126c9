"""Writes docs/assets/demo-cast.svg, a recording of `upft demo --plain` as an animated SVG: python tools/make_cast.py

The lines are those of one real run without its progress; pauses are cut to 0.4 s. The picture moves wherever
SVG is shown, also inside an `img`, and has no script.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

from upft_mlx.escape import markup

TARGET = Path(__file__).resolve().parent.parent / "docs" / "assets" / "demo-cast.svg"
COLUMNS, ROWS = 116, 24
LINE, CHARACTER, MARGIN = 18, 7.8, 14
PAUSE, END = 0.4, 8.0
"""Seconds: the longest pause that is shown, and how long the last screen stays."""


def recorded(arguments: list[str]) -> list[tuple[float, str]]:
    """The lines of a command, each with its second; long pauses are cut."""
    lines: list[tuple[float, str]] = [(0.0, f"$ upft {' '.join(arguments)}")]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "upft_mlx", *arguments]
        process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=_environment()
        )
        assert process.stdout is not None
        last, shown = time.monotonic(), 0.5
        for line in process.stdout:
            if " elapsed" in line:  # progress, of which a busy machine prints more
                continue
            now = time.monotonic()
            shown, last = shown + min(PAUSE, now - last), now
            lines += [(shown, part) for part in textwrap.wrap(line.rstrip(), COLUMNS) or [""]]
        if process.wait():
            raise SystemExit(f"upft {' '.join(arguments)} failed: {lines[-1][1]}")
    return lines


def _environment() -> dict[str, str]:

    return {**os.environ, "COLUMNS": str(COLUMNS), "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}


def svg(lines: list[tuple[float, str]]) -> str:
    """The animation: each line appears at its second, and the page moves up where there are more than fit."""
    width, height = round(COLUMNS * CHARACTER + 2 * MARGIN), ROWS * LINE + 2 * MARGIN
    total = lines[-1][0] + END
    texts, moves = [], ["0% { transform: translateY(0) }"]
    for number, (second, text) in enumerate(lines):
        y = MARGIN + LINE * (number + 1) - 5
        colour = ' class="command"' if number == 0 else ""
        delay = f"animation-delay: {second:.2f}s"
        texts.append(f'<text x="{MARGIN}" y="{y}"{colour} style="{delay}">{markup(text)}</text>')
        if number >= ROWS:
            moves.append(f"{100 * second / total:.2f}% {{ transform: translateY(-{LINE * (number + 1 - ROWS)}px) }}")
    rules = "\n".join(
        (
            "text { font: 13px ui-monospace, Menlo, Consolas, monospace; fill: #d6deeb; white-space: pre; opacity: 0;",
            "  animation: show 0.01s linear forwards }",
            ".command { fill: #7fdbca; font-weight: bold }",
            "@keyframes show { to { opacity: 1 } }",
            f"#page {{ animation: move {total:.1f}s step-end forwards }}",
            f"@keyframes move {{ {' '.join(moves)} 100% {{ transform: translateY(-{_last(lines)}px) }} }}",
            "@media (prefers-reduced-motion: reduce) { text { animation-delay: 0s !important } }",
        )
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xml:space="preserve" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" '
        f'role="img" aria-label="A recording of upft demo">\n<style>\n{rules}\n</style>\n'
        f'<rect width="100%" height="100%" rx="8" fill="#011627"/>\n<g id="page">\n'
        + "\n".join(texts)
        + "\n</g>\n</svg>\n"
    )


def _last(lines: list[tuple[float, str]]) -> int:
    return LINE * max(0, len(lines) - ROWS)


def main() -> None:
    """Record and write."""
    TARGET.write_text(svg(recorded(["demo", "--plain"])), encoding="utf-8")
    print(TARGET)


if __name__ == "__main__":
    main()
