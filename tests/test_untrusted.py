"""What is let in: model folders, data, recipes and run directories of strangers run, read and publish nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import MODEL
from helpers_input import assert_fails, no_network, upft, write

from upft_mlx.load import load_recipe

__all__ = ["no_network"]
pytestmark = pytest.mark.usefixtures("no_network")

EVIL = "qwen2\ntrust_remote_code: true #"
QUESTIONS = "".join(json.dumps({"question": f"{n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(9))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder; take back what commands set in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "0")
    return tmp_path


def model(folder: Path, name: str = "model") -> Path:
    """A copy of the embedded model that a test may change."""
    return Path(shutil.copytree(MODEL, folder / name))


def change(path: Path, **values: object) -> None:
    """Set keys of a JSON file."""
    write(path, json.dumps({**json.loads(path.read_text()), **values}))


# Recipes that `upft new` writes.


def test_a_model_type_with_a_line_break_does_not_switch_on_remote_code(folder: Path) -> None:
    change(model(folder) / "config.json", model_type=EVIL, model_file="own.py")
    write(folder / "model" / "own.py", f"open({str(folder / 'ran')!r}, 'w')")
    write(folder / "my.jsonl", QUESTIONS)
    upft("new", "model", "my.jsonl")
    upft("plan", "my.yaml")
    upft("preview", "my.yaml")
    written = (folder / "my.yaml").read_text() if (folder / "my.yaml").exists() else ""
    assert "\ntrust_remote_code" not in written
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("ending", ["\n", "\r", "\x85", "\u2028"])
def test_a_folders_name_with_a_line_break_does_not_switch_on_remote_code(folder: Path, ending: str) -> None:
    name = f"m{ending}trust_remote_code: true #"
    model(folder, name)
    write(folder / f"{name}.jsonl", QUESTIONS)
    made = upft("new", f"./{name}", f"{name}.jsonl", "--output", "my.yaml")
    assert made.exit_code == 0, made.stderr
    recipe = load_recipe("my.yaml")
    assert not recipe.trust_remote_code
    assert recipe.model == str(folder / name)


# YAML.


def bomb(levels: int = 9, width: int = 9) -> str:
    """Lists of aliases of lists of aliases: a few lines that stand for width ** levels values."""
    lines = [f"a0: &a0 [{', '.join(['lol'] * width)}]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def test_aliases_of_aliases_are_refused_at_once(folder: Path) -> None:
    write(folder / "bomb.yaml", bomb())
    assert_fails(upft("plan", "bomb.yaml"), 2, "bomb.yaml:", "more than 16 aliases")
    value = "[&a [x, x], " + "*a, " * 20 + "*a]"
    assert_fails(upft("plan", "quickstart", "--set", f"lora.keys={value}"), 2, "is not a valid value")


def test_a_few_aliases_are_taken(folder: Path) -> None:
    write(folder / "my.yaml", "model: builtin:arithmetic\nproblems: {builtin: arithmetic}\n")
    with (folder / "my.yaml").open("a") as file:
        file.write("generate: &all {max_tokens: &n 77}\nevaluate: {max_tokens: *n}\n")
    recipe = load_recipe("my.yaml")
    assert (recipe.generate.max_tokens, recipe.evaluate.max_tokens) == (77, 77)


@pytest.mark.parametrize(
    "text",
    [
        "model: [{}]\nproblems: {{builtin: arithmetic}}\n",
        "model: builtin:arithmetic\nproblems: {{builtin: {}}}\n",
        "model: builtin:arithmetic\nproblems: {{builtin: arithmetic}}\npublish: {{repo: '{}'}}\n",
        "model: builtin:arithmetic\nproblems: {{builtin: arithmetic}}\n? {}\n: 1\n",
    ],
)
def test_values_in_messages_are_cut_to_a_line(folder: Path, text: str) -> None:
    write(folder / "my.yaml", text.format("x" * 100_000))
    found = upft("plan", "my.yaml")
    assert_fails(found, 2, "my.yaml:", "x" * 50)
    assert max(map(len, found.stderr.splitlines())) < 1200


def test_a_recipe_of_many_megabytes_is_refused_at_once(folder: Path) -> None:
    write(folder / "my.yaml", "a: 1\n" * 1_000_000)
    assert_fails(upft("plan", "my.yaml"), 2, "larger than 256 KB")
