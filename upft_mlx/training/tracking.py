"""Training metrics to TensorBoard, Weights & Biases or SwanLab; only where the recipe asks for it."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from upft_mlx.errors import TrainingError
from upft_mlx.machine.requirements import pip_install
from upft_mlx.models.hub import is_offline, reason
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rundir import RunDir

Report = Callable[[Mapping[str, Any]], None]
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "swanlab": "swanlab"}
"""The package that writes for each value of `train.report_to`; pip and Python call it the same."""


def refuse_missing_tracker(recipe: Recipe) -> None:
    """Refuse a tracker whose package is not installed.

    Raises:
        TrainingError: says how to install it.
    """
    service = recipe.train.report_to
    if service is not None and importlib.util.find_spec(PACKAGES[service]) is None:
        raise _not_installed(service)


def reporter(recipe: Recipe, run: RunDir, step: int = 0) -> Report | None:
    """What sends a line of metrics.jsonl on, None where the recipe asks for nothing.

    TensorBoard's events go to `tensorboard/` in the run directory. Offline (`--offline`) the services keep what they
    get in the run directory and send nothing.

    Args:
        recipe: with `train.report_to`.
        run: the run directory.
        step: the step that training continues after; TensorBoard hides what an earlier process wrote beyond it.

    Raises:
        TrainingError: the package is not installed, or its service refuses.
    """
    service = recipe.train.report_to
    if service is None:
        return None
    if is_offline():
        os.environ.setdefault("WANDB_MODE", "offline")
        os.environ.setdefault("SWANLAB_MODE", "offline")
    try:
        if service == "tensorboard":
            return _to_tensorboard(run, step)
        from mlx_lm.tuner.callbacks import get_reporting_callbacks

        callback = get_reporting_callbacks(service, "upft_mlx", str(run.root), recipe.dump())
    except ImportError:
        raise _not_installed(service) from None
    except Exception as error:  # whatever the service's client raises: not logged in, no network
        raise TrainingError(f"{service} cannot be used: {reason(error)}", field="train.report_to") from error
    return lambda line: callback.on_train_loss_report({**line, "iteration": line["step"]})


def _to_tensorboard(run: RunDir, step: int) -> Report:
    from tensorboardX import SummaryWriter

    # A thread of its own writes, every few seconds and when the process ends.
    writer = SummaryWriter(str(run.root / "tensorboard"), purge_step=step + 1, flush_secs=5)

    def report(line: Mapping[str, Any]) -> None:
        for name, value in line.items():
            if name != "step":
                writer.add_scalar(f"train/{name}", value, line["step"])

    return report


def _not_installed(service: str) -> TrainingError:
    package = PACKAGES[service]
    named = service if package == service else f"{package}, which writes for {service},"
    command = f"{pip_install(sys.executable)} {package}"
    return TrainingError(
        f"{named} is not installed", f"`{command}` installs it; or leave the field out", field="train.report_to"
    )
