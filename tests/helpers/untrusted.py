"""What the tests of untrusted share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from conftest import MODEL

from helpers.input import write
from upft_mlx.recipe.schema import Recipe

EVIL = "qwen2\ntrust_remote_code: true #"

QUESTIONS = "".join(json.dumps({"question": f"{n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(9))


def model(folder: Path, name: str = "model") -> Path:
    """A copy of the embedded model that a test may change."""
    return Path(shutil.copytree(MODEL, folder / name))


def recipe(path: Path) -> Recipe:
    return Recipe.model_validate({"model": str(path), "problems": {"builtin": "arithmetic"}})


def change(path: Path, **values: object) -> None:
    """Set keys of a JSON file."""
    write(path, json.dumps({**json.loads(path.read_text()), **values}))


def bomb(levels: int = 9, width: int = 9) -> str:
    """Lists of aliases of lists of aliases: a few lines that stand for width ** levels values."""
    lines = [f"a0: &a0 [{', '.join(['lol'] * width)}]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def written(name: str, content: str | bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        write(folder / name, content)

    return damage
