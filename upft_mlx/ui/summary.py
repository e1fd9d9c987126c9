"""The end of a run on one page: the verdict, each difference on a line through zero, the numbers, costs and files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Column, Table
from rich.text import Text

from upft_mlx.quantities import accuracy, count, duration, memory, p_value, percent, points
from upft_mlx.results import training_report
from upft_mlx.results.report import headline, outcome
from upft_mlx.ui.text import Glyphs, interval_bar

NUMBERS = ("time", "sampled", "trained", "memory")
STYLES = {"better": "green", "worse": "red"}
NAME = 28
"""Columns of a benchmark's name at most: a longer one is cut, not broken."""
LONGEST_BAR, SHORTEST_BAR = 41, 9


def summary(report: dict[str, Any], glyphs: Glyphs, width: int, *, verbose: bool = False) -> Iterator[RenderableType]:
    """The parts of the page, from top to bottom; `verbose`: with each stage, and what training did to the model."""
    line = glyphs.line
    title = Text().append(line(report["name"]), "bold")
    title.append(f"  {line(report['method'])}  {line(report['model'])}", "dim")
    yield title
    benchmarks = report.get("benchmarks") or {}
    if benchmarks:
        yield Text(line(headline(benchmarks)), "bold")
        compared = {name: sides for name, sides in benchmarks.items() if "paired" in sides}
        if compared:
            yield Text()
            yield from _differences(compared, glyphs, width)
        yield from (Text(f"{glyphs.running} {line(text)}", "yellow") for text in report.get("remarks", ()))
        yield Text()
        yield _benchmarks(benchmarks, glyphs, width)
    if stages := report.get("stages"):
        yield Text()
        yield _stages(stages, glyphs) if verbose else Text(_cost(stages), "dim")
    if verbose and report.get("training") and (told := training_report.lines(report["training"])):
        yield Text()
        yield from (Text(line(text), "dim") for text in told)


def _differences(compared: dict[str, dict[str, Any]], glyphs: Glyphs, width: int) -> Iterator[Text]:
    """A line per benchmark: its interval around zero and the same in numbers, under one scale."""
    numbers = {}
    for name, sides in compared.items():
        paired, (low, high) = sides["paired"], sides["paired"]["ci95"]
        certainty = "void" if outcome(sides)[0] == "void" else p_value(paired["p_value"])
        numbers[name] = f"{points(paired['delta'])} [{points(low)}, {points(high)}]  {certainty}"
    widest = max(abs(bound) for sides in compared.values() for bound in sides["paired"]["ci95"])
    longest = min(NAME, max(len(glyphs.line(name)) for name in compared))
    room = width - longest - max(map(len, numbers.values())) - 4
    bar = min(LONGEST_BAR, room - (room + 1) % 2)
    if bar >= SHORTEST_BAR:
        ends = f"{points(-widest)}", points(widest)
        space = bar // 2 - len(ends[0])
        scale = f"{ends[0]}{' ' * space}0{' ' * (bar - 1 - bar // 2 - len(ends[1]))}{ends[1]}  points, tuned - base"
        yield Text(f"{'':{longest}}  {scale}"[:width], "dim")
    for name, sides in compared.items():
        paired, style = sides["paired"], STYLES.get(outcome(sides)[0], "")
        text = _name(name, glyphs, longest).append(" " * (longest - len(_name(name, glyphs, longest)) + 2))
        if bar >= SHORTEST_BAR:
            low, high = paired["ci95"]
            drawn = interval_bar(paired["delta"], low, high, widest, bar, glyphs)
            text.append(drawn, style).append("  ")
        yield text.append(numbers[name], style)


def _name(name: str, glyphs: Glyphs, most: int = NAME) -> Text:
    """A benchmark's name on one line."""
    shown = glyphs.line(name)
    return Text(shown if len(shown) <= most else f"{shown[: most - len(glyphs.ellipsis)]}{glyphs.ellipsis}")


