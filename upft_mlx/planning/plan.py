"""`upft plan`: plan a recipe for this machine or another one, with a calibration if possible."""

from __future__ import annotations

from pathlib import Path

from upft_mlx.data.on_disk import recipe_problems
from upft_mlx.events import Note, Observer, ignore
from upft_mlx.models.find import model_hash
from upft_mlx.planning.budget import another_mac
from upft_mlx.planning.estimate import Estimate
from upft_mlx.planning.speed import calibrate, keep, key_of, known
from upft_mlx.recipe.schema import Recipe
from upft_mlx.results.plan import Plan
from upft_mlx.rundir import RunDir, versions


def plan_recipe(
    recipe: Recipe,
    run_dir: str | Path,
    notify: Observer = ignore,
    *,
    mac: float | None = None,
    calibrates: bool = True,
) -> Plan:
    """What a recipe will cost; see `Estimate.plan`.

    Args:
        recipe: may have `auto` in it.
        run_dir: its solutions, if any, show how long solutions are.
        notify: receives a note when the calibration begins.
        mac: plan for a Mac with this much memory (GB) instead of this machine; then there is no time estimate.
        calibrates: whether the model may be loaded if there is no calibration yet.

    Raises:
        UpftError: one of its kinds, as a run would raise it.
    """
    budget = another_mac(mac) if mac is not None else None
    estimate = Estimate.of(recipe, recipe_problems(recipe), budget, RunDir(run_dir))
    if mac is None and estimate.is_here:
        recipe = estimate.recipe
        key = key_of(recipe, model_hash(estimate.model_path), len(estimate.problems), versions())
        speed = known(key)
        if speed is None and calibrates and not estimate.memory_plan.too_large(recipe):
            notify(Note("timing a short trial, about ten seconds if the machine is idle; --no-calibration skips it"))
            speed = calibrate(recipe, estimate.model_path, estimate.problems, notify)
            keep(key, speed)
        estimate = estimate if speed is None else estimate.with_speed(speed)
    return estimate.plan()
