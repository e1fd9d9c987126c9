"""Intervals and tests against closed forms, brute force and scipy."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter

import numpy as np
import pytest
from helpers.facts import result
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from upft_mlx.evaluation.stats import (
    ALPHA,
    PairedDifference,
    accuracy_interval,
    maj_at_k,
    mcnemar_exact,
    mean_interval,
    paired_difference,
    pass_at_k,
    problems_to_settle,
    sign_flip,
    t_quantile,
    tango_interval,
    wilson_interval,
)
from upft_mlx.results.report import outcome

counts = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


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


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40))
def test_mean_interval_is_students(values: list[float]) -> None:
    low, high = mean_interval(values, (0.0, 1.0))
    mean = math.fsum(values) / len(values)
    assert max(0.0, low) <= mean + 1e-12
    assert min(1.0, high) >= mean - 1e-12
    assert high - low > 0
    error = scipy_stats.sem(values)
    if error > 1e-9:
        expected = scipy_stats.t.interval(0.95, len(values) - 1, mean, error)
        assert (low, high) == pytest.approx(np.clip(expected, 0, 1), abs=1e-6)


@pytest.mark.parametrize(("values", "bounds"), [([1.0] * 18, (0, 1)), ([1.0] * 9, (1, 64)), ([3.0], (-40, 40))])
def test_a_mean_of_equal_values_never_has_an_interval_without_width(
    values: list[float], bounds: tuple[float, float]
) -> None:
    """18 questions that were all answered right showed `100 % [100, 100]`."""
    low, high = mean_interval(values, bounds)
    unseen = scipy_stats.binomtest(0, len(values)).proportion_ci(0.95, "wilson").high
    assert low == pytest.approx(values[0] - unseen * (values[0] - bounds[0]))
    assert high == pytest.approx(values[0] + unseen * (bounds[1] - values[0]))


def test_accuracy_of_one_sample_each_is_wilsons() -> None:
    assert accuracy_interval([[True], [True], [False]]) == wilson_interval(2, 3)


def test_samples_of_a_problem_are_a_cluster() -> None:
    """100 samples of 4 problems are no 100 problems: the interval stays as wide as that of the 4 means."""
    scores = [[True] * 25, [True] * 25, [False] * 25, [False] * 25]
    assert accuracy_interval(scores) == (0.0, 1.0)
    low, high = accuracy_interval([[True, False], [True, True]] * 50)
    assert (low, high) == pytest.approx(mean_interval([0.5, 1.0] * 50, (0.0, 1.0)))


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


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test(ups: int, downs: int) -> None:
    expected = scipy_stats.binomtest(ups, ups + downs).pvalue if ups + downs else 1.0
    assert mcnemar_exact(ups, downs) == pytest.approx(expected, rel=1e-9)


def counted(ups: int, downs: int, n: int) -> PairedDifference:
    base = [0.0] * ups + [1.0] * downs + [1.0] * (n - ups - downs)
    return paired_difference(base, [1.0] * ups + [0.0] * downs + [1.0] * (n - ups - downs))


def test_paired_difference_of_binary_scores_is_mcnemars() -> None:
    found = counted(8, 1, 20)
    assert found.delta == pytest.approx((8 - 1) / 20)
    assert found.p_value == mcnemar_exact(8, 1)
    assert found.ci95 == tango_interval(8, 1, 20)


@pytest.mark.parametrize(("ups", "downs", "n"), [(8, 1, 20), (0, 3, 12), (5, 5, 40), (60, 30, 1000)])
def test_tangos_interval_is_where_the_score_statistic_reaches_its_quantile(ups: int, downs: int, n: int) -> None:
    """The likeliest shares for each difference are searched here, where the interval takes them from a formula."""

    def score(delta: float) -> float:
        q = np.linspace(max(0, -delta), (1 - delta) / 2, 400_001)[1:-1]
        likelihood = ups * np.log(q + delta) + downs * np.log(q) + (n - ups - downs) * np.log(1 - 2 * q - delta)
        share = float(q[np.argmax(likelihood)])
        return float((ups - downs - n * delta) / math.sqrt(n * (2 * share + delta * (1 - delta))))

    low, high = tango_interval(ups, downs, n)
    assert score(low) == pytest.approx(1.959964, abs=2e-3)
    assert score(high) == pytest.approx(-1.959964, abs=2e-3)
    assert tango_interval(downs, ups, n) == pytest.approx((-high, -low))


def test_tangos_interval_of_no_change_is_its_closed_form() -> None:
    z2 = scipy_stats.norm.ppf(0.975) ** 2
    assert tango_interval(0, 0, 18) == pytest.approx((-z2 / (18 + z2), z2 / (18 + z2)))


def verdict_of(found: PairedDifference, effect: float = 0.02) -> str:
    variant = {"accuracy": 0.5, "truncated": 0.0, "n": 50}
    paired = {"delta": found.delta, "ci95": found.ci95, "p_value": found.p_value, "effect": effect}
    return outcome(result({"base": variant, "tuned": variant, "paired": paired}))[0]


@pytest.mark.parametrize("n", [1, 2, 5, 12, 13, 30])
def test_verdict_interval_and_p_agree_for_every_count_of_changes(n: int) -> None:
    """`better, p = 0.125` came from 4 gained of 12: Student's interval left 0 out, the test did not."""
    for ups, downs in ((u, d) for u in range(n + 1) for d in range(n + 1 - u)):
        found = counted(ups, downs, n)
        low, high = found.ci95
        claims = {"better": low > 0, "worse": high < 0}.get(verdict_of(found), low <= 0 <= high)
        assert claims, (ups, downs, n, found)
        assert (found.p_value < ALPHA) == (not low <= 0 <= high)
        assert low <= found.delta <= high
        assert high - low > 0.01


