"""The loop over tokens: a chunk's completions, a batch of them at a time, each with random numbers of its own.

A completion may come with a draft, such as another model's answer to the same prompt. Then the model reads prompt and
draft many tokens at a time and draws at each position with the completion's own random numbers. Up to the first token
that differs, the draft is what decoding would have drawn, but for rounding. From there it reads what follows the same
tokens in a draft of the same prompt, and where nothing does, the loop goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from upft_mlx.rows import FinishReason
from upft_mlx.sampling.draw import Sampling, drawer, random_key

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn

    from upft_mlx.models.load import Loaded
    from upft_mlx.sampling.draw import Draw

IDLE_SHARE = 1 / 8
"""The share of a batch that may have ended before the caches are copied without it, and with what waits."""

DRAFT_TOKENS, DRAFT_MOST, DRAFT_BATCHES, DRAFT_LOGITS = 8, 64, 8, 2**21
"""Tokens of a draft that are read at first, twice as many each time up to the second number. Of all drafts together at
most this many times the batch size, or as many as have this number of logits, which are held at once. So a draft of no
use costs little."""

ALIKE = 3
"""Where a draft is left, what follows the same last tokens in a draft of the same prompt is read next: after the same
three, else two, else one."""
AGAIN = 4
"""Else the draft is read on after the token that differs, if this many tokens before it were right, and are left."""
POOR, POOR_MOST = 3, 2
"""A completion is decoded without drafts once fewer than three tokens were right twice in a row."""
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
    drafts: tuple[Sequence[int], ...] = ()
    """Tokens that each sample is likely to begin with, its end included; none: none are known. They change no draw."""


@dataclass(frozen=True)
class Completion:
    """What was sampled, without EOS."""

    ids: list[int]
    finish_reason: FinishReason
    logprob: float | None = None
    """Sum of the log-probabilities (nats) of ids, and of the EOS or a stop text's first token that ended them, in the
    model's own distribution, before the temperature."""
    stop_id: int | None = None
    """The EOS that was sampled: a model may have several. None where there was none."""
    accepted: int = 0
    """Tokens, EOS included, that were the draft's."""


@dataclass(eq=False)
class _Row:
    """A completion in the making."""

    last: int
    """The token after those in its cache: the prompt's last one, or the last one that a draft has led to."""
    limit: int
    key: tuple[int, int]
    """The key of its random numbers: two words of 32 bits; the position is added to the second."""
    draft: Sequence[int] = ()
    drafts: Sequence[Sequence[int]] = ()
    """Those of all samples of its prompt."""
    places: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """Where each token is in `drafts`: the draft's number, and the tokens of it up to this one."""
    poor: int = 0
    """Drafts in a row that were of little use."""
    ids: list[int] = field(default_factory=list)
    begun: int = 0
    """Tokens that are drawn or being computed, EOS included."""
    finish_reason: FinishReason | None = None
    stop_id: int | None = None
    logprob: float = 0.0
    sums: list[float] = field(default_factory=list)
    """`logprob` after each token that was drawn."""
    accepted: int = 0

    def key_at(self, position: int) -> tuple[int, int]:
        """The key of the token at this position, from 0."""
        return self.key[0], (self.key[1] + position) % 2**32

    def finds_draft(self, right: int) -> bool:
        """Whether there is a draft to read after a token that differed, `right` tokens after the last one that did."""
        self.poor = 0 if right >= POOR else self.poor + 1
        if self.poor == POOR_MOST:
            return False
        own = self.draft
        for alike in range(min(ALIKE, len(self.ids)), 0, -1):
            tail = self.ids[-alike:]
            places = [
                (draft is not own, abs(end - self.begun), number, end)
                for number, end in self.places.get(tail[-1], ())
                if alike <= end < len(draft := self.drafts[number]) and [*draft[end - alike : end]] == tail
            ]
            if places:
                _, _, number, end = min(places)
                self.draft = [*self.ids, *self.drafts[number][end:]]
                return True
        return right >= AGAIN and len(own) - self.begun > AGAIN

    @property
    def goes_on(self) -> bool:
        """Whether another token is wanted, as far as is known before the one being computed is looked at."""
        return self.finish_reason is None and self.begun < self.limit


_Waiting = tuple[_Row, list[Any]]
"""A completion, and the cache of all its tokens but the last."""


