"""The verbs of the command line as functions: a recipe in, the facts of the run out.

    from upft_mlx import load_recipe, run
    facts = run(load_recipe("quickstart"))

Each returns what its command prints with `--json`. `notify` is called with what happens (`events.py`); `print` will do.
The command line says what goes wrong in one message; here it is raised (`errors.py`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from upft_mlx import machine, pipeline, planning
from upft_mlx.events import Observer, ignore
from upft_mlx.recipe import Recipe

Facts = dict[str, Any]
"""Plain values, ready for `json.dumps`."""


def run(recipe: Recipe, run_dir: str | Path | None = None, notify: Observer = ignore) -> Facts:
    """All stages: problems to a fused, measured model. Repeats nothing that is done, continues what was interrupted.

    Args:
        recipe: the recipe.
        run_dir: where the run is kept; None: runs/NAME.
        notify: receives progress events.

    Returns:
        The facts of the run, as in report.md.

    Raises:
        UpftError: one of its kinds; the run directory keeps what was done.
    """
    _begin()
    return pipeline.run(recipe, _folder(recipe, run_dir), notify)


def plan(
    recipe: Recipe,
    run_dir: str | Path | None = None,
    notify: Observer = ignore,
    *,
    mac: float | None = None,
    calibrates: bool = True,
) -> Facts:
    """What the recipe will cost: tokens, memory, disk and time.

    Args:
        recipe: the recipe.
        run_dir: solutions that are there already say how long solutions are; None: runs/NAME.
        notify: receives a note when the calibration begins.
        mac: plan for a Mac with so many GB of memory instead of this machine.
        calibrates: whether the model may be loaded, about ten seconds, where this machine's speed is not known yet.

    Returns:
        The facts of `upft plan --json`.

    Raises:
        UpftError: one of its kinds, as a run would raise it.
    """
    _begin()
    return planning.plan_recipe(recipe, _folder(recipe, run_dir), notify, mac=mac, calibrates=calibrates)


def generate(recipe: Recipe, run_dir: str | Path | None = None, notify: Observer = ignore) -> Facts:
    """Sample the solutions that the recipe needs into solutions.jsonl; continues where it stopped. See `run`."""
    return _stage("generate", recipe, run_dir, notify)


def build(recipe: Recipe, run_dir: str | Path | None = None, notify: Observer = ignore) -> Facts:
    """Turn solutions.jsonl into the training and validation rows in dataset/. See `run`.

    Raises:
        RunDirError: there are no current solutions.
        UpftError: another of its kinds.
    """
    return _stage("build", recipe, run_dir, notify)


def train(recipe: Recipe, run_dir: str | Path | None = None, notify: Observer = ignore) -> Facts:
    """Train the LoRA adapter on dataset/; continues from the last checkpoint. See `run`.

    Raises:
        RunDirError: there is no current dataset.
        UpftError: another of its kinds.
    """
    return _stage("train", recipe, run_dir, notify)


def evaluate(
    recipe: Recipe,
    run_dir: str | Path | None = None,
    notify: Observer = ignore,
    *,
    adapter: str | Path | None = None,
) -> Facts:
    """Measure base and, once there is an adapter, tuned on the recipe's benchmarks. See `run`.

    Args:
        recipe: the recipe.
        run_dir: where the run is kept; None: runs/NAME.
        notify: receives progress events.
        adapter: the folder of one to measure instead of the run's own; what is found is kept apart, in
            looks/ADAPTER.

    Raises:
        UpftError: one of its kinds.
    """
    foreign = None if adapter is None else Path(adapter)
    look = None if foreign is None else f"adapter-{foreign.resolve().name}"
    return _stage("evaluate", recipe, run_dir, notify, adapter=foreign, look=look)


def fuse(recipe: Recipe, run_dir: str | Path | None = None, notify: Observer = ignore, *, force: bool = False) -> Facts:
    """Write the adapter into the weights: fused/, a folder that mlx-lm loads. See `run`.

    Args:
        recipe: the recipe.
        run_dir: where the run is kept; None: runs/NAME.
        notify: receives progress events.
        force: fuse even if less than `publish.min_retained` is kept.

    Raises:
        RunDirError: there is no current adapter.
        FuseError: fusing would lose too much.
        UpftError: another of its kinds.
    """
    return _stage("fuse", recipe, run_dir, notify, force=force)


def _stage(stage: str, recipe: Recipe, run_dir: str | Path | None, notify: Observer, **options: Any) -> Facts:
    _begin()
    return pipeline.run_stage(recipe, _folder(recipe, run_dir), stage, notify, **options)


def _folder(recipe: Recipe, run_dir: str | Path | None) -> Path:
    """The run directory, as the command line chooses it."""
    return Path("runs") / recipe.name if run_dir is None else Path(run_dir)


def _begin() -> None:
    """As on the command line: not on a machine that cannot compute; no telemetry, unless the environment wants it."""
    machine.check()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
