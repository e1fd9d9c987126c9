"""The command line: help, exit statuses, options, and what the network is used for (nothing, when off)."""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from conftest import MODEL
from helpers.facts import run_report
from helpers.input import (
    MINIMAL,
    ONE_PROBLEM,
    assert_fails,
    fake_hub,
    no_network,
    process,
    upft,
    write,
)

from upft_mlx import __version__
from upft_mlx.cli.group import SECTIONS
from upft_mlx.cli.main import cli
from upft_mlx.errors import TrainingError
from upft_mlx.recipe.find import shipped_recipes
from upft_mlx.recipe.schema import Recipe
from upft_mlx.results.facts import RunReport
from upft_mlx.studies.demo import Demo

__all__ = ["no_network"]
pytestmark = pytest.mark.usefixtures("no_network")

COMMANDS = ("build", "demo", "evaluate", "fuse", "generate", "recipes", "run", "train")
STAGES = ("build", "evaluate", "fuse", "generate", "train")
SLOW = ("pydantic", "rich", "mlx", "mlx_lm", "transformers", "datasets", "huggingface_hub", "yaml")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, and take back what the command sets in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "0")
    return tmp_path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Instead of working, note what would be run; the result is an empty report."""
    from upft_mlx import pipeline
    from upft_mlx.ui import views

    made: list[tuple[Any, ...]] = []
    facts = run_report({"name": "stub"})

    def run(recipe: Recipe, run_dir: Path, notify: object) -> RunReport:
        made.append(("run", recipe, run_dir))
        return facts

    def run_stage(recipe: Recipe, run_dir: Path, stage: str, notify: object) -> RunReport:
        made.append((stage, recipe, run_dir))
        return facts

    monkeypatch.setattr(pipeline, "run", run)
    monkeypatch.setattr(pipeline, "run_stage", run_stage)
    monkeypatch.setattr(views, "save_svg", lambda *a: None)
    monkeypatch.setattr(views, "print_summary", lambda *a, **k: None)
    return made


# Help.


def test_the_commands_are_these() -> None:
    assert set(COMMANDS) <= set(cli.commands)


@pytest.mark.parametrize("name", sorted(cli.commands))
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_has_help_with_an_example_of_itself(name: str, option: str) -> None:
    shown = upft(name, option)
    assert shown.exit_code == 0
    assert "Example" in shown.output
    assert f"upft {name}" in shown.output.partition("Example")[2]
    command = cli.commands[name]
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts}"
            assert parameter.opts[0] in shown.output


def test_the_examples_name_shipped_recipes_or_files_that_are_obviously_yours() -> None:
    for name in cli.commands:
        for line in upft(name, "--help").output.splitlines():
            words = line.split()
            if words[:1] == ["upft"] and len(words) > 2 and name != "completion":
                assert words[2] in shipped_recipes() or words[2].startswith(("my-", "runs/my-", "-"))


def test_the_groups_help_lists_every_command_and_an_example() -> None:
    shown = upft("--help").output
    assert all(f"\n  {name} " in shown for name in cli.commands)
    assert "Example" in shown
    assert "\n    upft demo\n" in shown


def test_the_groups_help_tells_each_command_once_and_whole_on_80_columns() -> None:
    told = [name for lines in SECTIONS.values() for name in lines]
    assert sorted(told) == sorted(cli.commands)
    shown = CliRunner().invoke(cli, ["--help"], terminal_width=80).output.splitlines()
    for name, line in (item for lines in SECTIONS.values() for item in lines.items()):
        assert f"  {name:10}  {line}" in shown


def test_the_version_is_one_line_with_those_that_a_result_depends_on() -> None:
    mlx, mlx_lm = metadata.version("mlx"), metadata.version("mlx-lm")
    python = platform.python_version()
    assert upft("--version").output == f"upft {__version__} (mlx {mlx}, mlx-lm {mlx_lm}, Python {python})\n"


def test_the_version_says_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    assert "(mlx not installed, mlx-lm not installed, Python" in upft("--version").output


def test_help_takes_less_than_a_third_of_a_second_of_cpu() -> None:
    def cost() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "upft_mlx", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    assert min(cost() for _ in range(3)) < 1 / 3


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]])
def test_help_imports_nothing_slow(folder: Path, arguments: list[str]) -> None:
    code = (
        "import sys\nfrom upft_mlx.__main__ import main\nsys.argv[0] = 'upft'\n"
        "try: main()\nexcept SystemExit as end:\n"
        f"    print('status', end.code, sorted({set(SLOW)!r} & set(sys.modules)))\n"
    )
    done = process(*arguments, cwd=folder, guard=folder / "guard", code=code)
    assert done.stdout.splitlines()[-1] == "status 0 []", done.stderr


def test_without_a_command_the_help_is_shown_and_the_status_is_2() -> None:
    shown = upft()
    assert shown.exit_code == 2
    assert "Usage:" in shown.output


# Usage errors.


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["run"], "Missing argument 'RECIPE'"),
        (["rnu", "quickstart"], "No such command 'rnu'"),
        (["run", "quickstart", "--run-dri", "x"], "No such option"),
        (["run", "quickstart", "--set"], "requires an argument"),
        (["run", "quickstart", "extra"], "unexpected extra argument"),
        (["demo", "quickstart"], "unexpected extra argument"),
        (["show", "r", "--html", "--flips"], "give --html, --grade, or which problems"),
        (["show", "r", "--grade", "--problem", "x"], "give --html, --grade, or which problems"),
        (["show", "r", "--benchmark", "gsm8k"], "--benchmark needs --flips, --rows, --problem, --grade or several"),
        (["show", "r", "--html", "--benchmark", "gsm8k"], "--benchmark needs --flips"),
        (["export", "r", "--format", "peft", "--dtype", "fp16"], "--dtype is for --format dequantized"),
    ],
)
def test_a_usage_error_is_status_2(arguments: list[str], part: str) -> None:
    shown = upft(*arguments)
    assert shown.exit_code == 2
    assert part in shown.stderr
    assert "Traceback" not in shown.stderr


# What is run.


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_command_runs_that_stage(calls: list[tuple[Any, ...]], stage: str) -> None:
    assert upft(stage, "quickstart").exit_code == 0
    [(ran, recipe, run_dir)] = calls
    assert (ran, recipe.name, run_dir) == (stage, "quickstart", Path("runs/quickstart"))


def test_demo_runs_its_recipe_whatever_lies_about_under_that_name(
    calls: list[tuple[Any, ...]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stub(recipe: Recipe, run_dir: Path, notify: object) -> tuple[RunReport, Demo]:
        calls.append(("demo", recipe, run_dir))
        return run_report({"name": "stub"}), Demo("consensus", "why", 0.5, {}, {})

    monkeypatch.setattr("upft_mlx.studies.demo.run_demo", stub)
    write(folder / "demo.yaml", MINIMAL)
    shown = json.loads(upft("demo", "--json").stdout)
    assert (shown["name"], shown["demo"]["chosen"]) == ("stub", "consensus")
    [(_, recipe, run_dir)] = calls
    assert (recipe.prefix.selection, run_dir) == ("auto", Path("runs/demo"))


def test_the_run_directory_and_overrides_arrive(calls: list[tuple[Any, ...]], folder: Path) -> None:
    write(folder / "r.yaml", MINIMAL)
    arguments = ["--run-dir", "here", "--set", "prefix.length=3", "--set", "seed=7"]
    assert upft("run", "r.yaml", *arguments).exit_code == 0
    [(_, recipe, run_dir)] = calls
    assert (recipe.prefix.length, recipe.seed, run_dir) == (3, 7, Path("here"))


def test_the_run_directory_follows_the_recipes_name(calls: list[tuple[Any, ...]], folder: Path) -> None:
    write(folder / "r.yaml", MINIMAL)
    upft("run", "r.yaml", "--set", "name=other")
    assert calls[0][2] == Path("runs/other")


def test_json_is_all_that_stdout_holds(calls: list[tuple[Any, ...]]) -> None:
    shown = upft("run", "quickstart", "--json")
    assert json.loads(shown.stdout) == run_report({"name": "stub"}).dump()


# Failures.


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    from upft_mlx.forecasting import generation as stage

    def work(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(stage, "work", work)


def run_minimal(folder: Path, *options: str) -> click.testing.Result:
    return upft("run", write(folder / "r.yaml", MINIMAL), *options)


def test_an_interruption_is_status_130_and_says_how_to_continue(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(KeyboardInterrupt(), monkeypatch)
    assert_fails(run_minimal(folder), 130, "interrupted; run the same command to continue")


def test_a_second_ctrl_c_while_python_ends_shows_no_traceback() -> None:
    code = """
