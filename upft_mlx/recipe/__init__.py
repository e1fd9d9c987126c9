"""Recipes: a YAML file goes in, a checked Recipe comes out.

Start at schema.py, then load.py.
"""

from __future__ import annotations

from upft_mlx.recipe.schema import Recipe

__all__ = ["Recipe"]