@pytest.mark.parametrize(("ups", "downs", "expected"), [(4, 0, "can't tell yet"), (6, 0, "better"), (0, 6, "worse")])
def test_four_gained_of_twelve_is_no_claim(ups: int, downs: int, expected: str) -> None:
    assert verdict_of(counted(ups, downs, 12)) == expected


CASES = [
    (100, 0.02, "can't tell yet"),
    (100, 0.06, "no measurable change"),
    (400, 0.02, "no measurable change"),
    (400, 0.01, "can't tell yet"),
]


@pytest.mark.parametrize(("n", "effect", "expected"), CASES)
def test_no_measurable_change_rules_out_what_matters(n: int, effect: float, expected: str) -> None:
    """One gained and one lost."""
    assert verdict_of(counted(1, 1, n), effect) == expected


@pytest.mark.parametrize(
    ("n", "low", "high"), [(50, -0.04, 0.05), (256, -0.001, 0.03), (1319, -0.02, 0.021), (3, -0.6, 0.6)]
)
@pytest.mark.parametrize("effect", [0.02, 0.005])
def test_with_the_problems_that_settle_it_no_interval_leaves_one_in_doubt(
    n: int, low: float, high: float, effect: float
) -> None:
    needed = problems_to_settle(n, (low, high), effect)
    width = (high - low) * math.sqrt(n / needed)
    assert n < needed
    assert 0.9 * effect < width <= effect, "one that holds 0 and is no wider lies within the effect"


@pytest.mark.parametrize("floor", [0.0, 0.05, 0.1, 0.2])
def test_a_difference_within_the_noise_floor_is_never_claimed(floor: float) -> None:
    found = paired_difference([0.0] * 10 + [1.0] * 90, [1.0] * 100, floor)
    assert (found.p_value < ALPHA) == (not found.ci95[0] <= 0 <= found.ci95[1]) == (floor < 0.1)
    assert found.delta == pytest.approx(0.1)


shares = st.integers(1, 8).flatmap(
    lambda k: st.lists(st.tuples(st.integers(0, k), st.integers(0, k)), min_size=1, max_size=25).map(
        lambda pairs: [(b / k, t / k) for b, t in pairs]
    )
)


@settings(max_examples=300)
@given(shares)
def test_verdict_interval_and_p_agree_for_several_samples_too(pairs: list[tuple[float, float]]) -> None:
    """`worse, p = 0.0614` came from several samples: Student's interval left 0 out, the sign-flip test did not."""
    found = paired_difference([b for b, _ in pairs], [t for _, t in pairs])
    low, high = found.ci95
    assert (found.p_value < ALPHA) == (not low <= 0 <= high)
    assert {"better": low > 0, "worse": high < 0}.get(verdict_of(found), low <= 0 <= high)
    assert low - 1e-12 <= found.delta <= high + 1e-12
    assert high - low > 1e-6


