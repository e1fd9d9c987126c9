"""How often a verdict claims what is not there, and its interval holds the truth: python perf/error_rates.py

Simulated evaluations go through `stats.paired_difference` and the verdict's rule. With one sample per problem a share
of the problems differs between the sides; with four samples each problem has a difficulty of its own, and the true
change is the same for all. The second table is of evaluations that stop when their result is known
(`sequential.always_valid_difference`), and beside it of what looking as often at the interval for a fixed number would
do. The tables in docs/use/evaluation.md were printed by this.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from upft_mlx.evaluation.sequential import always_valid_difference, is_known
from upft_mlx.evaluation.stats import ALPHA, PairedDifference, paired_difference

CHANGE = 0.05
"""Tuned - base, where there is a difference."""
RUNS = 10_000
"""Simulated evaluations per line; the standard error of 5 % is 0.22 points."""
CLUSTERED = 4000
"""Of several samples per problem; the standard error of 5 % is 0.34 points."""
SIZES = (12, 50, 200, 500, 1319)
STOPPED, MOST, LOOK, EFFECT = 400, 1319, 32, 0.02
"""Simulated evaluations that may stop: how many a line, their problems, how many come between two looks, and the
smallest difference that matters."""


@cache
def counted(ups: int, downs: int, n: int) -> PairedDifference:
    """The paired difference with `ups` problems gained and `downs` lost among n."""
    base = [0.0] * ups + [1.0] * (n - ups)
    return paired_difference(base, [1.0] * ups + [0.0] * downs + [1.0] * (n - ups - downs))


def one_sample(n: int, differ: float, change: float, rng: np.random.Generator) -> list[PairedDifference]:
    """`differ`: share of the problems that only one side solves; `change`: tuned - base."""
    shares = [(differ + change) / 2, (differ - change) / 2, 1 - differ]
    return [counted(int(ups), int(downs), n) for ups, downs, _ in rng.multinomial(n, shares, RUNS)]


def four_samples(n: int, change: float, rng: np.random.Generator) -> list[PairedDifference]:
    """Difficulties from Beta(1, 1), pressed into [0, 1 - change]."""
    found = []
    for _ in range(CLUSTERED):
        p = rng.beta(1, 1, n) * (1 - change)
        base, tuned = rng.binomial(4, p) / 4, rng.binomial(4, p + change) / 4
        found.append(paired_difference(base.tolist(), tuned.tolist()))
    return found


def line(name: str, differ: str, still: list[PairedDifference], moved: list[PairedDifference]) -> str:
    """Claims without and with a change, claims in the wrong direction, intervals that hold the truth, their width."""
    false, true = (np.mean([d.p_value < ALPHA for d in found]) for found in (still, moved))
    wrong = np.mean([d.p_value < ALPHA and d.delta < 0 for d in moved])
    held = [
        np.mean([d.ci95[0] - 1e-9 <= change <= d.ci95[1] + 1e-9 for d in found])
        for change, found in ((0.0, still), (CHANGE, moved))
    ]
    width = 100 * np.mean([d.ci95[1] - d.ci95[0] for d in still])
    return (
        f"| {name} | {differ} | {false:.1%} | {true:.1%} | {wrong:.1%} | {held[0]:.1%}, {held[1]:.1%} | {width:.1f} |"
    )


def until_known(base: list[float], tuned: list[float]) -> tuple[int, PairedDifference]:
    """The problems at which an evaluation in this order stops, and what it says there."""
    for n in [*range(LOOK, MOST, LOOK), MOST]:
        found = always_valid_difference(base[:n], tuned[:n])
        if is_known(found, EFFECT):
            break
    return n, found


def peeked(base: list[float], tuned: list[float]) -> bool:
    """Whether the interval for a fixed number leaves 0 out at one of as many looks."""
    return any(paired_difference(base[:n], tuned[:n]).p_value < ALPHA for n in [*range(LOOK, MOST, LOOK), MOST])


def stopped_line(differ: float, change: float, rng: np.random.Generator) -> str:
    """Claims, intervals that hold the truth, where it stopped, and false claims of whoever peeks (of a tenth)."""
    found, peeks = [], []
    for number in range(STOPPED):
        draws = rng.choice(3, MOST, p=[(differ + change) / 2, (differ - change) / 2, 1 - differ])
        base, tuned = (draws == 1).astype(float).tolist(), (draws == 0).astype(float).tolist()
        found.append(until_known(base, tuned))
        if number < STOPPED // 10:
            peeks.append(peeked(base, tuned))
    claimed = np.mean([d.p_value < ALPHA for _, d in found])
    held = np.mean([d.ci95[0] - 1e-9 <= change <= d.ci95[1] + 1e-9 for _, d in found])
    known = np.mean([is_known(d, EFFECT) for _, d in found])
    used = np.mean([n for n, _ in found])
    return (
        f"| {100 * differ:g}% | {100 * change:+g} | {known:.1%} | {claimed:.1%} | {held:.1%} | {used:,.0f} "
        f"| {np.mean(peeks):.0%} |"
    )


def main() -> None:
    """The tables."""
    rng = np.random.default_rng(0)
    print(
        "| problems x samples | differ | claimed, no change | claimed, +5 points | as worse | holds the truth | width |"
    )
    print("|---|---|---|---|---|---|---|")
    for n in SIZES:
        for differ in (0.05, 0.2, 0.5):
            found = (one_sample(n, differ, change, rng) for change in (0.0, CHANGE))
            print(line(f"{n} x 1", f"{differ:.0%}", *found), flush=True)
        print(line(f"{n} x 4", "", *(four_samples(n, change, rng) for change in (0.0, CHANGE))), flush=True)
    print("\n| differ | change, points | known | claimed | holds the truth | problems | claimed by peeking |")
    print("|---|---|---|---|---|---|---|")
    for differ, change in ((0.005, 0), (0.05, 0), (0.2, 0), (0.05, 0.02), (0.2, 0.02), (0.05, 0.05), (0.2, 0.05)):
        print(stopped_line(differ, change, rng), flush=True)


if __name__ == "__main__":
    main()
