"""A grid of settings: what its texts mean, what is refused, and the recipes that come out."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from upft_mlx.errors import RecipeError
from upft_mlx.recipe.grid import all_valid, combinations, in_words, parse_grid
from upft_mlx.recipe.schema import Recipe

MakeRecipe = Callable[..., Recipe]


def test_values_are_read_as_yaml_between_commas_outside_of_brackets_and_quotes() -> None:
    texts = ["prefix.length=8,16", "train.betas=[0.9, 0.95],[0.8, 0.9]", 'prefix.template=none,"now, a hint"']
    assert parse_grid([*texts, "train.learning_rate=1e-4", "train.clip_norm=null,0.5"]) == {
        "prefix.length": [8, 16],
        "train.betas": [[0.9, 0.95], [0.8, 0.9]],
        "prefix.template": ["none", "now, a hint"],
        "train.learning_rate": [1e-4],
        "train.clip_norm": [None, 0.5],
    }


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["prefix.length"], "prefix.length: expected section.field=value,value"),
        (["=8"], "=8: expected section.field=value,value"),
        (["seed=1", "seed=2"], "seed: is given twice"),
        (["seed=1,,2"], "seed=1,,2: a value is missing"),
        (["seed="], "seed=: a value is missing"),
        (["seed=[1"], "not valid values"),
    ],
)
def test_a_text_of_another_form_is_refused(texts: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse_grid(texts)
    assert message in str(error.value)


def test_every_combination_is_tried_the_last_field_in_the_fastest_turn() -> None:
    made = combinations({"prefix.length": (4, 8), "train.learning_rate": [1e-4, 0.3]})
    assert [in_words(settings) for settings in made] == [
        "prefix.length=4 train.learning_rate=0.0001",
        "prefix.length=4 train.learning_rate=0.3",
        "prefix.length=8 train.learning_rate=0.0001",
        "prefix.length=8 train.learning_rate=0.3",
    ]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({}, "no settings to try"),
        ({"evaluate.limit": [3, 4]}, "evaluate.limit: is not a training setting"),
        ({"name": ["a", "b"]}, "name: is not a training setting"),
        ({"seed": []}, "seed: has no value"),
        ({"seed": [1, 2, 1]}, "seed: '1' is given twice"),
    ],
)
def test_a_grid_that_cannot_be_compared_is_refused(grid: dict[str, list[object]], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        combinations(grid)
    assert message in str(error.value)


def test_the_errors_of_all_combinations_are_told_at_once(make_recipe: MakeRecipe) -> None:
    with pytest.raises(RecipeError) as error:
        all_valid(make_recipe(), combinations({"prefix.length": [0, 8], "lora.rnak": [4], "train.epochs": [-1]}))
    lines = str(error.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["prefix.length", "lora.rnak", "train.epochs"]
    assert "did you mean 'rank'?" in lines[1]


def test_a_value_reaches_its_field_and_no_other(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(train={"batch_size": 4})
    (made,) = all_valid(recipe, [{"train.learning_rate": 1e-5, "prefix.template": "[x]"}])
    assert (made.train.learning_rate, made.prefix.template) == (1e-5, "[x]")
    assert made.train.batch_size == 4
    assert made.generate == recipe.generate
