"""What the race and its contestants share: turns, CPU seconds, and the recipe."""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parent.parent


SHARED = Path(os.environ.get("UPFT_SHARED", ROOT.parent / "shared"))


PREFIX = 16


RANK, SCALE, RATE, BETAS = 16, 2.0, 1e-4, (0.9, 0.95)


class Turns:
    """A contestant's side of the turns: works for `size` steps when told to, then says what they took."""

    def __init__(self, size: int) -> None:
        self.size, self.steps = size, 0
        self._say({})
        self._wait()

    def step(self) -> None:
        """To be called after each step; returns when the next may begin."""
        self.steps += 1
        if self.steps % self.size == 0:
            self.report(self.size)

    def report(self, steps: int) -> None:
        """The same after several steps at once."""
        self._say({"steps": steps, "wall": time.perf_counter() - self.begin[0], "cpu": cpu() - self.begin[1]})
        self._wait()

    def end(self, **facts: Any) -> None:
        """Report peak memory and the facts given, after the last turn."""
        import mlx.core as mx

        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._say({"peak_memory_bytes": mx.get_peak_memory(), "max_rss_bytes": rss, **facts})

    def _say(self, value: dict[str, Any]) -> None:
        print(json.dumps(value), file=own_output(), flush=True)

    def _wait(self) -> None:
        sys.stdin.readline()
        self.begin = time.perf_counter(), cpu()


@cache
def own_output() -> TextIO:
    """This process's output, kept from whatever a trainer prints, which goes with the errors from now on."""
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return output


def cpu() -> float:
    """CPU seconds of this process and the ones that it has waited for, such as a compiler."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def read(path: Path) -> list[dict[str, Any]]:
    """A JSONL file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def recipe(options: argparse.Namespace) -> Any:
    """Our recipe: the defaults but for the size of the batch."""
    from upft_mlx.recipe.schema import Recipe

    settings = {"batch_size": options.batch, "steps": options.steps, "learning_rate": RATE, "betas": list(BETAS)}
    whole = options.contestant == "ours whole"
    settings["micro_batch_size"] = options.batch if whole else options.micro_batch or None
    return Recipe.model_validate(
        {
            "model": "model",
            "problems": {"builtin": "arithmetic"},
            "lora": {"rank": RANK, "scale": SCALE},
            "train": {**settings, "checkpoint_every": 10**6},
        }
    )
