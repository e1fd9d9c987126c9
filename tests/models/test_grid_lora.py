"""LoRA on the base's grid: the layer against mlx-lm's and against finite differences, and what has no such grid."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import MODEL
from helpers.adapter import Q4
from mlx.utils import tree_flatten
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRALinear
from mlx_lm.tuner.utils import linear_to_lora_layers

from upft_mlx.errors import ModelError
from upft_mlx.models.adapters import adapter_weights, add_lora
from upft_mlx.models.architecture import from_config
from upft_mlx.models.grid_lora import GridLora, is_on_grid, moved_biases, put_on_grid, take_off_grid
from upft_mlx.models.load import Loaded, load
from upft_mlx.planning.preflight import refuse_adapter
from upft_mlx.recipe.schema import Lora
from upft_mlx.rows import write_json
from upft_mlx.sampling.same_logits import scalar
from upft_mlx.training.checkpoints import save_safetensors

GROUP, INPUTS, OUTPUTS, RANK = 32, 96, 24, 4


def plain_layer(dropout: float = 0.0, bits: int = 4) -> LoRALinear:
    """mlx-lm's layer on a random quantized matrix with a bias, as if it had been trained."""
    mx.random.seed(0)
    linear = nn.Linear(INPUTS, OUTPUTS, bias=True).to_quantized(group_size=GROUP, bits=bits)
    layer = LoRALinear.from_base(linear, r=RANK, dropout=dropout, scale=3.0)
    layer.lora_b = mx.random.normal(layer.lora_b.shape)
    return layer


@pytest.mark.parametrize("shape", [(INPUTS,), (7, INPUTS), (2, 5, INPUTS)])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_it_computes_what_mlx_lms_layer_computes_with_each_row_repeated(shape: tuple[int, ...], dropout: float) -> None:
    layer = GridLora(plain_layer(dropout))
    plain = layer.plain()
    assert plain.lora_a.shape == (INPUTS, RANK)
    assert is_on_grid(plain)
    x, found = mx.random.normal(shape), []
    for one in (layer, plain):
        mx.random.seed(5)  # the same inputs are dropped
        found.append(one(x))
    assert mx.allclose(found[0], found[1], atol=1e-5)
    layer.eval()
    assert (dropout > 0) != bool(mx.allclose(layer(x), found[0], atol=1e-3).item())


