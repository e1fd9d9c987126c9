"""`upft plan`: a plan of a recipe on this machine or another one, with a calibration where that is possible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from upft_mlx.events import Note, Observer, ignore
from upft_mlx.models import model_hash
from upft_mlx.pipeline import versions
from upft_mlx.planner import Planner
from upft_mlx.recipe import Recipe
from upft_mlx.rooms import another_mac
from upft_mlx.rundir import RunDir
from upft_mlx.speed import calibrate, keep, key_of, known
from upft_mlx.spool import problems_of


def plan_recipe(
    recipe: Recipe,
    run_dir: str | Path,
    notify: Observer = ignore,
    *,
    mac: float | None = None,
    calibrates: bool = True,
) -> dict[str, Any]:
    """What a recipe will cost; see `Planner.facts`.

    Args:
        recipe: may have `auto` in it.
        run_dir: solutions that are there already say how long solutions are.
        notify: is told when the calibration begins.
        mac: plan for a Mac with so many GB of memory instead of this machine; then there is no time to tell.
        calibrates: whether the model may be loaded where no calibration is known.

    Raises:
        UpftError: one of its kinds, as a run would raise it.
    """
    budget = another_mac(mac) if mac is not None else None
    planner = Planner.of(recipe, problems_of(recipe), budget, RunDir(run_dir))
    if mac is None and planner.is_here:
        planner = _with_speed(planner, notify, calibrates=calibrates)
    return planner.facts()


def _with_speed(planner: Planner, notify: Observer, *, calibrates: bool) -> Planner:
    """The planner with what is known of this machine, or can be found out without taking too much memory."""
    recipe = planner.recipe
    key = key_of(recipe, model_hash(planner.model_path), len(planner.problems), versions())
    speed = known(key)
    if speed is None and calibrates and not planner.rooms.too_large(recipe):
        notify(Note("calibrating this machine with the model, about ten seconds; --no-calibration leaves it out"))
        speed = calibrate(recipe, planner.model_path, planner.problems)
        keep(key, speed)
    return planner if speed is None else planner.with_speed(speed)
