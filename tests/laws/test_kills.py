"""Training, sampling and a forecast killed again and again, each time continued: the bytes of an uninterrupted run.

UPFT_KILLS says how many kills, which are spread over the work; docs/measured/performance.md has what was tried.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.kill import finish, kill_again_and_again, lines_in, newest_step

from upft_mlx.pipeline import run_forecast, run_stage
from upft_mlx.recipe.load import load_recipe
from upft_mlx.rundir import RunDir

OVERRIDES = (
    "problems.limit=32",
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
    "problems.limit=40",
    "prefix.structure_ratio=0.3",
    "prefix.selection=consensus",
    "generate.samples=2",
    "generate.batch_size=4",
)
"""30 % full solutions, two prefixes of each other one, in about 15 chunks."""
FORECAST = (
    "problems.limit=28",
    "forecast.problems=16",
    "forecast.samples=4",
    "forecast.lengths=[8]",
    "generate.batch_size=4",
)
"""16 problems with 4 samples and the greedy one, in 6 chunks; then continuations, in several."""
CLOCK = ("seconds", "tokens_per_second", "peak_memory_bytes")


def command(stage: str, run: RunDir) -> list[str]:
    settings = {"train": OVERRIDES, "generate": SAMPLING, "forecast": FORECAST}[stage]
    return [stage, "quickstart", "--run-dir", str(run.root), *(f"--set={setting}" for setting in settings)]


def outcome(run: RunDir) -> tuple[bytes, list[dict[str, float]], set[str]]:
    """The adapter's bytes, the metrics without what the clock says, and the checkpoints' names."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    kept = [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]
    names = {path.name for path in run.checkpoints.iterdir() if not path.name.startswith(".")}
    return (run.adapter / "adapters.safetensors").read_bytes(), kept, names


@pytest.mark.slow
def test_training_killed_again_and_again_ends_bit_identical(tmp_path: Path) -> None:
    """The whole run is made in this process; the killed one by the command."""
    whole, killed = RunDir(tmp_path / "whole"), RunDir(tmp_path / "killed")
    recipe = load_recipe("quickstart", OVERRIDES)
    for stage in ("generate", "build"):
        run_stage(recipe, whole.root, stage)
    shutil.copytree(whole.root, killed.root)
    run_stage(recipe, whole.root, "train")
    steps = kill_again_and_again(command("train", killed), lambda: newest_step(killed), newest_step(whole), 4, seed=1)
    assert max(steps) > 0
    assert outcome(killed) == outcome(whole), f"killed after the checkpoints of steps {steps}"


def sampled(run: RunDir) -> int:
    """Lines of the file that is being sampled into, or of the whole one."""
    return lines_in(run.solutions, *run.work.glob("*/solutions.partial.jsonl"))


@pytest.mark.slow
def test_sampling_killed_again_and_again_ends_bit_identical(tmp_path: Path) -> None:
    whole, killed = RunDir(tmp_path / "whole"), RunDir(tmp_path / "killed")
    finish(command("generate", whole))
    expected = whole.solutions.read_bytes()
    assert expected.count(b'"full"') == 12
    assert expected.count(b'"prefix"') == 56
    lines = kill_again_and_again(command("generate", killed), lambda: sampled(killed), 68, 4, seed=3)
    assert killed.solutions.read_bytes() == expected, f"killed with {lines} lines on the disk"
    assert not killed.work.exists()


def forecast_files(run: RunDir) -> dict[str, bytes]:
    """All that a forecast writes, by name."""
    return {
        f"{path.parent.name}/{path.name}": path.read_bytes()
        for f in (run.answers, run.forecast)
        for path in f.iterdir()
    }


def forecast_lines(run: RunDir) -> int:
    """Lines that were sampled for a forecast, those of a stage that goes on among them."""
    names = ("answers/samples.jsonl", "answers/greedy.jsonl", "forecast/continuations.jsonl")
    return lines_in(*(path for name in names for path in (run.root / name, *run.work.glob(f"*/{name}"))))


@pytest.mark.slow
def test_a_forecast_killed_again_and_again_ends_bit_identical(tmp_path: Path) -> None:
    whole, killed = RunDir(tmp_path / "whole"), RunDir(tmp_path / "killed")
    run_forecast(load_recipe("quickstart", FORECAST), whole.root)
    total = forecast_lines(whole)
    assert total > 16 * (4 + 1), "continuations are among them"
    lines = kill_again_and_again(command("forecast", killed), lambda: forecast_lines(killed), total, 4, seed=5)
    assert forecast_files(killed) == forecast_files(whole), f"killed with {lines} lines on the disk"
    assert not killed.work.exists()
