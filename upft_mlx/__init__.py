"""Unsupervised Prefix Fine-Tuning (arXiv 2503.02875) of reasoning models on a Mac, with MLX."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# MLX computes a graph in breadth up to this width, 20 if unset. With 20 gradient checkpointing saves little or nothing:
# the layers that are computed again all are so before the first is used. 1 costs no time (docs/log.md). MLX reads it
# once, at its first evaluation.
os.environ.setdefault("MLX_BFS_MAX_WIDTH", "1")

if TYPE_CHECKING:
    from upft_mlx.load import load_recipe
    from upft_mlx.pipeline import run

__version__ = "0.1.0"
__all__ = ["__version__", "load_recipe", "run"]


def __getattr__(name: str) -> Any:
    """Import the public functions on first use: `upft --help` must not wait for pydantic and MLX."""
    if name == "load_recipe":
        from upft_mlx.load import load_recipe

        return load_recipe
    if name == "run":
        from upft_mlx.pipeline import run

        return run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
