"""What the race and its contestants share: turns, CPU seconds, and the recipe."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parent.parent


SHARED = Path(os.environ.get("UPFT_SHARED", ROOT.parent / "shared"))


SMOLLM2 = ("smollm2", "smollm2-float32")
"""Shapes that are SmolLM2-135M-Instruct: at 4 bits, or the same numbers as a model that is not quantized."""
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


def make_model(shape: str, folder: Path) -> None:
    """The model of a shape, in a new folder.

    SmolLM2 is the folder that UPFT_SMOLLM2 names, or comes from make_smollm2.py; other shapes from make_qwen.py.
    """
    if not SHARED.is_dir():
        raise SystemExit(f"{SHARED}: not there; set UPFT_SHARED to the folder with make_qwen.py and the questions")
    if shape not in SMOLLM2:
        _make("make_qwen.py", folder, "--shape", shape)
    elif made := os.environ.get("UPFT_SMOLLM2"):
        folder.symlink_to(Path(made).resolve())
    else:
        _make("make_smollm2.py", folder)
    if shape == "smollm2-float32":
        from mlx_lm import convert

        quantized = folder.rename(folder.with_name("quantized"))
        convert(str(quantized), str(folder), dequantize=True, dtype="float32")


def _make(script: str, folder: Path, *options: str) -> None:
    command = [sys.executable, str(SHARED / "bin" / script), str(folder), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def cpu_of_task(task: Path) -> float:
    """CPU seconds of a thread, by its folder in /proc."""
    return int((task / "schedstat").read_text().split()[0]) / 1e9


def cpu_of_workers() -> float:
    """CPU seconds of the processes that this one has started and that still run, such as graders; Linux only."""
    tasks = Path("/proc/self/task").glob("*/children")
    workers = [Path("/proc") / worker / "task" for task in tasks for worker in task.read_text().split()]
    return sum(cpu_of_task(task) for worker in workers for task in worker.iterdir())


class InMlx:
    """CPU seconds of the main thread inside functions of MLX that wait for its threads, while this is entered."""

    def __init__(self) -> None:
        import mlx.core as mx

        self.seconds = 0.0
        places: tuple[tuple[Any, str], ...] = (mx, "eval"), (mx, "async_eval"), (mx.array, "tolist"), (mx.array, "item")
        self._originals = [(owner, name, getattr(owner, name)) for owner, name in places]

    def __enter__(self) -> InMlx:
        for owner, name, function in self._originals:
            setattr(owner, name, self._timed(function))
        return self

    def __exit__(self, *_: object) -> None:
        for owner, name, function in self._originals:
            setattr(owner, name, function)

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.thread_time() - begin

        return timed


def spent(inside: InMlx) -> dict[str, float]:
    """CPU seconds so far, by who took them."""
    ours = {thread.native_id for thread in threading.enumerate()}
    mlx = python = 0.0
    for task in Path("/proc/self/task").iterdir():
        if int(task.name) in ours:
            python += cpu_of_task(task)
        else:
            mlx += cpu_of_task(task)
    return {"MLX": mlx, "eval": inside.seconds, "Python": python - inside.seconds, "workers": cpu_of_workers()}


def gsm8k_rows(model: Path, count: int) -> list[dict[str, Any]]:
    """What trainers are given: questions with the paper's template, the first tokens of their solutions, and EOS."""
    from upft_mlx.models.chat import Renderer
    from upft_mlx.models.load import load_tokenizer
    from upft_mlx.recipe.schema import PAPER_TEMPLATE, Prompt

    tokenizer = load_tokenizer(model)
    renderer, rows = Renderer(tokenizer, Prompt()), []
    for problem in read(SHARED / "data" / "benchmarks" / "gsm8k_train.jsonl")[:count]:
        question = problem["question"] + PAPER_TEMPLATE
        solution = tokenizer.encode(problem["solution"], add_special_tokens=False)[:PREFIX]
        ids = {"prompt_ids": renderer.ids(question), "completion_ids": [*solution, tokenizer.eos_token_id]}
        rows.append({"prompt": question, "completion": tokenizer.decode(solution), **ids})
    return rows


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """A JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


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
