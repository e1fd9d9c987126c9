"""What summary.json says of one benchmark: what base and tuned scored, and what tells them apart. Pure.

The file has these fields under the same names; what was not measured is left out of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from upft_mlx.recipe.evaluate import EFFECT
from upft_mlx.rows import from_plain, to_plain

Interval = tuple[float, float]
"""A 95 % interval."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """The problems of one level or subject."""

    n: int
    """Problems."""
    accuracy: float
    """A share, 0 to 1."""
    ci95: Interval


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What base or tuned scored. Accuracies and other shares are 0 to 1."""

    n: int
    """Problems."""
    samples: int
    """Completions per problem."""
    temperature: float
    """0 is greedy."""
    accuracy: float
    """The mean over problems of the share of their samples that are right."""
    ci95: Interval
    avg_at_k: dict[str, float] = field(default_factory=dict)
    """{"4": 0.71}: the accuracy, under the name that names its samples."""
    pass_at_k: dict[str, float] = field(default_factory=dict)
    """The chance that one of k samples is right, by k."""
    maj_at_k: dict[str, float] = field(default_factory=dict)
    """The chance that the most frequent answer of k samples is right, by k."""
    mean_tokens: float
    """Tokens of a completion."""
    truncated: float
    """Share of the completions that were cut: at max_tokens, or because they repeated themselves."""
    answer_found: float | None = None
    """Share of the completions in which the grader found an answer; earlier versions did not count it."""
    by_level: dict[str, Group] | None = None
    """None unless the problems have two or more levels."""
    by_subject: dict[str, Group] | None = None

    def at_k(self, kind: str) -> dict[int, float]:
        """`pass_at_k` or `maj_at_k`, by number."""
        return {int(k): value for k, value in getattr(self, f"{kind}_at_k").items()}


@dataclass(frozen=True, kw_only=True)
class Change:
    """Tuned minus base, the mean over problems."""

    delta: float
    ci95: Interval


@dataclass(frozen=True, kw_only=True)
class Paired(Change):
    """What tells tuned from base on the same problems and samples; `delta` is one of accuracy, -1 to 1."""

    p_value: float
    gained: int = 0
    """Completions that are wrong on base and right on tuned."""
    lost: int = 0
    """The reverse."""
    tokens: Change | None = None
    """The change of a completion's length, in tokens."""
    drift: tuple[str, ...] = ()
    """The names of what changed suspiciously (`stats.drift`)."""
    effect: float = EFFECT / 100
    """The smallest difference that matters, a share; earlier versions had this one."""
    until: str = "end"
    """`known`: all intervals are always valid, whenever the evaluation stopped."""


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """What another batch size, and so rounding alone, changed of base's answers."""

    completions: int
    """That were compared."""
    texts: float
    """The share with another text."""
    answers: float
    """The share with another answer."""
    grades: float
    """The share that went from right to wrong or back."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """One benchmark; None where nothing was measured."""

    base: Measured | None = None
    tuned: Measured | None = None
    rounding: Rounding | None = None
    paired: Paired | None = None

    @property
    def measured(self) -> dict[str, Measured]:
        """Base and tuned, as far as they are measured."""
        return {name: one for name in ("base", "tuned") if (one := getattr(self, name)) is not None}

    @property
    def compared(self) -> tuple[Measured, Measured, Paired] | None:
        """Base, tuned and what tells them apart; None before both are measured."""
        if self.base is None or self.tuned is None or self.paired is None:
            return None
        return self.base, self.tuned, self.paired

    def dump(self) -> dict[str, Any]:
        """As in summary.json."""
        return to_plain(self, exclude_none=True)


def load_results(benchmarks: Mapping[str, Any]) -> dict[str, BenchmarkResult]:
    """The benchmarks of a summary.json, by label.

    Raises:
        RowsError: something is missing or of another kind.
    """
    return from_plain(dict[str, BenchmarkResult], benchmarks, "summary.json")


def dump_results(benchmarks: Mapping[str, BenchmarkResult]) -> dict[str, Any]:
    """The benchmarks as in summary.json."""
    return {name: result.dump() for name, result in benchmarks.items()}
