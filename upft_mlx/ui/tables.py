"""The results of `analyze` and `compare`, and the shipped recipes, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from upft_mlx.evaluation.pairs import together
from upft_mlx.evaluation.stats import ALPHA
from upft_mlx.evaluation.summary import floor_in_words
from upft_mlx.quantities import accuracy, count, difference, duration, many, memory, p_value
from upft_mlx.ui.console import open_console, say
from upft_mlx.ui.text import glyphs_for, interval_bar

_WIDE = 150
"""Columns that the table of the recipes needs."""


def print_analysis(found: dict[str, Any], folder: Path, *, console: Console | None = None) -> None:
    """Self-consistency and accuracy per prefix length, the recommendation, and where the curves are."""
    console = console or open_console()
    by_length = {row["length"]: row for row in found["accuracy"]}
    consistency = {row["length"]: row for row in found["self_consistency"]}
    table = table_of("t", "self-consistency", "from correct", "from incorrect", "difference, points")
    for length in sorted(consistency.keys() | by_length.keys()):
        row, right = consistency.get(length), by_length.get(length)
        table.add_row(
            str(length),
            f"{row['mean']:.1f} [{row['ci95'][0]:.1f}, {row['ci95'][1]:.1f}]" if row else "",
            *([_share(right["correct"]), _share(right["incorrect"])] if right else ["", ""]),
            _difference(right["difference"]) if right and length else "",
        )
    console.print()
    length = found["recommended"]["length"]
    say(console, Text(f"recommended prefix.length: {length if length is not None else 'none'}", "bold"))
    say(console, Text(glyphs_for(console.encoding).line(found["recommended"]["reason"])))
    console.print()
    console.print(table)
    if found.get("forecast"):
        _print_rules(found["forecast"], console)
    _files(console, [folder / name for name in ("analysis.md", "analysis.json", "curves.svg")])


def _print_rules(forecast: dict[str, Any], console: Console) -> None:
    """What each rule that chooses is worth at each prefix length (`estimate.Forecast.dump`), in one table."""
    names = [name for name in dict.fromkeys(rule["selection"] for rule in forecast["rules"]) if name != "first"]
    table = table_of("t", *names)
    values = {(rule["selection"], rule["length"]): rule["forecast"] for rule in forecast["rules"]}
    for length in sorted({length for _, length in values}):
        table.add_row(str(length), *(_points_of(values.get((name, length))) for name in names))
    console.print()
    say(console, Text(f"advice: {forecast['advice']['text']}", "bold"))
    answered = f"{many(forecast['problems'], 'problem')} with answers"
    told = f"What prefix.selection would change, in points over base, from {answered}:"
    say(console, Text(told, "dim"))
    console.print(table)
    say(console, Text("More rules, and what it means for greedy accuracy: upft forecast", "dim"))


def print_comparison(found: dict[str, Any], folder: Path, *, console: Console | None = None) -> None:
    """What is better than base, each difference as an interval around zero per benchmark, and a table of costs."""
    console = console or open_console()
    glyphs = glyphs_for(console.encoding)
    console.print()
    say(console, Text(glyphs.line(_compared(found)), "bold"))
    for name in found["benchmarks"]:
        console.print()
        say(console, Text(glyphs.line(name), "bold"))
        for line in _intervals({method: row["benchmarks"][name] for method, row in found["methods"].items()}, console):
            say(console, line)
        if found["rounding"][name] is not None:
            say(console, Text(floor_in_words(found["rounding"][name]), "dim"))
    if found["comparisons"] > 1:
        console.print()
        say(console, Text(f"differences in points; {together(found['comparisons'])}", "dim"))
    costs = table_of("method", "tokens sampled", "tokens trained", "time", "peak memory")
    for method, row in found["methods"].items():
        if row["tokens_sampled"] or row["tokens_trained"]:
            costs.add_row(
                method,
                count(round(row["tokens_sampled"])),
                count(round(row["tokens_trained"])),
                duration(row["seconds"]),
                memory(round(row["peak_memory_bytes"])),
            )
    if costs.rows:
        console.print()
        console.print(costs)
    _files(
        console, [folder / "compare.md", folder / "compare.json", *(folder / f"{n}.svg" for n in found["benchmarks"])]
    )


def _compared(found: dict[str, Any]) -> str:
    """`rft is better than base on arithmetic-sampled; sft is worse on ...`, or that no method differs.

    Where no answer of any method is right, nothing is compared (`report.outcome`).
    """
    claims = []
    for word, sign in (("better", 1), ("worse", -1)):
        for method, row in found["methods"].items():
            differences = {name: result["difference"] for name, result in row["benchmarks"].items()}
            names = [name for name, of in differences.items() if of and min(sign * end for end in of["ci95"]) > 0]
            claims += [f"{method} is {word} than base on {' and '.join(names)}"] if names else []
    rows = found["methods"].values()
    void = [name for name in found["benchmarks"] if not any(row["benchmarks"][name]["accuracy"] for row in rows)]
    if len(void) < len(found["benchmarks"]) and not claims:
        claims = ["no method differs measurably from base"]
    return "; ".join([*claims, *([f"no method has a right answer on {' and '.join(void)}"] if void else [])])


def _intervals(results: dict[str, dict[str, Any]], console: Console) -> Iterator[Text]:
    """A line per method: accuracy, and its difference to base on a line through zero and in numbers."""
    glyphs = glyphs_for(console.encoding)
    differences = {method: result["difference"] for method, result in results.items()}
    widest = max((abs(end) for of in differences.values() if of for end in of["ci95"]), default=0.0)
    longest = max(map(len, results))
    room = console.width - longest - 50
    bar = min(_BAR, room - (room + 1) % 2)
    for method, result in results.items():
        text = Text(f"{method:{longest}}  ").append(f"{accuracy(result['accuracy'], result['ci95']):21}")
        if (of := differences[method]) and bar >= 9:
            low, high = of["ci95"]
            drawn = interval_bar(of["delta"], low, high, widest, bar, glyphs)
            text.append("  ").append(drawn, _style(low, high))
        yield text.append("  ").append_text(_difference(of)) if of else text


_BAR = 31
"""Columns of an interval at most."""


def print_demo(found: dict[str, Any], *, console: Console | None = None) -> None:
    """What was forecast, what it gave and what the paper's own rule gives, sampled and greedy; and the caveat."""
    console = console or open_console()
    table = table_of("rule", "sampled, points", "greedy, points")
    for name, key in ((f"forecast picks {found['chosen']}", "measured"), ("the paper's: first sample", "paper")):
        sampled, greedy = (_of_kind(found[key], sampled=sampled) for sampled in (True, False))
        table.add_row(name, *("" if one is None else _difference(one) for one in (sampled, greedy)))
    console.print()
    forecast = Text("forecast from answers, before training: ", "dim").append(found["forecast"])
    say(console, forecast)
    console.print(table)
    sampled, greedy = (_of_kind(found["measured"], sampled=sampled) for sampled in (True, False))
    if sampled and greedy and sampled["ci95"][0] > 0 >= greedy["ci95"][0]:
        told = (
            "Sampled accuracy rose, greedy accuracy did not: the model became surer of what it could do (sharpening)."
        )
        say(console, Text(told))
    say(console, Text(found["caveat"]))


