"""The sampling engine under generate, evaluate, analyze and ask.

Each random number is keyed by (seed, request, sample, position) and by nothing else. So a completion depends on its own
request only: not on the batch, the chunk, the order or the other samples, but for rounding. A prefix is what the full
solution begins with, and more samples extend those that are there. Rounding is what is left: a batch's composition
changes its logits in the last digits. So prompts are cut into fixed chunks, and a run that was interrupted and
continued ends with the same bytes.

What a chunk's prompts begin with is run through the model once, and each prompt once for all of its samples
(`prefill.py`); `decoding.py` has the loop over tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from upft_mlx.sampling.chunks import is_wave
from upft_mlx.sampling.decoding import Chunk, Completion, OnStep, Request
from upft_mlx.sampling.draw import Sampling

if TYPE_CHECKING:
    from upft_mlx.models.load import Loaded

Item = TypeVar("Item")


def sampling_for(
    loaded: Loaded,
    temperature: float,
    batch_size: int,
    top_p: float | None = None,
    top_k: int | None = None,
    stop: tuple[str, ...] = (),
    logprobs: bool = False,
) -> Sampling:
    """Settings with what is unset taken from the model's generation_config (the paper's sampling)."""
    own = loaded.generation_config
    return Sampling(
        temperature=temperature,
        top_p=float(own.get("top_p") or 1.0) if top_p is None else top_p,
        top_k=int(own.get("top_k") or 0) if top_k is None else top_k,
        batch_size=batch_size,
        stop=stop,
        logprobs=logprobs,
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


class Sampler:
    """Samples from one model as it is now: make another after an adapter was switched on or off."""

    def __init__(self, loaded: Loaded, sampling: Sampling) -> None:
        from upft_mlx.sampling.prefill import Prefill

        self.prefill = Prefill(loaded)
        """Makes the caches of prompts."""
        if not self.prefill.batches:
            sampling = replace(sampling, batch_size=1)
        self.loaded, self.sampling = loaded, sampling
        self.drafts = self.prefill.batches and self.prefill.cut
        """Whether drafts are of use for this model family; else they are left alone."""
        self._decoded = 0

    @property
    def notice(self) -> str | None:
        """What is slower than it could be on this model family, and why; None where nothing is."""
        if not self.prefill.batches:
            return "solutions are sampled one at a time: mlx-lm's batches give this model family other logits"
        if not self.prefill.exact:
            return "each prompt is run whole: this model family does not continue from what prompts share"
        return None

    @property
    def processed_tokens(self) -> int:
        """Tokens passed through the model so far, padding of prompts included."""
        return self.prefill.tokens + self._decoded

    def sample(
        self, requests: Sequence[Request], seed: int, on_step: OnStep = lambda tokens, finished: None
    ) -> list[Completion]:
        """Sample the completions of a chunk.

        Args:
            requests: prompts, in any order; longer ones are decoded first, so that memory fails early.
            seed: the run's.
            on_step: called after each decoding step with the new tokens and the newly finished completions.

        Returns:
            Request by request, sample by sample.
        """
        if not self.drafts:
            requests = [replace(request, drafts=()) for request in requests]
        chunk = Chunk(self.loaded, self.sampling, requests, seed)
        for _ in self._steps(chunk, requests, on_step):
            pass
        return chunk.completions()

    def stream(self, request: Request, seed: int) -> Generator[Completion, None, None]:
        """The completion that `sample` gives for this one request, as it grows: once after each token."""
        chunk = Chunk(self.loaded, self.sampling, [request], seed)
        for _ in self._steps(chunk, [request], lambda tokens, finished: None):
            yield chunk.completions()[0]

    def _steps(self, chunk: Chunk, requests: Sequence[Request], on_step: OnStep) -> Iterator[None]:
        """Decode all of a chunk; stops after each step."""
        for wave in self._waves(requests):
            # No name for the caches: the last wave's would be held until the next one.
            chunk.insert(wave, self.prefill.caches([requests[i].prompt_ids for i in wave]))
            while chunk.in_flight > self.sampling.batch_size:
                self._decoded += chunk.step(on_step)
                yield
        chunk.whole = True
        while chunk.in_flight:
            self._decoded += chunk.step(on_step)
            yield

    def _waves(self, requests: Sequence[Request]) -> Iterator[list[int]]:
        """Indices of requests, longest prompts first, a few prompts at a time.

        The next wave comes when no more than a batch is in flight: the batch stays full, and few caches wait.
        """
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i].prompt_ids))
        if self.prefill.exact:
            self.prefill.share([request.prompt_ids for request in requests])
        wave: list[int] = []
        for index in order:
            wave.append(index)
            completions = sum(requests[i].samples for i in wave)
            if is_wave(len(wave), completions, self.sampling.batch_size):
                yield wave
                wave = []
        if wave:
            yield wave


def sample_chunk(loaded: Loaded, requests: Sequence[Request], sampling: Sampling, seed: int) -> list[Completion]:
    """Sample a single chunk, see `Sampler.sample`."""
    return Sampler(loaded, sampling).sample(requests, seed)
