"""How far one model's next-token distributions are from another's, position by position."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from upft_mlx.training.batches import Batch
from upft_mlx.training.loss import Modes, supervised_logits, to_arrays


def log_probabilities(model: nn.Module, batch: Batch, supervised: int, modes: Modes) -> mx.array:
    """Log-probabilities (N, V) at a batch's supervised positions, float32."""
    shared, tokens, where, _, _ = to_arrays(batch)
    logits = supervised_logits(model, shared, tokens, where[:supervised], modes).astype(mx.float32)
    result: mx.array = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    mx.eval(result)
    return result


def kl_per_position(p: mx.array, q: mx.array) -> mx.array:
    """KL(p || q) of log-probabilities (N, V), nats (N,); never negative.

    An adapter's effect can be as small as 1e-8 nats, where float32 loses sum p (log p - log q) in rounding. Both sum to
    one, so with d = log q - log p it equals sum p (exp(d) - 1 - d), whose terms are small and none negative.
    """
    d = q - p
    series = d * d * (1 / 2 + d * (1 / 6 + d * (1 / 24 + d / 120)))
    return (mx.exp(p) * mx.where(mx.abs(d) < 0.05, series, mx.expm1(d) - d)).sum(axis=-1)
