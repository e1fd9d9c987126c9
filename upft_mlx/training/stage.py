"""The stage `train`: dataset/ to adapter/."""

from __future__ import annotations

from typing import Any

from upft_mlx.distributed.seam import leads
from upft_mlx.events import StageStarted
from upft_mlx.fingerprints import hash_of
from upft_mlx.job import Job, Outcome
from upft_mlx.quantities import many, percent
from upft_mlx.rundir import RunDir

UNREAD = ("keep", "report_to", "checkpoint_every")
"""Fields of `train` that change no weight and no metric: the number of checkpoints, and where else metrics go."""


def inputs(job: Job) -> dict[str, Any]:
    """The adapter and the training; the split into rows to train and to validate on is in the dataset."""
    settings = job.recipe.train
    unset = [] if settings.patience else ["patience"]  # as in runs from before there was one
    unset += [] if settings.evaluate_every else ["evaluate_every", "evaluate_limit"]
    asked = {"answers": hash_of(job.problems, "id", "answer")} if settings.evaluate_every else {}
    fields = job.inputs.section_without("train", "valid_ratio", *unset, *UNREAD)
    return {**job.inputs.lora(), **fields, **asked}


def announce(job: Job) -> StageStarted:
    """How long it takes depends on the rows."""
    return StageStarted("train", "a LoRA adapter")


def work(job: Job, run: RunDir) -> Outcome:
    """Train it, and measure how far it has moved the model."""
    from upft_mlx.training.movement import measure
    from upft_mlx.training.train import train

    loaded = job.load()
    position = train(job.recipe, loaded, run, job.notify, job.problems)
    if leads():
        measure(job.recipe, loaded, job.problems, job.sets, run, job.notify)
    detail = (
        f"{many(position.step, 'step')}, {position.trained_tokens:,} supervised tokens, "
        f"{percent(position.padding)} padding, step {position.kept(job.recipe.train.save):,} kept"
    )
    return Outcome(detail, tokens_trained=position.trained_tokens, tokens_processed=position.processed_tokens)
