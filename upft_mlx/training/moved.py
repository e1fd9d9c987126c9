"""How far training moved a model: what a broken run looks like before any accuracy is known. Pure.

Base and tuned answer the same few prompts greedily. A model that learned to stop early gives shorter answers; one that
forgot how it answers begins none of them as before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

WORDS = 3
"""Words of an answer that are its opening."""
TOP = 5
"""Openings that are shown."""
SHORTER = 0.1
"""Share by which answers may become shorter before the verdict warns."""


@dataclass(frozen=True)
class Answered:
    """A greedy answer."""

    ids: list[int]
    text: str
    cut: bool
    """Whether it reached the limit."""


def opening(text: str) -> str:
    """The first words of an answer, without characters that cannot be seen."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[:400]).split()[:WORDS])


def summarize(base: Sequence[Answered], tuned: Sequence[Answered], kl: Sequence[Sequence[float]]) -> dict[str, Any]:
    """How far tuned is from base.

    Args:
        base: its answers.
        tuned: its answers to the same prompts.
        kl: KL(base || tuned), nats, at each of the first positions of each of base's answers.

    Returns:
        `prompts`; `kl` (mean per position) and `kl_by_position`; `same_first_token` (share); of `base` and `tuned`
        `mean_tokens`, `truncated` (share), `openings` (text and share, the most frequent ones first) and `distinct`
        openings; `openings_kept`: how many of base's tuned has as well.
    """
    flat = [value for row in kl for value in row]
    longest = max(map(len, kl), default=0)
    same = [b.ids[:1] == t.ids[:1] for b, t in zip(base, tuned, strict=True)]
    kept = {opening(answer.text) for answer in base} & {opening(answer.text) for answer in tuned}
    return {
        "prompts": len(base),
        "kl": _mean(flat),
        "kl_by_position": [_mean([row[place] for row in kl if len(row) > place]) for place in range(longest)],
        "same_first_token": _mean(same),
        "base": _side(base),
        "tuned": _side(tuned),
        "openings_kept": len(kept),
    }


def _side(answers: Sequence[Answered]) -> dict[str, Any]:
    counts = Counter(opening(answer.text) for answer in answers)
    return {
        "mean_tokens": _mean([len(answer.ids) for answer in answers]),
        "truncated": _mean([answer.cut for answer in answers]),
        "openings": [[text, count / len(answers)] for text, count in counts.most_common(TOP)],
        "distinct": len(counts),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def warnings(found: dict[str, Any]) -> list[str]:
    """What should make a reader suspicious, for the verdict."""
    base, tuned = found["base"], found["tuned"]
    where = f"on {found['prompts']} {found['source']}"
    lines = []
    if tuned["mean_tokens"] < (1 - SHORTER) * base["mean_tokens"]:
        fall = 1 - tuned["mean_tokens"] / base["mean_tokens"]
        lines.append(
            f"warning: tuned answers are {fall:.0%} shorter {where} ({base['mean_tokens']:.0f} to "
            f"{tuned['mean_tokens']:.0f} tokens): it may have learned to stop early"
        )
    if not found["openings_kept"]:
        lines.append(
            f"warning: no tuned answer begins as one of base's does {where}: it may have forgotten how it answers; "
            "lower train.learning_rate, or train fewer steps"
        )
    return lines


def in_words(found: dict[str, Any]) -> str:
    """One line."""
    base, tuned = found["base"], found["tuned"]
    return (
        f"moved on {found['prompts']} {found['source']} (greedy, at most {found['max_tokens']} tokens): "
        f"KL {found['kl']:.3g} nats per position, first token the same in {found['same_first_token']:.0%}, length "
        f"{base['mean_tokens']:.0f} to {tuned['mean_tokens']:.0f} tokens, cut {base['truncated']:.0%} to "
        f"{tuned['truncated']:.0%}, {found['openings_kept']} of {base['distinct']} openings kept"
    )
