"""What the base thinks of training rows before anything is trained: one forward pass over a sample of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from upft_mlx.models.find import find_model
from upft_mlx.models.load import load
from upft_mlx.recipe.schema import Recipe
from upft_mlx.training.batches import Example
from upft_mlx.training.loss import choose_modes
from upft_mlx.training.row_loss import MEASURED, drawn, taken_apart
from upft_mlx.training.token_loss import token_losses


def base_view(recipe: Recipe, examples: Sequence[Example]) -> dict[str, Any]:
    """The loss of the recipe's model on these rows, see `row_loss.taken_apart`; training measures the same rows.

    Raises:
        UpftError: one of its kinds: the model cannot be found or loaded.
    """
    loaded = load(
        find_model(recipe),
        quantize=recipe.quantize,
        trust_remote_code=recipe.trust_remote_code,
        chat_template=recipe.prompt.chat_template,
    )
    modes, _ = choose_modes(loaded.model, dropout=True, checkpoint=False)
    measured = drawn(examples, MEASURED, recipe.seed)
    return taken_apart(measured, token_losses(loaded.model, measured, modes), examples)
