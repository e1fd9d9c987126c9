"""Which solutions are sampled and how each becomes a training row. Pure: nothing is read, written or run.

Paper (arXiv 2503.02875, Eq. 8): a random share p of the problems trains on one full, unverified solution
(structure rows), the rest on the first t tokens of one solution (prefix rows).
"""

from __future__ import annotations

import itertools
import random
import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from upft_mlx.data.problems import Problem
from upft_mlx.errors import ProblemsError
from upft_mlx.models.chat import Renderer
from upft_mlx.quantities import many
from upft_mlx.recipe.schema import Prefix, Recipe
from upft_mlx.rows import Solution, TrainingRow

RowKind = Literal["prefix", "structure", "full"]

_CJK = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0002ebef]")


@dataclass(frozen=True, slots=True)
class Wanted:
    """The solutions to sample of one problem."""

    number: int
    """The problem's number, from 0 in their order."""
    kind: Literal["prefix", "full"]
    samples: int = 1


def structure_numbers(count: int, ratio: float, seed: int) -> frozenset[int]:
    """The problems of D_f: a seeded random share of `count`, rounded to a whole number."""
    return frozenset(random.Random(f"structure/{seed}").sample(range(count), round(ratio * count)))


def structure_of(recipe: Recipe, problems: Sequence[Problem]) -> frozenset[int]:
    """The problems of D_f; where a few answers are used, the problems with these come first, since they are checked."""
    count, ratio = len(problems), recipe.prefix.structure_ratio
    if not recipe.uses_answers:
        return structure_numbers(count, ratio, recipe.seed)
    known = labelled(recipe, problems)
    others = sorted(set(range(count)) - set(known))
    rng, size = random.Random(f"structure/{recipe.seed}"), round(ratio * count)
    return frozenset((rng.sample(known, len(known)) + rng.sample(others, len(others)))[:size])


LEAST_ANSWERS = 8
"""Problems with answers; from fewer nothing can be said about a rule."""


def labelled(recipe: Recipe, problems: Sequence[Problem]) -> list[int]:
    """The numbers of the problems whose answers a forecast uses: the first `forecast.problems` that have one.

    Raises:
        ProblemsError: there are fewer than `LEAST_ANSWERS`.
    """
    with_answer = (number for number, problem in enumerate(problems) if problem.answer is not None)
    numbers = list(itertools.islice(with_answer, recipe.forecast.problems))
    if len(numbers) < LEAST_ANSWERS:
        raise ProblemsError(
            f"a forecast needs at least {LEAST_ANSWERS} problems with answers, found {len(numbers)} of {len(problems)}",
            "name the answer's column with problems.answer, or write a few answers: 32 to 64 are enough",
        )
    return numbers


def beyond_solutions(recipe: Recipe) -> str:
    """What to say if the prefix is longer than a full solution may be; empty if it is not."""
    length, most = recipe.prefix.length, recipe.generate.max_tokens
    if recipe.method != "upft" or length <= most:
        return ""
    return (
        f"prefix.length: {many(length, 'token')}, but full solutions are cut at generate.max_tokens: {most:,}; "
        f"set prefix.length to less than {most:,}, or raise generate.max_tokens"
    )


