"""The loop over tokens: a chunk's completions, a batch of them at a time, each with random numbers of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from upft_mlx.rows import FinishReason

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn

    from upft_mlx.models.load import Loaded

    Draw = Callable[[mx.array, mx.array], tuple[mx.array, mx.array | None]]

IDLE_SHARE = 1 / 8
"""Of a batch that may have ended before the caches are copied without it, and with what waits."""

LOOP_TOKENS, LOOP_PERIOD = 128, 32
"""A completion whose last 128 tokens repeat with a period of at most 32 never ends by itself: weak models ramble."""

OnStep = Callable[[int, int], None]
"""Called after each decoding step with the new tokens and the newly finished completions."""


@dataclass(frozen=True)
class Request:
    """A prompt and how far to decode it."""

    prompt_ids: list[int]
    max_tokens: int
    samples: int = 1
    """Completions of this prompt."""
    key: str = ""
    """What the random numbers are drawn for, such as a problem's id: equal keys get equal numbers."""


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


@dataclass(eq=False)
class _Row:
    """A completion in the making."""

    last: int
    """The prompt's last token."""
    limit: int
    key: tuple[int, int]
    """Of its random numbers: two words of 32 bits; the position is added to the second."""
    ids: list[int] = field(default_factory=list)
    begun: int = 0
    """Tokens that are drawn or being computed, EOS included."""
    finish_reason: FinishReason | None = None
    stop_id: int | None = None
    logprob: float = 0.0

    @property
    def goes_on(self) -> bool:
        """Whether another token is wanted, as far as is known before the one being computed is looked at."""
        return self.finish_reason is None and self.begun < self.limit


class _Batch:
    """Completions that are decoded together: their caches, and a token of each that is being computed."""

    def __init__(self, model: nn.Module, draw: Draw, rows: list[_Row], caches: list[list[Any]]) -> None:
        """Begin with the prompts' last tokens; `caches` hold all tokens before them."""
        import mlx.core as mx
        from mlx_lm.generate import PromptProcessingBatch

        self._model, self._draw, self.rows = model, draw, rows
        self._caches = PromptProcessingBatch(model, list(range(len(rows))), caches).prompt_cache  # one a layer
        self.tokens = mx.array([row.last for row in rows])  # (B,)
        self.logprobs: mx.array | None = None  # (B,)
        self.forward()

    def forward(self) -> None:
        """Run the latest tokens through the model and begin to draw the next ones."""
        import mlx.core as mx

        keys = [(row.key[0], (row.key[1] + row.begun) % 2**32) for row in self.rows]
        logits = self._model(self.tokens[:, None], cache=self._caches)[:, -1, :]  # (B, V)
        self.tokens, self.logprobs = self._draw(logits, mx.array(keys, dtype=mx.uint32))
        mx.async_eval([self.tokens] if self.logprobs is None else [self.tokens, self.logprobs])
        for row in self.rows:
            row.begun += 1

    def keep(self, indices: list[int]) -> None:
        """Copy the caches of these rows, and drop the others."""
        self.rows = [self.rows[i] for i in indices]
        for cache in self._caches:
            cache.filter(indices)
        self.tokens = self.tokens[indices]
        self.logprobs = None if self.logprobs is None else self.logprobs[indices]

    def join(self, other: _Batch) -> None:
        """Add the rows of another batch."""
        import mlx.core as mx

        self.rows = self.rows + other.rows
        for cache, others in zip(self._caches, other._caches, strict=True):
            cache.extend(others)
        self.tokens = mx.concatenate([self.tokens, other.tokens])
        if self.logprobs is not None and other.logprobs is not None:
            self.logprobs = mx.concatenate([self.logprobs, other.logprobs])


