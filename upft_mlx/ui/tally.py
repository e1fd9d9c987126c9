"""What a view knows about an evaluation: growing counts and the latest answers. No Rich here."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

from upft_mlx.evaluation.stats import accuracy_interval, paired_difference
from upft_mlx.events import Graded, Side
from upft_mlx.quantities import accuracy, points

REMEMBERED = 1024
"""Answers of base that wait for tuned's."""
RECENT = 32
"""Pairs that the view shows in turns."""
TURN = 3.0
"""Seconds that it shows each."""

Place = tuple[str, int]
"""A problem and which of its samples."""


class Tally:
    """One benchmark's graded completions, counted as they come."""

    def __init__(self, expected: int) -> None:
        self.expected = expected
        """Completions per side."""
        self.gained, self.lost = 0, 0
        """Completions wrong on base and right on tuned, and the reverse."""
        self._correct: dict[Side, dict[Place, bool]] = {"base": {}, "tuned": {}}
        self._right: dict[Side, int] = {"base": 0, "tuned": 0}
        self._tokens: dict[Side, dict[Place, int]] = {"base": {}, "tuned": {}}
        self._texts: dict[str, tuple[int, str]] = {}
        """What was worked out last, and after how many events: a frame is drawn more often than answers come."""
        self._events = 0

    def add(self, event: Graded) -> None:
        """Count a completion; a repeated one replaces its predecessor."""
        place, graded = (event.problem_id, event.sample), self._correct[event.side]
        self._events += 1
        self._count_flip(place, -1)
        self._right[event.side] += event.correct - graded.get(place, False)
        graded[place] = event.correct
        self._tokens[event.side][place] = event.tokens
        self._count_flip(place, 1)

    def _count_flip(self, place: Place, by: int) -> None:
        base, tuned = self._correct["base"].get(place), self._correct["tuned"].get(place)
        if base is not None and tuned is not None:
            self.gained += by * (tuned and not base)
            self.lost += by * (base and not tuned)

    def done(self, side: Side) -> int:
        """Completions graded."""
        return len(self._correct[side])

    @property
    def share(self) -> float:
        """How far it is, 0 to 1: of the sides that have begun."""
        begun = [self.done(side) for side in ("base", "tuned") if self.done(side)]
        return sum(begun) / (len(begun) * self.expected) if begun and self.expected else 0.0

    def accuracy(self, side: Side, *, paired: bool = False) -> str:
        """The share that is right so far with its interval, as at the end; empty before the first.

        `paired`: over what both sides have answered, once both have begun: they are not at the same problem, and an
        accuracy over easier ones would look like a difference.
        """
        return self._remembered(f"{side} {paired}", lambda: self._accuracy(side, paired))

    def _accuracy(self, side: Side, paired: bool) -> str:
        graded = self._correct[side]
        both = self._correct["base"].keys() & self._correct["tuned"].keys()
        ordered = sorted(both if paired and both else graded)
        if not ordered:
            return ""
        problems = [[graded[place] for place in group] for _, group in groupby(ordered, key=lambda place: place[0])]
        mean = sum(sum(samples) / len(samples) for samples in problems) / len(problems)
        return accuracy(mean, accuracy_interval(problems))

    def difference(self) -> str:
        """Tuned - base in points with its interval, over what both have answered; empty before two of those."""
        return self._remembered("difference", self._difference)

    def _difference(self) -> str:
        base, tuned = self._correct["base"], self._correct["tuned"]
        both = sorted(base.keys() & tuned.keys())
        groups = [list(group) for _, group in groupby(both, key=lambda place: place[0])]
        if len(groups) < 2:
            return ""
        means = ([sum(side[p] for p in group) / len(group) for group in groups] for side in (base, tuned))
        found = paired_difference(*means)
        return f"{points(found.delta)} [{points(found.ci95[0])}, {points(found.ci95[1])}]"

    def lengths(self, arrow: str) -> str:
        """Mean tokens of base and tuned; empty before both have answered."""
        known = self._tokens["base"], self._tokens["tuned"]
        both = known[0].keys() & known[1].keys()
        base, tuned = ([side[place] for place in both] if both else [*side.values()] for side in known)
        if not base or not tuned:
            return f"{sum(base) / len(base):.0f}" if base else ""
        return f"{sum(base) / len(base):.0f}{arrow}{sum(tuned) / len(tuned):.0f}"

    def _remembered(self, what: str, work: Callable[[], str]) -> str:
        at, text = self._texts.get(what, (-1, ""))
        if at != self._events:
            text = work()
            self._texts[what] = self._events, text
        return text


@dataclass(frozen=True)
class Pair:
    """One problem and sample with the answers that are known: of both sides, or of one."""

    base: Graded | None
    tuned: Graded | None

    @property
    def latest(self) -> Graded:
        """The side that was graded last."""
        event = self.tuned or self.base
        assert event is not None
        return event


class Answers:
    """The answers given last, each beside the other side's."""

    def __init__(self) -> None:
        self._base: OrderedDict[tuple[str, Place], Graded] = OrderedDict()
        self._single: deque[Pair] = deque(maxlen=RECENT)
        self._pairs: deque[Pair] = deque(maxlen=RECENT)
        self._benchmark = ""
        self.flips: deque[Pair] = deque(maxlen=RECENT)
        """Pairs on which base and tuned disagree, the newest last."""

    def add(self, event: Graded) -> None:
        """Take an answer; those of an earlier process are only remembered for the other side."""
        if event.benchmark != self._benchmark:
            self._benchmark = event.benchmark
            self._single.clear()
            self._pairs.clear()
        place = event.benchmark, (event.problem_id, event.sample)
        pair = Pair(event, None) if event.side == "base" else Pair(self._base.pop(place, None), event)
        if event.side == "base":
            self._base[place] = event
            if len(self._base) > REMEMBERED:
                self._base.popitem(last=False)
        elif pair.base is not None and pair.base.correct != event.correct:
            self.flips.append(pair)
        if not event.resumed:
            (self._pairs if pair.base and pair.tuned else self._single).append(pair)

    def shown(self, now: float) -> Pair | None:
        """The pair to show now: the last ones in turns, of both sides where the benchmark in hand has some."""
        pairs = self._pairs or self._single
        return pairs[int(now / TURN) % len(pairs)] if pairs else None
