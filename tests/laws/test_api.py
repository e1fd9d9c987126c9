"""The verbs as functions: what is exported, what they return, and that the snippets in the documentation run."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import typing
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from helpers.facts import run_report
from helpers.input import MINIMAL, no_network, process, upft, write

import upft_mlx
from upft_mlx import api, build, evaluate, fuse, generate, load_recipe, run, train
from upft_mlx.errors import RunDirError
from upft_mlx.events import Event, StageDone
from upft_mlx.forecasting.estimate import Forecast
from upft_mlx.inspection.preview import Preview
from upft_mlx.recipe.schema import Recipe
from upft_mlx.results.facts import RunReport
from upft_mlx.results.plan import Plan
from upft_mlx.rundir import look_name
from upft_mlx.studies.method_table import Comparison
from upft_mlx.studies.prefix_statistics import Analysis
from upft_mlx.studies.sweep_table import Sweep

__all__ = ["no_network"]
pytestmark = pytest.mark.usefixtures("no_network")

VERBS = ("analyze", "build", "compare", "evaluate", "forecast", "fuse", "generate", "run", "train")
PAGES = (ROOT / "docs" / "use" / "python.md", ROOT / "README.md")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# What is exported.


def test_the_exports_are_these() -> None:
    stages = ["analyze", "ask", "build", "compare", "evaluate", "forecast", "fuse", "generate"]
    assert upft_mlx.__all__ == ["__version__", *stages, "load_recipe", "plan", "preview", "run", "sweep", "train"]
    assert set(upft_mlx.__all__) <= set(dir(upft_mlx))
    for name in VERBS:
        assert getattr(upft_mlx, name) is getattr(api, name)
    with pytest.raises(AttributeError, match="module 'upft_mlx' has no attribute 'nothing'"):
        _ = upft_mlx.nothing


def test_naming_an_export_imports_only_what_it_needs(tmp_path: Path) -> None:
    code = (
        "import sys, upft_mlx\nassert 'pydantic' not in sys.modules\n"
        "from upft_mlx import run\nprint('mlx_lm' in sys.modules)"
    )
    done = process(cwd=tmp_path, guard=tmp_path / "guard", code=code)
    assert (done.stdout, done.stderr) == ("False\n", "")


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_takes_a_recipe_a_folder_and_an_observer_and_is_typed(name: str) -> None:
    verb = getattr(upft_mlx, name)
    parameters = inspect.signature(verb).parameters
    assert list(parameters)[:3] == ["recipe", "run_dir", "notify"]
    assert parameters["run_dir"].default is None
    assert all(p.kind is p.KEYWORD_ONLY for p in list(parameters.values())[3:])
    assert set(typing.get_type_hints(verb)) == {*parameters, "return"}
    assert (verb.__doc__ or "").strip()
    assert (Path(upft_mlx.__file__).parent / "py.typed").exists()


RESULTS: dict[str, type] = {
    "analyze": Analysis,
    "compare": Comparison,
    "forecast": Forecast,
    "plan": Plan,
    "preview": Preview,
    "sweep": Sweep,
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_study_returns_the_result_that_the_page_names(name: str) -> None:
    result = RESULTS[name]
    assert typing.get_type_hints(getattr(upft_mlx, name))["return"] is result
    row = next(line for line in PAGES[0].read_text(encoding="utf-8").splitlines() if f".{result.__name__}`" in line)
    named = re.findall(r"`(\w+)`", row.split("|")[3])
    assert set(named) < {field.name for field in dataclasses.fields(result)}
    assert f"`{result.__module__}.{result.__name__}`" in row


# What they do.


def test_the_stages_work_in_the_folder_of_the_command_line_and_return_its_json(folder: Path) -> None:
    write(
        folder / "own.yaml",
        MINIMAL
        + "generate: {max_tokens: 40}\ntrain: {steps: 1}\n"
        + "evaluate: {max_tokens: 40, benchmarks: [{name: arithmetic, limit: 2}]}\n",
    )
    recipe = load_recipe("own.yaml")
    with pytest.raises(RunDirError, match="build needs the stage generate"):
        build(recipe)
    told: list[Event] = []
    found = {}
    for verb in (generate, build, train, evaluate):
        found = verb(recipe, notify=told.append)
    done = [event.stage for event in told if isinstance(event, StageDone)]
    assert done == ["generate", "build", "train", "evaluate"]
    assert any(isinstance(event, StageDone) and event.detail.startswith("1 step, ") for event in told)
    assert (folder / "runs/own/adapter/adapters.safetensors").exists()
    shown = upft("evaluate", "own.yaml", "--json")
    printed = json.loads(shown.stdout)
    assert printed["files"].pop("page").endswith("report.html"), "only the command line writes it"
    assert printed == json.loads(json.dumps(found))
    assert "tuned" in found["benchmarks"]["arithmetic"]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path, dict[str, object]]]:
    """What would be run."""
    made: list[tuple[str, Path, dict[str, object]]] = []

    def run_stage(recipe: Recipe, run_dir: Path, stage: str, notify: object, **options: object) -> RunReport:
        made.append((stage, run_dir, options))
        return run_report({})

    monkeypatch.setattr("upft_mlx.pipeline.run_stage", run_stage)
    monkeypatch.setattr(
        "upft_mlx.pipeline.run", lambda recipe, run_dir, notify: run_stage(recipe, run_dir, "run", notify)
    )
    return made


def test_folders_and_options_are_passed_on(
    make_recipe: Callable[..., Recipe], calls: list[tuple[str, Path, dict[str, object]]]
) -> None:
    recipe = make_recipe()
    run(recipe)
    run(recipe, "elsewhere")
    for name in ("a/adapter", "b/adapter"):
        evaluate(recipe, adapter=name)
    evaluate(recipe, Path("elsewhere"))
    fuse(recipe, force=True)
    looks = [look_name(Path(name)) for name in ("a/adapter", "b/adapter")]
    assert len(set(looks)) == 2, "the adapters of two runs replace each other's results"
    assert calls == [
        ("run", Path("runs/test"), {}),
        ("run", Path("elsewhere"), {}),
        ("evaluate", Path("runs/test"), {"adapter": Path("a/adapter"), "look": looks[0]}),
        ("evaluate", Path("runs/test"), {"adapter": Path("b/adapter"), "look": looks[1]}),
        ("evaluate", Path("elsewhere"), {"adapter": None, "look": None}),
        ("fuse", Path("runs/test"), {"force": True}),
    ]


# The documentation.


def snippet(page: Path) -> str:
    code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
    assert code
    return str(code)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for both pages: whichever comes second finds the first one's run, and skips what is done."""
    return tmp_path_factory.mktemp("snippets")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_snippet_of_a_page_runs_without_warnings_and_without_the_network(page: Path, workplace: Path) -> None:
    options = {"loopback": False, "seconds": 1200, "PYTHONWARNINGS": "error"}  # 15 s of CPU, on a machine that is busy
    done = process(cwd=workplace, guard=workplace / "guard", code=snippet(page), **options)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert page.name == "README.md" or re.search(
        r"95 % interval [-+]\d+\.\d% to [-+]\d+\.\d%$", done.stdout, re.MULTILINE
    )
    assert {"adapter", "fused", "report.md", "solutions.jsonl"} <= {
        p.name for p in (workplace / "runs/small").iterdir()
    }


def test_a_snippet_that_reaches_for_the_network_or_warns_would_be_found(tmp_path: Path) -> None:
    reach = "import socket\nsocket.create_connection(('127.0.0.1', 9))"
    assert process(cwd=tmp_path, guard=tmp_path / "guard", code=reach, loopback=False).returncode == 99
    warn = "import warnings\nwarnings.warn('old', DeprecationWarning)"
    assert process(cwd=tmp_path, guard=tmp_path / "guard", code=warn, PYTHONWARNINGS="error").returncode == 1


def test_the_page_describes_every_function_and_every_key(folder: Path) -> None:
    page = PAGES[0].read_text(encoding="utf-8")
    for name in (*VERBS, "load_recipe"):
        assert f"`{name}" in page
    facts = generate(load_recipe(write(folder / "own.yaml", MINIMAL)))
    keys = set(re.findall(r"`(\w+)`", page.split("## What comes back")[1].split("\n## ")[0].split("|---|")[1]))
    assert set(facts) <= keys
