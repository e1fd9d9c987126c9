"""Sampling: the greedy tokens of the model itself, seeds, limits, and the frequencies asked for."""

from __future__ import annotations

import gc
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from helpers.family_configs import EXACT as FAMILIES
from helpers.loss import family
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.sample_utils import apply_top_k, apply_top_p
from scipy import stats

from upft_mlx.models.chat import Renderer
from upft_mlx.models.load import Loaded
from upft_mlx.recipe.schema import Prompt
from upft_mlx.sampling import prefill as prefill_module
from upft_mlx.sampling.chunks import shared_start
from upft_mlx.sampling.decoding import Request
from upft_mlx.sampling.draw import NUCLEUS, Sampling, drawer, random_key
from upft_mlx.sampling.prefill import Prefill
from upft_mlx.sampling.same_logits import scalar
from upft_mlx.sampling.sampler import Sampler, chunks, derive_seed, sample_chunk, sampling_for

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


def keyed(loaded: Loaded, max_tokens: int, samples: int = 1) -> list[Request]:
    return [Request(r.prompt_ids, max_tokens, samples, str(i)) for i, r in enumerate(requests(loaded, max_tokens))]


def ids(loaded: Loaded, asked: list[Request], batch_size: int = 32, seed: int = 1) -> list[list[int]]:
    return [c.ids for c in sample_chunk(loaded, asked, Sampling(1.0, batch_size=batch_size), seed)]


def test_a_completion_depends_on_seed_request_and_sample_only(loaded: Loaded) -> None:
    """Not on the batch, the order, the other requests, or how many samples there are."""
    asked = keyed(loaded, 30, samples=4)
    whole = ids(loaded, asked)
    assert len({tuple(part) for part in whole}) > 8, "samples of a request and requests differ"
    assert ids(loaded, asked, batch_size=5) == whole
    backwards = ids(loaded, asked[::-1], batch_size=3)
    assert [backwards[4 * i : 4 * i + 4] for i in (2, 1, 0)] == [whole[4 * i : 4 * i + 4] for i in range(3)]
    assert ids(loaded, [asked[1]], batch_size=1) == whole[4:8]
    fewer = [replace(request, samples=2) for request in asked]
    assert ids(loaded, fewer) == [whole[4 * i + k] for i in range(3) for k in range(2)]
    assert ids(loaded, asked, seed=2) != whole


def test_a_prefix_is_what_the_full_solution_begins_with(loaded: Loaded) -> None:
    whole, prefixes = ids(loaded, keyed(loaded, 30, samples=8)), ids(loaded, keyed(loaded, 6, samples=8))
    assert prefixes == [part[:6] for part in whole]


def test_positions_and_rows_have_random_numbers_of_their_own() -> None:
    """With equal logits everywhere, equal numbers would repeat a token at each position, or in each row."""
    flat = mx.zeros((64, 50))
    base = [random_key(1, "a", sample) for sample in range(64)]
    at = [mx.array([(k, (p + position) % 2**32) for k, p in base], dtype=mx.uint32) for position in range(2)]
    first, second = (np.array(drawer(Sampling(1.0))(flat, keys)[0]) for keys in at)
    assert (first == second).sum() < 10
    assert len(set(first.tolist())) > 25
    alone = [int(scalar(drawer(Sampling(1.0))(flat[:1], at[0][i : i + 1])[0])) for i in range(5)]
    assert alone == first[:5].tolist(), "a row's draw does not depend on the others"


def draw(probabilities: list[float], sampling: Sampling, n: int) -> Counter[int]:
    logits = mx.broadcast_to(mx.log(mx.array(probabilities)), (n, len(probabilities)))
    keys = mx.array([random_key(7, "draw", sample) for sample in range(n)], dtype=mx.uint32)
    values: list[int] = drawer(sampling)(logits, keys)[0].tolist()  # type: ignore[assignment]
    return Counter(values)


