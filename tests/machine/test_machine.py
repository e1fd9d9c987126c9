"""Machines on which upft cannot run are refused in one message. With recorded outputs."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from helpers.input import MINIMAL, assert_fails, upft, write
from helpers.machine import apples_python, intel, linux, mac, old_macos, on, rosetta

from upft_mlx import __main__, pipeline
from upft_mlx.machine import requirements
from upft_mlx.machine.requirements import (
    Platform,
    ask,
    import_refusal,
    look,
    mlx_refusal,
    pip_install,
    python_refusal,
    refusal,
)

__all__ = ["on"]
BEFORE_INSTALLATION = ("__init__", "_version", "__main__", "errors", "machine/__init__", "machine/requirements")
"""What runs before Python's version is known to be right and before anything is installed."""


# Facts and refusals.


def test_the_facts_of_a_mac_and_of_linux() -> None:
    found = look(mac())
    assert (found.macos, found.chip, found.memory_bytes) == ("15.5", "Apple M2", 16 * 2**30)
    assert (found.python, found.architecture, found.translated) == ("3.12.4", "arm64", False)
    other = look(linux())
    assert (other.macos, other.chip, other.memory_bytes) == (None, "AMD EPYC 9B14", 65832100 * 1024)


def test_facts_that_macos_does_not_tell_are_unknown_and_no_reason_to_refuse() -> None:
    silent = Platform("Darwin", "arm64", (3, 12, 4), "python", lambda *command: None)
    found = look(silent)
    assert (found.macos, found.chip, found.memory_bytes, found.translated) == (None, None, None, False)
    assert refusal(found) is None


@pytest.mark.parametrize("source", [mac(), linux(), mac({"sw_vers -productVersion": "26.0\n"})])
def test_apple_silicon_and_linux_are_fine(source: Platform) -> None:
    assert refusal(look(source)) is None
    assert python_refusal(source) is None


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        (intel(), ["Intel processor (Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz)", "M1 and later", "or Linux"]),
        (rosetta(), ["/usr/local/bin/python3", "under Rosetta", "prints arm64", "Homebrew in /opt/homebrew"]),
        (old_macos(), ["macOS 13.6.9", "macOS 14 or later", "Software Update"]),
        (
            Platform("Windows", "AMD64", (3, 12, 1), "python", lambda *c: None),
            ["Apple silicon and on Linux", "Windows"],
        ),
    ],
)
def test_other_machines_are_refused_with_what_to_do(source: Platform, parts: list[str]) -> None:
    text = refusal(look(source))
    assert text is not None
    assert "\n" not in text
    for part in parts:
        assert part in text


def test_apples_python_is_refused_with_the_way_to_a_newer_one() -> None:
    text = python_refusal(apples_python())
    assert text is not None
    for part in ("Python 3.10 or later", "Python 3.9.6", "Apple's developer tools", "brew install", "-m venv .venv"):
        assert part in text
    assert python_refusal(mac(python=(3, 10, 0))) is None
    assert "/usr/local/bin/python3" in str(python_refusal(mac(python=(3, 8, 1), executable="/usr/local/bin/python3")))


def test_a_command_that_is_missing_fails_or_hangs_has_no_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "ASK_SECONDS", 0.2)
    assert ask("echo", "text") == "text\n"
    assert ask("no-such-command-here") is None
    assert ask("false") is None
    assert ask("sleep", "5") is None


def test_here_is_this_python() -> None:
    assert requirements.here().python == tuple(sys.version_info[:3])
    assert requirements.here().executable == sys.executable


# MLX itself.


def test_mlx_that_is_missing_comes_with_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mlx_refusal() is None
    monkeypatch.setitem(sys.modules, "mlx.core", None)  # `import mlx.core` raises ModuleNotFoundError
    monkeypatch.setitem(sys.modules, "mlx", None)
    text = mlx_refusal(mac())
    assert text is not None
    assert "/Users/me/.venv/bin/python -m pip install" in text


@pytest.mark.parametrize(("source", "package"), [(mac(), "'mlx'"), (linux(), "'mlx[cpu]'")])
def test_a_native_library_that_cannot_be_loaded_is_installed_anew(source: Platform, package: str) -> None:
    error = ImportError("dlopen(core.so, 0x0002): Library not loaded:\n  libmlx.dylib", name="mlx.core")
    text = import_refusal(error, source)
    assert "cannot be loaded (dlopen(core.so, 0x0002): Library not loaded: libmlx.dylib)" in text
    assert f"{source.executable} -m pip install --force-reinstall --no-cache-dir {package}" in text