class _Batch:
    """Completions that are decoded together: their caches, and a token of each that is being computed."""

    def __init__(self, model: nn.Module, draw: Draw, rows: list[_Row], caches: list[list[Any]]) -> None:
        """Begin with the rows' last tokens; `caches` hold all tokens before them."""
        import mlx.core as mx

        self._model, self._draw, self.rows = model, draw, rows
        self._caches = _merged(model, caches)
        self.tokens = mx.array([row.last for row in rows])  # (B,)
        self.logprobs: mx.array | None = None  # (B,)
        self.forward()

    def forward(self) -> None:
        """Run the latest tokens through the model and begin to draw the next ones."""
        import mlx.core as mx

        keys = [row.key_at(row.begun) for row in self.rows]
        logits = self._model(self.tokens[:, None], cache=self._caches)[:, -1, :]  # (B, V)
        self.tokens, self.logprobs = self._draw(logits, mx.array(keys, dtype=mx.uint32))
        mx.async_eval([self.tokens] if self.logprobs is None else [self.tokens, self.logprobs])
        for row in self.rows:
            row.begun += 1

    def keep(self, indices: list[int]) -> None:
        """Copy the caches of these rows, and drop the others."""
        import mlx.core as mx

        self.rows = [self.rows[i] for i in indices]
        for cache in self._caches:
            cache.filter(indices)
            mx.eval(cache.state)  # a layer at a time: else the caches of all layers are held twice
        self.tokens = self.tokens[indices]
        self.logprobs = None if self.logprobs is None else self.logprobs[indices]

    def join(self, other: _Batch) -> None:
        """Add the rows of another batch, which gives up its caches."""
        import mlx.core as mx

        self.rows = self.rows + other.rows
        for cache in self._caches:
            cache.extend(other._caches.pop(0))
            mx.eval(cache.state)
        self.tokens = mx.concatenate([self.tokens, other.tokens])
        if self.logprobs is not None and other.logprobs is not None:
            self.logprobs = mx.concatenate([self.logprobs, other.logprobs])


