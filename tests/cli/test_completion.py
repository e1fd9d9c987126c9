"""What the shell completes, through click's own protocol, and once in a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from conftest import ROOT
from helpers.input import upft, write

from upft_mlx.cli import complete
from upft_mlx.cli.main import cli
from upft_mlx.errors import RecipeError
from upft_mlx.recipe.find import shipped_recipes
from upft_mlx.recipe.load import load_recipe
from upft_mlx.recipe.messages import field_names
from upft_mlx.recipe.schema import Recipe


def completed(*words: str) -> list[str]:
    """What stands to choose for the last word."""
    *before, incomplete = words
    found = ShellComplete(cli, {}, "upft", "_UPFT_COMPLETE").get_completions(before, incomplete)
    assert {item.type for item in found} <= {"plain"}
    return [item.value for item in found]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("mine.yaml", "other.yml", "notes.txt", "sub/deep.yaml", ".hidden.yaml"):
        write(tmp_path / name, "x")
    for name in ("first", "second"):
        write(tmp_path / "runs" / name / "recipe.json", "{}")
    (tmp_path / "runs" / "unfinished").mkdir()
    return tmp_path


def test_commands_and_options_are_completed() -> None:
    assert completed("doc") == ["doctor"]
    assert "--set" in completed("run", "--s")


def test_recipes_are_shipped_names_yaml_files_and_folders_on_the_way() -> None:
    assert completed("run", "") == [*shipped_recipes(), "mine.yaml", "other.yml", "runs/", "sub/", "first", "second"]
    assert completed("run", "quick") == ["quickstart"]
    assert completed("run", "m") == ["mine.yaml"]
    assert completed("train", "sub/") == ["sub/deep.yaml"]
    assert completed("train", "./m") == ["./mine.yaml"]
    assert completed("run", ".h") == [".hidden.yaml"]
    assert completed("run", "nowhere/") == []
    assert completed("run", "~nobody-of-this-name/") == []


def test_every_recipe_argument_is_completed() -> None:
    for name, command in cli.commands.items():
        for parameter in command.params:
            if isinstance(parameter, click.Argument) and parameter.name == "recipe":
                assert completed(name, "quickst") == ["quickstart"], name


def test_every_set_option_is_completed() -> None:
    for name, command in cli.commands.items():
        if any("--set" in parameter.opts for parameter in command.params):
            assert completed(name, "quickstart", "--set", "prefix.le") == ["prefix.length="], name


def test_show_completes_runs_by_name_and_recipe_files() -> None:
    assert completed("show", "m") == ["mine.yaml"]
    assert completed("show", "s") == ["second", "sub/"]
    assert completed("show", "runs/f") == ["runs/first/"]


def test_ask_completes_recipes_and_runs_each_once() -> None:
    assert completed("ask", "s") == ["sub/", "second"]
    assert completed("ask", "quickst") == ["quickstart"]
    write(Path("runs/quickstart/recipe.json"), "{}")
    assert completed("ask", "quickst") == ["quickstart"]


def test_set_completes_fields_and_leaves_the_value_to_the_user() -> None:
    assert completed("run", "quickstart", "--set", "seed") == ["seed="]
    assert completed("run", "quickstart", "--set", "quantize.") == ["quantize.bits=", "quantize.group_size="]
    assert completed("run", "quickstart", "--set", "prefix.length=") == []


def test_the_fields_are_those_of_the_recipe_in_its_order() -> None:
    names = field_names()
    assert len(names) == len(set(names))
    assert [name for name in names if "." not in name] == [
        name for name in Recipe.model_fields if not any(other.startswith(f"{name}.") for other in names)
    ]
    assert "unknown" in said_of("prefix.lenght")
    for name in names:
        assert "unknown" not in said_of(name), name


def said_of(field: str) -> str:
    """What is said when `--set` takes the field without a value."""
    try:
        load_recipe("quickstart", [f"{field}=null"])
    except RecipeError as error:
        return str(error)
    return ""


# Scripts.


@pytest.mark.parametrize("shell", complete.SHELLS)
def test_the_script_of_each_shell_says_how_to_install_it(shell: str) -> None:
    shown = upft("completion", shell)
    assert shown.exit_code == 0
    assert f"_UPFT_COMPLETE={shell}_complete" in shown.stdout
    last = shown.stdout.splitlines()[-1]
    assert last.startswith("# To have it in every new shell: ")
    assert f"upft completion {shell}" in last
    if program := shutil.which(shell):
        subprocess.run([program, "-n", "/dev/stdin"], input=shown.stdout, text=True, check=True, timeout=20)


@pytest.mark.parametrize(("shell", "part"), [("bash", "compopt -o nospace"), ("zsh", "compadd -U -V unsorted -S ''")])
def test_no_space_follows_what_must_go_on(shell: str, part: str) -> None:
    assert part in upft("completion", shell).stdout


def test_another_shell_is_a_usage_error() -> None:
    shown = upft("completion", "tcsh")
    assert shown.exit_code == 2
    assert "'bash', 'zsh', 'fish'" in shown.stderr


ASK = """
compopt() { echo "compopt $1 $2"; }
eval "$(upft completion bash)"
ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _upft_completion upft; echo "${COMPREPLY[*]}"; }
complete -p upft
ask upft run m
ask upft run quickstart --set prefix.len
"""


def bash_version() -> tuple[int, ...]:
    bash = shutil.which("bash")
    if bash is None:
        return (0, 0)
    text = subprocess.run([bash, "-c", 'echo "${BASH_VERSINFO[@]:0:2}"'], capture_output=True, text=True, check=True)
    return tuple(map(int, text.stdout.split()))


@pytest.mark.skipif(bash_version() < (4, 4), reason="click's completion needs bash 4.4; macOS has 3.2")
def test_a_real_bash_completes(folder: Path) -> None:
    code = "import sys; sys.argv[0] = 'upft'; from upft_mlx.__main__ import main; main()"
    wrapper = write(folder / "bin" / "upft", f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$@"\n')
    wrapper.chmod(0o755)
    environment = {**os.environ, "PATH": f"{wrapper.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = ["bash", "--norc", "--noprofile", "-c", ASK]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.stdout.splitlines() == [
        "complete -o nosort -F _upft_completion upft",
        "mine.yaml",
        "compopt -o nospace",
        "prefix.length=",
    ], done.stderr
