"""What a training step costs here and elsewhere: python perf/train_step.py [--shape tiny] [--unsloth-python PYTHON]

Contestants, each in a process and with an empty kernel cache of its own, take turns of a few steps on one machine:

  ours         upft_mlx.training.train.train on dataset/train.jsonl
  ours whole   the same with train.micro_batch_size at the whole batch, for the time that smaller passes cost
  ours plain   the same without the dense copies that upft_mlx/models/dense_cpu.py makes on MLX's CPU backend and
  nowhere else: what
               is left of the difference is in operations that are not needed on any device
  mlx-lm       `mlx_lm lora --mask-prompt` as people run it: prompt / completion data, its own loop and batches
  mlx-lm step  mlx-lm's loss and compiled step on our batches
  unsloth      unsloth-zoo's MLX trainer on the same token ids, where --unsloth-python names an environment that has it

All train the same rows (GSM8K questions with the paper's template, the first 16 tokens of the solution, EOS) with the
same LoRA (rank 16 on all layers) and AdamW. Seconds hold everything between a turn's begin and end: compilation, and
the processes that it starts. Peak memory is MLX's, loading included. Padding counts the tokens that were passed through
the model and belong to no sequence.

`ours` also measures what is left to gain: the matrix products that one of its steps cannot do without are timed one by
one at their real shapes and set against that step (see `products`); the time outside of mx.eval is what Python takes.

All run on the BLAS that ours loads (LD_PRELOAD), one thread each. The models come from make_qwen.py, or, with
--shape smollm2, SmolLM2-135M-Instruct at 4 bits from make_smollm2.py, and the questions from the data folder that
UPFT_SHARED names (default ../shared).
An environment for unsloth-zoo, which is LGPL and imported by nothing here:

  python3.11 -m venv U && U/bin/pip install 'unsloth-zoo>=2026.10' mlx-lm 'mlx[cpu]'
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

from upft_mlx.machine import blas

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("UPFT_SHARED", ROOT.parent / "shared"))
PREFIX = 16
RANK, SCALE, RATE, BETAS = 16, 2.0, 1e-4, (0.9, 0.95)
CONTESTANTS = ("ours", "ours whole", "ours plain", "mlx-lm", "mlx-lm step", "unsloth")


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
        """Say what there is to say at the end."""
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


# The contestants. Each is called in a process of its own with the work folder (model/, rows.jsonl) and the options.


def ours(work: Path, options: argparse.Namespace) -> None:
    """upft_mlx's trainer as `upft train` calls it."""
    import mlx.core as mx

    import upft_mlx.models.dense_cpu
    from upft_mlx.events import Event, Progress, Trained
    from upft_mlx.models.load import load
    from upft_mlx.rows import TrainingRow, write_rows
    from upft_mlx.rundir import RunDir
    from upft_mlx.training.train import train

    if options.contestant == "ours plain":
        upft_mlx.models.dense_cpu.add_dense_copies = lambda _: False
    run = RunDir(work / f"run of {options.contestant}")
    rows = [TrainingRow(str(i), str(i), 0, "prefix", **row) for i, row in enumerate(read(work / "rows.jsonl"))]
    write_rows(run.train, rows)
    write_rows(run.valid, [])
    loaded = load(work / "model")
    turns, counts = Turns(options.turn), [0, 0]
    evaluated, waiting, begin = Stopwatch(mx, "eval"), Stopwatch(turns, "_wait"), []

    def watch(event: Event) -> None:
        if isinstance(event, Progress) and event.done:
            turns.step()
        elif isinstance(event, Progress):  # what comes before the first step is not a step's cost
            evaluated.seconds = waiting.seconds = 0.0
            begin.append(time.perf_counter())
        if isinstance(event, Trained):
            for index, name in enumerate(("processed_tokens", "padding_tokens")):
                counts[index] += int(event.metrics[name])

    train(recipe(options), loaded, run, watch)
    total = time.perf_counter() - begin[0] - waiting.seconds
    evaluated.remove()
    turns.end(processed=counts[0], padding=counts[1], python_share=1 - evaluated.seconds / total)
    if options.contestant == "ours":
        turns._wait()
        turns._say(left_to_gain(run.train, options, loaded))