class Chunk:
    """The completions of a chunk, a batch of them at a time in decoding."""

    def __init__(self, loaded: Loaded, sampling: Sampling, requests: Sequence[Request], seed: int) -> None:
        self._loaded, self._sampling, self._draw = loaded, sampling, drawer(sampling)
        self._ends = frozenset(loaded.eos_ids)
        self._rows: list[list[_Row]] = []
        for r in requests:
            places: dict[int, list[tuple[int, int]]] = {}  # a search of all drafts at each token that differs is slow
            for number, tokens in enumerate(r.drafts):
                for end, token in enumerate(tokens, 1):
                    places.setdefault(token, []).append((number, end))
            self._rows.append(
                [
                    _Row(r.prompt_ids[-1], r.max_tokens, random_key(seed, r.key, sample), draft, r.drafts, places)
                    for sample, draft in enumerate(r.drafts or [()] * r.samples)
                ]
            )
        self._waiting: list[_Waiting] = []
        """With the caches of their prompts, all tokens but the last."""
        self._drafted: list[_Waiting] = []
        """The same, with drafts to read: many of them together, which takes less time."""
        self._batch: _Batch | None = None
        self.whole = False
        """Whether all requests are in."""
        self._together = DRAFT_BATCHES * sampling.batch_size
        """Tokens of drafts that are read in a pass; known to be more once the size of the vocabulary is."""

    @property
    def in_flight(self) -> int:
        """Completions that are decoded, or wait for it."""
        return len(self._waiting) + len(self._drafted) + self._decoding

    @property
    def _decoding(self) -> int:
        return sum(row.finish_reason is None for row in self._batch.rows) if self._batch else 0

    def insert(self, wave: Sequence[int], caches: Sequence[list[Any]]) -> None:
        """Take in all completions of some requests, each with the cache of its prompt's tokens but the last."""
        for index, cache in zip(wave, caches, strict=True):
            for row in self._rows[index]:
                (self._drafted if row.draft else self._waiting).append((row, cache))

    def _follow(self, drafted: Sequence[_Waiting], on_step: OnStep) -> tuple[list[_Waiting], int]:
        """Take each completion along its draft to its end or to where the model leaves the draft; there it waits.

        Returns:
            Completions that left their drafts and have another one; and the tokens that were run through the model.
        """
        import mlx.core as mx
        from mlx_lm.models.cache import trim_prompt_cache

        rows, caches = [row for row, _ in drafted], _merged(self._loaded.model, [cache for _, cache in drafted])
        begun = {id(row): row.begun for row in rows}
        more: list[_Waiting] = []
        passed = read = 0
        most = DRAFT_TOKENS
        while rows:
            fed = [[row.last, *row.draft[begun[id(row)] :]][read:] for row in rows]
            width = min(most, self._together // len(rows), max(map(len, fed)))
            tokens = mx.array([(part + [0] * width)[:width] for part in fed])  # (B, S)
            logits = self._loaded.model(tokens, cache=caches)  # (B, S, V)
            self._together = max(self._together, DRAFT_LOGITS // logits.shape[-1])
            keys = [row.key_at(row.begun + place) for row in rows for place in range(width)]
            drawn = self._drawn(logits.reshape(-1, logits.shape[-1]), keys)
            passed, read, most = passed + width * len(rows), read + width, min(2 * most, DRAFT_MOST)
            going, before = [], sum(row.begun for row in rows)
            left: list[_Waiting] = []
            for index, row in enumerate(rows):
                if self._agree(row, drawn[index * width : (index + 1) * width]):
                    going.append(index)
                elif row.finish_reason is None:
                    cache, kept = [layer.extract(index) for layer in caches], row.begun - begun[id(row)]
                    trim_prompt_cache(cache, read - kept)
                    left.append((row, cache))
                    row.last = row.ids[-1]
                    (more if row.finds_draft(kept - 1) else self._waiting).append((row, cache))
            mx.eval([layer.state for _, cache in left for layer in cache])  # else they hold on to those of all
            on_step(sum(row.begun for row in rows) - before, sum(row.finish_reason is not None for row in rows))
            if len(going) < len(rows):
                rows = [rows[index] for index in going]
                for layer in caches if rows else ():
                    layer.filter(going)
        return more, passed

    def _drawn(self, logits: mx.array, keys: Sequence[tuple[int, int]]) -> list[tuple[int, float]]:
        """Tokens and log-probabilities drawn from logits (N, V), a batch of them at a time where a batch is large."""
        import mlx.core as mx

        found: list[tuple[int, float]] = []
        size = max(self._sampling.batch_size, DRAFT_LOGITS // logits.shape[-1])
        for start in range(0, len(keys), size):
            part = slice(start, start + size)
            tokens, logprobs = self._draw(logits[part], mx.array([*keys[part]], dtype=mx.uint32))
            values: list[int] = tokens.tolist()  # type: ignore[assignment]
            likely: list[float] = [0.0] * len(values) if logprobs is None else logprobs.tolist()  # type: ignore[assignment]
            found += zip(values, likely, strict=True)
        return found

    def _agree(self, row: _Row, drawn: Sequence[tuple[int, float]]) -> bool:
        """Take what was drawn along a draft; whether the draft was right to the last of these tokens, and goes on."""
        for token, logprob in drawn:
            agrees = row.begun < len(row.draft) and token == row.draft[row.begun]
            row.begun, row.accepted = row.begun + 1, row.accepted + agrees
            self._take(row, token, logprob)
            if row.finish_reason is not None or not agrees:
                return False
        return True

    def step(self, on_step: OnStep) -> int:
        """Read the drafts, then take one more token of each completion in the batch, while the model works on the next.

        Few drafts wait for others that come, for a pass with few of them takes nearly as long.

        Returns:
            Tokens that were run through the model.
        """
        passed, size = 0, self._sampling.batch_size
        while self._drafted and (self.whole or 2 * len(self._drafted) > size):
            most = min(2 * size, self._together // DRAFT_TOKENS)
            part, self._drafted = self._drafted[:most], self._drafted[most:]
            more, read = self._follow(part, on_step)
            self._drafted, passed = self._drafted + more, passed + read
        passed += self._fill()
        if self._batch is None:
            return passed
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
        self._drop_ended(at_once=True)  # first: their caches make room for those of the rows that join
        made = _Batch(self._loaded.model, self._draw, [row for row, _ in joining], [cache for _, cache in joining])
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
        row.sums.append(row.logprob)
        if token in self._ends:
            row.finish_reason, row.stop_id = "stop", token
            return
        ids = row.ids
        ids.append(token)
        if stop := self._sampling.stop:
            decode = self._loaded.tokenizer.decode
            # A token is at least a byte: a stop string that the last one completed is in this tail.
            tail = decode(ids[-max(len(text.encode()) for text in stop) - 3 :])
            text = decode(ids) if any(string in tail for string in stop) else ""
            ends = [at for string in stop if (at := text.find(string)) >= 0]
            if ends:  # else the tail alone decodes differently
                end, kept = min(ends), len(ids)
                while kept and not text[:end].startswith(decode(ids[:kept])):
                    kept -= 1
                row.ids, row.finish_reason = ids[:kept], "stop"
                row.logprob = row.sums[kept]  # as if the first token that is dropped were EOS
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
            Completion(
                [*row.ids], row.finish_reason or "length", row.logprob if logprobs else None, row.stop_id, row.accepted
            )
            for rows in self._rows
            for row in rows
        ]


def _merged(model: nn.Module, caches: list[list[Any]]) -> list[Any]:
    """The caches of some sequences as those of a batch, one a layer."""
    from mlx_lm.generate import PromptProcessingBatch

    return PromptProcessingBatch(model, list(range(len(caches))), caches).prompt_cache  # type: ignore[no-any-return]
