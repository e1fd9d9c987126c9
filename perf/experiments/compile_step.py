"""Does compiling the training step pay on this device?

    python perf/experiments/compile_step.py [MODEL_FOLDER]

Prints the seconds of each step without and with mx.compile, each in a process of its own with an empty kernel cache,
and the versions and the machine. Without MODEL_FOLDER it takes the embedded model at 8 bits.
"""

from __future__ import annotations

import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

EMBEDDED = Path(__file__).resolve().parent.parent.parent / "upft_mlx" / "demo" / "model"
PROMPTS = (56, 56, 56, 64, 64, 48, 48, 56, 56)
"""Prompt tokens of each step's rows; the second and later of a length need no new trace."""


def measure(folder: Path, compiled: bool) -> list[float]:
    """Seconds per step: 16 rows of 9 supervised tokens, default adapter and optimizer."""
    from upft_mlx.models.adapters import add_lora
    from upft_mlx.models.load import load
    from upft_mlx.recipe.schema import Lora, Quantize, Train
    from upft_mlx.training.batches import Example
    from upft_mlx.training.step import Stepper

    loaded = load(folder, quantize=Quantize(bits=8, group_size=32) if folder == EMBEDDED else None)
    add_lora(loaded, Lora(), seed=0)
    loaded.model.train()
    stepper = Stepper(loaded.model, Train(), compiled=compiled)
    rng = random.Random(0)
    seconds = []
    for prompt in PROMPTS:
        rows = [Example(str(i), [rng.randrange(500) for _ in range(prompt + 9)], prompt) for i in range(16)]
        start = time.perf_counter()
        stepper.step(rows, 1e-4, seed=0)
        seconds.append(round(time.perf_counter() - start, 2))
    return seconds


def in_a_fresh_process(folder: Path, compiled: bool) -> list[float]:
    """The same with an empty kernel cache, which MLX's CPU backend keeps below TMPDIR."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, __file__, str(folder), "compiled" if compiled else "plain"]
        done = subprocess.run(command, env={**os.environ, "TMPDIR": cache}, capture_output=True, text=True, check=True)
    result: list[float] = json.loads(done.stdout)
    return result


def main() -> None:
    """Measure in two processes, or, as one of them, print the seconds as JSON."""
    folder = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else EMBEDDED
    if len(sys.argv) > 2:
        print(json.dumps(measure(folder, sys.argv[2] == "compiled")))
        return
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("upft-mlx", "mlx", "mlx-lm"))
    print(f"{versions}; Python {platform.python_version()}; {platform.machine()}, {os.cpu_count()} cores")
    print(f"{'prompt tokens':>14} " + " ".join(f"{n:>6}" for n in PROMPTS) + "   total")
    for name in ("plain", "compiled"):
        seconds = in_a_fresh_process(folder, name == "compiled")
        print(f"{name:>14} " + " ".join(f"{s:6.2f}" for s in seconds) + f" {sum(seconds):7.1f}")


if __name__ == "__main__":
    main()
