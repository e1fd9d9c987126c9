"""`upft plan`: what a run will cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from upft_mlx.cli.edge import cli, common, folder_of, helped, prepared, recipe_argument
from upft_mlx.escape import to_json


@cli.command(
    help=helped(
        "Estimate what RECIPE will cost, before anything is loaded: tokens to sample and train on (also for SFT and "
        "RFT), peak memory of each stage against your machine, disk, and time. To estimate the time, the model runs a "
        "short trial of about ten seconds; its result is kept.",
        "upft plan my-recipe.yaml",
        "upft plan qwen2.5-math-7b-math12k --mac 16",
        "upft plan my-recipe.yaml --set train.micro_batch_size=auto --no-calibration",
    )
)
@recipe_argument
@click.option("--mac", type=click.FloatRange(min=1), metavar="GB", help="Plan for a Mac with this much memory.")
@click.option("--no-calibration", is_flag=True, help="Load nothing; no time estimate unless calibrated before.")
@common
def plan(
    recipe: str,
    mac: float | None,
    no_calibration: bool,
    run_dir: Path | None,
    overrides: Sequence[str],
    offline: bool,
    plain: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """See the help."""
    with prepared(recipe, overrides, offline=offline, debug=debug) as loaded:
        from upft_mlx.planning.plan import plan_recipe
        from upft_mlx.ui import views

        with views.open_view(plain=plain, stderr=as_json) as notify:
            facts = plan_recipe(
                loaded, folder_of(recipe, loaded, run_dir), notify, mac=mac, calibrates=not no_calibration
            )
        if as_json:
            click.echo(to_json(facts))
        else:
            views.print_plan(facts)


__all__: list[Any] = ["plan"]
