"""Real commands killed when they have come so far, and continued: each start goes on where the kill left off."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from helpers.forks import start
from upft_mlx.rundir import RunDir


def finish(command: Sequence[str | Path]) -> None:
    """Run it to its end."""
    process = start([*command, "--plain"])
    _, error = process.communicate(timeout=600)
    assert process.returncode == 0, error


def killed_at(command: Sequence[str | Path], reached: Callable[[], bool], later: float) -> bool:
    """Run it, and kill it `later` seconds after `reached` holds; whether it was still running then."""
    process = start([*command, "--plain"])
    while process.poll() is None and not reached():
        time.sleep(0.02)  # looking more often takes the command's processor
    time.sleep(later)
    running = process.poll() is None
    process.kill()
    _, error = process.communicate()
    assert running or process.returncode == 0, error
    return running


def kill_again_and_again(
    command: Sequence[str | Path], done: Callable[[], int], total: int, default: int, seed: int
) -> list[int]:
    """Kill a command while it does `total` things, at random moments spread over them; then let it finish.

    Args:
        command: what is started again after each kill.
        done: how many things are on the disk.
        total: all of them.
        default: kills, unless UPFT_KILLS says so.
        seed: of the moments.

    Returns:
        What was on the disk at each kill.
    """
    kills, rng, seen = int(os.environ.get("UPFT_KILLS", default)), random.Random(seed), [0]
    for number in range(kills):
        wanted = max(seen[-1] + 1, int((number + rng.random()) / kills * total))
        if not killed_at(command, lambda wanted=wanted: done() >= wanted, rng.random() / 10):  # type: ignore[misc]
            break
        seen.append(done())
    finish(command)
    assert len(seen) > kills / 2, f"it was done after {len(seen) - 1} of {kills} kills"
    print(f"{len(seen) - 1} kills with {seen[1:]} of {total} on the disk")
    return seen[1:]


def newest_step(run: RunDir) -> int:
    """The step of the newest checkpoint, of a training that goes on or of one that is done."""
    checkpoints = [*run.checkpoints.glob("step-*"), *run.work.glob("*/adapter/checkpoints/step-*")]
    return max((int(path.name[5:]) for path in checkpoints), default=0)


def lines_in(*paths: Path) -> int:
    """The whole lines in those of the files that are there."""
    return sum(path.read_bytes().count(b"\n") for path in paths if path.exists())
