"""Intervals of a mean over problems and seeds, both of which are samples of many. Pure.

The seeds' runs share the problems, and the problems share the runs: neither the spread over problems nor that over
seeds alone says how far the mean would move with other problems and other seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from upft_mlx.evaluation.stats import ALPHA, mean_interval, t_quantile
from upft_mlx.forecasting.estimate import Mean


def two_way_mean(scores: Sequence[Sequence[float]], bounds: tuple[float, float], alpha: float = ALPHA) -> Mean:
    """The mean of problems x seeds with the interval of the two-way random-effects model.

    With problem means a, seed means b and residuals r, the variance of the mean is estimated without bias by
    var(a)/P + var(b)/S - var(r)/(P S) (Cameron, Gelbach and Miller 2011, two-way clusters), and is taken to be no less
    than either of the first two. Degrees of freedom by Satterthwaite. With a single seed, or where nothing varies, the
    interval is over problems alone.

    Args:
        scores: for each problem its score with each seed, as many for each.
        bounds: of a score.
        alpha: the chance that the interval misses.

    Raises:
        ValueError: there is no problem or no seed, or they do not form a table.
    """
    problems, seeds = len(scores), len(scores[0]) if scores else 0
    if not seeds or any(len(row) != seeds for row in scores):
        raise ValueError(f"needs a table of problems and seeds, found rows of {sorted({len(row) for row in scores})}")
    rows = [math.fsum(row) / seeds for row in scores]
    mean = math.fsum(rows) / problems
    if seeds == 1 or problems == 1:
        return Mean(mean, mean_interval(rows if seeds == 1 else scores[0], bounds, alpha))
    columns = [math.fsum(row[seed] for row in scores) / problems for seed in range(seeds)]
    residuals = math.fsum(
        (value - rows[i] - columns[j] + mean) ** 2 for i, row in enumerate(scores) for j, value in enumerate(row)
    )
    by_problem = math.fsum((row - mean) ** 2 for row in rows) / (problems - 1) / problems
    by_seed = math.fsum((column - mean) ** 2 for column in columns) / (seeds - 1) / seeds
    by_both = residuals / ((problems - 1) * (seeds - 1)) / (problems * seeds)
    variance = max(by_problem, by_seed, by_problem + by_seed - by_both)
    if variance <= 1e-24:
        return Mean(mean, mean_interval(rows, bounds, alpha))
    parts = by_problem**2 / (problems - 1) + by_seed**2 / (seeds - 1)
    half = t_quantile(max(1, math.floor(variance**2 / parts)), alpha) * math.sqrt(variance)
    return Mean(mean, (max(bounds[0], mean - half), min(bounds[1], mean + half)))
