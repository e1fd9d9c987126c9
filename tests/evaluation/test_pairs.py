"""Every pair's difference: by hand, adjusted, and in agreement with itself."""

from __future__ import annotations

import random

import pytest

from upft_mlx.evaluation.pairs import all_pairs
from upft_mlx.evaluation.stats import ALPHA, mean_interval, paired_difference, tango_interval


def marks(text: str) -> list[float]:
    return [float(mark) for mark in text]


def test_two_models_are_the_paired_difference_alone() -> None:
    base, tuned = marks("0011010011" * 4), marks("0111011011" * 4)
    (pair,) = all_pairs({"base": base, "tuned": tuned})
    alone = paired_difference(base, tuned)
    assert (pair.first, pair.second, pair.delta, pair.p_value) == ("base", "tuned", alone.delta, alone.p_value)
    assert pair.ci95 == pytest.approx(alone.ci95, abs=1e-9)


def test_three_models_have_three_pairs_with_p_times_three_and_wider_intervals() -> None:
    scores = {"a": marks("0" * 30 + "1" * 10), "b": marks("1" * 8 + "0" * 22 + "1" * 10), "c": marks("1" * 40)}
    pairs = all_pairs(scores)
    assert [(pair.first, pair.second) for pair in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    for pair in pairs:
        alone = paired_difference(scores[pair.first], scores[pair.second])
        assert pair.delta == alone.delta
        assert pair.p_value == pytest.approx(min(1.0, 3 * alone.p_value))
        assert pair.ci95[0] < alone.ci95[0] < alone.ci95[1] < pair.ci95[1]
    assert pairs[0].ci95 == pytest.approx(tango_interval(8, 0, 40, 2.3939797998185104), abs=1e-9)  # 1 - 0.05 / 6


def test_a_difference_that_is_real_alone_may_be_luck_among_many() -> None:
    base, tuned = marks("0" * 6 + "01" * 10), marks("1" * 6 + "01" * 10)
    assert all_pairs({"base": base, "tuned": tuned})[0].p_value == paired_difference(base, tuned).p_value < ALPHA
    (pair,) = all_pairs({"base": base, "tuned": tuned}, comparisons=10)
    assert pair.p_value >= ALPHA
    assert pair.ci95[0] <= 0 < pair.ci95[1]


def test_a_difference_that_rounding_explains_is_never_claimed() -> None:
    base, tuned = marks("0" * 100 + "1" * 900), marks("1" * 12 + "0" * 88 + "1" * 900)
    assert all_pairs({"base": base, "tuned": tuned})[0].p_value < ALPHA
    assert all_pairs({"base": base, "tuned": tuned}, floor=0.011)[0].p_value < ALPHA
    (pair,) = all_pairs({"base": base, "tuned": tuned}, floor=0.012)
    assert pair.p_value == 1.0
    assert pair.delta == pytest.approx(0.012)
    assert pair.ci95[0] <= 0 < pair.ci95[1]


def test_scores_of_several_samples_have_students_interval() -> None:
    generator = random.Random(0)
    base = [generator.choice((0.0, 0.25, 0.5)) for _ in range(50)]
    tuned = [value + generator.choice((0.0, 0.25, 0.5)) for value in base]
    (pair,) = all_pairs({"base": base, "tuned": tuned}, comparisons=5)
    differences = [b - a for a, b in zip(base, tuned, strict=True)]
    assert pair.ci95 == mean_interval(differences, (-1.0, 1.0), ALPHA / 5)
    plain = mean_interval(differences, (-1.0, 1.0))
    assert pair.ci95[0] < plain[0] < plain[1] < pair.ci95[1]


def test_interval_and_p_agree_and_few_tables_of_equal_models_claim_anything() -> None:
    generator, claims, tables = random.Random(1), 0, 300
    for _ in range(tables):
        hard = [generator.random() for _ in range(30)]
        scores = {name: [float(generator.random() > h) for h in hard] for name in "abcd"}
        pairs = all_pairs(scores)
        assert len(pairs) == 6
        for pair in pairs:
            assert (pair.p_value < ALPHA) == (pair.ci95[0] > 0 or pair.ci95[1] < 0)
        claims += any(pair.p_value < ALPHA for pair in pairs)
    assert claims / tables <= 0.05
