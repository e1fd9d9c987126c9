"""The end of a run on one page: the verdict, each difference on a line through zero, the numbers, costs and files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich import box
from rich.console import RenderableType
from rich.table import Column, Table
from rich.text import Text

from upft_mlx.evaluation.benchmark_result import BenchmarkResult, Measured, Paired
from upft_mlx.quantities import accuracy, count, difference, duration, many, memory, p_value, percent, points
from upft_mlx.results import training_report
from upft_mlx.results.facts import RunFacts, StageFacts
from upft_mlx.results.report import headline, outcome
from upft_mlx.ui.text import Glyphs, interval_bar

NUMBERS = ("time", "sampled", "trained", "memory")
STYLES = {"better": "green", "worse": "red"}
NAME = 28
"""Columns of a benchmark's name at most: a longer one is cut, not broken."""
LONGEST_BAR, SHORTEST_BAR = 41, 9


def summary(report: RunFacts, glyphs: Glyphs, width: int, *, verbose: bool = False) -> Iterator[RenderableType]:
    """The parts of the page, from top to bottom; `verbose`: with each stage, and what training did to the model."""
    line = glyphs.line
    title = Text().append(line(report.name), "bold")
    title.append(f"  {line(report.method)}  {line(report.model)}", "dim")
    yield title
    if benchmarks := report.benchmarks:
        yield Text(line(headline(benchmarks)), "bold")
        compared = {name: result for name, result in benchmarks.items() if result.compared}
        if compared:
            yield Text()
            yield from _differences(compared, glyphs, width)
        yield from (Text(f"{glyphs.running} {line(text)}", "yellow") for text in report.remarks)
        yield Text()
        yield _benchmarks(benchmarks, glyphs, width)
    if stages := report.stages:
        yield Text()
        yield _stages(stages, glyphs) if verbose else Text(_cost(stages), "dim")
    if verbose and (told := training_report.lines(report.training)):
        yield Text()
        yield from (Text(line(text), "dim") for text in told)


def _differences(compared: Mapping[str, BenchmarkResult], glyphs: Glyphs, width: int) -> Iterator[Text]:
    """A line per benchmark: its interval around zero and the same in numbers, under one scale."""
    differences: dict[str, Paired] = {name: result.paired for name, result in compared.items() if result.paired}
    said = {name: outcome(result)[0] for name, result in compared.items()}
    numbers = {}
    for name, paired in differences.items():
        certainty = "void" if said[name] == "void" else p_value(paired.p_value)
        numbers[name] = f"{difference(paired.delta, paired.ci95)}  {certainty}"
    widest = max(abs(bound) for paired in differences.values() for bound in paired.ci95)
    longest = max(_name(name, glyphs).cell_len for name in compared)
    room = width - longest - max(map(len, numbers.values())) - 4
    bar = min(LONGEST_BAR, room - (room + 1) % 2)
    if bar >= SHORTEST_BAR:
        ends = f"{points(-widest)}", points(widest)
        space = bar // 2 - len(ends[0])
        scale = f"{ends[0]}{' ' * space}0{' ' * (bar - 1 - bar // 2 - len(ends[1]))}{ends[1]}  points, tuned - base"
        yield Text(f"{'':{longest}}  {scale}"[:width], "dim")
    for name, paired in differences.items():
        style = STYLES.get(said[name], "")
        text = _name(name, glyphs)
        text.pad_right(longest + 2 - text.cell_len)
        if bar >= SHORTEST_BAR:
            drawn = interval_bar(paired.delta, *paired.ci95, widest, bar, glyphs)
            text.append(drawn, style).append("  ")
        yield text.append(numbers[name], style)


def _name(name: str, glyphs: Glyphs) -> Text:
    """A benchmark's name on one line."""
    text = Text(glyphs.line(name))
    if text.cell_len > NAME:
        text.truncate(NAME - len(glyphs.ellipsis), overflow="crop")
        text.append(glyphs.ellipsis)
    return text


