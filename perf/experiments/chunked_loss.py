"""Peak memory of a checkpointed step with head and loss in chunks and at once: python perf/experiments/chunked_loss.py

Shape tiny (4 layers x 256) with Qwen2.5's vocabulary of 151,936, float32, two rows of 480 tokens of which 400 are
supervised, as a full solution is. Each side runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import upft_mlx.machine.blas  # noqa: F401 - loads the fast BLAS before MLX

ROOT = Path(__file__).resolve().parent.parent.parent
SHARED = Path(os.environ.get("UPFT_SHARED", ROOT.parent / "shared"))


def measure(folder: Path, chunked: bool) -> dict[str, object]:
    """Loss, gradient norm, peak and CPU seconds of one step."""
    import mlx.core as mx

    from upft_mlx.machine import blas
    from upft_mlx.models.adapters import add_lora
    from upft_mlx.models.load import load
    from upft_mlx.recipe.schema import Lora, Train
    from upft_mlx.training.batches import Example
    from upft_mlx.training.loss import value_and_grad
    from upft_mlx.training.step import Stepper

    loaded = load(folder)
    add_lora(loaded, Lora(), 0)
    stepper = Stepper(loaded.model, Train(grad_checkpoint=True, micro_batch_size=2))
    if not chunked:
        stepper._gradient = value_and_grad(loaded.model, replace(stepper.modes, chunk=0))
    draw = random.Random(0)
    rows = [Example(str(row), [draw.randrange(151_000) for _ in range(480)], start=80) for row in range(2)]
    mx.reset_peak_memory()
    start = time.process_time()
    loss, _ = stepper.step(rows, 1e-4, 0)
    seconds = time.process_time() - start
    peak = mx.get_peak_memory() / 1e6
    return {"loss": loss, "norm": stepper.gradient_norm, "peak_mb": peak, "cpu_s": seconds, "blas": str(blas.used())}


def main() -> None:
    """Print a line per side and the ratio."""
    if len(sys.argv) > 1:
        print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2] == "chunks")))
        return
    with tempfile.TemporaryDirectory() as folder:
        make = [sys.executable, SHARED / "bin" / "make_qwen.py", folder, "--dtype", "float32"]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
        found = {}
        for side in ("at once", "chunks"):
            done = subprocess.run([sys.executable, __file__, folder, side], check=True, capture_output=True, text=True)
            found[side] = json.loads(done.stdout.splitlines()[-1])
            print(side, found[side])
    print(f"peak {found['chunks']['peak_mb'] / found['at once']['peak_mb']:.2f}x")


if __name__ == "__main__":
    main()
