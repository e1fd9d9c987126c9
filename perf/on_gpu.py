"""Correctness, the demo, races and memory on this machine's GPU, as one table: bash perf/on_gpu.sh [--small]

  correct    losses and adapter of compiled steps in bfloat16 against plain ones, and of the checks of `upft doctor`
  demo       `upft demo`: seconds and verdict
  training   seconds of a step of ours and of mlx-lm's loss and compiled step, on the same rows
  sampling   seconds for prefixes of 16 tokens by ours and by `mlx_lm.generate.batch_generate`
  evaluation seconds for answers of an adapter's model with the base's answers as drafts, and without
  memory     peak of a training step and of sampling against `upft_mlx.planning.memory`

Models have random weights: Qwen2.5-0.5B's shape with 4 bits (--small: a tiny one). Each part is a process of its own
and is ended after its share of the time; a part that fails is a row that says so. Races take turns; medians are shown.

MLX's CUDA backend compiles each kernel at its first use and keeps it. There all parts first run at once, uncounted, for
at most half of the time: compiling takes one core for each.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import upft_mlx  # noqa: F401  (before mlx: it chooses the BLAS)

SIZES = {
    "full": {"h": 896, "L": 24, "i": 4864, "H": 14, "K": 2, "V": 151936},
    "small": {"h": 64, "L": 2, "i": 128, "H": 4, "K": 2, "V": 512},
}
LENGTHS = {"full": {"P": 64, "T": 160, "t": 16, "B": 16}, "small": {"P": 8, "T": 32, "t": 8, "B": 4}}
ROUNDS = 5
SHARES = {"correct": 130, "demo": 150, "training": 100, "sampling": 80, "evaluation": 80, "memory": 60}
"""The part of the time that each may take at most: seconds, where there are 600 for all."""

Row = tuple[str, str]


def setting(size: str) -> dict[str, Any]:
    """What `plan_memory.py` calls a setting: a model's shape, and prompts of P shared and T own tokens."""
    usual = {"micro": 64, "rank": 16, "nl": -1, "checkpoint": False, "n": 32, "samples": 1, "ends": 0}
    return {**usual, **SIZES[size], **LENGTHS[size], "bf16": size == "full"}  # MLX's CPU backend is slow in 16 bits


def loaded_model(s: dict[str, Any]) -> Any:
    """The random model with the tokenizer's part of `Loaded` that sampling needs."""
    import mlx.core as mx
    from plan_memory import config, model

    from upft_mlx.models.load import Loaded

    mx.random.seed(0)
    tokenizer = SimpleNamespace(eos_token_id=0, eos_token_ids=[0], decode=lambda ids: "")
    return Loaded(model(s), tokenizer, config(s), Path(), mx.bfloat16)


def with_adapter(loaded: Any) -> Any:
    """The model with a fresh LoRA adapter, ready to train."""
    from upft_mlx.models.adapters import add_lora
    from upft_mlx.recipe.schema import Lora

    add_lora(loaded, Lora(rank=16), 1)
    loaded.model.train()
    return loaded


