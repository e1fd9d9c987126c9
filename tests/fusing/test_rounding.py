"""Rounding for a layer's outputs: laws on small matrices, and MLX's own packing as the oracle."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import MODEL
from helpers.adapter import Q4, run, write_adapter
from helpers.families import write_family
from hypothesis import given, settings
from hypothesis import strategies as st

from upft_mlx.fusing.formats import candidate_formats, fused_layer, input_size
from upft_mlx.fusing.fuser import Fuser
from upft_mlx.fusing.moments import second_moments
from upft_mlx.fusing.rounding import Matrix, feedback, fit_scales, pack, round_bfloat16, round_float16, unpack
from upft_mlx.models.adapters import adapter_weights, add_lora
from upft_mlx.models.load import load
from upft_mlx.recipe.schema import Lora, Recipe
from upft_mlx.rows import TrainingRow, write_json, write_rows
from upft_mlx.rundir import RunDir
from upft_mlx.sampling.same_logits import scalar
from upft_mlx.training.batches import Example
from upft_mlx.training.checkpoints import save_safetensors

__all__ = ["run"]
RNG = np.random.default_rng(0)


def inputs(tokens: int, size: int) -> Matrix:
    """Correlated, as a network's are: few directions hold most of it."""
    mixing = RNG.normal(size=(size, size)) * np.geomspace(1, 0.01, size)[:, None]
    return (RNG.normal(size=(tokens, size)) @ mixing).astype(np.float32)


def loss(wanted: Matrix, made: Matrix, x: Matrix) -> float:
    return float(np.square((made - wanted) @ x.T).sum())


def to_tenths(part: Matrix, columns: object) -> Matrix:
    return (np.round(part * 10) / 10).astype(np.float32)


@pytest.mark.parametrize("size", [64, 200])
def test_feedback_keeps_outputs_better_than_nearest_and_stays_on_the_grid(size: int) -> None:
    x, wanted = inputs(500, size), RNG.normal(size=(32, size)).astype(np.float32)
    made = feedback(wanted, [x.T @ x], to_tenths)
    assert np.allclose(np.round(made * 10), made * 10, atol=1e-4)
    assert loss(wanted, made, x) < 0.3 * loss(wanted, to_tenths(wanted, None), x)


def test_feedback_without_correlations_is_nearest_rounding() -> None:
    wanted = RNG.normal(size=(8, 96)).astype(np.float32)
    assert np.array_equal(feedback(wanted, [np.eye(96, dtype=np.float32)], to_tenths), to_tenths(wanted, None))


def test_blocks_of_columns_are_rounded_by_themselves() -> None:
    x, wanted = inputs(300, 64), RNG.normal(size=(8, 64)).astype(np.float32)
    left, right = x[:, :40], x[:, 40:]
    made = feedback(wanted, [left.T @ left, right.T @ right], to_tenths)
    assert np.array_equal(made[:, :40], feedback(wanted[:, :40], [left.T @ left], to_tenths))
    assert np.array_equal(made[:, 40:], feedback(wanted[:, 40:], [right.T @ right], to_tenths))


def test_a_block_that_no_input_reaches_is_rounded_all_the_same() -> None:
    wanted = RNG.normal(size=(4, 16)).astype(np.float32)
    assert np.array_equal(feedback(wanted, [np.zeros((16, 16), np.float32)], to_tenths), to_tenths(wanted, None))


def test_scales_and_biases_hold_what_they_can_hold_exactly() -> None:
    """A change that is a change of scales and biases is found; anything else is approached."""
    codes, x = RNG.integers(0, 16, (24, 64)).astype(np.float32), inputs(500, 64)
    scales, biases = (0.01 * RNG.normal(size=(24, 2)).astype(np.float32) for _ in range(2))
    delta = np.repeat(scales, 32, axis=1) * codes + np.repeat(biases, 32, axis=1)
    found_scales, found_biases = fit_scales(delta, codes, [x.T @ x], 32)
    made = np.repeat(found_scales, 32, axis=1) * codes + np.repeat(found_biases, 32, axis=1)
    assert loss(delta, made, x) < 1e-5 * loss(delta, np.zeros_like(delta), x)
    other = (0.01 * RNG.normal(size=(24, 64))).astype(np.float32)
    found_scales, found_biases = fit_scales(other, codes, [x.T @ x], 32)
    made = np.repeat(found_scales, 32, axis=1) * codes + np.repeat(found_biases, 32, axis=1)
    assert loss(other, made, x) < loss(other, np.zeros_like(other), x)


