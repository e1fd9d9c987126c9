"""Base's answers as drafts of tuned's: where they are known, and whether they pay on this device.

A draft changes no answer, but for rounding: tuned reads base's answer many tokens at a time, up to the first one that
it would have drawn differently, with the same random numbers. Where tuned says much the same as base, that is most of
its work; where it does not, reading is work for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from upft_mlx.models.load import Loaded
from upft_mlx.rows import EvaluationRow
from upft_mlx.sampling.decoding import Completion

Place = tuple[str, int]
"""A problem and which of its samples."""
PAYS = 0.9
"""Drafts are used where a token takes at most this share of the time that it takes without them."""


class Drafts:
    """Base's answers as tokens, and the trial that decides whether they are used."""

    def __init__(self, loaded: Loaded, rows: Iterable[EvaluationRow], withheld: str) -> None:
        """`rows`: base's answers that are on the disk; those whose text is `withheld` are of no use."""
        self._loaded = loaded
        self._rows = {(row.problem_id, row.sample): row for row in rows if row.completion != withheld}
        self._ids: dict[Place, list[int]] = {}
        self._seconds = {True: 0.0, False: 0.0}
        self._tokens = {True: 0, False: 0}
        self.drafted = self.accepted = 0
        """Tokens of tuned's answers that had a draft, EOS included; and those of them that were the draft's."""

    def learn(self, places: Sequence[Place], completions: Sequence[Completion]) -> None:
        """Take base's answers to a chunk, to which tuned's come next, in place of those of the chunk before."""
        self._ids = {
            place: made.ids if made.stop_id is None else [*made.ids, made.stop_id]
            for place, made in zip(places, completions, strict=True)
        }

    def of(self, place: Place) -> list[int]:
        """Base's answer; none where it is not known.

        From its text where it was sampled by an earlier process: other tokens of the same text are a worse draft, not a
        wrong one.
        """
        row = self._rows.get(place)
        if place in self._ids or row is None:
            return self._ids.get(place, [])
        ids: list[int] = self._loaded.tokenizer.encode(row.completion, add_special_tokens=False)
        return [*ids, self._loaded.eos_id] if row.finish_reason == "stop" else ids

    @property
    def pay(self) -> bool:
        """Whether to use drafts for the next chunk: tuned's first one is a trial; where base's time is not known, the
        second one, without drafts, is the other half of it.
        """
        if not self._tokens[True]:
            return True
        if not self._tokens[False]:
            return False
        with_them, without = (self._seconds[way] / self._tokens[way] for way in (True, False))
        return with_them <= PAYS * without

    def measured(self, completions: Sequence[Completion], seconds: float, *, drafted: bool) -> None:
        """Count what a chunk of either variant took."""
        tokens = sum(len(made.ids) + (made.stop_id is not None) for made in completions)
        self._seconds[drafted] += seconds
        self._tokens[drafted] += tokens
        if drafted:
            self.drafted += tokens
            self.accepted += sum(made.accepted for made in completions)
