"""What a training step costs here and elsewhere: python perf/train_step.py [--shape tiny] [--unsloth-python PYTHON]

Contestants, each in a process and with an empty kernel cache of its own, take turns of a few steps on one machine:

  ours         upft_mlx.training.train.train on dataset/train.jsonl
  ours whole   the same with train.micro_batch_size at the whole batch, for the time that smaller passes cost
  ours plain   the same without the dense copies that upft_mlx/models/cpu_layers.py makes on MLX's CPU backend and
               nowhere else: what is left of the difference is in operations that are not needed on any device
  mlx-lm       `mlx_lm lora --mask-prompt` as people run it: prompt / completion data, its own loop and batches
  mlx-lm step  mlx-lm's loss and compiled step on our batches
  unsloth      unsloth-zoo's MLX trainer on the same token ids, where --unsloth-python names an environment that has it

All train the same rows (GSM8K questions with the paper's template, the first 16 tokens of the solution, EOS) with the
same LoRA (rank 16 on all layers) and AdamW. Seconds hold everything between a turn's begin and end: compilation, and
the processes that it starts. Peak memory is MLX's, loading included. Padding counts the tokens that were passed through
the model and belong to no sequence.

`ours` also measures what is left to gain: the matrix products that one of its steps cannot do without are timed one by
one at their real shapes and set against that step (see `products`); `spent` in turns.py says what Python takes of the
CPU time.

All run on the BLAS that ours loads (LD_PRELOAD), one thread each. The models come from make_qwen.py, or with --shape
smollm2 it is SmolLM2-135M-Instruct at 4 bits. With --shape smollm2-float32 no weights are quantized, for anybody: the
others compute 4-bit products, which are slow on a CPU, and a race on them is one of those products alone. The questions
come from the data folder that UPFT_SHARED names (default ../shared).
An environment for unsloth-zoo, which is LGPL and imported by nothing here:

  python3.11 -m venv U && U/bin/pip install 'unsloth-zoo>=2026.10' mlx-lm 'mlx[cpu]'
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from contestants import mlx_lm, mlx_lm_step, ours, unsloth
from turns import gsm8k_rows, make_model, own_output, write

CONTESTANTS = ("ours", "ours whole", "ours plain", "mlx-lm", "mlx-lm step", "unsloth")


def prepare(work: Path, options: argparse.Namespace) -> None:
    """model/, rows.jsonl (token ids), texts.jsonl (rendered prompts), data/ (as mlx-lm takes it)."""
    from upft_mlx.models.load import load_tokenizer

    make_model(options.shape, work / "model")
    rows = gsm8k_rows(work / "model", options.steps * options.batch)
    tokenizer = load_tokenizer(work / "model")
    data = [{name: row[name] for name in ("prompt", "completion")} for row in rows]
    write(work / "rows.jsonl", rows)
    write(work / "data" / "train.jsonl", data)
    write(work / "data" / "valid.jsonl", data[: options.batch])
    rendered = ({"rendered": tokenizer.decode(row["prompt_ids"]), "completion": row["completion"]} for row in rows)
    write(work / "texts.jsonl", rendered)


class Runner:
    """A contestant's process."""

    def __init__(self, name: str, work: Path, options: argparse.Namespace) -> None:
        self.name, self.turns, self.facts = name, [], {}
        cache = work / f"cache of {name}"
        cache.mkdir()
        python = options.unsloth_python if name == "unsloth" else sys.executable
        command = [python, __file__, "--contestant", name, "--work", str(work)]
        for option in ("steps", "batch", "turn", "micro_batch"):
            command += [f"--{option.replace('_', '-')}", str(getattr(options, option))]
        self.errors = (work / f"errors of {name}").open("w+")
        environment = {**os.environ, "TMPDIR": str(cache), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        from upft_mlx.machine import blas  # not at the top: a contestant's environment need not have this package

        if (used := blas.used()).path:  # all on the same BLAS, whatever they would load by themselves
            environment |= {"LD_PRELOAD": used.path, "OPENBLAS_NUM_THREADS": str(used.threads)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment
        )
        self.read()

    def read(self) -> dict[str, Any]:
        """The next line that it says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise SystemExit(f"{self.name} failed:\n{self.errors.read()[-3000:]}")
        value: dict[str, Any] = json.loads(line)
        return value

    def go(self) -> None:
        """Let it work for a turn."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def turn(self) -> None:
        """A turn of steps."""
        self.go()
        self.turns.append(self.read())

    def finish(self) -> dict[str, Any]:
        """Its last words, and its numbers."""
        self.go()
        self.facts = self.read()
        steps = sum(turn["steps"] for turn in self.turns)
        wall, cpu_seconds = (sum(turn[key] for turn in self.turns) for key in ("wall", "cpu"))
        if self.name == "ours":
            self.go()
            self.facts["left"] = self.read()
        later = self.turns[1:] or self.turns
        return {
            "steps": steps,
            "seconds": wall,
            "cpu_seconds": cpu_seconds,
            "first_turn_seconds": self.turns[0]["wall"],
            "seconds_per_step_later": sum(t["wall"] for t in later) / sum(t["steps"] for t in later),
            "cpu_seconds_per_step_later": sum(t["cpu"] for t in later) / sum(t["steps"] for t in later),
            **self.facts,
        }


def race(options: argparse.Namespace) -> dict[str, Any]:
    """All contestants, turn by turn."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        prepare(work, options)
        names = [name for name in options.contestants.split(",") if name != "unsloth" or options.unsloth_python]
        runners = [Runner(name, work, options) for name in names]
        for number in range(options.steps // options.turn):
            for runner in runners:
                runner.turn()
            print(f"{(number + 1) * options.turn} of {options.steps} steps", file=sys.stderr)
        return {runner.name: runner.finish() for runner in runners}


def show(results: dict[str, Any], options: argparse.Namespace) -> None:
    """The table, with ratios against ours, and what is left to gain."""
    mine = results["ours"]
    columns = (
        "ex/s",
        "ex/CPU s",
        "ours is",
        "by CPU",
        "later",
        "its CPU",
        "1st turn",
        "padding",
        "peak MB",
        "ours has",
    )
    print(" " * 12, *(f"{column:>9}" for column in columns))
    for name, one in results.items():
        examples = one["steps"] * options.batch
        cells = (
            f"{examples / one['seconds']:.2f}",
            f"{examples / one['cpu_seconds']:.2f}",
            f"{one['seconds'] / mine['seconds']:.2f}x",
            f"{one['cpu_seconds'] / mine['cpu_seconds']:.2f}x",
            f"{one['seconds_per_step_later'] / mine['seconds_per_step_later']:.2f}x",
            f"{one['cpu_seconds_per_step_later'] / mine['cpu_seconds_per_step_later']:.2f}x",
            f"{one['first_turn_seconds']:.1f} s",
            f"{one['padding'] / one['processed']:.1%}" if one.get("processed") else "?",
            f"{one['peak_memory_bytes'] / 1e6:.0f}",
            f"{mine['peak_memory_bytes'] / one['peak_memory_bytes']:.2f}x",
        )
        print(f"{name:>12}", *(f"{cell:>9}" for cell in cells))
    left = mine["left"]
    shapes = ", then ".join(" x ".join(map(str, shape)) for shape in left["shapes"])
    print(f"a step of {shapes} tokens: {left['step']:.3f} CPU s, Python {mine['python_share']:.1%}")
    print(
        f"its {left['gflop']:.1f} GFLOP of matrix products one by one: {left['products']:.3f} CPU s, "
        f"{left['products'] / left['step']:.0%} of the step"
    )


def main() -> None:
    """The race, or, as one of its processes, a contestant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="ratio-0.5b")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--micro-batch", type=int, default=0, help="train.micro_batch_size of ours; 0: unset")
    parser.add_argument("--turn", type=int, default=5, help="steps per turn")
    parser.add_argument("--contestants", default=",".join(CONTESTANTS))
    parser.add_argument("--unsloth-python", help="of an environment with unsloth-zoo; unset: it is left out")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        own_output()
        others = {"mlx-lm": mlx_lm, "mlx-lm step": mlx_lm_step, "unsloth": unsloth}
        others.get(options.contestant, ours)(options.work, options)
        return
    names = options.contestants.split(",")
    if not {"ours"} <= set(names) <= set(CONTESTANTS):
        parser.error(f"--contestants {options.contestants}: ours and some of {', '.join(CONTESTANTS[1:])}")
    if options.steps % options.turn:
        raise SystemExit(f"--steps {options.steps}: not a multiple of --turn {options.turn}")
    versions = {name: metadata.version(name) for name in ("upft-mlx", "mlx", "mlx-lm")}
    machine = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
    from upft_mlx.machine import blas

    machine["blas"] = str(blas.used())
    shape = {key: getattr(options, key) for key in ("shape", "steps", "batch", "micro_batch")}
    print("; ".join(f"{key} {value}" for key, value in {**versions, **machine, **shape}.items()))
    results = race(options)
    show(results, options)
    if options.json:
        text = json.dumps({"versions": versions, "machine": machine, **shape, "results": results}, indent=2)
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
