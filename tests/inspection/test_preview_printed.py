"""`upft preview`: what it marks is what the trainer supervises, what it shows as a prompt is what the stages pass: what
is printed.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import MODEL
from helpers.input import assert_fails, fake_hub, no_network, process, upft, write
from helpers.preview import MakeRecipe, folder, previewed, printed
from rich.console import Console

from upft_mlx.ui.preview import print_preview

__all__ = ["folder", "no_network"]

pytestmark = pytest.mark.usefixtures("no_network")


def facts_of(*rows: dict[str, Any]) -> dict[str, Any]:
    about = {"id": "a/0", "kind": "prefix", "place": "", "trains": True, "cut": 0}
    rows = tuple({**about, "weights": [float(s) for s in row["supervised"]], **row} for row in rows)
    empty: dict[str, Any] = {"prompts": [], "prompts_differ": [], "rules": []}
    return {"note": "a note", "special_ids": [1, 2], "eos_ids": [2], "rows": list(rows), **empty}


ROW = {
    "ids": [1, 5, 6, 7, 8, 2],
    "tokens": ["<s>", "Hi", "\n", " a", "b", "</s>"],
    "supervised": [False, False, False, True, True, True],
    "shared": 1,
    "padding": 3,
}


def test_without_colour_marks_say_what_is_supervised_and_where_tokens_end() -> None:
    lines = printed(facts_of(ROW)).splitlines()
    assert "prefix  a/0  3 masked (1 shared), 3 supervised at 1/3 each, 3 padding" in lines
    assert lines[lines.index("<s>‖Hi¦↵") + 1] == "« a»«b»«</s> EOS»□□□"
    assert "\x1b" not in "".join(lines)
    weighed = printed(facts_of({**ROW, "weights": [0, 0, 0, 0.4, 0.4, 0.2]}))
    assert "3 supervised at 0.4 each, EOS 0.2, 3 padding" in weighed


def test_a_terminal_without_colours_gets_the_marks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "« a»" not in printed(facts_of(ROW), plain=False, force_terminal=True, color_system="truecolor")
    assert "« a»" in printed(facts_of(ROW), plain=True, force_terminal=True, color_system="truecolor")
    assert "« a»" in printed(facts_of(ROW), plain=False, force_terminal=True, color_system=None)
    monkeypatch.setenv("NO_COLOR", "1")
    text = printed(facts_of(ROW), plain=False, force_terminal=True, color_system="truecolor")
    assert "« a»" in text


def test_with_colours_supervised_masked_eos_and_neighbours_differ() -> None:
    text = printed(facts_of(ROW), plain=False, force_terminal=True, color_system="truecolor")
    styles = {token: code for code, token in re.findall(r"\x1b\[([\d;]+)m([^\x1b]+)\x1b\[0m", text)}
    tokens = ("<s>", "Hi", "\u21b5", " a", "b", "</s>", "\u25a1\u25a1\u25a1")
    assert len({styles[token] for token in tokens}) == len(tokens)
    assert "«" not in text
    assert styles[" a"].startswith("1;")  # bold


def test_a_console_without_utf8_gets_ascii() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict", newline="\n")
    print_preview(facts_of(ROW), plain=True, console=Console(file=file, width=200))
    file.flush()
    text = file.buffer.getvalue().decode("ascii")
    assert "<s>||Hi|\\n\n[[ a]][[b]][[</s> EOS]]___" in text


def test_control_characters_of_tokens_do_not_reach_the_screen() -> None:
    row = {**ROW, "tokens": ["<s>", "\x1b[31mHi", "\u200b", " a[bold]", "\x07", "</s>"]}
    coloured: dict[str, Any] = {"plain": False, "force_terminal": True, "color_system": "truecolor"}
    for options in ({}, coloured):
        text = printed(facts_of(row), **options)
        assert "\x1b[31m" not in text
        assert "\x07" not in text
        assert "\\u200b" in text
        assert "\\x07" in text
        assert "a[bold]" in text


def test_a_prompt_that_several_benchmarks_share_is_shown_once(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    twice = [{"name": "arithmetic"}, {"name": "arithmetic", "label": "sampled", "temperature": 0.7}]
    text = printed(previewed(make_recipe(evaluate={"benchmarks": twice}), tmp_path))
    assert text.count("the prompt in evaluation") == 1
    assert "the prompt in evaluation, benchmarks arithmetic, sampled, problem evaluation-0000: 33 tokens" in text


# The command.


def test_the_command_prints_a_page_or_json(folder: Path) -> None:
    page = upft("preview", "quickstart", "--rows", "2")
    assert page.exit_code == 0, page.stderr
    for part in (
        "the prompt in sampling",
        "no solutions with these settings yet",
        "structure  upft-",
        "EOS»",
        "rules of this recipe",
    ):
        assert part in page.stdout
    result = upft("preview", "quickstart", "--rows", "2", "--json", "--set", "prefix.length=5")
    facts = json.loads(result.stdout)
    assert [sum(row["supervised"]) for row in facts["rows"] if row["kind"] == "prefix"] == [5]
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "part"),
    [
        (["--rows", "0"], 2, "--rows"),
        (["--problem", "upft-9999x"], 1, "no problem 'upft-9999x'"),
        (["--set", "prefix.lenght=3"], 2, "prefix.lenght"),
    ],
)
def test_what_is_wrong_is_refused(folder: Path, arguments: list[str], status: int, part: str) -> None:
    result = upft("preview", "quickstart", *arguments)
    assert result.exit_code == status
    assert part in result.stderr
    assert "Traceback" not in result.stderr


def test_a_damaged_dataset_is_named(folder: Path) -> None:
    text = "model: builtin:arithmetic\nproblems: {builtin: arithmetic, limit: 12}\ngenerate: {max_tokens: 40}\n"
    write(folder / "own.yaml", text)
    for stage in ("generate", "build"):
        assert upft(stage, "own.yaml").exit_code == 0
    with (folder / "runs/own/dataset/train.jsonl").open("a") as file:
        file.write("{\n")
    assert_fails(upft("preview", "own.yaml"), 1, "train.jsonl: was changed after `upft build` wrote it")


def test_of_a_hub_model_everything_but_the_weights_is_downloaded(tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in MODEL.iterdir() if path.is_file()}
    assert "model.safetensors" in files
    write(tmp_path / "own.yaml", "model: user/model\nproblems: {builtin: arithmetic, limit: 12}\n")
    with fake_hub({"user/model": files}) as hub:
        done = process(
            *("preview", "own.yaml", "--json"), cwd=tmp_path, guard=tmp_path / "guard", HF_ENDPOINT=hub.endpoint
        )
        assert done.returncode == 0, done.stderr
        assert any("resolve" in line and "tokenizer.json" in line for line in hub.asked)
        assert not any("safetensors " in line for line in hub.asked)
    assert [row["kind"] for row in json.loads(done.stdout)["rows"]] == ["prefix", "prefix", "structure"]
    again = process("preview", "own.yaml", "--json", "--offline", cwd=tmp_path, guard=tmp_path / "guard")
    assert (again.stdout, again.returncode) == (done.stdout, 0)
    none = process("generate", "own.yaml", "--offline", cwd=tmp_path, guard=tmp_path / "guard")
    assert none.returncode == 1
    assert "`upft fetch own.yaml` downloads it" in none.stderr
