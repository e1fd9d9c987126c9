"""The estimator: what the prefixes that a rule picks are worth, from samples that were graded. Pure.

For each problem with an answer, n full solutions. A rule picks one of them. Its worth is how often solutions that begin
with the picked prefix are right; the forecast is that minus how often all n are right, mean over problems.

A rule that looks at prefixes alone (`first`, `consensus`, `prefix_confidence`, `probe`) never sees how its pick goes
on: the pick's own outcome says what the prefix is worth without bias, and the other samples with the same prefix, which
count with it, only make it more certain. A rule that looks at whole solutions (`majority_answer`, `confidence`,
`longest`, `label`) has seen the outcome, or what hangs together with it: it is worth what fresh continuations of the
picked prefix are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from upft_mlx.dataset.selection import prefix_key
from upft_mlx.evaluation.stats import ALPHA, mean_interval, t_quantile
from upft_mlx.quantities import difference
from upft_mlx.recipe.studies import Selection
from upft_mlx.rows import Solution, from_plain

FROM_PREFIXES: tuple[Selection, ...] = ("first", "consensus", "prefix_confidence", "probe")
"""Rules that look at prefixes alone."""
AUTO: tuple[Selection, ...] = ("consensus", "prefix_confidence", "probe")
"""Rules among which `auto` chooses: they sample prefixes alone, and choose among several."""

Fresh = Mapping[tuple[str, int, int], Sequence[bool]]
"""Whether each fresh continuation of a prefix is right: by problem, the first sample that begins so, and length."""


@dataclass(frozen=True)
class Graded:
    """One problem's samples."""

    problem_id: str
    solutions: Sequence[Solution]
    right: Sequence[bool]
    """Whether each solution is."""

    @property
    def mean(self) -> float:
        """The share of right ones."""
        return sum(self.right) / len(self.right)

    def mean_after(self, sample: int) -> float:
        """The share of right ones after a sample; of all, where none comes after it.

        `label` picks the first right sample and leaves out problems without one. So a problem that has a pick had luck,
        but not behind its pick.
        """
        later = self.right[sample + 1 :]
        return sum(later) / len(later) if later else self.mean

    def worth(self, sample: int, length: int, fresh: Fresh | None) -> float:
        """The success of the prefix of one sample: of fresh continuations, or of all samples that begin with it."""
        solution = self.solutions[sample]
        alike = self.alike(solution, length)
        if fresh is None:
            return sum(self.right[number] for number in alike) / len(alike)
        if prefix_key(solution, length)[1]:  # the prefix is the whole solution: nothing can follow
            return float(self.right[sample])
        marks = fresh[self.problem_id, alike[0], length]
        return sum(marks) / len(marks)

    def alike(self, solution: Solution, length: int) -> list[int]:
        """The numbers of the samples that begin with a solution's prefix."""
        key = prefix_key(solution, length)
        return [number for number, other in enumerate(self.solutions) if prefix_key(other, length) == key]


@dataclass(frozen=True)
class Mean:
    """A mean over problems with its 95 % interval."""

    mean: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class RuleForecast:
    """What one rule's picks at one prefix length are worth."""

    selection: str
    length: int
    """The prefixes' length, in tokens."""
    problems: int
    """Those for which the rule picks a sample."""
    problem_coverage: float
    """Their share of all problems."""
    prefix_coverage: Mean | None
    """The share of a problem's samples that begin with the picked prefix."""
    accuracy: Mean | None
    """How often solutions that begin with it are right; None where fewer than two problems have a pick."""
    forecast: Mean | None
    """The same minus how often all samples of the problem are right, -1 to 1."""
    greedy: Mean | None
    """The same minus how often solutions are right that begin with the prefix that greedy decoding takes; None for
    `first`, which prefers no prefix."""
    tokens_per_problem: float
    """Sampled to train with the rule, without what the forecast itself samples."""


def weigh(
    selection: str,
    length: int,
    problems: Sequence[Graded],
    picks: Sequence[int | None],
    fresh: Fresh,
    greedy: Mapping[str, float],
    tokens_per_problem: float,
) -> RuleForecast:
    """The forecast of one rule at one length.

    Args:
        selection: the rule.
        length: of the prefixes, in tokens.
        problems: all problems with answers.
        picks: for each the sample that the rule picks, None where it picks none.
        fresh: continuations of the picks, for a rule that looks at whole solutions.
        greedy: by problem the success of the prefix that greedy decoding takes; empty where it was not sampled.
        tokens_per_problem: see `RuleForecast`.
    """
    continued = None if selection in FROM_PREFIXES else fresh
    chosen = [(problem, pick) for problem, pick in zip(problems, picks, strict=True) if pick is not None]
    worth = [problem.worth(pick, length, continued) for problem, pick in chosen]
    means = [problem.mean_after(pick) if selection == "label" else problem.mean for problem, pick in chosen]
    beyond = [value - mean for value, mean in zip(worth, means, strict=True)]
    compared = [
        value - greedy[p.problem_id] for value, (p, _) in zip(worth, chosen, strict=True) if p.problem_id in greedy
    ]
    shares = [len(p.alike(p.solutions[pick], length)) / len(p.solutions) for p, pick in chosen]
    return RuleForecast(
        selection=selection,
        length=length,
        problems=len(chosen),
        problem_coverage=len(chosen) / len(problems),
        prefix_coverage=_mean(shares, (0.0, 1.0)),
        accuracy=_mean(worth, (0.0, 1.0)),
        forecast=_mean(beyond, (-1.0, 1.0)),
        greedy=None if selection == "first" else _mean(compared, (-1.0, 1.0)),
        tokens_per_problem=tokens_per_problem,
    )


