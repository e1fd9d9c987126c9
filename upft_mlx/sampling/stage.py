"""The stage `generate`: problems to solutions.jsonl."""

from __future__ import annotations

from typing import Any

from upft_mlx.dataset.prefix import wanted
from upft_mlx.events import StageStarted
from upft_mlx.job import Job, Outcome
from upft_mlx.rundir import RunDir
from upft_mlx.sampling.generate import generate


def inputs(job: Job) -> dict[str, Any]:
    """The base model, the problems, how tokens are drawn, and which solutions.

    Methods and selections that need the same solutions share them.
    """
    found = {
        **job.inputs.base(),
        "problems": job.inputs.hashes["problems"],
        **job.inputs.section_without("generate", "keep"),
    }
    if job.recipe.samples_full:
        return {**found, "solutions": {"all_full": True, "logprobs": job.recipe.prefix.selection == "confidence"}}
    only = job.recipe.method == "structure_only"
    return {**found, "solutions": {"structure_only": only}, **job.inputs.section("prefix", "length", "structure_ratio")}


def announce(job: Job) -> StageStarted:
    """How many solutions, of which model."""
    solutions = sum(item.samples for item in wanted(job.recipe, len(job.problems)))
    return StageStarted("generate", f"{solutions} solutions of {job.recipe.model}")


def work(job: Job, run: RunDir) -> Outcome:
    """Sample them."""
    asked = wanted(job.recipe, len(job.problems))
    made = generate(job.recipe, job.load(), job.problems, asked, run, job.notify)
    detail = f"{made.solutions:,} solutions ({made.full:,} full), {made.tokens_sampled:,} tokens"
    return Outcome(detail, tokens_sampled=made.tokens_sampled, tokens_processed=made.tokens_processed)
