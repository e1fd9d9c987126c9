"""Means over problems and seeds: hand-computed parts, limits, and how often the interval holds the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from upft_mlx.evaluation.stats import mean_interval, wilson_interval
from upft_mlx.studies.two_way import two_way_mean

SHARES = (0.0, 1.0)
ANY = (-1e9, 1e9)


def test_a_small_table_by_hand() -> None:
    """Problem means 0.25, 0.75, 0.5; seed means 2/3 and 1/3; residuals +-1/12, +-1/12, +-1/6."""
    found = two_way_mean([[0.5, 0.0], [1.0, 0.5], [0.5, 0.5]], ANY)
    by_problem = ((0.25 - 0.5) ** 2 + (0.75 - 0.5) ** 2 + 0) / 2 / 3
    by_seed = (2 * (1 / 6) ** 2) / 1 / 2
    by_both = 2 * ((1 / 12) ** 2 + (1 / 12) ** 2 + (1 / 6) ** 2) / (2 * 1) / 6
    variance = by_problem + by_seed - by_both
    df = math.floor(variance**2 / (by_problem**2 / 2 + by_seed**2 / 1))
    assert df == 1
    assert found.mean == pytest.approx(0.5)
    half = 12.7062047 * math.sqrt(variance)
    assert found.ci95 == pytest.approx((0.5 - half, 0.5 + half), rel=1e-6)


@pytest.mark.parametrize("turned", [False, True])
def test_noise_makes_no_interval_narrower_than_that_over_problems_or_over_seeds(turned: bool) -> None:
    """Problem means 0.5, 0.4, 0.5, 0.6; seed means 0.5; residuals of 0.4: what is estimated for both is below 0."""
    table = np.array([[0.9, 0.1], [0.0, 0.8], [0.9, 0.1], [0.2, 1.0]])
    found = two_way_mean((table.T if turned else table).tolist(), ANY)
    by_problem = 0.02 / 3 / 4
    half = 3.18244631 * math.sqrt(by_problem)
    assert found.ci95 == pytest.approx((0.5 - half, 0.5 + half), rel=1e-6)


def test_one_seed_is_the_interval_over_problems() -> None:
    scores = [0.0, 1.0, 1.0, 0.5]
    assert two_way_mean([[score] for score in scores], SHARES).ci95 == mean_interval(scores, SHARES)


def test_seeds_that_agree_leave_the_interval_over_problems() -> None:
    scores = [0.0, 1.0, 1.0, 0.5, 0.25, 0.0, 1.0]
    low, high = two_way_mean([[score] * 5 for score in scores], ANY).ci95
    assert (low, high) == pytest.approx(mean_interval(scores, ANY), rel=1e-9)


def test_what_never_varies_is_no_certainty() -> None:
    unseen = wilson_interval(0, 18)[1]
    assert two_way_mean([[1.0, 1.0]] * 18, SHARES).ci95 == pytest.approx((1 - unseen, 1.0))
    assert two_way_mean([[0.0, 0.0]] * 18, (-1.0, 1.0)).ci95 == pytest.approx((-unseen, unseen))


@pytest.mark.parametrize("scores", [[], [[]], [[0.1, 0.2], [0.3]]])
def test_what_is_no_table_is_refused(scores: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="needs a table"):
        two_way_mean(scores, SHARES)


@pytest.mark.parametrize(
    ("problems", "seeds", "spreads"), [(60, 5, (1, 0, 3)), (60, 5, (1, 0.5, 1)), (20, 8, (0, 1, 1))]
)
def test_the_interval_holds_the_truth_about_19_times_of_20(
    problems: int, seeds: int, spreads: tuple[float, float, float]
) -> None:
    """The spread over problems alone would miss the seeds' share (second case: it holds the truth in about 65 %)."""
    rng = np.random.default_rng(3)
    held = narrow = 0
    for _ in range(400):
        a = spreads[0] * rng.normal(size=(problems, 1))
        table = a + spreads[1] * rng.normal(size=(1, seeds)) + spreads[2] * rng.normal(size=(problems, seeds))
        low, high = two_way_mean(table.tolist(), ANY).ci95
        held += low <= 0 <= high
        low, high = mean_interval(table.mean(axis=1).tolist(), ANY)
        narrow += low <= 0 <= high
    assert 0.92 < held / 400 < 0.995
    if spreads[1] >= 0.5:
        assert narrow / 400 < 0.85
