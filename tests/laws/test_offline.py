"""From the Hub to the Hub: fetched once, a recipe runs without a network; pushed, mlx-lm runs what came out."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import subprocess
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import MODEL
from helpers.hub import TOKEN, UploadHub, upload_hub
from helpers.input import process, write
from huggingface_hub import constants
from huggingface_hub.utils._http import http_backoff

from upft_mlx.errors import FetchError, OfflineError
from upft_mlx.events import Event, Note
from upft_mlx.hub import fetch as fetch_module
from upft_mlx.hub.fetch import Repository, _check_room, fetch
from upft_mlx.models.hub import tell_attempts_once
from upft_mlx.recipe.load import load_recipe

pytestmark = pytest.mark.slow
RECIPE = """
model: user/base
quantize: {bits: 4, group_size: 32}
problems: {dataset: user/data, limit: 12}
generate: {max_tokens: 24, batch_size: 12}
prefix: {length: 6}
train: {batch_size: 4, valid_ratio: 0.2}
evaluate:
  max_tokens: 24
  benchmarks: [{name: mine, dataset: user/test, split: train, limit: 4}]
publish: {repo: user/tuned}
"""
ALL = """
import json, sys
from click.testing import CliRunner
from upft_mlx.cli.main import cli
for command in json.loads(sys.argv[1]):
    done = CliRunner().invoke(cli, command)
    print(done.output, done.stderr)
    if done.exit_code:
        sys.exit(done.exit_code)
