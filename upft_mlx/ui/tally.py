"""What a view knows about a benchmark: growing counts. No Rich here."""

from __future__ import annotations

from itertools import groupby

from upft_mlx.evaluation.sequential import always_valid_difference, always_valid_interval
from upft_mlx.evaluation.stats import accuracy_interval, paired_difference
from upft_mlx.events import Graded, Variant
from upft_mlx.quantities import accuracy, difference

Place = tuple[str, int]
"""A problem and which of its samples."""


class Tally:
    """One benchmark's graded completions, counted as they come."""

    def __init__(self, expected: int, may_stop: bool = False) -> None:
        self.expected, self._may_stop = expected, may_stop
        """Completions per variant, and whether the intervals must hold at every moment."""
        self.gained, self.lost = 0, 0
        """Completions wrong on base and right on tuned, and the reverse."""
        self._correct: dict[Variant, dict[Place, bool]] = {"base": {}, "tuned": {}}
        self._tokens: dict[Variant, dict[Place, int]] = {"base": {}, "tuned": {}}
        self._events = self._texts_of = 0
        self._texts: dict[str, str] = {}
        """What was worked out after this many events: a frame is drawn more often than answers come."""

    def add(self, event: Graded) -> bool:
        """Count a completion; a repeated one replaces its predecessor.

        Returns:
            Whether the other variant has answered this problem and sample, and is right where this one is wrong.
        """
        place, graded = (event.problem_id, event.sample), self._correct[event.variant]
        self._events += 1
        self._count_flip(place, -1)
        graded[place] = event.correct
        self._tokens[event.variant][place] = event.tokens
        return self._count_flip(place, 1)

    def _count_flip(self, place: Place, by: int) -> bool:
        base, tuned = self._correct["base"].get(place), self._correct["tuned"].get(place)
        if base is None or tuned is None or base == tuned:
            return False
        self.gained += by * tuned
        self.lost += by * base
        return True

    def done(self, variant: Variant) -> int:
        """Completions graded."""
        return len(self._correct[variant])

    @property
    def share(self) -> float:
        """How far it is, 0 to 1: of the variants that have begun."""
        begun = [self.done(variant) for variant in ("base", "tuned") if self.done(variant)]
        return sum(begun) / (len(begun) * self.expected) if begun and self.expected else 0.0

    def accuracy(self, variant: Variant, *, paired: bool = False) -> str:
        """The share that is right so far with its interval, as at the end; empty before the first.

        `paired`: over what both variants have answered, once both have begun: they are not at the same problem, and an
        accuracy over easier ones would look like a difference.
        """
        graded, what = self._correct[variant], f"{variant} {paired}"
        if not graded or what in self._current():
            return self._texts.get(what, "")
        both = self._correct["base"].keys() & self._correct["tuned"].keys()
        groups = groupby(sorted(both if paired and both else graded), key=lambda place: place[0])
        problems = [[graded[place] for place in group] for _, group in groups]
        mean = sum(sum(samples) / len(samples) for samples in problems) / len(problems)
        interval = accuracy_interval(problems)
        if self._may_stop:
            interval = always_valid_interval([sum(p) / len(p) for p in problems], (0.0, 1.0))
        self._texts[what] = accuracy(mean, interval)
        return self._texts[what]

    def difference(self) -> str:
        """Tuned - base in points with its interval, over what both have answered; empty before two of those."""
        if "difference" in self._current():
            return self._texts["difference"]
        base, tuned = self._correct["base"], self._correct["tuned"]
        both = sorted(base.keys() & tuned.keys())
        groups = [list(group) for _, group in groupby(both, key=lambda place: place[0])]
        text = ""
        if len(groups) >= 2:
            means = [[sum(variant[p] for p in group) / len(group) for group in groups] for variant in (base, tuned)]
            found = (always_valid_difference if self._may_stop else paired_difference)(means[0], means[1])
            text = difference(found.delta, found.ci95)
        self._texts["difference"] = text
        return text

    def lengths(self, arrow: str) -> str:
        """Mean tokens of base and tuned; empty before both have answered."""
        known = self._tokens["base"], self._tokens["tuned"]
        both = known[0].keys() & known[1].keys()
        base, tuned = ([variant[place] for place in both] if both else [*variant.values()] for variant in known)
        if not base or not tuned:
            return f"{sum(base) / len(base):.0f}" if base else ""
        return f"{sum(base) / len(base):.0f}{arrow}{sum(tuned) / len(tuned):.0f}"

    def _current(self) -> dict[str, str]:
        """The texts of this many events; those of fewer are forgotten."""
        if self._texts_of != self._events:
            self._texts, self._texts_of = {}, self._events
        return self._texts
