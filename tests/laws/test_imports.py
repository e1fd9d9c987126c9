"""Who imports whom: one way only, nothing slow before it is needed, nothing over the network."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from helpers.input import process

import upft_mlx

PACKAGE = Path(upft_mlx.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if "demo" not in path.relative_to(PACKAGE).parts
)
"""All but the demo's, which are for development only: `recipe.load`, `recipe.__init__`, `rows`."""
LAYERS = (
    "_version errors events escape quantities digests grade stages",
    "recipe rows machine",
    "data models rundir",
    "distributed fingerprints versions",
    "job",
    "dataset",
    "sampling",
    "training",
    "evaluation",
    "results",
    "forecasting",
    "ui hub",
    "planning inspection",
    "fusing new",
    "pipeline",
    "studies",
    "api",
    "cli",
    "__main__",
)
"""A package, or a module beside them, imports what stands above it here and itself; those of one line do not know each
other. So what is changed below cannot break what is above."""
RANK = {name: number for number, line in enumerate(LAYERS) for name in line.split()}
LARGEST = {"ui": 17}
"""Modules of a folder: 16 elsewhere. More than that nobody takes in at a glance."""
SLOW = ("mlx_lm", "transformers", "datasets", "huggingface_hub", "pyarrow", "math_verify")
WITH_MLX = {
    "forecasting.states",
    "fusing.export",
    "fusing.fidelity",
    "fusing.formats",
    "fusing.fuser",
    "fusing.gguf_model",
    "fusing.merge",
    "fusing.moments",
    "inspection.selftest",
    "models.cpu_layers",
    "models.families",
    "models.grid_lora",
    "sampling.prefill",
    "sampling.same_logits",
    "training.chunked_loss",
    "training.divergence",
    "training.loss",
    "training.movement",
    "training.step",
    "training.token_loss",
    "training.train",
}
"""Modules that import MLX when they are imported; all others answer before it is loaded."""


def package(module: str) -> str:
    """`recipe` of `recipe.load`; a module that stands beside the packages is its own."""
    return module.split(".")[0]


