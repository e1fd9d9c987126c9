"""Training rows to batches: what is supervised, padding, and an order that depends on seed and epoch only.

A batch states in arrays exactly what is trained. For prompt ids [5, 6] and completion ids [7, 8] alone:

    tokens  [[5, 6, 7, 0, 0, 0, 0, 0]]   inputs; the last id is never one; padded to a multiple of 8
    rows    [1, 2, 0, 0, ...]            where in the flattened tokens the logits are read
    targets [7, 8, 0, 0, ...]            what stands one further on
    weights [0.5, 0.5, 0, 0, ...]        1 / (supervised ids of the sequence * sequences); 0 on padding
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from upft_mlx.rows import TrainingRow

PAD_TOKENS = 8
"""Sequence lengths are padded to a multiple of this: every new shape costs a compilation."""
PAD_ROWS = 32
"""The number of supervised positions is padded to a multiple of this."""


@dataclass(frozen=True)
class Example:
    """A row ready for batching: `ids` is prompt and completion, supervised from `start` on."""

    id: str
    ids: list[int]
    start: int

    @property
    def supervised(self) -> int:
        """Supervised tokens."""
        return len(self.ids) - self.start


@dataclass(frozen=True)
class Batch:
    """See the module's docstring."""

    ids: tuple[str, ...]
    """The rows' ids, for messages."""
    tokens: npt.NDArray[np.int32]
    """(B, T)"""
    rows: npt.NDArray[np.int32]
    """(N,)"""
    targets: npt.NDArray[np.int32]
    """(N,)"""
    weights: npt.NDArray[np.float32]
    """(N,), adding up to 1"""
    supervised_tokens: int
    processed_tokens: int
    """Padding included."""


def to_examples(rows: Sequence[TrainingRow], max_length: int) -> list[Example]:
    """Rows cut to `max_length` tokens at the end; those left without any supervised id are left out."""
    examples = []
    for row in rows:
        ids = [*row.prompt_ids, *row.completion_ids][:max_length]
        if len(ids) > len(row.prompt_ids) > 0:
            examples.append(Example(row.id, ids, len(row.prompt_ids)))
    return examples


def make_batch(examples: Sequence[Example]) -> Batch:
    """One batch, in the order of the examples."""
    length = _round_up(max(len(e.ids) - 1 for e in examples), PAD_TOKENS)
    tokens = np.zeros((len(examples), length), np.int32)
    rows: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    for index, example in enumerate(examples):
        tokens[index, : len(example.ids) - 1] = example.ids[:-1]
        rows += [index * length + position - 1 for position in range(example.start, len(example.ids))]
        targets += example.ids[example.start :]
        weights += [1 / (example.supervised * len(examples))] * example.supervised
    padding = _round_up(len(rows), PAD_ROWS) - len(rows)
    return Batch(
        ids=tuple(e.id for e in examples),
        tokens=tokens,
        rows=np.array(rows + [0] * padding, np.int32),
        targets=np.array(targets + [0] * padding, np.int32),
        weights=np.array(weights + [0.0] * padding, np.float32),
        supervised_tokens=len(rows),
        processed_tokens=tokens.size,
    )


def epoch_order(examples: Sequence[Example], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of an epoch as indices: of like length, freshly composed and shuffled, every row once."""
    rng = random.Random(f"batches/{seed}/{epoch}")
    order = list(range(len(examples)))
    rng.shuffle(order)
    order.sort(key=lambda i: len(examples[i].ids))  # stable: rows of one length stay shuffled
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    rng.shuffle(batches)
    return batches


def batches_from(examples: Sequence[Example], batch_size: int, seed: int, start: int) -> Iterator[tuple[int, Batch]]:
    """Endless (epoch from 1, batch) pairs, beginning at step `start` (from 0)."""
    per_epoch = steps_per_epoch(len(examples), batch_size)
    epoch, position = divmod(start, per_epoch)
    while True:
        for indices in epoch_order(examples, batch_size, seed, epoch)[position:]:
            yield epoch + 1, make_batch([examples[i] for i in indices])
        epoch, position = epoch + 1, 0


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Batches that it takes to see every row once; the last may be smaller."""
    return -(-examples // batch_size)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
