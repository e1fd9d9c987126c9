"""The prefix-only loss: per-sequence mean over the supervised ids, then mean over sequences.

What is not needed is not computed, without changing the loss (`Modes`):

- the logits are computed at supervised positions only: a hook on the model's final norm gathers those positions
  before the LM head, so that soft caps, logit scales and tied heads keep their meaning;
- head and loss are computed for some of these positions at a time (`chunked_loss.py`);
- the tokens that all sequences begin with are passed once, and their keys and values handed to all sequences through
  the models' own cache argument, differentiably.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from upft_mlx.models.families import SharedKeys, reads_keys_of_others
from upft_mlx.sampling.same_logits import UNSUPPORTED, same_logits
from upft_mlx.training.batches import Batch, chunk_positions, unshared_because
from upft_mlx.training.chunked_loss import Head, chunked_loss, chunked_nats, nats

Arrays = tuple[mx.array, mx.array, mx.array, mx.array, mx.array]


def to_arrays(batch: Batch) -> Arrays:
    """shared (P,), tokens (B, T), positions (N,), targets (N,), weights (N,)."""
    parts = (batch.shared, batch.tokens, batch.positions, batch.targets, batch.weights)
    return tuple(mx.array(part) for part in parts)  # type: ignore[return-value]


@dataclass(frozen=True)
class Modes:
    """How a model computes the loss; the loss itself is the same in all of them."""

    gather: bool = True
    """Logits at supervised positions only."""
    share: bool = True
    """The tokens that all sequences begin with are passed once."""
    checkpoint: bool = False
    """Gradient checkpointing: layers are computed again in the backward pass instead of kept."""
    chunk: int = 0
    """Positions for which head and loss are computed at a time; 0: all at once."""


_UNSHARED = {
    "lora.dropout": "with lora.dropout each needs its own noise",
    "train.grad_checkpoint": "train.grad_checkpoint computes the layers twice, which would fill their cache twice",
}


def choose_modes(model: nn.Module, *, dropout: bool, checkpoint: bool) -> tuple[Modes, list[str]]:
    """The modes that are exact for this model, tried on a few tokens, and why those left out are not.

    A family that does not fit a mode is trained without it: exact as well, only slower and larger.
    """
    reasons = []
    unshared, training = unshared_because(dropout, checkpoint), model.training
    model.eval()  # two passes with different noise of dropout never agree
    try:
        gather = gathers_exactly(model)
        chunk = chunks_exactly(model) if gather else 0
        share = unshared is None and shares_exactly(model)
    finally:
        model.train(training)
    if not gather:
        reasons.append("logits are computed at all positions: this model family has no norm right before its head")
    if unshared:
        reasons.append(f"shared prompt tokens are passed for each sequence: {_UNSHARED[unshared]}")
    elif not share:
        reasons.append(
            "shared prompt tokens are passed for each sequence: this model family's layers take no keys and values "
            "from outside, or mean something else by them"
        )
    if checkpoint and reads_keys_of_others(model):
        checkpoint = False
        reasons.append("layers are kept instead of computed again: in this model family they read each other's keys")
    return Modes(gather, share, checkpoint, chunk), reasons


def make_loss(model: nn.Module, modes: Modes, *, gradient: bool = False) -> Callable[..., mx.array]:
    """The loss of a model as a function of the arrays of a batch; `gradient`: so that one can be taken at its cost.

    It is the weighted sum of the negative log-likelihoods of `targets`; a step's weights make it the
    per-sequence mean and then the mean over sequences. Returns a float32 scalar.
    """

    def loss(shared: mx.array, tokens: mx.array, positions: mx.array, targets: mx.array, weights: mx.array) -> mx.array:
        if gradient and modes.chunk:
            hidden = _hidden(model, shared, tokens, positions, modes)  # (N, D)
            return chunked_loss(head_of(model), hidden, targets, weights, modes.chunk)
        total: mx.array = (weights * supervised_nats(model, shared, tokens, positions, targets, modes)).sum()
        return total

    return loss


def value_and_grad(model: nn.Module, modes: Modes) -> Callable[..., tuple[mx.array, dict[str, Any]]]:
    """The loss and its gradient with respect to the trainable parameters, as a function of the arrays."""
    loss = make_loss(model, modes, gradient=True)
    value_grad: Callable[..., tuple[mx.array, dict[str, Any]]] = nn.value_and_grad(model, loss)
    return value_grad


def supervised_nats(
    model: nn.Module, shared: mx.array, tokens: mx.array, positions: mx.array, targets: mx.array, modes: Modes
) -> mx.array:
    """The negative log-likelihood of each of `targets` (N,), float32 (N,)."""
    if modes.chunk:
        return chunked_nats(head_of(model), _hidden(model, shared, tokens, positions, modes), targets, modes.chunk)
    return nats(supervised_logits(model, shared, tokens, positions, modes), targets)


def supervised_logits(
    model: nn.Module, shared: mx.array, tokens: mx.array, positions: mx.array, modes: Modes
) -> mx.array:
    """The logits (N, V) at `positions`, indices into the flattened positions of `tokens` (B, T).

    Each sequence is `shared` (P,), which may be empty, followed by its row of `tokens`; `shared` must be empty where
    the modes do not share.
    """
    if modes.gather:  # before the head, (1, N, V)
        return _run(model, shared, tokens, modes, lambda norm, hidden, *args: norm(_at(hidden, positions), *args))[0]
    logits = _run(model, shared, tokens, modes)  # (B, T, V), of which nearly all is thrown away
    return logits.reshape(-1, logits.shape[-1])[positions]


def _hidden(model: nn.Module, shared: mx.array, tokens: mx.array, positions: mx.array, modes: Modes) -> mx.array:
    """The hidden states (N, D) at `positions`, as they are before the final norm."""
    kept = []

    def keep(norm: nn.Module, hidden: mx.array, *args: Any) -> mx.array:
        kept.append(_at(hidden, positions))  # (1, N, D); the head behind it is never computed
        found: mx.array = norm(kept[-1], *args)
        return found

    _run(model, shared, tokens, modes, keep)
    return kept[-1][0]


def head_of(model: nn.Module) -> Head:
    """What a model does behind its layers: final norm, head, soft cap or scale."""

    def head(hidden: mx.array) -> mx.array:
        with final_norm(model, lambda norm, _, *args: norm(hidden[None], *args)):
            logits: mx.array = model(mx.zeros((1, 1), mx.int32))  # nothing reads its layers: they are never computed
        return logits[0]

    return head


def _run(
    model: nn.Module, shared: mx.array, tokens: mx.array, modes: Modes, norm: Callable[..., mx.array] | None = None
) -> mx.array:
    """What the model gives for `tokens` behind `shared`; `norm(module, hidden)` stands in for its final norm."""
    with ExitStack() as stack:
        if modes.checkpoint:
            stack.enter_context(_checkpointing(model.layers))
        cache = None
        if shared.size:  # what the shared tokens leave to those after them; their own logits are never computed
            records = [SharedKeys() for _ in model.layers]
            model(shared[None], cache=records)  # (1, P)
            cache = [SharedKeys(record.keys, record.values) for record in records]
        if norm is not None:
            stack.enter_context(final_norm(model, norm))
        logits: mx.array = model(tokens) if cache is None else model(tokens, cache=cache)
    return logits


def _at(hidden: mx.array, positions: mx.array) -> mx.array:
    """(B, T, D) -> (1, N, D)."""
    return hidden.reshape(-1, hidden.shape[-1])[positions][None]


# Logits at supervised positions only.


def gathers_exactly(model: nn.Module) -> bool:
    """Whether gathering positions at the final norm gives this model's own logits, tried on a few tokens."""
    if find_final_norm(model) is None:
        return False
    return _same_logits(model, mx.array([], mx.int32), Modes(share=False))


