"""Which stages run again when something changes: one table over every field, and what the stages are seen to read: what
is read, as it is seen to be read.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import MODEL
from helpers.models import write_model
from helpers.staleness import PROBLEMS, TABLE, UPFT
from helpers.templates import FAMILIES, write_tokenizer

from upft_mlx.data.benchmarks import BenchmarkSet, resolve
from upft_mlx.data.problems import Problem
from upft_mlx.dataset.build import build
from upft_mlx.dataset.prefix import wanted
from upft_mlx.evaluation.evaluate import Evaluator
from upft_mlx.evaluation.summary import summarize
from upft_mlx.fusing.fuse import fuse
from upft_mlx.models.find import model_hash
from upft_mlx.models.load import load
from upft_mlx.pipeline import run_stage
from upft_mlx.recipe.fields import Section
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rundir import RunDir
from upft_mlx.sampling.generate import generate
from upft_mlx.studies.analyze import analyze
from upft_mlx.training.stage import UNREAD
from upft_mlx.training.train import train


@cache
def listed(stage: str) -> set[str]:
    """The fields that the table gives a stage."""
    return {path for path, _, stages in TABLE if stage in stages.split()}


DATA: dict[str, Any] = {
    **UPFT,
    "generate": {"max_tokens": 40, "batch_size": 4},
    "prefix": {"length": 6, "structure_ratio": 0.3, "template": "paper"},
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
    part = BenchmarkSet(resolve(recipe.evaluate)[0], PROBLEMS)
    questions = [problem.question for problem in PROBLEMS]

    def measured() -> None:
        Evaluator(recipe, loaded, part, run).run(("base", "tuned"), lambda variant: None)
        summarize([part], run, recipe.evaluate)

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
    by = {
        "generate": "question id",
        "build": "question id answer",
        "train": "",
        "fuse": "",
        "analyze": "question id answer",
    }
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


MakeRecipe = Callable[..., Recipe]


# What is there of something else is not continued, and what is gone is not current.


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
