"""What `upft ask` shows: base and tuned side by side as they answer, one below the other where there is little room.

While answers grow, their last lines are on the screen; at the end they stand there whole.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from upft_mlx.events import OnText, Reply, Variant
from upft_mlx.machine.terminal import unechoed
from upft_mlx.quantities import duration, many
from upft_mlx.ui.console import open_console, worded
from upft_mlx.ui.text import glyphs_for

SIDE_BY_SIDE = 88
"""Columns from which two panels stand beside each other."""
REFRESH = 12
"""Frames per second."""
STYLES: dict[Variant, str] = {"base": "cyan", "tuned": "green"}
ENDS = {"length": "cut at --max-tokens", "interrupted": "interrupted"}


@contextmanager
def open_answers(variants: Sequence[Variant], *, plain: bool, console: Console | None = None) -> Iterator[OnText]:
    """Watch the variants answer one question: panels on a terminal, lines otherwise."""
    console = console or open_console()
    if plain or not console.is_terminal or console.is_dumb_terminal:
        view = _Lines(console)
        try:
            yield view
        finally:
            view.close()
        return
    panels = _Panels(variants, console)
    try:
        with unechoed(console.file), panels.live():
            yield panels
    finally:
        if panels.began:
            console.print(panels.whole())


def print_note(text: str) -> None:
    """What the user should know, on stderr."""
    console = open_console(stderr=True)
    console.print(worded(text, console), style="yellow", soft_wrap=True)


def read_question() -> str | None:
    """A question from the terminal; None at an empty line or the end of input."""
    with suppress(ImportError):
        import readline  # gives `input` a history and cursor keys

        readline.parse_and_bind("set enable-bracketed-paste on")  # makes pasted lines one question; libedit ignores it
    try:
        return input("> ").strip() or None
    except (EOFError, KeyboardInterrupt):
        print()
        return None


class _Lines:
    """The answers one after the other, printed as they grow."""

    def __init__(self, console: Console) -> None:
        self._file, self._glyphs = console.file, glyphs_for(console.encoding)
        self._variant: Variant | None = None
        self._shown = 0
        self._open = False

    def __call__(self, answer: Reply) -> None:
        if answer.variant != self._variant:
            self._variant, self._shown, self._open = answer.variant, 0, True
            self._write(f"{answer.variant}:\n")
        # The last character may be a part of one, which the next token changes.
        text = answer.text if answer.finish_reason else answer.text.rstrip("\ufffd")
        if len(text) > self._shown:
            self._write(self._glyphs.lines(text[self._shown :]))
            self._shown = len(text)
        if answer.finish_reason:
            self._write(f"\n({_numbers(answer)})\n\n")
            self._open = False

    def close(self) -> None:
        """Leave no half line where an error ended it."""
        if self._open:
            self._write("\n")

    def _write(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()


class _Panels:
    """The panels as they are now; Rich's thread draws them."""

    def __init__(self, variants: Sequence[Variant], console: Console) -> None:
        self._variants, self._console = variants, console
        self._glyphs = glyphs_for(console.encoding)
        self._answers: dict[Variant, Reply] = {}
        self._lock = threading.Lock()

    def __call__(self, answer: Reply) -> None:
        with self._lock:
            self._answers[answer.variant] = answer

    @property
    def began(self) -> bool:
        """Whether there is anything to show."""
        return bool(self._answers)

    def live(self) -> Live:
        """The display, to be entered; it goes when it ends, and what is whole takes its place."""
        return Live(
            console=self._console,
            refresh_per_second=REFRESH,
            transient=True,
            get_renderable=lambda: self,
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The ends of the answers, as much as fits on the screen."""
        beside = self._beside(options.max_width)
        room = max(3, (options.size.height - 1) // (1 if beside else len(self._variants)) - 2)
        yield self._grid(console, options, room)

    def whole(self) -> RenderableType:
        """All of the answers that began."""
        return self._grid(self._console, self._console.options, None)

    def _beside(self, width: int) -> bool:
        return len(self._variants) > 1 and width >= SIDE_BY_SIDE

    def _grid(self, console: Console, options: ConsoleOptions, room: int | None) -> Table:
        """A panel for each variant, in its colour while it grows; of its answer the last `room` lines, or all."""
        with self._lock:
            answers: Mapping[Variant, Reply] = dict(self._answers)
        glyphs, beside = self._glyphs, self._beside(options.max_width)
        width = options.max_width // 2 if beside else options.max_width
        bodies: dict[Variant, list[Text]] = {}
        for variant in [variant for variant in self._variants if room is not None or variant in answers]:
            text = Text(glyphs.lines(answers[variant].text).strip() if variant in answers else glyphs.pending)
            lines = list(text.wrap(console, max(1, width - 4), tab_size=4))
            bodies[variant] = lines if room is None else lines[-room:]
        most = max((len(lines) for lines in bodies.values()), default=0)
        panels = []
        for variant, lines in bodies.items():
            answer = answers.get(variant)
            panels.append(
                Panel(
                    Text("\n").join(lines + [Text()] * (most - len(lines) if beside else 0)),
                    title=Text(variant, f"bold {STYLES[variant]}"),
                    title_align="left",
                    subtitle=Text(_numbers(answer), "dim") if answer else None,
                    subtitle_align="right",
                    box=box.ASCII if glyphs.encoding == "ascii" else box.ROUNDED,
                    border_style=STYLES[variant] if answer and answer.finish_reason is None else "dim",
                    width=width,
                )
            )
        grid = Table.grid()
        for row in [panels] if beside else [[panel] for panel in panels]:
            grid.add_row(*row)
        return grid


def _numbers(answer: Reply) -> str:
    """`42 tokens, 1.3 s`, and how it ended where that was not by itself."""
    parts = [many(answer.tokens, "token"), duration(answer.seconds)]
    parts += [ENDS[answer.finish_reason]] if answer.finish_reason in ENDS else []
    return ", ".join(parts)