def test_another_package_that_is_missing_is_named_with_what_installs_it_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    error = ModuleNotFoundError("No module named 'click'", name="click")
    python = "/Users/me/.venv/bin/python"
    missing = f"the package click is not installed for {python}; "
    monkeypatch.setattr(sys, "prefix", "/an/environment")
    assert import_refusal(error, mac()) == f"{missing}`{python} -m pip install {ROOT}` installs it"
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert f"`cd {ROOT} && {python} -m venv .venv && .venv/bin/pip install .`" in import_refusal(error, mac())
    monkeypatch.setattr(
        requirements, "__file__", str(tmp_path / "site-packages" / "upft_mlx" / "machine" / "requirements.py")
    )
    assert import_refusal(error, mac()) == f"{missing}`{python} -m pip install 'click'` installs it"


def test_an_environment_without_pip_is_told_uvs_command(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pip_install("/env/bin/python") == "/env/bin/python -m pip install"
    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    assert pip_install("/env/bin/python") == "uv pip install --python /env/bin/python"


# At the start of commands.


@pytest.mark.parametrize("command", ["run", "generate", "train", "evaluate", "analyze", "compare", "fuse"])
@pytest.mark.parametrize(("source", "part"), [(intel(), "Intel"), (rosetta(), "Rosetta"), (old_macos(), "macOS 14")])
def test_what_computes_is_refused_before_the_recipe_is_even_read(
    on: Callable[[Platform], None], command: str, source: Platform, part: str
) -> None:
    on(source)
    assert_fails(upft(command, "no-such-recipe.yaml"), 1, part)


def test_help_version_and_results_are_not_refused(
    on: Callable[[Platform], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(intel())
    monkeypatch.chdir(tmp_path)
    for arguments in (["--help"], ["--version"], ["run", "--help"], ["recipes"], ["completion", "zsh"]):
        assert upft(*arguments).exit_code == 0
    assert "not a run directory" in upft("show", "nothing").stderr


def test_a_command_without_mlx_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    assert_fails(upft("run", write(tmp_path / "r.yaml", MINIMAL)), 1, "-m pip install")


def test_a_package_that_goes_missing_later_is_a_message_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def work(*arguments: Any) -> None:
        raise ModuleNotFoundError("No module named 'math_verify'", name="math_verify")

    monkeypatch.setattr(pipeline, "run", work)
    shown = upft("run", write(tmp_path / "r.yaml", MINIMAL))
    assert_fails(shown, 1, "the package math_verify is not installed", "-m pip install")


# Before anything is installed.


@pytest.mark.parametrize("module", BEFORE_INSTALLATION)
def test_what_runs_first_is_python_3_9_and_the_standard_library(module: str) -> None:
    tree = ast.parse((ROOT / "upft_mlx" / f"{module}.py").read_text(), feature_version=(3, 9))
    future = any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)
    annotated = any(isinstance(node, (ast.AnnAssign, ast.FunctionDef)) for node in ast.walk(tree))
    assert future or not annotated  # else `str | None` is computed
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Match)]
    for node in tree.body:
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            known = name.split(".")[0] in sys.stdlib_module_names
            assert known or name in ("upft_mlx", "upft_mlx._version", "upft_mlx.errors"), name


def old_python() -> str | None:
    """A Python before 3.10 on this machine, if there is one."""
    places = [*Path.home().glob(".pyenv/versions/3.9*/bin/python3.9")]
    for candidate in (*map(str, places), shutil.which("python3.9")):
        if candidate and subprocess.run([candidate, "--version"], capture_output=True, check=False).returncode == 0:
            return candidate
    return None


@pytest.mark.skipif(old_python() is None, reason="no Python 3.9 here")
def test_a_real_python_3_9_gets_the_message_and_no_traceback() -> None:
    done = subprocess.run([str(old_python()), "-m", "upft_mlx", "run", "x"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: upft needs Python 3.10 or later, but this is Python 3.9.")
    assert done.stderr.count("\n") == 1


def test_an_old_python_is_refused_before_click_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(requirements, "here", apples_python)
    monkeypatch.setitem(sys.modules, "upft_mlx.cli.main", None)
    with pytest.raises(SystemExit) as end:
        __main__.main()
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith("Error: upft needs Python 3.10 or later")


def test_the_installed_command_begins_where_python_is_checked() -> None:
    assert '\nupft = "upft_mlx.__main__:main"\n' in (ROOT / "pyproject.toml").read_text()


def bare(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """The command in a Python that has nothing installed."""
    code = f"import sys; sys.argv = {['upft', *arguments]!r}; from upft_mlx.__main__ import main; main()"
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ}, timeout=600)


def test_in_a_clone_without_anything_installed_the_command_says_what_is_missing() -> None:
    done = bare(["doctor"])
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: the package click is not installed for ")
    assert f"cd {ROOT} && " in done.stderr
    assert "-m venv .venv && .venv/bin/pip install .`" in done.stderr