def _of_kind(benchmarks: dict[str, Any], *, sampled: bool) -> dict[str, Any] | None:
    """The first difference of sampled, or of greedy answers."""
    return next((result for result in benchmarks.values() if bool(result["temperature"]) == sampled), None)


_WIDE_FORECAST = 86
"""Columns at which a forecast has room for the tokens that each rule costs."""


def print_forecast(found: dict[str, Any], folder: Path, *, console: Console | None = None) -> None:
    """A forecast (`estimate.Forecast.dump`): the advice, then a table for each prefix length."""
    console = console or open_console()
    console.print()
    say(console, Text(f"advice: {found['advice']['text']}", "bold"))
    if remark := found["advice"]["remark"]:
        say(console, Text(f"and {remark}"))
    greedy = f"{100 * found['greedy_base']['mean']:.0f} %"
    answered = f"{many(found['problems'], 'problem')} with answers"
    told = f"{answered}; base is right on {_share(found['base'])} of its samples, greedily on {greedy}"
    say(console, Text(told, "dim"))
    wide = not console.is_terminal or console.width >= _WIDE_FORECAST
    for length in sorted({rule["length"] for rule in found["rules"]}):
        rows = [rule for rule in found["rules"] if rule["length"] == length]
        table = table_of("rule", "share", "right", "forecast", "vs greedy", *(["tokens"] if wide else []))
        for rule in sorted(rows, key=lambda rule: -rule["forecast"]["mean"] if rule["forecast"] else 1.0):
            shared = rule["prefix_coverage"]
            table.add_row(
                rule["selection"],
                f"{100 * shared['mean']:.0f} %" if shared else "",
                f"{100 * rule['accuracy']['mean']:.0f} %" if rule["accuracy"] else "",
                _points_of(rule["forecast"]),
                _points_of(rule["greedy"]),
                *([f"{rule['tokens_per_problem']:,.0f}"] if wide else []),
            )
        console.print()
        say(console, Text(f"t = {many(length, 'token')}", "bold"))
        console.print(table)
    told = (
        "share: of the samples that begin as the pick does; right: of solutions that begin so. forecast: points over "
    )
    told += "base with the 95 % interval; vs greedy: over the prefix that greedy decoding takes."
    told += " tokens: sampled per problem to train so." if wide else ""
    say(console, Text(told, "dim"))
    _files(console, [folder / name for name in ("forecast.md", "forecast.json", "curves.svg")])


