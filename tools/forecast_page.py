"""The page docs/measured/forecast.md, its data and picture, from the units of make_forecast_page.py."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

from forecast_cells import COLDER, DATA, Units, cells_of, change_of, mean_of, names_of, rules_of, slim
from forecast_pairs import Pair, beyond_first, picture, spearman
from make_evidence import RFT, ROOT, WORLDS
from make_forecast_page import (
    ANSWERS,
    GSM8K_QUESTIONS,
    GSM8K_TOKENS,
    ONE_STEP_QUESTIONS,
    PLAN,
    RATES,
    REAL_PROBLEMS,
    REAL_RATES,
    REAL_RULES,
    REPORT,
    change,
    chosen_rate,
)

from upft_mlx.forecasting.estimate import Forecast, Mean, points
from upft_mlx.quantities import many

MEASURED = {
    "first": "first",
    "consensus": "consensus of 16",
    "majority_answer": "majority answer of 8",
    "confidence": "confidence of 8",
    "longest": "longest of 8",
    "label": "label of 16",
}
"""Rules that evidence.md measured, by their name there."""


def write(units: Units) -> None:
    """All three files."""
    text, drawn = page(units)
    ROOT.joinpath("docs/measured/forecast.md").write_text(text, encoding="utf-8")
    ROOT.joinpath("docs/assets/forecast.svg").write_text(drawn, encoding="utf-8")
    DATA.write_text(json.dumps(slim(units), indent=0) + "\n", encoding="utf-8")


def page(units: Units) -> tuple[str, str]:
    """The page and its picture. Rules are compared over the seeds that all of them were measured with."""
    others = other_cells(units)
    same = {name: unit for name, unit in units.items() if name not in others}
    found, every = list(pairs(same)), list(pairs(units))
    parts = [HEADER, PLAN, BEFORE, simulation(same), compared(found), *(answers(same, world) for world in WORLDS)]
    parts += [real(same), by_seed(units), *([gsm8k(same)] if "gsm8k" in same else [])]
    parts.append(verdicts(same, found, spearman(every)))
    return "\n".join(filter(None, parts)), picture(found)


def other_cells(units: Units) -> dict[str, Any]:
    """The cells on SmolLM2 of seeds that not all rules were measured with yet."""
    named = {rule: names_of(units, "smollm2", rule) for rule in REAL_RULES}
    partial = [not all(name in units for name in names) for names in zip(*named.values(), strict=True)]
    cells = itertools.chain.from_iterable(itertools.compress(names, partial) for names in named.values())
    return {name: units[name] for name in cells if name in units}


HEADER = """# Does the forecast hold?

Written by `tools/make_forecast_page.py`; do not edit. Before any training, `upft forecast` says what each rule that
picks prefixes would change, from a few problems with answers. This page holds those forecasts against what training
did, in the two toy worlds of [evidence.md](evidence.md) and on a real model, and tries what follows from them:
`prefix.selection: probe` and `auto`.

