"""The `upft` command: one group, its commands in the modules imported here. Only `cli*` modules know click."""

from __future__ import annotations

from upft_mlx.cli import after, ask, before, kept, machine, plan, preview, run, studies
from upft_mlx.cli.edge import cli

__all__ = [
    "cli",
    "ask",
    "kept",
    "machine",
    "plan",
    "preview",
    "before",
    "after",
    "run",
    "studies",
    "main",
]


def main() -> None:
    """The entry point of the `upft` script."""
    cli()
