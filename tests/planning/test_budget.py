"""Planned peak memory is what MLX measures; what does not fit is refused with what would."""

from __future__ import annotations

import gc
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from helpers.adapter import Q4
from helpers.families import write_family
from helpers.models import write_model
from mlx.utils import tree_flatten

from upft_mlx.data.problems import Problem
from upft_mlx.dataset.build import build
from upft_mlx.dataset.prefix import wanted
from upft_mlx.fusing.fuse import fuse
from upft_mlx.models.adapters import add_lora
from upft_mlx.models.architecture import read_architecture
from upft_mlx.models.chat import Renderer
from upft_mlx.models.load import load, load_tokenizer
from upft_mlx.planning.budget import MemoryPlan, another_mac, changed, this_machine
from upft_mlx.planning.lengths import measure_prompts, measure_solutions
from upft_mlx.planning.memory import Machine, SamplingLoad, TrainingPass, fusing_peak, sampling_peak, training_peak
from upft_mlx.recipe.schema import Lora, Recipe, Train
from upft_mlx.rows import TrainingRow, read_rows
from upft_mlx.rundir import RunDir
from upft_mlx.sampling.decoding import Request
from upft_mlx.sampling.draw import Sampling
from upft_mlx.sampling.generate import generate
from upft_mlx.sampling.sampler import Sampler
from upft_mlx.training.batches import Example
from upft_mlx.training.movement import measure
from upft_mlx.training.step import Stepper
from upft_mlx.training.train import train

LARGE = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "vocab_size": 8192}
COMBINATIONS: dict[str, dict[str, Any]] = {
    # model's shape and bits; words of a question; recipe
    "4 bits": {"shape": LARGE},
    "8 bits, one at a time": {
        "shape": LARGE,
        "bits": 8,
        "train": {"micro_batch_size": 1},
        "generate": {"batch_size": 8},
    },
    "no quantization": {"shape": LARGE, "bits": None, "lora": {"rank": 32}, "train": {"batch_size": 6}},
    "deep, whole batch": {"shape": {**LARGE, "num_hidden_layers": 8}, "train": {"micro_batch_size": 16}, "words": 20},
    "wide": {"shape": {**LARGE, "hidden_size": 512, "num_hidden_layers": 2}, "words": 20, "prefix": {"length": 8}},
    "long questions": {"shape": LARGE, "words": 150, "train": {"batch_size": 4}},
    "long prefixes": {"shape": LARGE, "prefix": {"length": 48}, "train": {"micro_batch_size": 4}, "words": 30},
    "top layers": {"shape": LARGE, "lora": {"num_layers": 2, "rank": 8}, "train": {"micro_batch_size": 8}},
    "checkpointing": {"shape": LARGE, "train": {"grad_checkpoint": True, "micro_batch_size": 8}, "words": 60},
    "full solutions": {
        "shape": {**LARGE, "tie_word_embeddings": False},
        "method": "sft",
        "ends": 200,
        "generate": {"max_tokens": 80},
        "words": 20,
    },
}


