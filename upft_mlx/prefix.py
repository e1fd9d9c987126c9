"""Which solutions are sampled and how each becomes a training row. Pure: nothing is read, written or run.

Paper (arXiv 2503.02875, Eq. 8): a random share p of the problems trains on one full, unverified solution
(structure rows), the rest on the first t tokens of one solution (prefix rows).
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from upft_mlx.errors import ProblemsError
from upft_mlx.problems import Problem
from upft_mlx.prompts import Renderer
from upft_mlx.recipe import Prefix, Recipe
from upft_mlx.rows import Solution, TrainingRow

_CJK = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0002ebef]")


@dataclass(frozen=True)
class Wanted:
    """One solution to sample."""

    problem: Problem
    sample: int
    kind: Literal["prefix", "full"]


def structure_ids(ids: Sequence[str], ratio: float, seed: int) -> frozenset[str]:
    """The problems of D_f: a seeded random share of `ids`, rounded to a whole number."""
    return frozenset(random.Random(f"structure/{seed}").sample(list(ids), round(ratio * len(ids))))


def wanted(recipe: Recipe, problems: Sequence[Problem]) -> list[Wanted]:
    """The solutions that the recipe's method needs, in the order of the problems.

    Raises:
        ProblemsError: rft, and problems without an answer; or structure_only, and no problem was drawn.
    """
    if recipe.method == "rft":
        _refuse_unlabelled(problems)
    if recipe.method in ("sft", "rft"):
        return [Wanted(p, k, "full") for p in problems for k in range(recipe.generate.samples)]
    full = structure_ids([p.id for p in problems], recipe.prefix.structure_ratio, recipe.seed)
    if recipe.method == "structure_only":
        if not full:
            raise ProblemsError(
                f"structure_only: a share of {recipe.prefix.structure_ratio} of {len(problems)} problems is none; "
                "raise prefix.structure_ratio or problems.limit"
            )
        return [Wanted(p, 0, "full") for p in problems if p.id in full]
    return [Wanted(p, 0, "full" if p.id in full else "prefix") for p in problems]


def _refuse_unlabelled(problems: Sequence[Problem]) -> None:
    missing = [p.id for p in problems if p.answer is None]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise ProblemsError(
            f"method rft needs answers, {len(missing)} of {len(problems)} problems have none: {shown}; "
            "name the answer's column with problems.answer, or use method: upft"
        )


def why_dropped(solution: Solution, prefix: Prefix) -> str | None:
    """Why a solution becomes no training row, None if it becomes one."""
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
    problem: Problem, solution: Solution, *, recipe: Recipe, renderer: Renderer, eos_id: int
) -> TrainingRow:
    """The row that a solution trains.

    Prefix rows: the question with the task template as prompt; the first `prefix.length` sampled ids, never
    re-tokenised text, as completion; then EOS if `prefix.eos` says so, or if the solution itself ended there.
    Full rows: the plain question; the whole solution with its EOS.
    """
    if solution.kind == "prefix":
        prompt = problem.question + recipe.prefix.template_text
        ids = prefix_ids(solution, recipe.prefix, eos_id)
    else:
        prompt = problem.question
        ids = [*solution.completion_ids, eos_id]
    structure = recipe.method in ("upft", "structure_only")
    kind: Literal["prefix", "structure", "full"] = "prefix"
    if solution.kind == "full":
        kind = "structure" if structure else "full"
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


def prefix_ids(solution: Solution, prefix: Prefix, eos_id: int) -> list[int]:
    """The supervised ids of a prefix row: at most `prefix.length` sampled ids, and EOS where it is due."""
    ids = solution.completion_ids[: prefix.length]
    ended = solution.finish_reason == "stop" and len(solution.completion_ids) < prefix.length
    return [*ids, eos_id] if prefix.eos or ended else ids


def valid_ids(ids: Sequence[str], ratio: float, seed: int) -> frozenset[str]:
    """The problems held out for the validation loss: a seeded share, at least one, never all."""
    if ratio == 0 or len(ids) < 2:
        return frozenset()
    count = min(max(1, round(ratio * len(ids))), len(ids) - 1)
    return frozenset(random.Random(f"valid/{seed}").sample(list(ids), count))