"""
"""Runs one command after the other in one process, which saves the imports."""
UNSHARE = ("unshare", "-n") if os.geteuid() == 0 else ("unshare", "-rn")


def rows(count: int) -> bytes:
    lines = ({"question": f"Ann has {n} apples and buys 2. How many?", "answer": str(n + 2)} for n in range(count))
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


@dataclass
class Place:
    """A folder with a recipe, and everything that was said in it; HF_TOKEN holds a marker all the time."""

    folder: Path
    hub: UploadHub
    said: list[str] = field(default_factory=list)
    fetched: str = ""

    def upft(self, *arguments: str, status: int = 0, **options: object) -> str:
        """Run the command with the Hub's stand-in in reach."""
        done = process(
            *arguments,
            cwd=self.folder,
            guard=self.folder / "guard",
            HF_ENDPOINT=self.hub.endpoint,
            HF_TOKEN=TOKEN,
            HF_HUB_DISABLE_XET="1",
            **options,  # type: ignore[arg-type]
        )
        self.said += [done.stdout, done.stderr]
        assert done.returncode == status, (arguments, done.stdout, done.stderr)
        return done.stderr + done.stdout


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The recipe is fetched, and nothing more."""
    folder = tmp_path_factory.mktemp("place")
    write(folder / "r.yaml", RECIPE)
    repos = {
        "user/base": {
            "LICENSE": b"the base's terms",
            "NOTICE": b"n",
            **{path.name: path.read_bytes() for path in MODEL.iterdir()},
        },
        "datasets/user/data": {"train.jsonl": rows(12)},
        "datasets/user/test": {"train.jsonl": rows(4)},
    }
    with upload_hub(repos) as hub:
        place = Place(folder, hub)
        place.fetched = place.upft("fetch", "r.yaml")
        yield place


def test_fetch_says_the_room_it_needs_before_it_downloads(place: Place) -> None:
    lines = place.fetched.splitlines()
    size = sum(len(content) for content in place.hub.repos["user/base"].values()) / 1e6
    assert f"model user/base ({size:.1f} MB), dataset user/data (at most 0.0 MB)" in lines[0]
    assert "MB of disk space" in lines[0]
    assert "are free in" in lines[0]
    assert "the model is in" in lines[1]
    assert lines[-1] == "complete; this recipe now runs with --offline"


def test_what_is_here_is_not_fetched_again(place: Place) -> None:
    asked = len(place.hub.asked)
    assert "fetch: 12 problems" in place.upft("fetch", "r.yaml")
    downloads = [line for line in place.hub.asked[asked:] if line.startswith('"GET') and "safetensors" in line]
    assert downloads == []


def test_a_fetched_recipe_runs_from_generate_to_fuse_with_no_connection_attempted(place: Place) -> None:
    """The guard ends the process on any connection and any look-up of a name, loopback included."""
    commands = [
        ["run"],
        *([stage] for stage in ("generate", "build", "train", "evaluate", "fuse")),
        ["export", "--format", "peft"],
        ["export", "--format", "dequantized"],
        ["push", "--dry-run"],
    ]
    shown = place.upft(
        json.dumps([[*command, "r.yaml", "--offline"] for command in commands]), code=ALL, loopback=False
    )
    assert (place.folder / "runs/r/fused/config.json").is_file()
    assert shown.count("current: ") == 5
    assert (place.folder / "runs/r/export/peft/adapter_model.safetensors").is_file()
    assert (place.folder / "runs/r/export/dequantized/config.json").is_file()
    assert "would upload to user/tuned (private)" in shown


def test_it_runs_in_a_namespace_without_any_network(place: Place) -> None:
    if (
        shutil.which("unshare") is None
        or subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("this machine does not allow unshare -n")
    place.upft("run", "r.yaml", "--run-dir", "runs/alone", prefix=UNSHARE, HF_HUB_OFFLINE="1")
    assert (place.folder / "runs/alone/fused/config.json").is_file()


def test_a_cache_that_was_copied_is_all_that_another_machine_needs(place: Place) -> None:
    """Without the first folder, so that nothing in the copy can point back to it."""
    home, copy, aside = place.folder / "guard/hf", place.folder / "copy", place.folder / "aside"
    shutil.copytree(home, copy, symlinks=True)
    home.rename(aside)
    try:
        arguments = ("generate", "r.yaml", "--offline", "--run-dir", "runs/copied")
        place.upft(*arguments, loopback=False, HF_HOME=str(copy))
        place.upft("generate", "r.yaml", "--offline", "--run-dir", "runs/without", loopback=False, status=1)
    finally:
        shutil.rmtree(home, ignore_errors=True)
        aside.rename(home)
    assert (place.folder / "runs/copied/solutions.jsonl").is_file()


@pytest.mark.parametrize("how", ["option", "variable"])
def test_what_is_missing_is_named_with_the_command_that_fetches_it(place: Place, how: str) -> None:
    write(place.folder / "an other.yaml", RECIPE.replace("user/base", "user/other"))
    arguments = ["run", "an other.yaml", "--set", "name=other", *(["--offline"] if how == "option" else [])]
    environment = {} if how == "option" else {"HF_HUB_OFFLINE": "1"}
    shown = place.upft(*arguments, status=1, loopback=False, **environment)
    assert "model user/other: not on this machine" in shown
    assert "`upft fetch 'an other.yaml' --set name=other` downloads it" in shown


def test_a_run_is_pushed_and_mlx_lm_runs_it_from_there(place: Place) -> None:
    place.upft("run", "r.yaml")
    place.hub.cuts = 1
    assert "/user/tuned: uploaded (private)" in place.upft("push", "r.yaml")
    stored = place.hub.repos["user/tuned"]
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(stored)
    assert not any("jsonl" in name for name in stored)
    elsewhere = place.folder / "elsewhere"
    arguments = ("generate", "--model", "user/tuned", "--prompt", "Ann has 3 apples.", "--max-tokens", "8")
    shown = place.upft(*arguments, module="mlx_lm", HF_HOME=str(elsewhere))
    assert "Generation: " in shown
    assert list(elsewhere.rglob("model.safetensors"))


def test_the_card_that_went_up_inherits_the_licence_and_names_the_base(place: Place) -> None:
    card = place.hub.repos["user/tuned"]["README.md"].decode()
    assert "license: mit" in card
    assert "base_model: user/base" in card
    assert str(place.folder) not in card
    assert place.hub.repos["user/tuned"]["LICENSE"] == b"the base's terms"
    assert place.hub.repos["user/tuned"]["NOTICE"] == b"n"


def test_the_token_is_in_no_output_and_no_file(place: Place) -> None:
    """Last: it looks at all that the tests above left behind."""
    place.upft("push", "r.yaml", "--set", "publish.repo=org/tuned", "--debug", status=1)
    assert len(place.said) > 10
    assert not [text for text in place.said if TOKEN in text]
    assert any(f"Bearer {TOKEN}" in header for header in place.hub.headers)  # it was there to be found
    files = [path for path in place.folder.rglob("*") if path.is_file()]
    assert len(files) > 50
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]


# In this process.


def test_fetch_is_refused_without_a_network(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OfflineError, match="fetch needs the network, which is off"):
        fetch(load_recipe(place.folder / "r.yaml"))


def test_what_does_not_fit_on_the_disk_is_refused_before_the_download(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(fetch_module, "disk_usage", lambda path: usage(0, 0, 500 * 10**6))
    monkeypatch.setattr(constants, "ENDPOINT", place.hub.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    asked = len(place.hub.asked)
    seen: list[Event] = []
    with pytest.raises(FetchError, match=r"0\.5 MB are needed and 500\.0 MB are free; make room, or set HF_HOME"):
        fetch(load_recipe(place.folder / "r.yaml"), seen.append)
    assert isinstance(seen[0], Note)
    assert not any("/resolve/" in line for line in place.hub.asked[asked:])


# A Hub that does not answer.


def test_the_attempts_of_the_hubs_client_are_told_once_and_without_addresses() -> None:
    logger = logging.getLogger("huggingface_hub.utils._http")
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    logger.addHandler(handler)
    earlier, logger.filters = logger.filters, []  # a test before this one may have seen the line already
    tell_attempts_once()
    tell_attempts_once()
    try:
        with pytest.raises(Exception, match="refused"):
            http_backoff("GET", "http://127.0.0.1:9/x", max_retries=2, base_wait_time=0.01)
        logger.warning("something else")
    finally:
        logger.removeHandler(handler)
        logger.filters = earlier
    assert lines.getvalue() == ("the Hub does not answer; trying a few times more (Ctrl-C ends it)\nsomething else\n")


def test_a_size_that_the_hub_does_not_tell_is_not_counted_as_nothing() -> None:
    told: list[Event] = []
    _check_room([Repository("model", "user/x", None, None, None)], told.append)
    [note] = told
    assert isinstance(note, Note)
    assert note.text.startswith("fetch: disk space: model user/x (the Hub does not say how large); ")