_BODIES = ("model", "backbone", "transformer")
_NORMS = ("norm", "embedding_norm", "final_layernorm", "final_layer_norm", "norm_f", "ln_f")


def find_final_norm(model: nn.Module) -> tuple[nn.Module, str] | None:
    """The module whose norm is applied last before the head, and that norm's name in it: mostly `norm` in
    `model.model`, below `language_model` where images are understood as well."""
    if not hasattr(model, "layers"):
        return None
    text = model.get("language_model", model)
    for inner in (text.get(name) for name in _BODIES if isinstance(text, nn.Module)):
        body = inner.get("language_model", inner) if isinstance(inner, nn.Module) else None
        if isinstance(body, nn.Module):
            for name in (name for name in _NORMS if isinstance(body.get(name), nn.Module)):
                return body, name
    return None


@contextmanager
def final_norm(model: nn.Module, function: Callable[..., mx.array]) -> Iterator[None]:
    """While active, `function(norm, hidden, ...)` is called in place of the final norm."""
    place = find_final_norm(model)
    assert place is not None
    inner, name = place
    norm = inner[name]
    # Set in the module's dict in place, so that the order of its parameters stays what it was.
    dict.__setitem__(inner, name, partial(function, norm))
    try:
        yield
    finally:
        dict.__setitem__(inner, name, norm)


