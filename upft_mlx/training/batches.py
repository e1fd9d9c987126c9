"""Training rows to batches: what is supervised, padding, and an order that depends on seed and epoch only.

A batch states in arrays exactly what is trained. For prompt ids [4, 5, 6] and completion ids [7, 8] alone, where the
first token is shared by all rows of the run:

    shared     [4]                          inputs that all sequences begin with, passed once
    tokens     [[5, 6, 7, 0, 0, 0, 0, 0]]   the inputs after them; the last id is never one; padded to a multiple of 8
    positions  [1, 2, 0, 0, ...]            where in the flattened tokens the logits are read
    targets    [7, 8, 0, 0, ...]            what stands one further on
    weights    [0.5, 0.5, 0, 0, ...]        1 / (supervised ids of the sequence * sequences of the step); 0 on padding;
                                            an EOS after a prefix may weigh less (`prefix.eos_weight`)

A step's sequences may be spread over several batches (micro-batches, or ranks): the weights are those of the whole
step, so losses and gradients add up to it whatever the split.
"""

from __future__ import annotations

import itertools
import random
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from upft_mlx.dataset.prefix import has_eos
from upft_mlx.recipe.schema import Prefix, Train
from upft_mlx.rows import TrainingRow
from upft_mlx.sampling.chunks import shared_start

PAD_TOKENS = 8
"""Sequence lengths are padded to a multiple of this: every new shape costs a compilation."""
PASS_TOKENS = 512
"""Tokens of a micro-batch where the recipe does not say: more take memory in proportion, and are hardly faster."""
LEAST_SAVED = 48
"""Tokens that sharing must save in a batch. A separate pass over the shared tokens costs about this many tokens: on
MLX's CPU backend SmolLM2 trains one sequence of 184 tokens in 14 % less time without it, three of 136 in the same."""
PAD_POSITIONS = 32
"""The number of supervised positions is padded to a multiple of this."""
LEAST_POSITIONS = 32
"""Positions whose logits are computed at a time, at least: fewer make the head's products slow."""
CHUNK_BYTES = 64 << 20
"""Bytes of the float32 logits that a pass computes at a time, where that is more positions."""
MOST_VALIDATED = 128
"""Maximum number of validation rows whose loss is measured. The time for all held-out rows would grow with the square
of the problems: at 12,000 problems, they took 31 % of the time of the steps; 128 rows take 5 %."""


@dataclass(frozen=True)
class Example:
    """A row ready for batching: `ids` is prompt and completion, supervised from `start` on."""

    id: str
    ids: Sequence[int]
    start: int
    last: float = 1.0
    """Weight of the last id beside the other supervised ones, which have 1 each."""
    kind: str = ""
    """The row's kind: prefix, structure or full."""
    eos: bool = False
    """Whether the last id is an EOS that `prefix.eos` put after a prefix."""

    @property
    def supervised(self) -> int:
        """Supervised tokens."""
        return len(self.ids) - self.start


@dataclass(frozen=True)
class Batch:
    """See the module's docstring."""

    shared: npt.NDArray[np.int32]
    """(P,)"""
    tokens: npt.NDArray[np.int32]
    """(B, T)"""
    positions: npt.NDArray[np.int32]
    """(N,)"""
    targets: npt.NDArray[np.int32]
    """(N,)"""
    weights: npt.NDArray[np.float32]
    """(N,), adding up to the batch's share of the step"""


@dataclass(frozen=True)
class StepCounts:
    """What a step, or several, passed through the model."""

    examples: int = 0
    supervised_tokens: int = 0
    processed_tokens: int = 0
    """Padding included; shared tokens once per batch."""
    padding_tokens: int = 0

    def __add__(self, other: StepCounts) -> StepCounts:
        """Both together."""
        return StepCounts(**{name: value + getattr(other, name) for name, value in asdict(self).items()})


