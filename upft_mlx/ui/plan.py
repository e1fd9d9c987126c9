"""A plan on the screen: tokens compared with other methods, memory with the machine, disk and time."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from upft_mlx.quantities import disk, duration, many, memory, percent
from upft_mlx.results.plan import Plan
from upft_mlx.training.batches import PASS_TOKENS
from upft_mlx.ui.console import open_console, say
from upft_mlx.ui.tables import table_of
from upft_mlx.ui.text import glyphs_for

_NAMES = {"this": "this recipe", "sft": "SFT, 1 full solution", "rft": "RFT, 16 full solutions"}


def print_plan(plan: Plan, *, console: Console | None = None) -> None:
    """Print a plan to stdout."""
    console = console or open_console()
    line, settings = glyphs_for(console.encoding).line, plan.settings
    number = plan.parameters
    parameters = f"{number / 1e9:.1f} billion" if number >= 1e9 else f"{number / 1e6:.1f} million"
    here = "" if plan.model_is_here else ", not on this machine yet"
    console.print()
    console.print(Text(line(f"{plan.recipe}: {plan.model} ({parameters} parameters{here})"), "bold"))
    passes, size = settings["train.micro_batch_size"], settings["train.batch_size"]
    micro = f"{passes} at a time" if passes else f"micro-batches of up to {many(PASS_TOKENS, 'token')}"
    sequences = "1 sequence" if size == 1 else f"{size} sequences ({micro})"
    problems, steps = many(plan.problems, "problem"), many(plan.steps, "step")
    console.print(Text(f"{problems}, {steps} of {sequences}, {settings['generate.batch_size']} decoded together"))
    for table in _tables(plan):
        console.print()
        console.print(table)
    solutions = plan.solution_tokens
    remarks = ["", f"a full solution averages {many(round(solutions.mean), 'token')} ({solutions.how})"]
    if plan.seconds is None:
        why = "" if plan.model_is_here else ": fetch the model first"
        remarks.append(f"time: no estimate without a calibration on this machine{why}")
    if plan.other_seconds is not None:
        others = [f"`upft {name}` about {duration(seconds)}" for name, seconds in plan.other_seconds.items()]
        remarks.append(f"not part of a run: {', '.join(others)}")
    fits = ["every stage fits in memory (the formulas are right to about 15 %)"]
    remarks += [f"does not fit: {text}" for text in plan.memory.too_large] or fits
    remarks += [f"note: {text}" for text in (*plan.notes, *plan.prompts_differ)]
    remarks += [f"the memory formulas were not measured for {what}" for what in plan.memory.not_measured_for]
    for remark in remarks:
        say(console, Text(line(remark)))


def _tables(plan: Plan) -> Iterator[Table]:
    """Tokens, memory, disk, and time where it is known."""
    table = table_of("tokens", "sampled", "this recipe's share", "trained on", "its share")
    mine = plan.tokens.this
    for name, cost in vars(plan.tokens).items():
        cells = []
        for own, number in ((mine.tokens_sampled, cost.tokens_sampled), (mine.tokens_trained, cost.tokens_trained)):
            cells += [f"{number:,.0f}", "" if name == "this" or not number else percent(own / number)]
        table.add_row(_NAMES[name], *cells)
    yield table
    limit = plan.memory.budget_bytes
    rows = [
        (stage, memory(peak), Text(percent(peak / limit, 0), "red" if peak > limit else ""))
        for stage, peak in plan.memory.peak_bytes.items()
    ]
    yield table_of("peak memory of", "about", "of the limit", rows=[*rows, (plan.memory.budget, memory(limit), "")])
    yield table_of("disk", "about", rows=[(name, disk(size)) for name, size in plan.disk_bytes.items() if size])
    if plan.seconds:
        times = {**plan.seconds, "together": sum(plan.seconds.values())}
        yield table_of("time of", "about", rows=[(stage, duration(seconds)) for stage, seconds in times.items()])