def test_its_gradients_are_those_of_finite_differences() -> None:
    """The output is linear in each matrix, so that a central difference has no error but rounding."""
    layer = GridLora(plain_layer())
    x, weights = mx.random.normal((6, INPUTS)), mx.random.normal((6, OUTPUTS))

    def loss(a: mx.array, b: mx.array) -> mx.array:
        layer.lora_a, layer.lora_b = a, b
        return (layer(x) * weights).sum()

    at = (layer.lora_a, layer.lora_b)
    assert at[0].shape == (INPUTS // GROUP, RANK)
    gradients = mx.grad(loss, argnums=(0, 1))(*at)
    for which, gradient in enumerate(gradients):
        for place in ((0, 0), (2, 1), (1, 3)):
            step = np.zeros(at[which].shape, np.float32)
            step[place] = 0.5
            sides = [
                loss(*(p + sign * mx.array(step) if i == which else p for i, p in enumerate(at))) for sign in (1, -1)
            ]
            assert scalar(sides[0] - sides[1]) == pytest.approx(scalar(gradient[place]), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_the_base_with_moved_biases_computes_the_same(bits: int) -> None:
    """In float32 nothing is rounded: codes and scales are the base's."""
    layer = GridLora(plain_layer(bits=bits))
    x, base = mx.random.normal((9, INPUTS)), layer.linear
    wanted, before = layer(x), base(x)
    base.biases = moved_biases(layer.plain())
    assert scalar(mx.abs(wanted - before).max()) > 1
    assert mx.allclose(base(x), wanted, atol=1e-4)


def test_a_row_that_differs_inside_a_group_leaves_the_grid() -> None:
    layer = GridLora(plain_layer()).plain()
    changed = np.array(layer.lora_a)
    changed[GROUP + 3, 2] += 1e-6
    layer.lora_a = mx.array(changed)
    assert not is_on_grid(layer)
    assert not is_on_grid(plain_layer())


def test_a_model_gets_such_layers_each_with_its_own_group_size_and_gives_them_back() -> None:
    loaded = load(MODEL, quantize=Q4)
    up = loaded.model.layers[1].mlp
    up.up_proj = nn.Linear(64, up.up_proj.weight.shape[0], bias=False).to_quantized(group_size=64, bits=8)
    tokens = mx.array([[11, 12, 13]])
    config = add_lora(loaded, Lora(rank=RANK, grid="base"), 0)
    trained = adapter_weights(loaded.model)
    place = "model.layers.{}.mlp.up_proj.lora_a"
    assert (trained[place.format(0)].shape, trained[place.format(1)].shape) == ((2, RANK), (1, RANK))
    spread = 1 / np.sqrt(64)  # as mlx-lm draws it
    assert 0.5 * spread < scalar(mx.abs(trained[place.format(0)]).max()) <= spread
    loaded.model.update(loaded.model.parameters())
    for _, module in loaded.model.named_modules():
        if isinstance(module, GridLora):
            module.lora_b = 0.1 * mx.random.normal(module.lora_b.shape)
    wanted = loaded.model(tokens)
    take_off_grid(loaded.model)
    written = adapter_weights(loaded.model)
    assert set(written) == set(trained)
    assert mx.allclose(loaded.model(tokens), wanted, atol=1e-4)
    stock = load(MODEL, quantize=Q4)
    stock.model.layers[1].mlp.up_proj = up.up_proj.linear
    linear_to_lora_layers(stock.model, config["num_layers"], config["lora_parameters"])
    stock.model.load_weights(list(written.items()), strict=False)
    stock.model.eval()
    assert mx.allclose(stock.model(tokens), wanted, atol=1e-4)
    assert all(array.dtype == mx.float32 for array in written.values())


# Refusals.


def mxfp4(loaded: Loaded) -> None:
    nn.quantize(loaded.model, 32, 4, mode="mxfp4", class_predicate=lambda name, _: name.endswith("q_proj"))


def partly(loaded: Loaded) -> None:
    nn.quantize(loaded.model, 32, 4, class_predicate=lambda name, _: name.endswith("mlp.up_proj"))


def nothing(loaded: Loaded) -> None:
    pass


@pytest.mark.parametrize(
    ("prepare", "keys", "problem"),
    [
        (nothing, ("self_attn.q_proj",), "base, but 'NAME' is not quantized"),
        (mxfp4, ("self_attn.q_proj",), "'NAME' is a LoRALinear on a QuantizedLinear (mxfp4)"),
        (partly, ("mlp.up_proj", "self_attn.q_proj"), "base, but 'NAME' is not quantized"),
    ],
)
def test_a_base_without_such_a_grid_is_refused(
    prepare: Callable[[Loaded], None], keys: tuple[str, ...], problem: str
) -> None:
    loaded = load(MODEL)
    prepare(loaded)
    with pytest.raises(ModelError) as caught:
        add_lora(loaded, Lora(grid="base", keys=keys, num_layers=1), 0)
    assert caught.value.field == "lora.grid"
    assert caught.value.problem.endswith(problem.replace("NAME", "model.layers.3.self_attn.q_proj"))
    assert caught.value.remedy.startswith("leave it out")


def test_the_modules_that_are_quantized_can_be_chosen() -> None:
    loaded = load(MODEL)
    partly(loaded)
    add_lora(loaded, Lora(grid="base", keys=("mlp.up_proj",)), 0)
    assert len(adapter_weights(loaded.model)) == 2 * len(loaded.model.layers)


def test_layers_of_other_kinds_are_refused() -> None:
    model = nn.Sequential(DoRALinear.from_base(plain_layer().linear, r=2))
    with pytest.raises(ModelError, match=r"is a DoRALinear on a QuantizedLinear \(affine\)"):
        put_on_grid(model, fresh=True)


def test_an_unquantized_base_is_refused_before_it_is_loaded() -> None:
    config = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "num_attention_heads": 4}
    config["vocab_size"] = 100
    for lora in (Lora(grid="base"), Lora()):
        for quantize in (Q4, None):
            model = from_config(config, None, quantize)
            if lora.grid is None or quantize is not None:
                refuse_adapter(lora, model)
                continue
            with pytest.raises(ModelError, match=r"lora.grid: base, but 'model.layers.0.self_attn.q_proj' is not qua"):
                refuse_adapter(lora, model)


def started(folder: Path, grid: bool) -> Loaded:
    """A model with an adapter of `folder`, to be trained on the grid."""
    loaded = load(MODEL, quantize=Q4)
    config = add_lora(loaded, Lora(rank=2, grid="base" if grid else None), 3)
    take_off_grid(loaded.model)
    shutil.rmtree(folder, ignore_errors=True)
    write_json(folder / "adapter_config.json", config)
    save_safetensors(folder / "adapters.safetensors", adapter_weights(loaded.model))
    fresh = load(MODEL, quantize=Q4)
    add_lora(fresh, Lora(rank=2, grid="base", start_from=str(folder)), 4)
    return fresh


def test_an_adapter_on_the_grid_is_trained_further_and_another_one_refused(tmp_path: Path) -> None:
    fresh = started(tmp_path / "grid", True)
    take_off_grid(fresh.model)
    kept = mx.load(str(tmp_path / "grid" / "adapters.safetensors"))
    assert isinstance(kept, dict)
    assert all(mx.array_equal(array, kept[name]).item() for name, array in adapter_weights(fresh.model).items())
    with pytest.raises(
        ModelError, match=r"lora.grid: base, but the adapter to start from changes weights of one group"
    ):
        started(tmp_path / "plain", False)
    assert len(tree_flatten(fresh.model.trainable_parameters())) == len(kept)
