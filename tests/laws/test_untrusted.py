"""What is let in: model folders, data, recipes and run directories of strangers run, read and publish nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from conftest import MODEL
from helpers.input import assert_fails, no_network, upft, write
from helpers.untrusted import EVIL, QUESTIONS, bomb, change, model, recipe

from upft_mlx.errors import ModelError, PublishError, RunDirError
from upft_mlx.fusing.formats import write_model
from upft_mlx.hub.upload import files_to_push
from upft_mlx.models.find import find_model
from upft_mlx.models.gate import terms
from upft_mlx.models.load import load, load_tokenizer
from upft_mlx.recipe.load import load_recipe
from upft_mlx.rows import Solution, append_chunk, resume
from upft_mlx.rundir import RunDir

__all__ = ["no_network"]

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder; take back what commands set in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "0")
    return tmp_path


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


SECRET = "hf_" + "a1B2" * 9


# Links, and what is published.


@pytest.mark.parametrize("name", ["LICENSE", "config.json", "generation_config.json", "chat_template.jinja", "own.py"])
def test_a_link_out_of_a_model_folder_is_not_followed(folder: Path, name: str) -> None:
    target = write(folder / "private" / "id_rsa", "{}" if name.endswith(".json") else "private")
    (model(folder) / name).unlink(missing_ok=True)
    (folder / "model" / name).symlink_to(target)
    with pytest.raises(ModelError, match="leads out of the model folder"):
        find_model(recipe(folder / "model"))
    with pytest.raises(ModelError, match="leads out of the model folder"):
        load_tokenizer(folder / "model")


def test_the_links_of_the_hubs_cache_and_links_inside_a_folder_work(folder: Path) -> None:
    repo = folder / "hub" / "models--user--name"
    (repo / "snapshots" / "abc").mkdir(parents=True)
    (repo / "blobs").mkdir()
    for number, file in enumerate(sorted(MODEL.iterdir())):
        shutil.copy(file, repo / "blobs" / str(number))
        (repo / "snapshots" / "abc" / file.name).symlink_to(f"../../blobs/{number}")
    (repo / "snapshots" / "abc" / "LICENSE").symlink_to("README.md")
    found = find_model(recipe(repo / "snapshots" / "abc"))
    assert load(found).eos_id
    assert [path.name for path in terms(found)] == ["LICENSE"]
    (repo / "snapshots").rename(repo / "elsewhere")  # not a cache any more
    with pytest.raises(ModelError, match="leads out of the model folder"):
        find_model(recipe(repo / "elsewhere" / "abc"))


def test_a_pipe_in_a_model_folder_does_not_hold_the_command_up(folder: Path) -> None:
    os.mkfifo(model(folder) / "added_tokens.json")
    with pytest.raises(ModelError, match="not a plain file"):
        find_model(recipe(folder / "model"))


def test_a_tokenizer_that_names_a_file_elsewhere_is_refused(folder: Path) -> None:
    secret = write(folder / "private" / "tokenizer.model", "private")
    change(model(folder) / "tokenizer_config.json", vocab_file=str(secret))
    with pytest.raises(ModelError, match="vocab_file"):
        find_model(recipe(folder / "model"))
    change(folder / "model" / "tokenizer_config.json", vocab_file="/nowhere/on/this/machine/tokenizer.model")
    find_model(recipe(folder / "model"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("LICENSE", f"use {SECRET}"),
        ("LICENSE-CODE", f"use {SECRET}"),
        ("own.py", f"TOKEN = '{SECRET}'"),
        ("tokenizer.model", f"\0\0{SECRET}\0"),
        ("qwen.tiktoken", "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n"),
        ("chat_template.jinja", "gh" + "p_" + "a1B2c3" * 6),
        ("model.safetensors", "\0" * ((16 << 20) - 20) + SECRET),
    ],
)
def test_a_token_is_found_whatever_the_file_is_called(folder: Path, name: str, content: str) -> None:
    write(folder / "README.md", "a card")
    assert [path.name for path in files_to_push(folder)] == ["README.md"]
    write(folder / name, content)
    with pytest.raises(PublishError, match="contains an access token or a private key"):
        files_to_push(folder)


def test_only_names_on_the_list_are_published(folder: Path) -> None:
    up = {"LICENSE", "LICENSE.md", "NOTICE", "model.safetensors", "model-00001-of-00002.safetensors", "tokenizer.json"}
    down = {"LICENSES", "licence_keys", "LICENSE~", "model.safetensors.bak", "modelkeys.safetensors", "*.py", "id_rsa"}
    for name in up | down:
        write(folder / name, "x")
    write(folder / "NOTICES" / "a", "x")
    write(folder / "LICENSE.d" / "a", "x")
    assert {path.name for path in files_to_push(folder)} == up


def test_a_strangers_code_is_not_written_into_the_fused_model(folder: Path) -> None:
    write(model(folder) / "modeling_own.py", "print('hello')")
    whole = load(folder / "model")
    write_model(whole, whole.config, folder / "fused")
    assert (folder / "fused" / "model.safetensors").exists()
    assert not list((folder / "fused").glob("*.py"))
    trusting = load(folder / "model", trust_remote_code=True)
    write_model(trusting, trusting.config, folder / "trusted")
    assert (folder / "trusted" / "modeling_own.py").exists()


# Run directories.


@pytest.mark.parametrize("name", [".lock", ".ledger.tmp.json", ".recipe.tmp.json", "solutions.partial.jsonl"])
@pytest.mark.parametrize("there", [True, False])
def test_a_link_in_a_run_directory_does_not_empty_its_target(folder: Path, name: str, *, there: bool) -> None:
    (folder / "run").mkdir()
    target = folder / "notes.txt"
    if there:
        write(target, "years of notes\n")
    (folder / "run" / name).symlink_to(target)
    sizes = ("problems.limit=2", "generate.max_tokens=8", "prefix.length=4", "generate.batch_size=2")
    made = upft("generate", "quickstart", "--run-dir", "run", *(part for size in sizes for part in ("--set", size)))
    assert target.exists() == there
    if there:
        assert target.read_text() == "years of notes\n"
    if made.exit_code:
        assert_fails(made, 1, name)


def test_locking_a_run_directory_leaves_what_the_lock_holds(folder: Path) -> None:
    write(folder / "run" / ".lock", "years of notes\n")  # a hard link looks like a file of the directory
    with RunDir(folder / "run").locked():
        assert (folder / "run" / ".lock").read_text() == "years of notes\n"


def test_a_link_for_evaluation_rows_does_not_take_them_elsewhere(folder: Path) -> None:
    target = write(folder / "notes.txt", "years of notes\n")
    (folder / "base.jsonl").symlink_to(target)
    with pytest.raises(RunDirError, match="is a link"):
        resume(folder / "base.jsonl", [1])
    with pytest.raises(RunDirError, match="is a link"):
        append_chunk(folder / "base.jsonl", [Solution("a", 0, "full", [1], "x", "stop")])
    assert target.read_text() == "years of notes\n"
