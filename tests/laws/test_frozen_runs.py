"""Run directories that earlier versions made, kept byte for byte in tests/frozen/, are continued by this one."""

from __future__ import annotations

import shutil
from pathlib import Path

import mlx.core as mx
import pytest
from helpers.runs import shown

from upft_mlx.rundir import RunDir

FROZEN = Path(__file__).parent.parent / "frozen"


@pytest.fixture
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A copy of one of them, in runs/."""
    shutil.copytree(FROZEN / request.param, tmp_path / "runs" / request.param)
    monkeypatch.chdir(tmp_path)
    return RunDir(Path("runs") / request.param)


@pytest.mark.parametrize("run", ["flat"], indirect=True)
def test_a_run_made_before_the_packages_continues_in_its_training(run: RunDir) -> None:
    before = {path: path.read_bytes() for path in (run.solutions, run.train, run.valid)}
    said = shown("run", str(run.root), "--plain")
    assert "generate skipped: current" in said
    assert "build skipped: current" in said
    assert "training continues after step 1" in said
    assert {path: path.read_bytes() for path in before} == before
    wanted, found = mx.load(str(FROZEN / "flat.safetensors")), mx.load(str(run.adapter / "adapters.safetensors"))
    assert isinstance(wanted, dict)
    assert isinstance(found, dict)
    assert wanted.keys() == found.keys()
    for name in wanted:
        assert mx.allclose(found[name], wanted[name], rtol=1e-3, atol=1e-6), name
    assert set(run.entries()) == {"generate", "build", "train", "evaluate", "fuse"}
    assert "skipped: current" in shown("run", str(run.root), "--plain")


@pytest.mark.parametrize("run", ["no-digests"], indirect=True)
def test_a_run_without_digests_keeps_its_solutions_and_builds_rows_that_now_mean_something_else(run: RunDir) -> None:
    solutions, rows = run.solutions.read_bytes(), run.train.read_bytes()
    said = shown("run", str(run.root), "--plain")
    assert "kept no digests: generate, build taken as found" in said
    assert "generate skipped: current" in said
    assert "build: runs again, changed: eos, prefix.eos_weight; the version before will be in .kept" in said
    assert run.solutions.read_bytes() == solutions
    (kept,) = run.kept.glob("build-*/dataset/train.jsonl")
    assert kept.read_bytes() == rows
    assert {name for name, entry in run.entries().items() if entry.done} == {
        *("generate", "build", "train", "evaluate", "fuse")
    }
