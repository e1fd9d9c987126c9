"""What a cache for the activations of frozen lower layers could gain at most: python perf/experiments/frozen_layers.py

With LoRA on the top half of the layers only, the lower half computes the same for a row in every epoch. A cache would
skip it. The most that this can gain is a step of a model that has its top half only; that is measured here, in turns
with the step as it is. Below it, what such a cache weighs: hidden states of 16 bits for every token of every row.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SHARED = Path(os.environ.get("UPFT_SHARED", ROOT.parent / "shared"))
TOKENS, SHARED_TOKENS, SUPERVISED, BATCH, TURNS = 128, 32, 17, 8, 4
SIZES = {"0.5B": 896, "1.5B": 1536, "7B": 3584}
ROWS = 12_000


def stepper(folder: Path, adapted: int, dropped: int):
    """The step of a model without its first `dropped` layers, with LoRA on the last `adapted`."""
    from upft_mlx.models.adapters import add_lora
    from upft_mlx.models.load import load
    from upft_mlx.recipe.schema import Lora, Train
    from upft_mlx.training.step import Stepper

    loaded = load(folder)
    inner = loaded.model.model
    inner.layers = inner.layers[dropped:]
    add_lora(loaded, Lora(num_layers=adapted), seed=0)
    loaded.model.train()
    return Stepper(loaded.model, Train(), shared=SHARED_TOKENS)


def main() -> None:
    """Measure and print."""
    from upft_mlx.training.batches import Example

    if not SHARED.is_dir():
        raise SystemExit(f"{SHARED}: not there; set UPFT_SHARED to the folder with make_qwen.py")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("upft-mlx", "mlx", "mlx-lm"))
    print(f"{versions}; Python {platform.python_version()}; {platform.machine()}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work) / "model"
        make = [sys.executable, str(SHARED / "bin" / "make_qwen.py"), str(folder), "--shape", "ratio-0.5b"]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
        variants = {
            "LoRA on all 12 layers": stepper(folder, -1, 0),
            "LoRA on the top 6": stepper(folder, 6, 0),
            "the top 6 alone (a free cache)": stepper(folder, 6, 6),
        }
        ids = [
            [*range(5, 5 + SHARED_TOKENS), *(40 + (i * t) % 900 for t in range(TOKENS))] for i in range(1, BATCH + 1)
        ]
        rows = [Example(str(i), row, len(row) - SUPERVISED) for i, row in enumerate(ids)]
        seconds = dict.fromkeys(variants, 0.0)
        for turn in range(TURNS + 1):
            for name, one in variants.items():
                begin = time.perf_counter()
                one.step(rows, 1e-4, turn)
                seconds[name] += (time.perf_counter() - begin) * (turn > 0)
    for name, total in seconds.items():
        print(f"{name:>32}: {total / TURNS:.2f} s per step of {BATCH} x {TOKENS + SHARED_TOKENS} tokens")
    for name, hidden in SIZES.items():
        row = TOKENS * hidden * 2
        print(
            f"{name:>32}: {row / 1e6:.2f} MB per row of {TOKENS} own tokens, {row * ROWS / 1e9:.1f} GB for {ROWS} rows"
        )


if __name__ == "__main__":
    main()
