"""Solutions to training rows: exact ids, by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upft_mlx.data.problems import Problem
from upft_mlx.dataset.prefix import (
    check_problems,
    ended_early,
    prefix_ids,
    row_kind,
    structure_numbers,
    training_row,
    valid_numbers,
    wanted,
    why_dropped,
)
from upft_mlx.errors import ProblemsError
from upft_mlx.recipe.schema import PAPER_TEMPLATE, Prefix, Recipe
from upft_mlx.rows import Solution

EOS = 2
MakeRecipe = Callable[..., Recipe]


class WordRenderer:
    """Renders a prompt as [100, the number of its words, 101], so that tests can compute ids by hand."""

    def ids(self, user: str) -> list[int]:
        return [100, len(user.split()), 101]

    def turn(self, question: str) -> str:
        return question

    def text(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def solution(ids: list[int], kind: Any = "prefix", finish: Any = "length", text: str = "") -> Solution:
    return Solution("p", 0, kind, ids, text, finish)


@pytest.mark.parametrize(
    ("ids", "finish", "eos", "expected"),
    [
        pytest.param([5, 6, 7, 8], "length", True, [5, 6, 7, 8, EOS], id="cut at t, EOS trained"),
        pytest.param([5, 6, 7, 8], "length", False, [5, 6, 7, 8], id="cut at t, no EOS"),
        pytest.param([5, 6, 7], "stop", True, [5, 6, 7, EOS], id="ended before t, EOS trained once"),
        pytest.param([5, 6, 7], "stop", False, [5, 6, 7, EOS], id="ended before t keeps its natural EOS"),
        pytest.param([], "stop", False, [EOS], id="ended at once"),
        pytest.param([5, 6, 7, 8, 9], "stop", False, [5, 6, 7, 8], id="a longer solution's prefix"),
        pytest.param([5, 6, 7, 8], "stop", False, [5, 6, 7, 8], id="EOS would be id t + 1"),
        pytest.param([5, 6, 7, 8, 9], "stop", True, [5, 6, 7, 8, EOS], id="a longer solution's prefix, EOS"),
    ],
)
def test_prefix_ids_are_the_first_t_sampled_ids_and_eos_where_it_is_due(
    ids: list[int], finish: str, eos: bool, expected: list[int]
) -> None:
    prefix = Prefix(length=4, eos=eos, template="paper" if eos else "none")
    assert prefix_ids(solution(ids, finish=finish), prefix, EOS) == expected


@pytest.mark.parametrize(
    ("ids", "eos", "expected"),
    [
        pytest.param([5, 6, 7], False, [5, 6, 7, 9], id="ended before t"),
        pytest.param([5, 6, 7], True, [5, 6, 7, 9], id="ended before t, EOS trained"),
        pytest.param([5, 6, 7, 8], True, [5, 6, 7, 8, 9], id="ended at t, EOS trained"),
        pytest.param([5, 6, 7, 8, 4], True, [5, 6, 7, 8, EOS], id="ended later: the turn's end stands for it"),
    ],
)
def test_the_end_that_was_sampled_is_trained_and_no_other(ids: list[int], eos: bool, expected: list[int]) -> None:
    """A model with several EOS: it ended with 9, and the template writes EOS."""
    prefix = Prefix(length=4, eos=eos, template="paper" if eos else "none")
    assert prefix_ids(replace(solution(ids, finish="stop"), stop_id=9), prefix, EOS) == expected


@pytest.mark.parametrize(("stop_id", "end"), [(9, 9), (None, EOS)])
def test_a_whole_solution_ends_as_it_was_sampled(make_recipe: MakeRecipe, stop_id: int | None, end: int) -> None:
    """Rows of older files, and solutions that a stop text ended, do not say how: then it is the template's end."""
    sampled = replace(solution([7, 8], kind="full", finish="stop"), stop_id=stop_id)
    assert row(make_recipe(), sampled, structure=True).completion_ids == [7, 8, end]


def row(recipe: Recipe, sampled: Solution, *, structure: bool = False) -> Any:
    problem = Problem("p", "How many apples are left?", "4")
    kind = row_kind(recipe, structure=structure)
    return training_row(problem, sampled, kind, recipe=recipe, renderer=WordRenderer(), eos_id=EOS)  # type: ignore[arg-type]


