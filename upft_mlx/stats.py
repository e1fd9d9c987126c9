"""Intervals and tests for accuracies. Pure, standard library only.

The unit is the problem: samples of one problem are not independent, so with several of them the interval is over the
problems' mean scores.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

Z95 = 1.959963984540054
"""The 0.975 quantile of the normal distribution."""
EXACT_FLIPS = 12
"""Up to so many differing problems the sign-flip test enumerates all 2 ** n flips."""
MONTE_CARLO_FLIPS = 10_000
LENGTH_DRIFT = 1.25
"""Mean lengths that differ by this factor, either way, are pointed out."""
SHARE_DRIFT = 0.05
"""So are shares (truncated, answer found) that differ by more than this."""
ROUNDING = 1e-12
"""Scores that differ by less are equal: 0.3 - 0.2 is not 0.2 - 0.1 to the last bit."""


@dataclass(frozen=True)
class PairedDifference:
    """Tuned minus base on the same problems."""

    delta: float
    """Mean difference of the problems' scores, -1 to 1."""
    ci95: tuple[float, float]
    p_value: float
    """Two-sided, of the hypothesis that the two do not differ."""


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
def t_quantile(df: int) -> float:
    """The 0.975 quantile of Student's t distribution, by bisection of its integral (Simpson's rule)."""
    scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)

    def mass(x: float, parts: int = 1000) -> float:
        """The probability between 0 and x."""
        step = x / parts
        heights = [math.pow(1 + (i * step) ** 2 / df, -(df + 1) / 2) for i in range(parts + 1)]
        return scale * step / 3 * (heights[0] + 4 * sum(heights[1:-1:2]) + 2 * sum(heights[2:-1:2]) + heights[-1])

    low, high = Z95, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if mass(middle) < 0.475 else (low, middle)
    return (low + high) / 2


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of a mean; the mean itself where fewer than two values or no spread allow more."""
    n = len(values)
    mean = math.fsum(values) / n
    spread = math.fsum((value - mean) ** 2 for value in values)
    if n < 2 or spread <= n * ROUNDING**2:
        return mean, mean
    half = t_quantile(n - 1) * math.sqrt(spread / (n - 1) / n)
    return mean - half, mean + half


def accuracy_interval(scores: Sequence[Sequence[bool]]) -> tuple[float, float]:
    """The 95 % interval of an accuracy from each problem's samples.

    One sample per problem: Wilson. Several: Student over the problems' means (samples of a problem are a cluster),
    clipped to [0, 1]; where all means are equal it has no width, and Wilson with the problems as n stands in.

    Raises:
        ValueError: for a problem without samples.
    """
    if not all(scores):
        raise ValueError(
            f"each problem needs at least one sample, the one at {list(map(len, scores)).index(0)} has none"
        )
    if all(len(samples) == 1 for samples in scores):
        return wilson_interval(sum(samples[0] for samples in scores), len(scores))
    means = [sum(samples) / len(samples) for samples in scores]
    low, high = mean_interval(means)
    if low == high:
        return wilson_mean(means[0], len(means))
    return max(0.0, low), min(1.0, high)


def wilson_mean(share: float, n: int) -> tuple[float, float]:
    """Wilson's interval around a share that need not be a multiple of 1 / n."""
    low, high = wilson_interval(math.floor(share * n), n)[0], wilson_interval(math.ceil(share * n), n)[1]
    return min(low, share), max(high, share)


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
    tail = sum(math.comb(n, i) for i in range(min(wrong_to_right, right_to_wrong) + 1))
    return min(1.0, 2 * tail / (1 << n))


def paired_difference(base: Sequence[float], tuned: Sequence[float]) -> PairedDifference:
    """The difference of two models on the same problems, from each problem's mean score in [0, 1].

    The interval is Student's over the paired differences, clipped to [-1, 1]. With 0/1 scores p is McNemar's, else
    that of a sign-flip test. Where all differences are equal Student has no width; the interval is then that of a
    share that was never seen to change: Wilson's with no success in n, on either side.

    Raises:
        ValueError: if the two are empty or differ in length.
    """
    if not base or len(base) != len(tuned):
        raise ValueError(f"paired scores need equal, positive lengths, found {len(base)} and {len(tuned)}")
    differences = [t - b for b, t in zip(base, tuned, strict=True)]
    low, high = mean_interval(differences)
    delta = math.fsum(differences) / len(differences)
    if low == high:
        unseen = wilson_interval(0, len(differences))[1]
        low, high = delta - unseen, delta + unseen
    ups, downs = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    binary = all(score in (0, 1) for score in itertools.chain(base, tuned))
    p_value = mcnemar_exact(ups, downs) if binary else sign_flip(differences)
    return PairedDifference(delta, (max(-1.0, low), min(1.0, high)), p_value)


def sign_flip(differences: Sequence[float]) -> float:
    """The two-sided p-value of the hypothesis that each difference is as likely as its opposite.

    Exact up to `EXACT_FLIPS` nonzero differences; beyond, from seeded random flips with the observed one counted in
    (Phipson and Smyth 2010), so that p is never 0.
    """
    nonzero = [d for d in differences if d != 0]
    if not nonzero:
        return 1.0
    total = math.fsum(nonzero)
    observed = abs(total) - ROUNDING
    if len(nonzero) <= EXACT_FLIPS:
        signs = itertools.product((1, -1), repeat=len(nonzero))
        hits = sum(abs(math.fsum(map(float.__mul__, nonzero, map(float, s)))) >= observed for s in signs)
        return hits / (1 << len(nonzero))
    rng = random.Random(0)
    hits = 0
    for _ in range(MONTE_CARLO_FLIPS):
        bits = f"{rng.getrandbits(len(nonzero)):0{len(nonzero)}b}"
        hits += abs(total - 2 * math.fsum(itertools.compress(nonzero, map(int, bits)))) >= observed
    return (hits + 1) / (MONTE_CARLO_FLIPS + 1)


def drift(base: Mapping[str, float], tuned: Mapping[str, float]) -> list[str]:
    """What changed suspiciously between two sides of a summary, whatever the accuracy says.

    "length" and "truncated" catch a model that learned to stop early or not at all, "answer_found" one that forgot how
    to say its answer.
    """
    names = []
    before, after = base["mean_tokens"], tuned["mean_tokens"]
    if max(before, after) > LENGTH_DRIFT * min(before, after):
        names.append("length")
    shares = [name for name in ("truncated", "answer_found") if name in base and name in tuned]
    return names + [name for name in shares if abs(tuned[name] - base[name]) > SHARE_DRIFT]
