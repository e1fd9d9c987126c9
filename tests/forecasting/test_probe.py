"""The probe: where its fit stands, that it never sees what it rates, and its AUC by hand."""

from __future__ import annotations

import numpy as np
import pytest

from upft_mlx.forecasting.probe import PENALTY, auc, fit, held_out


def test_the_fit_is_the_minimum_of_the_penalised_loss() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 3)) * [1.0, 5.0, 0.1] + [0.0, 3.0, 1.0]
    right = [bool(x) for x in features[:, 0] + rng.normal(size=60) > 0]
    made = fit(features, right, 8)
    standard = (features - features.mean(axis=0)) / features.std(axis=0)
    weights = np.array(made.weights)
    gaps = 1 / (1 + np.exp(-(standard @ weights + made.bias))) - np.array(right)
    assert np.abs(standard.T @ gaps / 60 + PENALTY * weights).max() < 1e-4
    assert abs(gaps.mean()) < 1e-4
    assert made.rate(features) == pytest.approx((standard @ weights + made.bias).tolist())
    assert weights[0] > 0.5


def test_a_feature_that_does_not_vary_changes_nothing() -> None:
    features = np.array([[0.0, 7.0], [1.0, 7.0], [2.0, 7.0], [3.0, 7.0]])
    assert fit(features, [False, False, True, True], 4).weights[1] == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ValueError, match="right and wrong"):
        fit(features, [True] * 4, 4)


def test_no_problem_is_rated_by_a_probe_that_saw_it() -> None:
    """Each problem has a feature of its own that tells its outcomes: a probe that saw them would rate perfectly."""
    rng, problems = np.random.default_rng(1), 24
    features = [np.zeros((8, problems)) for _ in range(problems)]
    right = [[bool(x) for x in rng.permutation([True] * 4 + [False] * 4)] for _ in range(problems)]
    for number in range(problems):
        features[number][:, number] = [1.0 if mark else -1.0 for mark in right[number]]
    seen = auc([fit(f, r, 8).rate(f) for f, r in zip(features, right, strict=True)], right)
    unseen = auc(held_out(features, right, 8, seed=0), right)
    assert seen is not None
    assert unseen is not None
    assert seen["mean"] == 1.0
    assert unseen["mean"] == 0.5, "all samples alike"


def test_what_other_problems_teach_is_used() -> None:
    rng = np.random.default_rng(2)
    features = [rng.normal(size=(8, 2)) for _ in range(32)]
    right = [[bool(x) for x in f[:, 1] > 0] for f in features]
    found = auc(held_out(features, right, 8, seed=0), right)
    assert found is not None
    assert found["mean"] > 0.95


def test_the_auc_counts_pairs_within_problems() -> None:
    ratings = [[0.9, 0.1, 0.5], [0.2, 0.2], [9.0, 8.0]]
    right = [[True, False, False], [True, False], [True, True]]
    found = auc(ratings, right)
    assert found is not None
    assert (found["mean"], found["problems"]) == (0.75, 2), "1 and a tie; the last problem has no pair"
    assert auc(ratings[2:], right[2:]) is None
