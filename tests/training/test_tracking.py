"""Metrics to a tracker, with a stand-in for its client; mlx-lm's callbacks are the real ones."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlx_lm.tuner import callbacks

from upft_mlx.errors import TrainingError
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rundir import RunDir
from upft_mlx.training.tracking import PACKAGES, refuse_missing_tracker, reporter

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


def test_tensorboard_gets_each_number_in_the_run_directory(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []

    def writer(folder: str, purge_step: int, flush_secs: int) -> Any:
        calls.append((folder, purge_step, flush_secs < 60))
        return SimpleNamespace(add_scalar=lambda *arguments: calls.append(arguments))

    monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=writer))
    report = reporter(make_recipe(train={"report_to": "tensorboard"}), RunDir(tmp_path / "my-run"), step=8)
    assert report is not None
    report(LINE)
    assert calls == [
        (str(tmp_path / "my-run" / "tensorboard"), 9, True),
        ("train/loss", 1.5, 10),
        ("train/learning_rate", 1e-4, 10),
    ]


def test_the_events_are_on_disk_when_the_process_ends(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    from tensorboardX.proto.event_pb2 import Event

    made: list[Any] = []

    class Kept(real.SummaryWriter):  # type: ignore[misc, name-defined]
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            made.append(self)

    monkeypatch.setattr(real, "SummaryWriter", Kept)
    report = reporter(make_recipe(train={"report_to": "tensorboard"}), RunDir(tmp_path))
    assert report is not None
    report(LINE)
    made[0].close()  # as tensorboardX does at exit
    (path,) = (tmp_path / "tensorboard").iterdir()
    data = path.read_bytes()
    found: dict[tuple[str, int], Any] = {}
    while data:  # length, its checksum, event, its checksum
        size = int.from_bytes(data[:8], "little")
        event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    assert found == {("train/loss", 10): 1.5, ("train/learning_rate", 10): pytest.approx(1e-4)}


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
    with pytest.raises(TrainingError, match=r"train\.report_to: wandb is not installed; `\S+ -m pip install wandb`"):
        reporter(make_recipe(train={"report_to": "wandb"}), RunDir(tmp_path))


@pytest.mark.parametrize("service", PACKAGES)
def test_a_tracker_that_is_not_installed_is_refused_at_the_start(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, service: str
) -> None:
    recipe = make_recipe(train={"report_to": service})
    monkeypatch.setattr("importlib.util.find_spec", {PACKAGES[service]: "found"}.get)
    refuse_missing_tracker(recipe)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TrainingError, match=rf"is not installed; `\S+ -m pip install {PACKAGES[service]}`"):
        refuse_missing_tracker(recipe)


def test_a_service_that_refuses_is_no_traceback(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: Any) -> None:
        raise RuntimeError("api_key not configured (no-tty)")

    monkeypatch.setattr(callbacks, "wandb", SimpleNamespace(init=refuse))
    with pytest.raises(TrainingError, match="wandb cannot be used: api_key not configured"):
        reporter(make_recipe(train={"report_to": "wandb"}), RunDir(tmp_path))


@pytest.mark.parametrize(("told", "mode"), [("1", "offline"), ("0", None)])
def test_offline_the_services_are_told_to_stay_offline(
    told: str,
    mode: str | None,
    make_recipe: MakeRecipe,
    tmp_path: Path,
    client: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", told)
    for name in ("WANDB_MODE", "SWANLAB_MODE"):
        monkeypatch.setenv(name, "")  # so that what is set below is undone after the test
        monkeypatch.delenv(name)
    reporter(make_recipe(train={"report_to": "wandb"}), RunDir(tmp_path))
    assert [os.environ.get(name) for name in ("WANDB_MODE", "SWANLAB_MODE")] == [mode, mode]