def test_moments_that_rounding_made_slightly_negative_are_fitted_all_the_same() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 64)) * np.where(np.arange(64) < 32, 1.0, 0.0)  # nothing reaches the second group
    moments = (x.T @ x - 1e-7 * np.eye(64)).astype(np.float32)
    codes = rng.integers(0, 16, (4, 64)).astype(np.float32)
    delta = np.repeat(rng.normal(size=(4, 2)), 32, axis=1).astype(np.float32)
    scales, biases = fit_scales(delta, codes, [moments], 32)
    assert np.isfinite(scales).all()
    assert np.isfinite(biases).all()
    assert np.allclose(biases[:, 0], delta[:, 0], rtol=0.01), "the group that inputs reach keeps its change"


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_codes_are_packed_as_mlx_packs_them(bits: int) -> None:
    words, scales, biases = mx.quantize(mx.random.normal((8, 128)), 64, bits)
    codes = unpack(np.array(words), bits)
    assert codes.shape == (8, 128)
    assert np.array_equal(pack(codes, bits), np.array(words))
    expected = np.array(mx.dequantize(words, scales, biases, 64, bits))
    assert np.allclose(
        np.repeat(np.array(scales), 64, 1) * codes + np.repeat(np.array(biases), 64, 1), expected, atol=1e-6
    )


@given(st.lists(st.floats(-65000, 65000, width=32), min_size=1, max_size=20))
@settings(max_examples=50)
def test_16_bit_rounding_is_mlxs(values: list[float]) -> None:
    array = np.array([values], dtype=np.float32)
    for ours, theirs in ((round_bfloat16, mx.bfloat16), (round_float16, mx.float16)):
        assert np.array_equal(ours(array), np.array(mx.array(array).astype(theirs).astype(mx.float32)))


class Two(nn.Module):
    """Two layers, the second of which sees what the first makes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.embed = nn.Embedding(16, 4)
        self.first, self.second = nn.Linear(4, 6, bias=False), nn.Linear(6, 3, bias=False)

    def __call__(self, tokens: mx.array) -> mx.array:
        result: mx.array = self.second(self.first(self.embed(tokens)))
        return result


@pytest.mark.parametrize("budget", [2**30, 1])
def test_moments_are_those_of_the_inputs_however_many_passes(monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    monkeypatch.setattr("upft_mlx.fusing.moments.MOMENTS_BYTES", budget)
    model = Two()
    layers: dict[str, nn.Module] = {"first": model.first, "second": model.second}
    rows = [Example("a", [1, 2, 3], 1), Example("b", [4, 5], 1)]
    passes: list[int] = []
    found = dict(second_moments(model, layers, rows, lambda layer: int(layer.weight.shape[1]), passes.append))
    x = np.array(model.embed(mx.array([1, 2, 3, 4, 5])))
    assert np.allclose(found["first"][0], x.T @ x, rtol=1e-4)
    y = x @ np.array(model.first.weight).T
    assert np.allclose(found["second"][0], y.T @ y, rtol=1e-3, atol=1e-6)
    assert passes == [1, 2]
    assert model.first is layers["first"]


def test_moments_compute_no_layer_after_the_watched_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """In five passes, as for a 7B model, later layers and the head were 41 % of the work."""
    monkeypatch.setattr("upft_mlx.fusing.moments.MOMENTS_BYTES", 1)
    model, made = Two(), 1_000_000
    model.second = nn.Linear(6, made, bias=False)
    mx.eval(model.second.weight)
    layers: dict[str, nn.Module] = {"first": model.first, "second": model.second}
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    for _ in second_moments(model, layers, [Example("a", [1, 2, 3], 1)], lambda layer: int(layer.weight.shape[1])):
        assert mx.get_peak_memory() - before < made, "4 MB for each of 3 tokens where the second layer is computed"


@pytest.mark.parametrize("form", ["base", "mixed-6"])
def test_a_layer_that_is_never_called_is_rounded_by_itself(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma 3n has keys in layers that take those of others: fusing it ended in a ValueError of NumPy's."""
    monkeypatch.setattr("upft_mlx.fusing.fidelity.GREEDY_TOKENS", 2)
    loaded = load(write_family("gemma3n", tmp_path / "model"), quantize=Q4)
    unused = "model.language_model.layers.3.self_attn.k_proj"
    run = RunDir(tmp_path / "run")
    row = TrainingRow("a/0", "a", 0, "prefix", "", "", [16, 17, 18], [20, 30])
    for path in (run.train, run.valid):
        write_rows(path, [row])
    write_json(run.adapter / "adapter_config.json", add_lora(loaded, Lora(rank=2), seed=0))
    save_safetensors(run.adapter / "adapters.safetensors", adapter_weights(loaded.model))
    recipe = Recipe.model_validate({"model": str(loaded.path), "problems": {"builtin": "arithmetic"}})
    fuser = Fuser(recipe, load(loaded.path, quantize=Q4), run)
    fuser.apply(next(found for found in fuser.formats if found.name == f"{form}-fitted"))
    made, inner = dict(fuser.loaded.model.named_modules())[unused], fuser.layers[unused].linear
    one, other = (mx.dequantize(m.weight, m.scales, m.biases, m.group_size, m.bits) for m in (made, inner))
    assert mx.allclose(one, other, atol=1e-2), "it has no update: only what rounds it differs"


