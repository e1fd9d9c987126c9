"""What several tests share: the embedded model, small recipes, real data where it is there."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from upft_mlx.models.load import Loaded, load
from upft_mlx.recipe.schema import Recipe

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before MLX is imported; other work may run beside the tests
os.environ.setdefault("MLX_DISABLE_COMPILE", "1")  # or g++ compiles each of a hundred kernels of mlx-lm's for a second
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or each of the tests' processes compiles the package once more
sys.dont_write_bytecode = False
if sys.platform == "linux":  # MLX wakes its thread for each operation; among batch jobs that interrupts nothing
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
settings.register_profile("tests", deadline=None)  # a loaded machine is no wrong number
settings.load_profile("tests")
ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "upft_mlx" / "demo" / "model"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, the longest of all first among them: two processes then end together."""
    first = {item.path: 2 for item in items if item.get_closest_marker("slow")}
    first |= {item.path: 1 for item in items if item.get_closest_marker("real")}
    items.sort(key=lambda item: first.get(item.path, 3))


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """A command that was interrupted leaves the handling of Ctrl-C to the system; the tests go on in its process."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def shared() -> Path:
    """The folder with real data, which a user's clone does not have."""
    path = Path(os.environ.get("UPFT_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"{path} is not there (set UPFT_SHARED)")
    return path


@pytest.fixture(scope="session")
def loaded() -> Loaded:
    """The embedded model; tests must leave it as it is."""
    return load(MODEL)


@pytest.fixture
def fresh() -> Loaded:
    """The embedded model for tests that change it."""
    return load(MODEL)


@pytest.fixture
def make_recipe() -> Callable[..., Recipe]:
    """A small recipe on the embedded model and problems; keyword arguments replace whole sections' fields."""

    def make(**changes: Any) -> Recipe:
        data: dict[str, Any] = {
            "name": "test",
            "model": "builtin:arithmetic",
            "problems": {"builtin": "arithmetic", "limit": 20},
            "generate": {"max_tokens": 40, "batch_size": 4},
            "prefix": {"length": 6, "structure_ratio": 0.2, "template": "paper"},
            "lora": {"rank": 4, "scale": 8.0},
            "train": {"batch_size": 4, "learning_rate": 1e-3, "report_every": 2, "checkpoint_every": 2},
            "evaluate": {"max_tokens": 40, "benchmarks": [{"name": "arithmetic", "limit": 8}]},
        }
        for section, value in changes.items():
            both = isinstance(value, dict) and isinstance(data.get(section), dict)
            data[section] = {**data[section], **value} if both else value
        return Recipe.model_validate(data)

    return make
