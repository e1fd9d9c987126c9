"""The sampling engine under generate, evaluate and analyze: chunks of prompts, each with a seed of its own.

A batch's composition changes its logits (by rounding) and the order in which random numbers are drawn. So the
prompts are cut into fixed chunks, and a chunk's result depends on nothing but its prompts, its settings and its
seed: a run that was interrupted and continued ends with the same bytes.

What a chunk's prompts begin with is passed once, and each prompt once for all of its samples (`prefill.py`); decoding
is mlx-lm's batch generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from upft_mlx.rows import FinishReason

if TYPE_CHECKING:
    import mlx.core as mx

    from upft_mlx.models import Loaded

WAVE_PROMPTS = 8
"""Prompts that are passed together at least; a quarter of a batch where that is more."""
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
    samples: int = 1
    """Completions of this prompt."""


@dataclass(frozen=True)
class Completion:
    """What was sampled, without EOS."""

    ids: list[int]
    finish_reason: FinishReason
    logprob: float | None = None
    """Sum of the log-probabilities (nats) of ids and EOS in the model's own distribution, before the temperature."""
    stop_id: int | None = None
    """The EOS that was sampled: a model may have several. None where there was none."""


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

    @property
    def chunk_size(self) -> int:
        """Requests per chunk."""
        return CHUNK_BATCHES * self.batch_size


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
        from upft_mlx.prefill import Prefill

        self._prefill = Prefill(loaded.model)
        if not self._prefill.batches:
            sampling = replace(sampling, batch_size=1)
        self.loaded, self.sampling = loaded, sampling
        self._decoded = 0

    @property
    def notice(self) -> str | None:
        """What is slower than it could be on this model family, and why; None where nothing is."""
        if not self._prefill.batches:
            return "solutions are sampled one at a time: mlx-lm's batches give this model family other logits"
        if not self._prefill.exact:
            return "prompts are passed for each sample: this model family does not continue from what prompts share"
        return None

    @property
    def processed_tokens(self) -> int:
        """Tokens passed through the model so far, padding of prompts included."""
        return self._prefill.tokens + self._decoded

    def sample(
        self, requests: Sequence[Request], seed: int, on_step: OnStep = lambda tokens, finished: None
    ) -> list[Completion]:
        """Sample the completions of a chunk.

        Args:
            requests: prompts, in any order; longer ones are decoded first, so that memory fails early.
            seed: everything random derives from it.
            on_step: called after each decoding step with the new tokens and the newly finished completions.

        Returns:
            Request by request, sample by sample.
        """
        import mlx.core as mx

        mx.random.seed(seed)
        chunk = _Chunk(self.loaded, self.sampling, requests)
        try:
            for _ in self._steps(chunk, requests, on_step):
                pass
        finally:
            chunk.close()
        return chunk.completions()

    def stream(self, request: Request, seed: int) -> Generator[Completion, None, None]:
        """The completion that `sample` gives for this one request, as it grows: once after each token."""
        import mlx.core as mx

        mx.random.seed(seed)
        chunk = _Chunk(self.loaded, self.sampling, [request])
        try:
            for _ in self._steps(chunk, [request], lambda tokens, finished: None):
                yield chunk.completions()[0]
        finally:
            chunk.close()

    def _steps(self, chunk: _Chunk, requests: Sequence[Request], on_step: OnStep) -> Iterator[None]:
        """Decode all of a chunk; stops after each step."""
        for wave in self._waves(requests):
            chunk.insert(requests, wave, self._caches([requests[i].prompt_ids for i in wave]))
            while chunk.in_flight > self.sampling.batch_size:
                self._decoded += chunk.step(on_step)
                yield
        while chunk.in_flight:
            self._decoded += chunk.step(on_step)
            yield

    def _waves(self, requests: Sequence[Request]) -> Iterator[list[int]]:
        """Indices of requests, longest prompts first, a few prompts at a time.

        The next wave comes when no more than a batch is in flight: the batch stays full, and few caches wait.
        """
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i].prompt_ids))
        if self._prefill.exact:
            self._prefill.share([request.prompt_ids for request in requests])
        wave: list[int] = []
        for index in order:
            wave.append(index)
            completions = sum(requests[i].samples for i in wave)
            if len(wave) >= WAVE_PROMPTS and 4 * completions >= self.sampling.batch_size:
                yield wave
                wave = []
        if wave:
            yield wave

    def _caches(self, prompts: list[list[int]]) -> list[Any] | None:
        return self._prefill.caches(prompts) if self._prefill.exact else None


