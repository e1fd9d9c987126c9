"""Training and sampling killed at random moments, each time continued once: the bytes of an uninterrupted run.

UPFT_KILLS says how many; the 30 of docs/performance.md take about five minutes each.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from upft_mlx.load import load_recipe
from upft_mlx.pipeline import run_stage
from upft_mlx.rundir import RunDir

KILLS = int(os.environ.get("UPFT_KILLS", "4"))
OVERRIDES = (
    "problems.limit=48",
    "train.epochs=3",
    "train.batch_size=4",
    "train.micro_batch_size=3",
    "train.checkpoint_every=1",
    "train.validate_every=5",
    "train.report_every=4",
    "train.schedule=cosine",
    "lora.dropout=0.1",
)
SAMPLING = (
    "problems.limit=60",
    "prefix.structure_ratio=0.3",
    "prefix.selection=consensus",
    "generate.samples=2",
    "generate.batch_size=4",
)
"""30 % full solutions, two prefixes of each other one, in about 20 chunks."""
CLOCK = ("seconds", "tokens_per_second", "peak_memory_bytes")


def start(run_dir: Path, stage: str = "train") -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "upft_mlx", stage, "quickstart", "--plain", "--run-dir", str(run_dir)]
    for override in OVERRIDES if stage == "train" else SAMPLING:
        command += ["--set", override]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(run_dir: Path, stage: str = "train") -> float:
    """Seconds that it took."""
    begin = time.monotonic()
    process = start(run_dir, stage)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return time.monotonic() - begin


def outcome(run_dir: Path) -> tuple[bytes, list[dict[str, float]], set[str]]:
    """The adapter's bytes, the metrics without what the clock says, and the checkpoints' names."""
    run = RunDir(run_dir)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    kept = [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]
    names = {path.name for path in run.checkpoints.iterdir() if not path.name.startswith(".")}
    return (run.adapter / "adapters.safetensors").read_bytes(), kept, names


@pytest.mark.slow
def test_training_killed_at_any_moment_and_continued_ends_bit_identical(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart", OVERRIDES)
    for stage in ("generate", "build"):
        run_stage(recipe, tmp_path / "prepared", stage)
    shutil.copytree(tmp_path / "prepared", tmp_path / "whole")
    seconds = finish(tmp_path / "whole")
    expected = outcome(tmp_path / "whole")
    rng = random.Random(len(expected[1]))
    steps: list[int] = []
    while len(steps) < KILLS:
        killed = tmp_path / "killed"
        shutil.rmtree(killed, ignore_errors=True)
        shutil.copytree(tmp_path / "prepared", killed)
        process = start(killed)
        try:
            process.communicate(timeout=seconds * (0.3 + 0.7 * rng.random()))  # not while Python is still starting up
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            checkpoints = [int(path.name[5:]) for path in killed.glob(".work/*/adapter/checkpoints/step-*")]
            steps.append(max(checkpoints, default=0))
            finish(killed)
        assert outcome(killed) == expected, f"killed after the checkpoint of step {steps[-1:]}"
    assert max(steps) > 0, f"no kill fell into training: {steps}"
    print(f"{KILLS} kills, after the checkpoints of steps {sorted(steps)}: all end bit-identical")


def partial(run: RunDir) -> list[Path]:
    """The file that is being sampled into, if there is one."""
    return list(run.work.glob("*/solutions.partial.jsonl"))


def wait_until_it_samples(process: subprocess.Popen[bytes], run: RunDir) -> None:
    while not partial(run) and process.poll() is None:
        time.sleep(0.002)


@pytest.mark.slow
def test_sampling_killed_at_any_moment_and_continued_ends_bit_identical(tmp_path: Path) -> None:
    whole = RunDir(tmp_path / "whole")
    process = start(whole.root, "generate")
    wait_until_it_samples(process, whole)
    begin = time.monotonic()
    process.communicate(timeout=300)
    seconds, expected = time.monotonic() - begin, whole.solutions.read_bytes()
    assert expected.count(b'"full"') == 18
    assert expected.count(b'"prefix"') == 84
    rng = random.Random(3)
    lines: list[int] = []
    while len(lines) < KILLS:
        run = RunDir(tmp_path / "killed")
        shutil.rmtree(run.root, ignore_errors=True)
        process = start(run.root, "generate")
        wait_until_it_samples(process, run)
        time.sleep(seconds * rng.random())
        if process.poll() is None:
            process.kill()
            process.communicate()
            lines.append(partial(run)[0].read_bytes().count(b"\n") if partial(run) else 102)
            finish(run.root, "generate")
        assert run.solutions.read_bytes() == expected, f"killed after {lines[-1:]} lines"
        assert not run.work.exists()
    assert max(lines) > 0, f"no kill fell into sampling: {lines}"
    print(f"{KILLS} kills, after {sorted(lines)} of 102 lines: all end bit-identical")