PROBABILITIES = [0.4, 0.3, 0.15, 0.1, 0.05]


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_frequencies_follow_the_temperature(temperature: float) -> None:
    n = 20_000
    weights = np.array([p ** (1 / temperature) for p in PROBABILITIES])
    found = draw(PROBABILITIES, Sampling(temperature), n)
    expected = n * weights / weights.sum()
    assert stats.chisquare([found[i] for i in range(5)], expected).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [0.6, 1.0])
@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 3), (0.8, 0), (0.95, 4), (0.7, 4)])
def test_frequencies_follow_the_filtered_distribution(temperature: float, top_p: float, top_k: int) -> None:
    """Temperature, then top-k, then the smallest set with a share of top-p, as shares of what is left."""
    n = 20_000
    weights = np.array([p ** (1 / temperature) for p in PROBABILITIES])  # the most likely first
    weights[top_k or len(weights) :] = 0
    shares = weights / weights.sum()
    before = np.cumsum(shares) - shares
    shares = np.where(before < top_p, shares, 0)
    expected = n * shares / shares.sum()
    found = draw(PROBABILITIES, Sampling(temperature, top_p, top_k), n)
    kept = [i for i in range(5) if expected[i] > 0]
    assert set(found) == set(kept)
    assert len(kept) > 1
    assert stats.chisquare([found[i] for i in kept], expected[kept]).pvalue > 1e-3


@pytest.mark.parametrize("sampling", [Sampling(0.7, 0.9), Sampling(1.0, 0.8, 20), Sampling(0.6, top_k=50)])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("spread", [0.3, 5.0])
def test_work_for_the_likely_tokens_alone_draws_the_same(sampling: Sampling, dtype: mx.Dtype, spread: float) -> None:
    """As when all of a vocabulary is filtered and gets noise; a nucleus may be larger than where it is looked for."""
    logits = (spread * mx.random.normal((24, 2 * NUCLEUS), key=mx.random.key(1))).astype(dtype)
    keys = mx.array([random_key(7, "draw", sample) for sample in range(24)], dtype=mx.uint32)
    values = logits.astype(mx.float32) * (1 / sampling.temperature)
    if sampling.top_k:
        values = apply_top_k(values, sampling.top_k)
    if sampling.top_p < 1:
        values = apply_top_p(values - mx.logsumexp(values, axis=-1, keepdims=True), sampling.top_p)
    noise = mx.stack([mx.random.gumbel((2 * NUCLEUS,), key=key) for key in keys])
    expected, found = np.array(mx.argmax(values + noise, axis=-1)), np.array(drawer(sampling)(logits, keys)[0])
    assert found.tolist() == expected.tolist()
    assert len(np.unique(expected)) > 5


def test_top_k_keeps_the_k_most_likely() -> None:
    assert set(draw(PROBABILITIES, Sampling(1.0, top_k=2), 2000)) == {0, 1}


@pytest.mark.parametrize(("top_p", "kept"), [(0.35, {0}), (0.65, {0, 1}), (0.8, {0, 1, 2}), (1.0, {0, 1, 2, 3, 4})])
def test_top_p_keeps_the_smallest_set_with_that_share(top_p: float, kept: set[int]) -> None:
    assert set(draw(PROBABILITIES, Sampling(1.0, top_p=top_p), 4000)) == kept


def test_the_nucleus_is_taken_after_the_temperature() -> None:
    """At T = 0.5 the first id has 0.16 / 0.285 = 0.56 of the mass; before the temperature it has 0.4."""
    assert set(draw(PROBABILITIES, Sampling(0.5, top_p=0.5), 2000)) == {0}


def next_token(loaded: Loaded, prompt: list[int]) -> np.ndarray[Any, Any]:
    """The model's own distribution of the token after a prompt, in float64."""
    logits = np.array(loaded.model(mx.array([prompt]))[0, -1].astype(mx.float32), np.float64)
    weights = np.exp(logits - logits.max())
    return np.asarray(weights / weights.sum())


