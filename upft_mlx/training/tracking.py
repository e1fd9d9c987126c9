"""Training metrics to Weights & Biases or SwanLab, through mlx-lm's callbacks; only where the recipe asks for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from upft_mlx.errors import TrainingError
from upft_mlx.models.hub import reason
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rundir import RunDir

Report = Callable[[Mapping[str, Any]], None]


def reporter(recipe: Recipe, run: RunDir) -> Report | None:
    """What sends a line of metrics.jsonl on, None where the recipe asks for nothing.

    Offline (`--offline`) the services keep what they get in the run directory and send nothing.

    Raises:
        TrainingError: the package is not installed, or its service refuses.
    """
    service = recipe.train.report_to
    if service is None:
        return None
    if os.environ.get("HF_HUB_OFFLINE"):
        os.environ.setdefault("WANDB_MODE", "offline")
        os.environ.setdefault("SWANLAB_MODE", "offline")
    from mlx_lm.tuner.callbacks import get_reporting_callbacks

    try:
        callback = get_reporting_callbacks(service, "upft_mlx", str(run.root), recipe.dump())
    except ImportError:
        raise TrainingError(
            f"{service} is not installed", f"`pip install {service}`, or leave the field out", field="train.report_to"
        ) from None
    except Exception as error:  # whatever the service's client raises: not logged in, no network
        raise TrainingError(f"{service} cannot be used: {reason(error)}", field="train.report_to") from error
    return lambda line: callback.on_train_loss_report({**line, "iteration": line["step"]})
