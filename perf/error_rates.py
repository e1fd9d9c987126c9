"""How often the verdict claims what is not there, and how often its interval holds the truth: python perf/error_rates.py

Simulated evaluations go through `stats.paired_difference` and the verdict's rule. With one sample per problem a share of
the problems differs between the sides; with four samples each problem has a difficulty of its own, and the true change
is the same for all. What stands in docs/evaluation.md was printed by this.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from upft_mlx.stats import ALPHA, PairedDifference, paired_difference

RUNS = 4000
"""Simulated evaluations per line; the standard error of 5 % is 0.34 points."""


@cache
def counted(ups: int, downs: int, n: int) -> PairedDifference:
    """Of so many problems gained and lost among n."""
    base = [0.0] * ups + [1.0] * (n - ups)
    return paired_difference(base, [1.0] * ups + [0.0] * downs + [1.0] * (n - ups - downs))


def one_sample(n: int, differ: float, change: float, rng: np.random.Generator) -> list[PairedDifference]:
    """`differ`: share of the problems that only one side solves; `change`: tuned - base."""
    shares = [(differ + change) / 2, (differ - change) / 2, 1 - differ]
    return [counted(int(ups), int(downs), n) for ups, downs, _ in rng.multinomial(n, shares, RUNS)]


def four_samples(n: int, change: float, rng: np.random.Generator) -> list[PairedDifference]:
    """Difficulties from Beta(1, 1), pressed into [0, 1 - change]."""
    found = []
    for _ in range(RUNS // 4):
        p = rng.beta(1, 1, n) * (1 - change)
        base, tuned = rng.binomial(4, p) / 4, rng.binomial(4, p + change) / 4
        found.append(paired_difference(base.tolist(), tuned.tolist()))
    return found


def line(name: str, change: float, found: list[PairedDifference]) -> str:
    """Share of claims, of claims in the wrong direction, of intervals that hold the truth, and their mean width."""
    claims = [d.p_value < ALPHA for d in found]
    wrong = [c and d.delta * change <= 0 for c, d in zip(claims, found, strict=True)]
    held = [d.ci95[0] - 1e-9 <= change <= d.ci95[1] + 1e-9 for d in found]
    width = np.mean([d.ci95[1] - d.ci95[0] for d in found])
    shown = f"{np.mean(claims):.1%} | {np.mean(wrong):.1%} | {np.mean(held):.1%} | {100 * width:.1f}"
    return f"| {name} | {100 * change:+.0f} | {shown} |"


def main() -> None:
    """The table."""
    rng = np.random.default_rng(0)
    print("| problems, samples, how many differ | true change (points) | claimed | claimed wrongly | interval holds it |")
    print("|---|---|---|---|---|")
    for n in (12, 50, 200, 1000):
        for differ in (0.05, 0.2, 0.5):
            for change in (0.0, 0.05):
                print(line(f"{n} x 1, {differ:.0%}", change, one_sample(n, differ, change, rng)), flush=True)
        for change in (0.0, 0.05):
            print(line(f"{n} x 4", change, four_samples(n, change, rng)), flush=True)


if __name__ == "__main__":
    main()