class Stopwatch:
    """Adds up the seconds inside a function that others call as `owner.name`."""

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name, self.original, self.seconds = owner, name, getattr(owner, name), 0.0
        setattr(owner, name, self._timed)

    def _timed(self, *args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        try:
            return self.original(*args, **kwargs)
        finally:
            self.seconds += time.perf_counter() - begin

    def remove(self) -> None:
        """Put the function back."""
        setattr(self.owner, self.name, self.original)


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


def mlx_lm(work: Path, options: argparse.Namespace) -> None:
    """`mlx_lm lora --mask-prompt`, called as its command line calls it."""
    import functools

    from mlx_lm import lora
    from mlx_lm.tuner import trainer

    turns: list[Turns] = []
    counts = [0, 0]

    def batches(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for batch, lengths in trainer.iterate_batches(*args, **kwargs):
            inputs = batch.shape[0] * (batch.shape[1] - 1)
            counts[0] += inputs
            counts[1] += inputs - int((lengths[:, 1] - 1).sum().item())
            yield batch, lengths

    callback = trainer.TrainingCallback()
    callback.on_train_loss_report = lambda _: turns[0].report(options.turn)

    def train(*args: Any, **kwargs: Any) -> None:
        turns.append(Turns(options.turn))  # the model is loaded, nothing is trained
        trainer.train(*args, **kwargs, iterate_batches=batches)

    lora.get_reporting_callbacks = lambda *_, **__: callback
    lora.train = functools.wraps(trainer.train)(train)
    settings = {
        "model": str(work / "model"),
        "train": True,
        "data": str(work / "data"),
        "mask_prompt": True,
        "batch_size": options.batch,
        "iters": options.steps,
        "val_batches": 0,
        "steps_per_eval": 10**6,
        "steps_per_report": options.turn,
        "save_every": 10**6,
        "num_layers": -1,
        "adapter_path": str(work / "adapters"),
        "learning_rate": RATE,
        "optimizer": "adamw",
        "optimizer_config": {"adamw": {"betas": list(BETAS), "bias_correction": True, "weight_decay": 0.0}},
        "lora_parameters": {"rank": RANK, "dropout": 0.0, "scale": SCALE},
    }
    lora.run(SimpleNamespace(**{**lora.CONFIG_DEFAULTS, **settings}))
    turns[0].end(processed=counts[0], padding=counts[1])


def mlx_lm_step(work: Path, options: argparse.Namespace) -> None:
    """mlx-lm's loss and compiled step (tuner/trainer.py) on the batches that `ours` trains."""
    from functools import partial

    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optim
    from mlx_lm.tuner.trainer import default_loss
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load

    from upft_mlx.training.batches import Example, steps_from

    model, _ = load(str(work / "model"))
    model.freeze()
    mx.random.seed(0)
    linear_to_lora_layers(model, -1, {"rank": RANK, "dropout": 0.0, "scale": SCALE})
    optimizer = optim.AdamW(learning_rate=RATE, betas=list(BETAS), bias_correction=True, weight_decay=0.0)
    state = [model.state, optimizer.state, mx.random.state]
    gradient = nn.value_and_grad(model, default_loss)

    @partial(mx.compile, inputs=state, outputs=state)
    def step(batch: Any, lengths: Any) -> Any:
        (loss, tokens), grad = gradient(model, batch, lengths)
        optimizer.update(model, grad)
        return loss, tokens

    model.train()
    rows = read(work / "rows.jsonl")
    examples = [
        Example(str(i), row["prompt_ids"] + row["completion_ids"], len(row["prompt_ids"])) for i, row in enumerate(rows)
    ]
    stream = steps_from(examples, options.batch, 0, 0)
    turns, processed, padding = Turns(options.turn), 0, 0
    for _ in range(options.steps):
        part = next(stream)[1]
        tokens, lengths = plain_arrays(part)
        processed += tokens.shape[0] * (tokens.shape[1] - 1)
        padding += tokens.shape[0] * (tokens.shape[1] - 1) - sum(len(e.ids) - 1 for e in part)
        loss, count = step(tokens, lengths)
        mx.eval(state, loss, count)
        turns.step()
    turns.end(processed=processed, padding=padding)


def plain_arrays(examples: list[Any]) -> tuple[Any, Any]:
    """Token ids (B, 1 + a multiple of 8) and (offset, length) (B, 2), as mlx-lm's loss takes them."""
    import mlx.core as mx
    import numpy as np

    from upft_mlx.training.batches import PAD_TOKENS

    longest = max(len(e.ids) for e in examples) - 1
    tokens = np.zeros((len(examples), 1 + -(-longest // PAD_TOKENS) * PAD_TOKENS), np.int32)
    for index, example in enumerate(examples):
        tokens[index, : len(example.ids)] = example.ids
    return mx.array(tokens), mx.array([[e.start, len(e.ids) - 1] for e in examples])


def unsloth(work: Path, options: argparse.Namespace) -> None:
    """unsloth-zoo's MLX trainer; it works on Linux when told that this is a Mac, after torch has been imported."""
    import datasets
    import torch  # noqa: F401
    import transformers  # noqa: F401

    platform.system = lambda: "Darwin"  # type: ignore[assignment]
    platform.machine = lambda: "arm64"  # type: ignore[assignment]
    from unsloth_zoo.mlx.loader import FastMLXModel
    from unsloth_zoo.mlx.trainer import MLXTrainer, MLXTrainingConfig

    model, tokenizer = FastMLXModel.from_pretrained(str(work / "model"), max_seq_length=2048, dtype="float32")
    model = FastMLXModel.get_peft_model(
        model, r=RANK, lora_alpha=int(SCALE * RANK), lora_dropout=0.0, use_gradient_checkpointing=False
    )
    config = MLXTrainingConfig(
        per_device_train_batch_size=options.batch,
        gradient_accumulation_steps=1,
        max_steps=options.steps,
        warmup_steps=0,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        logging_steps=10**6,
        output_dir=str(work / "unsloth"),
        gradient_checkpointing=False,
        completion_only_loss=True,
        train_on_completions=True,
        max_seq_length=2048,
    )
    rows = [{"prompt": r["rendered"], "completion": r["completion"]} for r in read(work / "texts.jsonl")]
    holder: list[Turns] = []

    class Callback:
        """Takes turns; whatever else the trainer calls it does not mind."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            holder.append(Turns(options.turn))

        def on_step_end(self, *_: Any, **__: Any) -> None:
            holder[0].step()

        def __getattr__(self, name: str) -> Callable[..., None]:
            if name.startswith("on_"):
                return lambda *_, **__: None
            raise AttributeError(name)

    trainer = MLXTrainer(model, tokenizer, datasets.Dataset.from_list(rows), args=config, callbacks=[Callback()])
    result = dict(trainer.train())
    processed = result["compile_shape_guard"]["original_tokens"]
    needed = sum(len(r["prompt_ids"]) + len(r["completion_ids"]) for r in read(work / "rows.jsonl"))
    assert result["trained_tokens"] == sum(len(r["completion_ids"]) for r in read(work / "rows.jsonl"))
    versions = {name: metadata.version(name) for name in ("unsloth-zoo", "mlx", "mlx-lm")}
    holder[0].end(processed=processed, padding=processed - needed, versions=versions)


# What is left to gain.

Products = dict[tuple[Any, ...], int]


def products(config: dict[str, Any], batch: int, length: int, shared: int, supervised: int) -> Products:
    """The matrix products of one step that nothing can spare, as (kind, sizes) and how often.

    Counted are: the frozen quantized matrices forward, and backward to their inputs, but for the first layer's
    q, k and v, whose inputs need no gradient; LoRA's two factors forward, their gradients and those of their inputs;
    attention's two products forward and four backward; the head at the supervised positions, forward and backward.
    Shared tokens go through once, and in the last layer only their keys and values are needed. Padding is counted as
    it is computed. Not counted is what is no matrix product: norms, rotations, softmax, activations, the optimizer.
    """
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or hidden // heads
    linear = {"q": (hidden, heads * size), "k": (hidden, groups * size), "v": (hidden, groups * size)}
    linear |= {"o": (heads * size, hidden), "gate": (hidden, inner), "up": (hidden, inner), "down": (inner, hidden)}
    found: Products = {}

    def add(*key: Any) -> None:
        found[key] = found.get(key, 0) + 1

    for layer in range(layers):
        for rows in filter(None, (batch * length, shared)):
            for name, (into, out) in linear.items():
                if rows == shared and layer == layers - 1 and name not in "kv":
                    continue
                add("forward", rows, into, out)
                add("dense", rows, into, RANK)
                add("dense", rows, RANK, out)
                add("dense", rows, out, RANK)  # to the inner activation
                add("dense", RANK, rows, out)  # to B
                add("dense", into, rows, RANK)  # to A
                if layer or name not in "qkv":
                    add("backward", rows, into, out)
                    add("dense", rows, RANK, into)
        for own, keys, copies in ((length, shared + length, batch), (shared, shared, 1)):
            if own and not (copies == 1 and layer == layers - 1 and own == shared):
                for into, out in ((size, keys), (keys, size), (size, keys), (keys, size)):
                    add("attention", copies * heads, own, into, out)
                for _ in range(2):  # to keys and to values
                    add("attention", copies * heads, keys, own, size)
    add("head", supervised, hidden, config["vocab_size"])
    add("backward", supervised, hidden, config["vocab_size"])
    return found


def flop(key: tuple[Any, ...]) -> int:
    """Operations of one product; a multiplication and an addition are two."""
    total = 2
    for size in key[1:]:
        total *= size
    return total


def timed(key: tuple[Any, ...]) -> float:
    """CPU seconds of one product at its real shape and type, the mean of three after a first.

    Frozen matrices compute with their dense copies (upft_mlx/models/dense_cpu.py).
    """
    import mlx.core as mx

    kind, *sizes = key
    if kind in ("forward", "backward", "head"):
        rows, into, out = sizes
        weight = mx.random.normal((into, out))
        x = mx.random.normal((1, rows, out if kind == "backward" else into))
        mx.eval(weight, x)
        run = lambda: x @ (weight.T if kind == "backward" else weight)  # noqa: E731
    else:
        *stack, rows, into, out = sizes
        a, b = mx.random.normal((*stack, rows, into)), mx.random.normal((*stack, into, out))
        mx.eval(a, b)
        run = lambda: a @ b  # noqa: E731
    mx.eval(run())
    begin = cpu()
    for _ in range(3):
        mx.eval(run())
    return (cpu() - begin) / 3


def left_to_gain(rows: Path, options: argparse.Namespace, loaded: Any) -> dict[str, Any]:
    """CPU seconds of a step of middle length, and of the products that it cannot do without; measured in turns."""
    from upft_mlx.rows import TrainingRow, read_rows
    from upft_mlx.training.batches import split, steps_from, to_examples
    from upft_mlx.training.step import Stepper
    from upft_mlx.training.train import shared_length

    examples = to_examples(list(read_rows(rows, TrainingRow)), 2048)
    stepper = Stepper(loaded.model, recipe(options).train, shared=shared_length(examples))
    stream = steps_from(examples, options.batch, 0, 0)
    steps = sorted((next(stream)[1] for _ in range(options.steps)), key=lambda part: max(len(e.ids) for e in part))
    part = steps[len(steps) // 2]
    config, needed = loaded.config, Counter[tuple[Any, ...]]()
    batches = split(part, None, stepper.shared)
    for batch in batches:
        needed.update(products(config, *batch.tokens.shape, stepper.shared, len(batch.rows)))
    stepper.step(part, RATE, 0)
    step, alone = [], []
    for seed in range(3):
        begin = cpu()
        stepper.step(part, RATE, seed)
        step.append(cpu() - begin)
        alone.append(sum(timed(key) * count for key, count in needed.items()))
    gflop = sum(flop(key) * count for key, count in needed.items()) / 1e9
    shapes = [list(batch.tokens.shape) for batch in batches]
    return {"step": sum(step) / 3, "products": sum(alone) / 3, "gflop": gflop, "shapes": shapes}


# The race.


def prepare(work: Path, options: argparse.Namespace) -> None:
    """model/, rows.jsonl (token ids), texts.jsonl (rendered prompts), data/ (as mlx-lm takes it)."""
    from upft_mlx.models.chat import Renderer
    from upft_mlx.models.load import load_tokenizer
    from upft_mlx.recipe.schema import PAPER_TEMPLATE, Prompt

    real = options.shape == "smollm2"
    make = [sys.executable, str(SHARED / "bin" / ("make_smollm2.py" if real else "make_qwen.py")), str(work / "model")]
    subprocess.run([*make, *([] if real else ["--shape", options.shape])], check=True, stdout=subprocess.DEVNULL)
    tokenizer = load_tokenizer(work / "model")
    renderer = Renderer(tokenizer, Prompt())
    rows, texts, data = [], [], []
    for problem in read(SHARED / "data" / "benchmarks" / "gsm8k_train.jsonl")[: options.steps * options.batch]:
        question = problem["question"] + PAPER_TEMPLATE
        prompt_ids = renderer.ids(question)
        solution = tokenizer.encode(problem["solution"], add_special_tokens=False)[:PREFIX]
        text = tokenizer.decode(solution)
        ids = {"prompt_ids": prompt_ids, "completion_ids": [*solution, tokenizer.eos_token_id]}
        rows.append({"prompt": question, "completion": text, **ids})
        texts.append({"rendered": tokenizer.decode(prompt_ids), "completion": text})
        data.append({"prompt": question, "completion": text})
    (work / "data").mkdir()
    for name, lines in {"rows": rows, "texts": texts, "data/train": data, "data/valid": data[: options.batch]}.items():
        (work / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


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
    columns = ("ex/s", "ex/CPU s", "ours is", "by CPU", "later", "1st turn", "padding", "peak MB", "ours has")
    print(" " * 12, *(f"{column:>9}" for column in columns))
    for name, one in results.items():
        examples = one["steps"] * options.batch
        cells = (
            f"{examples / one['seconds']:.2f}",
            f"{examples / one['cpu_seconds']:.2f}",
            f"{one['seconds'] / mine['seconds']:.2f}x",
            f"{one['cpu_seconds'] / mine['cpu_seconds']:.2f}x",
            f"{one['seconds_per_step_later'] / mine['seconds_per_step_later']:.2f}x",
            f"{one['first_turn_seconds']:.1f} s",
            f"{one['padding'] / one['processed']:.1%}" if one.get("processed") else "?",
            f"{one['peak_memory_bytes'] / 1e6:.0f}",
            f"{mine['peak_memory_bytes'] / one['peak_memory_bytes']:.2f}x",
        )
        print(f"{name:>12}", *(f"{cell:>9}" for cell in cells))
    left = mine["left"]
    shapes = ", then ".join(" x ".join(map(str, shape)) for shape in left["shapes"])
    print(f"a step of {shapes} tokens: {left['step']:.3f} CPU s, Python outside of MLX {mine['python_share']:.1%}")
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
    if not SHARED.is_dir():
        raise SystemExit(f"{SHARED}: not there; set UPFT_SHARED to the folder with make_qwen.py and the questions")
    if options.steps % options.turn:
        raise SystemExit(f"--steps {options.steps}: not a multiple of --turn {options.turn}")
    versions = {name: metadata.version(name) for name in ("upft-mlx", "mlx", "mlx-lm")}
    machine = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
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