def _mean(values: Sequence[float], bounds: tuple[float, float]) -> Mean | None:
    return mean_of(values, bounds) if len(values) > 1 else None


def mean_of(values: Sequence[float], bounds: tuple[float, float]) -> Mean:
    """The mean of values within `bounds`, one per problem."""
    return Mean(math.fsum(values) / len(values), mean_interval(values, bounds))


@dataclass(frozen=True)
class Advice:
    """What to do, and why."""

    selection: str | None
    """The rule to train with; None: do not train."""
    length: int | None
    text: str
    remark: str = ""
    """What helps without training, if anything measurably does."""


def greedy_gain(samples: Sequence[Graded], greedy: Sequence[Graded], temperature: float) -> str:
    """What greedy decoding gains over the samples of the same problems; empty where its interval is not above 0.

    Training on a model's own samples makes likely tokens likelier, and so does a lower temperature, which is free.

    Args:
        samples: of each problem.
        greedy: the greedy solution of each of these problems, or of none.
        temperature: of the samples.
    """
    right = {own.problem_id: own.mean for own in greedy}
    gained = _mean([right[own.problem_id] - own.mean for own in samples if own.problem_id in right], (-1.0, 1.0))
    if gained is None or gained.ci95[0] <= 0:
        return ""
    told = f"without training, greedy answers are right more often than samples at T = {temperature:g}"
    return f"{told} ({points(gained)} points): try a lower temperature first"


def advise(rules: Sequence[RuleForecast], answers: int) -> Advice:
    """The rule and length with the best lower bound among those that need no answers beyond these, or not to train.

    The best of many forecasts is above zero by chance more often than one is. So it must be above zero with the wider
    interval with which all of them hold together (Bonferroni).

    Args:
        rules: all forecasts.
        answers: problems that they were made from.
    """
    usable = [rule for rule in rules if rule.selection not in ("first", "label") and rule.forecast is not None]
    if not usable:
        return Advice(None, None, f"no rule picks a sample for two of the {answers} problems: nothing can be forecast")
    clear = [rule for rule in usable if _of(rule).mean > _half(rule, len(usable))]
    if clear:
        best = max(clear, key=lambda rule: _of(rule).ci95[0])
        lower = best.greedy is not None and best.greedy.ci95[1] < 0
        text = f"train with prefix.selection: {best.selection} and prefix.length: {best.length}"
        text += f" ({points(_of(best))} points)"
        if lower:
            assert best.greedy is not None
            text += (
                f"; greedy accuracy would fall ({points(best.greedy)}): what greedy decoding takes is better than what "
                "the rule picks"
            )
        return Advice(best.selection, best.length, text)
    hopeful = max(usable, key=lambda rule: _of(rule).mean)
    value = _of(hopeful)
    name = f"the best forecast is {hopeful.selection} at t = {hopeful.length}, {points(value)} points"
    if value.mean <= 0:
        return Advice(None, None, f"do not train: the forecast is negative or zero with {answers} answers; {name}")
    needed = max(answers + 1, round(answers * (_half(hopeful, len(usable)) / value.mean) ** 2))
    chance = f", the best of {len(usable)} and so more likely above zero by chance" if value.ci95[0] > 0 else ""
    return Advice(
        None,
        None,
        f"do not train: no forecast is distinguishable from zero with {answers} answers; {name}{chance}; about "
        f"{needed:,} answers would settle it",
    )


def chosen_by_auto(rules: Sequence[RuleForecast], length: int) -> RuleForecast | None:
    """The rule that `prefix.selection: auto` takes: of `AUTO` that with the best lower bound.

    None where none is above 0, as the best of several (`advise`), or where what greedy decoding takes is better than
    what each such rule picks.
    """
    usable = [r for r in rules if r.selection in AUTO and r.length == length and r.forecast is not None]
    clear = [r for r in usable if _of(r).mean > _half(r, len(usable)) and (r.greedy is None or r.greedy.ci95[1] >= 0)]
    return max(clear, key=lambda rule: _of(rule).ci95[0], default=None)


def _half(rule: RuleForecast, together: int) -> float:
    """How far the interval of a forecast reaches below its mean, if this many intervals must hold at once."""
    df = max(1, rule.problems - 1)
    return (_of(rule).mean - _of(rule).ci95[0]) * t_quantile(df, ALPHA / together) / t_quantile(df)


def _of(rule: RuleForecast) -> Mean:
    assert rule.forecast is not None
    return rule.forecast


def points(value: Mean) -> str:
    """In percentage points with the interval."""
    return difference(value.mean, value.ci95)


@dataclass(frozen=True)
class Forecast:
    """The content of forecast.json."""

    problems: int
    """With answers, that were sampled."""
    samples: int
    """Full solutions of each."""
    base: Mean
    """The share of right ones."""
    greedy_base: Mean | None
    """The share of problems that greedy decoding solves; None where it was not asked."""
    rules: tuple[RuleForecast, ...]
    probe: dict[int, dict[str, Any] | None]
    """By prefix length the probe's `auc` on problems that it was not fitted on."""
    advice: Advice
    tokens_sampled: int

    def dump(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> Forecast:
        """From what `dump` gave; see `from_plain`."""
        return from_plain(cls, data, "forecast.json")
