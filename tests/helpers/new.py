"""What the tests of new share."""

from __future__ import annotations

import json
from typing import Any

from upft_mlx.data.benchmarks import resolve
from upft_mlx.new.new import Wish, new_recipe
from upft_mlx.recipe.load import load_recipe
from upft_mlx.recipe.schema import Recipe


def questions(count: int = 50) -> str:
    rows = [{"question": f"Ann has {n} apples and buys 2. How many?", "answer": str(n + 2)} for n in range(count)]
    return "".join(json.dumps(row) + "\n" for row in rows)


def make(dataset: str = "my.jsonl", **wishes: Any) -> Recipe:
    """Write the recipe and load it as `upft run` would."""
    draft = new_recipe(Wish("my-model", dataset, **wishes))
    recipe = load_recipe(draft.path)
    resolve(recipe.evaluate)
    return recipe
