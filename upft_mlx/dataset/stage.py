"""The stage `build`: solutions.jsonl to dataset/."""

from __future__ import annotations

from typing import Any

from upft_mlx.dataset.build import build, cut_solutions
from upft_mlx.dataset.prefix import ended_early
from upft_mlx.events import Note, StageStarted
from upft_mlx.job import Job, Outcome
from upft_mlx.rows import Solution, read_rows
from upft_mlx.rundir import RunDir


def inputs(job: Job) -> dict[str, Any]:
    """How a solution becomes a row, and which rows are for validation."""
    unset = () if job.recipe.prefix.structure == "checked" else ("structure",)  # as in runs from before there was one
    return {
        **job.inputs.fields("method"),
        **job.inputs.section_without("prefix", "rollouts", *unset),  # continuations choose solutions, not rows
        "eos": "as sampled",
        **job.inputs.section("generate", "keep"),
        **job.inputs.section("train", "valid_ratio"),
    }


def announce(job: Job) -> StageStarted:
    """Nothing to count yet."""
    return StageStarted("build", "the training rows")


def work(job: Job, run: RunDir) -> Outcome:
    """Write them."""
    built = build(job.recipe, job.tokenizer(), job.problems, run, job.notify)
    if (cut := cut_solutions(read_rows(job.run.solutions, Solution))).cut:
        job.notify(Note(str(cut)))
    if said := ended_early(job.recipe, read_rows(job.run.solutions, Solution)):
        job.notify(Note(said))
    return Outcome(str(built))
