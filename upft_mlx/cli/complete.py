"""Shell completion of recipes, runs and `--set` fields, and the scripts that install it."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import BashComplete, CompletionItem, FishComplete, ShellComplete, ZshComplete

_RECIPES = (".yaml", ".yml")


def complete_recipes(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of shipped recipes, YAML files and folders."""
    from upft_mlx.recipe.find import shipped_recipes

    names = [name for name in shipped_recipes() if name.startswith(incomplete)]
    return [CompletionItem(value) for value in (*names, *_paths(incomplete))]


def complete_runs(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of the runs in runs/, run folders and recipe files."""
    runs = sorted(path.parent.name for path in Path("runs").glob("*/recipe.json"))
    names = [name for name in runs if name.startswith(incomplete)]
    return [CompletionItem(value) for value in (*names, *_paths(incomplete))]


def complete_targets(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Both: recipes and runs, each once."""
    items = [c for find in (complete_recipes, complete_runs) for c in find(context, parameter, incomplete)]
    return list({item.value: item for item in items}.values())


def complete_fields(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """`section.field=` for `--set`; the value is the user's."""
    from upft_mlx.recipe.messages import field_names

    return [CompletionItem(f"{name}=") for name in field_names() if name.startswith(incomplete)]


def _paths(incomplete: str) -> list[str]:
    """Recipes and folders (with a slash) that complete a path; hidden ones only if it begins with a dot."""
    head, slash, name = incomplete.rpartition("/")
    try:
        entries = sorted(Path(head + slash).expanduser().iterdir())
    except (OSError, RuntimeError):  # no such folder, or no such user: ~nobody/
        return []
    found = [
        path for path in entries if path.name.startswith(name) and path.name.startswith(".") <= name.startswith(".")
    ]
    folders = [f"{head}{slash}{path.name}/" for path in found if path.is_dir()]
    return [f"{head}{slash}{path.name}" for path in found if path.suffix in _RECIPES and path.is_file()] + folders


# The scripts: click's, but that no space follows a folder or `field=`, behind which more is to come. (fish knows that.)

_BASH = (
    "    return 0\n",
    "    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=/] ]] && compopt -o nospace\n    return 0\n",
)
_ZSH = (
    "        compadd -U -V unsorted -a completions\n",
    "        compadd -U -V unsorted -S '' -- ${(M)completions:#*[=/]}\n"
    "        compadd -U -V unsorted -- ${completions:#*[=/]}\n",
)
_SHELLS: dict[str, tuple[type[ShellComplete], tuple[str, str], str]] = {
    "bash": (BashComplete, _BASH, """echo 'eval "$(upft completion bash)"' >> ~/.bashrc"""),
    "zsh": (ZshComplete, _ZSH, """echo 'autoload -Uz compinit; compinit; eval "$(upft completion zsh)"' >> ~/.zshrc"""),
    "fish": (
        FishComplete,
        ("", ""),
        "mkdir -p ~/.config/fish/completions; upft completion fish > ~/.config/fish/completions/upft.fish",
    ),
}
SHELLS = tuple(_SHELLS)


def script(shell: str) -> str:
    """The script that a shell reads to complete `upft`, with the command that installs it."""
    kind, (theirs, ours), install = _SHELLS[shell]
    text = kind.source_template.replace(theirs, ours)
    names = {"complete_func": "_upft_completion", "complete_var": "_UPFT_COMPLETE", "prog_name": "upft"}
    return f"{(text % names).rstrip()}\n\n# To have it in every new shell: {install}\n"
