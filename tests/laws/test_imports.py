"""Who imports whom: one way only, nothing slow before it is needed, nothing over the network."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from helpers.input import process

import upft_mlx

PACKAGE = Path(upft_mlx.__file__).parent
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))
STAGES = (
    *("stage_generate", "stage_build", "stage_train", "stage_evaluate", "stage_fuse"),
    *("analyze", "export", "publish", "fetch"),
)
COMMANDS = {module for module in MODULES if module.startswith("cli")}
TOP = ("pipeline", "api", "compare", "delivery", *sorted(COMMANDS), "__main__")
SLOW = ("mlx_lm", "transformers", "datasets", "huggingface_hub", "pyarrow", "math_verify")
WITHOUT_MLX = (
    *(
        "errors",
        *sorted(COMMANDS),
        "narrow",
        "load",
        "recipe",
        "problems",
        "prompts",
        "prefix",
        "rows",
        "rundir",
        "pipeline",
        "models",
        "selection",
        "spool",
    ),
    *("benchmarks", "report", "events", "grade", "stats", "stage_build", "stage_generate", "ui"),
    *("answers", "browse", "columns", "stage_evaluate", "graders", "grading", "sides", "summary", "symbolic", "values"),
    *("device", "parallel", "reporting", "card", "publish", "fetch", "delivery", "headers", "catalogue"),
    *("hub_data", "model_facts", "data_facts", "new", "doctor", "machine", "power"),
    *("api", "ask", "preview", "preview_rows", "rules", "ui_ask", "ui_preview"),
)


@cache
def tree(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


def statements(body: list[ast.stmt], *, anywhere: bool) -> Iterator[ast.stmt]:
    """The statements that run; those under `if TYPE_CHECKING` do not, those in functions only when called."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for field in ("body", "orelse", "finalbody", "handlers"):
            inner = getattr(node, field, [])
            if anywhere or not function:
                yield from statements([n for n in inner if isinstance(n, ast.stmt)], anywhere=anywhere)
                for handler in inner:
                    if isinstance(handler, ast.ExceptHandler):
                        yield from statements(handler.body, anywhere=anywhere)


@cache
def imports(module: str, *, anywhere: bool = True) -> frozenset[str]:
    """The dotted names that a module imports; `from a import b` counts as a and a.b."""
    found = set()
    for node in statements(tree(module).body, anywhere=anywhere):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def own(module: str, *, anywhere: bool = True) -> set[str]:
    """The modules of the package that a module imports."""
    names = {name.split(".")[1] for name in imports(module, anywhere=anywhere) if name.startswith("upft_mlx.")}
    return names & set(MODULES)


def roots(module: str, *, anywhere: bool = True) -> set[str]:
    return {name.split(".")[0] for name in imports(module, anywhere=anywhere)}


def test_the_reader_of_imports_sees_them_all() -> None:
    assert {"models", "prefix", "sampler"} <= own("stage_generate")
    assert "datasets" in roots("hub_data")
    assert "datasets" not in roots("hub_data", anywhere=False)
    assert "mlx" in roots("loss", anywhere=False)


@pytest.mark.parametrize("stage", STAGES)
def test_stages_import_neither_each_other_nor_what_stands_above_them(stage: str) -> None:
    above = {module for module in MODULES if module in TOP or module.startswith("ui")}
    assert not own(stage) & (above | set(STAGES) - {stage})
    assert not roots(stage) & {"click", "rich"}


@pytest.mark.parametrize("module", [module for module in MODULES if not module.startswith("ui")])
def test_only_the_ui_knows_rich(module: str) -> None:
    assert "rich" not in roots(module)


@pytest.mark.parametrize("module", [module for module in MODULES if not module.startswith("cli")])
def test_only_the_command_line_knows_click(module: str) -> None:
    assert "click" not in roots(module)


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("ui")])
def test_the_ui_knows_events_and_rows_but_no_stage(module: str) -> None:
    assert not own(module) & {*STAGES, *TOP, "models", "recipe", "load"}


def test_errors_imports_nothing_of_the_package() -> None:
    assert not own("errors")


@pytest.mark.parametrize("module", ["recipe", "rows", "events"])
def test_the_lowest_modules_import_errors_at_most(module: str) -> None:
    assert own(module) <= {"errors", "escape"}


def test_nothing_but_the_command_line_stands_above_the_pipeline() -> None:
    above = {module for module in MODULES if "pipeline" in own(module)}
    assert above - COMMANDS == {"api", "compare", "delivery", "planning"}
    assert {module for module in MODULES if "api" in own(module)} == set()
    assert {module for module in MODULES if "delivery" in own(module)} <= COMMANDS
    assert {module for module in MODULES if "cli" in own(module)} == {"__main__"}


def test_imports_run_one_way() -> None:
    order: list[str] = []
    waiting = {module: own(module) - {module} for module in MODULES if module != "__init__"}
    while waiting:
        ready = [module for module, needs in waiting.items() if needs <= {*order, "__init__"}]
        assert ready, f"a circle among {sorted(waiting)}"
        order += ready
        waiting = {module: needs for module, needs in waiting.items() if module not in ready}


@pytest.mark.parametrize("module", MODULES)
def test_nothing_slow_is_imported_with_a_module(module: str) -> None:
    assert not roots(module, anywhere=False) & set(SLOW)


@pytest.mark.parametrize("module", WITHOUT_MLX)
def test_these_modules_do_not_import_mlx(module: str) -> None:
    assert "mlx" not in roots(module, anywhere=False)


def test_the_public_functions_stay_functions_after_every_module_was_imported() -> None:
    names = [f"upft_mlx.{module}" for module in MODULES if module not in ("__init__", "__main__")]
    code = (
        "import importlib, types, upft_mlx\n"
        f"[importlib.import_module(name) for name in {names!r}]\n"
        "for name in set(upft_mlx.__all__) - {'__version__'}:\n"
        "    assert isinstance(getattr(upft_mlx, name), types.FunctionType), name\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_importing_everything_opens_no_socket_and_loads_nothing_slow(tmp_path: Path) -> None:
    names = [f"upft_mlx.{module}" for module in MODULES if module not in ("__init__", "__main__")]
    code = (
        "import importlib, socket, sys\n"
        "def refuse(*a, **k): raise SystemExit('a socket was opened')\n"
        "socket.socket.__init__ = refuse\n"
        f"[importlib.import_module(name) for name in {names!r}]\n"
        f"print(sorted({set(SLOW)!r} & set(sys.modules)))\n"
    )
    done = process(cwd=tmp_path, guard=tmp_path / "guard", code=code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


@pytest.mark.parametrize("module", MODULES)
def test_every_module_says_what_it_is_for(module: str) -> None:
    if module != "__main__":
        assert (importlib.import_module(f"upft_mlx.{module}".removesuffix(".__init__")).__doc__ or "").strip()
