"""How long prompts and solutions are, in tokens: counted where they are known, estimated where not, and which."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from upft_mlx.data.problems import Problem
from upft_mlx.errors import RowsError
from upft_mlx.quantities import many
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import Solution, read_rows
from upft_mlx.rundir import RunDir
from upft_mlx.sampling.chunks import shared_start
from upft_mlx.versions import unfinished

_COUNTED, _LONGEST = 256, 64
"""Texts that are tokenized for a mean, evenly spaced, and for the longest: as many as a large batch has."""
_SOLUTION = 24
"""Tokens from which an answer counts as a written solution."""


@dataclass(frozen=True)
class Prompts:
    """Rendered prompts of a set of questions."""

    count: int
    mean: float
    """Tokens, the shared ones included."""
    longest: Sequence[int]
    """Tokens of the longest ones, in descending order."""
    shared: int
    """Tokens that all of them begin with."""


@dataclass(frozen=True)
class Solutions:
    """Full solutions."""

    mean: float
    """Tokens, without EOS."""
    longest: int
    trained: Sequence[int]
    """Lengths of the longest ones that ended before max_tokens, in descending order: only those are trained on."""
    ended: float
    """Tokens of those, on average, and their share."""
    finished: float
    how: str
    """How this is known."""


def measure_prompts(count: int, text: Callable[[int], str], encode: Callable[[str], Sequence[int]]) -> Prompts:
    """Encode some of `count` texts. `text` gives number `n` of them: they need not be in memory together."""
    spaced = [encode(text(number)) for number in range(0, count, max(1, count // _COUNTED))]
    longest = heapq.nlargest(_LONGEST, range(count), key=lambda number: len(text(number)))
    most = sorted((len(encode(text(number))) for number in longest), reverse=True)
    lengths = [len(ids) for ids in spaced]
    return Prompts(count, sum(lengths) / len(lengths), most, shared_start(spaced, lengths) if count > 1 else 0)


def measure_solutions(
    recipe: Recipe, problems: Sequence[Problem], tokenizer: Any, run: RunDir | None, sampled: Solutions | None
) -> Solutions:
    """What sampled full solutions of these problems will be like, from the best source that there is.

    In this order: the solutions of the run, unless they are the dataset's; `sampled`, of a calibration; the problems'
    answers, where they are written solutions; an assumption.
    """
    limit, lengths = recipe.generate.max_tokens, []
    if run is not None and recipe.method != "annotated":
        begun = [version.folder / run.partial.name for version in unfinished(run, "generate")]
        path = next((path for path in (run.solutions, *begun, run.partial) if path.exists()), None)
        with suppress(RowsError):  # a plan must not fail on what the stage itself will look at
            rows = (row for row in read_rows(path, Solution, growing=True) if row.kind == "full") if path else ()
            lengths = [(min(limit, len(row.completion_ids)), row.finish_reason == "stop") for row in rows]
    if lengths:
        return of_lengths(lengths, f"measured on {many(len(lengths), 'full solution')} of this run")
    if sampled is not None:
        return sampled
    texts = [str(problem.answer) for problem in problems[:: max(1, len(problems) // _COUNTED)] if problem.answer]
    mean = sum(min(limit, len(tokenizer.encode(text))) for text in texts) / max(1, len(texts))
    if mean >= _SOLUTION:
        return Solutions(mean, limit, [limit], mean, 1.0, "assumed to be as long as the solutions in the dataset")
    return Solutions(limit / 2, limit, [limit], limit / 2, 1.0, "assumed: half of generate.max_tokens")


def of_lengths(lengths: Sequence[tuple[int, bool]], how: str) -> Solutions:
    """The lengths of all solutions, estimated from some (tokens, whether it ended before max_tokens)."""
    counts, ended = [count for count, _ in lengths], sorted((count for count, end in lengths if end), reverse=True)
    mean, share = sum(ended) / max(1, len(ended)), len(ended) / len(counts)
    return Solutions(sum(counts) / len(counts), max(counts), ended[:_LONGEST], mean, share, how)