How a forecast is made: `forecast.samples` full solutions of each of `forecast.problems` problems with answers. A rule
picks one of a problem's samples; the forecast is how often solutions that begin with the picked prefix are right,
minus how often all samples are right, mean over problems with a 95 % interval. A rule that looks at prefixes alone
never sees how its pick goes on, so the pick's own outcome counts, together with those of the other samples that share
its prefix. A rule that looks at whole solutions is worth what fresh continuations of its pick are. The probe is rated
on problems that it was not fitted on. "Against greedy's prefix" compares with the prefix that greedy decoding takes
instead of the mean sample.
"""


BEFORE = """What was seen before this was written down: one run per world with seed 0, p = 0.2, 8 prefixes and a
learning rate of 3e-4, on the half that is reported; from it come p, the number of prefixes, and that
structure rows are right solutions of the problems with answers. The first simulation showed that `label`
was forecast a point too low (91 % of the intervals held the truth): problems without a right sample drop
out, and the others had luck. Its forecast now counts only what comes after the pick; the table is of the
corrected one.
"""


def pairs(units: Units) -> Iterator[Pair]:
    """All rules and worlds that have both."""
    evidence = json.loads(ROOT.joinpath("docs/assets/evidence.json").read_text(encoding="utf-8"))
    for world in (*WORLDS, "smollm2"):
        if f"{world}/forecast" not in units:
            continue
        for name, rule in rules_of(units, world).items():
            if rule.forecast is None:
                continue
            if world in WORLDS and name in MEASURED:
                row = evidence[world]["methods"][MEASURED[name]]["benchmarks"]["report"]["difference"]
                yield Pair(world, name, rule.forecast, Mean(row["delta"], tuple(row["ci95"])))
            elif cells_of(units, world, name):
                yield Pair(world, name, rule.forecast, change_of(units, world, name, "report"))


def beyond_first_sample(units: Units, rule: str) -> Mean:
    """A rule's change on SmolLM2 beyond that of the first samples, over the seeds that both were measured with."""
    names = zip(names_of(units, "smollm2", "first"), names_of(units, "smollm2", rule), strict=True)
    both = [(units[first], units[own]) for first, own in names if first in units and own in units]
    return change([{"base": first["tuned"], "tuned": own["tuned"]} for first, own in both], "report")


def simulation(units: Units) -> str:
    """How often the intervals hold the truth."""
    lines = [
        "## Simulated worlds with known values\n",
        "Each of 5 prefixes of a problem has a known chance to lead to a right answer; 400 forecasts each, "
        "from 8 samples per "
        "problem.\n",
        "| rule | problems | true value (points) | mean forecast (points) | intervals that hold it |",
        "|---|---|---|---|---|",
    ]
    for name, unit in units.items():
        if name.startswith("simulate/"):
            _, rule, problems = name.split("/")
            values = f"{100 * unit['truth']:+.2f} | {100 * unit['mean']:+.2f} | {unit['covered']:.1%}"
            lines.append(f"| {rule} | {problems} | {values} |")
    return "\n".join(lines) + "\n"


def compared(found: Sequence[Pair]) -> str:
    """Forecast and measured change."""
    lines = [
        "## Forecast and measured change\n",
        "Toy worlds: forecasts from 256 answers with 16 samples each, t = 8, T = 0.6; the change of sampled "
        "accuracy at T = "
        "0.7. What is measured of `first`, `consensus`, `majority_answer`, `confidence`, `longest` and `label` "
        "is that of "
        f"[evidence.md](evidence.md). SmolLM2: forecasts from {ANSWERS} answers with 8 samples each.\n",
        "| world | rule | forecast (points) | measured (points) |",
        "|---|---|---|---|",
        *(f"| {p.world} | {p.rule} | {points(p.forecast)} | {points(p.measured)} |" for p in found),
        "",
        f"Spearman's rank correlation over these {len(found)} pairs: {spearman(found):.2f}. {beyond_first(found)}\n",
        "![Forecast and measured change](../assets/forecast.svg)\n",
    ]
    return "\n".join(lines)


