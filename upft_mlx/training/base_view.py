"""What the base thinks of training rows before anything is trained: one forward pass over a sample of them."""

from __future__ import annotations

from collections.abc import Sequence

from upft_mlx.models.find import find_model
from upft_mlx.models.load import load_for
from upft_mlx.recipe.schema import Recipe
from upft_mlx.training.batches import Example
from upft_mlx.training.loss import choose_modes
from upft_mlx.training.row_loss import MEASURED, RowLoss, drawn, taken_apart
from upft_mlx.training.token_loss import token_losses


def base_view(recipe: Recipe, examples: Sequence[Example]) -> RowLoss:
    """What the recipe's model thinks of these rows; training measures the same ones.

    Raises:
        UpftError: one of its kinds: the model cannot be found or loaded.
    """
    loaded = load_for(recipe, find_model(recipe))
    modes, _ = choose_modes(loaded.model, dropout=True, checkpoint=False)
    measured = drawn(examples, MEASURED, recipe.seed)
    return taken_apart(measured, token_losses(loaded.model, measured, modes), examples)