# Head and loss in chunks.


def chunks_exactly(model: nn.Module) -> int:
    """Positions of a chunk where that is exact, tried on a few tokens, else 0; the model must gather exactly."""
    trained = dict(tree_flatten(model.trainable_parameters()))
    if any(".layers." not in f".{name}" for name in trained):
        return 0  # a head that is trained needs its own gradient
    tokens, positions, none = mx.arange(16).reshape(2, 8), mx.array([1, 6, 10]), mx.array([], mx.int32)
    logits = supervised_logits(model, none, tokens, positions, Modes(share=False))
    try:
        found = head_of(model)(_hidden(model, none, tokens, positions, Modes(share=False)))
    except UNSUPPORTED:
        return 0
    return chunk_positions(logits.shape[-1]) if same_logits(found, logits) else 0


# Shared tokens once.


def shares_exactly(model: nn.Module) -> bool:
    """Whether handing over the shared tokens' keys and values gives this model's own logits, tried on a few tokens."""
    if not hasattr(model, "layers"):
        return False
    return _same_logits(model, mx.arange(16, 21), Modes(gather=False))


# Gradient checkpointing.


@contextmanager
def _checkpointing(layers: list[nn.Module]) -> Iterator[None]:
    """While active, the layers keep their inputs only and are computed again in the backward pass.

    Calls are looked up on a module's class, so that is where the change must be, for as short as the forward pass.
    """
    originals = {kind: kind.__call__ for kind in {type(layer) for layer in layers}}
    for kind, original in originals.items():
        kind.__call__ = _recomputed(original)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for kind, original in originals.items():
            kind.__call__ = original  # type: ignore[method-assign]


def _recomputed(original: Callable[..., Any]) -> Callable[..., Any]:
    def call(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        def inner(parameters: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            layer.update(parameters)
            return original(layer, *args, **kwargs)

        # The trainable parameters must be arguments: checkpoint gives gradients to those alone.
        return mx.checkpoint(inner)(layer.trainable_parameters(), *args, **kwargs)

    return call


def _same_logits(model: nn.Module, shared: mx.array, modes: Modes) -> bool:
    """Whether the modes give the logits of a plain pass over the same tokens, but for rounding."""
    tokens = mx.arange(16).reshape(2, 8)
    positions = mx.array([1, 6, 10])
    whole = mx.concatenate([mx.broadcast_to(shared, (2, shared.size)).astype(tokens.dtype), tokens], axis=1)
    width = whole.shape[1]
    places = mx.array([shared.size + 1, shared.size + 6, width + shared.size + 2])
    try:
        found = supervised_logits(model, shared, tokens, positions, modes)
        return same_logits(found, model(whole).reshape(2 * width, -1)[places])
    except UNSUPPORTED:
        return False