def _points_of(value: dict[str, Any] | None) -> Text:
    return Text("") if value is None else _difference({"delta": value["mean"], "ci95": value["ci95"]})


def print_sweep(found: dict[str, Any], told: Sequence[str], folder: Path, *, console: Console | None = None) -> None:
    """A sweep (`sweep_table.Sweep.dump`): what was chosen and what the rest says, then a line for each setting."""
    console = console or open_console()
    line = glyphs_for(console.encoding).line
    console.print()
    for number, text in enumerate(told):
        say(console, Text(line(text), "" if number else "bold"))
    console.print()
    say(console, Text(line(f"{found['benchmark']}, {found['problems']:,} development problems"), "bold"))
    fields = list(found["chosen"])
    names = [field.rpartition(".")[2] for field in fields]
    table = table_of(*names, "accuracy", "to base", "to chosen")
    for one in found["tried"]:
        values = [Text(line(str(one["settings"][field]))[:_VALUE]) for field in fields]
        to_chosen = Text("chosen", "bold") if one["to_chosen"] is None else _difference(one["to_chosen"])
        table.add_row(
            *values, _share({"mean": one["accuracy"], "ci95": one["ci95"]}), _difference(one["difference"]), to_chosen
        )
    console.print(table)
    say(
        console,
        Text("to base, to chosen: points on the same problems; the intervals of a column hold together", "dim"),
    )
    if found["rounding"] is not None:
        say(console, Text(floor_in_words(found["rounding"]), "dim"))
    _files(console, [folder / name for name in ("sweep.md", "sweep.json", "sweep.svg")])


def print_side_by_side(found: dict[str, Any], *, console: Console | None = None) -> None:
    """Several runs (`SideBySide.dump`): what differs, each model's accuracy, and every pair's difference."""
    console = console or open_console()
    line = glyphs_for(console.encoding).line
    real = [(name, pair) for name, of in found["benchmarks"].items() for pair in of["pairs"] if pair["p_value"] < ALPHA]
    told = [
        f"{pair['second']} is {'better' if pair['delta'] > 0 else 'worse'} than {pair['first']} on {name}"
        for name, pair in real
    ]
    console.print()
    text = "; ".join(told) or "no two of these models differ measurably"
    say(console, Text(line(text), "bold"))
    for label, of in found["benchmarks"].items():
        console.print()
        say(console, Text(line(f"{label}, {many(of['problems'], 'problem')} that all have"), "bold"))
        names = [Text(line(model["name"])) for model in of["models"]]
        longest = max(name.cell_len for name in names)
        for name, model in zip(names, of["models"], strict=True):
            name.pad_right(longest + 2 - name.cell_len)
            say(console, name.append(accuracy(model["accuracy"], model["ci95"])))
        console.print()
        differences = [_difference(pair) for pair in of["pairs"]]
        wide = max(map(len, differences)) + 2
        for shown, pair in zip(differences, of["pairs"], strict=True):
            shown.pad_right(wide - len(shown))
            say(console, shown.append(f"{p_value(pair['p_value'])}  {line(pair['second'])} - {line(pair['first'])}"))
        if of["rounding"] is not None:
            say(console, Text(floor_in_words(of["rounding"]), "dim"))
    console.print()
    say(console, Text(f"in points; p and {together(found['comparisons'])}", "dim"))


