"""What the tests of preview share."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from upft_mlx.inspection.preview import preview
from upft_mlx.recipe.schema import Recipe
from upft_mlx.ui.preview import print_preview

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def previewed(recipe: Recipe, run_dir: Path, **options: Any) -> dict[str, Any]:
    """A preview as its JSON has it."""
    return preview(recipe, run_dir, **options).dump()


def printed(facts: dict[str, Any], *, plain: bool = True, **options: Any) -> str:
    file = io.StringIO()
    print_preview(facts, plain=plain, console=Console(file=file, width=200, **options))
    return file.getvalue()
