"""What the tests of train share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import TrainingRow, write_rows
from upft_mlx.rundir import RunDir

MakeRecipe = Callable[..., Recipe]


def rows(count: int, seed: int = 0) -> list[TrainingRow]:
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        prompt = [5, 6, 7, *rng.integers(10, 400, int(rng.integers(2, 17))).tolist()]
        completion = rng.integers(10, 400, 24 if index % 5 == 0 else 6).tolist()
        made.append(TrainingRow(f"{index}/0", str(index), 0, "prefix", "", "", prompt, completion))
    return made


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run_dir = RunDir(tmp_path / "run")
    write_rows(run_dir.train, rows(14))
    write_rows(run_dir.valid, rows(3, seed=1))
    return run_dir


def metrics(run: RunDir) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def comparable(run: RunDir) -> list[dict[str, Any]]:
    """The metrics without what the clock and the allocator say."""
    clock = ("seconds", "tokens_per_second", "peak_memory_bytes")
    return [{k: v for k, v in line.items() if k not in clock} for line in metrics(run)]
