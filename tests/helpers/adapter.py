"""What tests of fusing and exporting share: a run with rows, and an adapter of any size."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from conftest import MODEL

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
