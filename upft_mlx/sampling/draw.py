"""How a token is drawn: from the filtered logits, with random numbers that are keyed and belong to its place alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from upft_mlx.machine.device import on_gpu

if TYPE_CHECKING:
    import mlx.core as mx

    Draw = Callable[[mx.array, mx.array], tuple[mx.array, mx.array | None]]

NUCLEUS = 2048
"""Tokens among which top-p looks first on a CPU: to sort a whole vocabulary takes as long as a small model's step."""


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
    keeps more tokens at T < 1. Random numbers are made for all tokens, so that a token's does not depend on what is cut
    off; the rest of the work is done for the tokens that are left.
    """
    import mlx.core as mx

    some = _candidates(sampling)

    def draw(logits: mx.array, keys: mx.array) -> tuple[mx.array, mx.array | None]:
        if sampling.temperature == 0:
            tokens = mx.argmax(logits, axis=-1)
        else:
            places, values = some(logits.astype(mx.float32) * (1 / sampling.temperature))
            chances = mx.vmap(lambda key: mx.random.uniform(shape=logits.shape[-1:], key=key))(keys)  # (B, V), 0 to 1
            if places is not None:
                chances = mx.take_along_axis(chances, places, axis=-1)
            tokens = mx.argmax(values - mx.log(-mx.log(chances)), axis=-1)
            if places is not None:
                tokens = mx.take_along_axis(places, tokens[:, None], axis=-1)[:, 0]
        if not sampling.logprobs:
            return tokens, None
        exact = logits.astype(mx.float32)
        drawn = mx.take_along_axis(exact, tokens[:, None], axis=-1)[:, 0]
        return tokens, drawn - mx.logsumexp(exact, axis=-1)

    return draw


def _candidates(sampling: Sampling) -> Callable[[mx.array], tuple[mx.array | None, mx.array]]:
    """From logits (B, V) at the temperature to the tokens (B, C) that top-k and top-p leave, and their logits.

    In the vocabulary's order; None for the tokens: all of it. A token that is cut off after all has the logit -inf.
    """
    import mlx.core as mx

    top_p, on_cpu = sampling.top_p, not on_gpu()

    def most_likely(logits: mx.array, count: int) -> tuple[mx.array, mx.array]:
        places = mx.sort(mx.argpartition(-logits, kth=count - 1, axis=-1)[:, :count], axis=-1)
        return places, mx.take_along_axis(logits, places, axis=-1)

    def least(logprobs: mx.array) -> mx.array:
        """The smallest log-probability (B, 1) of the smallest set with a share of top-p."""
        ordered = mx.sort(logprobs, axis=-1)
        above = mx.cumsum(mx.exp(ordered), axis=-1, reverse=True, inclusive=False)
        return mx.take_along_axis(ordered, (above >= top_p).sum(axis=-1, keepdims=True), axis=-1)

    def candidates(logits: mx.array) -> tuple[mx.array | None, mx.array]:
        places = None
        if 0 < sampling.top_k < logits.shape[-1]:
            places, logits = most_likely(logits, sampling.top_k)
        if top_p >= 1:
            return places, logits
        logits = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        if on_cpu and logits.shape[-1] > NUCLEUS:
            some, likely = most_likely(logits, NUCLEUS)
            limit = least(likely)
            if (limit > likely.min(axis=-1, keepdims=True)).all().item():  # of every row, all of the set are among them
                return some, mx.where(likely < limit, -mx.inf, likely)
        return places, mx.where(logits < least(logits), -mx.inf, logits)

    return candidates
