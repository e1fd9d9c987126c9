"""`upft doctor`: what it tells of each machine, that nothing breaks it, and that it keeps the token to itself."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from helpers.input import no_network, process, upft
from helpers.machine import BATTERY, LIMITED, LOW_POWER, intel, level, linux, mac, old_macos, rosetta
from rich.console import Console

from upft_mlx.inspection import doctor, selftest
from upft_mlx.inspection.doctor import Finding, examine
from upft_mlx.machine import requirements as machine
from upft_mlx.machine.requirements import Platform
from upft_mlx.ui.doctor import NAME, print_findings

__all__ = ["no_network"]
pytestmark = pytest.mark.usefixtures("no_network")

GIB = 2**30


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nobody is logged in, the cache is empty, and there is room."""
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub" / "cache"))
    monkeypatch.setattr(doctor, "FEW_BYTES", 1)
    return tmp_path


@pytest.fixture
def metal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 11 * GIB})


def found(source: Platform) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(source)}


def troubles(source: Platform) -> dict[str, str]:
    return {name: finding.status for name, finding in found(source).items() if finding.status != "ok"}


# Machines.


@pytest.mark.usefixtures("metal")
def test_a_mac_that_is_fine_has_no_trouble() -> None:
    lines = found(mac())
    assert [name for name, line in lines.items() if line.status != "ok"] == []
    assert {name: lines[name].value for name in ("system", "chip", "Python", "memory", "working set")} == {
        "system": "macOS 15.5",
        "chip": "Apple M2",
        "Python": "3.12.4, arm64, /Users/me/.venv/bin/python",
        "memory": "16.0 GiB (17.2 GB)",
        "working set": "11.8 GB on Metal, 69 % of the memory",
    }
    assert {name: lines[name].value for name in ("source", "low power mode", "sleep", "heat")} == {
        "source": "mains, 100 %",
        "low power mode": "off",
        "sleep": "after 1 min idle (not in a run), Power Nap on",
        "heat": "nominal",
    }


def test_linux_leaves_out_what_only_macos_has() -> None:
    lines = found(linux())
    assert lines["system"].value == "Linux"
    assert lines["working set"].value == "not macOS: MLX runs on the CPU"
    assert lines["source"].value == "not macOS"
    assert not {"low power mode", "sleep", "heat"} & lines.keys()
    assert troubles(linux()) == {}


def test_each_group_has_one_heading() -> None:
    """`machine` had two: the speed of matrix products came after the power."""
    groups = [finding.group for finding in examine(linux())]
    assert [group for group, _ in groupby(groups)] == list(dict.fromkeys(groups))


def test_an_nvidia_gpu_is_named_with_its_memory_and_kernels_before_the_self_test_needs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "kernels" not in found(linux())
    monkeypatch.setattr("upft_mlx.machine.device.on_nvidia", lambda: True)
    monkeypatch.setattr("upft_mlx.machine.device.nvidia_memory_bytes", lambda: 80 * GIB)
    seen = found(linux())
    assert seen["working set"].value == "85.9 GB on an NVIDIA GPU"
    assert "compiles each kernel" in seen["kernels"].value
    assert list(seen).index("kernels") < list(seen).index("loss")


@pytest.mark.parametrize(("source", "part"), [(intel(), "Intel"), (rosetta(), "Rosetta"), (old_macos(), "macOS 14")])
def test_a_machine_that_mlx_does_not_run_on_is_an_error_and_nothing_is_computed(source: Platform, part: str) -> None:
    lines = found(source)
    assert troubles(source) == {"system": "error", "MLX": "error"}
    assert part in lines["system"].advice
    assert lines["MLX"].value == "not run"
    assert not [name for name in lines if name.startswith(("loss", "4-bit", "working set"))]