class Chunk:
    """The completions of a chunk, a batch of them at a time in decoding."""

    def __init__(self, loaded: Loaded, sampling: Sampling, requests: Sequence[Request], seed: int) -> None:
        self._loaded, self._sampling, self._draw = loaded, sampling, drawer(sampling)
        self._ends = frozenset(loaded.eos_ids)
        self._rows = [
            [
                _Row(request.prompt_ids[-1], request.max_tokens, random_key(seed, request.key, sample))
                for sample in range(request.samples)
            ]
            for request in requests
        ]
        self._waiting: list[tuple[_Row, list[Any]]] = []
        """With the caches of their prompts, all tokens but the last."""
        self._batch: _Batch | None = None

    @property
    def in_flight(self) -> int:
        """Completions that are decoded, or wait for it."""
        return len(self._waiting) + self._decoding

    @property
    def _decoding(self) -> int:
        return sum(row.finish_reason is None for row in self._batch.rows) if self._batch else 0

    def insert(self, wave: Sequence[int], caches: Sequence[list[Any]]) -> None:
        """Take in all completions of some requests, each with the cache of its prompt's tokens but the last."""
        for index, cache in zip(wave, caches, strict=True):
            self._waiting += [(row, cache) for row in self._rows[index]]

    def step(self, on_step: OnStep) -> int:
        """Take one more token of each completion in the batch, while the model works on the next ones.

        Returns:
            Tokens that were run through the model.
        """
        passed = self._fill()
        assert self._batch is not None
        rows, tokens, logprobs = self._batch.rows, self._batch.tokens, self._batch.logprobs
        self._drop_ended()
        if self._batch is not None:
            self._batch.forward()
            passed += len(self._batch.rows)
        values: list[int] = tokens.tolist()  # type: ignore[assignment]
        likely: list[float] = [0.0] * len(rows) if logprobs is None else logprobs.tolist()  # type: ignore[assignment]
        new = finished = 0
        for row, token, logprob in zip(rows, values, likely, strict=True):
            if row.finish_reason is None:
                self._take(row, token, logprob)
                new, finished = new + 1, finished + (row.finish_reason is not None)
        on_step(new, finished)
        return passed

    def _fill(self) -> int:
        """Let waiting completions join where there is room for an eighth of a batch, or nothing else to do."""
        room = self._sampling.batch_size - self._decoding
        if not self._waiting or (self._decoding and room < IDLE_SHARE * self._sampling.batch_size):
            return 0
        joining, self._waiting = self._waiting[:room], self._waiting[room:]
        made = _Batch(self._loaded.model, self._draw, [row for row, _ in joining], [cache for _, cache in joining])
        self._drop_ended(at_once=True)
        if self._batch is None:
            self._batch = made
        else:
            self._batch.join(made)
        return len(joining)

    def _drop_ended(self, *, at_once: bool = False) -> None:
        """Copying the caches takes time: completions that have ended stay until they are an eighth of the batch."""
        if self._batch is None:
            return
        rows = self._batch.rows
        going = [index for index, row in enumerate(rows) if (row.finish_reason is None if at_once else row.goes_on)]
        if not going:
            self._batch = None
        elif len(going) < len(rows) and (at_once or len(rows) - len(going) >= IDLE_SHARE * len(rows)):
            self._batch.keep(going)

    def _take(self, row: _Row, token: int, logprob: float) -> None:
        """Add a token to a completion, and end it at EOS, at a stop string, at its limit or in a loop."""
        row.logprob += logprob
        if token in self._ends:
            row.finish_reason, row.stop_id = "stop", token
            return
        ids = row.ids
        ids.append(token)
        if stop := self._sampling.stop:
            decode = self._loaded.tokenizer.decode
            # A token is at least a byte: a stop string that the last one completed is in this tail.
            tail = decode(ids[-max(len(text.encode()) for text in stop) - 3 :])
            if any(string in tail for string in stop):
                text, kept = decode(ids), len(ids)
                end = min(at for string in stop if (at := text.find(string)) >= 0)
                while kept and not text[:end].startswith(decode(ids[:kept])):
                    kept -= 1
                row.ids, row.finish_reason = ids[:kept], "stop"
                return
        if len(ids) == row.limit:
            row.finish_reason = "length"
        elif len(ids) >= LOOP_TOKENS + LOOP_PERIOD and len(ids) % 32 == 0:  # looking costs time: every 32 tokens
            last = ids[-LOOP_TOKENS:]
            if any(last == ids[-LOOP_TOKENS - period : -period] for period in range(1, LOOP_PERIOD + 1)):
                row.finish_reason = "length"

    def completions(self) -> list[Completion]:
        """All of them as far as they are; `length` ends one that is in flight."""
        logprobs = self._sampling.logprobs
        return [
            Completion([*row.ids], row.finish_reason or "length", row.logprob if logprobs else None, row.stop_id)
            for rows in self._rows
            for row in rows
        ]


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
