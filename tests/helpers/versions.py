"""What the tests of versions share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.runs import RUN
from upft_mlx import pipeline, rows
from upft_mlx.recipe.load import load_recipe
from upft_mlx.sampling import generate

ADAPTER = RUN.adapter / "adapters.safetensors"


@pytest.fixture(scope="session")
def partial(made: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """solutions.partial.jsonl with all chunks, in the order of sampling."""
    seen: list[bytes] = []

    def arrange(source: Path, *others: Any) -> None:
        seen.append(source.read_bytes())
        rows.arrange(source, *others)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(generate, "arrange", arrange)
        pipeline.run_stage(load_recipe(made / "r.yaml"), tmp_path_factory.mktemp("sampled"), "generate")
    return seen[0]
