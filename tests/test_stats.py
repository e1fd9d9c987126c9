"""Intervals and tests against closed forms, brute force and scipy."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from upft_mlx.stats import (
    accuracy_interval,
    maj_at_k,
    mcnemar_exact,
    mean_interval,
    paired_difference,
    pass_at_k,
    sign_flip,
    t_quantile,
    wilson_interval,
)

counts = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@settings(deadline=None)  # a loaded machine is no wrong number
@given(counts)
def test_wilson_is_scipys_and_contains_the_share(case: tuple[int, int]) -> None:
    successes, n = case
    low, high = wilson_interval(successes, n)
    expected = scipy_stats.binomtest(successes, n).proportion_ci(0.95, "wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert 0 <= low <= successes / n <= high <= 1


def test_wilson_of_nothing_is_everything() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("df", [1, 2, 3, 7, 30, 255, 2000])
def test_t_quantile_is_scipys(df: int) -> None:
    assert t_quantile(df) == pytest.approx(scipy_stats.t.ppf(0.975, df), rel=1e-6)


@settings(deadline=None)  # a loaded machine is no wrong number
@given(st.lists(st.floats(0, 1), min_size=2, max_size=40))
def test_mean_interval_is_students(values: list[float]) -> None:
    low, high = mean_interval(values)
    mean = math.fsum(values) / len(values)
    assert low <= mean + 1e-12
    assert high >= mean - 1e-12
    error = scipy_stats.sem(values)
    if error > 1e-9:
        expected = scipy_stats.t.interval(0.95, len(values) - 1, mean, error)
        assert (low, high) == pytest.approx(expected, abs=1e-6)


def test_accuracy_of_one_sample_each_is_wilsons() -> None:
    assert accuracy_interval([[True], [True], [False]]) == wilson_interval(2, 3)


def test_samples_of_a_problem_are_a_cluster() -> None:
    """100 samples of 4 problems are no 100 problems: the interval stays as wide as that of the 4 means."""
    scores = [[True] * 25, [True] * 25, [False] * 25, [False] * 25]
    assert accuracy_interval(scores) == (0.0, 1.0)
    low, high = accuracy_interval([[True, False], [True, True]] * 50)
    assert (low, high) == pytest.approx(mean_interval([0.5, 1.0] * 50))


def test_equal_means_still_have_an_interval() -> None:
    low, high = accuracy_interval([[True, True]] * 20)
    assert (low, high) == (wilson_interval(20, 20)[0], 1.0)
    low, high = accuracy_interval([[True, False]] * 20)
    assert low < 0.5 < high


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_counts_the_subsets_with_a_right_sample(case: tuple[int, int, int]) -> None:
    n, c, k = case
    subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize("case", [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_pass_at_k_refuses_what_has_no_meaning(case: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(*case)


@pytest.mark.parametrize(
    ("answers", "correct", "expected"),
    [
        (["4", "5", "4"], [True, False, True], 1.0),
        (["4", "5", "5"], [True, False, False], 0.0),
        (["4", "5"], [True, False], 0.5),
        ([None, None, "4"], [False, False, True], 1.0),
        ([None, None], [False, False], 0.0),
        (["4", "5", "6", "6", "5"], [False, True, False, False, True], 0.5),
    ],
)
def test_the_majority_of_all_samples_decides_and_ties_share(
    answers: list[str | None], correct: list[bool], expected: float
) -> None:
    assert maj_at_k(answers, correct, len(answers)) == expected


def test_maj_at_k_is_the_mean_over_all_choices_of_k_samples() -> None:
    answers, correct = ["4", "4", "5", "6"], [True, True, False, False]
    assert maj_at_k(answers, correct, 1) == 0.5
    assert maj_at_k(answers, correct, 2) == pytest.approx((1 + 4 * 0.5 + 0) / 6)
    assert maj_at_k(answers, correct, 3) == pytest.approx((1 + 1 + 1 / 3 + 1 / 3) / 4)


votes = st.lists(st.tuples(st.sampled_from(["4", "5", "6", None]), st.booleans()), min_size=1, max_size=7)


@given(votes.flatmap(lambda samples: st.tuples(st.just(samples), st.integers(1, len(samples)))))
def test_maj_at_k_equals_listing_every_choice(case: tuple[list[tuple[str | None, bool]], int]) -> None:
    samples, k = case
    credit = {a: sum(ok for b, ok in samples if b == a) / sum(b == a for b, _ in samples) for a, _ in samples}
    won = []
    for choice in itertools.combinations(samples, k):
        counts = Counter(answer for answer, _ in choice if answer is not None)
        leaders = [answer for answer, count in counts.items() if count == max(counts.values())]
        won.append(sum(credit[answer] for answer in leaders) / len(leaders) if leaders else 0.0)
    found = maj_at_k([answer for answer, _ in samples], [ok for _, ok in samples], k)
    assert found == pytest.approx(sum(won) / len(won))


def test_maj_at_k_does_not_depend_on_the_order_of_the_samples() -> None:
    answers, correct = ["4"] * 8 + ["5"] * 8, [True] * 8 + [False] * 8
    assert maj_at_k(answers, correct, 8) == pytest.approx(0.5)
    assert maj_at_k(answers[::-1], correct[::-1], 8) == pytest.approx(0.5)
    assert maj_at_k([str(i) for i in range(64)], [i < 16 for i in range(64)], 32) == pytest.approx(0.25)


def test_maj_at_k_refuses_more_samples_than_there_are() -> None:
    with pytest.raises(ValueError, match="k=3"):
        maj_at_k(["4", "5"], [True, False], 3)


@settings(deadline=None)  # a loaded machine is no wrong number
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(ups: int, downs: int) -> None:
    expected = scipy_stats.binomtest(ups, ups + downs).pvalue if ups + downs else 1.0
    assert mcnemar_exact(ups, downs) == pytest.approx(expected, rel=1e-9)


def test_paired_difference_of_binary_scores_is_mcnemars() -> None:
    base, tuned = [1.0] * 5 + [0.0] * 15, [0.0] * 1 + [1.0] * 12 + [0.0] * 7
    found = paired_difference(base, tuned)
    assert found.delta == pytest.approx((8 - 1) / 20)
    assert found.p_value == mcnemar_exact(8, 1)
    expected = mean_interval([t - b for b, t in zip(base, tuned, strict=True)])
    assert found.ci95 == pytest.approx(expected)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_paired_difference_changes_sign_with_its_sides(pairs: list[tuple[float, float]]) -> None:
    base, tuned = [p[0] for p in pairs], [p[1] for p in pairs]
    there, back = paired_difference(base, tuned), paired_difference(tuned, base)
    assert there.delta == pytest.approx(-back.delta)
    assert there.ci95 == pytest.approx((-back.ci95[1], -back.ci95[0]))
    assert there.p_value == pytest.approx(back.p_value, abs=0.03)
    assert there.ci95[0] <= there.delta + 1e-9
    assert there.ci95[1] >= there.delta - 1e-9
    assert 0 < there.p_value <= 1


def test_no_difference_at_all_is_no_certainty() -> None:
    found = paired_difference([1.0] * 20, [1.0] * 20)
    assert (found.delta, found.p_value) == (0.0, 1.0)
    assert found.ci95[0] < 0 < found.ci95[1]


@pytest.mark.parametrize("n", range(2, 30))
def test_rounding_is_no_spread(n: int) -> None:
    low, high = accuracy_interval([[True, False, False, False, False]] * n)
    assert high - low > 0.1
    base = [i % 3 / 10 for i in range(n)]
    low, high = paired_difference(base, [score + 0.7 for score in base]).ci95
    assert high - low > 0.1


def test_scores_without_a_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match="3 of 2"):
        wilson_interval(3, 2)
    with pytest.raises(ValueError, match="the one at 1 has none"):
        accuracy_interval([[True], []])


def test_paired_scores_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 and 1"):
        paired_difference([1.0, 0.0], [1.0])


@given(st.lists(st.sampled_from([-0.5, 0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=8))
def test_few_differences_are_enumerated_exactly(differences: list[float]) -> None:
    signs = itertools.product((1, -1), repeat=len(differences))
    flips = [sum(d * s for d, s in zip(differences, each, strict=True)) for each in signs]
    expected = sum(abs(flip) >= abs(sum(differences)) - 1e-9 for flip in flips) / len(flips)
    assert sign_flip(differences) == pytest.approx(expected)


@pytest.mark.parametrize(("n", "shift"), [(13, 0.25), (14, -0.1), (16, -0.2), (17, 0.2)])
def test_many_differences_have_scipys_p(n: int, shift: float) -> None:
    """SciPy flips all 2 ** n; a right p is 3.7 standard errors off in two cases of 10,000."""
    differences = np.random.default_rng(n).normal(shift, 0.6, n).round(3)
    expected = scipy_stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", vectorized=True, n_resamples=2**n
    ).pvalue
    assert 0.01 < expected < 0.99, "at the ends a wrong tail would not show"
    assert sign_flip(differences.tolist()) == pytest.approx(expected, abs=sampling_error(expected))


@pytest.mark.parametrize(("n", "ups"), [(13, 10), (21, 7), (30, 20), (40, 14), (40, 20), (33, 17)])
def test_many_equal_sizes_are_a_binomial_test(n: int, ups: int) -> None:
    """Here many flips are exactly as extreme as what was observed, which counts as well."""
    expected = scipy_stats.binomtest(ups, n).pvalue
    found = sign_flip([0.25] * ups + [-0.25] * (n - ups))
    assert found == pytest.approx(expected, abs=sampling_error(expected))


def sampling_error(p: float) -> float:
    """3.7 standard errors of a p-value that 10,000 flips estimate, and the one that is counted in."""
    return 3.7 * math.sqrt(p * (1 - p) / 10_000) + 1 / 10_000


def test_sampled_p_values_come_again_and_are_never_zero() -> None:
    differences = [0.1 * (i % 7) - 0.2 for i in range(40)]
    assert sign_flip(differences) == sign_flip(differences)
    assert sign_flip([0.5] * 40) == pytest.approx(1 / 10_001)