def ended_early(recipe: Recipe, solutions: Iterable[Solution]) -> str:
    """A note if most solutions end before the prefix does, so that training uses them whole; else empty."""
    lengths = array("L", (len(s.completion_ids) for s in solutions if s.kind == "prefix" or s.finish_reason == "stop"))
    short = sorted(count for count in lengths if count < recipe.prefix.length)
    if recipe.method != "upft" or 2 * len(short) <= len(lengths):
        return ""
    middle = short[len(short) // 2]
    return (
        f"{len(short):,} of {many(len(lengths), 'solution')} end before prefix.length: "
        f"{many(recipe.prefix.length, 'token')}, and train whole; half of them within {middle:,}: for prefixes, "
        f"set prefix.length to {max(1, middle // 2)} or less"
    )


_WORDS = 4
"""An answer of fewer words is a result and no worked solution."""


def check_problems(recipe: Recipe, problems: Sequence[Problem]) -> None:
    """Refuse problems that the recipe's method or selection cannot work with.

    Raises:
        ProblemsError: answers are needed, and problems have none; or structure_only, and no problem was drawn.
    """
    unlabelled = (problem.id for problem in problems if problem.answer is None)
    if recipe.needs_labels and (shown := list(itertools.islice(unlabelled, 5))):
        missing = len(shown) + sum(1 for _ in unlabelled)
        by_method = recipe.method in ("rft", "annotated")
        field, value = ("method", recipe.method) if by_method else ("prefix.selection", "label")
        more = ", ..." if missing > 5 else ""
        raise ProblemsError(
            f"{value} needs answers, {missing:,} of {many(len(problems), 'problem has', 'problems have')} none: "
            f"{', '.join(shown)}{more}",
            "name the answer's column with problems.answer, or use method: upft without labels",
            field=field,
        )
    bare = [p.id for p in problems if len((p.answer or "").split()) < _WORDS] if recipe.method == "annotated" else []
    if bare:
        raise ProblemsError(
            f"annotated trains on worked solutions; {len(bare):,} of "
            f"{many(len(problems), 'answer has', 'answers have')} fewer than {_WORDS} words, "
            f"such as that of {bare[0]}",
            "name the column that has the solutions with problems.answer, or use another method",
            field="method",
        )
    if recipe.uses_answers:
        labelled(recipe, problems)
    ratio, count = recipe.prefix.structure_ratio, len(problems)
    if recipe.method == "structure_only" and round(ratio * count) == 0:
        raise ProblemsError(
            f"{ratio} of {many(count, 'problem')} rounds to zero",
            "raise prefix.structure_ratio or problems.limit",
            field="structure_only",
        )


def wanted(recipe: Recipe, count: int) -> list[Wanted]:
    """The solutions of `count` problems that the recipe's method and selection need, in the problems' order."""
    samples = recipe.generate.samples
    if recipe.samples_full:
        return [Wanted(number, "full", samples) for number in range(count)]
    full = structure_numbers(count, recipe.prefix.structure_ratio, recipe.seed)
    if recipe.method == "structure_only":
        return [Wanted(number, "full") for number in sorted(full)]
    return [Wanted(number, "full") if number in full else Wanted(number, "prefix", samples) for number in range(count)]


def most_sampled(recipe: Recipe, kind: Literal["prefix", "full"]) -> int:
    """The most tokens that are sampled for a solution of this kind."""
    return recipe.prefix.length if kind == "prefix" else recipe.generate.max_tokens


def most_supervised(prefix: Prefix) -> int:
    """The most ids of a prefix row that are supervised: `prefix.length` tokens, and EOS if `prefix.eos` says so."""
    return prefix.length + prefix.eos


def why_dropped(solution: Solution, prefix: Prefix) -> str | None:
    """Why a solution is left out of the dataset; None if it is not."""
    if solution.kind == "full" and solution.finish_reason == "length":
        return "cut at max_tokens"
    if prefix.drop_cjk and _CJK.search(solution.completion):
        return "CJK characters"
    if prefix.require_boxed and solution.kind == "full" and "\\boxed" not in solution.completion:
        return "no \\boxed"
    if not solution.completion_ids and solution.finish_reason == "length":
        return "empty"
    return None


def training_row(
    problem: Problem, solution: Solution, kind: RowKind, *, recipe: Recipe, renderer: Renderer, eos_id: int
) -> TrainingRow:
    """The training row of a solution.

    Prefix rows: the prompt of sampling with the task template behind the question; the first `prefix.length` sampled
    ids, never re-tokenised text, as completion; then EOS if `prefix.eos` says so, or if the solution itself ended
    there. Structure and full rows: the prompt of sampling; the whole solution with its EOS.
    EOS is the token that ended the solution, where one did; else `eos_id`, which ends a turn in the chat template.
    """
    if kind == "prefix":
        prompt = renderer.turn(problem.question + recipe.prefix.template_text)
        ids = prefix_ids(solution, recipe.prefix, eos_id)
    else:
        prompt = renderer.turn(problem.question)
        ids = [*solution.completion_ids, _stop_id(solution, eos_id)]
    return TrainingRow(
        id=f"{problem.id}/{solution.sample}",
        problem_id=problem.id,
        sample=solution.sample,
        kind=kind,
        prompt=prompt,
        completion=renderer.text(ids),
        prompt_ids=renderer.ids(prompt),
        completion_ids=ids,
    )


def row_kind(recipe: Recipe, *, structure: bool) -> RowKind:
    """What a problem's rows are; `structure`: whether it belongs to D_f."""
    if recipe.method in ("sft", "rft", "annotated"):
        return "full"
    return "structure" if structure else "prefix"


def prefix_ids(solution: Solution, prefix: Prefix, eos_id: int) -> list[int]:
    """The supervised ids of a prefix row: at most `prefix.length` sampled ids, and EOS where it is due."""
    ids, ended = sampled_prefix(solution, prefix.length)
    _, whole = sampled_prefix(solution, prefix.length + 1)
    return [*ids, _stop_id(solution, eos_id) if whole else eos_id] if prefix.eos or ended else ids


def sampled_prefix(solution: Solution, length: int) -> tuple[list[int], bool]:
    """The first `length` sampled ids, and whether the solution ended before it reached that length."""
    ids = solution.completion_ids[:length]
    return ids, solution.finish_reason == "stop" and len(ids) < length


def has_eos(row: TrainingRow, prefix: Prefix) -> bool:
    """Whether a row ends with an EOS that stands after its prefix because `prefix.eos` says so."""
    return row.kind == "prefix" and prefix.eos and len(row.completion_ids) >= most_supervised(prefix)


def with_end(solution: Solution, eos_id: int) -> list[int]:
    """All sampled ids, with the one that ended the solution where it ended."""
    ended = [_stop_id(solution, eos_id)] if solution.finish_reason == "stop" else []
    return [*solution.completion_ids, *ended]


def _stop_id(solution: Solution, eos_id: int) -> int:
    """The sampled token that ended a solution; `eos_id` where a stop text ended it, or an older file does not say."""
    return eos_id if solution.stop_id is None else solution.stop_id


def valid_numbers(numbers: Sequence[int], ratio: float, seed: int) -> frozenset[int]:
    """The problems held out for the validation loss: a seeded share, at least one, never all."""
    if ratio == 0 or len(numbers) < 2:
        return frozenset()
    count = min(max(1, round(ratio * len(numbers))), len(numbers) - 1)
    return frozenset(random.Random(f"valid/{seed}").sample(numbers, count))
