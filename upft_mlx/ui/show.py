"""What `upft show` prints of single problems: a list of flips or of all rows, or one problem with both completions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import RenderableType
from rich.rule import Rule
from rich.table import Column, Table
from rich.text import Text

from upft_mlx.quantities import many
from upft_mlx.results.facts import Seen
from upft_mlx.rows import EvaluationRow
from upft_mlx.ui.text import Glyphs

ANSWER = 24
"""Columns of an answer in a list."""
GAP = 2
SHORTEST_QUESTION = 12
"""Columns below which a question is left out."""


def listing(items: Sequence[Seen], glyphs: Glyphs, width: int, *, only_flips: bool) -> Iterator[RenderableType]:
    """A line per problem and sample, wrong to right first in a list of flips."""
    if not items:
        yield Text("no flips: base and tuned are right on the same problems")
        return
    groups = {"": list(items)}
    if only_flips:
        gained = [item for item in items if item.tuned is not None and item.tuned.correct]
        lost = [item for item in items if item not in gained]
        groups = {f"wrong {glyphs.arrow} right": gained, f"right {glyphs.arrow} wrong": lost}
    for title, group in groups.items():
        if not group:
            continue
        if title:
            yield Text(f"{title}: {len(group)}", "bold")
        yield _table(group, glyphs, width)
        yield Text()
    yield Text("upft show RUN --problem ID shows one problem with both completions", "dim")


def _table(items: Sequence[Seen], glyphs: Glyphs, width: int) -> Table:
    """One line each; the question takes the rest of the line."""
    rows = [
        (Text(_place(i, glyphs)), Text(glyphs.line(i.gold)[:ANSWER]), _answer(i.base, glyphs), _answer(i.tuned, glyphs))
        for i in items
    ]
    heads = ("problem", "gold", "base", "tuned")
    widths = [max(len(head), *(cell.cell_len for cell in cells)) for head, *cells in zip(heads, *rows, strict=True)]
    columns = [Column(head, width=size, no_wrap=True) for head, size in zip(heads, widths, strict=True)]
    room = width - sum(widths) - GAP * len(widths)
    table = Table(*columns, box=None, header_style="bold", pad_edge=False, padding=(0, GAP, 0, 0))
    if room >= SHORTEST_QUESTION:
        table.add_column("question", width=room, no_wrap=True, overflow=glyphs.overflow, style="dim")
    for item, row in zip(items, rows, strict=True):
        table.add_row(*row, *([Text(glyphs.line(item.question or ""))] if room >= SHORTEST_QUESTION else []))
    return table


def _place(item: Seen, glyphs: Glyphs) -> str:
    sample = f" #{item.sample}" if item.sample else ""
    return f"{glyphs.line(item.benchmark)} {glyphs.line(item.problem_id)}{sample}"


def _answer(row: EvaluationRow | None, glyphs: Glyphs) -> Text:
    """Sign and answer, one colour each for right and wrong."""
    if row is None:
        return Text(glyphs.pending, "dim")
    sign, style = (glyphs.done, "green") if row.correct else (glyphs.wrong, "red")
    answer = "none found" if row.answer is None else glyphs.line(row.answer)[:ANSWER]
    return Text(f"{sign} {answer}", style)


def regrading(facts: dict[str, Any], glyphs: Glyphs) -> Iterator[RenderableType]:
    """What another grader changes: a line per benchmark and variant, and a line per row that changes."""
    for label, variants in facts["benchmarks"].items():
        for variant, found in variants.items():
            graders = " and ".join(map(str, found["graders"]))
            change = f"{100 * found['accuracy']:.1f} % {glyphs.arrow} {100 * found['regraded']:.1f} %"
            yield Text(f"{glyphs.line(label)} {variant}: {change}", "bold").append(
                f"  {len(found['changed']):,} of {many(found['rows'], 'row')} would change "
                f"(graded by version {graders or 'none'})",
                "dim",
            )
            for row in found["changed"]:
                answers = [
                    glyphs.line(answer or "none found")[:ANSWER] for answer in (row["answer"], row["answer_now"])
                ]
                answer = answers[0] if answers[0] == answers[1] else f"{answers[0]} {glyphs.arrow} {answers[1]}"
                sign, style = (glyphs.done, "green") if row["correct_now"] else (glyphs.wrong, "red")
                sample = f" #{row['sample']}" if row["sample"] else ""
                about = f"  gold {glyphs.line(row['gold'])[:ANSWER]}  {glyphs.line(row['problem_id'])}{sample}"
                yield Text("  ").append(f"{sign} {answer}", style).append(about)
    for label in facts["withheld"]:
        yield Text(
            f"{glyphs.line(label)}: private; its completions are not stored, so they cannot be graded again", "dim"
        )
    yield Text(f"this version's grader: {facts['grader']}; nothing was written", "dim")


def detail(item: Seen, glyphs: Glyphs) -> Iterator[RenderableType]:
    """One whole problem."""
    yield Rule(Text(_place(item, glyphs)), align="left", characters="-" if glyphs.encoding == "ascii" else "\u2500")
    yield Text(glyphs.lines(item.question or "(the question is no longer available)"))
    yield Text(f"\ngold  {glyphs.line(item.gold)}", "bold")
    for variant, row in (("base", item.base), ("tuned", item.tuned)):
        if row is not None:
            yield Text()
            yield (
                Text(f"{variant}  ")
                .append_text(_answer(row, glyphs))
                .append(f"  {many(row.tokens, 'token')}, ended by {row.finish_reason}", "dim")
            )
            yield Text(glyphs.lines(row.completion))
    yield Text()
