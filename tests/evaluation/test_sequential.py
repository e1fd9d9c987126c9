"""Intervals that hold at every moment: against the bets themselves, by simulation, in agreement with the verdict."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upft_mlx.evaluation.sequential import always_valid_difference, always_valid_interval, is_known
from upft_mlx.evaluation.stats import ALPHA, paired_difference, wilson_interval

SHARES = [*np.geomspace(0.02, 0.92, 23), 0.98]


def wealth(values: list[float], mean: float) -> float:
    """What 1 has become by betting on values above this mean, bet after bet."""
    purses = [1.0] * len(SHARES)
    for value in values:
        purses = [purse * (1 + share * (value / mean - 1)) for purse, share in zip(purses, SHARES, strict=True)]
    return sum(purses) / len(purses)


@pytest.mark.parametrize("values", [[0.5] * 40, [0.0, 1.0, 1.0, 0.5] * 12, [0.3, 0.1, 0.9] * 5, [1.0] * 30])
def test_an_end_of_the_interval_is_where_a_bettor_has_won_forty_fold(values: list[float]) -> None:
    low, high = always_valid_interval(values, (0.0, 1.0))
    assert wealth(values, low) == pytest.approx(40, rel=1e-3)
    if high < 1:
        assert wealth([1 - value for value in values], 1 - high) == pytest.approx(40, rel=1e-3)
    assert low < sum(values) / len(values) <= high


def test_a_bettor_cannot_gain_on_average_against_the_truth() -> None:
    rng = np.random.default_rng(0)
    ends = [wealth(rng.choice([0, 0.5, 1], 60, p=[0.1, 0.75, 0.15]).tolist(), 0.525) for _ in range(4000)]
    assert np.mean(ends) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("change", [0.0, 0.1])
def test_the_truth_is_left_out_at_any_moment_in_few_evaluations(change: float) -> None:
    """Where one looks again and again; an interval for a fixed number of problems is wrong much more often."""
    rng, wrong, peeked = np.random.default_rng(1), 0, 0
    runs, looks = 80, range(20, 401, 20)
    for _ in range(runs):
        draws = rng.choice([1.0, -1.0, 0.0], 400, p=[(0.3 + change) / 2, (0.3 - change) / 2, 0.7])
        base, tuned = np.maximum(-draws, 0).tolist(), np.maximum(draws, 0).tolist()
        intervals = [always_valid_difference(base[:n], tuned[:n]).ci95 for n in looks]
        wrong += any(not low <= change <= high for low, high in intervals)
        fixed = [paired_difference(base[:n], tuned[:n]).ci95 for n in looks]
        peeked += any(not low <= change <= high for low, high in fixed)
    assert wrong / runs <= wilson_interval(round(0.05 * runs), runs)[1]
    assert peeked / runs > 0.1


scores = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


@settings(max_examples=150)
@given(scores)
def test_interval_p_and_difference_agree(pairs: list[tuple[int, int]]) -> None:
    found = always_valid_difference([b / 4 for b, _ in pairs], [t / 4 for _, t in pairs])
    low, high = found.ci95
    assert (found.p_value < ALPHA) == (not low <= 0 <= high)
    assert -1 <= low <= found.delta + 1e-9
    assert found.delta - 1e-9 <= high <= 1
    assert high - low > 1e-3
    turned = always_valid_difference([t / 4 for _, t in pairs], [b / 4 for b, _ in pairs])
    assert turned.ci95 == pytest.approx((-high, -low), abs=1e-9)
    assert turned.p_value == pytest.approx(found.p_value)


def test_bounds_may_be_any() -> None:
    low, high = always_valid_interval([3.0, -2.0, 5.0, 0.0] * 20, (-64.0, 64.0))
    scaled = always_valid_interval([(v + 64) / 128 for v in [3.0, -2.0, 5.0, 0.0] * 20], (0.0, 1.0))
    assert (low, high) == pytest.approx(tuple(-64 + 128 * end for end in scaled))


def test_it_is_known_where_there_is_a_difference_or_none_that_matters() -> None:
    same = [1.0] * 400
    assert is_known(always_valid_difference(same, same), 0.02)
    assert not is_known(always_valid_difference(same[:100], same[:100]), 0.02)
    assert is_known(always_valid_difference(same[:100], same[:100]), 0.1)
    assert is_known(always_valid_difference([0.0] * 30, [1.0] * 30), 0.02)


def test_a_difference_within_the_noise_floor_is_not_claimed() -> None:
    base, tuned = [0.0] * 30 + [1.0] * 70, [1.0] * 100
    assert always_valid_difference(base, tuned).p_value < ALPHA
    found = always_valid_difference(base, tuned, floor=0.3)
    assert (found.p_value, found.ci95[0] <= 0) == (1.0, True)


def test_unequal_or_empty_scores_are_refused() -> None:
    for base, tuned in (([], []), ([0.0], [0.0, 1.0])):
        with pytest.raises(ValueError, match="equal, positive lengths"):
            always_valid_difference(base, tuned)


def test_it_is_no_more_than_twice_as_wide_as_for_a_fixed_number() -> None:
    rng = np.random.default_rng(2)
    draws = rng.choice([1.0, -1.0, 0.0], 1319, p=[0.1, 0.1, 0.8])
    base, tuned = np.maximum(-draws, 0).tolist(), np.maximum(draws, 0).tolist()
    widths = [high - low for low, high in (f(base, tuned).ci95 for f in (always_valid_difference, paired_difference))]
    assert 1.3 < widths[0] / widths[1] < 1.9
    assert math.isclose(sum(draws) / 1319, always_valid_difference(base, tuned).delta)
