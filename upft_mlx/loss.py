"""The prefix-only loss: per-sequence mean over the supervised ids, then mean over sequences.

The logits are computed at supervised positions only: a hook on the model's final norm gathers those positions
before the LM head, so that soft caps, logit scales and tied heads keep their meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from upft_mlx.batches import Batch

Arrays = tuple[mx.array, mx.array, mx.array, mx.array]


def to_arrays(batch: Batch) -> Arrays:
    """tokens (B, T), rows (N,), targets (N,), weights (N,)."""
    return mx.array(batch.tokens), mx.array(batch.rows), mx.array(batch.targets), mx.array(batch.weights)


def make_loss(model: nn.Module) -> Callable[..., mx.array]:
    """The loss of a model as a function of the arrays of a batch.

    It is the weighted sum of the negative log-likelihoods of `targets`; a batch's weights make it the
    per-sequence mean and then the mean over sequences. Returns a float32 scalar.
    """
    gather = gathers_exactly(model)

    def loss(tokens: mx.array, rows: mx.array, targets: mx.array, weights: mx.array) -> mx.array:
        logits = supervised_logits(model, tokens, rows, gather=gather).astype(mx.float32)  # (N, V) <- the big one
        total: mx.array = (weights * nn.losses.cross_entropy(logits, targets)).sum()
        return total

    return loss


def supervised_logits(model: nn.Module, tokens: mx.array, rows: mx.array, *, gather: bool) -> mx.array:
    """The logits (N, V) at `rows`, indices into the flattened positions of `tokens` (B, T)."""
    inner = _with_final_norm(model)
    if not gather or inner is None:
        logits: mx.array = model(tokens)
        return logits.reshape(-1, logits.shape[-1])[rows]
    with _gathering(inner, rows):
        logits = model(tokens)
    return logits[0]


def gathers_exactly(model: nn.Module) -> bool:
    """Whether gathering rows at the final norm gives this model's own logits, tried on a few tokens.

    A family whose `norm` stands elsewhere, or whose head mixes positions, answers False and gets all logits:
    exact as well, only larger.
    """
    if _with_final_norm(model) is None:
        return False
    tokens = mx.arange(16).reshape(2, 8)
    rows = mx.array([1, 6, 10])
    try:
        gathered = supervised_logits(model, tokens, rows, gather=True)
    except ValueError:  # shapes that do not go together
        return False
    full = supervised_logits(model, tokens, rows, gather=False)
    return gathered.shape == full.shape and bool(mx.allclose(gathered, full, rtol=1e-2, atol=1e-2))


def _with_final_norm(model: nn.Module) -> nn.Module | None:
    """The module whose `norm` is applied last before the head, as in the llama and qwen families."""
    inner = model.get("model") if hasattr(model, "layers") else None
    return inner if isinstance(inner, nn.Module) and isinstance(inner.get("norm"), nn.Module) else None


@contextmanager
def _gathering(inner: nn.Module, rows: mx.array) -> Iterator[None]:
    """While active, the final norm sees and returns the rows only, as (1, N, D)."""
    norm = inner["norm"]

    def gather(hidden: mx.array, *args: Any) -> Any:
        return norm(hidden.reshape(-1, hidden.shape[-1])[rows][None], *args)

    # Set in the module's dict in place, so that the order of its parameters stays what it was.
    dict.__setitem__(inner, "norm", gather)
    try:
        yield
    finally:
        dict.__setitem__(inner, "norm", norm)


def value_and_grad(model: nn.Module) -> Callable[..., tuple[mx.array, dict[str, Any]]]:
    """The loss and its gradient with respect to the trainable parameters, as a function of the arrays."""
    value_grad: Callable[..., tuple[mx.array, dict[str, Any]]] = nn.value_and_grad(model, make_loss(model))
    return value_grad


def scalar(array: mx.array) -> float:
    """The value of a real array of size one."""
    value = array.item()
    assert isinstance(value, (int, float))
    return float(value)