def _cost(stages: list[dict[str, Any]]) -> str:
    """`22.7 s, 48.5 k tokens sampled, 2.5 k trained on, peak 28 MB`."""
    total = {name: sum(stage.get(name) or 0 for stage in stages) for name in ("tokens_sampled", "tokens_trained")}
    peak = max(stage.get("peak_memory_bytes") or 0 for stage in stages)
    parts = [duration(sum(stage["seconds"] for stage in stages))]
    parts += [f"{count(total['tokens_sampled'])} tokens sampled"] if total["tokens_sampled"] else []
    parts += [f"{count(total['tokens_trained'])} trained on"] if total["tokens_trained"] else []
    return ", ".join([*parts, *([f"peak {memory(peak)}"] if peak else [])])


def _stages(stages: list[dict[str, Any]], glyphs: Glyphs) -> Table:
    table = _table("stage", *NUMBERS, Column("", style="dim"))
    for column in table.columns[:-1]:
        column.no_wrap, column.overflow = True, glyphs.overflow
        column.justify = "right" if column.header in NUMBERS else "left"
    for stage in stages:
        sampled, trained, peak = (
            stage.get(name) or 0 for name in ("tokens_sampled", "tokens_trained", "peak_memory_bytes")
        )
        table.add_row(
            Text(glyphs.line(stage["stage"])),
            Text(duration(stage["seconds"])),
            Text(count(sampled) if sampled else ""),
            Text(count(trained) if trained else ""),
            Text(memory(peak) if peak else ""),
            Text(glyphs.line(stage.get("detail") or "")),
        )
    return table


def _benchmarks(benchmarks: dict[str, dict[str, Any]], glyphs: Glyphs, width: int) -> Table:
    table = _table("benchmark", "base", "tuned")
    table.leading = 1
    for column in table.columns:
        column.no_wrap, column.overflow = True, glyphs.overflow
    room = (width - max(len(_name(name, glyphs)) for name in benchmarks)) // 2 - 3
    for name, result in benchmarks.items():
        base, tuned = result.get("base"), result.get("tuned")
        heading = _name(name, glyphs)
        if side := base or tuned:  # how many problems, samples, and how they were drawn
            samples = f" x {side['samples']}" if side["samples"] > 1 else ""
            drawn = f"T {side['temperature']:g}" if side["temperature"] else "greedy"
            heading.append(f"\nn {side['n']:,}{samples}, {drawn}", "dim")
        table.add_row(heading, *(_side(side, glyphs, room) for side in (base, tuned)))
    return table


def _table(*columns: Column | str) -> Table:
    return Table(
        *columns,
        box=box.SIMPLE_HEAD,
        padding=(0, 2, 0, 0),
        pad_edge=False,
        show_edge=False,
        header_style="bold",
    )


def _side(side: dict[str, Any] | None, glyphs: Glyphs, room: int) -> Text:
    """Accuracy with its interval; below it what was measured besides; in `room` columns."""
    if not side:
        return Text(glyphs.pending, "dim")
    whole = accuracy(side["accuracy"], side["ci95"])
    text = Text(whole if len(whole) <= room else percent(side["accuracy"]))
    parts = [f"{side['mean_tokens']:.0f} tokens"]
    at = []
    for name in ("pass", "maj"):
        values = {int(k): value for k, value in (side.get(f"{name}_at_k") or {}).items()}
        k = max(values, default=1)
        if k > 1:  # at 1 both are the accuracy
            at.append(f"{name}@{k} {percent(values[k])}")
    parts += [", ".join(at)] if at and len(", ".join(at)) <= room else at
    parts += [f"{percent(side['truncated'])} cut"] if side["truncated"] else []
    for part in parts:
        text.append(f"\n{part}", "dim")
    return text


def file_lines(report: dict[str, Any], glyphs: Glyphs, *, verbose: bool = False) -> Iterator[Text]:
    """The end of the page: a line per file; the adapter and report.md only where nothing is made of them."""
    files = {name: path for name, path in (report.get("files") or {}).items() if path}
    if not verbose:
        superseded = {"adapter": "fused", "report": "page"}
        files = {name: path for name, path in files.items() if superseded.get(name) not in files}
    if files:
        yield Text()
        width = max(map(len, files))
        for name, path in files.items():
            yield Text().append(f"{glyphs.line(name):{width}}  ", "dim").append(glyphs.line(str(path)))
