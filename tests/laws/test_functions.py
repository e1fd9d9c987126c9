"""Functions tell one story: few are private steps of a single caller. tools/count_functions.py counts them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT

MOST = 0.15
"""Share of the functions that may be private and called once; codebases that read well have 0.03 to 0.12."""
LINES = {"upft_mlx": 400, "tests": 500}


@pytest.fixture(scope="module")
def counter() -> ModuleType:
    spec = importlib.util.spec_from_file_location("count_functions", ROOT / "tools" / "count_functions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_few_functions_are_private_steps_of_a_single_caller(counter: ModuleType) -> None:
    counted = counter.functions()
    assert len(counted) > 1000
    assert counter.share(counted) < MOST, "merge some into their callers: python tools/count_functions.py --list"


def test_what_is_counted_is_what_is_written_here(tmp_path: Path, counter: ModuleType) -> None:
    (tmp_path / "a.py").write_text(
        "def public():\n    return _once() + _twice() + _twice()\n\n\n"
        "def _once():\n    return 1\n\n\ndef _twice():\n    return _passed\n\n\ndef _passed():\n    return 3\n\n\n"
        "class Thing:\n    def __init__(self):\n        self._step()\n\n    def _step(self):\n        return 4\n\n"
        "    def step(self):\n        return self.__init__\n"
    )
    counted = counter.functions(tmp_path)
    assert {f.name for f in counted if f.called_once} == {"_once", "_passed", "_step"}
    assert counter.share(counted) == pytest.approx(3 / 7)
    assert [f.lines for f in counted if f.name == "_once"] == [2]


@pytest.mark.parametrize("folder", LINES)
def test_no_module_is_too_long_to_read(folder: str) -> None:
    sizes = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in (ROOT / folder).rglob("*.py")
    }
    assert len(sizes) > 100
    assert {name: size for name, size in sizes.items() if size > LINES[folder]} == {}
