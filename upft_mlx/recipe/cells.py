"""The recipes of the cells of `upft compare`: what a method changes in the recipe that is compared on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from upft_mlx.recipe.load import validated
from upft_mlx.recipe.schema import Recipe
from upft_mlx.recipe.studies import BEST_OF_PREFIX

BASE = "base"
SSD = {"ssd": {"temperature": 1.6, "top_p": 0.8, "top_k": 20}}
"""The sampling of simple self-distillation for instruct models, as on its authors' model cards."""


def recipe_for_cell(recipe: Recipe, method: str, seed: int) -> Recipe:
    """The recipe of one cell; `method` as in `compare.methods`, or base.

    Raises:
        RecipeError: other fields of the recipe rule the method out.
    """
    name, _, selection = method.partition(":")
    selection = "consensus" if method == BEST_OF_PREFIX else selection
    chooses = name == "rft" or selection not in ("", "first")
    changes: dict[str, dict[str, Any]] = {
        "generate": {"samples": recipe.compare.samples if chooses else 1, **SSD.get(name, {})},
        "prefix": {"selection": selection or "first"},
        "evaluate": {"until": "end"},  # all cells are measured on the same problems
    }
    if name == "cold":
        changes["generate"]["temperature"] = recipe.compare.cold_temperature
    name = {BASE: "upft", "ssd": "sft", "cold": "upft", BEST_OF_PREFIX: "upft"}.get(name, name)
    data = recipe.model_dump()
    data |= {section: {**data[section], **fields} for section, fields in changes.items()}
    return validated(Path(f"compare.methods: {method}"), {}, {**data, "seed": seed, "method": name}, ())
