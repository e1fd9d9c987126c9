"""How answers begin, before and after training: a tree of their first pieces with the share of each branch. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

DEPTH = 12
"""Pieces of an answer that are looked at."""
LEAST = 0.02
"""Share of either variant's answers below which a branch is not shown."""
WIDEST = 6
"""Branches of one place that are shown."""

Pieces = Sequence[str]


@dataclass(frozen=True)
class Branch:
    """What answers go on with, and how many of all do, 0 to 1."""

    text: str
    base: float
    tuned: float
    branches: list[Branch] = field(default_factory=list)


def tree(base: Sequence[Pieces], tuned: Sequence[Pieces]) -> list[Branch]:
    """The branches at the first piece, the most frequent first; pieces that all answers of a branch share are joined.

    Args:
        base: the first pieces (tokens or words) of each of base's answers.
        tuned: the same of tuned; empty where it has not been measured.
    """
    return _branches(base, tuned, 0, (max(1, len(base)), max(1, len(tuned))))


def _branches(base: Sequence[Pieces], tuned: Sequence[Pieces], depth: int, totals: tuple[int, int]) -> list[Branch]:
    if depth >= DEPTH:
        return []
    groups: dict[str, tuple[list[Pieces], list[Pieces]]] = {}
    for variant, answers in enumerate((base, tuned)):
        for pieces in answers:
            if len(pieces) > depth:
                groups.setdefault(pieces[depth], ([], []))[variant].append(pieces)
    found = []
    for text, group in groups.items():
        of_base, of_tuned = (len(answers) / total for answers, total in zip(group, totals, strict=True))
        if max(of_base, of_tuned) < LEAST:
            continue
        end, only = depth + 1, text
        while end < DEPTH:  # the pieces that follow in all of its answers belong to the branch
            following = {pieces[end] if len(pieces) > end else None for answers in group for pieces in answers}
            piece = following.pop() if len(following) == 1 else None
            if piece is None:
                break
            only, end = only + piece, end + 1
        found.append(Branch(only, of_base, of_tuned, _branches(*group, end, totals)))
    return sorted(found, key=lambda branch: -max(branch.base, branch.tuned))[:WIDEST]
