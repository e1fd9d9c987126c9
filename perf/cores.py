"""What a second core gives a training step: python perf/cores.py [--rounds 5] [--batch 8]

SmolLM2-135M-Instruct at 4 bits, GSM8K questions and the first 16 tokens of their solutions, LoRA on all layers. The
same step, in turns on one machine, by

  1 thread    one process, one thread of BLAS
  2 threads   one process, two threads of BLAS
  2 ranks     two processes on loopback, as `mlx.launch -n 2` starts them: half of the sequences and one thread each

Reported are medians after a first step of each that does not count: wall time, the CPU time of all threads and
processes, and the CPU time of the thread that took most. Wall time says what a second core
gives only on an idle machine, and the load average is printed; the last figure is what it would be at best.
SmolLM2 and the questions come from the folder that UPFT_SHARED names (default ../shared).
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from turns import RANK, RATE, SCALE, cpu, cpu_of_task, gsm8k_rows, make_model, own_output

CONTESTANTS = {"1 thread": (1, 1), "2 threads": (1, 2), "2 ranks": (2, 1)}
"""Processes, and threads of BLAS in each."""


def work(model: Path, batch: int) -> None:
    """One of a contestant's processes: a step for each line of its input."""
    from upft_mlx.models.adapters import add_lora
    from upft_mlx.models.load import load
    from upft_mlx.recipe.schema import Lora, Train
    from upft_mlx.rows import TrainingRow
    from upft_mlx.training.batches import shared_length, to_examples
    from upft_mlx.training.step import Stepper

    output, loaded = own_output(), load(model)
    rows = [TrainingRow(str(n), str(n), 0, "prefix", **row) for n, row in enumerate(gsm8k_rows(model, batch))]
    examples = to_examples(rows, 2048)
    add_lora(loaded, Lora(rank=RANK, scale=SCALE), 0)
    loaded.model.train()
    stepper = Stepper(loaded.model, Train(), shared=shared_length(examples))
    print("ready", file=output, flush=True)
    for _ in sys.stdin:
        begin, before, by_thread = time.perf_counter(), cpu(), threads()
        loss, _ = stepper.step(examples, RATE, 0)
        found = {"wall": time.perf_counter() - begin, "cpu": cpu() - before, "loss": loss}
        found["busiest"] = max(seconds - by_thread.get(name, 0.0) for name, seconds in threads().items())
        print(json.dumps(found), file=output, flush=True)


def threads() -> dict[str, float]:
    """CPU seconds of each thread of this process."""
    return {task.name: cpu_of_task(task) for task in Path("/proc/self/task").iterdir()}


class Contestant:
    """Its processes, which wait for each step."""

    def __init__(self, name: str, folder: Path, batch: int) -> None:
        count, threads = CONTESTANTS[name]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": str(threads)}
        if count > 1:
            with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
                hosts = [[f"127.0.0.1:{each.getsockname()[1]}"] for each in (one, two)]
            hostfile = folder / "hosts.json"
            hostfile.write_text(json.dumps(hosts))
            environment["MLX_HOSTFILE"] = str(hostfile)
        self.processes = [
            subprocess.Popen(
                [sys.executable, __file__, "--work", str(folder / "model"), "--batch", str(batch)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**environment, **({"MLX_RANK": str(rank)} if count > 1 else {})},
            )
            for rank in range(count)
        ]
        for line in self._lines():
            assert line == "ready\n", f"{name} failed"

    def _lines(self) -> list[str]:
        return [process.stdout.readline() for process in self.processes if process.stdout]

    def step(self) -> dict[str, Any]:
        """Wall time of the slowest process, CPU time of all and of the busiest thread, and the loss."""
        for process in self.processes:
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()
        found = [json.loads(line) for line in self._lines()]
        most = {key: max(one[key] for one in found) for key in ("wall", "busiest", "loss")}
        return {**most, "cpu": sum(one["cpu"] for one in found)}

    def end(self) -> None:
        """No more steps."""
        for process in self.processes:
            assert process.stdin
            process.stdin.close()
        for process in self.processes:
            process.wait()


def main() -> None:
    """The table, or, as one of its processes, a contestant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.batch)
        return
    with tempfile.TemporaryDirectory() as folder:
        make_model("smollm2", Path(folder) / "model")
        contestants = {name: Contestant(name, Path(folder), options.batch) for name in CONTESTANTS}
        loss = {name: one.step()["loss"] for name, one in contestants.items()}
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; loss of the first step {loss}", flush=True)
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
        for _ in range(options.rounds):
            for name, one in contestants.items():
                found[name].append(one.step())
        for one in contestants.values():
            one.end()
    base: dict[str, float] = {}
    for name, steps in found.items():
        medians = {key: statistics.median(step[key] for step in steps) for key in ("wall", "cpu", "busiest")}
        base = base or medians
        print(f"{name:10}", *(f"{key} {each:6.2f} s ({each / base[key]:.2f}x)" for key, each in medians.items()))
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
