"""Prompts to caches: what they all begin with is passed once, and each prompt once for all of its samples.

mlx-lm's batch generator continues sequences that come with a history. Here the history is made: the shared tokens at
batch size 1, then all other tokens of a batch of prompts but the last ones, from which the generator goes on.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from upft_mlx.sampling.chunks import shared_start
from upft_mlx.sampling.same_logits import UNSUPPORTED, same_logits

if TYPE_CHECKING:
    from upft_mlx.models.load import Loaded

Cache = list[Any]
"""What a sequence has left in each layer."""


class Prefill:
    """Makes the caches of prompts for one model, with its adapter as it is now."""

    def __init__(self, loaded: Loaded) -> None:
        from mlx_lm.models.cache import KVCache, make_prompt_cache

        self._model = loaded.model
        self.cut = all(type(layer) is KVCache for layer in make_prompt_cache(self._model))
        """Whether caches can be cut back to fewer tokens: not those of sliding windows and of recurrent layers."""
        self._shared_ids: list[int] | None = None
        self._shared_cache: Cache = []
        self.tokens = 0
        if loaded.continues is None:  # a run makes about ten of these, and the trial takes five passes
            exact = self._agrees(shared=True)
            loaded.continues = exact, exact or self._agrees(shared=False)
        self.exact, self.batches = loaded.continues
        """Whether this model family continues from such caches as from its own, as tried on a few tokens, and whether
        mlx-lm's batches of prompts of different lengths are correct for it at all."""
        self.tokens = 0
        """Passed through the model since then, padding included."""

    def share(self, prompts: Sequence[Sequence[int]]) -> None:
        """Pass what these prompts begin with, unless that is what was passed last."""
        from mlx_lm.models.cache import make_prompt_cache

        shared = list(prompts[0][: shared_start(prompts, [len(ids) for ids in prompts])])
        if shared != self._shared_ids:
            self._shared_ids = shared
            (self._shared_cache,) = self._pass([shared], [make_prompt_cache(self._model)])

    def caches(self, prompts: Sequence[Sequence[int]]) -> list[Cache]:
        """For each prompt the cache of all its tokens but the last; call `share` with all of them first.

        Where the model does not continue from what they share, they are run whole; one by one where it is not right
        in batches.
        """
        if not self.exact:
            return self._whole(prompts) if self.batches else [self._whole([ids])[0] for ids in prompts]
        return self._from_shared(prompts)

    def _from_shared(self, prompts: Sequence[Sequence[int]]) -> list[Cache]:
        start = len(self._shared_ids or ())
        return self._pass([list(ids[start:-1]) for ids in prompts], [self._shared_cache] * len(prompts))

    def _pass(self, parts: list[list[int]], caches: list[Cache]) -> list[Cache]:
        """The caches with these tokens added; those that are given stay as they are."""
        from mlx_lm.generate import PromptProcessingBatch

        longest = max(map(len, parts))
        if not longest:
            return [copy.deepcopy(cache) for cache in caches]  # whoever goes on from one changes it
        self.tokens += longest * len(parts)
        batch = PromptProcessingBatch(self._model, list(range(len(parts))), caches)
        batch.prompt(parts)
        extracted = [batch.extract_cache(index) for index in range(len(parts))]
        mx.eval([layer.state for cache in extracted for layer in cache])  # else each holds on to the padded ones of all
        return extracted

    def _agrees(self, *, shared: bool) -> bool:
        """Whether the last tokens of `_TRIED` get the logits of a plain pass when a batch continues from caches.

        From that of what they share, or each from its own.
        """
        from mlx_lm.generate import PromptProcessingBatch

        try:
            if shared:
                self.share(_TRIED)
            caches = self._from_shared(_TRIED) if shared else self._whole(_TRIED)
            joined = PromptProcessingBatch(self._model, [0, 1], caches).prompt_cache
            found = self._model(mx.array([ids[-1:] for ids in _TRIED]), cache=joined)[:, -1]
            full = mx.concatenate([self._model(mx.array([ids]))[:, -1] for ids in _TRIED])
            return same_logits(found, full)
        except UNSUPPORTED:
            return False

    def _whole(self, prompts: Sequence[Sequence[int]]) -> list[Cache]:
        from mlx_lm.models.cache import make_prompt_cache

        return self._pass([list(ids[:-1]) for ids in prompts], [make_prompt_cache(self._model) for _ in prompts])


_TRIED = [[16, 17, 18, 19, 20, 5, 6, 7], [16, 17, 18, 19, 20, 8, 9, 10, 11, 12]]
