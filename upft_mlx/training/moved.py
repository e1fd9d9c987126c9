"""How far training moved a model: what a broken run looks like before any accuracy is known. Pure.

Base and tuned begin to answer the same few prompts greedily. A model that forgot how it answers begins none of them as
before; one that learned to stop early would stop within what base says first. How long whole answers are takes too long
to find out here: the evaluation says it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from upft_mlx.quantities import many, percent
from upft_mlx.rows import from_plain

PROMPTS = 8
OPENING = 12
"""Tokens of an answer in which its opening is looked for."""
AFTER, MOST = 8, 40
"""Tokens of base's answers that are examined: `prefix.length` and `AFTER` more, at most `MOST`. A learned EOS shows
right after the prefix. This takes a few seconds; whole answers would take minutes on a CPU."""
WORDS = 3
"""Words of an answer that are its opening."""
TOP = 5
"""Openings that are shown."""
SHORTER = 0.1
"""Share by which answers may become shorter, and the chance to stop early larger, before the verdict warns."""


@dataclass(frozen=True)
class Answered:
    """The beginning of a greedy answer."""

    ids: list[int]
    text: str


@dataclass(frozen=True)
class Place:
    """What tells tuned from base after a part of base's answer."""

    kl: float
    """KL(base || tuned), nats."""
    stop: tuple[float, float]
    """The probability that base, and that tuned, ends the answer here, where base does not."""


@dataclass(frozen=True)
class Beginnings:
    """How one model's answers begin."""

    stop: float
    """The chance to end an answer within the first positions of base's."""
    openings: list[tuple[str, float]]
    """The most frequent ones with their shares."""
    distinct: int
    """How many there are."""


@dataclass(frozen=True)
class Movement:
    """How far tuned is from base: the content of movement.json."""

    prompts: int
    kl: float
    """KL(base || tuned), nats per position."""
    kl_by_position: list[float]
    same_first_token: float
    """A share."""
    within: int
    """Positions that were looked at."""
    base: Beginnings
    tuned: Beginnings
    openings_kept: int
    """How many of base's openings tuned has as well."""
    source: str
    """What the prompts are."""

    def dump(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> Movement:
        """From what `dump` gave; see `from_plain`."""
        return from_plain(cls, data, "movement.json")


def looked_at(prefix: int) -> int:
    """Tokens of each of base's answers that are looked at after training on prefixes of this length."""
    return max(OPENING, min(MOST, prefix + AFTER))


def opening(text: str) -> str:
    """The first words of an answer, without characters that cannot be seen."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[:400]).split()[:WORDS])


def summarize(
    base: Sequence[Answered], tuned: Sequence[Answered], along: Sequence[Sequence[Place]], source: str
) -> Movement:
    """How far tuned is from base.

    Args:
        base: its answers.
        tuned: its answers to the same prompts.
        along: the first positions of each of base's answers.
        source: what the prompts are.
    """
    kl = [[place.kl for place in answer] for answer in along]
    longest = max(map(len, kl), default=0)
    same = [b.ids[:1] == t.ids[:1] for b, t in zip(base, tuned, strict=True)]
    kept = {opening(answer.text) for answer in base} & {opening(answer.text) for answer in tuned}
    stops = [
        _mean([1 - math.prod(1 - place.stop[number] for place in answer) for answer in along]) for number in (0, 1)
    ]
    return Movement(
        prompts=len(base),
        kl=_mean([value for row in kl for value in row]),
        kl_by_position=[_mean([row[place] for row in kl if len(row) > place]) for place in range(longest)],
        same_first_token=_mean(same),
        within=longest,
        base=_beginnings(base, stops[0]),
        tuned=_beginnings(tuned, stops[1]),
        openings_kept=len(kept),
        source=source,
    )


def _beginnings(answers: Sequence[Answered], stop: float) -> Beginnings:
    counts = Counter(opening(answer.text) for answer in answers)
    return Beginnings(stop, [(text, count / len(answers)) for text, count in counts.most_common(TOP)], len(counts))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def warnings(found: Movement) -> list[str]:
    """What should make a reader suspicious, for the verdict."""
    base, tuned = found.base, found.tuned
    where = f"on {found.prompts} {found.source}"
    lines = []
    if tuned.stop > base.stop + SHORTER:
        lines.append(
            f"warning: tuned would end {percent(tuned.stop, 0)} of base's answers within {found.within} tokens, "
            f"base {percent(base.stop, 0)} {where}: it has learned to stop early"
        )
    if not found.openings_kept:
        lines.append(
            f"warning: no tuned answer begins as one of base's does {where}: it may have forgotten how it answers; "
            "lower train.learning_rate, or train fewer steps"
        )
    return lines


def shorter(name: str, base: float, tuned: float) -> list[str]:
    """A warning where a benchmark's answers became over 10 % shorter; lengths are means in tokens."""
    if tuned >= (1 - SHORTER) * base:
        return []
    return [
        f"warning: {name}: tuned answers are {percent(1 - tuned / base, 0)} shorter ({base:.0f} to {tuned:.0f} "
        "tokens): it may have learned to stop early"
    ]


def in_words(found: Movement) -> str:
    """One line."""
    base, tuned = found.base, found.tuned
    return (
        f"moved on {found.prompts} {found.source} (greedy): KL {found.kl:.3g} nats per position, first token "
        f"the same in {percent(found.same_first_token, 0)}, chance to stop within {found.within} tokens "
        f"{percent(base.stop, 0)} to {percent(tuned.stop, 0)}, "
        f"{found.openings_kept} of {many(base.distinct, 'opening')} kept"
    )
