"""The main job on a real language model: SmolLM2-135M-Instruct with real questions, from sampling to an export.

The model is made by a script of the shared folder from a package on PyPI; the tests skip, with the reason, where either
cannot be had.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest
from conftest import ROOT
from helpers.preview import previewed

from upft_mlx.data.on_disk import recipe_problems
from upft_mlx.dataset.instruction import instructed
from upft_mlx.models.adapters import add_lora, load_adapter
from upft_mlx.models.chat import Renderer
from upft_mlx.models.load import load
from upft_mlx.pipeline import run_stage
from upft_mlx.recipe.schema import Lora, Recipe, Train
from upft_mlx.rows import Solution, TrainingRow, read_rows
from upft_mlx.rundir import RunDir
from upft_mlx.sampling.decoding import Request
from upft_mlx.sampling.sampler import Sampler, sampling_for
from upft_mlx.training.batches import to_examples
from upft_mlx.training.step import Stepper

pytestmark = [pytest.mark.real, pytest.mark.slow]
SHARED = Path(os.environ.get("UPFT_SHARED", ROOT.parent / "shared"))
PREFIX = 16
PROBLEMS = 6
ASKED = [{"role": "user", "content": "What is the capital of France?"}]
BEGUN = "The capital of France is"
"""The model says "The" with 15 % and "L" with 14 %: what rounding may turn is not asked."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's folder, the one that UPFT_SMOLLM2 names or a new one."""
    if made := os.environ.get("UPFT_SMOLLM2"):
        return Path(made)
    script, folder = SHARED / "bin" / "make_smollm2.py", tmp_path_factory.mktemp("smollm2")
    if not script.is_file():
        pytest.skip(f"{script} is not there (set UPFT_SHARED)")
    made_it = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, check=False)
    if made_it.returncode:
        pytest.skip(f"the model cannot be fetched: {made_it.stderr.strip().splitlines()[-1:]}")
    return folder


def shortest(name: str, folders: pytest.TempPathFactory) -> Path:
    """A file with the shortest questions of one in the shared folder: time goes with their tokens."""
    lines = (SHARED / "data" / "benchmarks" / f"{name}.jsonl").read_text().strip().split("\n")
    chosen = sorted(lines, key=lambda line: len(json.loads(line)["question"]))[:PROBLEMS]
    path = folders.mktemp("questions") / f"{name}.jsonl"
    path.write_text("\n".join(chosen) + "\n")
    return path