def test_prefix_rows_carry_the_template_in_the_user_turn(make_recipe: MakeRecipe) -> None:
    made = row(make_recipe(prefix={"length": 2, "eos": True}), solution([7, 8, 9]))
    assert made.prompt == "How many apples are left?" + PAPER_TEMPLATE
    assert made.prompt_ids == [100, 5 + len(PAPER_TEMPLATE.split()), 101]
    assert made.completion_ids == [7, 8, EOS]
    assert (made.id, made.kind, made.completion) == ("p/0", "prefix", "7 8 2")


def test_structure_rows_use_the_plain_prompt_and_end_with_eos(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(prefix={"length": 2})
    made = row(recipe, solution([7, 8, 9], kind="full", finish="stop"), structure=True)
    assert made.prompt == "How many apples are left?"
    assert made.prompt_ids == [100, 5, 101]
    assert made.completion_ids == [7, 8, 9, EOS]
    assert made.kind == "structure"


def test_full_rows_of_sft_are_called_full(make_recipe: MakeRecipe) -> None:
    assert row(make_recipe(method="sft"), solution([7], kind="full", finish="stop")).kind == "full"


def test_a_full_solution_that_was_sampled_to_choose_trains_its_prefix(make_recipe: MakeRecipe) -> None:
    made = row(make_recipe(prefix={"length": 2}), solution([7, 8, 9], kind="full", finish="stop"))
    assert (made.kind, made.completion_ids) == ("prefix", [7, 8])


def test_the_template_is_the_papers_to_the_letter() -> None:
    assert PAPER_TEMPLATE == (
        " Please provide the initial step towards resolving the question. This step may serve as a foundation"
        " but might not encompass the entire solution."
    )


@pytest.mark.parametrize(
    ("sampled", "prefix", "expected"),
    [
        (solution([1], "full", "length"), {}, "cut at max_tokens"),
        (solution([1], "full", "stop", "no box"), {}, None),
        (solution([1], "full", "stop", "no box"), {"require_boxed": True}, "no \\boxed"),
        (solution([1], "full", "stop", "\\boxed{4}"), {"require_boxed": True}, None),
        (solution([1], "prefix", "length", "no box"), {"require_boxed": True}, None),
        (solution([1], "prefix", "length", "解"), {}, None),
        (solution([1], "prefix", "length", "解"), {"drop_cjk": True}, "CJK characters"),
        (solution([1], "prefix", "length", "한"), {"drop_cjk": True}, "CJK characters"),
        (solution([1], "prefix", "length", "π ≈ 3 → é"), {"drop_cjk": True}, None),
    ],
)
def test_filters_drop_what_they_say(sampled: Solution, prefix: dict[str, Any], expected: str | None) -> None:
    assert why_dropped(sampled, Prefix(**prefix)) == expected


@given(count=st.integers(0, 200), ratio=st.floats(0, 1), seed=st.integers(0, 9))
def test_the_structure_share_is_exact_and_seeded(count: int, ratio: float, seed: int) -> None:
    chosen = structure_numbers(count, ratio, seed)
    assert len(chosen) == round(ratio * count)
    assert chosen <= set(range(count))
    assert chosen == structure_numbers(count, ratio, seed)


def test_the_structure_share_is_no_head_of_the_file() -> None:
    chosen = structure_numbers(1000, 0.1, 0)
    assert chosen != structure_numbers(1000, 0.1, 1)
    assert sum(number >= 500 for number in chosen) > 30


@given(count=st.integers(0, 60), ratio=st.floats(0, 0.99))
def test_validation_holds_out_at_least_one_problem_and_never_all(count: int, ratio: float) -> None:
    held_out = valid_numbers(range(count), ratio, 0)
    if ratio == 0 or count < 2:
        assert not held_out
    else:
        assert 1 <= len(held_out) < count


PROBLEMS = [Problem(str(i), "q", "1") for i in range(10)]


def kinds(recipe: Recipe) -> list[str]:
    return [item.kind for item in wanted(recipe, 10)]


def test_upft_decodes_prefixes_and_a_share_of_full_solutions(make_recipe: MakeRecipe) -> None:
    found = kinds(make_recipe(prefix={"structure_ratio": 0.3}))
    assert (found.count("prefix"), found.count("full")) == (7, 3)


def test_structure_only_decodes_the_same_full_solutions_as_upft(make_recipe: MakeRecipe) -> None:
    upft = wanted(make_recipe(prefix={"structure_ratio": 0.3}), 10)
    only = wanted(make_recipe(method="structure_only", prefix={"structure_ratio": 0.3}), 10)
    assert only == [item for item in upft if item.kind == "full"]


def test_rft_samples_each_problem_and_refuses_problems_without_answer(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(method="rft", generate={"samples": 3})
    assert [(item.kind, item.samples) for item in wanted(recipe, 2)] == [("full", 3), ("full", 3)]
    with pytest.raises(ProblemsError, match=r"1 of 2 problems have none: x;.*problems\.answer"):
        check_problems(recipe, [PROBLEMS[0], Problem("x", "q")])


def test_structure_only_refuses_a_share_of_nothing(make_recipe: MakeRecipe) -> None:
    with pytest.raises(ProblemsError, match=r"raise prefix\.structure_ratio"):
        check_problems(make_recipe(method="structure_only", prefix={"structure_ratio": 0.01}), PROBLEMS)


@pytest.mark.parametrize(
    ("method", "selection", "expected"),
    [
        ("upft", "consensus", [("full", 1)] * 3 + [("prefix", 4)] * 7),
        ("upft", "majority_answer", [("full", 4)] * 10),
        ("sft", "majority_answer", [("full", 4)] * 10),
        ("upft", "confidence", [("full", 4)] * 10),
        ("upft", "longest", [("full", 4)] * 10),
        ("upft", "label", [("full", 4)] * 10),
    ],
)
def test_a_selection_samples_what_it_looks_at(
    make_recipe: MakeRecipe, method: str, selection: str, expected: list[tuple[str, int]]
) -> None:
    recipe = make_recipe(
        method=method, generate={"samples": 4}, prefix={"structure_ratio": 0.3, "selection": selection}
    )
    found = wanted(recipe, 10)
    assert [item.number for item in found] == list(range(10))
    assert sorted((item.kind, item.samples) for item in found) == sorted(expected)


def test_a_selection_by_label_says_which_problems_have_none(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(generate={"samples": 2}, prefix={"selection": "label"})
    with pytest.raises(ProblemsError, match=r"selection: label needs answers, 1 of 2 problems have none: x;"):
        check_problems(recipe, [PROBLEMS[0], Problem("x", "q")])


# Solutions that end before the prefix does.


def sampled(*lengths: int, finish: Any = "stop", kind: Any = "prefix") -> list[Solution]:
    return [solution([1] * length, kind, finish) for length in lengths]


def test_most_solutions_ending_before_the_prefix_is_said_with_a_length_that_would_do(
    make_recipe: MakeRecipe,
) -> None:
    recipe = make_recipe(prefix={"length": 16})
    said = ended_early(recipe, [*sampled(4, 8, 12), *sampled(16, 16, finish="length")])
    assert said == (
        "3 of 5 solutions end before prefix.length: 16 tokens, and train whole; half of them within 8: for prefixes, "
        "set prefix.length to 4 or less"
    )
    assert "set prefix.length to 1 or less" in ended_early(recipe, sampled(1, 1, 1)), "never 0"


@pytest.mark.parametrize(
    ("solutions", "changes"),
    [
        (sampled(4, 8, 16, 16), {}),  # half of them is not most
        (sampled(16, 17, 18), {}),  # a solution of just that length fills its prefix
        (sampled(4, 8, 12), {"method": "sft"}),  # whole solutions are what it trains on
        ([*sampled(4), *sampled(4, 4, 4, 4, finish="length", kind="full"), *sampled(16)], {}),  # cut ones train nothing
        ([], {}),
    ],
    ids=["half", "just as long", "another method", "cut full solutions", "none"],
)
def test_nothing_is_said_where_prefixes_are_prefixes(
    make_recipe: MakeRecipe, solutions: list[Solution], changes: dict[str, Any]
) -> None:
    assert ended_early(make_recipe(prefix={"length": 16}, **changes), solutions) == ""