def print_recipes(rows: Sequence[dict[str, str]], *, console: Console | None = None) -> None:
    """The shipped recipes, `catalogue.Shipped.facts` of each; on two lines each where a table would not fit."""
    console = console or open_console()
    text = Text()
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    for column in ("recipe", "Mac", "time", "method", "model and problems"):
        table.add_column(column, no_wrap=column in ("recipe", "Mac", "method"))
    for row in rows:
        mac, time = (row.get(key, "").partition(";")[0] for key in ("mac", "time"))
        what = f"{row['model'].rpartition('/')[2]} on {row['problems'].rpartition('/')[2]}"
        table.add_row(Text(row["name"], "bold"), mac, time, row["method"], what)
        text.append(f"{row['name']:28}", "bold").append(f"{mac:7}{time}\n").append(f"  {what}\n", "dim")
    text.rstrip()
    console.print(table if console.width >= _WIDE else text)
    console.print()
    console.print(Text("upft recipes NAME shows one, with the source of its numbers."), soft_wrap=True)
    console.print(Text("upft recipes NAME > my-recipe.yaml makes a copy that you can change."), soft_wrap=True)


def print_runs(found: Sequence[dict[str, Any]], *, console: Console | None = None) -> None:
    """Runs (`inspection.runs.list_runs`): the name and the verdict of each, its differences, and where it differs."""
    console = console or open_console()
    line = glyphs_for(console.encoding).line
    for number, run in enumerate(found):
        text = Text("\n" if number else "").append(line(Path(run["run"]).name), "bold")
        text.append(f"  {run['when']}  {line(run['method'] or '')}  {line(run['model'] or '')}", "dim")
        text.append(f"\n  {line(run['verdict'] or run['error'] or '')}", "" if run["verdict"] else "red")
        for name, paired in run["benchmarks"].items():
            text.append(f"\n    {difference(paired['delta'], paired['ci95'])}  ")
            text.append(f"{p_value(paired['p_value'])}  {line(name)}", "dim")
        missing = [stage for stage in ("train", "evaluate") if stage not in run["stages"]]
        if missing and not run["error"] and not run["benchmarks"]:  # an adapter from elsewhere was not trained here
            text.append(f"\n  not done: {', '.join(missing)}", "yellow")
        say(console, text)
        for name, value in run["differs"].items():  # a line each; --json has them whole
            setting = Text(f"  {line(name)}={line(value)}", "dim")
            setting.truncate(console.width, overflow=glyphs_for(console.encoding).overflow)
            say(console, setting)
    if any(run["differs"] for run in found):
        console.print()
        say(console, Text("field=value: where a recipe differs from most of the others", "dim"))


_VALUE = 100
"""Characters of a swept value in the table."""


def _share(value: dict[str, Any]) -> str:
    """A share with its interval, in whole percent: four of them stand side by side in 80 columns."""
    low, high = value["ci95"]
    return f"{100 * value['mean']:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def _difference(found: dict[str, Any]) -> Text:
    return Text(difference(found["delta"], found["ci95"]), _style(*found["ci95"]))


def _style(low: float, high: float) -> str:
    return "green" if low > 0 else "red" if high < 0 else "dim"


_WORDS = ("method", "rule", "tokens", "peak memory of", "disk", "time of")


def table_of(*columns: str, rows: Iterable[Sequence[str | Text]] = ()) -> Table:
    """A table in the style of all; a first column of words is aligned to the left."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        words = number == 0 and column in _WORDS
        table.add_column(column, justify="left" if words else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _files(console: Console, paths: Sequence[Path]) -> None:
    glyphs = glyphs_for(console.encoding)
    console.print()
    for path in paths:
        console.print(Text(glyphs.line(str(path)), "dim"), soft_wrap=True)
