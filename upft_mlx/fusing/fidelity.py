"""How much of an adapter's effect a fused model keeps, measured on held-out prompts.

    retained = 1 - KL(adapter || fused) / KL(adapter || base)

1 is the adapter itself, 0 is the base model, below 0 is farther from the adapter than the base is. The divergences are
averaged over positions of two kinds: those that training supervised, in validation rows, and the first tokens of the
adapter's own greedy completions, of evaluation prompts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import mlx.core as mx
import mlx.nn as nn

from upft_mlx.models.load import Loaded
from upft_mlx.planning.memory import GREEDY_TOKENS, PROBED_PROMPTS, PROBED_ROWS, PROBED_TOGETHER, ROW_POSITIONS
from upft_mlx.results.fidelity import NO_EFFECT, Divergence
from upft_mlx.sampling.decoding import Request
from upft_mlx.sampling.draw import Sampling
from upft_mlx.sampling.same_logits import scalar
from upft_mlx.sampling.sampler import chunks, sample_chunk
from upft_mlx.training.batches import Example, make_batch
from upft_mlx.training.divergence import kl_per_position, log_probabilities
from upft_mlx.training.loss import Modes, gathers_exactly


def probes(examples: Sequence[Example]) -> list[Example]:
    """Rows to measure on, each cut to its first supervised positions."""
    return [Example(e.id, e.ids[: e.start + ROW_POSITIONS], e.start) for e in examples[:PROBED_ROWS]]


def greedy_probes(loaded: Loaded, prompts: Sequence[list[int]]) -> list[Example]:
    """The model's greedy completions of prompts; their EOS, where they end, is compared as well."""
    asked = [Request(ids, GREEDY_TOKENS) for ids in prompts[:PROBED_PROMPTS] if ids]
    if not asked:
        return []
    found = sample_chunk(loaded, asked, Sampling(temperature=0, batch_size=len(asked)), seed=0)
    return [
        Example(f"greedy/{i}", [*r.prompt_ids, *c.ids, *([c.stop_id] if c.stop_id is not None else [])], start)
        for i, (r, c) in enumerate(zip(asked, found, strict=True))
        if (start := len(r.prompt_ids)) and (c.ids or c.finish_reason == "stop")
    ]


class Comparison:
    """Compares models with one that has its adapter on, on the same positions."""

    def __init__(self, adapted: nn.Module, rows: Sequence[Example], greedy: Sequence[Example]) -> None:
        """Keep what the adapter's model says: float32 log-probabilities (positions, vocabulary)."""
        self._modes = Modes(gather=gathers_exactly(adapted), share=False)
        examples = [(example, False) for example in rows] + [(example, True) for example in greedy]
        examples.sort(key=lambda pair: len(pair[0].ids))
        self._parts = [list(part) for part in chunks(examples, PROBED_TOGETHER)]
        self._batches = [make_batch([example for example, _ in part]) for part in self._parts]
        self._reference = list(self._log_probabilities(adapted))

    def _log_probabilities(self, model: nn.Module) -> Iterator[mx.array]:
        """The log-probabilities of each batch (N, V), float32; one batch at a time in memory unless kept."""
        for part, batch in zip(self._parts, self._batches, strict=True):
            supervised = sum(example.supervised for example, _ in part)
            yield log_probabilities(model, batch, supervised, self._modes)

    def of(self, model: nn.Module) -> Divergence:
        """How far `model` is from the adapter's."""
        divergences: list[mx.array] = []
        equal: list[bool] = []
        repeated: list[float] = []
        for part, p, q in zip(self._parts, self._reference, self._log_probabilities(model), strict=True):
            divergences.append(kl_per_position(p, q))  # of (N, V) each: two of them are in memory at a time
            same: list[bool] = (p.argmax(axis=-1) == q.argmax(axis=-1)).tolist()  # type: ignore[assignment]
            mx.eval(divergences[-1])
            equal += same
            flags = iter(same)
            for example, greedy in part:  # of a greedy completion the share before the first token that differs
                own = list(itertools.islice(flags, example.supervised))
                if greedy:
                    repeated.append(sum(1 for _ in itertools.takewhile(bool, own)) / len(own))
        top1 = sum(equal) / len(equal)
        greedy_agreement = sum(repeated) / len(repeated) if repeated else top1
        return Divergence(scalar(mx.concatenate(divergences).mean()), top1, greedy_agreement)

    def is_finite(self, model: nn.Module) -> bool:
        """Whether `model`, in the type it has, computes numbers; tried on the longest sequences."""
        part, batch = self._parts[-1], self._batches[-1]
        found = log_probabilities(model, batch, sum(example.supervised for example, _ in part), self._modes)
        return bool(mx.isfinite(found).all().item())


def retained(kl: float, kl_base: float) -> float:
    """The share of the effect that is kept."""
    return 1 - kl / max(kl_base, NO_EFFECT)
