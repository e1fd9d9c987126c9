"""What tests of fusing and exporting share: a run with rows, and an adapter of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import MODEL
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers

from upft_mlx.models.adapters import adapter_weights, add_lora, load_adapter
from upft_mlx.models.load import Loaded, load
from upft_mlx.recipe.schema import Lora, Quantize
from upft_mlx.rows import TrainingRow, write_json, write_rows
from upft_mlx.rundir import RunDir
from upft_mlx.training.checkpoints import save_safetensors

Q4 = Quantize(bits=4, group_size=32)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run_dir = RunDir(tmp_path / "run")
    rng = np.random.default_rng(0)
    for path, count in ((run_dir.valid, 6), (run_dir.train, 12)):
        prompts = [rng.integers(10, 400, 9).tolist() for _ in range(count)]
        rows = [TrainingRow(f"{i}/0", str(i), 0, "prefix", "", "", ids, [20, 30, 40]) for i, ids in enumerate(prompts)]
        write_rows(path, rows)
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


def write_mlx_lm(folder: Path, kind: str = "lora", layers: int = 2, seed: int = 1, **parameters: Any) -> Path:
    """An adapter of random weights, made and saved by mlx-lm's own code."""
    config = {"rank": 3, "scale": 5.0, "dropout": 0.0, "keys": ["self_attn.q_proj", "mlp.down_proj"], **parameters}
    loaded = load(MODEL)
    loaded.model.freeze()
    linear_to_lora_layers(loaded.model, layers, config, use_dora=kind == "dora")
    mx.random.seed(seed)
    trained = dict(tree_flatten(loaded.model.trainable_parameters()))
    arrays = {n: a + 0.05 * mx.random.normal(a.shape) for n, a in trained.items()}
    write_json(
        folder / "adapter_config.json", {"fine_tune_type": kind, "num_layers": layers, "lora_parameters": config}
    )
    save_safetensors(folder / "adapters.safetensors", arrays)
    return folder
