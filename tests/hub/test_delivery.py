"""What leaves a run: a refused fuse costs nothing that was measured, and the card and the listing follow the result."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import MODEL
from huggingface_hub import metadata_load

from upft_mlx.api import push
from upft_mlx.errors import FuseError, RunDirError
from upft_mlx.pipeline import run, run_stage
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rundir import written

MakeRecipe = Callable[..., Recipe]
SMALL: dict[str, Any] = {
    "quantize": {"bits": 4, "group_size": 32},
    "problems": {"limit": 8},
    "train": {"steps": 1, "learning_rate": 1e-6, "valid_ratio": 0.25, "save": "last"},
    "evaluate": {"benchmarks": [{"name": "arithmetic", "limit": 2}]},
}


def metadata(card: Path) -> dict[str, Any]:
    found = metadata_load(card)
    assert found is not None
    return found


def test_a_refused_fuse_leaves_the_report_and_force_or_the_adapter_finish_the_run(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = make_recipe(**SMALL, publish={"fuse": "base"})
    with pytest.raises(FuseError, match=r"these values of publish\.fuse pass: .*adapter"):
        run(recipe, tmp_path)
    assert "arithmetic" in (tmp_path / "report.md").read_text()
    with pytest.raises(RunDirError, match="push needs the stage fuse, which is not done"):
        push(recipe, tmp_path, dry_run=True)
    run_stage(recipe, tmp_path, "fuse", force=True)
    assert metadata(tmp_path / "fused/README.md")["library_name"] == "mlx"
    names = {file["path"] for file in push(recipe, tmp_path, dry_run=True)["files"]}
    assert {"README.md", "config.json", "model.safetensors"} <= names

    recipe = make_recipe(**SMALL, publish={"fuse": "adapter", "repo": "user/a"})
    run(recipe, tmp_path)
    assert not (tmp_path / "fused").exists()
    assert "lora" in metadata(tmp_path / "adapter/README.md")["tags"]
    files = {file["path"] for file in push(recipe, tmp_path, dry_run=True)["files"]}
    assert files == {"README.md", "adapter_config.json", "adapters.safetensors"}


def test_another_place_to_push_to_makes_no_stage_run_again(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run(make_recipe(**SMALL, publish={"fuse": "adapter"}), tmp_path)
    before = (tmp_path / "fidelity.json").stat().st_mtime_ns
    run(make_recipe(**SMALL, publish={"fuse": "adapter", "repo": "user/b", "private": False}), tmp_path)
    assert (tmp_path / "fidelity.json").stat().st_mtime_ns == before
    assert "user/b" in (tmp_path / "adapter/README.md").read_text()


def test_the_terms_of_the_base_go_up_whatever_their_files_are_called(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    base, names = tmp_path / "base", {"NOTICE", "LICENCE", "license.txt", "LICENSE-CODE.md"}
    shutil.copytree(MODEL, base)
    for name in names:
        (base / name).write_text("terms")
    recipe = make_recipe(**SMALL, model=str(base), publish={"fuse": "adapter", "repo": "user/a"})
    run(recipe, tmp_path / "run")
    assert names < {file["path"] for file in push(recipe, tmp_path / "run", dry_run=True)["files"]}
    adopted = {Path(name).name for name in written("train", tmp_path / "run")}
    assert "adapters.safetensors" in adopted
    assert not names & adopted, "no result: `upft adopt` would have later terms of the base refused as changed by hand"