def test_a_claim_of_several_samples_needs_both_tests() -> None:
    """Few large gains: Student's test alone would claim them, the flips of four problems cannot."""
    found = paired_difference([0.0] * 12, [1.0] * 3 + [0.75] + [0.0] * 8)
    assert scipy_stats.ttest_1samp([1.0] * 3 + [0.75] + [0.0] * 8, 0).pvalue < ALPHA
    assert found.p_value == 0.125
    assert found.ci95[0] == 0.0
    # Six gains, one of them large: no flip is as extreme, and Student's test sees the spread alone.
    gains = [1.0] + [0.125] * 5
    found = paired_difference([0.0] * 6, gains)
    assert sign_flip(gains) == 2 / 2**6 < ALPHA
    assert found.p_value == pytest.approx(scipy_stats.ttest_1samp(gains, 0).pvalue)
    assert found.ci95[0] < 0


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_paired_difference_changes_sign_with_its_variants(pairs: list[tuple[float, float]]) -> None:
    base, tuned = [p[0] for p in pairs], [p[1] for p in pairs]
    there, back = paired_difference(base, tuned), paired_difference(tuned, base)
    assert there.delta == pytest.approx(-back.delta)
    assert there.ci95 == pytest.approx((-back.ci95[1], -back.ci95[0]))
    assert there.p_value == pytest.approx(back.p_value)
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


@pytest.mark.parametrize("n", [13, 20, 40])
def test_many_differences_are_counted_as_scipy_samples_them(n: int) -> None:
    rng = np.random.default_rng(n)
    differences = rng.integers(-3, 5, n) / 4
    sampled = scipy_stats.permutation_test(
        (differences,),
        lambda x, axis: x.sum(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=40_000,
        random_state=1,
    )
    assert 0.01 < sampled.pvalue < 0.99
    assert sign_flip(differences.tolist()) == pytest.approx(sampled.pvalue, abs=0.01)


def test_the_flips_of_many_equal_differences_are_known() -> None:
    assert sign_flip([0.5] * 40) == pytest.approx(2 / 2**40)
    assert sign_flip([0.5, -0.5] * 20) == 1.0
    assert sign_flip([1.0] * 8 + [-1.0]) == pytest.approx(mcnemar_exact(8, 1))


@pytest.mark.parametrize(("n", "ups"), [(13, 10), (21, 7), (30, 20), (40, 14), (40, 20), (33, 17)])
def test_many_equal_sizes_are_a_binomial_test(n: int, ups: int) -> None:
    """Here many flips are exactly as extreme as what was observed, which counts as well."""
    expected = scipy_stats.binomtest(ups, n).pvalue
    found = sign_flip([0.25] * ups + [-0.25] * (n - ups))
    assert found == pytest.approx(expected)


def test_the_flips_of_more_than_128_samples_are_counted_without_rounding() -> None:
    """No flip of these gives a smaller sum than 22/150; of their thousandths, one in eight does."""
    assert sign_flip([-38 / 150, 145 / 150, 22 / 150, -107 / 150]) == 1.0


@pytest.mark.parametrize(("n", "ups"), [(511, 280), (512, 270), (1023, 560), (1024, 470), (2600, 1390)])
def test_more_flips_than_a_number_can_count_are_still_a_binomial_test(n: int, ups: int) -> None:
    expected = scipy_stats.binomtest(ups, n).pvalue
    assert sign_flip([0.25] * ups + [-0.25] * (n - ups)) == pytest.approx(expected, rel=1e-9)


def one_by_one(thousandths: list[int]) -> float:
    """The p-value by the plain recursion over all sums, with chances from the first flip on."""
    steps = [abs(step) for step in thousandths if step]
    chances, grown = np.zeros(2 * sum(steps) + 1), np.zeros(2 * sum(steps) + 1)
    chances[0], size = 1.0, 1
    for step in steps:
        chances[:size] /= 2
        grown[:size], grown[size : size + 2 * step] = chances[:size], 0.0
        grown[2 * step : size + 2 * step] += chances[:size]
        chances, grown, size = grown, chances, size + 2 * step
    sums = np.arange(len(chances)) - sum(steps)
    return float(chances[np.abs(sums) >= abs(sum(thousandths))].sum())


def test_1319_differences_on_no_grid_are_counted_faster_than_by_the_plain_recursion() -> None:
    """GSM8K's test set has 1,319 problems: a report waited for seconds."""
    differences = (np.random.default_rng(3).random(1319) - 0.49).tolist()
    seconds = []
    for _ in range(3):
        times = [time.process_time()]
        found = sign_flip(differences)
        times.append(time.process_time())
        expected = one_by_one([round(1000 * d) for d in differences])
        times.append(time.process_time())
        assert found == pytest.approx(expected, rel=1e-9)
        seconds.append((times[1] - times[0]) / (times[2] - times[1]))
    assert min(seconds) < 0.6, seconds
