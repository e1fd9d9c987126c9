"""A probe: logistic regression on the hidden state at a prefix's last token, fitted on samples that were graded.

It rates prefixes of problems that have no answer. What it finds in its own problems says nothing: so it is judged on
problems that it was not fitted on (`held_out`). Pure.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from upft_mlx.evaluation.stats import mean_interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

PENALTY = 0.01
"""Weight of the squared weights (halved), beside the mean loss of a sample; the features have variance 1."""
FOLDS = 8
"""Parts into which the problems are cut; each is rated by a probe fitted on the others."""


@dataclass(frozen=True)
class Probe:
    """What was fitted; plain numbers, so that JSON keeps it."""

    length: int
    """The prefixes' length, in tokens."""
    mean: list[float]
    """Mean of each feature (D)."""
    scale: list[float]
    """Standard deviation of each feature (D); 1 where a feature does not vary."""
    weights: list[float]
    """Weights of the standardised features (D)."""
    bias: float

    def rate(self, features: Array) -> list[float]:
        """The log-odds that a solution is right, for features (N, D) of its prefix."""
        import numpy as np

        standard = (features - np.array(self.mean)) / np.array(self.scale)
        rated: list[float] = (standard @ np.array(self.weights) + self.bias).tolist()
        return rated


def fit(features: Array, right: Sequence[bool], length: int) -> Probe:
    """Fit on features (N, D) and whether each sample's solution was right.

    Raises:
        ValueError: all samples are right, or all are wrong.
    """
    import numpy as np
    from scipy.optimize import minimize

    if len(set(right)) < 2:
        raise ValueError("needs right and wrong samples")
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale[scale < 1e-8] = 1.0
    standard = (features - mean) / scale
    signs = np.where(np.array(right), 1.0, -1.0)

    def loss(point: Array) -> tuple[float, Array]:
        margin = signs * (standard @ point[:-1] + point[-1])
        value = np.logaddexp(0.0, -margin).mean() + PENALTY / 2 * (point[:-1] @ point[:-1])
        slope = -signs * np.exp(-np.logaddexp(0.0, margin)) / len(signs)
        return value, np.append(standard.T @ slope + PENALTY * point[:-1], slope.sum())

    found: Array = minimize(loss, np.zeros(features.shape[1] + 1), jac=True, method="L-BFGS-B").x
    return Probe(length, mean.tolist(), scale.tolist(), found[:-1].tolist(), float(found[-1]))


def held_out(features: Sequence[Array], right: Sequence[Sequence[bool]], length: int, seed: int) -> list[list[float]]:
    """For each problem the ratings of its samples by a probe that was fitted on other problems.

    Where all samples of the other problems are right, or all wrong, nothing can be fitted, and all ratings are equal.

    Args:
        features: of each problem's samples, (N, D).
        right: whether each sample is right, in the same order.
        length: of the prefixes, in tokens.
        seed: decides which problems are rated together.
    """
    import numpy as np

    order = list(range(len(features)))
    random.Random(f"probe/{seed}").shuffle(order)
    folds = [order[start::FOLDS] for start in range(min(FOLDS, len(order)))]
    ratings: list[list[float]] = [[0.0] * len(samples) for samples in right]
    for fold in folds:
        others = [number for number in order if number not in fold]
        seen = [value for number in others for value in right[number]]
        if len(set(seen)) == 2:
            made = fit(np.concatenate([features[number] for number in others]), seen, length)
            for number in fold:
                ratings[number] = made.rate(features[number])
    return ratings


def auc(ratings: Sequence[Sequence[float]], right: Sequence[Sequence[bool]]) -> dict[str, Any] | None:
    """How often a right sample is rated above a wrong one of the same problem: mean over problems, and 95 % interval.

    Ties count half. None where fewer than two problems have both kinds of samples.
    """
    shares = []
    for values, marks in zip(ratings, right, strict=True):
        good = [value for value, mark in zip(values, marks, strict=True) if mark]
        bad = [value for value, mark in zip(values, marks, strict=True) if not mark]
        if good and bad:
            won = math.fsum((g > b) + 0.5 * (g == b) for g in good for b in bad)
            shares.append(won / (len(good) * len(bad)))
    if len(shares) < 2:
        return None
    low, high = mean_interval(shares, (0.0, 1.0))
    return {"mean": math.fsum(shares) / len(shares), "ci95": [low, high], "problems": len(shares)}