def _cost(stages: Sequence[StageFacts]) -> str:
    """`22.7 s, 48.5 k tokens sampled, 2.5 k trained on, peak 28 MB`."""
    sampled, trained = sum(stage.tokens_sampled for stage in stages), sum(stage.tokens_trained for stage in stages)
    peak = max(stage.peak_memory_bytes for stage in stages)
    parts = [duration(sum(stage.seconds for stage in stages))]
    parts += [f"{count(sampled)} tokens sampled"] if sampled else []
    parts += [f"{count(trained)} trained on"] if trained else []
    return ", ".join([*parts, *([f"peak {memory(peak)}"] if peak else [])])


def _stages(stages: Sequence[StageFacts], glyphs: Glyphs) -> Table:
    table = _table("stage", *NUMBERS, Column("", style="dim"))
    for column in table.columns[:-1]:
        column.no_wrap, column.overflow = True, glyphs.overflow
        column.justify = "right" if column.header in NUMBERS else "left"
    for stage in stages:
        table.add_row(
            Text(glyphs.line(stage.stage)),
            Text(duration(stage.seconds)),
            Text(count(stage.tokens_sampled) if stage.tokens_sampled else ""),
            Text(count(stage.tokens_trained) if stage.tokens_trained else ""),
            Text(memory(stage.peak_memory_bytes) if stage.peak_memory_bytes else ""),
            Text(glyphs.line(stage.detail)),
        )
    return table


def _benchmarks(benchmarks: Mapping[str, BenchmarkResult], glyphs: Glyphs, width: int) -> Table:
    table = _table("benchmark", "base", "tuned")
    table.leading = 1
    for column in table.columns:
        column.no_wrap, column.overflow = True, glyphs.overflow
    room = (width - max(_name(name, glyphs).cell_len for name in benchmarks)) // 2 - 3
    for name, result in benchmarks.items():
        heading = _name(name, glyphs)
        if first := result.base or result.tuned:  # how many problems, samples, and how they were drawn
            samples = f" x {first.samples}" if first.samples > 1 else ""
            drawn = f"T {first.temperature:g}" if first.temperature else "greedy"
            heading.append(f"\nn {first.n:,}{samples}, {drawn}", "dim")
        table.add_row(heading, *(_variant(variant, glyphs, room) for variant in (result.base, result.tuned)))
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


def _variant(variant: Measured | None, glyphs: Glyphs, room: int) -> Text:
    """Accuracy with its interval; below it what was measured besides; in `room` columns."""
    if not variant:
        return Text(glyphs.pending, "dim")
    whole = accuracy(variant.accuracy, variant.ci95)
    text = Text(whole if len(whole) <= room else percent(variant.accuracy))
    parts = [f"{many(round(variant.mean_tokens), 'token')}"]
    at = []
    for name in ("pass", "maj"):
        values = variant.at_k(name)
        k = max(values, default=1)
        if k > 1:  # at 1 both are the accuracy
            at.append(f"{name}@{k} {percent(values[k])}")
    parts += [", ".join(at)] if at and len(", ".join(at)) <= room else at
    parts += [f"{percent(variant.truncated)} cut"] if variant.truncated else []
    for part in parts:
        text.append(f"\n{part}", "dim")
    return text


def file_lines(report: RunFacts, glyphs: Glyphs, *, verbose: bool = False) -> Iterator[Text]:
    """The end of the page: a line per file; the adapter and report.md only where nothing is made of them."""
    files = dict(report.files)
    if not verbose:
        superseded = {"adapter": "fused", "report": "page"}
        files = {name: path for name, path in files.items() if superseded.get(name) not in files}
    if files:
        yield Text()
        width = max(map(len, files))
        for name, path in files.items():
            yield Text().append(f"{glyphs.line(name):{width}}  ", "dim").append(glyphs.line(str(path)))
