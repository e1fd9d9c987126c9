"""`upft kept` and `adopt`: earlier versions of a run's stages, and files that were changed by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from upft_mlx.cli.complete import complete_runs
from upft_mlx.cli.edge import edge, quiet_libraries
from upft_mlx.cli.group import cli
from upft_mlx.cli.options import helped
from upft_mlx.escape import to_json
from upft_mlx.quantities import disk

if TYPE_CHECKING:
    from upft_mlx.rundir import RunDir


@cli.command(
    help=helped(
        "List, restore or remove earlier versions of a run's stages, and unfinished stages. An earlier version is kept "
        "when a stage runs again with other settings. RUN is a folder, a name in runs/, or the recipe's file.",
        "upft kept my-recipe.yaml",
        "upft kept runs/my-recipe --restore train-0123456789abcdef",
    )
)
@click.argument("run", shell_complete=complete_runs)
@click.option("--restore", metavar="NAME", help="Put this version back; the current one is kept instead.")
@click.option("--remove", metavar="NAME", help="Delete this version for good.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def kept(run: str, restore: str | None, remove: str | None, as_json: bool, debug: bool) -> None:
    """See the help."""
    if restore and remove:
        raise click.UsageError("give --restore or --remove, not both")
    quiet_libraries()
    with edge(debug=debug):
        from upft_mlx import versions
        from upft_mlx.inspection import browse
        from upft_mlx.ui import views

        found = browse.find_run(run)
        if restore or remove:
            with found.locked():
                _say_settled(found, as_json=as_json)
                if restore and not versions.is_in_place(found, restore):
                    versions.bring_back(found, versions.find(found, restore))
                if remove:
                    versions.forget(versions.find(found, remove))
        facts = _facts(found)
        if as_json:
            click.echo(to_json(facts))
            return
        for version in facts["kept"] + facts["unfinished"]:
            state = "" if version["whole"] else ", damaged" if version["done"] else ", not finished"
            said = [version["detail"]] if version["detail"] else []
            said += [f"made with {', '.join(version['settings'])}"] if version["settings"] else []
            size = f"{disk(version['bytes'])}{state}"
            views.print_text("  ".join([version["name"], version["when"], size, *filter(None, ["; ".join(said)])]))
        if not facts["kept"] + facts["unfinished"]:
            views.print_text(f"{found.root}: no earlier versions")


def _say_settled(run: RunDir, *, as_json: bool) -> None:
    """Repair the ledger and report it at once, even if the command is refused later; on stderr if stdout has JSON."""
    from upft_mlx.ui import views
    from upft_mlx.ui.console import open_console
    from upft_mlx.versions import settle

    for text in settle(run):
        views.print_text(text, console=open_console(stderr=as_json))


def _facts(run: RunDir) -> dict[str, Any]:
    """The versions as plain values, with the settings that differ from the current version's."""
    from upft_mlx.job import differences
    from upft_mlx.versions import Version, stamp, unfinished
    from upft_mlx.versions import kept as kept_versions

    def facts(version: Version) -> dict[str, Any]:
        now = run.entry(version.stage)
        inputs = (now.inputs if now is not None else None) or {}
        return {
            "name": version.name,
            "stage": version.stage,
            "when": stamp(version),
            "bytes": version.size,
            "done": version.entry.done,
            "whole": version.is_whole,
            "detail": version.entry.detail,
            "settings": differences(version.entry.inputs, inputs),
        }

    return {
        "run": str(run.root),
        "kept": [facts(version) for version in kept_versions(run)],
        "unfinished": [facts(version) for version in unfinished(run)],
    }


@cli.command(
    help=helped(
        "Accept solutions, training rows or an adapter that you changed by hand. Later stages then use them, and the "
        "model card says that they were changed. RUN is a folder, a name in runs/, or the recipe's file.",
        "upft adopt runs/my-recipe",
    )
)
@click.argument("run", shell_complete=complete_runs)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def adopt(run: str, as_json: bool, debug: bool) -> None:
    """See the help."""
    quiet_libraries()
    with edge(debug=debug):
        from upft_mlx import versions
        from upft_mlx.inspection import browse
        from upft_mlx.ui import views

        found = browse.find_run(run)
        with found.locked():
            _say_settled(found, as_json=as_json)
            names = versions.adopt(found)
        if as_json:
            click.echo(to_json({"run": str(found.root), "adopted": names}))
            return
        for name in names:
            views.print_text(f"{found.root / name}: adopted; the model card will say so")
