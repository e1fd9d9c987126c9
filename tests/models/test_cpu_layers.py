"""The dense copies of quantized layers on the CPU: same numbers, no parameters, and not everywhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import MODEL
from helpers.loss import flat
from mlx_lm.models import gemma2, llama, qwen2
from mlx_lm.tuner.lora import LoRALinear

from upft_mlx.machine.blas import Blas
from upft_mlx.models.adapters import add_lora
from upft_mlx.models.cpu_layers import (
    DenseHead,
    DenseLinear,
    add_dense_copies,
    add_fast_activations,
    add_updates_in_products,
    swiglu,
)
from upft_mlx.models.load import load
from upft_mlx.recipe.schema import Lora, Quantize
from upft_mlx.sampling.same_logits import same_logits


class Small(nn.Module):
    """Two layers, one of them with a bias."""

    def __init__(self, bits: int) -> None:
        nn.Module.__init__(self)
        mx.random.seed(0)
        self.first = nn.Linear(64, 32, bias=False)
        self.second = nn.Linear(32, 64)
        nn.quantize(self, group_size=32, bits=bits)

    def __call__(self, x: mx.array) -> mx.array:
        hidden: mx.array = self.second(nn.silu(self.first(x)))
        return hidden


@pytest.mark.parametrize("is_fast", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_output_and_gradient_are_those_of_the_quantized_layers(
    bits: int, is_fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("upft_mlx.models.cpu_layers.blas", lambda: Blas("stand-in", is_fast=is_fast))
    plain, fast = Small(bits), Small(bits)
    assert add_dense_copies(fast) == 2
    assert isinstance(fast.first, DenseLinear)
    assert isinstance(fast.first, nn.QuantizedLinear), "what looks for quantized layers finds them"
    x = mx.random.normal((3, 5, 64))

    def gradient(model: Small) -> mx.array:
        found: mx.array = mx.grad(lambda x: mx.square(model(x)).sum())(x)
        return found

    assert mx.allclose(plain(x), fast(x), rtol=1e-5, atol=1e-5)
    expected, found = gradient(plain), gradient(fast)
    assert mx.abs(expected - found).max() <= 1e-5 * mx.abs(expected).max()
    products = count_quantized_products(monkeypatch, lambda: mx.eval(gradient(fast)))
    assert products == (0 if is_fast else 2), "the backward pass is quantized on a slow BLAS only"


def count_quantized_products(monkeypatch: pytest.MonkeyPatch, run: Callable[[], object]) -> int:
    counted = Mock(side_effect=mx.quantized_matmul)
    with monkeypatch.context() as patch:
        patch.setattr(mx, "quantized_matmul", counted)
        run()
    return counted.call_count


def test_a_tied_head_computes_with_a_dense_copy_in_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    mx.random.seed(0)
    model = nn.Sequential(nn.QuantizedEmbedding(96, 64, group_size=32, bits=8))
    head = model.layers[0]
    x = mx.random.normal((3, 64))

    def logits(x: mx.array) -> mx.array:
        return mx.square(head.as_linear(x)).sum()

    expected = logits(x), mx.grad(logits)(x), head(mx.array([1, 5]))
    assert add_dense_copies(model) == 1
    assert isinstance(head, DenseHead)
    found = logits(x), mx.grad(logits)(x), head(mx.array([1, 5]))
    for a, b in zip(expected, found, strict=True):
        assert mx.abs(a - b).max() <= 1e-5 * mx.abs(a).max()
    assert count_quantized_products(monkeypatch, lambda: mx.eval(mx.grad(logits)(x))) == 0


def test_memory_for_some_layers_gives_some_layers_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is a quarter of the memory; each copy takes 8,192 bytes."""
    monkeypatch.setattr("upft_mlx.models.cpu_layers.memory_bytes", lambda: 4 * 8192)
    model = Small(4)
    assert add_dense_copies(model) == 1
    assert sorted(type(layer).__name__ for layer in (model.first, model.second)) == ["DenseLinear", "QuantizedLinear"]


def test_the_copies_are_no_parameters() -> None:
    plain, fast = Small(4), Small(4)
    add_dense_copies(fast)
    names = [list(flat(dict(model.parameters()))) for model in (plain, fast)]  # type: ignore[no-untyped-call]
    assert names[0] == names[1]


