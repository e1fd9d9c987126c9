"""The stage `evaluate`: base and, where there is an adapter, tuned on every benchmark; evaluation/."""

from __future__ import annotations

from typing import Any

from upft_mlx.dataset.instruction import differing
from upft_mlx.evaluation.base_and_tuned import BaseAndTuned, variant_inputs
from upft_mlx.evaluation.benchmark_result import dump_results
from upft_mlx.evaluation.summary import summarize
from upft_mlx.events import EvaluationStarted, Note, StageSkipped, StageStarted, Variant
from upft_mlx.fingerprints import hash_of
from upft_mlx.job import Job, Outcome
from upft_mlx.quantities import many, percent
from upft_mlx.recipe.evaluate import EFFECT
from upft_mlx.rows import write_json
from upft_mlx.rundir import RunDir, fingerprint

GROUPED = ("level", "subject")
"""The fields of a problem by which results are grouped."""


def inputs(job: Job) -> dict[str, Any]:
    """The rows of all variants, and the groups that summary.json tells apart."""
    groups = {f"{part.entry.label} groups": hash_of(part.problems, "id", *GROUPED) for part in job.sets}
    measured = variants(job)
    rows = {
        f"{part.entry.label} {variant}": fingerprint(variant_inputs(job, part, variant))
        for part in job.sets
        for variant in measured
    }
    effect = job.recipe.evaluate.effect
    judged = {"effect": effect} if effect != EFFECT else {}  # older versions judged by this one
    return {**groups, **judged, **rows}


def variants(job: Job) -> tuple[Variant, ...]:
    """Tuned is measured where there is an adapter: one that was given, or the run's own, if it is current."""
    return ("base", "tuned") if job.adapter is not None or job.takes_along("train") else ("base",)


def announce(job: Job) -> StageStarted | StageSkipped:
    """The benchmarks' names."""
    if not job.sets:
        return StageSkipped("evaluate", "evaluate.benchmarks is empty", current=False)
    return StageStarted("evaluate", ", ".join(part.entry.label for part in job.sets))


def work(job: Job, run: RunDir) -> Outcome:
    """Measure what was not measured from the same inputs before, and summarize."""
    expected = tuple((part.entry.label, part.completions) for part in job.sets)
    job.notify(EvaluationStarted(expected, may_stop=job.recipe.evaluate.until == "known"))
    for line in differing([part.entry for part in job.sets], job.recipe.prompt):
        job.notify(Note(line))
    measuring = BaseAndTuned(job, run)
    tokens = measuring.measure(variants(job))
    write_json(run.summary, {"benchmarks": dump_results(summarize(job.sets, run, job.recipe.evaluate))})
    completions = sum(part.completions for part in job.sets)
    detail = f"{many(completions, 'completion')} per model"
    if measuring.drafted:
        kept = percent(measuring.accepted / measuring.drafted, 0)
        detail += f", tuned kept {kept} of the tokens read from base's answers"
    return Outcome(detail, tokens_sampled=tokens, tokens_processed=measuring.processed_tokens)
