"""Fusing: the fused model is the adapter's model, stock mlx-lm loads it, and what rounding loses is measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import MODEL
from mlx_lm.utils import load as mlx_lm_load

from upft_mlx.adapters import adapter_weights, add_lora, load_adapter
from upft_mlx.checkpoints import save_safetensors
from upft_mlx.errors import ModelError, UpftError
from upft_mlx.events import Event, Note
from upft_mlx.fidelity import agreement, compare, mean_kl
from upft_mlx.fuse import fuse
from upft_mlx.loss import scalar
from upft_mlx.models import Loaded, load
from upft_mlx.recipe import Lora, Quantize, Recipe
from upft_mlx.rows import TrainingRow, write_json, write_rows
from upft_mlx.rundir import RunDir

MakeRecipe = Callable[..., Recipe]
TOKENS = mx.array([[11, 12, 13, 14, 15]])
Q4 = Quantize(bits=4, group_size=32)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run_dir = RunDir(tmp_path / "run")
    rng = np.random.default_rng(0)
    write_rows(
        run_dir.valid,
        [
            TrainingRow(f"{i}/0", str(i), 0, "prefix", "", "", rng.integers(10, 400, 9).tolist(), [20, 30, 40])
            for i in range(6)
        ],
    )
    write_rows(run_dir.train, [])
    return run_dir


def write_adapter(run: RunDir, size: float, quantize: Quantize | None = None) -> Loaded:
    """An adapter of random weights; returns the model with it on."""
    loaded = load(MODEL, quantize=quantize)
    config = add_lora(loaded, Lora(rank=4, scale=2.0), seed=0)
    mx.random.seed(3)
    arrays = {
        name: size * mx.random.normal(array.shape) if name.endswith("lora_b") else array
        for name, array in adapter_weights(loaded.model).items()
    }
    write_json(run.adapter / "adapter_config.json", config)
    save_safetensors(run.adapter / "adapters.safetensors", arrays)
    fresh = load(MODEL, quantize=quantize)
    load_adapter(fresh, run.adapter)
    return fresh


@pytest.mark.parametrize("quantize", [None, Q4, Quantize(bits=8, group_size=32)])
def test_the_fused_model_is_the_adapters_model_in_stock_mlx_lm(
    make_recipe: MakeRecipe, run: RunDir, quantize: Quantize | None
) -> None:
    adapted = write_adapter(run, 0.02, quantize)
    chosen = fuse(make_recipe(publish={"fuse": "fp16"}), load(MODEL, quantize=quantize), run)
    fused, *_ = mlx_lm_load(str(run.fused))
    fused.set_dtype(mx.float32)
    expected, base = adapted.model(TOKENS), load(MODEL, quantize=quantize).model(TOKENS)
    found = fused(TOKENS)
    off = scalar(mx.abs(found - expected).max())
    effect = scalar(mx.abs(base - expected).max())
    assert off < 0.02 * effect
    assert chosen.retained > 0.99


def test_the_fused_folder_answers_like_any_model(make_recipe: MakeRecipe, run: RunDir) -> None:
    write_adapter(run, 0.001, Q4)
    fuse(make_recipe(), load(MODEL, quantize=Q4), run)
    reloaded = load(run.fused)
    original = load(MODEL)
    messages = [{"role": "user", "content": "Ann has 3 apples."}]
    ids = [m.tokenizer.apply_chat_template(messages, add_generation_prompt=True) for m in (reloaded, original)]
    assert ids[0] == ids[1]
    assert reloaded.eos_ids == original.eos_ids
    assert not list(run.root.glob(".fused*"))


def test_the_bases_own_four_bits_lose_a_small_update_and_auto_notices(make_recipe: MakeRecipe, run: RunDir) -> None:
    write_adapter(run, 0.0005, Q4)
    chosen = fuse(make_recipe(), load(MODEL, quantize=Q4), run)
    facts = json.loads(run.fidelity.read_text())
    by_way = {candidate["fuse"]: candidate for candidate in facts["candidates"]}
    assert by_way["base"]["retained"] < 0.5
    assert chosen.fuse == "fp16"
    assert by_way["fp16"]["retained"] > 0.9
    assert by_way["base"]["bytes"] < by_way["fp16"]["bytes"]
    config = json.loads((run.fused / "config.json").read_text())
    assert config["quantization"]["model.layers.0.self_attn.q_proj"] is False


def test_auto_stays_small_where_that_keeps_the_effect(make_recipe: MakeRecipe, run: RunDir) -> None:
    write_adapter(run, 0.05, Quantize(bits=8, group_size=32))
    chosen = fuse(make_recipe(), load(MODEL, quantize=Quantize(bits=8, group_size=32)), run)
    assert chosen.fuse == "base"
    assert chosen.retained > 0.9
    fused, *_ = mlx_lm_load(str(run.fused))
    assert fused.model.layers[0].self_attn.q_proj.bits == 8


def test_a_way_that_was_asked_for_and_loses_the_effect_is_refused(make_recipe: MakeRecipe, run: RunDir) -> None:
    write_adapter(run, 0.0005, Q4)
    with pytest.raises(UpftError, match=r"fusing as base keeps .* set publish\.fuse: auto"):
        fuse(make_recipe(publish={"fuse": "base"}), load(MODEL, quantize=Q4), run)
    assert not run.fused.exists()
    fuse(make_recipe(publish={"fuse": "base", "min_retained": 0.0}), load(MODEL, quantize=Q4), run)
    assert run.fused.exists()


def test_an_adapter_without_effect_counts_as_kept(make_recipe: MakeRecipe, run: RunDir) -> None:
    write_adapter(run, 0.0)
    assert fuse(make_recipe(), load(MODEL), run).retained == 1.0


def test_auto_says_so_when_nothing_keeps_enough(
    make_recipe: MakeRecipe, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_adapter(run, 0.0005, Q4)
    seen: list[Event] = []
    fuse(make_recipe(publish={"min_retained": 1.0}), load(MODEL, quantize=Q4), run, seen.append)
    assert any(isinstance(e, Note) and "the adapter itself is in adapter/" in e.text for e in seen)


def test_retained_is_one_for_the_adapter_and_zero_for_the_base() -> None:
    def of(*rows: list[float]) -> list[mx.array]:
        return [mx.log(mx.array([row])) for row in rows]

    base, adapter = of([0.5, 0.5], [0.9, 0.1]), of([0.25, 0.75], [0.9, 0.1])
    assert mean_kl(adapter, base) == pytest.approx((0.25 * np.log(0.5) + 0.75 * np.log(1.5)) / 2, rel=1e-5)
    assert compare("x", base, adapter, adapter, 1).retained == pytest.approx(1)
    assert compare("x", base, adapter, base, 1).retained == pytest.approx(0)
    assert agreement(adapter, of([0.9, 0.1], [0.8, 0.2])) == 0.5


def test_an_adapter_of_another_model_is_refused(make_recipe: MakeRecipe, run: RunDir) -> None:
    write_adapter(run, 0.001)
    arrays = mx.load(str(run.adapter / "adapters.safetensors"))
    assert isinstance(arrays, dict)
    name = next(name for name in arrays if name.endswith("lora_a"))
    save_safetensors(run.adapter / "adapters.safetensors", {**arrays, name: mx.zeros((3, 4))})
    with pytest.raises(ModelError, match=rf"{name} \(3, 4\) does not fit .*of another model"):
        fuse(make_recipe(), load(MODEL), run)
    (run.adapter / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match="cannot be put on"):
        fuse(make_recipe(), load(MODEL), run)


@pytest.mark.parametrize("size", [1e-5, 1e-3, 0.1, 2.0])
def test_divergences_are_exact_however_small(size: float) -> None:
    """Against float64: an update of 1e-5 has an effect of 1e-10 nats, which rounding must not swallow."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 500)) * 3
    moved = logits + size * rng.normal(size=(4, 500))

    def log_softmax(x: Any) -> Any:
        return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))

    p, q = log_softmax(logits), log_softmax(moved)
    expected = (np.exp(p) * (p - q)).sum(axis=-1).mean()
    found = mean_kl([mx.array(p.astype(np.float32))], [mx.array(q.astype(np.float32))])
    assert found == pytest.approx(expected, rel=0.02)
    assert mean_kl([mx.array(p.astype(np.float32))], [mx.array(p.astype(np.float32))]) == 0


def test_on_a_gpu_the_effect_is_measured_past_the_rounding_of_activations(
    make_recipe: MakeRecipe, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the model computes in 16 bits, whose rounding hides so small an update altogether."""
    monkeypatch.setattr(mx, "default_device", lambda: SimpleNamespace(type=mx.DeviceType.gpu))
    write_adapter(run, 0.0005, Q4)
    chosen = fuse(make_recipe(), load(MODEL, quantize=Q4), run)
    assert chosen.fuse == "fp16"
    assert chosen.retained > 0.9
    arrays = mx.load(str(run.fused / "model.safetensors"))
    assert isinstance(arrays, dict)
    assert {array.dtype for array in arrays.values()} == {mx.float16, mx.uint32}
