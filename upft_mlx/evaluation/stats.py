"""Intervals and tests for accuracies. Pure.

The unit is the problem: samples of one problem are not independent, so with several of them the interval is over the
problems' mean scores. No interval has zero width: where nothing varied, it says how much could have gone unseen.

SciPy is imported where a quantile is needed: it takes 0.15 s, and `upft --help` should answer at once.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from upft_mlx.evaluation.benchmark_result import Measured

Z95 = 1.959963984540054
"""The 0.975 quantile of the normal distribution."""
ALPHA = 0.05
"""A difference is claimed where p is below it, and only there does the interval leave 0 out."""
LENGTH_DRIFT = 1.25
"""Mean lengths that differ by this factor, either way, are pointed out."""
SHARE_DRIFT = 0.05
"""So are shares (truncated, answer found) that differ by more than this."""
ROUNDING = 1e-12
"""Scores that differ by less are equal: 0.3 - 0.2 is not 0.2 - 0.1 to the last bit."""
_HALVED = 512
"""Flips whose outcomes are counted before the counts are scaled to shares: a float cannot hold 2 ** 1024."""


@dataclass(frozen=True)
class PairedDifference:
    """Tuned minus base on the same problems."""

    delta: float
    """Mean difference of the problems' scores, -1 to 1."""
    ci95: tuple[float, float]
    """Leaves 0 out if and only if `p_value` is below `ALPHA`."""
    p_value: float
    """Two-sided, of the hypothesis that the two do not differ, or by rounding only."""

    def beyond(self, floor: float) -> PairedDifference:
        """With a difference of at most `floor` taken for rounding, and an interval that agrees with the p-value."""
        p_value = 1.0 if abs(self.delta) <= floor else self.p_value
        low, high = self.ci95
        if p_value >= ALPHA:
            low, high = min(low, 0.0), max(high, 0.0)
        return PairedDifference(self.delta, (low, high), p_value)


def wilson_interval(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927); (0, 1) for n = 0.

    Raises:
        ValueError: unless 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be between 0 and n, found {successes} of {n}")
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, center - half)
    high = 1.0 if successes == n else min(1.0, center + half)
    return low, high


@lru_cache(maxsize=64)
def t_quantile(df: int, alpha: float = ALPHA) -> float:
    """The quantile of Student's t distribution that an interval of 1 - alpha reaches to."""
    from scipy.special import stdtrit

    return float(stdtrit(df, 1 - alpha / 2))


def z_quantile(alpha: float) -> float:
    """The same of the normal distribution."""
    from scipy.special import ndtri

    return float(ndtri(1 - alpha / 2))


def mean_interval(values: Sequence[float], bounds: tuple[float, float], alpha: float = ALPHA) -> tuple[float, float]:
    """Student's interval of a mean, 95 % unless `alpha` says otherwise, within the bounds of the values.

    Where there is one value, or all are equal, there is no spread to go by. Then some values may differ without one of
    them having been seen: the interval is what the mean would be with Wilson's share of them at either bound.
    """
    n = len(values)
    mean = math.fsum(values) / n
    spread = math.fsum((value - mean) ** 2 for value in values)
    low, high = bounds
    if n < 2 or spread <= n * (ROUNDING * (high - low)) ** 2:
        unseen = wilson_interval(0, n, z_quantile(alpha))[1]
        return mean - unseen * (mean - low), mean + unseen * (high - mean)
    half = t_quantile(n - 1, alpha) * math.sqrt(spread / (n - 1) / n)
    return max(low, mean - half), min(high, mean + half)