@pytest.fixture(scope="module")
def recipe_file(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("real") / "real.yaml"
    trained, asked = (shortest(name, tmp_path_factory) for name in ("gsm8k_train", "gsm8k_test"))
    recipe = {
        "model": str(model),
        "problems": {"path": str(trained)},
        "generate": {"max_tokens": 32, "batch_size": PROBLEMS},
        "prefix": {"length": PREFIX, "structure_ratio": 0.2},
        "train": {"steps": 2, "batch_size": 2, "learning_rate": 2e-4, "valid_ratio": 0},
        "evaluate": {
            "max_tokens": 16,
            "benchmarks": [{"name": "gsm8k", "path": str(asked), "limit": 2}],
        },
        "publish": {"fuse": "bf16"},
    }
    path.write_text(json.dumps(recipe))
    return path


@pytest.fixture(scope="module")
def run(recipe_file: Path) -> RunDir:
    """All stages and the export, as a person runs them; the first failure says what was printed."""
    folder = recipe_file.parent / "run"
    for command in (["run"], ["export", "--format", "peft", "--to", str(recipe_file.parent / "peft")]):
        name, *options = command
        arguments = [sys.executable, "-m", "upft_mlx", name, str(recipe_file), "--run-dir", str(folder), *options]
        plain = ["--plain"] if name == "run" else []
        done = subprocess.run([*arguments, *plain], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return RunDir(folder)


def test_prefixes_are_sampled_ids_and_what_full_solutions_begin_with(run: RunDir, recipe_file: Path) -> None:
    solutions = {row.problem_id: row for row in read_rows(run.solutions, Solution)}
    prefixes = [row for row in solutions.values() if row.kind == "prefix"]
    assert len(solutions) == PROBLEMS
    assert len(prefixes) == PROBLEMS - 1
    assert {len(row.completion_ids) for row in prefixes} == {PREFIX}
    recipe = Recipe.model_validate({"name": "real", **json.loads(recipe_file.read_text())})
    recipe = instructed(recipe, Path(recipe.model))
    loaded = load(Path(recipe.model))
    chosen = [p for p in recipe_problems(recipe) if solutions[p.id].kind == "prefix"][:3]
    renderer = Renderer(loaded.tokenizer, recipe.prompt)
    sampler = Sampler(loaded, sampling_for(loaded, recipe.generate.temperature, PROBLEMS))
    asked = [Request(renderer.asked(problem.question), PREFIX + 8, 1, problem.id) for problem in chosen]
    whole = sampler.sample(asked, recipe.seed)
    assert [made.ids[:PREFIX] for made in whole] == [solutions[problem.id].completion_ids for problem in chosen]
    texts = " ".join(row.completion for row in prefixes)
    assert sum(word in texts for word in ("To ", "the ", "number", "total", "need")) >= 3, "it speaks English"


def test_the_loss_falls_on_the_rows_that_were_trained(run: RunDir, model: Path) -> None:
    rows = list(islice(read_rows(run.train, TrainingRow), 3))
    losses = []
    for adapter in (None, run.adapter / "adapters.safetensors"):
        loaded = load(model)
        add_lora(loaded, Lora(), seed=0)
        if adapter is not None:
            loaded.model.load_weights(str(adapter), strict=False)
        losses.append(Stepper(loaded.model, Train()).loss(to_examples(rows, 512)))
    before, after = losses
    assert 0.2 < before < 8
    assert after < before - 0.01


def test_the_fused_model_answers_in_plain_mlx_lm_as_the_adapter_does_here(run: RunDir, model: Path) -> None:
    code = (
        "import sys\nfrom mlx_lm import load, generate\n"
        "model, tokenizer = load(sys.argv[1])\nmodel.set_dtype(__import__('mlx.core').core.float32)\n"
        f"prompt = tokenizer.apply_chat_template({ASKED}, add_generation_prompt=True)\n"
        f"prompt += tokenizer.encode({BEGUN!r}, add_special_tokens=False)\n"
        "print(generate(model, tokenizer, prompt, max_tokens=2))"
    )
    done = subprocess.run([sys.executable, "-c", code, run.fused], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = load(model)
    prompt = loaded.tokenizer.apply_chat_template(ASKED, add_generation_prompt=True)
    prompt += loaded.tokenizer.encode(BEGUN, add_special_tokens=False)
    base = mlx_lm.generate(loaded.model, loaded.tokenizer, prompt, max_tokens=2)
    assert "Paris" in base
    load_adapter(loaded, run.adapter)
    tuned = mlx_lm.generate(loaded.model, loaded.tokenizer, prompt, max_tokens=2)
    assert done.stdout.split() == tuned.split()


def test_the_report_and_the_export_are_whole(run: RunDir) -> None:
    summary = json.loads(run.summary.read_text())["benchmarks"]["gsm8k"]
    assert {side: summary[side]["n"] for side in ("base", "tuned")} == {"base": 2, "tuned": 2}
    versions = json.loads(run.recipe.read_text())["versions"]
    assert versions["blas"]
    exported = mx.load(str(run.root.parent / "peft" / "adapter_model.safetensors"))
    trained = mx.load(str(run.adapter / "adapters.safetensors"))
    assert isinstance(exported, dict)
    assert isinstance(trained, dict)
    assert len(exported) == len(trained) == 30 * 7 * 2


def test_an_eos_after_the_prefix_has_most_of_the_loss_and_the_preview_says_so(
    model: Path, recipe_file: Path, tmp_path: Path
) -> None:
    """As earlier versions did by default: the bare question, the template, an EOS, 60 % of a prefix row's loss."""
    recipe = Recipe.model_validate(
        {
            "model": str(model),
            "problems": json.loads(recipe_file.read_text())["problems"],
            "prompt": {"instruction": "{question}"},
            "prefix": {"length": PREFIX, "structure_ratio": 0.0, "template": "paper", "eos": True},
            "train": {"valid_ratio": 0},
        }
    )
    for stage in ("generate", "build"):
        run_stage(recipe, tmp_path, stage)
    view = previewed(recipe, tmp_path, model=True)["base_view"]
    assert view["share"]["EOS"] == pytest.approx(0.60, abs=0.05)
    assert view["most"] == "EOS"
