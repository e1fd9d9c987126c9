"""From training on the base's grid to the fused model: what was trained is what ships, at the base's size."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from conftest import MODEL
from helpers.adapter import Q4
from helpers.train import metrics, run
from mlx_lm.utils import load as mlx_lm_load

from upft_mlx.events import Event, Progress
from upft_mlx.fusing.formats import candidate_formats, fused_layer
from upft_mlx.fusing.fuse import fuse
from upft_mlx.models.adapters import load_adapter
from upft_mlx.models.load import Loaded, load
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import read_json
from upft_mlx.rundir import RunDir
from upft_mlx.sampling.same_logits import scalar
from upft_mlx.training.train import train

__all__ = ["run"]
MakeRecipe = Callable[..., Recipe]
TOKENS = mx.array([[11, 12, 13, 14, 15]])
TRAIN = {"epochs": 2, "learning_rate": 3e-5, "checkpoint_every": 1, "validate_every": 3}


@pytest.fixture
def recipe(make_recipe: MakeRecipe) -> Recipe:
    return make_recipe(
        quantize={"bits": 4, "group_size": 32}, train=TRAIN, lora={"grid": "base"}, publish={"fuse": "base"}
    )


def base() -> Loaded:
    return load(MODEL, quantize=Q4)


def test_the_fused_model_is_the_adapters_in_the_bases_bits_and_size(recipe: Recipe, run: RunDir) -> None:
    train(recipe, base(), run)
    assert metrics(run)[-1]["loss"] < metrics(run)[0]["loss"]
    adapted = base()
    load_adapter(adapted, run.adapter)
    chosen = fuse(recipe, base(), run)
    assert (chosen.fuse, chosen.retained > 0.98) == ("base", True)
    fused, *_ = mlx_lm_load(str(run.fused))
    layers = zip(base().model.layers, fused.layers, strict=True)
    for own, layer in ((pair[0].mlp.down_proj, pair[1].mlp.down_proj) for pair in layers):
        assert mx.array_equal(own.weight, layer.weight)
        assert mx.array_equal(own.scales.astype(layer.scales.dtype), layer.scales)
        assert not mx.array_equal(own.biases.astype(layer.biases.dtype), layer.biases)
    fused.set_dtype(mx.float32)
    wanted, before, found = adapted.model(TOKENS), base().model(TOKENS), fused(TOKENS)
    assert scalar(mx.abs(found - wanted).max()) < 0.05 * scalar(mx.abs(before - wanted).max())


def test_without_the_grid_nearest_rounding_at_the_bases_bits_loses_the_same_training(
    make_recipe: MakeRecipe, recipe: Recipe, run: RunDir
) -> None:
    recipe = make_recipe(**{**recipe.dump(), "lora": {}})
    train(recipe, base(), run)
    fuse(recipe, base(), run)
    facts = read_json(run.fidelity)
    assert isinstance(facts, dict)
    assert next(found["retained"] for found in facts["candidates"] if found["fuse"] == "base") < 0.5


def test_auto_takes_the_base_and_tries_nothing_larger(make_recipe: MakeRecipe, recipe: Recipe, run: RunDir) -> None:
    train(recipe, base(), run)
    assert fuse(make_recipe(**{**recipe.dump(), "publish": {"fuse": "auto"}}), base(), run).fuse == "base"
    facts = read_json(run.fidelity)
    assert isinstance(facts, dict)
    assert [candidate["fuse"] for candidate in facts["candidates"]] == ["base"]


@pytest.mark.parametrize("stops", [[2], [1, 3]])
def test_a_stopped_run_ends_with_the_bytes_of_a_whole_one(
    recipe: Recipe, run: RunDir, tmp_path: Path, stops: list[int]
) -> None:
    class Killed(BaseException):
        pass

    whole = RunDir(tmp_path / "whole")
    shutil.copytree(run.root, whole.root)
    train(recipe, base(), whole)
    for after in stops:

        def stop(event: Event, after: int = after) -> None:
            if isinstance(event, Progress) and event.done == after:
                raise Killed

        with pytest.raises(Killed):
            train(recipe, base(), run, stop)
    train(recipe, base(), run)
    for name in ("adapters.safetensors", "adapter_config.json"):
        assert (run.adapter / name).read_bytes() == (whole.adapter / name).read_bytes(), name


def test_training_leaves_the_model_with_the_adapter_that_it_wrote(recipe: Recipe, run: RunDir) -> None:
    trained, fresh = base(), base()
    train(recipe, trained, run)
    load_adapter(fresh, run.adapter)
    trained.model.eval()
    assert mx.array_equal(trained.model(TOKENS), fresh.model(TOKENS))


def test_a_bfloat16_base_can_become_float16_at_the_same_size(recipe: Recipe, run: RunDir) -> None:
    """Its biases have eight bits, of which such an update moves the last ones; float16 has eleven."""
    train(recipe, base(), run)
    loaded = base()
    assert loaded.dtype == mx.float16
    load_adapter(loaded, run.adapter)
    layers = {name: module for name, module in loaded.model.named_modules() if hasattr(module, "fuse")}
    assert "base-fp16" not in {form.name for form in candidate_formats(loaded, layers)}
    loaded.dtype = mx.bfloat16
    forms = {form.name: form for form in candidate_formats(loaded, layers)}
    assert [name for name in forms if name.startswith("base")] == [
        "base",
        "base-fitted",
        "base-fp16",
        "base-fp16-fitted",
    ]
    assert forms["base-fp16"].whole
    layer = layers["model.layers.1.mlp.down_proj"]
    mixing = np.random.default_rng(0).normal(size=(8, 192)) * np.geomspace(3, 0.1, 8)[:, None]
    x = (np.random.default_rng(1).normal(size=(200, 8)) @ mixing).astype(np.float32)  # correlated, as a network's are
    wanted, off = layer(mx.array(x)), {}
    for name in ("base", "base-fitted", "base-fp16", "base-fp16-fitted"):
        fused = fused_layer(layer, forms[name], [x.T @ x] if name.endswith("fitted") else None)
        assert fused.scales.dtype == fused.biases.dtype == forms[name].dtype
        assert mx.array_equal(fused.weight, layer.linear.weight)
        fused.scales, fused.biases = layer.linear.scales, fused.biases.astype(mx.float32)  # the biases' rounding alone
        off[name] = scalar(mx.square(fused(mx.array(x)) - wanted).sum())
    assert off["base-fp16"] < off["base"] / 20
    assert off["base-fitted"] < off["base"]
    assert off["base-fp16-fitted"] < off["base-fp16"]
    layer.lora_a = mx.random.normal(layer.lora_a.shape)
    assert "base-fp16" not in {form.name for form in candidate_formats(loaded, layers)}
