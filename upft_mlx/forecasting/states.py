"""What the model makes of prefixes: hidden states and log-probabilities, one pass per problem."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from upft_mlx.errors import ModelError
from upft_mlx.training.chunked_loss import nats
from upft_mlx.training.loss import (
    Modes,
    chunks_exactly,
    final_norm,
    find_final_norm,
    gathers_exactly,
    head_of,
    shares_exactly,
    supervised_logits,
)

if TYPE_CHECKING:
    import mlx.nn as nn

    from upft_mlx.forecasting.probe import Array
    from upft_mlx.models.load import Loaded

_TOGETHER = 64
"""Prefixes of one problem that are passed at a time."""


@dataclass(frozen=True)
class States:
    """What the model makes of one problem's samples at one prefix length."""

    features: Array
    """(N, D): the hidden state at each prefix's last token, behind the final norm."""
    logprobs: list[float]
    """Mean log-probability (nats) of each prefix's tokens, its end included, in the model's own distribution."""


class Reader:
    """Reads the states of prefixes from one model."""

    def __init__(self, loaded: Loaded) -> None:
        """Raises:
        ModelError: the model family has no norm right before its head, from which states could be read.
        """
        self._model = loaded.model
        self._shares = shares_exactly(self._model)
        self._model.freeze()  # only the head of a frozen model can be computed in chunks
        self._chunk = chunks_exactly(self._model) if gathers_exactly(self._model) else 0
        if find_final_norm(self._model) is None:
            raise ModelError(
                "hidden states cannot be read from this model family",
                "use a prefix.selection other than probe and auto",
                path=loaded.path,
            )

    def states(
        self,
        prompt: Sequence[int],
        completions: Sequence[Sequence[int]],
        lengths: Sequence[int],
        ended: Sequence[bool] | None = None,
    ) -> dict[int, States]:
        """For each length the states of the completions' prefixes; one that is shorter is taken whole.

        An empty completion has the state of the prompt's last token, and the log-probability 0.

        Args:
            prompt: token ids, at least one.
            completions: token ids of each sample.
            lengths: of prefixes, in tokens.
            ended: whether the last id of each completion is what ended it: that counts in its log-probability, as where
                prefixes are sampled, and the state is that of the token before. None: of none.
        """
        longest = max(lengths)
        cut = [tuple(ids[:longest]) for ids in completions]
        ends = [len(ids) - last for ids, last in zip(completions, ended or [False] * len(cut), strict=True)]
        distinct = list(dict.fromkeys(cut))
        hidden, logprobs = zip(
            *(
                pair
                for start in range(0, len(distinct), _TOGETHER)
                for pair in self._pass(prompt, distinct[start:][:_TOGETHER])
            ),
            strict=True,
        )
        place = {ids: number for number, ids in enumerate(distinct)}
        found = {}
        for length in lengths:
            states = [hidden[place[ids]][min(length, end)] for ids, end in zip(cut, ends, strict=True)]
            read = [logprobs[place[ids]][: min(length, len(ids))] for ids in cut]
            means = [float(part.mean()) if len(part) else 0.0 for part in read]
            found[length] = States(np.stack(states).astype(np.float64), means)
        return found

    def _pass(self, prompt: Sequence[int], prefixes: Sequence[Sequence[int]]) -> Iterator[tuple[Any, Any]]:
        """Each prefix's hidden states (1 + T, D), from the prompt's last token on, and its log-probabilities (T)."""
        shares = self._shares and len(prompt) > 1
        start = [prompt[-1]] if shares else list(prompt)
        width = max(1, *map(len, prefixes))  # all may be empty
        tokens = mx.array([[*start, *ids, *[0] * (width - len(ids))] for ids in prefixes])  # (B, S + T), padded behind
        shared = mx.array([*prompt[:-1]] if shares else [], mx.int32)
        modes = Modes(gather=False, share=shares)
        with _catching(self._model) as caught:
            logits = supervised_logits(self._model, shared, tokens, mx.arange(tokens.size), modes)  # (B (S + T), V)
        at, (before, behind), targets = len(start) - 1, caught[-1], tokens[:, len(start) :]
        whole = logits.reshape(*tokens.shape, -1)  # lazy: all logits are computed only where chunks are not possible
        size = self._chunk or targets.size
        head, read = (head_of(self._model), before) if self._chunk else (lambda part: part, whole)
        read, flat = read[:, at:-1].reshape(targets.size, -1), targets.reshape(-1)
        lost = [np.array(nats(head(read[n:][:size]), flat[n:][:size])) for n in range(0, targets.size, size)]
        hidden = np.array(behind[:, at:].astype(mx.float32))
        yield from zip(hidden, -np.concatenate(lost).reshape(targets.shape), strict=True)


@contextmanager
def _catching(model: nn.Module) -> Iterator[list[tuple[mx.array, mx.array]]]:
    """While active, what the final norm gets and what it returns is added to the list."""
    caught = list[tuple[mx.array, mx.array]]()

    def catch(norm: Callable[..., mx.array], hidden: mx.array, *args: Any) -> mx.array:
        caught.append((hidden, norm(hidden, *args)))
        return caught[-1][1]

    with final_norm(model, catch):
        yield caught
