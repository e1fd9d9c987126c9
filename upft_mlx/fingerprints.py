"""What stages depend on, as plain values: their fingerprints decide what is current.

Each stage's inputs hold the recipe fields, the model and the data that it reads, and the fingerprints of the stages
that it needs; so a change makes its stage and those after it run again, and nothing else. What a stage reads is written
down in its own package; here is what several of them share.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from upft_mlx.data.benchmarks import BenchmarkSet
from upft_mlx.data.problems import Problem
from upft_mlx.errors import RecipeError
from upft_mlx.models.adapter_files import started
from upft_mlx.models.chat import PRINTS_DATE
from upft_mlx.models.facts import chat_template
from upft_mlx.models.files import TEMPLATE, own_template
from upft_mlx.models.find import model_hash
from upft_mlx.models.load import quantizes_its_own_way
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rundir import RunDir


def definite(recipe: Recipe, model_path: Path, run: RunDir) -> Recipe:
    """The recipe with what is in files: the day (see `dated`), and the settings of the adapter that it starts from.

    Raises:
        ModelError: that adapter is missing or damaged.
        RecipeError: the recipe sets something else than the adapter has; or the adapter is the run's own.
    """
    start = recipe.lora.start_from
    place = Path(start or "/").resolve()
    above = (path for path in (place, *place.parents) if path.exists())
    if start is not None and run.root.exists() and any(path.samefile(run.root) for path in above):
        remedy = "copy it to another folder, or use another run directory"
        raise RecipeError("is this run's own, which training would replace", remedy, field=f"lora.start_from: {start}")
    return dated(started(recipe, model_path), model_path, run)


def dated(recipe: Recipe, model_path: Path, run: RunDir) -> Recipe:
    """The recipe with the day that the model's chat template prints: the run's, or today where it has none yet.

    As it is where the recipe sets one, or the template prints none.
    """
    if recipe.prompt.date is not None or PRINTS_DATE not in chat_template(model_path, recipe.prompt.chat_template):
        return recipe
    return recipe.having("prompt", date=run.asked_with("date") or date.today().isoformat())


def asked_as_trained(recipe: Recipe, adapter: Path, model_path: Path) -> Recipe:
    """The recipe with the chat template that lies beside an adapter: whoever trained it asked with that one.

    As it is where the recipe names a template, none lies there, or it is the model's own.

    Raises:
        ModelError, RecipeError: a template cannot be read.
    """
    beside = adapter / TEMPLATE
    if recipe.prompt.chat_template is not None or not beside.is_file():
        return recipe
    if own_template(beside) == chat_template(model_path):
        return recipe
    return recipe.having("prompt", chat_template=str(beside.resolve()))


class StageInputs:
    """What the stages of one recipe read of it, of its model and of its data."""

    def __init__(
        self, recipe: Recipe, model_path: Path, problems: Sequence[Problem], sets: Sequence[BenchmarkSet]
    ) -> None:
        self._dump = recipe.dump()
        self._model_path, self._problems, self._sets = model_path, problems, sets

    @cached_property
    def hashes(self) -> dict[str, Any]:
        """Fingerprints of the model, the problems and each benchmark's problems."""
        return {
            "model": model_hash(self._model_path),
            "problems": hash_of(self._problems, *ASKED),
            "benchmarks": {part.entry.label: hash_of(part.problems, *ASKED) for part in self._sets},
        }

    def base(self) -> dict[str, Any]:
        """What every completion of the base model depends on."""
        own = self._dump["quantize"] is not None and quantizes_its_own_way(self._model_path)  # not in older versions
        bits = {"quantized": "with the model's own bits"} if own else {}
        return {"model": self.hashes["model"], **self.fields("quantize", "seed"), **bits, **self._prompt()}

    def fields(self, *names: str) -> dict[str, Any]:
        """These sections and fields of the recipe's top level."""
        return {name: self._dump[name] for name in names}

    def section(self, name: str, *fields: str) -> dict[str, Any]:
        """A section of the recipe with these fields alone."""
        return {name: {field: self._dump[name][field] for field in fields}}

    def lora(self) -> dict[str, Any]:
        """The adapter's section; one that it starts from counts by its files, not by its place."""
        start = self._dump["lora"]["start_from"]
        unset = () if self._dump["lora"]["grid"] else ("grid",)
        own = self.section_without("lora", "start_from", *unset)  # as before there were such fields
        return own if start is None else {**own, "start_from": model_hash(Path(start))}

    def section_without(self, name: str, *fields: str) -> dict[str, Any]:
        """A section of the recipe without these fields."""
        return {name: _without(self._dump[name], *fields)}

    def everything(self) -> dict[str, Any]:
        """What all ranks of a job must have in common: not the paths, which may differ from machine to machine."""
        fields = self.fields("method", "seed", "quantize", "prompt", "generate", "prefix", "train", "publish")
        fields |= self._prompt() | self.lora()
        entries = {part.entry.label: _without(part.entry.plain(), "path") for part in self._sets}
        evaluate = self.section("evaluate", "batch_size", "until", "effect")["evaluate"]
        return {**self.hashes, **fields, "evaluate": {"benchmarks": entries, **evaluate}}

    def _prompt(self) -> dict[str, Any]:
        """The prompt section, and what it leaves to the template where older versions decided it themselves."""
        prompt = self._dump["prompt"]
        own = prompt["chat_template"]
        if prompt["date"] is None:
            prompt = _without(prompt, "date")
        prompt = _without(prompt, "chat_template")  # older versions had no such field
        if own is not None:  # what is in the file counts, not where it is
            prompt["chat_template"] = hashlib.sha256(own_template(own).encode()).hexdigest()[:16]
        if prompt["instruction"] in (None, "{question}"):  # the bare question, as older versions asked it
            prompt = _without(prompt, "instruction")
        asked = "enable_thinking" in prompt["chat_template_args"]
        left = not asked and "enable_thinking" in chat_template(self._model_path, own)
        return {"prompt": prompt, **({"enable_thinking": "the template's own"} if left else {})}


ASKED = ("id", "question", "answer")
"""The fields of a problem that completions and grades depend on."""


def hash_of(problems: Sequence[Problem], *fields: str) -> str:
    """A hash of these fields of problems, in their order."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(json.dumps([getattr(problem, field) for field in fields]).encode())
    return digest.hexdigest()[:16]


def _without(section: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in section.items() if name not in names}
