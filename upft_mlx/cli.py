"""The `upft` command: one group, its commands in the modules imported here. Only `cli*` modules know click."""

from __future__ import annotations

from upft_mlx import (
    cli_ask,
    cli_kept,
    cli_machine,
    cli_plan,
    cli_preview,
    cli_recipes,
    cli_results,
    cli_stages,
    cli_studies,
)
from upft_mlx.cli_base import cli

__all__ = [
    "cli",
    "cli_ask",
    "cli_kept",
    "cli_machine",
    "cli_plan",
    "cli_preview",
    "cli_recipes",
    "cli_results",
    "cli_stages",
    "cli_studies",
    "main",
]


def main() -> None:
    """The entry point of the `upft` script."""
    cli()
