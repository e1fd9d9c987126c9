"""What switching between MLX's threads costs on Linux: python perf/experiments/scheduling.py [MODEL ...]

Each model (the embedded one, unless folders are given) samples and takes training steps in processes that are scheduled
as others are (SCHED_OTHER) and as batch jobs (SCHED_BATCH), in turns. Everything else is the same: the BLAS with one
thread, the rows, and the numbers that come out. docs/measured/log.md says why upft does not become a batch job.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from upft_mlx.machine import blas

POLICIES = ("SCHED_OTHER", "SCHED_BATCH")
EMBEDDED = Path(__file__).resolve().parents[2] / "upft_mlx" / "demo" / "model"


def measured(work: Callable[[], object]) -> dict[str, float]:
    """Seconds, CPU seconds and switches between threads of a piece of work, after a first that is not counted."""
    work()
    begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    work()
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF)
    used = {name: getattr(after, name) - getattr(before, name) for name in ("ru_utime", "ru_stime")}
    switches = sum(getattr(after, name) - getattr(before, name) for name in ("ru_nvcsw", "ru_nivcsw"))
    return {"wall": wall, "cpu": sum(used.values()), "switches": switches}


def works(model: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Sampling and training of a model."""
    from upft_mlx.models.adapters import add_lora
    from upft_mlx.models.load import load
    from upft_mlx.recipe.schema import Lora, Train
    from upft_mlx.rows import TrainingRow
    from upft_mlx.sampling.decoding import Request
    from upft_mlx.sampling.draw import Sampling
    from upft_mlx.sampling.sampler import Sampler
    from upft_mlx.training.batches import to_examples
    from upft_mlx.training.step import Stepper

    loaded = load(model)
    sampler = Sampler(loaded, Sampling(0.7, batch_size=8))
    requests = [Request([16, 17, 18, 19, 20, 5, 6, 7], 32)] * 16
    yield "sampling 16 x 32 tokens", lambda: list(sampler.sample(requests, seed=1))
    add_lora(loaded, Lora(), seed=1)
    rows = [
        TrainingRow(f"{n}/0", str(n), 0, "prefix", "", "", [16, 17, 18, 19, 20 + n, *range(5, 85)], list(range(20, 36)))
        for n in range(8)
    ]
    stepper, examples = Stepper(loaded.model, Train(batch_size=8)), to_examples(rows, 200)
    yield "2 training steps of 8 rows", lambda: [stepper.step(examples, 1e-4, seed) for seed in range(2)]


def main() -> None:
    """A line per model, piece of work and policy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", type=Path, default=[EMBEDDED])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--policy", choices=POLICIES)
    options = parser.parse_args()
    if options.policy:
        blas.used()
        os.sched_setscheduler(0, getattr(os, options.policy), os.sched_param(0))
        print(json.dumps({name: measured(work) for name, work in works(options.models[0])}))
        return
    print(f"mlx {metadata.version('mlx')}; {os.cpu_count()} cores; {blas.used()}; medians of {options.rounds} rounds")
    print(f"{'model':>10}  {'work':<26} {'policy':<12} {'s':>7} {'CPU s':>7} {'switches':>10}")
    for model in options.models:
        rounds: dict[str, list[dict[str, Any]]] = {policy: [] for policy in POLICIES}
        for _ in range(options.rounds):
            for policy in POLICIES:
                command = [sys.executable, __file__, str(model), "--policy", policy]
                alone = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
                done = subprocess.run(command, env=alone, stdout=subprocess.PIPE, text=True, check=True)
                rounds[policy].append(json.loads(done.stdout.splitlines()[-1]))
        for work in rounds[POLICIES[0]][0]:
            for policy in POLICIES:
                turns = [turn[work] for turn in rounds[policy]]
                wall, cpu, switches = (statistics.median(turn[field] for turn in turns) for field in turns[0])
                print(f"{model.name:>10}  {work:<26} {policy:<12} {wall:7.2f} {cpu:7.2f} {switches:10,.0f}")


if __name__ == "__main__":
    main()
