"""The `upft` command: one group, with its commands in the modules imported here. Only this package imports click."""

from __future__ import annotations

from upft_mlx.cli import after, ask, before, kept, machine, run, studies
from upft_mlx.cli.group import cli

__all__ = ["cli", "after", "ask", "before", "kept", "machine", "run", "studies"]