def questions(words: int) -> list[Problem]:
    rng = random.Random(words)
    names = ["one", "two", "three", "apples", "pears", "how", "many", "left", "buys", "each"]
    lengths = [rng.randint(words * 2 // 3, words) for _ in range(32)]
    return [Problem(str(n), " ".join(rng.choice(names) for _ in range(k))) for n, k in enumerate(lengths)]


def peak_of(work: Callable[[], object]) -> int:
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    work()
    return mx.get_peak_memory() - before


def recipe_for(folder: Path, given: dict[str, Any]) -> Recipe:
    settings = {
        name: given.get(name, {})
        for name in ("generate", "prefix", "lora", "train", "method")
        if name in given or name != "method"
    }
    settings["generate"] = {"batch_size": 16, "max_tokens": 40, **settings["generate"]}
    settings["prefix"] = {"structure_ratio": 0.0, **settings["prefix"]}
    settings["train"] = {"steps": 1, "batch_size": 16, "valid_ratio": 0.0, "save": "last", **settings["train"]}
    return Recipe.model_validate({"model": str(folder), "problems": {"builtin": "arithmetic"}, **settings})


@pytest.mark.slow
@pytest.mark.parametrize("name", COMBINATIONS)
def test_planned_peaks_are_within_15_percent_of_those_measured(name: str, tmp_path: Path) -> None:
    given = COMBINATIONS[name]
    folder = write_model(
        tmp_path / "model", bits=given.get("bits", 4), ends=given.get("ends", 0), **given.get("shape", {})
    )
    recipe, problems, run = recipe_for(folder, given), questions(given.get("words", 40)), RunDir(tmp_path / "run")
    run.root.mkdir()
    tokenizer = load_tokenizer(folder)
    renderer = Renderer(tokenizer, recipe.prompt)

    def memory_plan() -> MemoryPlan:
        return MemoryPlan(
            read_architecture(folder),
            measure_prompts(len(problems), lambda n: problems[n].question, renderer.ids),
            measure_prompts(len(problems), lambda n: problems[n].question + recipe.prefix.template_text, renderer.ids),
            measure_solutions(recipe, problems, tokenizer, run, None),
            {},
            this_machine(),
        )

    def trained(run: RunDir) -> int:
        def work() -> None:
            build(recipe, tokenizer, problems, run)
            loaded = load(folder)
            train(recipe, loaded, run)
            measure(recipe, loaded, problems, (), run)

        return peak_of(work)

    asked = wanted(recipe, len(problems))
    measured = {"generate": peak_of(lambda: generate(recipe, load(folder), problems, asked, run))}
    copies = [RunDir(shutil.copytree(run.root, tmp_path / f"again-{number}")) for number in range(3)]
    measured["train"] = trained(run)
    planned = memory_plan().peaks(recipe)
    for again in copies:
        if planned["train"] <= 1.15 * measured["train"]:
            break
        measured["train"] = max(measured["train"], trained(again))  # MLX's thread frees at varying times: 2 % scatter
    for stage, peak in measured.items():
        print(
            f"{name:18} {stage:9} planned {planned[stage] / 1e6:7.1f} MB  measured {peak / 1e6:7.1f} MB  "
            f"{planned[stage] / peak - 1:+.1%}"
        )
    for stage, peak in measured.items():
        assert planned[stage] == pytest.approx(peak, rel=0.15), stage


LOADS = {  # sequences decoded together, prompts, completions of each, tokens of a prompt, shared ones, tokens decoded
    "prefixes, one batch": SamplingLoad(16, 16, 1, 80, 16, 16, end_together=True),
    "prefixes, two small batches": SamplingLoad(4, 8, 1, 80, 16, 16, end_together=True),
    "two batches": SamplingLoad(16, 32, 1, 80, 16, 48),
    "two batches, each ends at once": SamplingLoad(16, 32, 1, 80, 16, 47),
    "many batches": SamplingLoad(8, 32, 1, 80, 16, 48),
    "a large batch": SamplingLoad(32, 48, 1, 48, 16, 48),
    "several of each prompt": SamplingLoad(16, 12, 4, 80, 16, 48),
    "long prompts": SamplingLoad(8, 16, 1, 316, 16, 32),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LOADS)
def test_planned_peaks_of_sampling_are_within_15_percent_whatever_the_batch(name: str, tmp_path: Path) -> None:
    given, rng = LOADS[name], random.Random(0)
    ends = 0 if given.end_together else 500 if "at once" in name else 25  # of 600 tokens
    folder = write_model(tmp_path / "model", ends=ends)
    start = [*range(40, 40 + given.shared)]
    own = given.prompt_tokens - given.shared
    prompts = [[*start, *(rng.randrange(200, 600) for _ in range(own))] for _ in range(given.prompts)]
    requests = [Request(ids, given.max_tokens, given.samples) for ids in prompts]
    settings = Sampling(0.6, batch_size=given.batch_size)
    measured = peak_of(lambda: Sampler(load(folder), settings).sample(requests, 1))
    planned = sampling_peak(read_architecture(folder), given, this_machine())
    print(f"{name}: planned {planned / 1e6:.1f} MB, measured {measured / 1e6:.1f} MB, {planned / measured - 1:+.1%}")
    assert planned == pytest.approx(measured, rel=0.15)


_OWN = {"hidden_size": 128, "intermediate_size": 352, "head_dim": 32}
_STATES = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_conv_kernel_dim": 4,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "4 of 8 experts": ("qwen3_moe", {**_OWN, "num_hidden_layers": 4, "num_experts": 8, "num_experts_per_tok": 4}),
    "linear attention": (
        "qwen3_next",
        {**_OWN, **_STATES, "num_hidden_layers": 4, "full_attention_interval": 2, "linear_value_head_dim": 32},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "checkpoint"), [(name, c) for name in KINDS for c in (False, True)])
def test_planned_peaks_of_experts_and_of_linear_attention_are_within_15_percent(
    name: str, checkpoint: bool, tmp_path: Path
) -> None:
    kind, shape = KINDS[name]
    folder = write_family(kind, tmp_path / "model", **shape)
    model, loaded, lora = read_architecture(folder, Q4), load(folder, quantize=Q4), Lora(rank=8)
    rng, count, tokens, trained = random.Random(0), 8, 96, 16
    rows = [[rng.randrange(16, 600) for _ in range(tokens + 1)] for _ in range(count)]
    examples = [Example("", ids, len(ids) - trained) for ids in rows]
    held = sum(array.nbytes for array in dict(tree_flatten(loaded.model.parameters())).values())
    add_lora(loaded, lora, 1)
    loaded.model.train()
    stepper = Stepper(loaded.model, Train(batch_size=count, micro_batch_size=count, grad_checkpoint=checkpoint))
    measured = peak_of(lambda: [stepper.step(examples, 1e-4, 1) for _ in range(2)]) + held
    one = TrainingPass(count, tokens, 0, count * trained, accumulates=False)
    machine = Machine(is_gpu=True)  # no dense copies: they are in no term
    planned = training_peak(replace(model, float_bytes=4), lora, one, machine, checkpoint=checkpoint)
    print(f"{name}, {checkpoint}: planned {planned / 1e6:.1f} MB, measured {measured / 1e6:.1f} MB")
    assert planned == pytest.approx(measured, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(("way", "bits", "layers"), [("mixed", 4, 2), ("bf16", 4, 2), ("base", None, 4)])
def test_planned_peaks_of_fusing_are_near_those_measured(
    way: str, bits: int | None, layers: int, tmp_path: Path
) -> None:
    """The layers are most of the model, as in a large one."""
    shape = {**LARGE, "num_hidden_layers": layers, "vocab_size": 600}
    folder = write_model(tmp_path / "model", bits=bits, **shape)
    recipe = recipe_for(folder, {"train": {"steps": 1, "batch_size": 2}})
    recipe = changed(recipe, {"publish.fuse": way, "publish.min_retained": 0.0})
    problems, run = questions(10)[:6], RunDir(tmp_path / "run")
    run.root.mkdir()
    generate(recipe, load(folder), problems, wanted(recipe, len(problems)), run)
    build(recipe, load_tokenizer(folder), problems, run)
    train(recipe, load(folder), run)
    measured = peak_of(lambda: fuse(recipe, load(folder), run))
    sixteen = way == "bf16" or bits is None
    prompt = max(len(row.prompt_ids) for row in read_rows(run.train, TrainingRow))
    planned = fusing_peak(read_architecture(folder), recipe.lora, this_machine(), prompt, all_float32=sixteen)
    print(f"fuse {way} of {bits or 'no'} bits: planned {planned / 1e6:.1f} MB, measured {measured / 1e6:.1f} MB")
    assert planned == pytest.approx(measured, rel=0.15)


def test_macs_give_the_gpu_two_thirds_or_three_quarters() -> None:
    assert another_mac(16).bytes == int(16 * 2**30 * 2 / 3)
    assert another_mac(64).bytes == 48 * 2**30
