"""LoRA training on the dataset's rows with the prefix-only loss; writes adapter/ and metrics.jsonl.

`step.py` takes one optimizer step; `train` is the loop around it: reports, validation losses, checkpoints, and at the
end the adapter.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from upft_mlx.data.problems import Problem
from upft_mlx.distributed.interrupt import deferred_interrupt
from upft_mlx.distributed.seam import leads
from upft_mlx.errors import TrainingError
from upft_mlx.events import Note, Observer, Progress, Trained, ignore
from upft_mlx.models.adapters import adapter_weights, add_lora
from upft_mlx.models.files import TEMPLATE, own_template
from upft_mlx.models.grid_lora import take_off_grid
from upft_mlx.models.load import Loaded
from upft_mlx.quantities import many, percent
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import TrainingRow, read_rows, write_atomically, write_json
from upft_mlx.rundir import RunDir
from upft_mlx.sampling.sampler import derive_seed
from upft_mlx.training import checkpoints
from upft_mlx.training.batches import (
    Example,
    StepCounts,
    shared_length,
    steps_from,
    to_examples,
    total_steps,
    validated,
)
from upft_mlx.training.checkpoints import Position, load_safetensors, save_safetensors
from upft_mlx.training.development import Development
from upft_mlx.training.row_loss import (
    FIXED,
    MEASURED,
    as_metrics,
    drawn,
    in_words,
    is_reported,
    measured_again,
    taken_apart,
)
from upft_mlx.training.step import Stepper, learning_rate
from upft_mlx.training.tracking import reporter


def train(
    recipe: Recipe, loaded: Loaded, run: RunDir, notify: Observer = ignore, problems: Sequence[Problem] = ()
) -> Position:
    """Train an adapter on dataset/train.jsonl; continues from the last checkpoint where there is one.

    Args:
        recipe: the recipe.
        loaded: its model.
        run: with the dataset.
        notify: receives progress events.
        problems: the run's, for the accuracy on those that are held out (`train.evaluate_every`).

    Returns:
        Where the run ended, with the tokens trained.

    Raises:
        ProblemsError: no problem that is held out has an answer.
        TrainingError: no row fits, the loss is not finite, or a checkpoint is damaged.
        KeyboardInterrupt: Ctrl-C; the step in hand is finished and saved before.
    """
    settings = recipe.train
    examples = _examples(run.train, recipe, notify)
    if not examples:
        raise TrainingError(
            f"no row has a completion within train.max_length: {many(settings.max_length, 'token')}", path=run.train
        )
    valid = validated(_examples(run.valid, recipe, notify), recipe.seed)
    adapter_config = add_lora(loaded, recipe.lora, derive_seed("lora", recipe.seed))
    loaded.model.train()
    shared = shared_length([*examples, *valid])
    stepper = Stepper(loaded.model, settings, shared=shared, dropout=recipe.lora.dropout > 0, notify=notify)
    if stepper.shared:
        notify(Note(f"shared {stepper.shared}-token start computed once per batch where that saves time", minor=True))
    position = _continue(stepper, run, notify)
    development = None if settings.evaluate_every is None else Development(recipe, loaded, problems, run)
    if position.step == 0:
        if development is not None:
            position.accuracy_before = development.accuracy()
            notify(Note(f"before training, {development.in_words(position.accuracy_before)}"))
        _look_at_rows(recipe, stepper, examples, run, notify, position.accuracy_before)
    total = total_steps(settings, len(examples))
    loop = _Loop(recipe, stepper, run, notify, position, total, valid, examples, development)
    stream = steps_from(examples, settings.batch_size, recipe.seed, position.step, even=position.even)
    notify(Progress("train", position.step, total, "steps"))
    with deferred_interrupt() as interrupt:
        while not loop.ended and not interrupt.anywhere():
            loop.step(*next(stream))
    if not loop.ended:
        loop.checkpoint()
        notify(Note(f"interrupted after step {position.step} of {total}, which is saved"))
        interrupt.leave()
        raise KeyboardInterrupt
    if position.step < total:
        what, _, _, since = loop.deciding
        notify(Note(f"stopped after step {position.step} of {total}: no better {what} since step {since}"))
    _finish(recipe, stepper, run, position, adapter_config, notify)
    return position


def _examples(path: Path, recipe: Recipe, notify: Observer) -> list[Example]:
    examples = to_examples(read_rows(path, TrainingRow), recipe.train.max_length, recipe.prefix)
    with path.open("rb") as file:
        rows = sum(1 for _ in file)
    if len(examples) < rows:
        cut = many(rows - len(examples), "row has", "rows have")
        notify(Note(f"{path.name}: {cut} no room for a completion in train.max_length"))
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


def _look_at_rows(
    recipe: Recipe,
    stepper: Stepper,
    examples: Sequence[Example],
    run: RunDir,
    notify: Observer,
    accuracy: float | None,
) -> None:
    """Write likelihood.json: what the base, whose adapter is still zero, thinks of the rows; and the fixed rows' loss.

    The fixed rows are among those measured. The base's `accuracy` on validation problems stands beside their loss.
    """
    measured = drawn(examples, MEASURED, recipe.seed)
    nats = dict(zip((e.id for e in measured), stepper.token_losses(measured), strict=True))
    fixed = drawn(examples, FIXED, recipe.seed)
    found = taken_apart(measured, list(nats.values()), examples)
    at_start = as_metrics(taken_apart(fixed, [nats[e.id] for e in fixed], examples))
    if accuracy is not None:
        at_start["development_accuracy"] = accuracy
    write_json(run.likelihood, replace(found, fixed=at_start).dump())
    for line in in_words(found):
        notify(Note(f"before training, {line}", minor=True))


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
        examples: Sequence[Example],
        development: Development | None,
    ) -> None:
        self.development = development
        self.recipe, self.settings, self.stepper, self.run = recipe, recipe.train, stepper, run
        self.notify, self.position, self.total, self.valid = notify, position, total, valid
        self.examples, self.fixed = examples, drawn(examples, FIXED, recipe.seed)
        self.measured = set(measured_again(recipe.train, total, len(self.fixed), bool(valid)))
        self.report = reporter(recipe, run, position.step) if leads() else None

    @property
    def ended(self) -> bool:
        """Whether all steps are done, or what decides has not become better for `patience` times."""
        position, (_, every, best, since) = self.position, self.deciding
        if position.step >= self.total:
            return True
        if self.settings.patience is None or best is None:
            return False
        return position.step // every - since // every >= self.settings.patience

    @property
    def deciding(self) -> tuple[str, int, float | None, int]:
        """What decides which step is kept: its name, after how many steps it comes, the best one and its step."""
        position, settings = self.position, self.settings
        if settings.save == "accuracy" and settings.evaluate_every is not None:
            return "accuracy", settings.evaluate_every, position.best_accuracy, position.accuracy_step
        return "validation loss", settings.validate_every, position.best_loss, position.best_step

    def step(self, epoch: int, examples: Sequence[Example]) -> None:
        start = time.perf_counter()
        settings, position = self.settings, self.position
        number = position.step + 1
        rate = learning_rate(settings, number, self.total)
        loss, counts = self.stepper.step(examples, rate, derive_seed("dropout", self.recipe.seed, number))
        # A finite loss can have a gradient that is not: the weights are lost, and must not become a checkpoint.
        for what, value in (("loss", loss), ("gradient's norm", self.stepper.gradient_norm)):
            if not math.isfinite(value):
                ids = ", ".join(e.id for e in examples)
                raise TrainingError(
                    f"step {number}: the {what} is {value} (learning rate {rate:g}, rows {ids})",
                    "lower train.learning_rate; the last checkpoint is kept",
                )
        position.step = number
        position.add(counts)
        sums = {"steps": 1, "loss": loss, "seconds": time.perf_counter() - start, **asdict(counts)}
        for name, added in sums.items():
            position.window[name] = position.window.get(name, 0) + added
        self.notify(Progress("train", number, self.total, "steps", counts.supervised_tokens))
        last, valid_loss = number == self.total, None
        if self.valid and (last or number % settings.validate_every == 0):
            valid_loss = self.stepper.loss(self.valid)
            if math.isfinite(valid_loss) and (position.best_loss is None or valid_loss < position.best_loss):
                position.best_loss, position.best_step = valid_loss, number
                self._put_aside("validation loss")
        accuracy = self._accuracy()
        last = self.ended
        if last or is_reported(settings, number, bool(self.valid)):
            self._report(epoch, rate, valid_loss, accuracy)
        if last or number % settings.checkpoint_every == 0:
            self.checkpoint()

    def _accuracy(self) -> float | None:
        """On validation problems after this step, where it is due."""
        position, every = self.position, self.settings.evaluate_every
        if self.development is None or every is None or (position.step != self.total and position.step % every):
            return None
        accuracy = self.development.accuracy()
        if position.best_accuracy is None or accuracy > position.best_accuracy:
            position.best_accuracy, position.accuracy_step = accuracy, position.step
            self._put_aside("accuracy")
        return accuracy

    def _put_aside(self, best: str) -> None:
        """Keep these weights as the best ones by this measure, if it decides."""
        if self.deciding[0] == best:
            save_safetensors(self.run.checkpoints / "best.safetensors", adapter_weights(self.stepper.model))

    def _report(self, epoch: int, rate: float, valid_loss: float | None, accuracy: float | None) -> None:
        window = self.position.window
        line: dict[str, float | int] = {
            "step": self.position.step,
            "epoch": epoch,
            "loss": window["loss"] / window["steps"],
            "learning_rate": rate,
            **{field.name: int(window[field.name]) for field in fields(StepCounts)},
            "seconds": window["seconds"],
            "tokens_per_second": window["supervised_tokens"] / window["seconds"],
            "peak_memory_bytes": mx.get_peak_memory(),
        }
        if self.position.step in self.measured or self.ended:
            line |= as_metrics(taken_apart(self.fixed, self.stepper.token_losses(self.fixed), self.examples))
        if valid_loss is not None:
            line["valid_loss"] = valid_loss
        if accuracy is not None:
            line["development_accuracy"] = accuracy
        with self.run.metrics.open("a") as file:
            file.write(json.dumps({name: at if math.isfinite(at) else None for name, at in line.items()}) + "\n")
        self.position.window = {}
        self.notify(Trained(line, self.total))
        if self.report:
            self.report(line)

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
    """Write adapter/ as mlx-lm reads it, with the best or the last weights; the model is left with these, too."""
    best = run.checkpoints / "best.safetensors"
    save = recipe.train.save
    use_best = save == "accuracy" or (save == "best" and position.best_loss is not None)
    if use_best:
        stepper.model.load_weights(list(load_safetensors(best).items()), strict=False)
    take_off_grid(stepper.model)
    write_json(run.adapter / "adapter_config.json", config)
    if own := recipe.prompt.chat_template:  # whoever puts the adapter on must ask as it was trained
        write_atomically(run.adapter / TEMPLATE, own_template(own))
    save_safetensors(run.adapter / "adapters.safetensors", adapter_weights(stepper.model))
    before, found = position.accuracy_before, position.best_accuracy
    if save == "accuracy" and found is not None:
        text = f"saved step {position.accuracy_step} (best accuracy on validation problems, {percent(found)})"
    elif use_best:
        text = f"saved step {position.best_step} (best validation loss, {position.best_loss:.4f})"
    else:
        text = f"saved the last step ({position.step})"
    notify(Note(text, minor=True))
    if save == "accuracy" and before is not None and found is not None and found <= before:
        notify(Note(f"no step answers more validation problems right than before training ({percent(before)})"))
