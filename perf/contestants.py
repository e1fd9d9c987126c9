"""The contestants of train_step.py. Each is called in a process of its own with the work folder and the options."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from least_work import left_to_gain
from turns import BETAS, RANK, RATE, SCALE, InMlx, Turns, read, recipe, spent


def ours(work: Path, options: argparse.Namespace) -> None:
    """upft_mlx's trainer as `upft train` calls it."""
    import upft_mlx.models.cpu_layers
    from upft_mlx.events import Event, Progress, Trained
    from upft_mlx.models.load import load
    from upft_mlx.rows import TrainingRow, write_rows
    from upft_mlx.rundir import RunDir
    from upft_mlx.training.train import train

    if options.contestant == "ours plain":
        upft_mlx.models.cpu_layers.add_dense_copies = lambda _: False
    run = RunDir(work / f"run of {options.contestant}")
    rows = [TrainingRow(str(i), str(i), 0, "prefix", **row) for i, row in enumerate(read(work / "rows.jsonl"))]
    write_rows(run.train, rows)
    write_rows(run.valid, [])
    loaded = load(work / "model")
    turns, counts = Turns(options.turn), [0, 0]
    marks: list[dict[str, float]] = []

    def watch(event: Event) -> None:
        if isinstance(event, Progress) and event.done:
            turns.step()
        elif isinstance(event, Progress):  # what comes before the first step is not a step's cost
            marks.append(spent(inside))
        if isinstance(event, Trained):
            for index, name in enumerate(("processed_tokens", "padding_tokens")):
                counts[index] += int(event.metrics[name])

    with InMlx() as inside:
        train(recipe(options), loaded, run, watch)
        seconds = {name: after - marks[0][name] for name, after in spent(inside).items()}
    python_share = seconds["Python"] / sum(seconds.values())
    turns.end(processed=counts[0], padding=counts[1], python_share=python_share)
    if options.contestant == "ours":
        turns._wait()
        turns._say(left_to_gain(run.train, options, loaded))


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
    import torch  # noqa: F401  # must be imported before the platform is faked
    import transformers  # noqa: F401  # likewise

    platform.system = lambda: "Darwin"  # type: ignore[assignment]  # a stand-in
    platform.machine = lambda: "arm64"  # type: ignore[assignment]  # a stand-in
    from unsloth_zoo.mlx.loader import FastMLXModel
    from unsloth_zoo.mlx.trainer import MLXTrainer, MLXTrainingConfig

    folder = work / "model"
    quantized = "quantization" in json.loads((folder / "config.json").read_text())  # else it would quantize to 4 bits
    model, tokenizer = FastMLXModel.from_pretrained(
        str(folder), max_seq_length=2048, dtype="float32", load_in_4bit=quantized
    )
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
