"""Which stages run again when something changes: one table over every field, and what the stages are seen to read."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
import os
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
from conftest import MODEL
from helpers.models import write_model
from helpers.templates import FAMILIES, write_tokenizer
from pydantic import BaseModel

from upft_mlx.data.benchmarks import Set, resolve
from upft_mlx.data.problems import Problem
from upft_mlx.dataset.build import build
from upft_mlx.dataset.prefix import wanted
from upft_mlx.evaluation.evaluate import Evaluator
from upft_mlx.evaluation.summary import summarize
from upft_mlx.fingerprints import UNREAD, Inputs
from upft_mlx.fusing.fuse import fuse
from upft_mlx.models.find import model_hash
from upft_mlx.models.load import load
from upft_mlx.pipeline import run_stage
from upft_mlx.recipe.fields import Section
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rundir import RunDir, fingerprint
from upft_mlx.sampling.generate import generate
from upft_mlx.studies.analyze import analyze
from upft_mlx.training.train import train

STAGES = ("generate", "build", "train", "base", "tuned", "summary", "fuse", "analyze")
TRAINING = "train tuned summary fuse"
ROWS = f"build {TRAINING}"
SAMPLING = f"generate {ROWS}"
SIDES = "base tuned summary"
ANSWERS = f"{SIDES} fuse"  # fuse is judged on the benchmarks' questions
EVERYTHING = " ".join(STAGES)

UPFT: dict[str, Any] = {
    "model": "builtin:arithmetic",
    "problems": {"path": "train.jsonl"},
    "evaluate": {"benchmarks": [{"name": "own", "path": "test.jsonl"}]},
}
RFT = {**UPFT, "method": "rft", "generate": {"samples": 4}}
CHOOSES = {**UPFT, "generate": {"samples": 4}, "prefix": {"selection": "consensus"}}
HUB = {"problems": {"path": None, "dataset": "a/b"}}

TABLE: list[tuple[str, Any, str]] = [
    ("name", "other", ""),
    ("model", "other", ""),  # the folder counts, not what it is called
    ("revision", "other", ""),
    ("quantize.bits", 8, EVERYTHING),
    ("quantize.group_size", 32, EVERYTHING),
    ("seed", 1, EVERYTHING),
    ("method", "sft", SAMPLING),
    ("trust_remote_code", True, ""),
    *((f"problems.{name}", "other", "") for name in ("path", "config", "split", "revision", "question", "answer")),
    *((f"problems.{name}", value, "") for name, value in (("limit", 2), ("shuffle", True))),  # the problems count
    ("prompt.system", "Be brief.", EVERYTHING),
    ("prompt.instruction", "{question}!", EVERYTHING),
    ("prompt.chat_template_args", {"enable_thinking": True}, EVERYTHING),
    ("prompt.date", "2025-03-09", EVERYTHING),
    ("generate.temperature", 0.5, f"{SAMPLING} analyze"),
    ("generate.top_p", 0.5, f"{SAMPLING} analyze"),
    ("generate.top_k", 5, f"{SAMPLING} analyze"),
    ("generate.max_tokens", 9, f"{SAMPLING} analyze"),
    ("generate.stop", ["x"], f"{SAMPLING} analyze"),
    ("generate.batch_size", 9, f"{SAMPLING} analyze"),
    ("generate.samples", 5, SAMPLING),
    ("generate.keep", 2, ROWS),
    ("prefix.length", 9, SAMPLING),
    ("prefix.structure_ratio", 0.5, SAMPLING),
    ("prefix.template", "none", ROWS),
    ("prefix.eos", True, ROWS),
    ("prefix.eos_weight", 0.5, ROWS),
    ("prefix.selection", "confidence", SAMPLING),
    ("prefix.drop_cjk", True, ROWS),
    ("prefix.require_boxed", True, ROWS),
    *(
        (f"lora.{name}", value, TRAINING)
        for name, value in {"rank": 3, "scale": 3.0, "dropout": 0.1, "num_layers": 1, "keys": ["mlp.up_proj"]}.items()
    ),
    ("train.valid_ratio", 0.5, ROWS),
    *(
        (f"train.{name}", value, TRAINING)
        for name, value in {
            "epochs": 2,
            "steps": 7,
            "batch_size": 3,
            "micro_batch_size": 2,
            "grad_checkpoint": True,
            "learning_rate": 1e-3,
            "schedule": "cosine",
            "warmup_ratio": 0.2,
            "weight_decay": 0.1,
            "betas": [0.8, 0.9],
            "clip_norm": None,
            "max_length": 99,
            "report_every": 3,
            "validate_every": 3,
            "save": "last",
        }.items()
    ),
    *((f"train.{name}", value, "") for name, value in (("keep", 3), ("checkpoint_every", 3), ("report_to", "wandb"))),
    ("evaluate.samples", 2, SIDES),
    ("evaluate.temperature", 0.5, SIDES),
    ("evaluate.max_tokens", 9, SIDES),
    ("evaluate.batch_size", 9, SIDES),
    ("evaluate.limit", 2, SIDES),
    ("evaluate.subset", {"level": [5]}, SIDES),
    ("evaluate.benchmarks.label", "other", ANSWERS),
    *(
        (f"evaluate.benchmarks.{name}", value, SIDES)
        for name, value in {
            "path": "other.jsonl",
            "config": "x",
            "split": "x",
            "revision": "x",
            "question": "x",
            "answer": "x",
            "level": "x",
            "subject": "x",
            "wrong_answers": ["x"],
            "grader": "integer",
            "prompt": "{question}!",
            "private": True,
            "subset": {"level": [5]},
            "limit": 2,
            "samples": 2,
            "temperature": 0.5,
            "max_tokens": 9,
        }.items()
    ),
    *(
        (f"analyze.{name}", value, "analyze")
        for name, value in {
            "problems": 9,
            "samples": 9,
            "lengths": [3],
            "trajectories": 9,
            "rollout_problems": 9,
            "rollouts": 9,
        }.items()
    ),
    *((f"compare.{name}", value, "") for name, value in {"methods": ["upft"], "seeds": 1, "samples": 9}.items()),
    ("publish.fuse", "fp16", "fuse"),
    ("publish.min_retained", 0.5, "fuse"),
    ("publish.repo", "a/b", ""),
    ("publish.private", False, ""),
]
"""A field, another value for it, and the stages that run again."""

TOGETHER = {
    "generate.samples": RFT,
    "generate.keep": RFT,
    "prefix.selection": CHOOSES,
    "evaluate.samples": {**UPFT, "evaluate": {**UPFT["evaluate"], "temperature": 0.7}},
    "evaluate.benchmarks.samples": {**UPFT, "evaluate": {**UPFT["evaluate"], "temperature": 0.7}},
    "train.steps": {**UPFT, "train": {"epochs": None}},
    "quantize.bits": {**UPFT, "quantize": {}},
    "quantize.group_size": {**UPFT, "quantize": {}},
}
"""The recipes in which a field can be changed, where that is not the plain one."""

PROBLEMS = [Problem(str(n), f"What is {n} + {n}?", str(2 * n), level=str(n), subject="sums") for n in range(3)]


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
    part = Set(entry, asked)
    inputs = Inputs(recipe, model, problems, [part], adapter)
    return {
        "generate": fingerprint(inputs.generate()),
        "build": fingerprint(inputs.build()),
        "train": fingerprint(inputs.train()),
        "base": fingerprint(inputs.side(part, "base")),
        "tuned": fingerprint(inputs.side(part, "tuned")),
        "summary": fingerprint(inputs.evaluate(("base", "tuned"))),
        "fuse": fingerprint(inputs.fuse()),
        "analyze": fingerprint(inputs.analyze()),
    }


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {stage for stage in STAGES if before[stage] != after[stage]}


@pytest.mark.parametrize(("path", "value", "stages"), TABLE, ids=[row[0] for row in TABLE])
def test_a_changed_field_makes_just_these_stages_run_again(path: str, value: Any, stages: str) -> None:
    data = TOGETHER.get(path, UPFT)
    assert changed(fingerprints(recipe_with(data)), fingerprints(recipe_with(data, path, value))) == set(stages.split())


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
        ("id", "x", f"{SAMPLING} analyze", SIDES),
        ("question", "x", f"{SAMPLING} analyze", ANSWERS),
        ("answer", "x", f"{SAMPLING} analyze", SIDES),
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
    inputs = Inputs(recipe_with(UPFT), MODEL, PROBLEMS, ())
    digest = hashlib.sha256()
    for file in sorted(path for path in MODEL.iterdir() if path.suffix in (".json", ".jinja", ".safetensors")):
        digest.update(file.name.encode() + file.read_bytes())
    dump = recipe_with(UPFT).dump()
    assert inputs.generate() == {
        "model": digest.hexdigest()[:16],
        "quantize": None,
        "seed": 0,
        "prompt": {"system": None, "chat_template_args": {}},
        "problems": inputs.hashes["problems"],
        "generate": {name: value for name, value in dump["generate"].items() if name != "keep"},
        "solutions": {"structure_only": False},
        "prefix": {name: dump["prefix"][name] for name in ("length", "structure_ratio")},
    }
    assert "eos" in inputs.build()
    bare = Inputs(recipe_with(UPFT, "prompt.instruction", "{question}"), MODEL, PROBLEMS, ())
    assert bare.generate() == inputs.generate()
    thinking = write_tokenizer(tmp_path, FAMILIES["Qwen3"])
    assert "enable_thinking" in Inputs(recipe_with(UPFT), thinking, PROBLEMS, ()).generate()
    said = recipe_with(UPFT, "prompt.chat_template_args", {"enable_thinking": True})
    assert "enable_thinking" not in Inputs(said, thinking, PROBLEMS, ()).generate()


# What is read, as it is seen to be read.


@cache
def listed(stage: str) -> set[str]:
    """The fields that the table gives a stage."""
    return {path for path, _, stages in TABLE if stage in stages.split()}


DATA: dict[str, Any] = {
    **UPFT,
    "generate": {"max_tokens": 40, "batch_size": 4},
    "prefix": {"length": 6, "structure_ratio": 0.3},
    "lora": {"rank": 2, "scale": 8.0},
    "train": {"batch_size": 4, "steps": 2, "valid_ratio": 0.2},
    "evaluate": {**UPFT["evaluate"], "max_tokens": 40},
    "analyze": {"problems": 2, "samples": 2, "trajectories": 4, "rollouts": 2, "lengths": [0, 4]},
    "publish": {"fuse": "bf16", "min_retained": 0.0},
}
SECTIONS = {type(value): name for name, value in Recipe.model_validate(DATA) if isinstance(value, Section)}
COLUMNS = {field.name for field in dataclasses.fields(Problem)}


@contextmanager
def recorded() -> Iterator[tuple[set[str], set[str]]]:
    """The fields of the recipe and of problems that are read meanwhile."""
    fields: set[str] = set()
    columns: set[str] = set()
    section, problem = Section.__getattribute__, Problem.__getattribute__

    def of_section(self: Any, name: str) -> Any:
        kind = type(self)
        if kind is Recipe and name in Recipe.model_fields and name not in SECTIONS.values():
            fields.add(name)
        elif kind in SECTIONS and name in kind.model_fields:
            fields.add(f"{SECTIONS[kind]}.{name}")
        return section(self, name)

    def of_problem(self: Any, name: str) -> Any:
        if name in COLUMNS:
            columns.add(name)
        return problem(self, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Section, "__getattribute__", of_section)
        patch.setattr(Problem, "__getattribute__", of_problem)
        yield fields, columns


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[set[str], set[str]]]:
    """What each stage reads, one after the other."""
    recipe, run, loaded = Recipe.model_validate(DATA), RunDir(tmp_path_factory.mktemp("seen")), load(MODEL)
    problems = [Problem(str(n), f"Mia has {n} pens and gets 3 more. How many pens?", str(n + 3)) for n in range(12)]
    part = Set(resolve(recipe.evaluate)[0], PROBLEMS)
    questions = [problem.question for problem in PROBLEMS]

    def measured() -> None:
        Evaluator(recipe, loaded, part, run).run(("base", "tuned"), lambda side: None)
        summarize([part], run)

    work: dict[str, Callable[[], object]] = {
        "generate": lambda: generate(recipe, loaded, problems, wanted(recipe, len(problems)), run),
        "build": lambda: build(recipe, loaded.tokenizer, problems, run),
        "analyze": lambda: analyze(recipe, loaded, problems, run),
        "summary": measured,
        "train": lambda: train(recipe, load(MODEL), run),
        "fuse": lambda: fuse(recipe, load(MODEL), run, questions=questions),
    }
    found = {}
    for stage, do in work.items():
        with recorded() as found[stage]:
            do()
    return found


@pytest.mark.parametrize("stage", ["generate", "build", "train", "summary", "fuse", "analyze"])
def test_every_field_that_a_stage_reads_is_in_its_fingerprint(
    stage: str, seen: dict[str, tuple[set[str], set[str]]]
) -> None:
    fields, columns = seen[stage]
    assert fields - listed(stage) == ({f"train.{name}" for name in UNREAD} if stage == "train" else set())
    assert len(fields & listed(stage)) > 1, "the stage was watched"
    by = {"generate": "question id", "build": "question id", "train": "", "fuse": "", "analyze": "question id answer"}
    assert columns == set(by.get(stage, "question id answer level subject").split())


@contextmanager
def watched(folder: Path) -> Iterator[set[str]]:
    """The names of the files in a folder that anything in this process reads, in whatever language."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.inotify_init1(os.O_NONBLOCK)
    roots = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    watches = {libc.inotify_add_watch(handle, bytes(root), 0x20): root for root in roots}  # IN_OPEN
    found: set[str] = set()
    try:
        yield found
        events = b""
        while True:
            try:
                events += os.read(handle, 65536)
            except BlockingIOError:
                break
        place = 0
        while place < len(events):
            watch, _, _, size = struct.unpack_from("iIII", events, place)
            name = events[place + 16 : place + 16 + size].rstrip(b"\0").decode()
            if name and (watches[watch] / name).is_file():
                found.add(str((watches[watch] / name).relative_to(folder)))
            place += 16 + size
    finally:
        os.close(handle)


