"""Which of a problem's samples trains: each rule by hand, with its ties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from upft_mlx.data.problems import Problem
from upft_mlx.dataset.selection import choose
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import Solution

MakeRecipe = Callable[..., Recipe]
PROBLEM = Problem("p", "How many?", "4")


def full(text: str, ids: int = 3, finish: Any = "stop", logprob: float | None = None) -> Solution:
    return Solution("p", 0, "full", list(range(ids)), text, finish, logprob)


def prefix(ids: list[int], finish: Any = "length") -> Solution:
    return Solution("p", 0, "prefix", ids, "", finish)


def chosen(
    make_recipe: MakeRecipe, selection: str, samples: list[Solution], **changes: Any
) -> tuple[list[int], dict[str, int]]:
    sections: dict[str, Any] = {
        "generate": {"samples": max(2, len(samples))},
        "prefix": {"selection": selection, "length": 3},
    }
    for name, fields in changes.items():
        sections[name] = {**sections.get(name, {}), **fields} if isinstance(fields, dict) else fields
    found = choose(make_recipe(**sections), PROBLEM, samples, "maths")
    return found.kept, dict(found.dropped)


def test_first_takes_the_only_sample(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe()
    assert choose(recipe, PROBLEM, [prefix([1, 2])], "maths").kept == [0]
    cut = choose(recipe, PROBLEM, [full("", finish="length")], "maths")
    assert (cut.kept, cut.dropped) == ([], {"cut at max_tokens": 1})


def test_consensus_takes_the_most_frequent_prefix_and_of_equals_the_earliest(make_recipe: MakeRecipe) -> None:
    a, b = [1, 2, 3], [1, 2, 4]
    assert chosen(make_recipe, "consensus", [prefix(a), prefix(b), prefix(b)]) == ([1], {"not selected": 2})
    assert chosen(make_recipe, "consensus", [prefix(b), prefix(a), prefix(a), prefix(b)])[0] == [0]


def test_consensus_tells_a_prefix_that_ended_from_one_that_was_cut(make_recipe: MakeRecipe) -> None:
    """The same ids with and without the end are two prefixes: what is trained differs by EOS."""
    cut, ended, other = prefix([1, 2]), prefix([1, 2], "stop"), prefix([1, 2, 4])
    assert chosen(make_recipe, "consensus", [cut, ended, ended])[0] == [1]
    assert chosen(make_recipe, "consensus", [other, other, cut, ended, ended, ended])[0] == [3]


def test_consensus_compares_what_is_trained_and_nothing_behind_it(make_recipe: MakeRecipe) -> None:
    """Ids beyond the prefix, or an end right behind it, are not trained and make no other prefix."""
    same = [prefix([1, 2, 3], "stop"), prefix([1, 2, 3]), prefix([1, 2, 3, 9])]
    assert chosen(make_recipe, "consensus", [prefix([1, 2, 4]), prefix([1, 2, 4]), *same])[0] == [2]


def test_confidence_counts_eos_among_the_tokens(make_recipe: MakeRecipe) -> None:
    """-4 over 3 tokens and EOS is -1 each; -2.2 over 2 that were cut is -1.1."""
    cut = Solution("p", 0, "prefix", [1, 2], "", "length", -2.2)
    assert chosen(make_recipe, "confidence", [cut, full("b", ids=3, logprob=-4.0)])[0] == [1]


def test_majority_answer_takes_the_first_sample_with_it_however_it_is_written(make_recipe: MakeRecipe) -> None:
    samples = [full("\\boxed{5}"), full("\\boxed{4}"), full("So \\boxed{4.0}"), full("no answer here")]
    assert chosen(make_recipe, "majority_answer", samples) == ([1], {"not selected": 3})


def test_majority_answer_needs_no_label_and_drops_a_problem_without_any_answer(make_recipe: MakeRecipe) -> None:
    assert chosen(make_recipe, "majority_answer", [full("\\boxed{9}"), full("\\boxed{9}")])[0] == [0]
    assert chosen(make_recipe, "majority_answer", [full("well, I cannot say"), full("")]) == ([], {"no answer": 2})


def test_a_solution_that_was_cut_has_no_vote(make_recipe: MakeRecipe) -> None:
    samples = [full("\\boxed{5}", finish="length"), full("\\boxed{5}", finish="length"), full("\\boxed{4}")]
    assert chosen(make_recipe, "majority_answer", samples) == ([2], {"cut at max_tokens": 2})


def test_confidence_is_the_mean_over_tokens_and_eos_not_the_sum(make_recipe: MakeRecipe) -> None:
    samples = [full("a", ids=1, logprob=-3.0), full("b", ids=9, logprob=-5.0), full("c", ids=4, logprob=-4.0)]
    assert chosen(make_recipe, "confidence", samples) == ([1], {"not selected": 2})


def test_longest_is_its_control(make_recipe: MakeRecipe) -> None:
    assert chosen(make_recipe, "longest", [full("a", 2), full("b", 7), full("c", 9, finish="length")])[0] == [1]


def test_label_takes_the_first_right_one_and_none_where_all_are_wrong(make_recipe: MakeRecipe) -> None:
    assert chosen(make_recipe, "label", [full("\\boxed{5}"), full("\\boxed{4}"), full("\\boxed{4}")])[0] == [1]
    assert chosen(make_recipe, "label", [full("\\boxed{5}"), full("\\boxed{6}")]) == ([], {"wrong": 2})


@pytest.mark.parametrize("answer", ["C", "(c)"])
def test_choices_are_graded_and_counted_by_their_letters(make_recipe: MakeRecipe, answer: str) -> None:
    texts = ["The answer is B", "Therefore the correct option is (C).", "Answer: C"]
    problem, samples = Problem("p", "Which?\n(A) 1\n(B) 2\n(C) 3", answer), [full(text) for text in texts]
    for selection in ("label", "majority_answer"):
        recipe = make_recipe(generate={"samples": 3}, prefix={"selection": selection, "length": 3})
        assert choose(recipe, problem, samples, "choice").kept == [1]
    assert choose(make_recipe(method="rft", generate={"samples": 3}), problem, samples, "choice").kept == [1, 2]


def test_filters_come_before_the_rule(make_recipe: MakeRecipe) -> None:
    samples = [full("解 \\boxed{4}"), full("解 \\boxed{4}"), full("\\boxed{7}")]
    found = chosen(make_recipe, "majority_answer", samples, prefix={"drop_cjk": True})
    assert found == ([2], {"CJK characters": 2})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefix": {"selection": "consensus"}}, "consensus chooses among samples; set generate.samples above 1"),
        ({"generate": {"samples": 4}}, "a prefix.selection that chooses among them, or method: rft"),
        (
            {"method": "rft", "generate": {"samples": 4}, "prefix": {"selection": "label"}},
            "selection: label with method rft, which has its own rule",
        ),
        (
            {"method": "sft", "generate": {"samples": 4}, "prefix": {"selection": "consensus"}},
            "consensus compares prefixes, and method sft trains on full solutions",
        ),
        (
            {"generate": {"samples": 4, "temperature": 0.0}, "prefix": {"selection": "majority_answer"}},
            "temperature: 0 makes all samples equal",
        ),
        ({"generate": {"stop": [""]}}, 'stop: "" is everywhere'),
    ],
)
def test_settings_that_make_no_sense_together_are_refused(
    make_recipe: MakeRecipe, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        make_recipe(**changes)
    assert message in str(caught.value)