def test_other_weights_and_another_precision_are_what_is_computed_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fusing loads rounded scales into a model and tries it in 16 bits: a stale copy would hide what that does."""
    plain, fast = Small(4), Small(4)
    add_dense_copies(fast)
    x = mx.random.normal((3, 64))
    before = fast(x)
    for model in (plain, fast):
        model.load_weights([("first.scales", 2 * model.first.scales)], strict=False)
    assert mx.allclose(fast(x), plain(x), rtol=1e-5, atol=1e-5)
    assert not mx.allclose(fast(x), before, atol=1e-2)
    add_dense_copies(fast)
    with monkeypatch.context() as patch:
        patch.setattr(mx, "quantized_matmul", lambda *_, **__: pytest.fail("not once the copies are made again"))
        assert mx.allclose(fast(x), again := fast(x))
    assert mx.allclose(again, plain(x), rtol=1e-5, atol=1e-5)
    half = Small(4)
    add_dense_copies(half)
    half.set_dtype(mx.float16)
    assert half(x.astype(mx.float16)).dtype == mx.float16


def test_the_copy_is_what_a_loaded_model_computes_with(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(MODEL, quantize=Quantize(bits=4, group_size=32))
    add_lora(loaded, Lora(rank=2), seed=0)
    monkeypatch.setattr(mx, "quantized_matmul", lambda *_, **__: pytest.fail("not with the copy"))
    loaded.model.model.layers[0].mlp.down_proj.linear(mx.zeros((2, 192)))


def test_a_model_with_an_adapter_is_the_same_with_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = []
    for copies in (True, False):
        if not copies:
            monkeypatch.setattr("upft_mlx.models.cpu_layers.add_dense_copies", lambda _: False)
        loaded = load(MODEL, quantize=Quantize(bits=4, group_size=32))
        add_lora(loaded, Lora(rank=2), seed=0)
        layers = [m for _, m in loaded.model.named_modules() if isinstance(m, DenseLinear)]
        assert bool(layers) is copies
        logits.append(loaded.model(mx.array([[5, 6, 7, 8]])))
    assert same_logits(*logits)


def test_a_model_that_is_large_for_the_machine_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 128)
    model = Small(4)
    assert not add_dense_copies(model)
    assert not isinstance(model.first, DenseLinear)


def test_off_the_cpu_and_in_half_precision_layers_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    half = Small(4)
    half.set_dtype(mx.float16)
    assert not add_dense_copies(half)

    class Gpu:
        type = mx.DeviceType.gpu

    model = Small(4)
    monkeypatch.setattr(mx, "default_device", lambda: Gpu)
    assert not add_dense_copies(model)
    assert not isinstance(model.first, DenseLinear)


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16])
def test_an_update_that_is_added_in_its_product_is_mlx_lms(dtype: mx.Dtype) -> None:
    loaded = load(MODEL)
    loaded.model.set_dtype(dtype)
    add_lora(loaded, Lora(rank=4, scale=3.0), seed=0)
    mlx_lms = 0
    for _, layer in loaded.model.named_modules():
        if "lora_a" in layer:
            assert type(layer) is not LoRALinear, "a fresh adapter has the faster layers"
            layer.__class__, mlx_lms = LoRALinear, mlx_lms + 1
    for _, layer in loaded.model.named_modules():
        if "lora_b" in layer:
            layer.lora_b = mx.random.normal(layer.lora_b.shape, key=mx.random.key(1))
    tokens = mx.array([[5, 6, 7, 8]])
    plain = loaded.model(tokens)
    assert mlx_lms > 0
    assert add_updates_in_products(loaded.model) == mlx_lms
    found = loaded.model(tokens)
    assert found.dtype == plain.dtype
    assert same_logits(found, plain)
    if dtype == mx.float16:
        assert mx.array_equal(found, plain), "in 16 bits nothing changes"
    assert add_updates_in_products(loaded.model) == 0, "they do so already"


@pytest.mark.parametrize("trains", [False, True])
def test_the_activation_and_its_gradients_are_exact(trains: bool) -> None:
    gate = mx.array([-200.0, -30.0, -4.0, -1e-3, 0.0, 0.7, 3.0, 60.0, 200.0])
    x = mx.array([1.0, -2.0, 3.0, 0.5, -1.0, 2.0, -0.25, 1.5, 1.0])
    g, y = np.array(gate, np.float64), np.array(x, np.float64)
    sigmoid = 1 / (1 + np.exp(-g))

    def close(found: Any, expected: np.ndarray) -> bool:
        return np.allclose(np.array(found), expected, rtol=1e-5, atol=1e-10)

    assert close(swiglu(gate, x, trains=trains), g * sigmoid * y)

    def weighted(gate: mx.array, x: mx.array) -> mx.array:
        return (swiglu(gate, x, trains=trains) * mx.arange(9)).sum()

    to_gate, to_x = mx.grad(weighted, argnums=(0, 1))(gate, x)
    assert close(to_gate, np.arange(9) * y * sigmoid * (1 + g * (1 - sigmoid)))
    assert close(to_x, np.arange(9) * g * sigmoid)


@pytest.mark.parametrize(("kind", "fast"), [(llama.MLP, True), (qwen2.MLP, True), (gemma2.MLP, False)])
def test_mlps_that_are_swiglu_and_no_others_compute_with_it(
    kind: Callable[..., nn.Module], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = llama.ModelArgs("llama", 16, 1, 32, 2, 1e-5, 9)
    mx.random.seed(0)
    mlp = kind(arguments) if kind is llama.MLP else kind(16, 32)
    x = mx.random.normal((5, 16))

    def gradient(x: mx.array) -> mx.array:
        found: mx.array = mx.grad(lambda x: mx.square(mlp(x)).sum())(x)
        return found

    plain, slope = mlp(x), gradient(x)
    assert add_fast_activations(mlp) == fast
    assert mx.allclose(mlp(x), plain, rtol=1e-5, atol=1e-6)
    assert mx.allclose(gradient(x), slope, rtol=1e-5, atol=1e-5)
    used = Mock(side_effect=swiglu)
    monkeypatch.setattr("upft_mlx.models.cpu_layers.swiglu", used)
    for trains in (True, False):
        mlp.train(trains)
        mlp(x)
        assert [call.kwargs for call in used.mock_calls] == [{"trains": trains}] * fast
        used.reset_mock()
    mlp.set_dtype(mx.float16)
    mlp(x.astype(mx.float16))
    assert not used.called, "in 16 bits nothing changes"
    assert add_fast_activations(mlp) == 0, "they do so already"


def test_each_mlp_of_a_loaded_model_has_the_faster_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, used = load(MODEL), Mock(side_effect=swiglu)
    monkeypatch.setattr("upft_mlx.models.cpu_layers.swiglu", used)
    loaded.model(mx.array([[5, 6]]))
    assert used.call_count == len(loaded.model.layers)