def chance(found: Counter[int], expected: np.ndarray[Any, Any]) -> float:
    """The p-value of a chi-square test; ids that are expected less than 10 times are taken together."""
    n = sum(found.values())
    common = [token for token in range(len(expected)) if n * expected[token] >= 10]
    observed = [found[token] for token in common]
    counts = [n * expected[token] for token in common]
    if n - sum(counts) >= 10:
        observed, counts = [*observed, n - sum(observed)], [*counts, n - sum(counts)]
    if len(counts) < 2:  # all but one are next to impossible
        return 1.0
    counts = [count * sum(observed) / sum(counts) for count in counts]
    return float(stats.chisquare(observed, counts).pvalue)


@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_sampled_tokens_have_the_models_own_frequencies(loaded: Loaded, temperature: float) -> None:
    """Through the whole engine: shared prompts, two batches, several samples per prompt. A bias would show."""
    prompts = [request.prompt_ids for request in requests(loaded, 1)]
    n = 3000
    found = sample_chunk(loaded, [Request(ids, 1, n) for ids in prompts], Sampling(temperature, batch_size=512), seed=5)
    for index, prompt in enumerate(prompts):
        drawn = Counter((c.ids or [loaded.eos_id])[0] for c in found[index * n : (index + 1) * n])
        expected = next_token(loaded, prompt) ** (1 / temperature)
        assert chance(drawn, expected / expected.sum()) > 1e-3
        biased = next_token(loaded, prompt) ** (1 / (temperature * 0.7))
        assert chance(drawn, biased / biased.sum()) < 1e-4, "the test would see a sampler at another temperature"


def test_later_tokens_follow_what_was_sampled_before(loaded: Loaded) -> None:
    """The second token's frequencies, given the first: a cache mixed up among samples would show."""
    prompt = requests(loaded, 1)[0].prompt_ids
    found = sample_chunk(loaded, [Request(prompt, 2, 3000)], Sampling(1.0, batch_size=512), seed=6)
    firsts = Counter(completion.ids[0] for completion in found if completion.ids)
    assert len(firsts) > 1
    for first, count in firsts.most_common(2):
        drawn = Counter([*c.ids, loaded.eos_id][1] for c in found if c.ids[:1] == [first])
        if count > 300:
            assert chance(drawn, next_token(loaded, [*prompt, first])) > 1e-3


def test_samples_of_a_prompt_share_its_prefill_and_all_prompts_what_they_begin_with(loaded: Loaded) -> None:
    asked = requests(loaded, 4)
    lengths = [len(request.prompt_ids) for request in asked]
    prompts = [request.prompt_ids for request in asked]
    shared = shared_start(prompts, [len(ids) for ids in prompts])
    assert shared >= 3, "the opening of the user turn"
    few, many = Sampler(loaded, Sampling(0.0)), Sampler(loaded, Sampling(0.0))
    alone = few.sample(asked, seed=0)
    many_samples = many.sample([Request(r.prompt_ids, 4, 5) for r in asked], seed=0)
    assert many_samples == [completion for completion in alone for _ in range(5)]
    padded = len(asked) * (max(lengths) - 1 - shared)
    decoded = sum(len(completion.ids) + (completion.finish_reason == "stop") for completion in alone)
    assert few.processed_tokens == shared + padded + decoded
    assert many.processed_tokens == shared + padded + 5 * decoded


@pytest.mark.parametrize("name", [*FAMILIES, "qwen3_5"])
def test_every_family_continues_from_shared_caches_as_from_its_own(name: str) -> None:
    """Greedy tokens against the slow way; prompts longer and shorter than the sliding windows.

    Where mlx-lm's batches are wrong for a family, it is sampled one by one, and says so.
    """
    model = family(name)
    stand_in = SimpleNamespace(eos_token_ids=[89], eos_token_id=89)
    loaded = Loaded(model, stand_in, {}, Path(), mx.float32)
    prompts = [[2, 3, 4, 5, *range(20, 20 + n)] for n in (1, 3, 9)] + [[2, 3, 4, 5, 7], [2, 3, 4, 5]]
    sampler = Sampler(loaded, Sampling(0.0, batch_size=4))
    assert (sampler.notice is None) == (name != "gemma2"), "mlx-lm 0.32 applies gemma2's masks to the wrong heads"
    found = sampler.sample([Request(ids, 5, 2) for ids in prompts], seed=0)
    expected = [greedy(loaded, ids, 5) for ids in prompts for _ in range(2)]
    assert [completion.ids for completion in found] == expected