@pytest.mark.parametrize("name", ["mixed-6", "mixed-8", "fp16", "bf16", "base"])
def test_a_layers_outputs_are_nearer_with_fitting(run: RunDir, name: str) -> None:
    loaded = write_adapter(run, 0.0005 if name == "base" else 0.02, Q4)
    loaded.model.set_dtype(mx.float32)
    layers = {n: m for n, m in loaded.model.named_modules() if hasattr(m, "fuse")}
    path = "model.layers.1.mlp.up_proj"
    layer, x = layers[path], inputs(400, input_size(layers[path]))
    wanted = layer(mx.array(x))
    by_name = {form.name: form for form in candidate_formats(loaded, layers)}
    off = {}
    for suffix in ("", "-fitted"):
        fused = fused_layer(layer, by_name[name + suffix], [x.T @ x] if suffix else None)
        fused.set_dtype(mx.float32)
        off[suffix] = scalar(mx.square(fused(mx.array(x)) - wanted).sum())
    assert off["-fitted"] < 0.7 * off[""]


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_an_update_that_scales_and_biases_can_hold_is_held_as_large_as_it_is(scale: float) -> None:
    """An update that is the same for all columns of a group is a change of its bias, times the adapter's scale."""
    loaded = load(MODEL, quantize=Q4)
    add_lora(loaded, Lora(rank=2, scale=scale), seed=0)
    loaded.model.set_dtype(mx.float32)
    layer = loaded.model.layers[1].self_attn.q_proj
    size = input_size(layer)
    assert size == 64, "two groups"
    layer.lora_a = mx.array(np.repeat(np.eye(2, dtype=np.float32), 32, axis=0))
    layer.lora_b = mx.array((0.1 * RNG.normal(size=(2, layer.lora_b.shape[1]))).astype(np.float32))
    x = inputs(300, size)
    base, wanted = layer.linear(mx.array(x)), layer(mx.array(x))
    form = next(form for form in candidate_formats(loaded, {"q": layer}) if form.name == "base-fitted")
    fused = fused_layer(layer, form, [x.T @ x])
    fused.set_dtype(mx.float32)
    off, effect = (scalar(mx.square(found - wanted).sum()) for found in (fused(mx.array(x)), base))
    assert off < 1e-4 * effect