def dotted(module: str) -> str:
    return f"upft_mlx.{module}".removesuffix(".__init__")


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(PACKAGE.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8"))


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


@cache
def own(module: str) -> frozenset[str]:
    """The modules of the package that a module imports anywhere; a name of a package itself is one of its
    `__init__`.
    """
    names = {name.removeprefix("upft_mlx.") for name in imports(module) if name.startswith("upft_mlx.")}
    found = names & set(MODULES)
    whole = {
        name for name in names if f"{name}.__init__" in MODULES and not any(n.startswith(f"{name}.") for n in names)
    }
    return frozenset({*found, *(f"{name}.__init__" for name in whole)} - {module})


def packages(name: str) -> set[str]:
    """The other packages that a package imports."""
    return {package(other) for module in MODULES if package(module) == name for other in own(module)} - {name}


def roots(module: str, *, anywhere: bool = True) -> set[str]:
    return {name.split(".")[0] for name in imports(module, anywhere=anywhere)}


def test_the_reader_sees_all_modules_and_their_imports() -> None:
    assert len(MODULES) > 100
    assert {"models.load", "dataset.prefix", "sampling.sampler"} <= own("sampling.generate")
    assert "datasets" in roots("data.hub")
    assert "datasets" not in roots("data.hub", anywhere=False)
    assert "mlx" in roots("training.loss", anywhere=False)


def test_every_package_has_a_place_in_the_order() -> None:
    assert {package(module) for module in MODULES} - {"__init__"} == set(RANK)


@pytest.mark.parametrize("name", RANK)
def test_a_package_imports_only_what_stands_below_it(name: str) -> None:
    assert {other for other in packages(name) if other != "__init__" and RANK[other] >= RANK[name]} == set()


def test_nothing_but_an_entry_point_imports_the_whole_package() -> None:
    assert {module for module in MODULES if "__init__" in own(module)} == set()


def test_no_module_imports_itself_by_way_of_others() -> None:
    order: set[str] = set()
    waiting = {module: own(module) for module in MODULES}
    while waiting:
        ready = [module for module, needs in waiting.items() if needs <= order]
        assert ready, f"a circle among {sorted(waiting)}"
        order |= set(ready)
        waiting = {module: needs for module, needs in waiting.items() if module not in order}


def test_no_folder_is_too_large_to_take_in() -> None:
    sizes = Counter(module.rpartition(".")[0] for module in MODULES)
    assert {folder: size for folder, size in sizes.items() if size > LARGEST.get(folder, 16)} == {}


@pytest.mark.parametrize("module", [module for module in MODULES if package(module) != "ui"])
def test_only_the_ui_knows_rich(module: str) -> None:
    assert "rich" not in roots(module)


@pytest.mark.parametrize("module", [module for module in MODULES if package(module) != "cli"])
def test_only_the_command_line_knows_click(module: str) -> None:
    assert "click" not in roots(module)


def test_the_ui_knows_events_and_rows_but_no_stage() -> None:
    assert packages("ui") <= {"escape", "evaluation", "events", "machine", "quantities", "results", "rows", "training"}
    assert not {other for module in MODULES if package(module) == "ui" for other in own(module)} & {
        "evaluation.evaluate"
    }


def test_the_ranks_are_behind_one_seam() -> None:
    """Who shares work knows `seam`, and who stops it `interrupt`; the ranks themselves only who has the run or the
    screen.
    """
    users = {m: {o for o in own(m) if package(o) == "distributed"} for m in MODULES if package(m) != "distributed"}
    inside = {module for module, used in users.items() if used - {"distributed.seam", "distributed.interrupt"}}
    assert inside == {"pipeline", "cli.edge", "cli.run", "cli.studies"}
    assert {package(module) for module, used in users.items() if "distributed.seam" in used} == {
        *("sampling", "evaluation", "training", "forecasting", "studies")
    }


@pytest.mark.parametrize("module", ["_version", "errors"])
def test_what_everything_stands_on_stands_on_nothing(module: str) -> None:
    assert not own(module)


@pytest.mark.parametrize("module", MODULES)
def test_nothing_slow_is_imported_with_a_module(module: str) -> None:
    assert not roots(module, anywhere=False) & set(SLOW)


@pytest.mark.parametrize("module", [module for module in MODULES if module not in WITH_MLX])
def test_other_modules_do_not_import_mlx(module: str) -> None:
    assert "mlx" not in roots(module, anywhere=False)


def test_the_public_functions_stay_functions_after_every_module_was_imported() -> None:
    names = [dotted(module) for module in MODULES if module not in ("__init__", "__main__")]
    code = (
        "import importlib, types, upft_mlx\n"
        f"[importlib.import_module(name) for name in {names!r}]\n"
        "for name in set(upft_mlx.__all__) - {'__version__'}:\n"
        "    assert isinstance(getattr(upft_mlx, name), types.FunctionType), name\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=600)


def test_documented_names_stand_where_the_documentation_says() -> None:
    for module, names in {"grade": ("is_correct", "Rules"), "recipe": ("Recipe",)}.items():
        assert all(hasattr(importlib.import_module(f"upft_mlx.{module}"), name) for name in names)


def test_importing_everything_opens_no_socket_and_loads_nothing_slow(tmp_path: Path) -> None:
    names = [dotted(module) for module in MODULES if module not in ("__init__", "__main__")]
    code = (
        "import importlib, socket, sys\n"
        "def refuse(*a, **k): raise SystemExit('a socket was opened')\n"
        "socket.socket.__init__ = refuse\n"
        f"[importlib.import_module(name) for name in {names!r}]\n"
        f"print(sorted({set(SLOW)!r} & set(sys.modules)))\n"
    )
    done = process(cwd=tmp_path, guard=tmp_path / "guard", code=code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


@pytest.mark.parametrize("module", [module for module in MODULES if module != "__main__"])
def test_every_module_says_what_it_is_for(module: str) -> None:
    assert (importlib.import_module(dotted(module)).__doc__ or "").strip()


@pytest.mark.parametrize("module", [module for module in MODULES if module.endswith(".__init__")])
def test_every_package_says_where_to_start_reading(module: str) -> None:
    text = " ".join((ast.get_docstring(tree(module)) or "").split())
    start = text.partition("Start at ")[2]
    files = [word.strip(".,") for word in start.split() if ".py" in word]
    assert files
    assert [f for f in files if not PACKAGE.joinpath(*module.split(".")[:-1], f).is_file()] == []
