"""How the stages of a run stand: which are current, which were made with other settings, which were changed since."""

from __future__ import annotations

import shlex
from typing import Any

from upft_mlx.errors import RunDirError
from upft_mlx.events import Side
from upft_mlx.fingerprints import Inputs
from upft_mlx.rundir import RunDir, changed, changes, fingerprint, missing
from upft_mlx.versions import ADOPTABLE

NEEDS = {
    "build": ("generate",),
    "train": ("generate", "build"),
    "fuse": ("generate", "build", "train"),
    "export": ("generate", "build", "train"),
    "push": ("generate", "build", "train", "fuse"),
}
"""The stages that must be current before one."""


class Standing:
    """The stages of one recipe in one run directory."""

    def __init__(self, run: RunDir, measured: RunDir, inputs: Inputs, *, foreign: bool) -> None:
        """`measured` has the evaluation, `foreign`: of an adapter that is not the run's."""
        self._run, self._measured, self._inputs, self._foreign = run, measured, inputs, foreign
        self.remade: str | None = None
        """The stage that was asked for by its name: it makes damaged outputs again."""

    def place(self, stage: str) -> RunDir:
        """Where a stage's outputs are."""
        return self._measured if stage == "evaluate" else self._run

    def inputs(self, stage: str) -> dict[str, Any]:
        """What the stage would be run with now."""
        if stage == "evaluate":
            sides = self.sides()
            own = "tuned" in sides and not self._foreign
            trained = {"train stage": fingerprint(self._inputs.train())} if own else {}  # to see later whose it is
            return {**self._inputs.evaluate(sides), **trained}
        found: dict[str, Any] = getattr(self._inputs, stage)()
        return found

    def sides(self) -> tuple[Side, ...]:
        """Tuned is measured where there is an adapter: one that was given, or the run's own, if it is current."""
        return ("base", "tuned") if self._foreign or self.is_current("train") else ("base",)

    def is_current(self, stage: str) -> bool:
        """Whether a stage is done with the recipe, model and data as they are now, and its files are what it wrote.

        Raises:
            RunDirError: a file was changed after the stage wrote it; says what to do.
        """
        run = self.place(stage)
        entry = run.entry(stage)
        if entry is None or not entry.done or entry.fingerprint != fingerprint(self.inputs(stage)):
            return False
        if missing(entry, run.root):
            return False
        differing = changed(entry, run.root)
        if differing and stage != self.remade:
            raise RunDirError(self._advice(stage, run, differing[0]))
        return not differing

    def _advice(self, stage: str, run: RunDir, name: str) -> str:
        root = shlex.quote(str(self._run.root))
        adopt = f"If you changed it on purpose, `upft adopt {root}` keeps the change. " if stage in ADOPTABLE else ""
        return (
            f"{run.root / name}: was changed after `upft {stage}` wrote it. {adopt}If it is damaged, "
            f"`upft {stage} {root}` makes it again and keeps this version in .kept"
        )

    def require(self, stage: str) -> None:
        """Refuse a stage whose predecessors are not current.

        Raises:
            RunDirError: names the first one that is not, what differs and the commands that go on.
        """
        for before in NEEDS.get(stage, ()):
            if not self.is_current(before):
                raise RunDirError(f"{stage} needs the stage {before}, which {self._why(before)}", path=self._run.root)
        trained = self._run.entry("train")
        own = stage == "evaluate" and not self._foreign and trained is not None and trained.done
        if own and not self.is_current("train"):
            raise RunDirError(f"{stage} would leave out the adapter, which {self._why('train')}", path=self._run.root)

    def refuse_missing(self, stage: str) -> None:
        """Refuse to go on without files of a stage that is done with the recipe as it is now.

        Raises:
            RunDirError: names the files and the command that makes them again.
        """
        run = self.place(stage)
        entry = run.entry(stage)
        if entry is not None and entry.done and entry.fingerprint == fingerprint(self.inputs(stage)):
            raise RunDirError(f"{stage} {self._why(stage)}", path=run.root)

    def _why(self, stage: str) -> str:
        entry = self._run.entry(stage)
        if entry is None or not entry.done:
            return f"is not done; run `upft {stage}` first, or `upft run` for all stages"
        root = shlex.quote(str(self._run.root))
        now = self.inputs(stage)
        if entry.fingerprint == fingerprint(now):
            return f"lacks {', '.join(missing(entry, self._run.root))}; `upft {stage} {root}` makes it again"
        return (
            f"was done with other settings ({', '.join(differences(entry.inputs, now))}). To go on with it, name the "
            f"folder {root} instead of the recipe, or repeat its --set; `upft {stage}` with the new settings makes "
            "another version and keeps this one in .kept"
        )


def differences(old: dict[str, Any] | None, new: dict[str, Any]) -> list[str]:
    """The inputs that differ, with the old value where it is short."""
    found = []
    for name in changes(old, new):
        value: Any = old or {}
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        short = isinstance(value, (int, float, str, bool)) and len(str(value)) <= 24 and "." in name
        found.append(f"{name}={value}" if short else name)
    return found
