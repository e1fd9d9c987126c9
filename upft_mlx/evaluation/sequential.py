"""Intervals that hold at every moment, for an evaluation that stops when its result is known. Pure.

A 95 % interval for a fixed number of problems is wrong more often than it says when one looks again and again and stops
at what one likes. These intervals hold the truth at all times together with a chance of at least 95 %, whenever one
stops; for that they are about 1.7 times as wide.

A bet against each candidate mean m: a share c of the money is put on the next value being above m, so that a value x
(between 0 and 1) multiplies the money by 1 + c (x / m - 1). Where m is the mean or above it, no such bet gains on
average, so that the money ever grows to 40-fold with a chance of at most 1/40 (Ville's inequality): a mean m at which
the bets, averaged over many c, have made 40 of 1 is too low. The same upside down gives the upper end (Waudby-Smith and
Ramdas 2024, Journal of the Royal Statistical Society B 86; averaged over c as in Cover's universal portfolio).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from upft_mlx.evaluation.stats import ALPHA, ROUNDING, PairedDifference

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]


@cache
def _shares() -> Array:
    """What is bet: from 0.02, for means that thousands of problems tell apart, to nearly all."""
    import numpy as np

    return np.append(np.geomspace(0.02, 0.92, 23), 0.98)


def _log_gain(values: Array, counts: Array, mean: float) -> float:
    """The logarithm of what 1 becomes by betting that values in [0, 1] are above this mean; it falls with the mean."""
    import numpy as np

    gains = np.log1p(_shares()[:, None] * (values[None, :] / mean - 1)) @ counts
    return float(np.logaddexp.reduce(gains) - math.log(len(gains)))


def _lowest(values: Array, counts: Array) -> float:
    """The lowest mean of values in [0, 1] against which the bets have not won."""
    low, high = 0.0, float(values @ counts / counts.sum())  # nobody wins against the mean itself
    for _ in range(50):
        middle = (low + high) / 2
        if middle <= 0:
            return 0.0
        low, high = (middle, high) if _log_gain(values, counts, middle) >= math.log(2 / ALPHA) else (low, middle)
    return low


def _counted(values: Sequence[float], bounds: tuple[float, float]) -> tuple[Array, Array]:
    """The different values, moved into [0, 1], and how often each is there."""
    import numpy as np

    low, high = bounds
    found, counts = np.unique((np.asarray(values, dtype=float) - low) / (high - low), return_counts=True)
    return found, counts.astype(float)


def always_valid_interval(values: Sequence[float], bounds: tuple[float, float]) -> tuple[float, float]:
    """The interval of a mean of values within bounds, of which there may be one more at any time."""
    found, counts = _counted(values, bounds)
    low, width = bounds[0], bounds[1] - bounds[0]
    return low + width * _lowest(found, counts), low + width * (1 - _lowest(1 - found[::-1], counts[::-1]))


def always_valid_difference(base: Sequence[float], tuned: Sequence[float], floor: float = 0.0) -> PairedDifference:
    """As `stats.paired_difference`, for problems in random order that may stop at any time.

    The p-value is 2 / what the better bet against no difference has made of 1: below `ALPHA` where the interval leaves
    0 out.

    Raises:
        ValueError: if the two are empty or differ in length.
    """
    if not base or len(base) != len(tuned):
        raise ValueError(f"paired scores need equal, positive lengths, found {len(base)} and {len(tuned)}")
    differences = [t - b for b, t in zip(base, tuned, strict=True)]
    values, counts = _counted(differences, (-1.0, 1.0))
    gain = max(_log_gain(values, counts, 0.5), _log_gain(1 - values, counts, 0.5))
    p_value = min(1.0, 2 * math.exp(-gain))
    delta = math.fsum(differences) / len(differences)
    low, high = always_valid_interval(differences, (-1.0, 1.0))
    return PairedDifference(delta, (low, high), p_value).beyond(floor + ROUNDING)


def is_known(found: PairedDifference, effect: float) -> bool:
    """Whether there is a difference, or none as large as `effect` (a share)."""
    low, high = found.ci95
    return found.p_value < ALPHA or (-effect <= low and high <= effect)
