"""LoRA training on the dataset's rows with the prefix-only loss; writes adapter/ and metrics.jsonl.

The order of things: `optimizer` and `learning_rate` say how a step moves, `Stepper` is the compiled step,
`train` is the loop around it: reports, validation losses, checkpoints, and at the end the adapter.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten

from upft_mlx import checkpoints
from upft_mlx.adapters import adapter_weights, add_lora
from upft_mlx.batches import Batch, Example, batches_from, make_batch, steps_per_epoch, to_examples
from upft_mlx.checkpoints import Position, save_safetensors
from upft_mlx.errors import TrainingError
from upft_mlx.events import Note, Observer, Progress, Trained, ignore
from upft_mlx.interrupt import deferred_interrupt
from upft_mlx.loss import make_loss, scalar, to_arrays, value_and_grad
from upft_mlx.models import Loaded
from upft_mlx.recipe import Recipe, Train
from upft_mlx.rows import TrainingRow, read_rows, write_atomically, write_json
from upft_mlx.rundir import RunDir
from upft_mlx.sampler import chunks, derive_seed

_SUMS = ("steps", "loss", "examples", "supervised_tokens", "processed_tokens", "seconds")


def total_steps(settings: Train, examples: int) -> int:
    """Optimizer steps of a run."""
    if settings.steps is not None:
        return settings.steps
    return (settings.epochs or 1) * steps_per_epoch(examples, settings.batch_size)


def learning_rate(settings: Train, step: int, total: int) -> float:
    """The learning rate of step 1 .. total: linear warm-up, then constant, or cosine down to a tenth."""
    peak = settings.learning_rate
    warmup = math.ceil(settings.warmup_ratio * total)
    if step <= warmup:
        return peak * step / warmup
    if settings.schedule == "constant":
        return peak
    progress = (step - warmup) / max(1, total - warmup)
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))


def optimizer(settings: Train) -> optim.AdamW:
    """AdamW with bias correction, as in the paper's framework; its state is float32 like the adapter."""
    return optim.AdamW(
        learning_rate=settings.learning_rate,
        betas=list(settings.betas),
        weight_decay=settings.weight_decay,
        bias_correction=True,
    )


class Stepper:
    """The optimizer step and the loss of one model.

    Compiled on a GPU, as one graph each. Not on MLX's CPU backend unless asked for: there the first compilation calls
    a C++ compiler for 40 s, and the steps are no faster (docs/log.md).
    """

    def __init__(self, model: nn.Module, settings: Train, *, compiled: bool | None = None) -> None:
        self.model = model
        self.optimizer = optimizer(settings)
        self.optimizer.init(model.trainable_parameters())
        state = [model.state, self.optimizer.state, mx.random.state]
        gradient = value_and_grad(model)

        def step(*arrays: mx.array) -> mx.array:
            loss, gradients = gradient(*arrays)
            if settings.clip_norm is not None:
                gradients, _ = optim.clip_grad_norm(gradients, settings.clip_norm)
            self.optimizer.update(model, gradients)
            return loss

        self._state = state
        self._step: Callable[..., mx.array] = step
        self._loss = make_loss(model)
        if mx.default_device().type == mx.DeviceType.gpu if compiled is None else compiled:
            self._step = mx.compile(step, inputs=state, outputs=state)
            self._loss = mx.compile(self._loss, inputs=[model.state])

    def step(self, batch: Batch, rate: float, seed: int) -> float:
        """One optimizer step; returns the loss before it.

        MLX's random state can be seeded but not restored, so each step has a seed of its own.
        """
        mx.random.seed(seed)
        self.optimizer.learning_rate = rate
        loss = self._step(*to_arrays(batch))
        mx.eval(self._state, loss)
        return scalar(loss)

    def loss(self, examples: Sequence[Example], batch_size: int) -> float:
        """The mean loss over sequences, without dropout."""
        self.model.eval()
        total = 0.0
        for part in chunks(sorted(examples, key=lambda e: len(e.ids)), batch_size):
            total += scalar(self._loss(*to_arrays(make_batch(part)))) * len(part)
        self.model.train()
        return total / len(examples)

    def arrays(self) -> dict[str, mx.array]:
        """The optimizer's state by name."""
        return dict(tree_flatten(self.optimizer.state))

    def restore(self, adapter: dict[str, mx.array], arrays: dict[str, mx.array]) -> None:
        """Take back what `adapter_weights` and `arrays` gave."""
        self.model.load_weights(list(adapter.items()), strict=False)
        for name, array in arrays.items():
            _assign(self.optimizer.state, name, array)
        mx.eval(self._state)


