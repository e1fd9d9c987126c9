"""The end of a run on one page: what each stage cost, what the benchmarks say, and where the files are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Column, Table
from rich.text import Text

from upft_mlx.quantities import accuracy, count, duration, memory, p_value, percent, points
from upft_mlx.results import training_report
from upft_mlx.results.report import outcome
from upft_mlx.ui.text import Glyphs

NUMBERS = ("time", "sampled", "trained", "memory")


def summary(report: dict[str, Any], glyphs: Glyphs) -> Iterator[RenderableType]:
    """The parts of the page, from top to bottom."""
    line = glyphs.line
    title = Text().append(line(report["name"]), "bold")
    title.append(f"  {line(report['method'])}  {line(report['model'])}", "dim")
    yield title
    if report.get("stages"):
        yield Text()
        yield _stages(report["stages"], glyphs)
    if report.get("benchmarks"):
        yield Text()
        yield _benchmarks(report["benchmarks"], glyphs)
    if report.get("verdict"):
        yield Text()
        yield from (Text(line(text)) for text in report["verdict"])
    if report.get("training") and (told := training_report.lines(report["training"])):
        yield Text()
        yield from (Text(line(text), "dim") for text in told)


def _stages(stages: list[dict[str, Any]], glyphs: Glyphs) -> Table:
    table = _table("stage", *NUMBERS, Column("", style="dim", overflow="fold"))
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


def _benchmarks(benchmarks: dict[str, dict[str, Any]], glyphs: Glyphs) -> Table:
    table = _table(Column("benchmark", overflow="fold"), "base", "tuned", "difference, points")
    table.leading = 1
    for column in table.columns[1:]:
        column.no_wrap, column.overflow = True, glyphs.overflow
    for name, result in benchmarks.items():
        base, tuned = result.get("base"), result.get("tuned")
        table.add_row(
            _heading(name, base or tuned or {}, glyphs),
            _side(base, glyphs),
            _side(tuned, glyphs),
            _paired(result, glyphs),
        )
    return table


def _table(*columns: Column | str) -> Table:
    return Table(
        *columns,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        header_style="bold",
    )


def _heading(name: str, side: dict[str, Any], glyphs: Glyphs) -> Text:
    """The benchmark's name; below it how many problems, samples, and how they were drawn."""
    text = Text(glyphs.line(name))
    if side:
        samples = f" x {side['samples']}" if side["samples"] > 1 else ""
        drawn = f"T {side['temperature']:g}" if side["temperature"] else "greedy"
        text.append(f"\nn {side['n']:,}{samples}, {drawn}", "dim")
    return text


def _side(side: dict[str, Any] | None, glyphs: Glyphs) -> Text:
    """Accuracy with its interval; below it what was measured besides."""
    if not side:
        return Text(glyphs.pending, "dim")
    text = Text(accuracy(side["accuracy"], side["ci95"]))
    for name in ("pass", "maj"):
        values = {int(k): value for k, value in (side.get(f"{name}_at_k") or {}).items()}
        k = max(values, default=1)
        if k > 1:  # at 1 both are the accuracy
            text.append(f"\n{name}@{k} {percent(values[k])}", "dim")
    text.append(f"\n{side['mean_tokens']:.0f} tokens", "dim")
    if side["truncated"]:
        text.append(f"\n{percent(side['truncated'])} truncated", "dim")
    return text


def _paired(result: dict[str, Any], glyphs: Glyphs) -> Text:
    """The difference in points, in the colour of what it says."""
    paired = result.get("paired")
    if not paired:
        return Text(glyphs.pending, "dim")
    low, high = paired["ci95"]
    found, _ = outcome(result)
    style = {"better": "green", "worse": "red"}.get(found, "dim")
    text = Text().append(f"{points(paired['delta'])} [{points(low)}, {points(high)}]", style)
    return text.append("\nvoid" if found == "void" else f"\n{p_value(paired['p_value'])}", "dim")


def file_lines(report: dict[str, Any], glyphs: Glyphs) -> Iterator[Text]:
    """The end of the page: a line per file."""
    files = {name: path for name, path in (report.get("files") or {}).items() if path}
    if files:
        yield Text()
        width = max(map(len, files))
        for name, path in files.items():
            yield Text().append(f"{glyphs.line(name):{width}}  ", "dim").append(glyphs.line(str(path)))
