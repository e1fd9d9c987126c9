"""What each stage depends on, as plain values: their fingerprints decide what is current.

Each stage's inputs hold the recipe fields, the model and the data that it reads, and the fingerprint of the stage
before it; so a change makes its stage and those after it run again, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from upft_mlx.data.benchmarks import Set
from upft_mlx.data.problems import Problem
from upft_mlx.events import Side
from upft_mlx.models.chat import PRINTS_DATE
from upft_mlx.models.facts import chat_template
from upft_mlx.models.find import model_hash
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import read_json
from upft_mlx.rundir import RunDir, fingerprint

UNREAD = ("keep", "report_to", "checkpoint_every")
"""Fields of `train` that change no weight and no metric: the number of checkpoints, and where else metrics go."""


def dated(recipe: Recipe, model_path: Path, run: RunDir) -> Recipe:
    """The recipe with the day that the model's chat template prints: the run's, or today where it has none yet.

    As it is where the recipe sets one, or the template prints none.
    """
    if recipe.prompt.date is not None or PRINTS_DATE not in chat_template(model_path):
        return recipe
    made = read_json(run.recipe)
    prompt = made.get("prompt") if isinstance(made, dict) else None
    known = prompt.get("date") if isinstance(prompt, dict) else None
    data = recipe.model_dump()
    data["prompt"]["date"] = known or date.today().isoformat()
    return Recipe.model_validate(data)


class Inputs:
    """The inputs of the stages of one recipe on one model and its data."""

    def __init__(
        self,
        recipe: Recipe,
        model_path: Path,
        problems: Sequence[Problem],
        sets: Sequence[Set],
        adapter: Path | None = None,
    ) -> None:
        self._recipe, self._dump = recipe, recipe.dump()
        self._adapter = adapter
        self._model_path, self._problems, self._sets = model_path, problems, sets
        self.adopted: dict[str, str] = {}
        """Digests of outputs that were changed by hand and adopted, by stage."""

    @cached_property
    def hashes(self) -> dict[str, Any]:
        """Fingerprints of the model, the problems and each benchmark's problems."""
        return {
            "model": model_hash(self._model_path),
            "problems": _hash(self._problems, *ASKED),
            "benchmarks": {part.entry.label: _hash(part.problems, *ASKED) for part in self._sets},
        }

    def generate(self) -> dict[str, Any]:
        """solutions.jsonl."""
        return {
            **self._base(),
            "problems": self.hashes["problems"],
            "generate": _without(self._dump["generate"], "keep"),
            **self._solutions(),
            **self._changed_by_hand("generate"),
        }

    def _solutions(self) -> dict[str, Any]:
        """Which solutions are sampled: methods and selections that need the same share them."""
        prefix = self._dump["prefix"]
        logprobs = prefix["selection"] == "confidence"
        if self._recipe.samples_full:
            return {"solutions": {"all_full": True, "logprobs": logprobs}}
        only = self._dump["method"] == "structure_only"
        fields = {name: prefix[name] for name in ("length", "structure_ratio")}
        return {"solutions": {"structure_only": only}, "prefix": fields}

    def build(self) -> dict[str, Any]:
        """dataset/."""
        return {
            "generate stage": fingerprint(self.generate()),
            **self._fields("method", "prefix"),
            "eos": "as sampled",
            "generate": {"keep": self._dump["generate"]["keep"]},
            "train": {"valid_ratio": self._dump["train"]["valid_ratio"]},
            **self._changed_by_hand("build"),
        }

    def train(self) -> dict[str, Any]:
        """adapter/."""
        return {
            "build stage": fingerprint(self.build()),
            **self._fields("lora"),
            "train": _without(self._dump["train"], "valid_ratio", *UNREAD),
            **self._changed_by_hand("train"),
        }

    def side(self, part: Set, side: Side) -> dict[str, Any]:
        """The rows of one side of one benchmark."""
        inputs = {
            **self._base(),
            "benchmark": asdict(part.entry),
            "problems": self.hashes["benchmarks"][part.entry.label],
            "evaluate": {"batch_size": self._dump["evaluate"]["batch_size"]},
        }
        if side == "base":
            return inputs
        if self._adapter is not None:
            return {**inputs, "adapter": model_hash(self._adapter)}
        return {**inputs, "train stage": fingerprint(self.train())}

    def evaluate(self, sides: Sequence[Side]) -> dict[str, Any]:
        """summary.json, which tells levels and subjects apart."""
        groups = {f"{part.entry.label} groups": _hash(part.problems, "id", *GROUPED) for part in self._sets}
        rows = {f"{part.entry.label} {side}": self.side(part, side) for part in self._sets for side in sides}
        return {**groups, **{name: fingerprint(inputs) for name, inputs in rows.items()}}

    def fuse(self) -> dict[str, Any]:
        """fused/, which is judged on the benchmarks' questions."""
        publish = {name: self._dump["publish"][name] for name in ("fuse", "min_retained")}
        questions = {part.entry.label: _hash(part.problems, "question") for part in self._sets}
        return {"train stage": fingerprint(self.train()), "publish": publish, "questions": questions}

    def analyze(self) -> dict[str, Any]:
        """analysis/."""
        return {
            **self._base(),
            "problems": self.hashes["problems"],
            "generate": _without(self._dump["generate"], "keep", "samples"),
            **self._fields("analyze"),
        }

    def everything(self) -> dict[str, Any]:
        """What all ranks of a job must have in common: not the paths, which may differ from machine to machine."""
        fields = self._fields("method", "seed", "quantize", "prompt", "generate", "prefix", "lora", "train", "publish")
        fields |= self._prompt()
        entries = {part.entry.label: _without(asdict(part.entry), "path") for part in self._sets}
        batch_size = self._dump["evaluate"]["batch_size"]
        return {**self.hashes, **fields, "evaluate": {"benchmarks": entries, "batch_size": batch_size}}

    def _base(self) -> dict[str, Any]:
        """What every completion of the base model depends on."""
        return {"model": self.hashes["model"], **self._fields("quantize", "seed"), **self._prompt()}

    def _prompt(self) -> dict[str, Any]:
        """The prompt section, and what it leaves to the template where older versions decided it themselves."""
        prompt = self._dump["prompt"]
        if prompt["date"] is None:
            prompt = _without(prompt, "date")
        if prompt["instruction"] in (None, "{question}"):  # the bare question, as older versions asked it
            prompt = _without(prompt, "instruction")
        left = "enable_thinking" in self._template and "enable_thinking" not in prompt["chat_template_args"]
        return {"prompt": prompt, **({"enable_thinking": "the template's own"} if left else {})}

    @cached_property
    def _template(self) -> str:
        return chat_template(self._model_path)

    def _changed_by_hand(self, stage: str) -> dict[str, str]:
        return {"adopted": self.adopted[stage]} if stage in self.adopted else {}

    def _fields(self, *names: str) -> dict[str, Any]:
        return {name: self._dump[name] for name in names}


ASKED, GROUPED = ("id", "question", "answer"), ("level", "subject")
"""The fields of a problem that completions and grades depend on, and those by which results are grouped."""


def _hash(problems: Sequence[Problem], *fields: str) -> str:
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(json.dumps([getattr(problem, field) for field in fields]).encode())
    return digest.hexdigest()[:16]


def _without(section: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in section.items() if name not in names}
