"""Unsupervised Prefix Fine-Tuning (arXiv 2503.02875) of reasoning models on a Mac, with MLX."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from upft_mlx._version import __version__

# MLX computes a graph in breadth up to this width, 20 if unset. With 20 gradient checkpointing saves little or nothing:
# the layers that are computed again all are so before the first is used. 1 costs no time (docs/measured/log.md). MLX
# reads it once, at its first evaluation.
os.environ.setdefault("MLX_BFS_MAX_WIDTH", "1")

if sys.platform == "linux":
    from upft_mlx.machine.blas import load_before_mlx

    load_before_mlx()

if TYPE_CHECKING:
    from upft_mlx.api import (
        analyze,
        ask,
        build,
        compare,
        evaluate,
        forecast,
        fuse,
        generate,
        plan,
        preview,
        run,
        sweep,
        train,
    )
    from upft_mlx.recipe.load import load_recipe

__all__ = [
    "__version__",
    "analyze",
    "ask",
    "build",
    "compare",
    "evaluate",
    "forecast",
    "fuse",
    "generate",
    "load_recipe",
    "plan",
    "preview",
    "run",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import the public functions on first use: `upft --help` must not wait for pydantic and MLX."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{'recipe.load' if name == 'load_recipe' else 'api'}"), name)


def __dir__() -> list[str]:
    """With what is imported on first use."""
    return sorted({*globals(), *__all__})
