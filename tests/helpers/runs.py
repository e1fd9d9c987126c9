"""A small finished run in a working directory of its own, and what tests look at in it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.input import upft, write
from upft_mlx import pipeline
from upft_mlx.recipe.load import load_recipe
from upft_mlx.rundir import RunDir

RECIPE = """\
model: builtin:arithmetic
problems: {builtin: arithmetic, limit: 10}
generate: {max_tokens: 40, batch_size: 2}
prefix: {length: 6, structure_ratio: 0.2}
lora: {rank: 2}
train: {batch_size: 4, learning_rate: 1.0e-3, checkpoint_every: 1, validate_every: 1}
evaluate: {max_tokens: 40, batch_size: 2, benchmarks: [{name: arithmetic, limit: 6}]}
publish: {fuse: fp16, min_retained: 0}
"""
RUN = RunDir("runs/r")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with r.yaml and the finished runs/r; tests copy it."""
    folder = tmp_path_factory.mktemp("made")
    write(folder / "r.yaml", RECIPE)
    pipeline.run(load_recipe(folder / "r.yaml"), folder / "runs" / "r")
    return folder


@pytest.fixture
def there(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, the working directory."""
    shutil.copytree(made, tmp_path / "there", symlinks=True)
    monkeypatch.chdir(tmp_path / "there")
    return tmp_path / "there"


def files(root: Path, *, hidden: bool = False) -> dict[str, bytes]:
    """The bytes of the files below a folder, those in hidden places only where asked for."""
    found = {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
    return {str(n): data for n, data in found.items() if hidden or not any(p.startswith(".") for p in n.parts)}


def run_stage(stage: str, *overrides: str, **options: Any) -> dict[str, Any]:
    """One stage of r.yaml in runs/r."""
    return pipeline.run_stage(load_recipe("r.yaml", overrides), RUN.root, stage, **options).dump()


def shown(*arguments: str, status: int = 0) -> str:
    """What a command prints; its exit status is as told."""
    done = upft(*arguments)
    assert done.exit_code == status, done.output
    assert "unexpected" not in done.output
    return " ".join(done.output.split())


def everywhere(root: Path) -> set[bytes]:
    """The contents of all files, wherever they are by now."""
    return {
        Path(folder, name).read_bytes()
        for folder, _, names in os.walk(root)
        for name in names
        if not Path(folder, name).is_symlink()
    }