import atexit, os, signal
from upft_mlx.cli.edge import edge
signal.signal(signal.SIGINT, signal.default_int_handler)
atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))
with edge(debug=False, saves=True):
    raise KeyboardInterrupt
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "interrupted; run the same command to continue" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == -signal.SIGINT


def test_the_echo_of_ctrl_c_is_overwritten() -> None:
    """`^CError: interrupted` stood on one line where no view was open."""
    code = """
import fcntl, signal, sys, termios, time
from upft_mlx.cli.edge import edge
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.default_int_handler)
with edge(debug=False, saves=True):
    print("ready", flush=True)
    time.sleep(60)
"""
    ours, theirs = os.openpty()
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True):
        os.close(theirs)
        screen = b""
        while b"ready" not in screen:
            screen += os.read(ours, 1024)
        os.write(ours, b"\x03")
        with suppress(OSError):  # the other side is closed
            while part := os.read(ours, 1024):
                screen += part
    os.close(ours)
    *_, last = screen.decode().strip().splitlines()
    assert b"^C\r" in screen
    assert re.sub(r"\x1b\[[0-9;]*m", "", last).startswith("Error: interrupted")


def test_an_interruption_of_a_real_stage_keeps_what_is_done(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from upft_mlx.sampling.sampler import Sampler

    real = Sampler.sample
    counted: list[int] = []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        counted.append(1)
        if len(counted) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(Sampler, "sample", interrupted)
    text = MINIMAL + "prefix: {length: 2, structure_ratio: 0}\ngenerate: {batch_size: 1}\n"
    text = text.replace("limit: 4", "limit: 40")
    recipe = write(folder / "r.yaml", text)
    assert_fails(upft("generate", recipe), 130, "interrupted", "run the same command to continue")
    lines = next(folder.glob("runs/r/.work/*/solutions.partial.jsonl")).read_text().splitlines()
    assert 0 < len(lines) < 40
    monkeypatch.setattr(Sampler, "sample", real)
    assert upft("generate", recipe).exit_code == 0
    after = (folder / "runs/r/solutions.jsonl").read_text().splitlines()
    assert set(after) > set(lines)
    assert len(after) == 40


def test_a_failure_is_status_1_and_its_message_is_shown_as_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(TrainingError("[bold]no rows[/bold] in x.jsonl:3; sample more"), monkeypatch)
    assert_fails(run_minimal(folder), 1, "[bold]no rows[/bold] in x.jsonl:3; sample more")


def test_a_long_message_is_not_broken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "word " * 60 + "end"
    fail_with(TrainingError(text), monkeypatch)
    assert_fails(run_minimal(folder), 1, text)


def test_an_unforeseen_error_is_one_line_that_asks_for_a_report(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(ZeroDivisionError("x"), monkeypatch)
    shown = run_minimal(folder)
    assert shown.exit_code == 1
    assert "unexpected ZeroDivisionError: x; run again with --debug and report" in shown.stderr
    assert "Traceback" not in shown.stderr


@pytest.mark.parametrize("error", [TrainingError("x"), ZeroDivisionError("x"), OSError(28, "x")])
def test_debug_lets_the_error_through(folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    fail_with(error, monkeypatch)
    assert run_minimal(folder, "--debug").exception is error


# The network.


def test_offline_is_set_before_anything_could_ask() -> None:
    import os

    assert upft("run", "nothing.yaml", "--offline").exit_code == 2
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        assert os.environ[name] == "1"


SMALL = "generate: {max_tokens: 4, batch_size: 2}\nprefix: {length: 2}\n"
LOAD_BOTH = """
from upft_mlx import load_recipe
from upft_mlx.models.find import find_model
from upft_mlx.data.problems import load_problems
recipe = load_recipe("hub.yaml")
print(find_model(recipe))
print(len(load_problems(recipe.problems)))
"""


def test_what_was_fetched_once_is_used_offline_and_what_was_not_is_named(folder: Path) -> None:
    """A real client fills its cache from a stand-in for the Hub; then the network is off."""
    write(folder / "hub.yaml", "model: user/model\nproblems: {dataset: user/data}\n" + SMALL)
    write(folder / "no-model.yaml", "model: user/other\nproblems: {builtin: arithmetic}\n")
    write(folder / "no-data.yaml", "model: builtin:arithmetic\nproblems: {dataset: user/other}\n")
    write(folder / "no-split.yaml", "model: user/model\nproblems: {dataset: user/data, split: test}\n")
    commit = f"revision: {'b' * 40}"
    write(folder / "no-commit.yaml", f"model: user/model\nproblems: {{dataset: user/data, {commit}}}\n")
    model = {path.name: path.read_bytes() for path in MODEL.iterdir()}
    data = {"train.jsonl": ONE_PROBLEM.encode() * 3}
    guard = folder / "guard"
    with fake_hub({"user/model": model, "datasets/user/data": data}) as hub:
        done = process(cwd=folder, guard=guard, code=LOAD_BOTH, HF_ENDPOINT=hub.endpoint)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[1] == "3"
        assert any("train.jsonl" in line for line in hub.asked)

    done = process(cwd=folder, guard=guard, code=RUN_OFFLINE)
    assert done.returncode == 0, done.stderr
    statuses, messages = zip(*(line.split(" ", 1) for line in done.stdout.splitlines()), strict=True)
    assert statuses == ("0", "1", "1", "1", "1"), done.stdout
    assert len((folder / "runs/hub/solutions.jsonl").read_text().splitlines()) == 3
    off = "not on this machine, and the network is off (--offline or HF_HUB_OFFLINE=1); `upft fetch"
    assert messages[1:3] == (
        f"Error: model user/other: {off} no-model.yaml` downloads it, or set `model` to a local folder",
        f"Error: dataset user/other: {off} no-data.yaml` downloads it, or set `path` to a local file",
    )
    assert 'Error: dataset user/data: cannot be loaded: Unknown split "test"' in messages[3]
    assert f"Error: dataset user/data: the cache has another revision than {'b' * 40}" in messages[4]


RUN_OFFLINE = """
from click.testing import CliRunner
from upft_mlx.cli.main import cli
for command, name in (("generate", "hub"), *(("run", f"no-{n}") for n in ("model", "data", "split", "commit"))):
    shown = CliRunner().invoke(cli, [command, f"{name}.yaml", "--offline"])
    print(shown.exit_code, (shown.stderr.splitlines() or [""])[-1])
"""


WRONG_IDS = """
import time
from upft_mlx.errors import UpftError
from upft_mlx.models.find import find_model
from upft_mlx.data.problems import load_problems
from upft_mlx.recipe.schema import Problems; from upft_mlx.recipe import Recipe
time.sleep = lambda seconds: None

def show(action):
    try: print(action())
    except UpftError as error: print(type(error).__name__, error)

def model(**fields): show(lambda: find_model(Recipe(problems=Problems(builtin="arithmetic"), **fields)))
def data(**fields): show(lambda: len(load_problems(Problems(**fields))))

model(model="user/other")
model(model="user/model", revision="v9")
data(dataset="user/other")
data(dataset="user/data", split="test")
data(dataset="user/data", config="extra")
data(dataset="user/data", revision="v9")
data(dataset="user/data", question="text")
data(dataset="local")
"""
UNREACHABLE = WRONG_IDS.split("model(model=")[0] + 'model(model="user/x")\ndata(dataset="user/x")\n'


def test_what_the_hub_does_not_have_is_named(folder: Path) -> None:
    write(folder / "local" / "data.jsonl", ONE_PROBLEM)
    data = {"train.jsonl": ONE_PROBLEM.encode()}
    with fake_hub({"user/model": {"config.json": b"{}"}, "datasets/user/data": data}) as hub:
        done = process(cwd=folder, guard=folder / "guard", code=WRONG_IDS, HF_ENDPOINT=hub.endpoint)
    assert done.returncode == 0, done.stderr
    check = "check dataset, config, split and revision"
    expected = [
        ("ModelError model user/other: ", "no such model on the Hub, or it is private; check `model`"),
        ("ModelError model user/model: ", "no revision 'v9' on the Hub; check `revision`"),
        ("ProblemsError dataset user/other: cannot be loaded: ", check),
        ("ProblemsError dataset user/data: cannot be loaded: Unknown split", check),
        ("ProblemsError dataset user/data: cannot be loaded: BuilderConfig 'extra' not found", check),
        ("ProblemsError dataset user/data: cannot be loaded: Revision 'v9' doesn't exist", check),
        ("ColumnError user/data (train): row 1: no column 'text'; it has question, answer", "`question: question`"),
        ("1", "1"),
    ]
    for line, (start, end) in zip(done.stdout.splitlines(), expected, strict=True):
        assert line.startswith(start)
        assert line.endswith(end)


def test_a_hub_that_cannot_be_reached_is_said_to_be(folder: Path) -> None:
    with fake_hub({}) as hub:
        endpoint = hub.endpoint  # closed again: nobody listens there
    done = process(cwd=folder, guard=folder / "guard", code=UNREACHABLE, HF_ENDPOINT=endpoint)
    assert done.returncode == 0, done.stderr
    model, data = done.stdout.splitlines()
    assert model == (
        "OfflineError model user/x: not on this machine, and the Hub cannot be reached; check the connection, "
        "or set `model` to a local folder"
    )
    assert data == (
        "OfflineError dataset user/x: not on this machine, and the Hub cannot be reached; check the connection, "
        "or name a local file"
    )