def _assign(tree: Any, name: str, array: mx.array) -> None:
    """Set the leaf `a.b.0.c` of a tree in place: the compiled step holds on to the tree's containers."""
    *path, leaf = name.split(".")
    for key in path:
        tree = tree[int(key) if isinstance(tree, list) else key]
    tree[int(leaf) if isinstance(tree, list) else leaf] = array


def train(recipe: Recipe, loaded: Loaded, run: RunDir, notify: Observer = ignore) -> Position:
    """Train an adapter on dataset/train.jsonl; continues from the last checkpoint where there is one.

    Returns:
        Where the run ended, with the tokens trained.

    Raises:
        TrainingError: no row fits, the loss is not finite, or a checkpoint is damaged.
        KeyboardInterrupt: Ctrl-C; the step in hand is finished and saved before.
    """
    settings = recipe.train
    examples = _examples(run.train, settings.max_length, notify)
    if not examples:
        raise TrainingError(
            f"{run.train}: no row has a completion within train.max_length: {settings.max_length} tokens"
        )
    valid = _examples(run.valid, settings.max_length, notify)
    adapter_config = add_lora(loaded, recipe.lora, derive_seed("lora", recipe.seed))
    loaded.model.train()
    stepper = Stepper(loaded.model, settings)
    position = _continue(stepper, run, notify)
    total = total_steps(settings, len(examples))
    loop = _Loop(recipe, stepper, run, notify, position, total, valid)
    stream = batches_from(examples, settings.batch_size, recipe.seed, position.step)
    notify(Progress("train", position.step, total, "steps"))
    with deferred_interrupt() as interrupt:
        while position.step < total and not interrupt.asked:
            loop.step(*next(stream))
    if position.step < total:
        loop.checkpoint()
        notify(Note(f"interrupted after step {position.step} of {total}, which is saved"))
        raise KeyboardInterrupt
    _finish(recipe, stepper, run, position, adapter_config, notify)
    return position


def _examples(path: Path, max_length: int, notify: Observer) -> list[Example]:
    rows = list(read_rows(path, TrainingRow))
    examples = to_examples(rows, max_length)
    if len(examples) < len(rows):
        notify(Note(f"{path.name}: {len(rows) - len(examples)} rows have no room for a completion in train.max_length"))
    return examples


def _continue(stepper: Stepper, run: RunDir, notify: Observer) -> Position:
    """Restore the last checkpoint and cut the metrics back to it."""
    found = checkpoints.latest(run.checkpoints)
    if found is None:
        write_atomically(run.metrics, "")
        return Position()
    position, adapter, arrays = found
    stepper.restore(adapter, arrays)
    lines = run.metrics.read_text().splitlines(keepends=True) if run.metrics.exists() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= position.step]
    write_atomically(run.metrics, "".join(kept))
    notify(Note(f"training continues after step {position.step}"))
    return position


