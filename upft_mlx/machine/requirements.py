"""The kind of machine, and the ones upft cannot run on: facts from `platform` and from macOS's own commands.

Nothing newer than Python 3.9, which Apple ships, and nothing that must be installed: `python3 -m upft_mlx` in a clone
says what is missing before anything is there. All facts come through `Platform`, so that tests can be any machine.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from upft_mlx._version import __version__
from upft_mlx.errors import MachineError

OLDEST_PYTHON = (3, 10)
OLDEST_MACOS = 14
"""The oldest macOS of MLX's wheels since 0.30 (their names on PyPI begin with macosx_14_0_arm64)."""
ASK_SECONDS = 5
_APPLES = ("/Library/Developer/CommandLineTools/", "/Applications/Xcode", "/usr/bin/python3")


@dataclass(frozen=True)
class Platform:
    """Where the facts come from."""

    system: str
    """`Darwin`, `Linux` or `Windows`."""
    architecture: str
    """This Python's architecture, not the processor's."""
    python: tuple[int, ...]
    executable: str
    ask: Callable[..., str | None]
    """A command's output; None if it is missing or fails."""


def ask(*command: str) -> str | None:
    """A command's output; None if it is missing, fails or hangs."""
    path = f"{os.environ.get('PATH', '')}:/usr/bin:/usr/sbin"  # sysctl is missing in the PATH of some editors
    environment = {**os.environ, "PATH": path, "LC_ALL": "C", "SYSTEM_VERSION_COMPAT": "0"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ASK_SECONDS,
            stdin=subprocess.DEVNULL,
            env=environment,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def here() -> Platform:
    """This machine."""
    return Platform(platform.system(), platform.machine(), tuple(sys.version_info[:3]), sys.executable, ask)


@dataclass(frozen=True)
class Machine:
    """The facts that do not change while a command runs."""

    system: str
    architecture: str
    python: str
    executable: str
    chip: str | None = None
    memory_bytes: int | None = None
    macos: str | None = None
    """The version of macOS; None elsewhere."""
    translated: bool = False
    """An Intel Python under Rosetta, on Apple silicon."""

    @property
    def is_mac(self) -> bool:
        """Whether this is macOS."""
        return self.system == "Darwin"


def look(source: Platform | None = None) -> Machine:
    """The facts of a machine, by default this one."""
    source = source or here()
    python = ".".join(map(str, source.python))
    common = (source.system, source.architecture, python, source.executable)
    if source.system != "Darwin":
        chips = (source.ask("cat", "/proc/cpuinfo") or "").splitlines()
        names = [line.partition(":")[2].strip() or None for line in chips if line.startswith("model name")]
        lines = (source.ask("cat", "/proc/meminfo") or "").splitlines()
        sizes = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemTotal:")]
        return Machine(*common, chip=next(iter(names), None), memory_bytes=next(iter(sizes), None))
    memory = _sysctl(source, "hw.memsize")
    return Machine(
        *common,
        chip=_sysctl(source, "machdep.cpu.brand_string"),
        memory_bytes=int(memory) if memory and memory.isdigit() else None,
        macos=(source.ask("sw_vers", "-productVersion") or "").strip() or None,
        translated=_sysctl(source, "sysctl.proc_translated") == "1",
    )


def _sysctl(source: Platform, name: str) -> str | None:
    return (source.ask("sysctl", "-n", name) or "").strip() or None


def versions_line() -> str:
    """The versions of upft, mlx, mlx-lm and Python in one line, from metadata: nothing is imported."""
    found = []
    for name in ("mlx", "mlx-lm"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    return f"upft {__version__} ({', '.join(found)}, Python {platform.python_version()})"


# What cannot work, and what to do.


def python_refusal(source: Platform | None = None) -> str | None:
    """Why this Python is too old; None if it is not."""
    source = source or here()
    if tuple(source.python[:2]) >= OLDEST_PYTHON:
        return None
    apples = source.system == "Darwin" and source.executable.startswith(_APPLES)
    which = "from Apple's developer tools" if apples else source.executable
    wanted = ".".join(map(str, OLDEST_PYTHON))
    ways = "`brew install python@3.12`, python.org's installer or `uv python install 3.12`"
    return (
        f"upft needs Python {wanted} or later, but this is Python {'.'.join(map(str, source.python))} ({which}); "
        f"install one ({ways if source.system == 'Darwin' else 'your system, or `uv python install 3.12`'}) and create "
        "the environment with it: `python3.12 -m venv .venv && .venv/bin/pip install .`"
    )


def refusal(machine: Machine | None = None) -> str | None:
    """Why MLX cannot run on this machine; None if it can."""
    machine = machine or look()
    if machine.system not in ("Darwin", "Linux"):
        return f"upft runs on Apple silicon and on Linux, but this is {machine.system}"
    if not machine.is_mac:
        return None
    if machine.translated:
        return (
            f"this Python ({machine.executable}) is built for Intel and runs under Rosetta; MLX needs one for "
            "Apple silicon: open a Terminal that is not set to use Rosetta, and create the environment "
            "again with a Python that prints arm64 for `python3 -c 'import platform; print(platform.machine())'` "
            "(Homebrew in /opt/homebrew, python.org's installer, uv)"
        )
    if machine.architecture != "arm64":
        return (
            f"this Mac has an Intel processor ({machine.chip or machine.architecture}), but MLX runs only on Apple "
            "silicon (M1 and later); use such a Mac, or Linux"
        )
    version = machine.macos or ""
    major = version.partition(".")[0]
    if major.isdigit() and int(major) < OLDEST_MACOS:
        return (
            f"this is macOS {version}, but MLX needs macOS {OLDEST_MACOS} or later; update it in System Settings, "
            "General, Software Update"
        )
    return None


def mlx_refusal(source: Platform | None = None) -> str | None:
    """Why MLX cannot be imported, and the command that helps; None if it can."""
    source = source or here()
    try:
        import mlx.core  # noqa: F401
    except ImportError as error:
        return import_refusal(error, source)
    return None


def kernel_refusal(error: Exception) -> str | None:
    """What to do where MLX's CPU backend, which compiles with g++ in the temporary folder, cannot; else None."""
    folder, text = Path(tempfile.gettempdir()) / "mlx", " ".join(str(error).split())
    signs = ("[Compile::eval_cpu]", "Could not load C++ shared library", "filesystem error:")
    if not any(sign in text for sign in signs):
        return None
    return (
        f"MLX cannot compile its kernels in {folder} ({text[:60]} ... {text[-120:]}); install g++ "
        "or make room there, or name another folder with TMPDIR, then run the same command again"
    )


def import_refusal(error: ImportError, source: Platform | None = None) -> str:
    """What to do about a package that is missing or cannot be loaded."""
    source = source or here()
    name = (error.name or "mlx").partition(".")[0]
    if name in ("libmlx", "mlx"):
        name = "mlx" if source.system == "Darwin" else "mlx[cpu]"
    pip = pip_install(source.executable)
    if isinstance(error, ModuleNotFoundError) and error.name != "mlx.core":
        missing = f"the package {error.name} is not installed for {source.executable}"
        clone = Path(__file__).resolve().parent.parent.parent
        if not (clone / "pyproject.toml").is_file():
            return f"{missing}; `{pip} '{name}'` installs it"
        if sys.prefix != sys.base_prefix:  # in an environment
            return f"{missing}; `{pip} {clone}` installs it"
        environment = f"cd {clone} && {source.executable} -m venv .venv && .venv/bin/pip install ."
        return f"{missing}; `{environment}` creates an environment with it, with the command .venv/bin/upft"
    reason = " ".join(str(error).split())
    return (
        f"the package {name} is installed but cannot be loaded ({reason}); "
        f"`{pip} --force-reinstall --no-cache-dir '{name}'` reinstalls it"
    )


def pip_install(executable: str) -> str:
    """The command that installs into this environment; those that uv makes have no pip."""
    if find_spec("pip") is None:
        return f"uv pip install --python {executable}"
    return f"{executable} -m pip install"


def check() -> None:
    """Refuse a machine on which upft cannot run, before any other message.

    Raises:
        MachineError: says what to do.
    """
    trouble = refusal() or mlx_refusal()
    if trouble:
        raise MachineError(trouble)
