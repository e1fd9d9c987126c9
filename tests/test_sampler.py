"""Sampling: the greedy tokens of the model itself, seeds, limits, and the frequencies asked for."""

from __future__ import annotations

from collections import Counter

import mlx.core as mx
import numpy as np
import pytest
from scipy import stats

from upft_mlx.loss import scalar
from upft_mlx.models import Loaded
from upft_mlx.prompts import Renderer
from upft_mlx.recipe import Prompt
from upft_mlx.sampler import Request, Sampling, _sampler, chunks, derive_seed, sample_chunk, sampling_for

QUESTIONS = ["Ann has 3 apples and buys 4 more.", "Tom has 9 pens.", "There are 5 boxes with 6 eggs each. How many?"]


def requests(loaded: Loaded, max_tokens: int) -> list[Request]:
    renderer = Renderer(loaded.tokenizer, Prompt())
    return [Request(renderer.ids(question), max_tokens) for question in QUESTIONS]


def greedy(loaded: Loaded, prompt: list[int], limit: int) -> list[int]:
    """The slow way: the whole sequence anew for every token."""
    ids = list(prompt)
    while len(ids) < len(prompt) + limit:
        token = int(scalar(mx.argmax(loaded.model(mx.array([ids]))[0, -1])))
        if token in loaded.eos_ids:
            break
        ids.append(token)
    return ids[len(prompt) :]


def test_greedy_completions_are_the_models_own_whatever_the_batch(loaded: Loaded) -> None:
    asked = requests(loaded, 12)
    expected = [greedy(loaded, request.prompt_ids, 12) for request in asked]
    for batch_size in (1, 2, 4):
        found = sample_chunk(loaded, asked, Sampling(0.0, batch_size=batch_size), seed=0)
        assert [completion.ids for completion in found] == expected


def test_each_request_has_its_own_limit(loaded: Loaded) -> None:
    asked = [Request(r.prompt_ids, limit) for r, limit in zip(requests(loaded, 1), (1, 5, 40), strict=True)]
    found = sample_chunk(loaded, asked, Sampling(0.0), seed=0)
    assert [len(completion.ids) for completion in found[:2]] == [1, 5]
    assert [completion.finish_reason for completion in found[:2]] == ["length", "length"]
    assert len(found[2].ids) > 5


def test_a_seed_gives_the_same_completions_and_another_seed_others(loaded: Loaded) -> None:
    asked = requests(loaded, 30) * 4
    first, again, other = (sample_chunk(loaded, asked, Sampling(1.0), seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def draw(loaded: Loaded, probabilities: list[float], sampling: Sampling, n: int) -> Counter[int]:
    mx.random.seed(7)
    logprobs = mx.broadcast_to(mx.log(mx.array(probabilities)), (n, len(probabilities)))
    values: list[int] = _sampler(loaded, sampling)(logprobs).tolist()  # type: ignore[assignment]
    return Counter(values)


PROBABILITIES = [0.4, 0.3, 0.15, 0.1, 0.05]


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_frequencies_follow_the_temperature(loaded: Loaded, temperature: float) -> None:
    n = 20_000
    weights = np.array([p ** (1 / temperature) for p in PROBABILITIES])
    found = draw(loaded, PROBABILITIES, Sampling(temperature), n)
    expected = n * weights / weights.sum()
    assert stats.chisquare([found[i] for i in range(5)], expected).pvalue > 1e-3


def test_top_k_keeps_the_k_most_likely(loaded: Loaded) -> None:
    assert set(draw(loaded, PROBABILITIES, Sampling(1.0, top_k=2), 2000)) == {0, 1}


@pytest.mark.parametrize(("top_p", "kept"), [(0.35, {0}), (0.65, {0, 1}), (0.8, {0, 1, 2}), (1.0, {0, 1, 2, 3, 4})])
def test_top_p_keeps_the_smallest_set_with_that_share(loaded: Loaded, top_p: float, kept: set[int]) -> None:
    assert set(draw(loaded, PROBABILITIES, Sampling(1.0, top_p=top_p), 4000)) == kept


def test_the_nucleus_is_taken_after_the_temperature(loaded: Loaded) -> None:
    """At T = 0.5 the first id has 0.16 / 0.285 = 0.56 of the mass; before the temperature it has 0.4."""
    assert set(draw(loaded, PROBABILITIES, Sampling(0.5, top_p=0.5), 2000)) == {0}


def test_unset_settings_come_from_the_models_generation_config(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loaded, "generation_config", property(lambda _: {"top_p": 0.8, "top_k": 20}))
    assert sampling_for(loaded, 0.6, 8) == Sampling(0.6, 0.8, 20, 8)
    assert sampling_for(loaded, 0.6, 8, top_p=1.0, top_k=0) == Sampling(0.6, 1.0, 0, 8)


def test_chunks_and_seeds_are_a_function_of_their_parts() -> None:
    assert chunks(list(range(5)), 2) == [[0, 1], [2, 3], [4]]
    seeds = {derive_seed(*parts) for parts in [("a", 0, 0), ("a", 0, 1), ("a", 1, 0), ("b", 0, 0)]}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert derive_seed("generate", 0, 3) == derive_seed("generate", 0, 3)
