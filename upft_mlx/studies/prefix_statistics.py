"""What `analyze` found, in numbers, words and curves. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from upft_mlx.evaluation.stats import PairedDifference, paired_difference
from upft_mlx.forecasting import page
from upft_mlx.forecasting.estimate import Forecast, Mean, mean_of
from upft_mlx.quantities import accuracy as percent_of
from upft_mlx.quantities import difference, many
from upft_mlx.recipe.studies import Analyze
from upft_mlx.results.figures import Panel, Point, Series, curves
from upft_mlx.rows import from_plain, to_plain

LEAST = 6
"""The fewest questions that can show a difference: with 5 that all differ alike, the exact test's p is 2 / 2 ** 5."""
LONGEST = 32
"""Tokens; no longer prefix is recommended: the paper found 8 to 32 within noise, and each token costs."""


@dataclass(frozen=True)
class RolloutStart:
    """A prefix from which rollouts start, and the share of them that is right."""

    problem_id: str
    arm: Literal["both", "correct", "incorrect"]
    length: int
    ids: list[int]
    score: float = 0.0


@dataclass(frozen=True)
class SelfConsistency(Mean):
    """Samples per distinct prefix of one length, 1 to the number of samples: the mean over questions."""

    length: int
    """In tokens."""


@dataclass(frozen=True)
class PrefixAccuracy:
    """How often rollouts from prefixes of one length are right, by what the prefix was taken from."""

    length: int
    """In tokens."""
    problems: int
    """The questions of which neither trajectory has ended at this length."""
    correct: Mean
    """The share of right rollouts from correct trajectories."""
    incorrect: Mean
    """The same from incorrect ones."""
    difference: PairedDifference
    """Correct minus incorrect over the same questions, -1 to 1."""


@dataclass(frozen=True)
class Recommendation:
    """A prefix length, and why."""

    length: int | None
    """None: none is recommended."""
    reason: str


