"""The stage `fuse`: adapter/ into fused/."""

from __future__ import annotations

from typing import Any

from upft_mlx.events import StageStarted
from upft_mlx.fingerprints import hash_of
from upft_mlx.job import Job, Outcome
from upft_mlx.quantities import disk
from upft_mlx.rundir import RunDir, remove


def inputs(job: Job) -> dict[str, Any]:
    """The format, and the benchmarks' questions, which it is judged on."""
    questions = {part.entry.label: hash_of(part.problems, "question") for part in job.sets}
    return {**job.inputs.section("publish", "fuse", "min_retained"), "questions": questions}


def announce(job: Job) -> StageStarted:
    """Which format is found by trying."""
    return StageStarted("fuse", "the adapter into the weights")


def work(job: Job, run: RunDir, *, force: bool = False) -> Outcome:
    """Fuse; `force`: even if too little is kept."""
    from upft_mlx.fusing.fuse import fuse

    kept = fuse(job.recipe, job.load(), run, job.notify, questions=job.questions, force=force)
    remove(run.fused / "README.md")  # the base's model card; the report writes the run's
    form = "base's own formats" if kept.fuse == "base" else kept.fuse
    return Outcome(f"{form}, {disk(kept.bytes)}, keeps {kept.kept}")
