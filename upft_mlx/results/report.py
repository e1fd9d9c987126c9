"""What a run did and whether it helped: its facts from the files, the verdict in words, and report.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from upft_mlx.evaluation.benchmark_result import BenchmarkResult, Group, Measured, load_results
from upft_mlx.evaluation.stats import ALPHA, ROUNDING, drift, problems_to_settle
from upft_mlx.evaluation.summary import floor_in_words, rounding
from upft_mlx.quantities import difference, many, p_value, percent
from upft_mlx.recipe.schema import Recipe
from upft_mlx.results import templates, training_report
from upft_mlx.results.facts import RunFacts, RunReport, StageFacts
from upft_mlx.results.fidelity import Fused
from upft_mlx.rows import read_json
from upft_mlx.rundir import RunDir
from upft_mlx.stages import STAGES
from upft_mlx.training import moved, row_loss

Outcome = Literal["better", "worse", "no measurable change", "can't tell yet", "void"]
MOST = 0.5
"""Share of cut answers above which accuracies are those of the limit, not of the model."""


def collect(recipe: Recipe, run: RunDir, current: Sequence[str]) -> RunFacts:
    """The facts of a run from the files of the stages that are current, as the view and report.md show them.

    Raises:
        RowsError: a file is damaged.
    """
    entries = [(stage, run.entry(stage)) for stage in STAGES if stage in current]
    benchmarks = load_results(read_json(run.summary)["benchmarks"]) if "evaluate" in current else {}
    fidelity = Fused.load(read_json(run.fidelity)) if "fuse" in current else None
    training = training_report.training_facts(run, current)
    found = {outcome(result)[0] for result in benchmarks.values() if result.compared}
    warnings = training_report.warnings(training, benchmarks, better="better" in found and "worse" not in found)
    return RunFacts(
        name=recipe.name,
        model=recipe.model,
        method=recipe.method,
        stages=[
            StageFacts(
                stage=stage,
                seconds=entry.seconds,
                tokens_sampled=entry.tokens_sampled,
                tokens_trained=entry.tokens_trained,
                peak_memory_bytes=entry.peak_memory_bytes,
                detail=entry.detail,
                adopted=entry.adopted is not None,
            )
            for stage, entry in entries
            if entry is not None
        ],
        benchmarks=benchmarks,
        fidelity=fidelity,
        training=training,
        verdict=[*verdict(benchmarks), *warnings],
        remarks=[*remarks(benchmarks), *warnings],
        files={
            **({"adapter": str(run.adapter)} if "train" in current else {}),
            **({"fused": str(run.fused)} if fidelity and fidelity.fuse != "adapter" else {}),
            "report": str(run.report),
        },
    )


def verdict(benchmarks: Mapping[str, BenchmarkResult]) -> list[str]:
    """What the numbers allow to say, one line per benchmark, and what should make a reader suspicious."""
    lines, several = [], sum(result.compared is not None for result in benchmarks.values())
    for name, result in benchmarks.items():
        if result.compared:
            lines += [f"{name}: {_difference(result)}", *doubts(name, result, several)]
        if result.rounding:
            lines.append(f"{name}: {rounding(result.rounding)}")
    return lines


def remarks(benchmarks: Mapping[str, BenchmarkResult]) -> list[str]:
    """What no number of the verdict says: why a comparison is void, and what should make a reader suspicious."""
    lines, several = [], sum(result.compared is not None for result in benchmarks.values())
    for name, result in benchmarks.items():
        if result.compared:
            _, why = outcome(result)
            lines += [f"{name}: {why}"] if why else []
            lines += doubts(name, result, several)
    return lines


def outcome(result: BenchmarkResult) -> tuple[Outcome, str]:
    """What one benchmark says of tuned, by the one rule that decides it everywhere; and for `void`, why and what to do.

    A difference is claimed where its p-value is below `stats.ALPHA`; its interval leaves 0 out in just these cases.
    Otherwise there is no measurable change where the interval leaves out all differences that matter (`effect`), and
    one cannot tell yet where it does not. Void is an evaluation that cannot show a difference: base could not finish
    most answers, or nobody has a right one.

    Args:
        result: of a benchmark on which both are measured.

    Returns:
        The verdict; for `void` and `can't tell yet` also why and what to do.
    """
    assert result.compared
    base, tuned, paired = result.compared
    claimed = paired.p_value < ALPHA
    worse = claimed and paired.delta < 0
    cut = max(base.truncated, tuned.truncated)
    longer = "raise evaluate.max_tokens, unless the cut answers repeat themselves"
    if base.truncated > MOST or (tuned.truncated > MOST and not worse):
        whose = "base" if base.truncated == cut else "tuned"
        return "void", f"{percent(cut, 0)} of {whose}'s answers were cut; {longer}"
    if base.accuracy == tuned.accuracy == 0:
        more = longer if cut > 0 else "use easier problems, or check the `answer` column"
        return "void", f"neither base nor tuned has a right answer; {more}"
    if claimed:
        return ("worse" if worse else "better"), ""
    (low, high), effect = paired.ci95, paired.effect
    if -effect <= low and high <= effect:
        return "no measurable change", ""
    floor = result.rounding.grades if result.rounding else 0.0
    if effect < abs(paired.delta) <= floor + ROUNDING:
        return "can't tell yet", f"{floor_in_words(floor)}, so more problems would not help"
    needed = problems_to_settle(base.n, (low, high), effect)
    return "can't tell yet", f"about {many(needed, 'problem')} would settle a change of {100 * effect:g} points"


def headline(benchmarks: Mapping[str, BenchmarkResult]) -> str:
    """The verdict in one line: what is said of which benchmarks, claims first."""
    said: dict[str, list[str]] = {}
    for name, result in benchmarks.items():
        if result.compared:
            said.setdefault(outcome(result)[0], []).append(name)
    if not said:
        return "Only base is measured: nothing is compared yet" if benchmarks else "Nothing is measured yet"
    parts = []
    for found in [*_WORDS, *(found for found in said if found not in _WORDS)]:
        if names := said.get(found):  # on `a, b and c`, or on `a, b and 5 more`
            shown = names if len(names) <= 3 else [*names[:2], f"{len(names) - 2} more"]
            listed = " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
            parts.append(f"{_WORDS.get(found, found)} on {listed}")
    text = "; ".join(parts)
    return text[0].upper() + text[1:]


_WORDS = {
    "better": "tuned is better than base",
    "worse": "tuned is worse than base",
    "no measurable change": "no measurable change",
    "void": "no valid comparison",
}


def _difference(result: BenchmarkResult) -> str:
    assert result.compared
    base, _, paired = result.compared
    numbers = f"{difference(paired.delta, paired.ci95, ' points')}, {p_value(paired.p_value)}"
    if paired.until == "known":
        numbers += f", an interval that allows for stopping after {many(base.n, 'problem')}"
    found, why = outcome(result)
    if found == "void":
        return f"void: {why}"
    if found in ("better", "worse"):
        return f"tuned is {found} than base: {numbers}"
    return f"{found}: {numbers}" + (f"; {why}" if why else "")


def doubts(name: str, result: BenchmarkResult, several: int) -> list[str]:
    """A line for each reason to doubt this comparison, which is one of `several` benchmarks."""
    assert result.compared
    base, tuned, _ = result.compared
    return [*_by_chance(name, result, several), *_drift(name, base, tuned)]


def _by_chance(name: str, result: BenchmarkResult, several: int) -> list[str]:
    """A line for a difference that is claimed, unless it also holds with `several` tested together (Bonferroni)."""
    assert result.paired
    together = min(1.0, several * result.paired.p_value)
    if outcome(result)[0] not in ("better", "worse") or together < ALPHA:
        return []
    told = f"of {many(several, 'benchmark')}, one may well differ by chance; tested together (Bonferroni), this one "
    return [f"{name}: {told}has {p_value(together)} and the claim does not hold"]


def _drift(name: str, base: Measured, tuned: Measured) -> list[str]:
    """In words what drifted: it catches a model that learned to stop early or not at all."""
    said = {
        "length": f"completions went from {base.mean_tokens:.0f} to {many(round(tuned.mean_tokens), 'token')} "
        "on average",
        "truncated": f"cut answers went from {percent(base.truncated, 0)} to {percent(tuned.truncated, 0)}",
        "answer_found": f"an answer was found in {percent(base.answer_found or 0, 0)} of the completions, now in "
        f"{percent(tuned.answer_found or 0, 0)}",
    }
    return [f"{name}: {said[what]}" for what in drift(base, tuned)]


def markdown(report: RunFacts) -> str:
    """report.md."""
    training = report.training
    view, movement = training.base_view, training.movement
    words = moved.in_words(movement) if movement else ""
    groups = []  # a table for each benchmark that knows levels or subjects
    for name, result in report.benchmarks.items():
        for field in ("level", "subject"):
            by = {variant: found for variant, one in result.measured.items() if (found := getattr(one, f"by_{field}"))}
            first: dict[str, Group] = next(iter(by.values()), {})
            rows = [
                (value, first[value].n, [found[value] for found in by.values() if value in found]) for value in first
            ]
            groups += [{"name": name, "field": field, "variants": list(by), "rows": rows}] if rows else []
    return (
        templates.markdown()
        .get_template("report.md")
        .render(
            report=report,
            groups=groups,
            training=training,
            view=row_loss.in_words(view) if view else [],
            losses=training_report.losses_table(training.losses),
            moved=words[:1].upper() + words[1:],
            economy=report.economy if isinstance(report, RunReport) else None,
            fidelity=report.fidelity,
        )
    )
