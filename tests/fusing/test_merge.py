"""Several adapters as one: the sum of their updates, to the last bits, and nothing else of the run changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import MODEL
from helpers.adapter import Q4, write_mlx_lm
from helpers.input import write
from helpers.runs import files, made, shown, there
from mlx_lm.tuner.utils import load_adapters

from upft_mlx.errors import FuseError, ModelError, RecipeError
from upft_mlx.fusing.merge import merge
from upft_mlx.models.adapters import load_adapter
from upft_mlx.models.load import load
from upft_mlx.recipe.load import load_recipe
from upft_mlx.recipe.schema import Quantize
from upft_mlx.studies.fuse_others import fuse_others
from upft_mlx.training.checkpoints import save_safetensors

__all__ = ["made", "there"]
TOKENS = mx.array([[11, 12, 13, 14, 15, 100, 30]])


def deltas(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """scale (A B)^T of each module, computed in float64 from the files alone."""
    scale = json.loads((folder / "adapter_config.json").read_text())["lora_parameters"]["scale"]
    arrays = mx.load(str(folder / "adapters.safetensors"))
    assert isinstance(arrays, dict)
    values = {name: np.array(array).astype(np.float64) for name, array in arrays.items()}
    modules = [name.removesuffix(".lora_a") for name in values if name.endswith(".lora_a")]
    return {module: scale * (values[f"{module}.lora_a"] @ values[f"{module}.lora_b"]).T for module in modules}


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Adapters of other ranks, scales, layers and keys."""
    keys = ["mlp.down_proj", "mlp.up_proj"]
    return write_mlx_lm(tmp_path / "a", seed=1), write_mlx_lm(
        tmp_path / "b", seed=2, layers=4, rank=5, scale=0.5, keys=keys
    )


def test_the_update_is_the_weighted_sum(tmp_path: Path, two: tuple[Path, Path]) -> None:
    a, b = two
    assert merge(load(MODEL), {a: 0.5, b: -2.0}, tmp_path / "sum") == 8
    found, one, other = deltas(tmp_path / "sum"), deltas(a), deltas(b)
    assert found.keys() == one.keys() | other.keys()
    for module, delta in found.items():
        wanted = 0.5 * one.get(module, np.zeros_like(delta)) - 2.0 * other.get(module, np.zeros_like(delta))
        assert np.abs(delta - wanted).max() < 1e-6, module
        assert np.abs(delta).max() > 1e-3


@pytest.mark.parametrize("quantize", [None, Q4], ids=["dense", "4 bits"])
def test_mlx_lm_loads_the_sum(tmp_path: Path, two: tuple[Path, Path], quantize: Quantize | None) -> None:
    """With mlx-lm's own loader, against a model whose weights had each update added."""
    merge(load(MODEL), {two[0]: 0.5, two[1]: 0.5}, tmp_path / "sum")
    ours, theirs, wanted = (load(MODEL, quantize=quantize) for _ in range(3))
    load_adapter(ours, tmp_path / "sum")
    load_adapters(theirs.model, str(tmp_path / "sum"))
    assert np.abs(np.array(ours.model(TOKENS)) - np.array(theirs.model.eval()(TOKENS))).max() < 1e-5
    if quantize is None:
        for folder in two:
            for name, delta in deltas(folder).items():
                module = dict(wanted.model.named_modules())[name]
                module.weight = module.weight + mx.array(0.5 * delta).astype(mx.float32)
        assert np.abs(np.array(ours.model(TOKENS)) - np.array(wanted.model(TOKENS))).max() < 1e-4


