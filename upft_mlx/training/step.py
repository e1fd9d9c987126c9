"""One optimizer step: the rate, AdamW, micro-batches, and each rank's part of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map

from upft_mlx.distributed.seam import own_seed, shared_out, summed
from upft_mlx.events import Note, Observer, ignore
from upft_mlx.machine.device import on_gpu
from upft_mlx.recipe.schema import Train
from upft_mlx.sampling.same_logits import scalar
from upft_mlx.training.batches import Batch, Example, StepCounts, count, split
from upft_mlx.training.loss import choose_modes, make_loss, to_arrays, value_and_grad
from upft_mlx.training.token_loss import token_losses


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

    Compiled on a GPU. Not on MLX's CPU backend unless asked for: there the first compilation calls a C++ compiler for
    40 s, and the steps are no faster (docs/measured/log.md).
    """

    def __init__(
        self,
        model: nn.Module,
        settings: Train,
        *,
        shared: int = 0,
        dropout: bool = False,
        compiled: bool | None = None,
        notify: Observer = ignore,
    ) -> None:
        """Prepare the step.

        Args:
            model: with a fresh adapter.
            settings: the recipe's.
            shared: number of tokens that all sequences begin with; run through the model once per (micro-)batch where
                that is exact.
            dropout: whether the adapter has any.
            compiled: whatever the device.
            notify: receives which modes are off, and why.
        """
        self.model, self.micro_batch_size = model, settings.micro_batch_size
        modes, reasons = choose_modes(model, dropout=dropout, checkpoint=settings.grad_checkpoint)
        self.modes, self.shared = modes, shared if modes.share else 0
        for reason in reasons:
            notify(Note(reason))
        self.optimizer = optimizer(settings)
        self.optimizer.init(model.trainable_parameters())
        self._state = [model.state, self.optimizer.state, mx.random.state]

        def update(gradients: dict[str, Any]) -> mx.array:
            limit = math.inf if settings.clip_norm is None else settings.clip_norm
            norm: mx.array
            gradients, norm = optim.clip_grad_norm(gradients, limit)
            self.optimizer.update(model, gradients)
            return norm

        self._gradient = value_and_grad(model, modes)
        self._update: Callable[..., mx.array] = update
        self.gradient_norm = 0.0
        """The norm in the last step, before clipping."""
        self._loss = make_loss(model, modes)
        if on_gpu() if compiled is None else compiled:
            passed = [model.state, mx.random.state]
            self._gradient = mx.compile(self._gradient, inputs=passed, outputs=passed)
            self._update = mx.compile(update, inputs=self._state, outputs=self._state)
            self._loss = mx.compile(self._loss, inputs=[model.state])

    def step(self, examples: Sequence[Example], rate: float, seed: int) -> tuple[float, StepCounts]:
        """One optimizer step on all of the examples, in micro-batches, each rank on its part.

        MLX's random state can be seeded but not restored, so each step has a seed of its own.

        Returns:
            The loss before the step, and what it took.
        """
        mx.random.seed(own_seed(seed))
        self.optimizer.learning_rate = rate
        loss, gradients = mx.array(0.0), None
        parts, counts = self._parts(examples)
        for index, batch in enumerate(parts):
            value, gradient = self._gradient(*to_arrays(batch))
            loss = loss + value
            gradients = gradient if gradients is None else tree_map(mx.add, gradients, gradient)
            if index < len(parts) - 1:
                mx.eval(loss, gradients)  # only then is this micro-batch's memory free for the next
        if gradients is None:  # fewer sequences than ranks
            gradients = tree_map(mx.zeros_like, self.model.trainable_parameters())
        loss, gradients = summed((loss, gradients))  # the weights are the whole step's: a sum, not a mean
        norm = self._update(gradients)
        mx.eval(self._state, loss, norm)
        self.gradient_norm = scalar(norm)
        return scalar(loss), counts

    def _parts(self, examples: Sequence[Example]) -> tuple[list[Batch], StepCounts]:
        """This rank's micro-batches of a step, and the counts of all ranks'."""
        order = sorted(examples, key=lambda e: len(e.ids))
        mine: list[Batch] = []
        counts = StepCounts()
        for part, own in shared_out(order):
            if part:
                batches = split(part, self.micro_batch_size, self.shared, of=len(order))
                counts += count(part, batches)
                mine = batches if own else mine
        return mine, counts

    def loss(self, examples: Sequence[Example]) -> float:
        """The mean loss over sequences, without dropout; in the passes of a step, which are known to fit."""
        self.model.eval()
        batches = split(examples, self.micro_batch_size, self.shared)
        total = mx.array(0.0)
        for batch in next(part for part, own in shared_out(batches) if own):
            total = total + self._loss(*to_arrays(batch))
            mx.eval(total)
        self.model.train()
        return scalar(summed(total))

    def token_losses(self, examples: Sequence[Example]) -> list[list[float]]:
        """Nats of each supervised id of each example, without dropout; each rank computes all of them."""
        return token_losses(self.model, examples, self.modes, self.shared)

    def arrays(self) -> dict[str, mx.array]:
        """The optimizer's state by name."""
        return dict(tree_flatten(self.optimizer.state))

    def restore(self, adapter: dict[str, mx.array], arrays: dict[str, mx.array]) -> None:
        """Take back what `adapter_weights` and `arrays` gave."""
        self.model.load_weights(list(adapter.items()), strict=False)
        for name, array in arrays.items():  # "a.b.0.c", set in place: the compiled step holds on to the containers
            *path, leaf = name.split(".")
            tree: Any = self.optimizer.state
            for key in path:
                tree = tree[int(key) if isinstance(tree, list) else key]
            tree[int(leaf) if isinstance(tree, list) else leaf] = array
        mx.eval(self._state)
