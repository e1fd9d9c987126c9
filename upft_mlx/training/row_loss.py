"""What a model thinks of the training rows: nats by kind and position, and what of the loss comes from where. Pure.

The loss of a run is the mean over rows of the weighted mean over a row's supervised ids (`batches.py`). Here it is
taken apart: into the sampled tokens of prefix rows, the EOS behind them where `prefix.eos` trains one, and the rows
with whole solutions. Only some rows of each kind are measured; each kind counts as many times as the dataset has it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from upft_mlx.quantities import many, percent
from upft_mlx.recipe.schema import Train
from upft_mlx.rows import from_plain
from upft_mlx.training.batches import Example

MEASURED = {"prefix": 48, "structure": 16, "full": 32}
"""Rows of each kind that say what the base thinks before the first step."""
FIXED = {"prefix": 16, "structure": 4, "full": 8}
"""The rows among them whose loss is measured again while training: a small set that stays the same."""
SPARING = 4
"""Rows trained on per row measured again. A row's forward pass takes a third of its step, so 4 make it a twelfth."""
EACH = 10
"""The first steps, of which each is reported: whoever waits for the first report wants to see the loss move."""
POSITIONS = 32
"""Positions that are told apart at most."""
MOST = 0.5
"""Share of the loss above which a kind is named."""
EOS = "EOS"


def is_reported(settings: Train, step: int, validates: bool) -> bool:
    """Whether a step, counted from 1, is reported; the last one always is."""
    due = step % settings.report_every == 0 or (validates and step % settings.validate_every == 0)
    asked = settings.evaluate_every is not None and step % settings.evaluate_every == 0
    return due or asked or step <= EACH


def measured_again(settings: Train, steps: int, fixed: int, validates: bool) -> list[int]:
    """The reported steps, out of `steps`, after which the `fixed` rows are measured; always includes the last one."""
    found: list[int] = []
    for step in range(1, steps):
        spared = step * settings.batch_size >= SPARING * fixed * (len(found) + 1)
        if spared and is_reported(settings, step, validates):
            found.append(step)
    return [*found, steps]


def drawn(examples: Sequence[Example], counts: dict[str, int], seed: int) -> list[Example]:
    """Up to `counts` examples of each kind, drawn with the seed; a smaller draw is the start of a larger one."""
    order = list(examples)
    random.Random(f"measured/{seed}").shuffle(order)
    found: list[Example] = []
    for kind, count in counts.items():
        found += [example for example in order if example.kind == kind][:count]
    return found


@dataclass(frozen=True)
class KindLoss:
    """The rows of one kind; the EOS after a prefix is left out."""

    rows: int
    measured: int
    """How many of them were measured."""
    nats_per_token: float
    """The mean over rows."""
    first_token: float
    """Nats of the first token."""
    by_position: list[float]
    """Nats per token, by position in the row."""


@dataclass(frozen=True)
class RowLoss:
    """What a model thinks of the training rows."""

    loss: float
    """Nats, as training has it."""
    kinds: dict[str, KindLoss]
    eos: float | None
    """Nats of the EOS after a prefix; None where none is trained."""
    share: dict[str, float]
    """The share of the loss, by kind and EOS."""
    most: str | None
    """The kind with over half of it, or EOS; None where there is none."""
    fixed: dict[str, float] | None = None
    """The fixed rows' loss before training, as in metrics.jsonl; in likelihood.json only."""

    def dump(self) -> dict[str, Any]:
        """For JSON."""
        found = asdict(self)
        return found if self.fixed is not None else {name: value for name, value in found.items() if name != "fixed"}

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> RowLoss:
        """From what `dump` gave; see `from_plain`."""
        return from_plain(cls, data, "likelihood.json")


def taken_apart(examples: Sequence[Example], nats: Sequence[Sequence[float]], of: Sequence[Example]) -> RowLoss:
    """The loss by kind.

    Args:
        examples: the rows that were measured.
        nats: of each row, the negative log-likelihood of each supervised id.
        of: all rows, of which these were drawn.
    """
    totals = Counter(example.kind for example in of)
    known = {example.kind for example in examples}
    rows = sum(count for kind, count in totals.items() if kind in known)
    kinds: dict[str, KindLoss] = {}
    parts: dict[str, float] = {}
    ends: list[float] = []
    for kind in sorted(known, key=list(MEASURED).index):
        mine = [_Row(e, list(n)) for e, n in zip(examples, nats, strict=True) if e.kind == kind]
        own = [row.own for row in mine if row.own]
        weight = totals[kind] / rows / len(mine)
        parts[kind] = weight * sum(row.of_own for row in mine)
        if eos := [row.nats[-1] for row in mine if row.example.eos]:
            ends += eos
            parts[EOS] = parts.get(EOS, 0.0) + weight * sum(row.of_eos for row in mine)
        positions = range(min(POSITIONS, max(map(len, own), default=0)))
        kinds[kind] = KindLoss(
            rows=totals[kind],
            measured=len(mine),
            nats_per_token=_mean([_mean(tokens) for tokens in own]),
            first_token=_mean([tokens[0] for tokens in own]),
            by_position=[_mean([tokens[i] for tokens in own if len(tokens) > i]) for i in positions],
        )
    loss = sum(parts.values())
    share = {name: part / loss if loss else 0.0 for name, part in parts.items()}
    most = next((name for name, part in share.items() if part > MOST), None) if len(share) > 1 else None
    return RowLoss(loss, kinds, _mean(ends) if ends else None, share, most)


@dataclass(frozen=True)
class _Row:
    """A measured row, and what it adds to the mean over its ids."""

    example: Example
    nats: list[float]

    @property
    def own(self) -> list[float]:
        """Nats of the ids that the model sampled."""
        return self.nats[:-1] if self.example.eos else self.nats

    @property
    def of_eos(self) -> float:
        return self.example.last * self.nats[-1] / self._weights if self.example.eos else 0.0

    @property
    def of_own(self) -> float:
        last = 1.0 if self.example.eos else self.example.last
        own = self.own
        return (sum(own[:-1]) + last * own[-1]) / self._weights if own else 0.0

    @property
    def _weights(self) -> float:
        return len(self.nats) - 1 + self.example.last


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def as_metrics(found: RowLoss) -> dict[str, float]:
    """A loss taken apart as fields of a line of metrics.jsonl: the whole, nats per token by kind, nats of EOS."""
    line = {"fixed_loss": found.loss}
    line |= {f"fixed_loss_{kind}": of.nats_per_token for kind, of in found.kinds.items()}
    return line if found.eos is None else {**line, "fixed_loss_eos": found.eos}


def in_words(found: RowLoss) -> list[str]:
    """A line for each kind, one for EOS, and one for what has most of the loss."""
    lines = []
    for kind, of in found.kinds.items():
        lines.append(
            f"{kind} rows: {of.nats_per_token:.2f} nats per token, {of.first_token:.2f} for the first; "
            f"{percent(found.share[kind], 0)} of the loss ({of.measured} of {many(of.rows, 'row')} measured)"
        )
    if found.eos is not None:
        lines.append(f"EOS after a prefix: {found.eos:.2f} nats; {percent(found.share[EOS], 0)} of the loss")
    if (most := found.most) == EOS:
        why = "training would mostly teach to stop after a prefix; set prefix.eos: false, or a smaller eos_weight"
        lines.append(f"over half of the loss is that EOS: {why}")
    elif most is not None:
        lines.append(f"over half of the loss comes from {most} rows")
    return lines