def answers(units: Units, world: str) -> str:
    """What `probe` and `auto` give with a few answers."""
    evidence = json.loads(ROOT.joinpath("docs/assets/evidence.json").read_text(encoding="utf-8"))[world]["methods"]
    rft = evidence[RFT]
    gain = rft["benchmarks"]["report"]["difference"]["delta"]
    lines = [
        f"## World: {world}, {ANSWERS} answers\n",
        "| rule | learning rate | seeds | chosen | sampled (points) | share of RFT's gain | greedy (points) | "
        "tokens sampled "
        "(of RFT's) | tokens trained (of RFT's) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for rule in ("probe", "auto", "prefix_confidence"):
        cells = cells_of(units, world, rule)
        if not cells:
            lines.append(f"| {rule} | not measured yet | | | | | | | |")
            continue
        rate = units.get(f"{world}/{rule}/rate", {"rate": RATES[0]})["rate"]
        sampled, greedy = (change_of(units, world, rule, label) for label in ("report", "report-greedy"))
        costs = [
            f"{mean_of(cells, name):,.0f} ({mean_of(cells, name) / rft[name]:.0%})"
            for name in ("tokens_sampled", "tokens_trained")
        ]
        chosen = ", ".join(sorted({str(cell["chosen"]) for cell in cells}))
        lines.append(
            f"| {rule} | {rate:g} | {len(cells)} | {chosen} | {points(sampled)} | {sampled.mean / gain:.0%} "
            f"| {points(greedy)} | {costs[0]} | {costs[1]} |"
        )
    delta = rft["benchmarks"]["report"]["difference"]
    lines.append(
        f"\nRFT of 16 with all 256 answers, as in evidence.md: "
        f"{points(Mean(delta['delta'], tuple(delta['ci95'])))} points, "
        f"{rft['tokens_sampled']:,.0f} tokens sampled, {rft['tokens_trained']:,.0f} trained on.\n"
    )
    return "\n".join(lines)


def real(units: Units) -> str:
    """SmolLM2."""
    train, choose, report = REAL_PROBLEMS.values()
    lines = [
        "## SmolLM2-135M-Instruct\n",
        f"One-step problems with numbers up to 6 (`tools/one_step.py`): {train} to train on, {choose} to choose the "
        f"learning rate, {report} to report, no problem twice; t = 8, p = 0.1, one epoch in steps of 8 rows; sampled "
        "once per problem at T = 0.7.\n",
    ]
    if "smollm2/forecast" not in units:
        return "\n".join([*lines, "Not measured yet.\n"])
    found = Forecast.load(units["smollm2/forecast"])
    lines += [
        f"Base is right on {found.base.mean:.1%} of its samples and greedily on {found.greedy_base.mean:.1%} of the "
        f"{found.problems} problems with answers. Advice: {found.advice.text}.\n",
        "| rule | t | samples with its prefix | forecast (points) | against greedy's prefix (points) |",
        "|---|---|---|---|---|",
    ]
    for rule in found.rules:
        shared = "" if rule.prefix_coverage is None else f"{rule.prefix_coverage.mean:.0%}"
        cells = ["" if value is None else points(value) for value in (rule.forecast, rule.greedy)]
        lines.append(f"| {rule.selection} | {rule.length} | {shared} | {cells[0]} | {cells[1]} |")
    for length, area in found.probe.items():
        if area is not None:
            low, high = area["ci95"]
            lines.append(f"\nProbe at t = {length}: AUC {area['mean']:.2f} [{low:.2f}, {high:.2f}].")
    if not any(cells_of(units, "smollm2", name) for name in REAL_RULES):
        return "\n".join([*lines, "\nWhat training changes there is not measured yet.\n"])
    left = [name for name in REAL_RULES if not cells_of(units, "smollm2", name)]
    lines += [
        f"\nThe learning rate: {chosen_rate(units):g}, by what `prefix_confidence` changed with seed 0 on the problems "
        "for choosing:\n",
        "| learning rate | sampled (points) | greedy (points) |",
        "|---|---|---|",
    ]
    for rate in REAL_RATES:
        cell = units[f"smollm2/choose/{rate:g}"]
        told = (change([cell], label) for label in ("choose", "choose-greedy"))
        lines.append(f"| {rate:g} | {' | '.join(map(points, told))} |")
    lines += [
        "\nWhat training changed there, over problems and seeds. Few seeds make wide intervals: how much these differ "
        "is all that is known of others." + (f" Not measured: {', '.join(left)}." if left else ""),
        "\n| rule | seeds | sampled (points) | beyond `first`, sampled | greedy (points) | tokens sampled "
        "| tokens trained | not trained because |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in REAL_RULES:
        if made := cells_of(units, "smollm2", name):
            shown = [points(change_of(units, "smollm2", name, label)) for label in ("report", "report-greedy")]
            shown.insert(1, "" if name == "first" else points(beyond_first_sample(units, name)))
            costs = [f"{mean_of(made, cost):,.0f}" for cost in ("tokens_sampled", "tokens_trained")]
            why = next((cell["refused"] for cell in made if cell["refused"]), "")
            lines.append(f"| {name} | {len(made)} | {' | '.join([*shown, *costs, why[:120]])} |")
    return "\n".join(lines) + "\n"


def by_seed(units: Units) -> str:
    """Each cell on SmolLM2."""
    lines = [
        "By seed, with intervals over problems alone; each seed draws its own problems and samples:\n",
        "| rule | seed | sampled (points) | greedy (points) |\n|---|---|---|---|",
    ]
    for rule in REAL_RULES:
        for name in names_of(units, "smollm2", rule):
            if name in units:
                changes = (change([units[name]], label) for label in ("report", "report-greedy"))
                told = " | ".join(map(points, changes))
                lines.append(f"| {rule} | {name.rpartition('/')[2]} | {told} |")
    for name, unit in units.items():
        if name.startswith("smollm2/colder/"):
            lines.append(f"| untrained | {name.rpartition('/')[2]} | {points(change([unit], 'report'))} | |")
    lines.append(
        f"\n`untrained` is the base model at T = {COLDER:g} instead of 0.7, looked at after the results: training on "
        f"samples of T = 0.6 makes likely tokens likelier, as sampling at 0.6 x 0.7 = {COLDER:g} does for nothing."
    )
    return "\n".join(lines) + "\n"


def gsm8k(units: Units) -> str:
    """Prefix self-consistency and prefix accuracy on GSM8K questions."""
    lines = [
        "## SmolLM2-135M-Instruct on GSM8K questions\n",
        "By `upft analyze`, T = 0.6. Prefix self-consistency: 8 samples of each of the first 24 training questions, "
        "divided by the number of distinct prefixes (1 to 8). The paper has 1,000 samples of 500 questions and 7B "
        "models, so its numbers are on another scale. Command: "
        "`python tools/make_forecast_page.py WORK gsm8k MODEL QUESTIONS.jsonl`.\n",
        "| t (tokens) | samples per distinct prefix |",
        "|---|---|",
    ]
    for row in units["gsm8k"]:
        lines.append(f"| {row['length']} | {row['mean']:.2f} [{row['ci95'][0]:.2f}, {row['ci95'][1]:.2f}] |")
    if accuracy := units.get("one-step/accuracy"):
        lines += [
            "\nPrefix accuracy needs questions with a right and a wrong solution. Of 8 solutions to each of the first "
            f"{GSM8K_QUESTIONS} GSM8K questions, with at most {GSM8K_TOKENS} tokens, this model has "
            f"{units['gsm8k/accuracy']['base']:.1%} right: too few. So it was measured on one-step problems: "
            f"those of {ONE_STEP_QUESTIONS} with both kinds of solution (base is right on {accuracy['base']:.1%}), 4 "
            "continuations of each prefix. The paper finds both alike up to t = 16, on models that solve most.\n",
            "| t (tokens) | problems | from right solutions | from wrong ones | difference (points) |",
            "|---|---|---|---|---|",
        ]
        for row in accuracy["lengths"]:
            arms = (f"{row[arm]['mean']:.1%}" for arm in ("correct", "incorrect"))
            found = row["difference"]
            between = points(Mean(found["delta"], tuple(found["ci95"]))) if row["length"] else ""  # at 0 they are one
            lines.append(f"| {row['length']} | {row['problems']} | {' | '.join(arms)} | {between} |")
    return "\n".join(lines) + "\n"


def verdicts(units: Units, found: Sequence[Pair], with_every_cell: float) -> str:
    """What of the plan held, and what failed."""
    lines = ["## What held, and what failed\n"]
    for world in (*WORLDS, "smollm2"):
        if f"{world}/forecast" in units:
            first = rules_of(units, world)["first"].forecast
            assert first is not None
            held = "contains zero" if first.ci95[0] <= 0 <= first.ci95[1] else "**fails: does not contain zero**"
            lines.append(f"- `first`, {world}: {points(first)}: {held}.")
    covered = {name: unit["covered"] for name, unit in units.items() if name.startswith("simulate/")}
    outside = [name.partition("/")[2] for name, share in covered.items() if not 0.93 <= share <= 0.97]
    if covered:
        shares = f"{min(covered.values()):.1%} to {max(covered.values()):.1%}"
        told = f"**fails for {', '.join(outside)}**" if outside else "holds"
        lines.append(f"- Coverage of 93 to 97 % in simulated worlds ({shares}): {told}.")
    value = spearman(found)
    told = "holds" if value >= 0.8 else "**fails**"
    if abs(with_every_cell - value) > 1e-9:
        both = {"holds" if each >= 0.8 else "fails" for each in (value, with_every_cell)}
        told = f"{told}. With the seeds that not all rules were measured with, it is {with_every_cell:.2f}"
        told += ": **not settled** before all seeds are" if len(both) > 1 else ""
    lines.append(f"- Rank correlation of at least 0.8 over {len(found)} pairs ({value:.2f}): {told}.")
    broken = [p for p in found if p.forecast.ci95[0] > 0 and p.measured.mean < 0]
    told = "**fails: " + ", ".join(f"{p.rule} in {p.world}" for p in broken) + "**" if broken else "holds"
    lines.append(f"- No rule whose forecast lies above zero measures below zero: {told}.")
    other_way = [p for p in found if p.forecast.ci95[1] < 0 < p.measured.ci95[0]]
    for pair in other_way:
        lines.append(
            f"- The other way round: {pair.rule} in {pair.world} was forecast {points(pair.forecast)} and measured "
            f"{points(pair.measured)}."
        )
    evidence = json.loads(ROOT.joinpath("docs/assets/evidence.json").read_text(encoding="utf-8"))
    for world in WORLDS:
        rft = evidence[world]["methods"][RFT]
        for rule in ("probe", "auto"):
            cells = cells_of(units, world, rule)
            if not cells:
                lines.append(f"- {rule}, {world}: not measured yet.")
                continue
            sampled, greedy = (change_of(units, world, rule, label) for label in ("report", "report-greedy"))
            share = sampled.mean / rft["benchmarks"]["report"]["difference"]["delta"]
            trained, drawn = (mean_of(cells, name) / rft[name] for name in ("tokens_trained", "tokens_sampled"))
            failures = [f"{share:.0%} of RFT's gain"] if share < 0.8 else []
            failures += [f"{trained:.0%} of its trained tokens"] if trained > 0.25 else []
            failures += [f"{drawn:.0%} of its sampled tokens"] if drawn > 0.4 else []
            failures += ["below base, sampled"] if sampled.ci95[1] < 0 else []
            failures += ["below base, greedy"] if greedy.ci95[1] < 0 else []
            told = f"**fails: {', '.join(failures)}**" if failures else "holds"
            lines.append(f"- {rule}, {world}, {len(cells)} of {len(REPORT)} seeds: {told}.")
    for rule in ("probe", "auto"):
        cells = cells_of(units, "smollm2", rule)
        labels = ("report", "report-greedy") if cells else ()
        below = [label for label in labels if change_of(units, "smollm2", rule, label).ci95[1] < 0]
        told = f"**fails: below base ({', '.join(below)})**" if below else "not below base: holds"
        lines.append(f"- {rule}, smollm2, {many(len(cells), 'seed')}: {told if cells else 'not measured'}.")
    return "\n".join(lines) + "\n"
