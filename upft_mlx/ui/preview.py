"""What `upft preview` prints: prompts with their special tokens, rows token by token, rules.

With colours the supervised tokens are green and bold and neighbours differ in their background. Without, they stand in
angle quotes and a bar separates the masked ones; nothing is said by colour alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from upft_mlx.quantities import many
from upft_mlx.training.row_loss import RowLoss, in_words
from upft_mlx.ui.console import open_console, paged, say
from upft_mlx.ui.text import Glyphs, glyphs_for

SPECIAL = "bold cyan"
BACKGROUNDS = ("on grey15", "on grey23")
SUPERVISED = ("bold bright_white on dark_green", "bold bright_white on green4")
SHARED, MASKED, PADDING, EOS = "grey54", "grey74", "grey54", "bold bright_white on dark_magenta"


@dataclass(frozen=True)
class Marks:
    """The signs that say in plain text what colours say on a terminal."""

    opening: str = "«"
    closing: str = "»"
    between: str = "¦"
    shared: str = "‖"
    newline: str = "↵"
    pad: str = "□"


ASCII = Marks("[[", "]]", "|", "||", "\\n", "_")


def print_preview(facts: dict[str, Any], *, plain: bool, console: Console | None = None) -> None:
    """Print a preview to stdout, through a pager where it is longer than the terminal.

    Marks stand for colours where it is to be `plain`, on what is no terminal, and on one without colours.
    """
    console = console or open_console()
    coloured = not plain and console.is_terminal and not console.no_color and console.color_system is not None
    glyphs = glyphs_for(console.encoding)
    view = _View(facts, glyphs, coloured=coloured)
    parts = list(view.parts())
    with nullcontext() if plain else paged(console, parts):
        for part in parts:
            say(console, part)


class _View:
    """The parts of the page, from top to bottom."""

    def __init__(self, facts: dict[str, Any], glyphs: Glyphs, *, coloured: bool) -> None:
        self._facts, self._glyphs, self._coloured = facts, glyphs, coloured
        self._marks = ASCII if glyphs.encoding == "ascii" else Marks()
        self._special = frozenset(facts["special_ids"])

    def parts(self) -> Iterator[RenderableType]:
        for _, group in itertools.groupby(self._facts["prompts"], lambda prompt: (prompt["use"], prompt["ids"])):
            yield from self._prompt(list(group))
        yield from (Text(f"note: {self._glyphs.line(line)}", "yellow") for line in self._facts["prompts_differ"])
        yield self._rule(f"training rows: {self._facts['note']}")
        yield self._legend()
        for row in self._facts["rows"]:
            yield Text()
            yield self._head(row)
            if not row["trains"]:
                yield Text("does not train: its prompt leaves no room in train.max_length", "yellow")
            elif row["cut"]:
                yield Text(f"cut by {many(row['cut'], 'token')} at train.max_length", "yellow")
            yield self._row(row)
        yield Text()
        if (view := self._facts.get("base_view")) is not None:
            yield self._rule("what the model thinks of the rows before training")
            yield from (Text(line) for line in in_words(RowLoss.load(view)))
            yield Text()
        yield self._rule("rules of this recipe")
        for rule in self._facts["rules"]:
            yield Text.assemble(
                (f"{rule['name']}: ", "bold" if self._coloured else ""), self._glyphs.line(rule["text"])
            )

    def _rule(self, title: str) -> Text:
        line = "──" if self._coloured and self._glyphs.encoding != "ascii" else "=="
        return Text(f"{line} ", "dim").append(self._glyphs.line(title), "not dim bold")

    def _prompt(self, same: Sequence[dict[str, Any]]) -> Iterator[RenderableType]:
        """A prompt once, whatever it is used for."""
        prompt = same[0]
        what = prompt["use"]
        if what == "evaluation":
            what += f", benchmark{'s' if len(same) > 1 else ''} {', '.join(p['benchmark'] for p in same)}"
        problem = f", problem {prompt['problem_id']}" if prompt["problem_id"] is not None else ""
        yield self._rule(f"the prompt in {what}{problem}: {many(len(prompt['ids']), 'token')}")
        if "error" in prompt:
            yield Text(f"no question to show: {self._glyphs.line(prompt['error'])}", "yellow")
        # The text whole: its tokens joined would lose characters that are spread over several.
        text = Text(self._glyphs.lines(prompt["text"]).replace("\n", f"{self._marks.newline}\n").rstrip("\n"))
        pairs = zip(prompt["ids"], prompt["tokens"], strict=True)
        text.highlight_words(sorted({token for id_, token in pairs if id_ in self._special}), SPECIAL)
        yield text
        yield Text(f"ids {' '.join(map(str, prompt['ids']))}", "dim")
        yield Text()

    # Rows.

    def _legend(self) -> Text:
        marks, text = self._marks, Text()
        if self._coloured:
            parts = [("shared by all prompts", SHARED), ("masked", MASKED), ("supervised", SUPERVISED[1])]
            parts += [("EOS", EOS), (f"{marks.pad} padding, as in a batch alone", PADDING)]
            for name, style in parts:
                text.append(f" {name} ", style).append("  ")
            return text.append(f"{marks.newline} line break", "dim")
        return text.append(
            f"{marks.opening}supervised{marks.closing}  masked{marks.between}masked  shared by all prompts"
            f"{marks.shared}  {marks.pad} padding, as in a batch alone  {marks.newline} line break"
        )

    def _head(self, row: dict[str, Any]) -> Text:
        """`prefix  upft-0003/0  train.jsonl  84 masked (12 shared), 9 supervised at 1/9 each, 3 padding`."""
        supervised = sum(row["supervised"])
        masked = len(row["ids"]) - supervised
        shared = f" ({row['shared']} shared)" if row["shared"] else ""
        numbers = [f"{masked} masked{shared}"]
        if supervised:
            weights = [weight for weight in row["weights"] if weight]
            each = f"1/{supervised} each" if len(set(weights)) == 1 else f"{weights[0]:.3g} each, EOS {weights[-1]:.3g}"
            numbers += [f"{supervised} supervised at {each}", f"{row['padding']} padding"]
        place = f"  {row['place']}" if row["place"] else ""
        head = Text().append(row["kind"], "bold").append(f"  {self._glyphs.line(row['id'])}{place}  ")
        return head.append(", ".join(numbers), "dim")

    def _row(self, row: dict[str, Any]) -> Text:
        """The row token by token, each on one line whatever is in it; hidden characters alone show their numbers."""
        marks, line, last = self._marks, Text(), len(row["ids"]) - 1
        for place, (token, supervised) in enumerate(zip(row["tokens"], row["supervised"], strict=True)):
            shown = self._glyphs.lines(token).replace("\n", marks.newline).replace("\t", "    ")
            shown = shown or token.encode("unicode_escape").decode()
            eos = supervised and row["ids"][place] in self._facts["eos_ids"]
            style = ""
            if self._coloured:
                masked = f"{SHARED if place < row['shared'] else MASKED} {BACKGROUNDS[place % 2]}"
                style = EOS if eos else SUPERVISED[place % 2] if supervised else masked
            elif supervised:
                shown = f"{marks.opening}{shown}{' EOS' if eos else ''}{marks.closing}"
            elif place + 1 == row["shared"]:
                shown += marks.shared
            elif place < last and not row["supervised"][place + 1]:
                shown += marks.between
            line.append(shown, style)
            if "\n" in token and not eos:
                line.append("\n")
        return line.append(marks.pad * row["padding"], PADDING if self._coloured else "")
