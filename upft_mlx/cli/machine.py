"""`upft doctor` and `upft completion`: the machine and its shell."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from upft_mlx.cli.complete import SHELLS, script
from upft_mlx.cli.edge import edge, quiet_libraries
from upft_mlx.cli.group import cli
from upft_mlx.cli.options import helped
from upft_mlx.escape import to_json

if TYPE_CHECKING:
    from upft_mlx.inspection.doctor import Finding


@cli.command(
    help=helped(
        "Check your machine: chip, memory, macOS, packages, Hub login (never the token), disk, power and sleep, and a "
        "known-answer test of the loss on this device. The exit status is 1 if there is an error.",
        "upft doctor",
        "upft doctor --json",
    )
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def doctor(as_json: bool, debug: bool) -> None:
    """See the help."""
    quiet_libraries()
    findings: list[Finding] = []
    with edge(debug=debug):
        from upft_mlx.inspection.doctor import examine, failed
        from upft_mlx.ui.doctor import print_findings

        def noted() -> Iterator[dict[str, Any]]:
            for finding in examine():
                findings.append(finding)
                yield finding.dump()

        if as_json:
            found = list(noted())
            click.echo(to_json({"ok": not failed(findings), "findings": found}))
        else:
            print_findings(noted())
    if failed(findings):
        sys.exit(1)


@cli.command(
    help=helped(
        "Print a script that lets your shell complete upft's commands, options, recipes, runs and --set fields. Its "
        "last line says how to install it.",
        'eval "$(upft completion zsh)"',
        "upft completion fish > ~/.config/fish/completions/upft.fish",
    )
)
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """See the help."""
    click.echo(script(shell), nl=False)
