"""How long prompts and solutions are, in tokens: counted where they are known, estimated where not, and which."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from upft_mlx.data.problems import Problem
from upft_mlx.errors import RowsError
from upft_mlx.models.chat import Renderer
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import Solution, read_rows
from upft_mlx.rundir import RunDir
from upft_mlx.sampling.chunks import shared_start
from upft_mlx.versions import unfinished

_COUNTED = 256
"""Questions that are tokenized for a mean, evenly spaced."""
_LONGEST = 64
"""Questions that are tokenized for the longest prompts: those with most characters."""
_SOLUTION = 24
"""Tokens from which an answer counts as a written solution."""


@dataclass(frozen=True)
class Prompts:
    """Rendered prompts of a set of questions."""

    count: int
    mean: float
    """Tokens, the shared ones included."""
    longest: tuple[int, ...]
    """Lengths of the longest prompts (tokens), in descending order."""
    shared: int
    """Tokens that all of them begin with."""

    def first(self, count: int) -> list[int]:
        """Lengths of the `count` longest prompts (tokens)."""
        return first(self.longest, count)


def first(known: Sequence[int], count: int) -> list[int]:
    """The first `count` values; beyond the known ones, all are like the last."""
    return [known[min(number, len(known) - 1)] for number in range(count)]


@dataclass(frozen=True)
class Solutions:
    """Full solutions."""

    mean: float
    """Tokens, without EOS."""
    longest: int
    trained: tuple[int, ...]
    """Lengths of the longest solutions that ended before max_tokens, in descending order: only those are trained on."""
    finished: float
    """Share that ends before max_tokens."""
    how: str
    """How this is known."""


def measure_prompts(count: int, text: Callable[[int], str], renderer: Renderer) -> Prompts:
    """Tokenize some of `count` user turns: for the mean and what is shared evenly spaced ones, and the longest.

    Args:
        count: of the turns.
        text: number `n` of them, from 0; they are looked at one at a time, so that they need not be in memory.
        renderer: makes the prompts.
    """
    sizes = array("L", (len(text(number)) for number in range(count)))
    spaced = [renderer.ids(text(number)) for number in range(0, count, max(1, count // _COUNTED))]
    longest = heapq.nlargest(_LONGEST, range(count), key=sizes.__getitem__)
    lengths = sorted((len(renderer.ids(text(number))) for number in longest), reverse=True)
    shared = shared_start(spaced, [len(ids) for ids in spaced]) if len(spaced) > 1 else 0
    return Prompts(count, sum(map(len, spaced)) / len(spaced), tuple(lengths), shared)


def measure_solutions(
    recipe: Recipe, problems: Sequence[Problem], tokenizer: Any, run: RunDir | None, sampled: Solutions | None
) -> Solutions:
    """What full solutions of these problems will be like, from the best source that there is.

    Args:
        recipe: its `generate.max_tokens` is the limit.
        problems: whose answers may be written solutions.
        tokenizer: the model's.
        run: whose solutions.jsonl is looked at.
        sampled: what a calibration has found on this machine.
    """
    limit = recipe.generate.max_tokens
    lengths: list[tuple[int, bool]] = []  # of what the run has sampled already
    if run is not None:
        begun = [version.folder / run.partial.name for version in unfinished(run, "generate")]
        path = next((path for path in (run.solutions, *begun, run.partial) if path.exists()), None)
        try:
            for solution in read_rows(path, Solution, growing=True) if path else ():
                if solution.kind == "full":
                    lengths.append((min(limit, len(solution.completion_ids)), solution.finish_reason == "stop"))
        except RowsError:
            lengths = []  # a plan must not fail on what the stage itself will look at
    if lengths:
        many = "" if len(lengths) == 1 else "s"
        return of_lengths(lengths, f"measured on {len(lengths)} full solution{many} of this run")
    if sampled is not None:
        return sampled
    step = max(1, len(problems) // _COUNTED)
    texts = [str(problem.answer) for problem in problems[::step] if problem.answer]
    counts = [min(limit, len(tokenizer.encode(text))) for text in texts]
    if counts and sum(counts) / len(counts) >= _SOLUTION:
        how = "assumed to be as long as the solutions in the dataset"
        return Solutions(sum(counts) / len(counts), limit, (limit,), 1.0, how)
    return Solutions(limit / 2, limit, (limit,), 1.0, "assumed: half of generate.max_tokens")


def of_lengths(lengths: Sequence[tuple[int, bool]], how: str) -> Solutions:
    """The lengths of all solutions, estimated from some (tokens, whether it ended before max_tokens)."""
    counts, ended = [count for count, _ in lengths], sorted((count for count, end in lengths if end), reverse=True)
    return Solutions(
        mean=sum(counts) / len(counts),
        longest=max(counts),
        trained=tuple(ended[:_LONGEST]),
        finished=len(ended) / len(counts),
        how=how,
    )
