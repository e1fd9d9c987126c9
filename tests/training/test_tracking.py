"""Metrics to a service, with a stand-in for its client; mlx-lm's callbacks are the real ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlx_lm.tuner import callbacks

from upft_mlx.errors import TrainingError
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rundir import RunDir
from upft_mlx.training.tracking import reporter

MakeRecipe = Callable[..., Recipe]
LINE = {"step": 10, "loss": 1.5, "learning_rate": 1e-4}


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Stands for both packages and remembers how they are called."""
    calls: list[tuple[Any, ...]] = []
    for service in ("wandb", "swanlab"):
        fake = SimpleNamespace(
            init=lambda service=service, **kwargs: calls.append((service, kwargs)),
            log=lambda data, step, service=service: calls.append((service, data, step)),
        )
        monkeypatch.setattr(callbacks, service, fake)
    return calls


@pytest.mark.parametrize("service", ["wandb", "swanlab"])
def test_each_line_of_the_metrics_is_sent_with_its_step(
    make_recipe: MakeRecipe, tmp_path: Path, client: list[tuple[Any, ...]], service: str
) -> None:
    report = reporter(make_recipe(train={"report_to": service}), RunDir(tmp_path / "my-run"))
    assert report is not None
    report(LINE)
    (_, started), logged = client
    assert (started["project"], started.get("name") or started["experiment_name"]) == ("upft_mlx", "my-run")
    assert started["config"]["train"]["report_to"] == service
    assert logged == (service, {**LINE, "iteration": 10}, 10)


def test_nothing_is_sent_unless_the_recipe_asks(
    make_recipe: MakeRecipe, tmp_path: Path, client: list[tuple[Any, ...]]
) -> None:
    assert reporter(make_recipe(), RunDir(tmp_path)) is None
    assert client == []


def test_a_service_that_is_not_installed_is_named_with_the_command(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "wandb", None)
    with pytest.raises(TrainingError, match=r"train\.report_to: wandb is not installed; `pip install wandb`"):
        reporter(make_recipe(train={"report_to": "wandb"}), RunDir(tmp_path))


def test_a_service_that_refuses_is_no_traceback(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise RuntimeError("api_key not configured (no-tty)")

    monkeypatch.setattr(callbacks, "wandb", SimpleNamespace(init=refuse))
    with pytest.raises(TrainingError, match="wandb cannot be used: api_key not configured"):
        reporter(make_recipe(train={"report_to": "wandb"}), RunDir(tmp_path))


def test_offline_the_services_are_told_to_stay_offline(
    make_recipe: MakeRecipe, tmp_path: Path, client: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("WANDB_MODE", "SWANLAB_MODE"):
        monkeypatch.setenv(name, "")  # so that what is set below is undone after the test
        monkeypatch.delenv(name)
    reporter(make_recipe(train={"report_to": "wandb"}), RunDir(tmp_path))
    assert (os.environ["WANDB_MODE"], os.environ["SWANLAB_MODE"]) == ("offline", "offline")
