"""solutions.jsonl to dataset/: what is kept, what is held out, and what is counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from upft_mlx.data.problems import Problem
from upft_mlx.dataset.build import build
from upft_mlx.dataset.prefix import structure_numbers
from upft_mlx.errors import TrainingError
from upft_mlx.models.chat import Renderer
from upft_mlx.models.load import Loaded
from upft_mlx.recipe.schema import PAPER_TEMPLATE, Prompt, Recipe
from upft_mlx.rows import Solution, TrainingRow, read_rows, write_rows
from upft_mlx.rundir import RunDir

MakeRecipe = Callable[..., Recipe]
PROBLEMS = [Problem(str(i), f"Ann has {i} apples. How many?", str(i)) for i in range(10)]


def solution(index: int, text: str, loaded: Loaded, **fields: Any) -> Solution:
    values = {"kind": "prefix", "finish_reason": "length", "sample": 0, **fields}
    return Solution(problem_id=str(index), completion_ids=loaded.tokenizer.encode(text), completion=text, **values)


def made(
    recipe: Recipe, loaded: Loaded, folder: Path, solutions: list[Solution], problems: list[Problem] = PROBLEMS
) -> tuple[list[TrainingRow], list[TrainingRow], Any]:
    run = RunDir(folder)
    write_rows(run.solutions, solutions)
    built = build(recipe, loaded.tokenizer, problems, run)
    return list(read_rows(run.train, TrainingRow)), list(read_rows(run.valid, TrainingRow)), built


def test_rows_hold_the_rendered_prompt_and_exactly_the_sampled_ids(
    make_recipe: MakeRecipe, loaded: Loaded, tmp_path: Path
) -> None:
    recipe = make_recipe(prefix={"length": 3}, train={"valid_ratio": 0.0})
    drawn = max(structure_numbers(len(PROBLEMS), recipe.prefix.structure_ratio, recipe.seed))
    assert drawn > 0
    sampled = [
        solution(0, "First, we find", loaded),
        solution(drawn, "The plan", loaded, kind="full", finish_reason="stop"),
    ]
    (prefix, structure), valid, _ = made(recipe, loaded, tmp_path, sampled)
    renderer = Renderer(loaded.tokenizer, Prompt())
    assert prefix.prompt_ids == renderer.ids(PROBLEMS[0].question + PAPER_TEMPLATE)
    assert prefix.completion_ids == sampled[0].completion_ids[:3]
    assert structure.prompt_ids == renderer.ids(PROBLEMS[drawn].question)
    assert structure.completion_ids == [*sampled[1].completion_ids, loaded.eos_id]
    assert (prefix.kind, structure.kind) == ("prefix", "structure")
    assert valid == []


def test_the_system_turn_is_in_every_prompt(make_recipe: MakeRecipe, loaded: Loaded, tmp_path: Path) -> None:
    recipe = make_recipe(prompt={"system": "Be careful."}, train={"valid_ratio": 0.0})
    (row,), _, _ = made(recipe, loaded, tmp_path, [solution(0, "First, we", loaded)])
    text = loaded.tokenizer.decode(row.prompt_ids)
    assert "Be careful." in text
    assert text.index("Be careful.") < text.index("Ann has")


def test_a_problem_is_trained_on_or_held_out_and_never_both(
    make_recipe: MakeRecipe, loaded: Loaded, tmp_path: Path
) -> None:
    recipe = make_recipe(train={"valid_ratio": 0.3})
    train, valid, built = made(recipe, loaded, tmp_path, [solution(i, "First, we", loaded) for i in range(10)])
    assert (len(train), len(valid)) == (built.train, built.valid) == (7, 3)
    assert {row.problem_id for row in train}.isdisjoint(row.problem_id for row in valid)
    assert built.tokens == sum(len(row.completion_ids) for row in train)


def test_held_out_problems_have_a_usable_solution(make_recipe: MakeRecipe, loaded: Loaded, tmp_path: Path) -> None:
    """Nine of ten solutions were cut at max_tokens and one cannot be held out: better few rows than none."""
    cut = [solution(i, "First, we", loaded, kind="full") for i in range(8)]
    good = [solution(i, "First, we", loaded) for i in (8, 9)]
    train, valid, built = made(make_recipe(), loaded, tmp_path, cut + good)
    assert (len(train), len(valid)) == (1, 1)
    assert built.dropped == {"cut at max_tokens": 8}


def test_what_is_held_out_is_drawn_with_the_seed_from_what_could_train(
    make_recipe: MakeRecipe, loaded: Loaded, tmp_path: Path
) -> None:
    """With each of 20 seeds one of the three problems that have a row; with one or another each of them."""
    cut = [solution(i, "First, we", loaded, kind="full") for i in range(10)]
    usable = {"2": 2, "5": 5, "8": 8}
    for index in usable.values():
        cut[index] = solution(index, "First, we", loaded)
    held_out = set()
    for seed in range(20):
        train, valid, _ = made(make_recipe(seed=seed), loaded, tmp_path / str(seed), cut)
        assert {row.problem_id for row in [*train, *valid]} == set(usable)
        assert len(valid) == 1, seed
        held_out.add(valid[0].problem_id)
    assert held_out == set(usable)


def test_rejection_sampling_keeps_correct_different_and_few(
    make_recipe: MakeRecipe, loaded: Loaded, tmp_path: Path
) -> None:
    texts = ["\\boxed{3}", "\\boxed{4}", "\\boxed{3}", "So \\boxed{3}", "Thus \\boxed{3}"]
    sampled = [solution(3, text, loaded, kind="full", finish_reason="stop", sample=k) for k, text in enumerate(texts)]
    recipe = make_recipe(method="rft", generate={"samples": 5, "keep": 2}, train={"valid_ratio": 0.0})
    train, _, built = made(recipe, loaded, tmp_path, sampled)
    assert [row.sample for row in train] == [0, 3]
    assert {row.kind for row in train} == {"full"}
    assert built.dropped == {"wrong": 1, "duplicates": 1, "beyond generate.keep": 1}


def test_answers_that_are_all_letters_are_graded_as_choices(
    make_recipe: MakeRecipe, loaded: Loaded, tmp_path: Path
) -> None:
    problems = [Problem(str(i), "Which?", "ABC"[i]) for i in range(3)]
    recipe = make_recipe(method="rft", generate={"samples": 2}, train={"valid_ratio": 0.0})
    sampled = [solution(i, "The correct option is (C).", loaded, kind="full", finish_reason="stop") for i in range(3)]
    train, _, built = made(recipe, loaded, tmp_path, sampled, problems)
    assert [row.problem_id for row in train] == ["2"]
    assert built.dropped == {"wrong": 2}


def test_nothing_left_to_train_on_is_an_error_with_the_counts(
    make_recipe: MakeRecipe, loaded: Loaded, tmp_path: Path
) -> None:
    cut = [solution(i, "First, we", loaded, kind="full") for i in range(3)]
    with pytest.raises(TrainingError, match=r"no row is left to train on \(0 training rows .* 3 cut at max_tokens\)"):
        made(make_recipe(), loaded, tmp_path, cut)