def examples(s: dict[str, Any]) -> list[Any]:
    """Rows of random tokens that share their first P."""
    from upft_mlx.training.batches import Example

    rng = random.Random(0)
    shared, rows = list(range(16, 16 + s["P"])), []
    for number in range(s["B"]):
        own = [rng.randrange(1, s["V"]) for _ in range(rng.randint(s["T"] // 2, s["T"]))]
        rows.append(Example(str(number), [*shared, *own], s["P"] + len(own) - s["t"]))
    return rows


def medians(contestants: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each, in turns, after one turn that is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(ROUNDS + 1):
        for name, work in contestants.items():
            begin = time.perf_counter()
            work()
            if turn:
                taken[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in taken.items()}


# The parts; each yields rows.


def correct(size: str) -> Iterator[Row]:
    """Compiled steps against plain ones, from the same adapter."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    from upft_mlx.inspection.selftest import checks
    from upft_mlx.recipe.schema import Train
    from upft_mlx.training.step import Stepper

    for check in checks():
        yield f"self-test: {check.name}", f"{check.error:.1e}{'' if check.right else ': wrong'}"
    if mx.default_device().type == mx.DeviceType.cpu:
        yield "compiled and plain steps in bfloat16", "left out: only a GPU's steps are compiled"
        return
    s = setting(size)
    losses, adapters = [], []
    for compiled in (False, True):
        loaded = with_adapter(loaded_model({**s, "bf16": True}))
        stepper = Stepper(loaded.model, Train(batch_size=s["B"]), shared=s["P"], compiled=compiled)
        losses.append([stepper.step(examples(s), 1e-4, 1)[0] for _ in range(4)])
        adapters.append(dict(tree_flatten(loaded.model.trainable_parameters())))
    off = max(abs(a - b) / abs(a) for a, b in zip(*losses, strict=True))
    yield "compiled and plain steps in bfloat16: largest difference of 4 losses", f"{off:.1e}"
    difference = sum(mx.sum((adapters[0][name] - array) ** 2).item() for name, array in adapters[1].items())
    whole = sum(mx.sum(array**2).item() for array in adapters[0].values())
    yield "the same: difference of the adapters' norms", f"{(difference / whole) ** 0.5:.1e}"


def demo(size: str) -> Iterator[Row]:
    """`upft demo` from begin to end."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        begin = time.perf_counter()
        command = [sys.executable, "-m", "upft_mlx", "demo", "--plain", "--run-dir", str(run)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        yield "upft demo: seconds", f"{time.perf_counter() - begin:.0f}"
        if done.returncode:
            yield "upft demo", f"failed: {(done.stderr.strip().splitlines() or ['no message'])[-1][:200]}"
            return
        for label, found in json.loads((run / "evaluation" / "summary.json").read_text())["benchmarks"].items():
            yield (
                f"upft demo: {label}, base and tuned",
                f"{found['base']['accuracy']:.1%}, {found['tuned']['accuracy']:.1%}",
            )


def training(size: str) -> Iterator[Row]:
    """A step of ours and one of mlx-lm's."""
    from functools import partial

    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optim
    from mlx_lm.tuner.trainer import default_loss

    from upft_mlx.recipe.schema import Train
    from upft_mlx.training.step import Stepper

    s = setting(size)
    rows = examples(s)
    stepper = Stepper(with_adapter(loaded_model(s)).model, Train(batch_size=s["B"]), shared=s["P"])
    model = with_adapter(loaded_model(s)).model
    optimizer = optim.AdamW(learning_rate=1e-4, bias_correction=True)
    state = [model.state, optimizer.state, mx.random.state]
    gradient = nn.value_and_grad(model, default_loss)
    longest = max(len(row.ids) for row in rows)
    batch = mx.array([row.ids + [0] * (longest - len(row.ids)) for row in rows])
    lengths = mx.array([[row.start, len(row.ids)] for row in rows])

    def step(batch: mx.array, lengths: mx.array) -> mx.array:
        (loss, _), gradients = gradient(model, batch, lengths)
        optimizer.update(model, gradients)
        return loss

    compiled = (
        step
        if mx.default_device().type == mx.DeviceType.cpu
        else partial(mx.compile, inputs=state, outputs=state)(step)
    )
    found = medians(
        {
            "upft_mlx": lambda: stepper.step(rows, 1e-4, 1),
            "mlx-lm": lambda: mx.eval(compiled(batch, lengths), state),
        }
    )
    what = f"training step, {s['B']} rows of {s['P']} + up to {s['T']} tokens"
    for name, seconds in found.items():
        yield f"{what}: {name}, seconds", f"{seconds:.3f}"


def sampling(size: str) -> Iterator[Row]:
    """Prefixes of 16 tokens."""
    from mlx_lm.generate import batch_generate

    from upft_mlx.sampling.decoding import Request
    from upft_mlx.sampling.draw import Sampling
    from upft_mlx.sampling.sampler import Sampler

    s = setting(size)
    loaded = loaded_model(s)
    prompts = [row.ids for row in examples({**s, "B": 32})]
    sampler = Sampler(loaded, Sampling(0.0, batch_size=32))
    found = medians(
        {
            "upft_mlx": lambda: sampler.sample([Request(ids, 16) for ids in prompts], 1),
            "mlx-lm": lambda: batch_generate(loaded.model, loaded.tokenizer, prompts, max_tokens=16),
        }
    )
    for name, seconds in found.items():
        yield f"32 prefixes of 16 tokens: {name}, seconds", f"{seconds:.3f}"


def evaluation(size: str) -> Iterator[Row]:
    """Answers of a model with a small adapter, with the base's as drafts and without."""
    from upft_mlx.sampling.decoding import Request
    from upft_mlx.sampling.draw import Sampling
    from upft_mlx.sampling.sampler import Sampler

    s = setting(size)
    loaded = loaded_model(s)
    prompts = [row.ids for row in examples({**s, "B": 32})]
    requests = [Request(ids, 64) for ids in prompts]
    base = Sampler(loaded, Sampling(0.0, batch_size=32)).sample(requests, 1)
    with_adapter(loaded)
    loaded.model.eval()
    for _, module in loaded.model.named_modules():
        if "lora_b" in module:
            module.lora_b = module.lora_b + 1e-4
    sampler = Sampler(loaded, Sampling(0.0, batch_size=32))
    drafted = [Request(ids, 64, drafts=(found.ids,)) for ids, found in zip(prompts, base, strict=True)]
    accepted = sum(found.accepted for found in sampler.sample(drafted, 1)) / sum(len(found.ids) for found in base)
    found = medians({"with drafts": lambda: sampler.sample(drafted, 1), "without": lambda: sampler.sample(requests, 1)})
    for name, seconds in found.items():
        yield f"32 answers of 64 tokens {name}: seconds", f"{seconds:.3f}"
    yield "tokens taken over from drafts", f"{accepted:.0%}"


def memory(size: str) -> Iterator[Row]:
    """Measured peaks against the plan."""
    import plan_memory as plan

    s = setting(size)
    for what, measure, planned in (
        ("training step", plan.measure_training, plan.planned_training),
        ("the same, checkpointed", plan.measure_training, plan.planned_training),
        ("sampling", plan.measure_sampling, plan.planned_sampling),
    ):
        one = {**s, "checkpoint": "checkpointed" in what}
        expected, found = planned(one), measure(one).peak
        yield (
            f"peak of {what}: planned, measured (MB)",
            f"{expected / 1e6:.1f}, {found / 1e6:.1f} ({expected / found - 1:+.0%})",
        )


PARTS: dict[str, Callable[[str], Iterator[Row]]] = {
    "correct": correct,
    "demo": demo,
    "training": training,
    "sampling": sampling,
    "evaluation": evaluation,
    "memory": memory,
}


def device() -> str:
    """Machine, chip and versions."""
    import mlx.core as mx

    name = mx.device_info().get("device_name", platform.processor() or platform.machine())
    kind = "GPU" if mx.default_device().type == mx.DeviceType.gpu else "CPU"
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in ("upft-mlx", "mlx", "mlx-lm"))
    return f"{name} ({kind}), {platform.system()} {platform.release()}; {versions}; Python {platform.python_version()}"


@contextmanager
def started(part: str, size: str, out: IO[str] | int, errors: IO[str] | int) -> Iterator[subprocess.Popen[bytes]]:
    """One part in a process of its own; with all that it started, it does not outlive the block."""
    command = [sys.executable, __file__, "--part", part, *(["--small"] if size == "small" else [])]
    process = subprocess.Popen(command, stdout=out, stderr=errors, start_new_session=True)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def compile_all(parts: Sequence[str], size: str, limit: float) -> Row:
    """Run the parts at once so that their kernels are compiled; those not done by then are ended."""
    begin, unfinished, nowhere = time.monotonic(), [], subprocess.DEVNULL
    with ExitStack() as stack:
        running = {part: stack.enter_context(started(part, size, nowhere, nowhere)) for part in parts}
        for part, process in running.items():
            try:
                process.wait(max(0.0, begin + limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                unfinished.append(part)
    found = f"{time.monotonic() - begin:.0f} s" + (f"; not done: {', '.join(unfinished)}" if unfinished else "")
    return "first use of all kernels, which MLX compiles", found


def main() -> None:
    """Run the parts, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tiny model, to see that everything runs")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    parser.add_argument("--seconds", type=int, default=600, help="time for everything (default 600)")
    parser.add_argument("--only", choices=PARTS, action="append", help="only these parts")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = "small" if options.small else "full"
    if options.part:
        for row in PARTS[options.part](size):
            print(json.dumps(row), flush=True)
        return
    import mlx.core as mx

    lines = [f"{device()}; {size}", "", "| what | found |", "|---|---|"]
    print("\n".join(lines), flush=True)
    failed, parts, seconds = False, options.only or list(PARTS), options.seconds
    if mx.cuda.is_available():
        seconds /= 2
        lines.append("| {} | {} |".format(*compile_all(parts, size, seconds)))
        print(lines[-1], flush=True)
    for part in parts:
        limit = SHARES[part] * seconds / 600
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
            with started(part, size, out, errors) as process:
                try:
                    status = str(process.wait(limit))
                except subprocess.TimeoutExpired:
                    status = f"ended after {limit:.0f} s"
            out.seek(0)
            errors.seek(0)
            rows = [json.loads(line) for line in out if line.startswith("[")]
            if status != "0":
                failed = True
                rows.append((part, f"failed ({status}): {(errors.read().strip().splitlines() or [''])[-1][:200]}"))
        for what, found in rows:
            lines.append(f"| {what} | {found} |")
            print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.exit(failed)


if __name__ == "__main__":
    main()
