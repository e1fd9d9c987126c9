"""What is known about a recipe before it is written."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upft_mlx.data.problems import Problem
from upft_mlx.models.facts import ModelFacts
from upft_mlx.new.data_facts import DataFacts, Split
from upft_mlx.new.settings import NewSettings


@dataclass(frozen=True)
class Draft:
    """Everything that the recipe's text is made from."""

    path: Path
    """The recipe's path."""
    model_name: str
    """The model's name in the recipe."""
    hub: bool
    """Whether something must be downloaded before a run."""
    model: ModelFacts
    data: DataFacts
    parts: Split | None
    """The two parts of a dataset with test questions set aside."""
    benchmark: dict[str, Any]
    """The entry of `evaluate.benchmarks`."""
    settings: NewSettings
    warnings: list[str]

    @property
    def files(self) -> dict[str, Sequence[Problem]]:
        """The files written next to the recipe, by name."""
        stem = self.path.stem
        return {f"{stem}-train.jsonl": self.parts.train, f"{stem}-test.jsonl": self.parts.test} if self.parts else {}

    @property
    def data_path(self) -> str:
        """The path in the recipe of a local dataset that is not split."""
        return relative(Path(str(self.data.source.path)), self.path.absolute().parent)

    @property
    def next_commands(self) -> list[str]:
        """The commands to run next."""
        path = shlex.quote(str(self.path))
        return [f"upft plan {path}", *([f"upft fetch {path}"] if self.hub else []), f"upft run {path}"]


def relative(path: Path, folder: Path) -> str:
    """A path as a recipe in `folder` names it: relative if it is near, otherwise absolute."""
    near = os.path.relpath(path.expanduser().resolve(), folder.resolve())
    return str(path.expanduser().resolve()) if near.startswith("../../..") else f"./{near}" if near[0] != "." else near
