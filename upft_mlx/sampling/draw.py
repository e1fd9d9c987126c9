"""How a token is drawn: from the filtered logits, with random numbers that are keyed and belong to its place alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mlx.core as mx

    Draw = Callable[[mx.array, mx.array], tuple[mx.array, mx.array | None]]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; temperature 0 is greedy, top-k 0 and top-p 1 cut nothing off."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    batch_size: int = 32
    """Completions decoded together."""
    stop: tuple[str, ...] = ()
    """Texts at which a completion ends, before the text."""
    logprobs: bool = False
    """Whether completions say their log-probability."""


def random_key(seed: int, key: str, sample: int) -> tuple[int, int]:
    """Two words of 32 bits from which a completion's random numbers are drawn."""
    digest = hashlib.sha256(repr((seed, key, sample)).encode()).digest()
    return int.from_bytes(digest[:4], "big"), int.from_bytes(digest[4:8], "big")


def drawer(sampling: Sampling) -> Draw:
    """Draws tokens from logits (B, V) with keys (B, 2): temperature, then top-k, then top-p, then Gumbel noise.

    The largest sum of logit and Gumbel noise is a sample of the softmax. Temperature before the nucleus is the order of
    transformers and vLLM, with which the paper sampled; mlx-lm's own `make_sampler` takes the nucleus first, which
    keeps more tokens at T < 1.
    """
    import mlx.core as mx
    from mlx_lm.sample_utils import apply_top_k, apply_top_p

    def filtered(logits: mx.array) -> mx.array:
        logits = logits.astype(mx.float32) * (1 / sampling.temperature)
        if 0 < sampling.top_k < logits.shape[-1]:
            logits = apply_top_k(logits, sampling.top_k)
        if sampling.top_p < 1:
            logits = apply_top_p(logits - mx.logsumexp(logits, axis=-1, keepdims=True), sampling.top_p)
        return logits

    def draw(logits: mx.array, keys: mx.array) -> tuple[mx.array, mx.array | None]:
        if sampling.temperature == 0:
            tokens = mx.argmax(logits, axis=-1)
        else:
            noise = mx.vmap(lambda key: mx.random.gumbel(logits.shape[-1:], key=key))(keys)
            tokens = mx.argmax(filtered(logits) + noise, axis=-1)
        if not sampling.logprobs:
            return tokens, None
        exact = logits.astype(mx.float32)
        drawn = mx.take_along_axis(exact, tokens[:, None], axis=-1)[:, 0]
        return tokens, drawn - mx.logsumexp(exact, axis=-1)

    return draw