@dataclass(frozen=True)
class Analysis:
    """The content of analysis.json."""

    samples: int
    """Prefixes of each question."""
    rollouts: int
    """Continuations of each prefix."""
    self_consistency: tuple[SelfConsistency, ...]
    """By length."""
    accuracy: tuple[PrefixAccuracy, ...]
    """By length; empty where it could not be measured."""
    recommended: Recommendation
    forecast: Forecast | None = None
    """What the rules that look at prefixes alone would change; None with fewer than 8 answers."""
    tokens_sampled: int = 0

    def dump(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return to_plain(self)

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> Analysis:
        """From what `dump` gave; see `from_plain`."""
        return from_plain(cls, data, "analysis.json")


def summarize(settings: Analyze, prefixes: Iterable[tuple[str, list[int]]], starts: Sequence[RolloutStart]) -> Analysis:
    """The statistics, without the tokens that they took.

    Args:
        settings: the recipe's.
        prefixes: (problem, ids) of each sampled prefix, -1 for the end of a solution.
        starts: scored; empty where there were no answers, or no question had both a right and a wrong trajectory.
    """
    accuracy = prefix_accuracy(settings.lengths, starts)
    return Analysis(
        samples=settings.samples,
        rollouts=settings.rollouts,
        self_consistency=self_consistency(settings.lengths, prefixes, settings.samples),
        accuracy=accuracy,
        recommended=recommend(accuracy),
    )


def self_consistency(
    lengths: Sequence[int], prefixes: Iterable[tuple[str, list[int]]], most: int
) -> tuple[SelfConsistency, ...]:
    """Samples per distinct prefix, 1 to `most`, for each length: mean over questions with its interval."""
    distinct: dict[str, list[set[tuple[int, ...]]]] = {}
    samples: dict[str, int] = {}
    positive = [length for length in lengths if length > 0]
    for problem_id, ids in prefixes:
        sets = distinct.setdefault(problem_id, [set() for _ in positive])
        samples[problem_id] = samples.get(problem_id, 0) + 1
        for found, length in zip(sets, positive, strict=True):
            found.add(tuple(ids[:length]))
    result = []
    for index, length in enumerate(positive):
        ratios = [samples[name] / len(sets[index]) for name, sets in distinct.items()]
        mean = mean_of(ratios, (1.0, float(most)))
        result.append(SelfConsistency(mean.mean, mean.ci95, length))
    return tuple(result)


def prefix_accuracy(lengths: Sequence[int], starts: Sequence[RolloutStart]) -> tuple[PrefixAccuracy, ...]:
    """For each length the share of right rollouts per arm, and their paired difference over the questions.

    A question counts at the lengths at which neither of its trajectories has ended.
    """
    scores: dict[tuple[str, int], dict[str, float]] = {}
    for start in starts:
        arms = ("correct", "incorrect") if start.arm == "both" else (start.arm,)
        scores.setdefault((start.problem_id, start.length), {}).update(dict.fromkeys(arms, start.score))
    result = []
    for length in sorted({0, *lengths}):
        pairs = [s for (_, at), s in scores.items() if at == length and len(s) == 2]
        if len(pairs) < 2:
            continue
        correct, incorrect = ([pair[arm] for pair in pairs] for arm in ("correct", "incorrect"))
        means = mean_of(correct, (0.0, 1.0)), mean_of(incorrect, (0.0, 1.0))
        result.append(PrefixAccuracy(length, len(pairs), *means, paired_difference(incorrect, correct)))
    return tuple(result)


def recommend(accuracy: Sequence[PrefixAccuracy]) -> Recommendation:
    """The longest prefix up to which the arms cannot be told apart.

    Arms are told apart where the interval of their paired difference lies above 0. Lengths with fewer than `LEAST`
    questions do not count: there it never does.
    """
    rows = [row for row in accuracy if row.length > 0 and row.problems >= LEAST]
    if not rows:
        return Recommendation(
            None,
            "prefixes of right and wrong samples cannot be compared: that takes "
            f"{many(LEAST, 'question')} with an answer that the model solves in one trajectory and not in another, "
            "but there were fewer; raise analyze.problems or analyze.trajectories. The paper found 8 to 32 tokens "
            "within noise",
        )
    alike = list(itertools.takewhile(lambda row: row.difference.ci95[0] <= 0, rows))
    apart = rows[len(alike)] if len(alike) < len(rows) else None
    if not alike:
        assert apart is not None
        return Recommendation(
            None,
            f"already at t = {apart.length}, prefixes of right and wrong samples differ ({_points(apart)}), so no "
            "length keeps them alike: let `prefix.selection` choose among several samples",
        )
    best = max((row for row in alike if row.length <= LONGEST), key=lambda row: row.length, default=alike[0])
    text = (
        f"up to {many(best.length, 'token')}, no difference between prefixes of right and wrong samples is measurable"
    )
    text += f" ({_points(best)} at {best.length}, {many(best.problems, 'question')})"
    if apart is not None:
        return Recommendation(best.length, f"{text}; at {apart.length} they differ ({_points(apart)})")
    text += "; longer ones cost more and were no better in the paper"
    return Recommendation(best.length, text)


def _points(row: PrefixAccuracy, unit: str = " points") -> str:
    return difference(row.difference.delta, row.difference.ci95, unit)


def markdown(analysis: Analysis) -> str:
    """The tables."""
    recommended = analysis.recommended
    shown = recommended.length if recommended.length is not None else "none"
    lines = [
        f"Recommended `prefix.length`: **{shown}**. {recommended.reason[:1].upper()}{recommended.reason[1:]}.",
        "",
        f"Prefix self-consistency: {many(analysis.samples, 'sample')} per question divided by the number of distinct "
        "prefixes, mean over questions and 95 % interval.",
        "",
        "| t (tokens) | samples per distinct prefix |",
        "|---|---|",
        *(
            f"| {row.length} | {row.mean:.2f} [{row.ci95[0]:.2f}, {row.ci95[1]:.2f}] |"
            for row in analysis.self_consistency
        ),
    ]
    if analysis.accuracy:
        lines += [
            "",
            f"Prefix accuracy: {many(analysis.rollouts, 'rollout')} from the prefix of one correct and one incorrect "
            "trajectory per question; share of right ones, 95 % interval over questions.",
            "",
            "| t (tokens) | questions | from a correct one | from an incorrect one | difference (points) |",
            "|---|---|---|---|---|",
            *(
                f"| {row.length} | {row.problems} | {percent_of(row.correct.mean, row.correct.ci95)} "
                f"| {percent_of(row.incorrect.mean, row.incorrect.ci95)} | {_points(row, '') if row.length else ''} |"
                for row in analysis.accuracy
            ),
        ]
    if analysis.forecast:
        told = (
            "What the rules that look at prefixes alone are worth, from the same trajectories. `upft forecast` has all:"
        )
        lines += ["", told, "", page.markdown(analysis.forecast).rstrip()]
    return "\n".join(lines) + "\n"


def figure(analysis: Analysis) -> str:
    """The curves as SVG."""
    panels = [
        Panel(
            "Prefix self-consistency",
            "samples per distinct prefix",
            [Series("", [_point(row.length, row) for row in analysis.self_consistency])],
        )
    ]
    if analysis.accuracy:
        arms = [
            Series(f"from {article} {arm} sample", [_point(row.length, getattr(row, arm)) for row in analysis.accuracy])
            for article, arm in (("a", "correct"), ("an", "incorrect"))
        ]
        panels.append(Panel("Prefix accuracy", "right rollouts", arms, percent=True))
    if analysis.forecast:
        panels.append(page.panel(analysis.forecast))
    return curves(panels, "prefix length t (tokens)")


def _point(x: float, value: Mean) -> Point:
    return Point(x, value.mean, *value.ci95)
