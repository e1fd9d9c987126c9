"""How much of an adapter's effect a fused model keeps, as KL divergences on held-out rows.

    retained = 1 - KL(adapter || fused) / KL(adapter || base)

1 is the adapter itself, 0 is the base model, below 0 is farther from the adapter than the base is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from upft_mlx.batches import Example, make_batch
from upft_mlx.loss import Modes, gathers_exactly, scalar, supervised_logits, to_arrays

MAX_ROWS = 16
MAX_POSITIONS = 16
"""Per row: the log-probabilities of all probes are held in memory, vocabulary wide."""


@dataclass(frozen=True)
class Fidelity:
    """What a way of fusing keeps and weighs."""

    fuse: str
    retained: float
    """1 - kl / kl_base; 1 where the adapter has no effect."""
    kl: float
    """KL(adapter || fused), nats per position."""
    kl_base: float
    """KL(adapter || base), nats per position."""
    top1_agreement: float
    """Share of positions with the adapter's most likely token."""
    bytes: int
    """Weights of the fused model."""


def probes(examples: Sequence[Example]) -> list[Example]:
    """Rows to measure on, each cut to its first supervised positions."""
    return [Example(e.id, e.ids[: e.start + MAX_POSITIONS], e.start) for e in examples[:MAX_ROWS]]


def log_probabilities(model: nn.Module, rows: Sequence[Example]) -> list[mx.array]:
    """For each row its supervised positions' log-probabilities (N, V), float32."""
    modes = Modes(gather=gathers_exactly(model), share=False)
    result = []
    for example in rows:
        shared, tokens, where, _, _ = to_arrays(make_batch([example]))
        logits = supervised_logits(model, shared, tokens, where[: example.supervised], modes).astype(mx.float32)
        result.append(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        mx.eval(result[-1])
    return result


def mean_kl(reference: Sequence[mx.array], other: Sequence[mx.array]) -> float:
    """KL(reference || other) averaged over all positions, nats; never negative.

    An adapter's effect can be as small as 1e-8 nats, where float32 loses sum p (log p - log q) in rounding. Both sum to
    one, so with d = log q - log p it equals sum p (exp(d) - 1 - d), whose terms are small and none negative.
    """
    terms = [(mx.exp(p) * _excess(q - p)).sum(axis=-1) for p, q in zip(reference, other, strict=True)]
    return scalar(mx.concatenate(terms).mean())


def _excess(d: mx.array) -> mx.array:
    """exp(d) - 1 - d, by its series where the difference would cancel."""
    series = d * d * (1 / 2 + d * (1 / 6 + d * (1 / 24 + d / 120)))
    return mx.where(mx.abs(d) < 0.05, series, mx.expm1(d) - d)


def agreement(reference: Sequence[mx.array], other: Sequence[mx.array]) -> float:
    """Share of positions with equal most likely tokens."""
    equal = [p.argmax(axis=-1) == q.argmax(axis=-1) for p, q in zip(reference, other, strict=True)]
    return scalar(mx.concatenate(equal).astype(mx.float32).mean())


def compare(
    fuse: str, base: Sequence[mx.array], adapter: Sequence[mx.array], fused: Sequence[mx.array], size: int
) -> Fidelity:
    """The fidelity of one way of fusing from the three models' log-probabilities."""
    kl_base, kl = mean_kl(adapter, base), mean_kl(adapter, fused)
    retained = 1 - kl / kl_base if kl_base > 0 else 1.0
    return Fidelity(fuse, retained, kl, kl_base, agreement(adapter, fused), size)