def test_a_family_that_does_not_continue_exactly_is_sampled_without_sharing(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests(loaded, 8)
    expected = sample_chunk(loaded, asked, Sampling(0.0), seed=0)
    original = Prefill._from_shared

    def off_by_one(self: Prefill, prompts: Any) -> Any:
        return original(self, [[*ids[:-2], ids[-1]] for ids in prompts])

    monkeypatch.setattr(prefill_module.Prefill, "_from_shared", off_by_one)
    sampler = Sampler(replace(loaded), Sampling(0.0))  # not tried yet
    assert "does not continue from what prompts share" in str(sampler.notice)
    assert sampler.sample(asked, seed=0) == expected


def test_log_probabilities_are_the_models_own_before_the_temperature(loaded: Loaded) -> None:
    asked = requests(loaded, 40)
    found = sample_chunk(loaded, asked, Sampling(0.7, logprobs=True), seed=3)
    assert {completion.finish_reason for completion in found} >= {"stop"}
    for request, completion in zip(asked, found, strict=True):
        assert (completion.stop_id is not None) == (completion.finish_reason == "stop")
        ids = [*request.prompt_ids, *completion.ids, *([completion.stop_id] if completion.stop_id is not None else [])]
        expected = sum(
            float(np.log(next_token(loaded, ids[:position])[ids[position]]))
            for position in range(len(request.prompt_ids), len(ids))
        )
        assert completion.logprob == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert sample_chunk(loaded, asked[:1], Sampling(0.7), seed=3)[0].logprob is None


def with_ends(loaded: Loaded, *ends: int) -> Loaded:
    """The model with other tokens that end a completion; the first is the tokenizer's own."""
    tokenizer = SimpleNamespace(eos_token_ids=list(ends), eos_token_id=ends[0], decode=loaded.tokenizer.decode)
    return Loaded(loaded.model, tokenizer, loaded.config, loaded.path, loaded.dtype)


def test_every_token_that_ends_a_turn_ends_a_completion(loaded: Loaded) -> None:
    """Models name several: the third token of the greedy completion is made the second of them."""
    asked = requests(loaded, 12)[:1]
    [whole] = sample_chunk(loaded, asked, Sampling(0.0), seed=0)
    assert len(whole.ids) > 4
    end = whole.ids[3]
    [found] = sample_chunk(with_ends(loaded, loaded.eos_id, end), asked, Sampling(0.0), seed=0)
    assert (found.ids, found.finish_reason) == (whole.ids[: whole.ids.index(end)], "stop")
    assert found.stop_id == end


def test_the_log_probability_of_the_end_counts(loaded: Loaded) -> None:
    """A token that is neither sure nor rare is made the end, so that its share of the sum shows."""
    model = family("llama")
    stand_in = Loaded(model, SimpleNamespace(eos_token_ids=[89], eos_token_id=89), {}, Path(), mx.float32)
    prompt = [2, 3, 4, 5]
    chances = next_token(stand_in, prompt)
    end = int(np.argsort(chances)[-2])
    assert 0.02 < chances[end] < 0.6
    ending = Loaded(model, SimpleNamespace(eos_token_ids=[end], eos_token_id=end), {}, Path(), mx.float32)
    found = sample_chunk(ending, [Request(prompt, 1, 200)], Sampling(1.0, logprobs=True), seed=0)
    assert {completion.finish_reason for completion in found} == {"stop", "length"}
    for completion in found:
        [token] = completion.ids or [end]
        assert completion.logprob == pytest.approx(np.log(chances[token]), rel=1e-4)


def test_a_16_bit_models_frequencies_follow_the_temperature_exactly() -> None:
    """Half of 128 tokens say -4.90625, half -4.9375: divided by 0.6 in bfloat16 they would become the same."""
    values, n = np.repeat([-4.90625, -4.9375], 64), 60_000
    keys = mx.array([random_key(7, "draw", sample) for sample in range(n)], dtype=mx.uint32)
    logits = mx.broadcast_to(mx.array(values).astype(mx.bfloat16), (n, 128))
    tokens, logprobs = drawer(Sampling(0.6, logprobs=True))(logits, keys)
    drawn = np.array(tokens)
    assert np.allclose(np.array(logprobs), values[drawn] - np.log(np.exp(values).sum()), atol=1e-5)
    first = 1 / (1 + math.exp((values[64] - values[0]) / 0.6))
    assert stats.binomtest(int((drawn < 64).sum()), n, first).pvalue > 1e-3


def test_a_stop_string_ends_a_completion_before_it(loaded: Loaded) -> None:
    asked = requests(loaded, 40)
    whole = sample_chunk(loaded, asked, Sampling(0.0), seed=0)
    decode = loaded.tokenizer.decode
    assert all("\\boxed{" in decode(completion.ids) for completion in whole)
    found = sample_chunk(loaded, asked, Sampling(0.0, stop=("no such text", "oxed{")), seed=0)
    for stopped, completion in zip(found, whole, strict=True):
        assert (stopped.finish_reason, stopped.stop_id) == ("stop", None)
        assert stopped.ids == completion.ids[: len(stopped.ids)]
        text = decode(completion.ids)
        before = text[: text.index("oxed{")]
        assert before.startswith(decode(stopped.ids))
        assert len(before) - len(decode(stopped.ids)) < 8, "no more is cut than the token that it begins in"


def test_a_stop_string_in_the_last_tokens_but_not_in_the_whole_text_ends_nothing(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokenizers that tidy up spaces can decode a tail differently; sampling ended in a ValueError."""
    asked = requests(loaded, 40)
    whole = sample_chunk(loaded, asked, Sampling(0.0), seed=0)
    starts, decode = [completion.ids[:10] for completion in whole], loaded.tokenizer.decode
    assert max(len(completion.ids) for completion in whole) > 20

    def tidied(_: object, ids: list[int]) -> str:  # the longest stop string has 7 bytes: a tail has 10 tokens
        return str(decode(ids)) + (" ' " if len(ids) == 10 and ids not in starts else "")

    monkeypatch.setattr(type(loaded.tokenizer), "decode", tidied, raising=False)
    found = sample_chunk(loaded, asked, Sampling(0.0, stop=("no such", " ' ")), seed=0)
    assert [completion.ids for completion in found] == [completion.ids for completion in whole]


def test_of_a_stop_string_the_first_token_counts_as_eos_does(loaded: Loaded) -> None:
    """So the log-probability is that of one token more than the ids, as what reads it divides by."""
    asked, stop = requests(loaded, 40), (" find 3*3", " find 9+9", " find 5*6")
    whole = sample_chunk(loaded, asked, Sampling(0.0), seed=0)
    found = sample_chunk(loaded, asked, Sampling(0.0, stop=stop, logprobs=True), seed=0)
    assert [completion.finish_reason for completion in found] == ["stop"] * 3
    for request, completion, full in zip(asked, found, whole, strict=True):
        shorter = replace(request, max_tokens=len(completion.ids) + 1)
        (expected,) = sample_chunk(loaded, [shorter], Sampling(0.0, logprobs=True), seed=0)
        assert expected.ids == full.ids[: len(completion.ids) + 1]
        assert completion.logprob == pytest.approx(expected.logprob, rel=1e-4, abs=1e-6)


def test_each_position_of_a_completion_draws_anew(fresh: Loaded) -> None:
    """A stand-in for which all tokens are equally likely: one number for all positions would repeat one token."""

    class Flat:
        def __call__(self, tokens: mx.array, cache: object = None) -> mx.array:
            return mx.zeros((*tokens.shape, 600))

    model: Any = Flat()
    sampler = Sampler(fresh, Sampling(1.0))
    sampler.loaded = replace(fresh, model=model)
    (made,) = sampler.sample([Request([16, 17, 18], 40)], seed=0)
    assert len(set(made.ids)) > 0.8 * len(made.ids)
    assert len(made.ids) > 20


@pytest.mark.parametrize("period", [1, 7, 32])
def test_a_completion_that_goes_round_in_circles_is_cut(fresh: Loaded, period: int) -> None:
    """A stand-in that counts up and starts again; without a circle it goes on to its limit."""

    class Counts:
        def __init__(self, period: int) -> None:
            self.period, self.step = period, -1

        def __call__(self, tokens: mx.array, cache: object = None) -> mx.array:
            self.step += 1
            return mx.broadcast_to(
                (mx.arange(600) == 5 + self.step % self.period).astype(mx.float32), (*tokens.shape, 600)
            )

        def __getattr__(self, name: str) -> Any:
            return getattr(fresh.model, name)

    def ids(period: int) -> Any:
        counting: Any = Counts(period)
        sampler = Sampler(fresh, Sampling(0.0))
        sampler.loaded = replace(fresh, model=counting)
        return sampler.sample([Request([16, 17, 18], 400)], seed=0)[0]

    cut = ids(period)
    assert (cut.finish_reason, 160 <= len(cut.ids) < 200) == ("length", True)
    assert len(ids(33).ids) == 400


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=5))
def test_shared_tokens_are_those_of_all_prompts_and_leave_each_at_least_one(prompts: list[list[int]]) -> None:
    n = shared_start(prompts, [len(ids) for ids in prompts])
    assert all(ids[:n] == prompts[0][:n] for ids in prompts)
    assert n < min(map(len, prompts))
    assert n == min(map(len, prompts)) - 1 or len({ids[n] for ids in prompts}) > 1


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


def test_equal_prompts_have_a_cache_each(fresh: Loaded) -> None:
    """Training looks at a few prompts through their caches: of equal ones, the second began where the first ended."""
    ids = requests(fresh, 1)[0].prompt_ids
    sampler = Sampler(fresh, Sampling(0.0))
    sampler.sample([Request(ids, 1)] * 2, seed=0)
    one, other = (fresh.model(mx.array([[5, 6]]), cache=cache) for cache in sampler.prefill.caches([ids] * 2))
    assert mx.array_equal(one, other)


def test_a_model_is_tried_for_the_first_sampler_only(fresh: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run makes about ten samplers; each trial took a second of CPU time with SmolLM2-135M."""
    passes: list[tuple[int, ...]] = []
    call = type(fresh.model).__call__

    def counted(model: Any, tokens: mx.array, *rest: Any, **named: Any) -> Any:
        passes.append(tokens.shape)
        return call(model, tokens, *rest, **named)

    monkeypatch.setattr(type(fresh.model), "__call__", counted)
    first = Sampler(fresh, Sampling(0.0))
    assert passes
    passes.clear()
    second = Sampler(fresh, Sampling(0.7))
    assert (first.prefill.exact, first.prefill.batches) == (second.prefill.exact, second.prefill.batches) == (1, 1)
    assert not passes
    other = replace(fresh, model=fresh.model)
    Sampler(other, Sampling(0.0))
    assert passes, "a new `Loaded` is tried again"


def test_a_prompt_s_cache_does_not_keep_the_padded_caches_of_all(fresh: Loaded) -> None:
    """mlx-lm pads a batch's caches by 256 tokens; a lazy slice of one would hold all of them."""
    prefill = Prefill(fresh)
    prompts = [[16, 17, *range(20, 30 + n)] for n in range(8)]
    prefill.share(prompts)
    gc.collect()
    before = mx.get_active_memory()
    caches = prefill.caches(prompts)
    held = mx.get_active_memory() - before
    own = sum(array.nbytes for cache in caches for layer in cache for array in (layer.keys, layer.values))
    assert held < 2 * own
