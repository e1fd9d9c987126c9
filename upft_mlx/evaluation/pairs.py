"""Every pair of several models on the same problems: differences whose claims hold all together. Pure.

With k models there are k (k - 1) / 2 differences, and at 5 % each a few look real by chance. Here the p-values are
multiplied by the number of comparisons and the intervals are as much wider (Bonferroni): the chance of any wrong claim
in the table is at most 5 %. Holm's p-values are smaller, but have no intervals that agree with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from upft_mlx.evaluation.stats import (
    ALPHA,
    ROUNDING,
    PairedDifference,
    mean_interval,
    paired_difference,
    tango_interval,
    z_quantile,
)
from upft_mlx.quantities import many


@dataclass(frozen=True)
class Pair:
    """The second model minus the first."""

    first: str
    second: str
    delta: float
    """Mean difference of the problems' scores, -1 to 1."""
    ci95: tuple[float, float]
    """All intervals of the table hold together with 95 %; leaves 0 out if and only if `p_value` is below `ALPHA`."""
    p_value: float
    """Two-sided, times the number of comparisons."""


def all_pairs(scores: Mapping[str, Sequence[float]], comparisons: int | None = None, floor: float = 0.0) -> list[Pair]:
    """The differences between all models.

    Args:
        scores: of each model, each problem's mean score in [0, 1]; the problems in the same order.
        comparisons: to adjust for; None: as many as there are here.
        floor: the share of grades that rounding alone changes; a difference within it is never claimed.

    Raises:
        ValueError: the scores are empty or differ in length.
    """
    count = max(1, comparisons or math.comb(len(scores), 2))
    found = []
    for (first, before), (second, after) in combinations(scores.items(), 2):
        pair = one_of_many(before, after, count, floor)
        found.append(Pair(first, second, pair.delta, pair.ci95, pair.p_value))
    return found


def together(comparisons: int) -> str:
    """The note on a table's intervals."""
    return f"intervals hold together for {many(comparisons, 'comparison')} (Bonferroni)"


def one_of_many(
    base: Sequence[float], tuned: Sequence[float], comparisons: int, floor: float = 0.0
) -> PairedDifference:
    """`stats.paired_difference` as one of several comparisons (Bonferroni): p times their number, a wider interval."""
    alone, alpha = paired_difference(base, tuned, floor), ALPHA / comparisons
    if comparisons == 1:
        return alone
    differences = [t - b for b, t in zip(base, tuned, strict=True)]
    if all(score in (0, 1) for score in (*base, *tuned)):
        ups, downs = sum(d > ROUNDING for d in differences), sum(d < -ROUNDING for d in differences)
        interval = tango_interval(ups, downs, len(differences), z_quantile(alpha))
    else:
        interval = mean_interval(differences, (-1.0, 1.0), alpha)
    return PairedDifference(alone.delta, interval, min(1.0, comparisons * alone.p_value)).beyond(floor + ROUNDING)