def accuracy_interval(scores: Sequence[Sequence[bool]]) -> tuple[float, float]:
    """The 95 % interval of an accuracy from each problem's samples.

    One sample per problem: Wilson. Several: Student over the problems' means (samples of a problem are a cluster).

    Raises:
        ValueError: for a problem without samples.
    """
    if not all(scores):
        raise ValueError(
            f"each problem needs at least one sample, the one at {list(map(len, scores)).index(0)} has none"
        )
    if all(len(samples) == 1 for samples in scores):
        return wilson_interval(sum(samples[0] for samples in scores), len(scores))
    return mean_interval([sum(samples) / len(samples) for samples in scores], (0.0, 1.0))


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that one of k samples is right, when c of n were (Chen et al. 2021, unbiased).

    Raises:
        ValueError: unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, found n={n}, c={c}, k={k}")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def maj_at_k(answers: Sequence[Hashable | None], correct: Sequence[bool], k: int) -> float:
    """How often the commonest answer among k of the n samples is right; tied answers share the credit.

    Exact, and so independent of the samples' order: the mean over all choices of k samples, counted by `_votes_won`
    instead of listed. None (no answer found) gets no vote; where there is no vote at all, the majority is wrong.
    Where equal answers were graded differently, each counts with their mean.

    Raises:
        ValueError: unless 1 <= k <= n.
    """
    n = len(answers)
    if not 1 <= k <= n:
        raise ValueError(f"maj@k needs 1 <= k <= {n} samples, found k={k}")
    grades: dict[Hashable, list[bool]] = {}
    for answer, right in zip(answers, correct, strict=True):
        if answer is not None:
            grades.setdefault(answer, []).append(right)
    voters = [(len(marks), sum(marks) / len(marks)) for marks in grades.values()]
    silent = n - sum(count for count, _ in voters)
    most = min(k, max((count for count, _ in voters), default=0))
    return math.fsum(_votes_won(top, voters, silent, k) for top in range(1, most + 1)) / math.comb(n, k)


def _votes_won(top: int, voters: Sequence[tuple[int, float]], silent: int, k: int) -> float:
    """The winners' mean credit, summed over the choices of k samples in which the winners have `top` votes each.

    `voters` are (samples, credit) per answer, `silent` the samples without one. Answer after answer, `table` maps
    (samples drawn, answers with `top` votes) to (choices, credit of those answers summed over these choices).
    """
    table = {(drawn, 0): (math.comb(silent, drawn), 0.0) for drawn in range(k + 1)}
    for count, credit in voters:
        grown: dict[tuple[int, int], tuple[int, float]] = {}
        for (drawn, tied), (choices, earned) in table.items():
            for votes in range(min(count, top, k - drawn) + 1):
                ways, wins = math.comb(count, votes), votes == top
                known, known_earned = grown.get((drawn + votes, tied + wins), (0, 0.0))
                total = known_earned + (earned + wins * credit * choices) * ways
                grown[drawn + votes, tied + wins] = known + choices * ways, total
        table = grown
    return math.fsum(earned / tied for (drawn, tied), (_, earned) in table.items() if drawn == k and tied)


def mcnemar_exact(wrong_to_right: int, right_to_wrong: int) -> float:
    """The exact two-sided p-value of McNemar's test: a fair coin for each problem that changed sides."""
    n = wrong_to_right + right_to_wrong
    if n == 0:
        return 1.0
    tail, ways = 0, 1
    for changed in range(min(wrong_to_right, right_to_wrong) + 1):
        tail += ways
        ways = ways * (n - changed) // (changed + 1)  # n choose (changed + 1)
    return min(1.0, 2 * tail / (1 << n))


def paired_difference(base: Sequence[float], tuned: Sequence[float], floor: float = 0.0) -> PairedDifference:
    """The difference of two models on the same problems, from each problem's mean score in [0, 1].

    Two tests look at it. The sign-flip test is exact for any number of problems (with 0/1 scores it is McNemar's
    exact test); the other one belongs to the interval: Tango's with 0/1 scores, else Student's over the differences.
    p is the larger of the two p-values, so that a claim needs both; where it is not below `ALPHA`, the interval is
    widened to hold 0. So the interval and p always agree.

    Args:
        base: scores of the first.
        tuned: scores of the second, in the same order.
        floor: the share of grades that rounding alone changes; a difference within it is never claimed.

    Raises:
        ValueError: if the two are empty or differ in length.
    """
    if not base or len(base) != len(tuned):
        raise ValueError(f"paired scores need equal, positive lengths, found {len(base)} and {len(tuned)}")
    differences = [t - b for b, t in zip(base, tuned, strict=True)]
    delta = math.fsum(differences) / len(differences)
    ups, downs = sum(d > ROUNDING for d in differences), sum(d < -ROUNDING for d in differences)
    if all(score in (0, 1) for score in (*base, *tuned)):
        low, high = tango_interval(ups, downs, len(differences))
        # Tango's score test of no difference is McNemar's without a correction.
        tango = math.erfc(abs(ups - downs) / math.sqrt(2 * (ups + downs))) if ups + downs else 1.0
        p_value = max(mcnemar_exact(ups, downs), tango)
    else:
        low, high = mean_interval(differences, (-1.0, 1.0))
        p_value = max(sign_flip(differences), _student_p(differences))
    return PairedDifference(delta, (low, high), p_value).beyond(floor + ROUNDING)