def chunk_positions(vocabulary: int) -> int:
    """Positions whose logits a pass computes at a time (`chunked_loss.py`)."""
    return max(LEAST_POSITIONS, CHUNK_BYTES // (4 * vocabulary))


def to_examples(rows: Iterable[TrainingRow], max_length: int, prefix: Prefix | None = None) -> list[Example]:
    """Rows cut to `max_length` tokens at the end; those left without any supervised id are left out.

    All rows stay in memory during training, so their ids are in arrays: 4 bytes each, instead of 36 in a list.
    With the recipe's `prefix`, an EOS that it puts after a prefix has the weight that it gives it.
    """
    examples = []
    for row in rows:
        whole = [*row.prompt_ids, *row.completion_ids]
        ids = whole[:max_length]
        if len(ids) > len(row.prompt_ids) > 0:
            eos = prefix is not None and has_eos(row, prefix) and len(ids) == len(whole)
            last = prefix.eos_weight if prefix is not None and eos else 1.0
            examples.append(Example(row.id, array("i", ids), len(row.prompt_ids), last, sys.intern(row.kind), eos))
    return examples


def shared_length(examples: Sequence[Example]) -> int:
    """How many tokens all rows begin with: system prompt and opening of the user turn, when these are rendered prompts.

    At least one prompt token stays with each row: the one whose logits predict its first supervised token.
    """
    return shared_start([e.ids for e in examples], [e.start for e in examples])


def validated(examples: Sequence[Example], seed: int) -> list[Example]:
    """The validation rows whose loss is measured, the same each time: all, or `MOST_VALIDATED` drawn with the seed."""
    count = min(MOST_VALIDATED, len(examples))
    chosen = random.Random(f"validated/{seed}").sample(range(len(examples)), count)
    return [examples[index] for index in sorted(chosen)]


def unshared_because(dropout: float, checkpoint: bool) -> str | None:
    """The recipe field that makes each sequence's whole prompt run through the model; None: shared tokens run once."""
    if dropout:
        return "lora.dropout"
    return "train.grad_checkpoint" if checkpoint else None


def split(examples: Sequence[Example], size: int | None, shared: int = 0, of: int | None = None) -> list[Batch]:
    """(Micro-)batches of at most `size` sequences each; if it is None, of at most `PASS_TOKENS` padded tokens that are
    not common to all.

    Sequences of similar length go together; each batch has at least one. `shared` and `of` are those of `make_batch`,
    but tokens are shared only if that saves `LEAST_SAVED`; if `of` is unset, the examples are the whole step.
    """
    order = sorted(examples, key=lambda e: len(e.ids))
    parts: list[list[Example]] = []
    for example in order:
        length = _round_up(len(example.ids) - 1 - shared, PAD_TOKENS)
        if not parts or len(parts[-1]) >= (size or max(1, PASS_TOKENS // length)):
            parts.append([])
        parts[-1].append(example)
    return [
        make_batch(part, shared if (len(part) - 1) * shared >= LEAST_SAVED else 0, of or len(order)) for part in parts
    ]


def make_batch(examples: Sequence[Example], shared: int = 0, of: int | None = None) -> Batch:
    """One batch, in the order of the examples.

    Args:
        examples: its sequences.
        shared: number of tokens that all of them begin with.
        of: sequences of the whole step; unset: those of this batch.
    """
    length = _round_up(max(len(e.ids) - 1 for e in examples) - shared, PAD_TOKENS)
    tokens = np.zeros((len(examples), length), np.int32)
    positions: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    for index, example in enumerate(examples):
        own = example.ids[shared:-1]
        tokens[index, : len(own)] = own
        first = index * length - shared - 1  # where in the flattened (B * T) tokens the logits of id i are: first + i
        positions += range(first + example.start, first + len(example.ids))
        targets += example.ids[example.start :]
        unit = 1 / ((example.supervised - 1 + example.last) * (of or len(examples)))
        weights += [unit] * (example.supervised - 1) + [unit * example.last]
    padding = _round_up(len(positions), PAD_POSITIONS) - len(positions)
    return Batch(
        shared=np.array(examples[0].ids[:shared], np.int32),
        tokens=tokens,
        positions=np.array(positions + [0] * padding, np.int32),
        targets=np.array(targets + [0] * padding, np.int32),
        weights=np.array(weights + [0.0] * padding, np.float32),
    )


def count(examples: Sequence[Example], batches: Sequence[Batch]) -> StepCounts:
    """What `examples`, split into `batches`, cost."""
    processed = sum(batch.shared.size + batch.tokens.size for batch in batches)
    saved = sum(batch.shared.size * (len(batch.tokens) - 1) for batch in batches)
    needed = sum(len(e.ids) - 1 for e in examples) - saved
    return StepCounts(len(examples), sum(e.supervised for e in examples), processed, processed - needed)


def epoch_order(
    examples: Sequence[Example], batch_size: int, seed: int, epoch: int, *, even: bool = True
) -> list[list[int]]:
    """The steps of an epoch (from 0) as indices: of like length, freshly composed and shuffled, every row once.

    Steps differ by at most one row in size. A smaller last one would hold the longest rows, which are whole solutions,
    and each of them would weigh more than other rows do. The very first step is the one that takes most memory, so
    that a run that does not fit fails at once. Training that an earlier version began continues in that
    version's order (`even=False`).
    """
    rng = random.Random(f"batches/{seed}/{epoch}")
    order = list(range(len(examples)))
    rng.shuffle(order)
    order.sort(key=lambda i: len(examples[i].ids))  # stable: rows of one length stay shuffled
    steps = steps_per_epoch(len(order), batch_size)
    bounds = [len(order) * step // steps if even else step * batch_size for step in range(steps + 1)]
    batches = [order[start:end] for start, end in itertools.pairwise(bounds)]
    rng.shuffle(batches)
    if epoch == 0:
        largest = max(range(steps), key=lambda b: len(batches[b]) * len(examples[batches[b][-1]].ids))
        batches.insert(0, batches.pop(largest))
    return batches


def steps_from(
    examples: Sequence[Example], batch_size: int, seed: int, start: int, *, even: bool = True
) -> Iterator[tuple[int, list[Example]]]:
    """Endless (epoch from 1, the step's examples) pairs, beginning at step `start` (from 0)."""
    per_epoch = steps_per_epoch(len(examples), batch_size)
    epoch, position = divmod(start, per_epoch)
    while True:
        for indices in epoch_order(examples, batch_size, seed, epoch, even=even)[position:]:
            yield epoch + 1, [examples[i] for i in indices]
        epoch, position = epoch + 1, 0


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Batches that it takes to see every row once, of at most `batch_size` rows each."""
    return -(-examples // batch_size)


def total_steps(settings: Train, examples: int) -> int:
    """Optimizer steps of a run."""
    if settings.steps is not None:
        return settings.steps
    return (settings.epochs or 1) * steps_per_epoch(examples, settings.batch_size)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
