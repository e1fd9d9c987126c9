"""What the inputs of a model's layers look like: their second moments over calibration rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten

from upft_mlx.fusing.rounding import Matrix
from upft_mlx.planning.memory import MOMENTS_BLOCK, MOMENTS_BYTES
from upft_mlx.training.batches import Example

MAX_ROWS = 64
"""Calibration rows."""
MAX_TOKENS = 512
"""Tokens of each calibration row."""


class _Watcher(nn.Module):
    """Stands before a layer and adds up x x^T of what goes in, in blocks of columns.

    They are zero where nothing does: Gemma 3n does not call the keys of layers that take those of others.
    """

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layer = layer
        sizes = [min(MOMENTS_BLOCK, width - start) for start in range(0, width, MOMENTS_BLOCK)]
        self._sums = [mx.zeros((size, size)) for size in sizes]

    def __call__(self, x: mx.array, *arguments: Any) -> mx.array:
        flat = x.reshape(-1, x.shape[-1]).astype(mx.float32)  # (tokens, D)
        parts = [flat[:, start : start + MOMENTS_BLOCK] for start in range(0, flat.shape[-1], MOMENTS_BLOCK)]
        self._sums = [known + part.T @ part for known, part in zip(self._sums, parts, strict=True)]
        result: mx.array = self.layer(x, *arguments)
        return result

    def taken(self) -> list[Matrix]:
        """(B, B) for each block of columns."""
        return [np.array(part) for part in self._sums]


def second_moments(
    model: nn.Module,
    layers: dict[str, nn.Module],
    examples: Sequence[Example],
    width: Callable[[nn.Module], int],
    on_pass: Callable[[int], None] = lambda done: None,
) -> Iterator[tuple[str, list[Matrix]]]:
    """For each layer, in order, the second moments of its inputs.

    Args:
        model: computes, with `layers` in it.
        layers: those to watch, by name.
        examples: calibration rows.
        width: of a layer's inputs.
        on_pass: receives the number of finished layers.
    """
    names, done = list(layers), 0
    while done < len(names):
        part: list[str] = []
        room = MOMENTS_BYTES  # layers beyond it are seen in another pass over the rows
        while done + len(part) < len(names) and (not part or room > 0):
            name = names[done + len(part)]
            room -= 4 * width(layers[name]) * min(MOMENTS_BLOCK, width(layers[name]))
            part.append(name)
        watchers = {name: _Watcher(layers[name], width(layers[name])) for name in part}
        model.update_modules(tree_unflatten(list(watchers.items())))
        for example in examples[:MAX_ROWS]:
            model(mx.array([list(example.ids[:MAX_TOKENS])]))
            mx.eval([w._sums for w in watchers.values()])  # layers after them, and the head, are never computed
        model.update_modules(tree_unflatten([(name, layers[name]) for name in part]))
        for name in part:
            yield name, watchers.pop(name).taken()
            done += 1
            on_pass(done)
