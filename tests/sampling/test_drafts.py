"""Drafts: what a completion is likely to be costs less to find out, and changes no token."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from helpers.base_and_tuned import write_adapter
from helpers.family_configs import EXACT as FAMILIES
from helpers.loss import family

from upft_mlx.demo.world import problems
from upft_mlx.models.adapters import AdapterSwitch
from upft_mlx.models.chat import Renderer
from upft_mlx.models.load import Loaded
from upft_mlx.recipe.schema import Prompt
from upft_mlx.sampling.decoding import Completion, Request
from upft_mlx.sampling.draw import Sampling
from upft_mlx.sampling.sampler import Sampler, sample_chunk

WAYS = [Sampling(0.0, batch_size=5), Sampling(0.7, batch_size=5), Sampling(1.0, 0.9, 20, batch_size=32)]


def asked(loaded: Loaded, samples: int, limit: int = 60) -> list[Request]:
    renderer = Renderer(loaded.tokenizer, Prompt())
    return [Request(renderer.ids(p.question), limit, samples, p.id) for p in problems("evaluation", 12)]


def drafted(requests: list[Request], drafts: list[list[int]]) -> list[Request]:
    """With the drafts of their samples, one after the other."""
    own = iter(drafts)
    return [replace(request, drafts=tuple(next(own) for _ in range(request.samples))) for request in requests]


def said(completion: Completion) -> list[int]:
    """All tokens that were drawn."""
    return completion.ids if completion.stop_id is None else [*completion.ids, completion.stop_id]


def plain(completions: list[Completion]) -> list[Completion]:
    return [replace(completion, accepted=0) for completion in completions]


@pytest.mark.parametrize("sampling", WAYS)
@pytest.mark.parametrize("size", [0.03, 0.3])
def test_bases_answers_as_drafts_change_no_answer_of_tuned(
    fresh: Loaded, tmp_path: Path, sampling: Sampling, size: float
) -> None:
    """An adapter that changes few answers, and one that changes nearly all."""
    requests = asked(fresh, 3 if sampling.temperature else 1)
    switch = AdapterSwitch(fresh, write_adapter(tmp_path, size=size))
    switch("base")
    base = sample_chunk(fresh, requests, sampling, seed=3)
    switch("tuned")
    alone = sample_chunk(fresh, requests, sampling, seed=3)
    found = sample_chunk(fresh, drafted(requests, [*map(said, base)]), sampling, seed=3)
    assert plain(found) == alone
    assert alone != base
    for completion, before in zip(found, base, strict=True):
        pairs = zip(said(completion), said(before), strict=False)
        common = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(said(completion)), len(said(before))))
        assert common <= completion.accepted <= len(said(completion))


@pytest.mark.parametrize("sampling", WAYS)
def test_whatever_the_drafts_are_the_completions_are_the_same(loaded: Loaded, sampling: Sampling) -> None:
    """None, too short, too long, wrong from the first token on, wrong in the middle, ended too early."""
    requests = asked(loaded, 4 if sampling.temperature else 1, limit=40)
    alone = sample_chunk(loaded, requests, sampling, seed=1)
    rng = random.Random(0)

    def draft(ids: list[int]) -> list[int]:
        at = rng.randrange(len(ids))
        kinds: list[list[int]] = [
            [],
            ids[:at],
            [*ids, 7, 8, 9] * 3,
            [(ids[0] + 1) % 600, *ids[1:]],
            [*ids[:at], (ids[at] + 1) % 600, *ids[at + 1 :]],
            [*ids[:at], loaded.eos_id, *ids[at:]],
        ]
        return rng.choice(kinds)

    found = sample_chunk(loaded, drafted(requests, [draft(said(c)) for c in alone]), sampling, seed=1)
    assert plain(found) == alone


@pytest.mark.parametrize("sampling", WAYS)
def test_a_right_draft_is_read_in_few_passes(loaded: Loaded, sampling: Sampling) -> None:
    requests = asked(loaded, 2 if sampling.temperature else 1)
    sampler, calls = Sampler(loaded, sampling), [0]

    class Counting:
        def __call__(self, *args: Any, **options: Any) -> Any:
            calls[0] += 1
            return loaded.model(*args, **options)

    counting: Any = Counting()
    sampler.loaded = replace(loaded, model=counting)
    alone, plainly = sampler.sample(requests, seed=2), calls[0]
    calls[0] = 0
    found = sampler.sample(drafted(requests, [said(c) for c in alone]), seed=2)
    assert plain(found) == alone
    assert [completion.accepted for completion in found] == [len(said(completion)) for completion in alone]
    assert calls[0] < plainly / 4


def counting(loaded: Loaded) -> Sampler:
    """Of a model that looks at nothing."""

    class Counts:
        """The next token is the number of tokens so far, from 100."""

        def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
            for layer in cache:
                zeros = mx.zeros((tokens.shape[0], 2, tokens.shape[1], 16))
                layer.update_and_fetch(zeros, zeros)
            following = 100 + layer.offset.reshape(-1, 1) - tokens.shape[1] + mx.arange(tokens.shape[1])[None]
            hit: mx.array = mx.arange(600)[None, None] == following[..., None]
            return hit.astype(mx.float32)

    model: Any = Counts()
    sampler = Sampler(loaded, Sampling(0.0))
    sampler.loaded = replace(loaded, model=model)
    return sampler


def test_a_draft_that_differs_in_one_token_is_of_use_after_it(loaded: Loaded) -> None:
    """Where the token changes nothing of what follows."""
    request, sampler = Request([16, 17, 18], 50), counting(loaded)
    (alone,) = sampler.sample([request], seed=0)
    draft = [*alone.ids[:20], 599, *alone.ids[21:]]
    (found,) = sampler.sample(drafted([request], [draft]), seed=0)
    assert found.ids == alone.ids
    assert found.accepted == 49


def test_what_follows_the_same_tokens_in_a_draft_of_the_same_prompt_is_read_next(loaded: Loaded) -> None:
    """After tokens more or fewer than the draft has, and from another sample's draft."""
    request, sampler = Request([16, 17, 18], 50, 2), counting(loaded)
    alone = sampler.sample([request], seed=0)
    ids = alone[0].ids
    longer, strange = [*ids[:20], 599, 598, *ids[20:]], [599] * 50
    shorter = [*ids[:20], *ids[23:30], *ids[20:]]
    for drafts, wrong in (([longer] * 2, 1), ([shorter] * 2, 1), ([strange, ids], 1), ([strange] * 2, 50)):
        found = sampler.sample(drafted([request], drafts), seed=0)
        assert plain(found) == alone
        assert found[0].accepted == 50 - wrong