CODE = "class Tokens:\n    pass\n"


def byte_level(folder: Path) -> None:
    """A tokenizer in the older form: vocab.json and merges.txt."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps({**vocabulary, "ab": 700}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "tokenizer_class": "Qwen2Tokenizer"}))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="inotify is Linux's")
@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.json and merges.txt", "templates beside it"])
def test_every_file_that_loading_reads_is_in_the_models_fingerprint(form: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "generation_config.json").write_text("{}")
    if form == "vocab.json and merges.txt":
        byte_level(folder)
    if form == "templates beside it":
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    with watched(folder) as read:
        load(folder)
    assert {"config.json", "model.safetensors", "generation_config.json"} <= read
    assert read >= {"merges.txt"} or form != "vocab.json and merges.txt"
    for name in sorted(read):
        content = (folder / name).read_bytes()
        before = model_hash(folder)
        (folder / name).write_bytes(content + b" ")
        assert model_hash(folder) != before, name
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    "name",
    ["merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "qwen.tiktoken", "modeling.py", "sub/layers.py"],
)
def test_tokenizer_and_code_files_are_in_the_models_fingerprint(name: str, tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "model", FAMILIES["Qwen2.5"])
    seen = {model_hash(folder)}
    for content in ("one", "two"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
        seen.add(model_hash(folder))
    assert len(seen) == 3
    (folder / "README.md").write_text("a note")
    (folder / "notes.pdf").write_text("a note")
    assert model_hash(folder) in seen


# What is there of something else is not continued, and what is gone is not current.


MakeRecipe = Callable[..., Recipe]


def test_a_partial_file_of_another_recipe_is_not_continued(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Interrupted with one seed, run with another: the solutions are those of the other alone."""
    first, second = make_recipe(seed=1), make_recipe(seed=2)
    for name in ("first", "second"):
        run_stage({"first": first, "second": second}[name], tmp_path / name, "generate")
    whole = RunDir(tmp_path / "first")
    lines = whole.solutions.read_bytes().splitlines(keepends=True)
    entry = whole.entry("generate")
    assert entry is not None
    whole.record("generate", dataclasses.replace(entry, done=False))
    whole.partial.write_bytes(b"".join(lines[:8]))
    whole.solutions.unlink()
    run_stage(second, whole.root, "generate")
    assert whole.solutions.read_bytes() == RunDir(tmp_path / "second").solutions.read_bytes()
    assert whole.solutions.read_bytes().splitlines(keepends=True)[:8] != lines[:8]


def test_rows_that_are_gone_are_measured_again(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe, run = make_recipe(), RunDir(tmp_path / "run")
    run_stage(recipe, run.root, "evaluate")
    rows = run.rows_of("arithmetic", "base")
    before = rows.read_bytes()
    rows.unlink()
    run.summary.unlink()
    run_stage(recipe, run.root, "evaluate")
    assert rows.read_bytes() == before