@pytest.mark.usefixtures("metal")
@pytest.mark.parametrize(
    ("changes", "name", "value"),
    [
        ({"pmset -g batt": BATTERY}, "source", "battery, 76 %"),
        ({"pmset -g": LOW_POWER}, "low power mode", "on"),
        ({"pmset -g therm": LIMITED}, "heat", "CPU limited to 62 %"),
        (level(2), "heat", "thermal pressure heavy"),
        ({"sysctl -n hw.memsize": str(4 * GIB)}, "memory", "4.0 GiB (4.3 GB)"),
    ],
)
def test_what_slows_a_mac_down_is_a_warning_with_advice(changes: dict[str, str | None], name: str, value: str) -> None:
    source = mac(changes)
    assert troubles(source) == {name: "warning"}
    line = found(source)[name]
    assert line.value == value
    assert line.advice


@pytest.mark.usefixtures("metal")
def test_lines_that_are_ok_fit_80_columns_but_for_paths() -> None:
    for line in found(mac()).values():
        assert len(line.name) <= NAME
        assert "/" in line.value or len(line.value) <= 80 - 6 - NAME


@pytest.mark.usefixtures("metal")
def test_a_mac_that_tells_nothing_is_no_trouble() -> None:
    silent = Platform("Darwin", "arm64", (3, 12, 4), "python", lambda *command: None)
    assert troubles(silent) == {}
    assert found(silent)["sleep"].value == "unknown"


def test_a_mac_without_metal_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    assert troubles(mac()) == {"working set": "warning"}


# Packages.


def versions(monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None]) -> None:
    real = metadata.version

    def version(name: str) -> str:
        found = changes.get(name, "")
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found or real(name)

    monkeypatch.setattr(metadata, "version", version)


def test_packages_are_listed_with_their_versions() -> None:
    lines = found(linux())
    for name in ("mlx", "mlx-lm", "transformers", "datasets", "huggingface-hub"):
        assert lines[name].value == metadata.version(name)


def test_a_package_that_is_too_old_or_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    requirements = ['mlx>=0.31; sys_platform == "linux"', "mlx-lm>=0.31.3", 'ruff>=9; extra == "dev"']
    monkeypatch.setattr(metadata, "requires", lambda name: requirements)
    monkeypatch.setattr(sys, "platform", "linux")
    versions(monkeypatch, {"mlx": "0.20.1", "datasets": None})
    lines = found(linux())
    assert (lines["mlx"].status, lines["mlx"].value) == ("error", "0.20.1")
    assert f"upft needs >=0.31: `{sys.executable} -m pip install 'mlx>=0.31'`" == lines["mlx"].advice
    assert (lines["datasets"].status, lines["datasets"].value) == ("error", "not installed")
    assert lines["mlx-lm"].status == "ok"


def test_mlx_that_cannot_be_loaded_is_an_error_and_the_rest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    lines = found(linux())
    assert (lines["MLX"].status, lines["MLX"].value) == ("error", "not run")
    assert "pip install" in lines["MLX"].advice
    assert lines["login"].status == "ok"


def test_a_check_that_breaks_is_a_line_and_the_others_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks() -> Iterator[Finding]:
        raise RuntimeError("no such thing")
        yield

    monkeypatch.setattr(doctor, "_hub", breaks)
    lines = found(linux())
    assert (lines["check"].group, lines["check"].value) == ("hub", "fails: RuntimeError: no such thing")
    assert lines["check"].status == "error"
    assert "loss" in lines


# Hub and disk.


SECRET = "hf_thisIsASecretThatMustNotBeShown"


def test_without_a_login_it_says_what_one_is_needed_for() -> None:
    assert found(linux())["login"].value.startswith("none: needed for")


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
def test_a_token_in_the_environment_is_told_and_not_shown(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, SECRET)
    assert found(linux())["login"].value == f"found a token (environment variable {name})"


def test_a_token_in_a_file_is_told_and_not_shown(home: Path) -> None:
    (home / "token").write_text(SECRET)
    assert found(linux())["login"].value == f"found a token ({home / 'token'})"


def test_no_part_of_a_token_reaches_the_output(home: Path, tmp_path: Path) -> None:
    done = process("doctor", "--json", cwd=tmp_path, guard=home / "guard", HF_TOKEN=SECRET)
    assert "environment variable HF_TOKEN" in done.stdout
    for start in range(len(SECRET) - 7):
        assert SECRET[start : start + 8] not in done.stdout + done.stderr