def test_a_long_draft_is_not_searched_from_end_to_end_at_each_token_that_differs(loaded: Loaded) -> None:
    read = [0]

    class Watched(list[int]):
        def __getitem__(self, place: Any) -> Any:
            read[0] += 1
            return super().__getitem__(place)

    request, sampler = Request([16, 17, 18], 50), counting(loaded)
    (alone,) = sampler.sample([request], seed=0)
    draft = Watched([*alone.ids[:20], 599, *alone.ids[20:], *[598] * 5000])
    (found,) = sampler.sample(drafted([request], [draft]), seed=0)
    assert (found.ids, found.accepted) == (alone.ids, 49)
    assert read[0] < 500


def test_drafts_change_neither_log_probabilities_nor_stop_texts(loaded: Loaded) -> None:
    requests = asked(loaded, 2)
    sampling = Sampling(0.7, batch_size=4, logprobs=True, stop=("oxed{",))
    alone = sample_chunk(loaded, requests, sampling, seed=3)
    found = sample_chunk(loaded, drafted(requests, [said(c) for c in alone]), sampling, seed=3)
    assert [(c.ids, c.finish_reason, c.stop_id) for c in found] == [(c.ids, c.finish_reason, c.stop_id) for c in alone]
    assert [c.logprob for c in found] == pytest.approx([c.logprob for c in alone], rel=1e-4, abs=1e-4)
    assert sum(c.accepted for c in found) > 0


@pytest.mark.parametrize("name", [*FAMILIES, "qwen3_5"])
def test_every_family_follows_drafts_or_leaves_them_alone(name: str) -> None:
    """Sliding windows and recurrent layers forget what a draft has led away from."""
    stand_in = SimpleNamespace(eos_token_ids=[89], eos_token_id=89)
    loaded = Loaded(family(name), stand_in, {}, Path(), mx.float32)
    requests = [Request([2, 3, 4, 5, *range(20, 20 + n)], 12, 2, str(n)) for n in (1, 3, 9)]
    sampler = Sampler(loaded, Sampling(1.0, batch_size=4))
    alone = sampler.sample(requests, seed=0)
    before = sampler.processed_tokens
    drafts = [[*said(c)[:5], 1, *said(c)[6:]] for c in alone]
    found = sampler.sample(drafted(requests, drafts), seed=0)
    assert plain(found) == alone
    assert (sum(c.accepted for c in found) > 0) == sampler.drafts
    if not sampler.drafts:
        assert sampler.processed_tokens <= 2 * before