class _Draft:
    """One completion in the making."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.stop_id: int | None = None
        self.logprob = 0.0


class _Chunk:
    """The completions of a chunk and the generator that decodes them."""

    def __init__(self, loaded: Loaded, sampling: Sampling, requests: Sequence[Request]) -> None:
        from mlx_lm.generate import BatchGenerator

        self._loaded, self._sampling = loaded, sampling
        self._drafts = [[_Draft() for _ in range(request.samples)] for request in requests]
        self._flying: dict[int, _Draft] = {}
        self._generator = BatchGenerator(
            loaded.model,
            stop_tokens=[[token] for token in loaded.eos_ids],
            sampler=_sampler(loaded, sampling),
            completion_batch_size=sampling.batch_size,
            prefill_batch_size=sampling.batch_size,
        )

    @property
    def in_flight(self) -> int:
        """Completions that are not finished."""
        return len(self._flying)

    def insert(self, requests: Sequence[Request], wave: list[int], caches: list[Any] | None) -> None:
        """Begin the completions of some requests, from the caches of their prompts where there are any."""
        pairs = [(position, draft) for position, index in enumerate(wave) for draft in self._drafts[index]]
        prompts = [requests[wave[position]].prompt_ids for position, _ in pairs]
        uids = self._generator.insert(
            prompts if caches is None else [ids[-1:] for ids in prompts],
            [requests[wave[position]].max_tokens for position, _ in pairs],
            caches=None if caches is None else [caches[position] for position, _ in pairs],
        )
        self._flying |= {uid: draft for uid, (_, draft) in zip(uids, pairs, strict=True)}

    def step(self, on_step: OnStep) -> int:
        """Decode a token of each completion of the batch; returns how many."""
        responses = self._generator.next_generated()
        logprobs = self._logprobs(responses)
        before = len(self._flying)
        stopped = []
        for response, logprob in zip(responses, logprobs, strict=True):
            draft = self._flying[response.uid]
            draft.logprob += logprob
            if response.finish_reason == "stop":
                draft.stop_id = int(response.token)
            else:
                draft.ids.append(int(response.token))
            draft.finish_reason = response.finish_reason
            if self._at_stop_string(draft):
                draft.ids, draft.finish_reason = self._before_stop_string(draft.ids), "stop"
                stopped += [] if response.finish_reason else [response.uid]
            if draft.finish_reason is not None:
                del self._flying[response.uid]
        if stopped:
            self._generator.remove(stopped)
        on_step(len(responses), before - len(self._flying))
        return len(responses)

    def _logprobs(self, responses: Sequence[Any]) -> list[float]:
        """The model's own log-probabilities (nats, before temperature) of the tokens, where they are asked for."""
        import mlx.core as mx

        if not self._sampling.logprobs or not responses:
            return [0.0] * len(responses)
        picked = mx.stack([response.logprobs[response.token] for response in responses])
        values: list[float] = picked.astype(mx.float32).tolist()  # type: ignore[assignment]
        return values

    def _at_stop_string(self, draft: _Draft) -> bool:
        """Whether the last token completed one; a token is at least a byte, so that few need to be looked at."""
        stop = self._sampling.stop
        if not stop or not draft.ids:
            return False
        tail = draft.ids[-max(len(text.encode()) for text in stop) - 3 :]
        text = self._loaded.tokenizer.decode(tail)
        return any(string in text for string in stop)

    def _before_stop_string(self, ids: list[int]) -> list[int]:
        """The ids whose text ends before the first stop string begins."""
        decode = self._loaded.tokenizer.decode
        text = decode(ids)
        end = min(at for string in self._sampling.stop if (at := text.find(string)) >= 0)
        kept = len(ids)
        while kept and not text[:end].startswith(decode(ids[:kept])):
            kept -= 1
        return ids[:kept]

    def completions(self) -> list[Completion]:
        """All of them as far as they are; `length` ends one that is in flight."""
        logprobs = self._sampling.logprobs
        return [
            Completion(
                [*draft.ids], draft.finish_reason or "length", draft.logprob if logprobs else None, draft.stop_id
            )
            for drafts in self._drafts
            for draft in drafts
        ]

    def close(self) -> None:
        """Give back what the generator changed."""
        self._generator.close()


def sample_chunk(
    loaded: Loaded,
    requests: Sequence[Request],
    sampling: Sampling,
    seed: int,
    on_step: OnStep = lambda tokens, finished: None,
) -> list[Completion]:
    """Sample a single chunk, see `Sampler.sample`."""
    return Sampler(loaded, sampling).sample(requests, seed, on_step)


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
