"""Which stages run again when something changes: one table over every field, and what the stages are seen to read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from conftest import MODEL
from helpers.staleness import ANSWERS, EVERYTHING, FORECASTING, PROBLEMS, ROWS, SAMPLING, STAGES, TABLE, UPFT, VARIANTS
from helpers.templates import FAMILIES, write_tokenizer
from pydantic import BaseModel

from upft_mlx import stages
from upft_mlx.data.benchmarks import BenchmarkSet, resolve
from upft_mlx.data.problems import Problem
from upft_mlx.evaluation.base_and_tuned import variant_inputs
from upft_mlx.events import Variant
from upft_mlx.job import Job
from upft_mlx.recipe.fields import Section
from upft_mlx.recipe.schema import Recipe
from upft_mlx.recipe.studies import Method
from upft_mlx.rundir import RunDir, fingerprint

RFT = {**UPFT, "method": "rft", "generate": {"samples": 4}}


CHOOSES = {**UPFT, "generate": {"samples": 4}, "prefix": {"selection": "consensus"}}


HUB = {"problems": {"path": None, "dataset": "a/b"}}


TOGETHER = {
    "generate.samples": RFT,
    "generate.keep": RFT,
    "prefix.selection": CHOOSES,
    "prefix.rollouts": {**CHOOSES, "prefix": {"selection": "rollouts"}},
    "evaluate.samples": {**UPFT, "evaluate": {**UPFT["evaluate"], "temperature": 0.7}},
    "evaluate.benchmarks.samples": {**UPFT, "evaluate": {**UPFT["evaluate"], "temperature": 0.7}},
    "train.steps": {**UPFT, "train": {"epochs": None}},
    "quantize.bits": {**UPFT, "quantize": {}},
    "quantize.group_size": {**UPFT, "quantize": {}},
}
"""The recipes in which a field can be changed, where that is not the plain one."""


def recipe_with(data: dict[str, Any], path: str = "", value: Any = None) -> Recipe:
    changed = json.loads(json.dumps(data))
    if path:
        *parents, name = path.split(".")
        place = changed
        for parent in parents:
            place = place.setdefault(parent, {})
            place = place[0] if isinstance(place, list) else place
        place[name] = value
    return Recipe.model_validate(changed)


def fingerprints(
    recipe: Recipe,
    problems: list[Problem] = PROBLEMS,
    asked: list[Problem] = PROBLEMS,
    model: Path = MODEL,
    adapter: Path | None = None,
) -> dict[str, str]:
    (entry,) = resolve(recipe.evaluate)
    part = BenchmarkSet(entry, asked)
    made = job(recipe, model, problems, [part], adapter)
    own = {name: made.fingerprint(name) for name in stages.STAGES if name != "evaluate"}
    variants: tuple[Variant, ...] = ("base", "tuned")
    return {
        **own,
        **{variant: fingerprint(variant_inputs(made, part, variant)) for variant in variants},
        "summary": made.fingerprint("evaluate"),
    }


def job(
    recipe: Recipe,
    model: Path = MODEL,
    problems: list[Problem] = PROBLEMS,
    sets: Sequence[BenchmarkSet] = (),
    adapter: Path | None = None,
) -> Job:
    """Of a run whose adapter is trained, whatever it was trained with."""

    class Trained(Job):
        def is_current(self, stage: str) -> bool:
            assert stage == "train"
            return True

    return Trained(recipe, model, problems, sets, RunDir("nowhere"), adapter=adapter)


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {stage for stage in STAGES if before[stage] != after[stage]}


@pytest.mark.parametrize(("path", "value", "stages"), TABLE, ids=[row[0] for row in TABLE])
def test_a_changed_field_makes_just_these_stages_run_again(path: str, value: Any, stages: str) -> None:
    data = TOGETHER.get(path, UPFT)
    assert changed(fingerprints(recipe_with(data)), fingerprints(recipe_with(data, path, value))) == set(stages.split())


@pytest.mark.parametrize("method", get_args(Method))
@pytest.mark.parametrize(("path", "value"), [row[:2] for row in TABLE if row[2] == EVERYTHING])
def test_what_all_completions_depend_on_trains_again_with_every_method(method: str, path: str, value: Any) -> None:
    """`annotated` samples nothing, and left out seed, prompt and quantization of the rows and of the adapter too."""
    data = {**TOGETHER.get(path, UPFT), "method": method, "generate": {"samples": 4 if method == "rft" else 1}}
    found = changed(fingerprints(recipe_with(data)), fingerprints(recipe_with(data, path, value)))
    assert found >= {"generate", "build", "train", "base", "tuned"}


@pytest.mark.parametrize(("path", "value", "stages"), FORECASTING, ids=[row[0] for row in FORECASTING])
def test_a_changed_field_makes_just_these_stages_run_again_where_a_probe_chooses(
    path: str, value: Any, stages: str
) -> None:
    data = {**UPFT, "generate": {"samples": 4}, "prefix": {"selection": "probe"}}
    before, after = fingerprints(recipe_with(data)), fingerprints(recipe_with(data, path, value))
    assert {stage for stage in before if before[stage] != after[stage]} == set(stages.split())


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The paths of all fields, those of an optional or repeated section under its name."""
    for name, field in model.model_fields.items():
        kinds = list(_kinds(field.annotation))
        section = next((kind for kind in kinds if issubclass(kind, Section)), None)
        if section is None:
            yield prefix + name
        else:
            yield from leaves(section, f"{prefix}{name}.")


