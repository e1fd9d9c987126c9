"""What a run did and whether it helped: the facts in one dict, the verdict in words, and report.md. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from upft_mlx import escape
from upft_mlx.evaluation.stats import ALPHA, drift
from upft_mlx.quantities import p_value, points
from upft_mlx.recipe.schema import Recipe
from upft_mlx.results import economy, training_report
from upft_mlx.rows import read_json
from upft_mlx.rundir import RunDir
from upft_mlx.stages import STAGES

Outcome = Literal["better", "worse", "no measurable change", "void"]


MOST = 0.5
"""Share of cut answers above which accuracies are those of the limit, not of the model."""


def collect(recipe: Recipe, run: RunDir, current: Sequence[str]) -> dict[str, Any]:
    """The facts of a run from the files of the stages that are current, as the view and report.md show them."""
    entries = [(stage, run.entry(stage)) for stage in STAGES if stage in current]
    benchmarks = read_json(run.summary)["benchmarks"] if "evaluate" in current else {}
    fidelity = read_json(run.fidelity) if "fuse" in current else None
    training = training_report.training_facts(run, current)
    return {
        "name": recipe.name,
        "model": recipe.model,
        "method": recipe.method,
        "stages": [
            {
                "stage": stage,
                "seconds": entry.seconds,
                "tokens_sampled": entry.tokens_sampled,
                "tokens_trained": entry.tokens_trained,
                "peak_memory_bytes": entry.peak_memory_bytes,
                "detail": entry.detail,
                "adopted": entry.adopted is not None,
            }
            for stage, entry in entries
            if entry is not None
        ],
        "benchmarks": benchmarks,
        "fidelity": fidelity,
        "training": training,
        "verdict": [*verdict(benchmarks), *training_report.warnings(training)],
        "remarks": [*remarks(benchmarks), *training_report.warnings(training)],
        "files": {
            **({"adapter": str(run.adapter)} if "train" in current else {}),
            **({"fused": str(run.fused)} if fidelity and fidelity["fuse"] != "adapter" else {}),
            "report": str(run.report),
        },
    }


def verdict(benchmarks: dict[str, Any]) -> list[str]:
    """What the numbers allow to say, one line per benchmark, and what should make a reader suspicious."""
    lines = []
    for name, sides in benchmarks.items():
        if "paired" in sides:
            lines += [f"{name}: {_difference(sides)}", *_drift(name, sides["base"], sides["tuned"])]
    return lines


def remarks(benchmarks: dict[str, Any]) -> list[str]:
    """Of the verdict what no number says: why a comparison is void, and what should make a reader suspicious."""
    lines = []
    for name, sides in benchmarks.items():
        if "paired" in sides:
            _, why = outcome(sides)
            lines += [f"{name}: {why}"] if why else []
            lines += _drift(name, sides["base"], sides["tuned"])
    return lines


def outcome(sides: dict[str, Any]) -> tuple[Outcome, str]:
    """What one benchmark says of tuned, by the one rule that decides it everywhere; and for `void`, why and what to do.

    A difference is claimed where its p-value is below `stats.ALPHA`; its interval leaves 0 out in just these cases.
    Void is an evaluation that cannot show one: base could not finish most answers, or nobody has a right one.

    Args:
        sides: `base`, `tuned` and `paired` of summary.json.
    """
    base, tuned, paired = sides["base"], sides["tuned"], sides["paired"]
    claimed = paired["p_value"] < ALPHA
    worse = claimed and paired["delta"] < 0
    cut = max(base["truncated"], tuned["truncated"])
    if base["truncated"] > MOST or (tuned["truncated"] > MOST and not worse):
        return "void", f"{cut:.0%} of the answers were cut; raise evaluate.max_tokens"
    if base["accuracy"] == tuned["accuracy"] == 0:
        more = "raise evaluate.max_tokens" if cut > 0 else "use easier problems, or check the `answer` column"
        return "void", f"neither side has a right answer; {more}"
    return ("worse" if worse else "better" if claimed else "no measurable change"), ""


def headline(benchmarks: dict[str, Any]) -> str:
    """The verdict in one line: what is said of which benchmarks, claims first."""
    said: dict[str, list[str]] = {}
    for name, sides in benchmarks.items():
        if "paired" in sides:
            said.setdefault(outcome(sides)[0], []).append(name)
    if not said:
        return "Only base is measured: nothing is compared yet" if benchmarks else "Nothing is measured yet"
    order = [*_WORDS, *(found for found in said if found not in _WORDS)]
    text = "; ".join(f"{_WORDS.get(found, found)} on {_listed(said[found])}" for found in order if found in said)
    return text[0].upper() + text[1:]


_WORDS = {
    "better": "tuned is better than base",
    "worse": "tuned is worse than base",
    "no measurable change": "no measurable change",
    "void": "no valid comparison",
}


def _listed(names: Sequence[str], most: int = 3) -> str:
    """`a, b and c`, or `a, b and 5 more`."""
    shown = list(names) if len(names) <= most else [*names[: most - 1], f"{len(names) - most + 1} more"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def _difference(sides: dict[str, Any]) -> str:
    paired = sides["paired"]
    low, high = paired["ci95"]
    numbers = f"{points(paired['delta'])} points [{points(low)}, {points(high)}], {p_value(paired['p_value'])}"
    found, why = outcome(sides)
    if found == "void":
        return f"void: {why}"
    return f"tuned is {found} than base: {numbers}" if found in ("better", "worse") else f"{found}: {numbers}"


def _drift(name: str, base: dict[str, Any], tuned: dict[str, Any]) -> list[str]:
    """In words what drifted: it catches a model that learned to stop early or not at all."""
    words = {
        "length": ("mean_tokens", "completions went from {:.0f} to {:.0f} tokens on average"),
        "truncated": ("truncated", "cut at max_tokens went from {:.0%} to {:.0%}"),
        "answer_found": ("answer_found", "an answer was found in {:.0%} of the completions, now in {:.0%}"),
    }
    found = [words[what] for what in drift(base, tuned)]
    return [f"{name}: {text.format(base[field], tuned[field])}" for field, text in found]


def markdown(report: dict[str, Any]) -> str:
    """report.md."""
    parts = [
        f"# {escape.markdown(report['name'])}",
        f"Model {escape.code(report['model'])}, method `{report['method']}`.",
        "## Result",
        "\n".join(f"- {escape.markdown(line)}" for line in report["verdict"])
        or _nothing_compared(report["benchmarks"]),
        _benchmark_table(report["benchmarks"]),
        *_group_tables(report["benchmarks"]),
        "Accuracy with its 95 % interval. The difference is tuned - base on the same problems.",
        *(training_report.markdown(report["training"]) if "training" in report else []),
        "## What it took",
        _stage_table(report["stages"]),
        *_economy(report.get("economy")),
        *_fidelity(report["fidelity"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _nothing_compared(benchmarks: dict[str, Any]) -> str:
    if benchmarks:
        return "Nothing was compared: only the base model has been measured."
    return "Nothing was compared: `evaluate.benchmarks` is empty, or has not been measured yet."


def _benchmark_table(benchmarks: dict[str, Any]) -> str:
    if not benchmarks:
        return ""
    lines = [
        "| benchmark | side | problems x samples | T | accuracy | pass@k | maj@k | tokens | cut | answer found |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, sides in benchmarks.items():
        lines += [_side_row(name, side, sides[side]) for side in ("base", "tuned") if side in sides]
    return "\n".join(lines)


def _side_row(name: str, side: str, s: dict[str, Any]) -> str:
    low, high = s["ci95"]
    at = {key: ", ".join(f"{k}: {v:.1%}" for k, v in s[key].items()) for key in ("pass_at_k", "maj_at_k")}
    return (
        f"| {escape.markdown(name)} | {side} | {s['n']} x {s['samples']} | {s['temperature']:g} "
        f"| {s['accuracy']:.1%} [{low:.1%}, {high:.1%}] | {at['pass_at_k']} | {at['maj_at_k']} "
        f"| {s['mean_tokens']:.1f} | {s['truncated']:.1%} "
        f"| {s.get('answer_found', 1):.1%} |"
    )


def _group_tables(benchmarks: dict[str, Any]) -> list[str]:
    """A table for each benchmark that knows levels or subjects."""
    tables = []
    for name, sides in benchmarks.items():
        for field in ("level", "subject"):
            groups = {
                side: sides[side][f"by_{field}"] for side in ("base", "tuned") if f"by_{field}" in sides.get(side, {})
            }
            if groups:
                tables.append("\n".join(_group_lines(name, field, groups)))
    return tables


def _group_lines(name: str, field: str, groups: dict[str, dict[str, Any]]) -> list[str]:
    lines = [f"| {escape.markdown(name)}, {field} | n | {' | '.join(groups)} |", "|---" * (2 + len(groups)) + "|"]
    for value, group in next(iter(groups.values())).items():
        cells = [side[value] for side in groups.values() if value in side]
        shown = [f"{c['accuracy']:.1%} [{c['ci95'][0]:.1%}, {c['ci95'][1]:.1%}]" for c in cells]
        lines.append(f"| {escape.markdown(value)} | {group['n']} | {' | '.join(shown)} |")
    return lines


def _by_hand(stage: dict[str, Any]) -> str:
    return "; changed by hand since" if stage.get("adopted") else ""


def _stage_table(stages: list[dict[str, Any]]) -> str:
    lines = [
        "| stage | what | tokens sampled | tokens trained | seconds | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for s in stages:
        lines.append(
            f"| {s['stage']} | {escape.markdown(s['detail'])}{_by_hand(s)} "
            f"| {s['tokens_sampled'] or ''} | {s['tokens_trained'] or ''} "
            f"| {s['seconds']:.1f} | {s['peak_memory_bytes'] / 1e6:.0f} MB |"
        )
    return "\n".join(lines)


def _economy(found: dict[str, Any] | None) -> list[str]:
    return [] if found is None else ["## Beside full solutions on the same problems", economy.markdown(found)]


def _fidelity(fidelity: dict[str, Any] | None) -> list[str]:
    if fidelity is None:
        return []
    if fidelity["fuse"] == "adapter":
        return ["## Fused model", "Not fused (`publish.fuse: adapter`): the result is the adapter."]
    return [
        "## Fused model",
        f"Fused as `{fidelity['fuse']}` ({fidelity['bytes'] / 1e6:.1f} MB): keeps {fidelity['retained']:.1%} of the "
        "adapter's effect (1 - KL(adapter || fused) / KL(adapter || base)), the most likely token at "
        f"{fidelity['top1_agreement']:.1%} of the positions and {fidelity['greedy_agreement']:.1%} of the first greedy "
        f"tokens; measured on {fidelity['rows']} held-out rows and {fidelity['prompts']} prompts.",
    ]
