"""`upft plan`: what a run will cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from upft_mlx.cli_base import cli, common, folder_of, helped, prepared, recipe_argument
from upft_mlx.escape import to_json


@cli.command(
    help=helped(
        "Say what RECIPE will cost, before anything is loaded: tokens to sample and train (and what SFT and RFT would "
        "take), peak memory of each stage against this machine, disk, and time. The time needs a calibration of about "
        "ten seconds with the model, which is kept for the next time.",
        "upft plan my-recipe.yaml",
        "upft plan qwen2.5-math-7b-math12k --mac 16",
        "upft plan my-recipe.yaml --set train.micro_batch_size=auto --no-calibration",
    )
)
@recipe_argument
@click.option("--mac", type=click.FloatRange(min=1), metavar="GB", help="Plan for a Mac with so much memory.")
@click.option("--no-calibration", is_flag=True, help="Load nothing; without an earlier calibration no time is told.")
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
        from upft_mlx import ui
        from upft_mlx.planning import plan_recipe

        with ui.open_view(plain=plain, stderr=as_json) as notify:
            facts = plan_recipe(
                loaded, folder_of(recipe, loaded, run_dir), notify, mac=mac, calibrates=not no_calibration
            )
        if as_json:
            click.echo(to_json(facts))
        else:
            ui.print_plan(facts)


__all__: list[Any] = ["plan"]
