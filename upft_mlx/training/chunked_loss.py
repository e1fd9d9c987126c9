"""Head and loss in chunks of supervised positions: the logits of all of them never exist at once.

A head has nothing to train as a rule, so a chunk's gradient with respect to its hidden states can be computed as soon
as its loss is known, in the forward pass, and its logits are gone before those of the next chunk come. No product is
computed twice. The idea is that of fused linear cross-entropy (Liger Kernel, arXiv 2410.10989).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

Head = Callable[[mx.array], mx.array]
"""Hidden states (n, D) before the final norm to logits (n, V)."""


def chunked_loss(head: Head, hidden: mx.array, targets: mx.array, weights: mx.array, size: int) -> mx.array:
    """The sum of the weighted negative log-likelihoods of the targets, with the gradient of `hidden` alone.

    Args:
        head: without trainable parameters.
        hidden: (N, D).
        targets: ids (N,).
        weights: (N,), float32.
        size: positions of a chunk.
    """

    def weighted(hidden: mx.array, targets: mx.array, weights: mx.array) -> mx.array:
        return (weights * nats(head(hidden), targets)).sum()

    total, slopes, here = mx.array(0.0), [], mx.stop_gradient(hidden)  # else the outer gradient would take these too
    for start in range(0, hidden.shape[0], size):
        chunk = [part[start : start + size] for part in (mx.depends([here], [total])[0], targets, weights)]
        loss, slope = mx.value_and_grad(weighted)(*chunk)
        slopes.append(slope)  # (n, D): all that is left of the chunk
        total = mx.depends([total + loss], [slope])[0]  # the next chunk waits for it
    known: mx.array = _known(hidden, mx.concatenate(slopes), total)  # type: ignore[assignment]  # typed as an object
    return known


def chunked_nats(head: Head, hidden: mx.array, targets: mx.array, size: int) -> mx.array:
    """The negative log-likelihood of each target, float32 (N,), without a gradient; arguments as above."""
    found: list[mx.array] = []
    for start in range(0, hidden.shape[0], size):
        here = mx.depends([hidden], found[-1:])[0] if found else hidden  # one chunk after the other
        found.append(nats(head(here[start : start + size]), targets[start : start + size]))
    return mx.concatenate(found)


def nats(logits: mx.array, targets: mx.array) -> mx.array:
    """The negative log-likelihood of each target, float32 (n,): logits (n, V) <- the big one."""
    return nn.losses.cross_entropy(logits.astype(mx.float32), targets)


@mx.custom_function
def _known(hidden: mx.array, slope: mx.array, loss: mx.array) -> mx.array:
    """A loss whose gradient with respect to `hidden` is known: `slope`."""
    return loss


@_known.vjp
def _known_vjp(primals: Any, cotangent: mx.array, output: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    hidden, slope, loss = primals
    return (cotangent * slope).astype(hidden.dtype), mx.zeros_like(slope), mx.zeros_like(loss)