def test_dora_and_what_does_not_fit_are_refused(tmp_path: Path, two: tuple[Path, Path]) -> None:
    dora = write_mlx_lm(tmp_path / "dora", seed=3, kind="dora")
    for weights in ({two[0]: 0.5, dora: 0.5}, {dora: 1.0}):  # one alone lost what scales its rows
        with pytest.raises(FuseError, match=r"dora: is a DoRA adapter, .* no update that can be added; fuse it with"):
            merge(load(MODEL), weights, tmp_path / "sum")
    arrays = mx.load(str(two[1] / "adapters.safetensors"))
    assert isinstance(arrays, dict)
    name = "model.layers.2.mlp.down_proj.lora_a"
    save_safetensors(two[1] / "adapters.safetensors", {**arrays, name: mx.zeros((7, 5))})
    with pytest.raises(FuseError, match=r"down_proj.lora_a \(7, 5\) does not go with \(192, 3\) of the other adapters"):
        merge(load(MODEL), {two[0]: 0.5, two[1]: 0.5}, tmp_path / "sum")
    assert not (tmp_path / "sum").exists()


def test_a_run_fuses_the_sum_beside_its_own_result(there: Path, two: tuple[Path, Path]) -> None:
    before = {name: data for name, data in files(there / "runs/r").items() if not name.startswith("ledger")}
    a, b = two
    said = shown("fuse", "r.yaml", "--run-dir", "runs/r", "--adapter", f"{a}=0.5", "--adapter", f"{b}=0.25")
    assert "rank 8, base, " in said
    (folder,) = (there / "runs/r/merged").iterdir()
    assert str(folder.relative_to(there)) in said
    assert json.loads((folder / "merged.json").read_text())["adapters"] == {str(a): 0.5, str(b): 0.25}
    after = files(there / "runs/r")
    assert {name: after[name] for name in before} == before
    assert not list((there / "runs/r").glob(".work/merged*"))
    fused, adapted, base = load(folder / "fused"), load(MODEL), load(MODEL)
    load_adapter(adapted, folder / "adapter")
    effect = np.abs(np.array(adapted.model(TOKENS)) - np.array(base.model(TOKENS))).max()
    assert np.abs(np.array(fused.model(TOKENS)) - np.array(adapted.model(TOKENS))).max() < 0.02 * effect
    assert json.loads((folder / "fidelity.json").read_text())["retained"] > 0.9
    assert "skipped: current" in shown("fuse", "runs/r", "--plain")
    again = ("fuse", "runs/r", "--adapter", f"{a}=0.5", "--adapter", f"{b}=0.25")
    write(folder / "fused/.DS_Store", "the Finder's")
    shown(*again)
    write(folder / "merged.json", "{}")  # an earlier version wrote no digests
    shown(*again)
    write(folder / "fused/Modelfile", "FROM .")
    assert "fused/Modelfile: was not made by fusing these adapters" in shown(*again, status=1)
    (folder / "fused/Modelfile").rename("Modelfile")
    write(folder / "fidelity.json", "{}")
    assert "move it away" in shown(*again, status=1)
    assert (folder / "fidelity.json").read_text() == "{}"


def test_wrong_weights_and_folders_are_refused_before_anything_is_loaded(there: Path, two: tuple[Path, Path]) -> None:
    recipe = load_recipe("r.yaml")
    for weights, wanted in (
        ({two[0]: 0.0}, "--adapter .*a: 0: expected a weight from -100 to 100, not 0"),
        ({two[0]: float("nan")}, "nan: expected a weight"),
        ({two[0]: 0.5, two[0] / ".." / "a": 0.5}, "--adapter: the same adapter is given twice; add up its weights"),
    ):
        with pytest.raises(RecipeError, match=wanted):
            fuse_others(recipe, "runs/r", weights)
    with pytest.raises(ModelError, match="no such adapter folder"):
        fuse_others(recipe, "runs/r", {there / "nothing=1": 1.0})
    wrong = shown("fuse", "r.yaml", "--adapter", f"{two[0]}=abc", status=2)
    assert f"--adapter '{two[0]}=abc': expected a number as weight, found 'abc'" in wrong
    assert "an --adapter is given twice" in shown("fuse", "r.yaml", "--adapter", "x=1", "--adapter", "x=2", status=2)
    assert "needs the stage" in shown("fuse", "r.yaml", "--run-dir", "runs/new", "--adapter", str(two[0]), status=1)