def problems_to_settle(n: int, ci95: tuple[float, float], effect: float) -> int:
    """About how many problems make an interval as wide as `effect`: it leaves out 0 then, or lies within the effect.

    Args:
        n: problems so far.
        ci95: their interval; its width falls with the root of the number of problems.
        effect: the smallest difference that matters (a share).
    """
    wanted = n * ((ci95[1] - ci95[0]) / effect) ** 2
    unit: int = 10 ** max(0, math.floor(math.log10(wanted)) - 1)
    return math.ceil(wanted / unit) * unit


def tango_interval(ups: int, downs: int, n: int, z: float = Z95) -> tuple[float, float]:
    """The score interval of a difference of paired shares (Tango 1998, Statistics in Medicine 17).

    Args:
        ups: problems that only the second model solves.
        downs: problems that only the first one solves.
        n: all problems.
        z: how far it reaches, in standard deviations; the default makes it a 95 % interval.
    """

    def score(delta: float) -> float:
        """The standardized distance of what was seen from `delta`, with the likeliest shares that have this `delta`."""
        linear = -ups - downs + (2 * n - ups + downs) * delta
        constant = -downs * delta * (1 - delta)
        share = (math.sqrt(max(0.0, linear**2 - 8 * n * constant)) - linear) / (4 * n)
        variance = n * (2 * share + delta * (1 - delta))
        distance = ups - downs - n * delta
        return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)

    def edge(inside: float, outside: float) -> float:
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if abs(score(middle)) <= z else (inside, middle)
        return inside

    delta = (ups - downs) / n
    return edge(delta, -1.0), edge(delta, 1.0)


def _student_p(differences: Sequence[float]) -> float:
    """The p-value of Student's test of no difference; where there is no spread, what `mean_interval` says."""
    from scipy.special import stdtr

    n = len(differences)
    mean = math.fsum(differences) / n
    spread = math.fsum((d - mean) ** 2 for d in differences)
    if n < 2 or spread <= n * (2 * ROUNDING) ** 2:
        low, high = mean_interval(differences, (-1.0, 1.0))
        return 0.0 if low > 0 or high < 0 else 1.0
    return float(2 * stdtr(n - 1, -abs(mean) / math.sqrt(spread / (n - 1) / n)))


def sign_flip(differences: Sequence[float]) -> float:
    """The exact two-sided p-value of the hypothesis that each difference is as likely as its opposite.

    All 2 ** n flips are counted, not listed: the distribution of their sum grows by one difference at a time.
    """
    import numpy as np

    # All differences are multiples of 1 / grid: the samples of a problem; else thousandths.
    fits = (k for k in range(1, 1000) if all(abs(d * k - round(d * k)) < 1e-9 for d in differences))
    grid = next(fits, 1000)
    # Small steps first: fewer sums at a time.
    steps = sorted(step for d in differences if (step := abs(round(d * grid))))
    ways, before = np.zeros(sum(steps) + 1), np.empty(sum(steps) + 1)  # to reach each sum, if a step down adds 0
    ways[0], size = 1.0, 1
    for number, step in enumerate(steps, 1):
        before[:size] = ways[:size]
        ways[step : size + step] += before[:size]
        size += step
        if number % _HALVED == 0:
            ways[:size] *= 2.0**-_HALVED
    sums = 2 * np.arange(len(ways)) - sum(steps)
    observed = abs(sum(round(d * grid) for d in differences))
    return min(1.0, float(ways[np.abs(sums) >= observed].sum()) * 2.0 ** -(len(steps) % _HALVED))


def drift(base: Measured, tuned: Measured) -> tuple[str, ...]:
    """The names of what changed suspiciously from base to tuned, whatever the accuracy says.

    "length" and "truncated" catch a model that learned to stop early or not at all, "answer_found" one that forgot how
    to say its answer.
    """
    names = []
    lengths = base.mean_tokens, tuned.mean_tokens
    if max(lengths) > LENGTH_DRIFT * min(lengths):
        names.append("length")
    for name in ("truncated", "answer_found"):
        before, after = getattr(base, name), getattr(tuned, name)
        if before is not None and after is not None and abs(after - before) > SHARE_DRIFT:
            names.append(name)
    return tuple(names)
