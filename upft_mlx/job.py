"""One recipe at work on its model and data in one run directory: what its stages get, and which of them are current."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upft_mlx.data.benchmarks import BenchmarkSet
from upft_mlx.data.problems import Problem
from upft_mlx.errors import RunDirError
from upft_mlx.events import Observer, ignore
from upft_mlx.fingerprints import StageInputs
from upft_mlx.machine.device import PowerWatch
from upft_mlx.models.load import Loaded, load_for, load_tokenizer
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rundir import RunDir, changed, changes, fingerprint, missing
from upft_mlx.stages import STAGES, before


@dataclass(frozen=True)
class Outcome:
    """What a stage gives the ledger."""

    detail: str
    tokens_sampled: int = 0
    tokens_trained: int = 0
    tokens_processed: int = 0
    """By this process."""


class Job:
    """A recipe, its model and data, and its run directory."""

    def __init__(
        self,
        recipe: Recipe,
        model_path: Path,
        problems: Sequence[Problem],
        sets: Sequence[BenchmarkSet],
        run: RunDir,
        notify: Observer = ignore,
        *,
        measured: RunDir | None = None,
        adapter: Path | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            recipe: with numbers in place of `auto`.
            model_path: the model's folder.
            problems: to train on.
            sets: the benchmarks.
            run: where the run is kept.
            notify: receives progress events.
            measured: where the evaluation is kept; None: in the run.
            adapter: the folder of one to evaluate instead of the run's own.
        """
        self.model_path, self.problems, self.sets = model_path, problems, sets
        self.run, self.measured, self.adapter, self.notify = run, measured or run, adapter, notify
        self.power = PowerWatch(notify)
        self.use(recipe)
        self.adopted: dict[str, str] = {}
        """Digests of outputs that were changed by hand and adopted, by stage."""
        self.donors: Sequence[RunDir] = ()
        """Other runs whose answers are taken over where they were made from the same inputs."""
        self.read: Sequence[str] = ()
        """How problems and benchmarks were read, as far as somebody should know."""
        self.remade: str | None = None
        """The stage that was asked for by its name: it makes damaged outputs again."""

    def use(self, recipe: Recipe) -> None:
        """Go on with this recipe."""
        self.recipe = recipe
        self.inputs = StageInputs(recipe, self.model_path, self.problems, self.sets)

    def load(self) -> Loaded:
        """The recipe's model."""
        return load_for(self.recipe, self.model_path)

    def tokenizer(self) -> Any:
        """The model's tokenizer, without loading the model."""
        return load_tokenizer(self.model_path, trust_remote_code=self.recipe.trust_remote_code)

    @property
    def has_weights(self) -> bool:
        """Whether the model's weights are on this machine; a plan needs none."""
        return any(self.model_path.glob("model*.safetensors"))

    @property
    def questions(self) -> list[str]:
        """All questions of the evaluation."""
        return [problem.question for part in self.sets for problem in part.problems]

    def place(self, stage: str) -> RunDir:
        """Where a stage's outputs are."""
        return self.measured if STAGES[stage].measures else self.run

    def inputs_of(self, stage: str) -> dict[str, Any]:
        """What a stage would be run with now."""
        own: dict[str, Any] = STAGES[stage].code.inputs(self)
        read = (*STAGES[stage].needs, *(used for used in STAGES[stage].uses if self.takes_along(used)))
        adopted = {"adopted": self.adopted[stage]} if stage in self.adopted else {}
        return {**{f"{name} stage": self.fingerprint(name) for name in read}, **own, **adopted}

    def fingerprint(self, stage: str) -> str:
        """The hash of what a stage would be run with now."""
        return fingerprint(self.inputs_of(stage))

    def takes_along(self, stage: str) -> bool:
        """Whether a stage that uses this one works with its outputs: they are current, and no others were given."""
        return self.adapter is None and self.is_current(stage)

    def is_current(self, stage: str) -> bool:
        """Whether a stage is done with the recipe, model and data as they are now, and its files are what it wrote.

        Raises:
            RunDirError: a file was changed after the stage wrote it; says what to do.
        """
        run = self.place(stage)
        entry = run.entry(stage)
        if entry is None or not entry.done or entry.fingerprint != self.fingerprint(stage):
            return False
        if missing(entry, run.root):
            return False
        differing = changed(entry, run.root)
        if differing and stage != self.remade:
            adopt = f"If you changed it on purpose, `{self.run.command('adopt')}` keeps the change. "
            adopt = adopt if STAGES[stage].adopted_as else ""
            raise RunDirError(
                f"was changed after `upft {stage}` wrote it. {adopt}If it is damaged, "
                f"`{self.run.command(stage)}` makes it again and keeps this version in .kept",
                path=run.root / differing[0],
            )
        return not differing

    def require(self, what: str, *stages: str) -> None:
        """Refuse to do something unless these stages are current.

        Args:
            what: a stage or a command, as the message names it.
            stages: their names; none: those that the stage `what` needs.

        Raises:
            RunDirError: names the first one that is not, what differs and the commands that go on.
        """
        needed = stages or STAGES[what].needs
        for name in dict.fromkeys(name for need in needed for name in (*before(need), need)):
            if not self.is_current(name):
                raise RunDirError(f"{what} needs the stage {name}, which {self._why(name)}", path=self.run.root)
        for name in STAGES[what].uses if what in STAGES and self.adapter is None else ():
            entry = self.run.entry(name)
            if entry is not None and entry.done and not self.is_current(name):
                left_out = STAGES[name].outputs[0]
                why = f"{what} would leave out the {left_out}, which {self._why(name)}"
                raise RunDirError(why, path=self.run.root)

    def refuse_missing(self, stage: str) -> None:
        """Refuse to go on without files of a stage that is done with the recipe as it is now.

        Raises:
            RunDirError: names the files and the command that makes them again.
        """
        run = self.place(stage)
        entry = run.entry(stage)
        if entry is not None and entry.done and entry.fingerprint == self.fingerprint(stage):
            raise RunDirError(f"{stage} {self._why(stage)}", path=run.root)

    def _why(self, stage: str) -> str:
        entry = self.run.entry(stage)
        if entry is None or not entry.done:
            return f"is not done; run `upft {stage}` first, or `upft run` for all stages"
        now = self.inputs_of(stage)
        if entry.fingerprint == fingerprint(now):
            return f"lacks {', '.join(missing(entry, self.run.root))}; `{self.run.command(stage)}` makes it again"
        same = self.recipe.dump().items() <= self.run.described().items()  # then the folder is refused as well
        named = "" if same else f"name the folder {shlex.quote(str(self.run.root))} instead of the recipe, or "
        return (
            f"was done with other settings ({', '.join(differences(entry.inputs, now))}). To go on with it, {named}"
            f"repeat its --set; `upft {stage}` with the new settings makes another version and keeps this one in .kept"
        )


def differences(old: dict[str, Any] | None, new: dict[str, Any]) -> list[str]:
    """The inputs that differ, with the old value where it is short."""
    found = []
    for name in changes(old, new):
        value: Any = old or {}
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        is_hash = isinstance(value, str) and "." not in name
        short = isinstance(value, (int, float, str, bool)) and len(str(value)) <= 24 and not is_hash
        found.append(f"{name}={value}" if short else name)
    return found