def test_the_cache_and_the_working_folder_tell_their_free_disk(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 123_400_000_000

    monkeypatch.setattr("shutil.disk_usage", lambda place: Usage)
    lines = {finding.name: finding for finding in examine(linux(), home / "work")}
    assert lines["cache"].value == f"{home / 'hub' / 'cache'}, 123.4 GB free"  # not there yet
    assert lines["working folder"].value == f"{home / 'work'}, 123.4 GB free"
    monkeypatch.setattr(doctor, "FEW_BYTES", 200 * 10**9)
    lines = {finding.name: finding for finding in examine(linux(), home)}
    assert (lines["cache"].status, lines["working folder"].status) == ("warning", "warning")
    assert "HF_HOME=DIR" in lines["cache"].advice
    assert "--run-dir DIR" in lines["working folder"].advice


def test_a_working_folder_that_was_deleted_is_a_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    (home / "gone").mkdir()
    os.chdir(home / "gone")
    (home / "gone").rmdir()
    found = {(finding.group, finding.name): finding for finding in examine(linux())}
    assert found["disk", "working folder"].status == "error"
    assert (
        found["disk", "working folder"].advice == "cannot be read: No such file or directory; change to another folder"
    )
    assert ("power", "source") in found


def test_a_folder_that_cannot_be_written_is_an_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    line = next(finding for finding in examine(linux(), home) if finding.name == "working folder")
    assert line.status == "error"
    assert f"{home} cannot be written" in line.advice


# The self-test and the command.


def test_a_device_that_computes_something_else_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "LOSS", selftest.LOSS * 1.01)
    assert troubles(linux()) == {"loss": "error", "loss, all positions": "error"}
    assert "cannot trust" in found(linux())["loss"].advice


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[[Platform], None]:
    return lambda source: monkeypatch.setattr(doctor, "here", lambda: source)


def test_the_status_is_0_where_all_is_well_or_a_warning_and_1_at_an_error(
    here: Callable[[Platform], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    here(linux())
    shown = upft("doctor")
    assert shown.exit_code == 0
    assert shown.stdout.endswith("\nall is well\n")
    monkeypatch.setattr(doctor, "FEW_BYTES", 2**62)
    shown = upft("doctor")
    assert shown.exit_code == 0
    assert shown.stdout.endswith("\n2 warnings\n")
    here(intel())
    shown = upft("doctor")
    assert shown.exit_code == 1
    assert shown.stdout.endswith("\n2 errors, 2 warnings\n")
    assert shown.stderr == ""


def test_json_has_the_same_findings(here: Callable[[Platform], None]) -> None:
    here(old_macos())
    shown = upft("doctor", "--json")
    facts = json.loads(shown.stdout)
    assert shown.exit_code == 1
    assert facts["ok"] is False
    assert facts["findings"][0] == {
        "group": "machine",
        "name": "system",
        "value": "macOS 13.6.9",
        "status": "error",
        "advice": machine.refusal(machine.look(old_macos())),
    }
    here(linux())
    assert json.loads(upft("doctor", "--json").stdout)["ok"] is True


def printed(width: int, **how: Any) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None, **how)
    long = "plug in: " + "word " * 30 + "`/a/path/that/is/longer/than/the/screen/and/must/stay/whole/to/be/copied`"
    line = {"group": "power", "name": "source", "value": "battery\x1b[31m", "status": "warning", "advice": long}
    print_findings([line], console=console)
    return str(console.file.getvalue()).splitlines()  # type: ignore[attr-defined]


def test_advice_is_wrapped_on_a_terminal_only_and_control_characters_do_not_pass() -> None:
    piped = printed(60)
    assert piped[0] == "power"
    assert piped[1].split() == ["!", "source", "battery"]
    assert len(piped) == 5  # with an empty line and the total
    shown = printed(60, force_terminal=True)
    assert len(shown) > 6
    assert all(len(line) <= 60 or "/a/path" in line for line in shown)
    assert any("/a/path/that/is/longer/than/the/screen/and/must/stay/whole/to/be/copied" in line for line in shown)
