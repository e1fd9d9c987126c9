"""The sampling engine under generate and evaluate: chunks of prompts, each with a seed of its own.

A batch's composition changes its logits (by rounding) and the order in which random numbers are drawn. So the
prompts are cut into fixed chunks, and a chunk's result depends on nothing but its prompts, its settings and its
seed: a run that was interrupted and continued ends with the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from upft_mlx.rows import FinishReason

if TYPE_CHECKING:
    import mlx.core as mx

    from upft_mlx.models import Loaded

CHUNK_BATCHES = 2
"""Batches per chunk: fewer lose less work to an interruption, more keep the batch full."""

Item = TypeVar("Item")
OnStep = Callable[[int, int], None]
"""Called after each decoding step with tokens and completions finished."""


@dataclass(frozen=True)
class Request:
    """A prompt and how far to decode it."""

    prompt_ids: list[int]
    max_tokens: int


@dataclass(frozen=True)
class Completion:
    """What was sampled, without EOS."""

    ids: list[int]
    finish_reason: FinishReason


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; temperature 0 is greedy, top-k 0 and top-p 1 cut nothing off."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    batch_size: int = 32

    @property
    def chunk_size(self) -> int:
        """Requests per chunk."""
        return CHUNK_BATCHES * self.batch_size


def sampling_for(
    loaded: Loaded, temperature: float, batch_size: int, top_p: float | None = None, top_k: int | None = None
) -> Sampling:
    """Settings with what is unset taken from the model's generation_config (the paper's sampling)."""
    own = loaded.generation_config
    return Sampling(
        temperature=temperature,
        top_p=float(own.get("top_p") or 1.0) if top_p is None else top_p,
        top_k=int(own.get("top_k") or 0) if top_k is None else top_k,
        batch_size=batch_size,
    )


def chunks(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """The items in order, `size` at a time."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def summing(on_sum: OnStep) -> OnStep:
    """Calls `on_sum` with the sums so far instead of each step's numbers."""
    tokens = finished = 0

    def on_step(new_tokens: int, newly_finished: int) -> None:
        nonlocal tokens, finished
        tokens, finished = tokens + new_tokens, finished + newly_finished
        on_sum(tokens, finished)

    return on_step


def derive_seed(*parts: object) -> int:
    """A 32-bit seed that depends on every part."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")


def sample_chunk(
    loaded: Loaded,
    requests: Sequence[Request],
    sampling: Sampling,
    seed: int,
    on_step: OnStep = lambda tokens, finished: None,
) -> list[Completion]:
    """Sample one completion per request through mlx-lm's batch generator.

    Args:
        loaded: the model.
        requests: prompts, in any order; longer ones are decoded first so that memory fails early.
        sampling: the settings.
        seed: everything random derives from it.
        on_step: called after each decoding step with the new tokens and the newly finished completions.

    Returns:
        Completions in the order of the requests.
    """
    import mlx.core as mx
    from mlx_lm.generate import BatchGenerator

    order = sorted(range(len(requests)), key=lambda i: -len(requests[i].prompt_ids))
    mx.random.seed(seed)
    generator = BatchGenerator(
        loaded.model,
        stop_tokens=[[token] for token in loaded.eos_ids],
        sampler=_sampler(loaded, sampling),
        completion_batch_size=sampling.batch_size,
        prefill_batch_size=sampling.batch_size,
    )
    try:
        uids = generator.insert([requests[i].prompt_ids for i in order], [requests[i].max_tokens for i in order])
        index = dict(zip(uids, order, strict=True))
        ids: list[list[int]] = [[] for _ in requests]
        reasons: list[FinishReason] = ["length"] * len(requests)
        while responses := generator.next_generated():
            for response in responses:
                if response.finish_reason != "stop":
                    ids[index[response.uid]].append(int(response.token))
                if response.finish_reason is not None:
                    reasons[index[response.uid]] = response.finish_reason
            on_step(len(responses), sum(r.finish_reason is not None for r in responses))
    finally:
        generator.close()
    return [Completion(*pair) for pair in zip(ids, reasons, strict=True)]


def _sampler(loaded: Loaded, sampling: Sampling) -> Callable[[mx.array], mx.array]:
    """Draws tokens from log-probabilities (B, V): temperature, then top-k, then top-p.

    This is the order of transformers and vLLM, with which the paper sampled; mlx-lm's own `make_sampler` takes
    the nucleus before the temperature, which keeps more tokens at T < 1.
    """
    import mlx.core as mx
    from mlx_lm.sample_utils import apply_top_k, apply_top_p

    if sampling.temperature == 0:
        return lambda logprobs: mx.argmax(logprobs, axis=-1)

    def sample(logprobs: mx.array) -> mx.array:
        logits = logprobs.astype(mx.float32) * (1 / sampling.temperature)
        if 0 < sampling.top_k < logits.shape[-1]:
            logits = apply_top_k(logits, sampling.top_k)
        if sampling.top_p < 1:
            logits = apply_top_p(logits - mx.logsumexp(logits, axis=-1, keepdims=True), sampling.top_p)
        return mx.random.categorical(logits)

    return sample