class _Loop:
    """What happens around a step."""

    def __init__(
        self,
        recipe: Recipe,
        stepper: Stepper,
        run: RunDir,
        notify: Observer,
        position: Position,
        total: int,
        valid: Sequence[Example],
    ) -> None:
        self.recipe, self.settings, self.stepper, self.run = recipe, recipe.train, stepper, run
        self.notify, self.position, self.total, self.valid = notify, position, total, valid
        if not position.window:
            position.window = dict.fromkeys(_SUMS, 0.0)

    def step(self, epoch: int, batch: Batch) -> None:
        start = time.perf_counter()
        number = self.position.step + 1
        rate = learning_rate(self.settings, number, self.total)
        loss = self.stepper.step(batch, rate, derive_seed("dropout", self.recipe.seed, number))
        if not math.isfinite(loss):
            raise TrainingError(
                f"step {number}: the loss is {loss} (learning rate {rate:g}, rows {', '.join(batch.ids)}); "
                "lower train.learning_rate; the last checkpoint is kept"
            )
        self.position.step = number
        self.position.trained_tokens += batch.supervised_tokens
        self._add(batch, loss, time.perf_counter() - start)
        self.notify(Progress("train", number, self.total, "steps", batch.supervised_tokens))
        last = number == self.total
        valid_loss = self._validate() if last or number % self.settings.validate_every == 0 else None
        if number == 1 or last or number % self.settings.report_every == 0 or valid_loss is not None:
            self._report(epoch, rate, valid_loss)
        if last or number % self.settings.checkpoint_every == 0:
            self.checkpoint()

    def _add(self, batch: Batch, loss: float, seconds: float) -> None:
        values = (1, loss, len(batch.ids), batch.supervised_tokens, batch.processed_tokens, seconds)
        for name, value in zip(_SUMS, values, strict=True):
            self.position.window[name] += value

    def _validate(self) -> float | None:
        """The validation loss; keeps the adapter if it is the best so far."""
        if not self.valid:
            return None
        loss = self.stepper.loss(self.valid, self.settings.batch_size)
        if math.isfinite(loss) and (self.position.best_loss is None or loss < self.position.best_loss):
            self.position.best_loss, self.position.best_step = loss, self.position.step
            save_safetensors(self.run.checkpoints / "best.safetensors", adapter_weights(self.stepper.model))
        return loss

    def _report(self, epoch: int, rate: float, valid_loss: float | None) -> None:
        window = self.position.window
        line: dict[str, float | int] = {
            "step": self.position.step,
            "epoch": epoch,
            "loss": window["loss"] / window["steps"],
            "learning_rate": rate,
            "examples": int(window["examples"]),
            "supervised_tokens": int(window["supervised_tokens"]),
            "processed_tokens": int(window["processed_tokens"]),
            "seconds": window["seconds"],
            "tokens_per_second": window["supervised_tokens"] / window["seconds"],
            "peak_memory_bytes": mx.get_peak_memory(),
        }
        if valid_loss is not None:
            line["valid_loss"] = valid_loss
        with self.run.metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.position.window = dict.fromkeys(_SUMS, 0.0)
        self.notify(Trained(line, self.total))

    def checkpoint(self) -> None:
        """Save everything that the next step depends on."""
        checkpoints.save(
            self.run.checkpoints,
            self.position,
            adapter_weights(self.stepper.model),
            self.stepper.arrays(),
            self.settings.keep,
        )


def _finish(
    recipe: Recipe,
    stepper: Stepper,
    run: RunDir,
    position: Position,
    config: dict[str, Any],
    notify: Observer,
) -> None:
    """Write adapter/ as mlx-lm reads it, with the best or the last weights."""
    best = run.checkpoints / "best.safetensors"
    use_best = recipe.train.save == "best" and position.best_loss is not None
    arrays = mx.load(str(best)) if use_best else adapter_weights(stepper.model)
    assert isinstance(arrays, dict)
    write_json(run.adapter / "adapter_config.json", config)
    save_safetensors(run.adapter / "adapters.safetensors", arrays)
    if use_best:
        text = f"adapter/ holds step {position.best_step}, the best validation loss ({position.best_loss:.4f})"
    else:
        text = f"adapter/ holds the last step ({position.step})"
    notify(Note(text))