def _kinds(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type):
        yield annotation
    for argument in get_args(annotation):
        yield from _kinds(argument)


ELSEWHERE = {"problems.dataset", "problems.builtin", "evaluate.benchmarks.name", "evaluate.benchmarks.dataset"}
"""Fields that say where problems are and exclude the others; like these they count by the problems alone."""


def test_the_table_has_every_field() -> None:
    assert {row[0] for row in TABLE} == set(leaves(Recipe)) - ELSEWHERE


@pytest.mark.parametrize(
    ("field", "value", "trained", "measured"),
    [
        ("id", "x", f"{SAMPLING} analyze", VARIANTS),
        ("question", "x", f"{SAMPLING} analyze", ANSWERS),
        ("answer", "x", f"{SAMPLING} analyze", VARIANTS),
        ("level", "x", "", "summary"),
        ("subject", "x", "", "summary"),
        ("wrong_answers", ("x",), "", ""),  # they are in the question by then
    ],
)
def test_a_changed_problem_makes_just_these_stages_run_again(
    field: str, value: Any, trained: str, measured: str
) -> None:
    recipe = recipe_with(UPFT)
    other = [*PROBLEMS[:-1], dataclasses.replace(PROBLEMS[-1], **{field: value})]
    before = fingerprints(recipe)
    assert changed(before, fingerprints(recipe, problems=other)) == set(trained.split())
    assert changed(before, fingerprints(recipe, asked=other)) == set(measured.split())
    fewer = fingerprints(recipe, problems=PROBLEMS[:-1])
    assert changed(before, fewer) == set(f"{SAMPLING} analyze".split())


def test_another_model_makes_everything_run_again_and_another_adapter_only_tuned(tmp_path: Path) -> None:
    recipe = recipe_with(UPFT)
    shutil.copytree(MODEL, tmp_path / "model")
    before = fingerprints(recipe)
    assert changed(before, fingerprints(recipe, model=tmp_path / "model")) == set()
    (tmp_path / "model" / "merges.txt").write_text("a b\n")
    assert changed(before, fingerprints(recipe, model=tmp_path / "model")) == set(STAGES)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapters.safetensors").write_text(name)
    one, two = (fingerprints(recipe, adapter=tmp_path / name) for name in ("one", "two"))
    assert changed(one, two) == {"tuned", "summary"}
    assert changed(before, one) == {"tuned", "summary"}


def test_confidence_samples_anew_and_other_choices_among_full_solutions_do_not() -> None:
    data = {**CHOOSES, "prefix": {"selection": "longest"}}
    longest = fingerprints(recipe_with(data))
    assert changed(longest, fingerprints(recipe_with(data, "prefix.selection", "label"))) == set(ROWS.split())
    assert "generate" in changed(longest, fingerprints(recipe_with(data, "prefix.selection", "confidence")))


def test_a_run_of_the_version_before_continues_its_sampling_and_builds_its_rows_again(tmp_path: Path) -> None:
    """Where nothing else is sampled; rows may end in another token. A model that thinks is asked differently."""
    made = job(recipe_with(UPFT))
    digest = hashlib.sha256()
    for file in sorted(path for path in MODEL.iterdir() if path.suffix in (".json", ".jinja", ".safetensors")):
        digest.update(file.name.encode() + file.read_bytes())
    dump = recipe_with(UPFT).dump()
    assert made.inputs_of("generate") == {
        "model": digest.hexdigest()[:16],
        "quantize": None,
        "seed": 0,
        "prompt": {"system": None, "chat_template_args": {}},
        "problems": made.inputs.hashes["problems"],
        "generate": {name: value for name, value in dump["generate"].items() if name != "keep"},
        "solutions": {"structure_only": False},
        "prefix": {name: dump["prefix"][name] for name in ("length", "structure_ratio")},
    }
    assert "eos" in made.inputs_of("build")
    bare = job(recipe_with(UPFT, "prompt.instruction", "{question}"))
    assert bare.inputs_of("generate") == made.inputs_of("generate")
    thinking = write_tokenizer(tmp_path, FAMILIES["Qwen3"])
    assert "enable_thinking" in job(recipe_with(UPFT), thinking).inputs_of("generate")
    said = recipe_with(UPFT, "prompt.chat_template_args", {"enable_thinking": True})
    assert "enable_thinking" not in job(said, thinking).inputs_of("generate")
