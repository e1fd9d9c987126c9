"""The table of stages. Order, requirements, staleness, the ledger, reports and commands follow from it.

What a stage does is in its package, in the module named here as its home. That module has three functions:

    inputs(job) -> dict              what its outputs depend on, apart from the stages it needs
    announce(job) -> event           StageStarted with what it is about to do, or StageSkipped with why there is nothing
    work(job, run, **options)        does it, writes its outputs to the paths of `run`, returns a `job.Outcome`

To add a stage, write that module and add an entry here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Stage:
    """What the rest of the package must know of a stage without importing what it does."""

    name: str
    """Its name in the ledger, and its command."""
    home: str
    """The module of the package with its three functions; it must not import MLX before `work` is called."""
    summary: str
    """Its line in `upft --help`."""
    outputs: tuple[str, ...]
    """The files and folders in the run directory that it replaces as a whole."""
    help: str = ""
    """The help of its command; empty: the command has options of its own, and with them its help, in cli/."""
    needs: tuple[str, ...] = ()
    """The stages whose outputs it reads; theirs come before them."""
    uses: tuple[str, ...] = ()
    """The stages whose outputs it takes along where they are current."""
    scratch: tuple[str, ...] = ()
    """Files that it works in and removes."""
    in_run: bool = True
    """Whether `upft run` does it."""
    planned: bool = False
    """Whether its memory can be planned."""
    shared: bool = True
    """Whether all ranks work on it; else rank 0 does it alone."""
    measures: bool = False
    """Whether it measures the result: kept in a look where one is asked for, and never made again unasked."""
    adopted_as: str = ""
    """What the model card calls its outputs where they were changed by hand and adopted; empty: that is refused."""
    keeps: int = 8
    """How many earlier versions are kept."""

    @property
    def code(self) -> Any:
        """The module with its functions."""
        return import_module(f"upft_mlx.{self.home}")


STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            name="answers",
            home="forecasting.answers",
            summary="Sample full solutions of the problems with answers.",
            outputs=("answers",),
            help="Sample full solutions of the problems whose answers RECIPE uses (`forecast.problems`) into answers/.",
            in_run=False,
            shared=False,
        ),
        Stage(
            name="choose",
            home="forecasting.choice",
            summary="Pick the rule for prefix.selection: auto.",
            outputs=("choice",),
            help="Forecast the rules of `prefix.selection: auto` at RECIPE's prefix.length, fit the probe, and choose.",
            needs=("answers",),
            in_run=False,
            shared=False,
        ),
        Stage(
            name="forecast",
            home="forecasting.forecast",
            summary="Before training: would it help, and with which rule?",
            outputs=("forecast",),
            needs=("answers",),
            in_run=False,
            shared=False,
        ),
        Stage(
            name="generate",
            home="forecasting.generation",
            summary="sample the solutions.",
            outputs=("solutions.jsonl",),
            help="Sample the solutions that RECIPE needs into solutions.jsonl; continues where it stopped.",
            scratch=("solutions.partial.jsonl",),
            planned=True,
            adopted_as="The sampled solutions",
        ),
        Stage(
            name="build",
            home="dataset.stage",
            summary="turn them into training rows.",
            outputs=("dataset",),
            help="Turn solutions.jsonl into the training and validation rows in dataset/.",
            needs=("generate",),
            adopted_as="The training rows",
        ),
        Stage(
            name="train",
            home="training.stage",
            summary="train the adapter.",
            outputs=("adapter", "metrics.jsonl", "likelihood.json", "movement.json"),
            help="Train the LoRA adapter on dataset/; continues from the last checkpoint.",
            needs=("build",),
            planned=True,
            adopted_as="The adapter's files",
        ),
        Stage(
            name="evaluate",
            home="evaluation.stage",
            summary="measure base against tuned, or any model.",
            outputs=("evaluation",),
            uses=("train",),
            planned=True,
            measures=True,
        ),
        Stage(
            name="fuse",
            home="fusing.stage",
            summary="write the adapter into the weights.",
            outputs=("fused", "fidelity.json"),
            needs=("train",),
            planned=True,
            shared=False,
            keeps=1,  # a fused model is large, and made again from its adapter in minutes
        ),
        Stage(
            name="analyze",
            home="studies.analyze",
            summary="Find out how long a prefix this model supports.",
            outputs=("analysis",),
            in_run=False,
            shared=False,
        ),
    )
}
"""The stages by name, in their order."""
LEARNING = ("answers", "choose")
"""The stages before those of a run whose recipe uses a few answers; they are part of what it took."""


def in_run(*, learns: bool = False) -> list[str]:
    """The names of the stages of `upft run`, in their order; `learns`: with those that learn from a few answers."""
    return [name for name, stage in STAGES.items() if stage.in_run or (learns and name in LEARNING)]


def before(name: str) -> list[str]:
    """The stages that must be current before this one, the first one first."""
    found: list[str] = []
    for need in STAGES[name].needs:
        found += [stage for stage in (*before(need), need) if stage not in found]
    return found


_TERMS = re.compile(r"(?i)(licen[cs]e|notice)([.-][\w.-]*)?")


def is_terms(name: str) -> bool:
    """Whether a file of this name holds terms, which go with a result: LICENSE, LICENCE.md, NOTICE.txt, LICENSE-MIT."""
    return _TERMS.fullmatch(name) is not None
