"""Memory limits and staying awake, with stand-ins for what only a Mac has."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from upft_mlx import pipeline
from upft_mlx.events import Event, Note
from upft_mlx.machine.device import awake, compiles_first, limit_memory, working_set_bytes
from upft_mlx.planning.budget import this_machine
from upft_mlx.recipe.schema import Recipe

GIB = 2**30


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A Mac with 12 GiB of working set; remembers the limits that are set."""
    limits: dict[str, Any] = {}
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 12 * GIB})
    monkeypatch.setattr(mx, "set_memory_limit", lambda size: limits.update(memory=size))
    monkeypatch.setattr(mx, "set_wired_limit", lambda size: limits.update(wired=size))
    return limits


@pytest.fixture
def nvidia(monkeypatch: pytest.MonkeyPatch) -> None:
    """What MLX 0.32.4 says of an H100."""
    said = {"total_memory": 85520809984, "free_memory": 84465090560, "device_name": "NVIDIA H100 80GB HBM3"}
    monkeypatch.setattr(mx.cuda, "is_available", lambda: True)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu, 0))
    monkeypatch.setattr(mx, "device_info", lambda: said)


@pytest.fixture
def caffeinate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A stand-in for the command; writes its arguments to the file and waits to be ended."""
    said = tmp_path / "said"
    command = tmp_path / "bin" / "caffeinate"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "$$ $*" > {said}.part\nmv {said}.part {said}\nexec sleep 60\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    import_module("urllib.request")  # after the next line it would ask for a module that only a Mac has
    monkeypatch.setattr(sys, "platform", "darwin")
    return said


def wait_for(path: Path) -> str:
    for _ in range(500):
        if path.exists():
            return path.read_text()
        time.sleep(0.01)
    pytest.fail(f"{path} was not written")


def test_memory_is_limited_to_and_wired_in_a_macs_working_set(mac: dict[str, Any]) -> None:
    assert limit_memory() == "memory is limited to this Mac's working set, 12.9 GB, and wired"
    assert mac == {"memory": 12 * GIB, "wired": 12 * GIB}


def test_where_wiring_is_refused_the_run_goes_on(mac: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise ValueError("setting a wired limit larger than the maximum working set size is not allowed")

    monkeypatch.setattr(mx, "set_wired_limit", refuse)
    assert "not wired: setting a wired limit larger" in str(limit_memory())
    assert mac == {"memory": 12 * GIB}


def test_off_apple_silicon_no_limit_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    monkeypatch.setattr(mx, "set_memory_limit", lambda _: pytest.fail("set"))
    assert working_set_bytes() is None
    assert limit_memory() is None


def test_a_device_that_does_not_say_its_working_set_is_left_alone(
    mac: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mx, "device_info", lambda: {"memory_size": 16 * GIB})
    assert limit_memory() is None
    assert mac == {}


@pytest.mark.usefixtures("nvidia")
def test_a_plan_for_an_nvidia_gpu_keeps_to_its_memory_and_makes_no_dense_copies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = this_machine()
    assert (machine.bytes, machine.whole, machine.what) == (85520809984, 85520809984, "this GPU's memory")
    assert (machine.is_gpu, machine.dense_bytes, machine.attends_in_blocks) == (True, 0, False)
    assert limit_memory() is None
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu, 0))  # as with `mx.set_default_device(mx.cpu)`
    assert this_machine().what == "three quarters of this machine's memory"


@pytest.mark.usefixtures("nvidia")
def test_a_run_on_an_nvidia_gpu_says_that_kernels_are_compiled_first(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[Event] = []
    with pipeline.opened(pipeline.prepare(make_recipe(), tmp_path / "run", told.append)):
        pass
    notes = [event.text for event in told if isinstance(event, Note)]
    assert [text for text in notes if "MLX_PTX_CACHE_DIR" in text] == [compiles_first()]
    monkeypatch.setenv("MLX_PTX_CACHE_DIR", "/data/ptx")
    assert "and keeps them in /data/ptx" in str(compiles_first())


def test_a_mac_is_kept_awake_for_this_process_and_no_longer_than_the_block(caffeinate: Path) -> None:
    told: list[Event] = []
    with awake(told.append):
        pid, *arguments = wait_for(caffeinate).split()
        os.kill(int(pid), 0)  # it runs
    assert arguments == ["-i", "-m", "-s", "-w", str(os.getpid())]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
    assert [event.text for event in told if isinstance(event, Note)] == [
        "this Mac is kept awake until the command ends (caffeinate); its display may sleep"
    ]


def test_a_mac_without_caffeinate_and_another_system_just_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[Event] = []
    with awake(told.append):
        pass
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("PATH", str(tmp_path))
    with awake(told.append):
        pass
    assert told == []


def test_stages_run_awake_and_within_the_limits(
    make_recipe: Callable[..., Recipe], tmp_path: Path, mac: dict[str, Any], caffeinate: Path
) -> None:
    told: list[Event] = []
    recipe = make_recipe(problems={"limit": 2}, prefix={"structure_ratio": 0.0})
    pipeline.run_stage(recipe, tmp_path / "run", "generate", told.append)
    assert wait_for(caffeinate)
    assert mac == {"memory": 12 * GIB, "wired": 12 * GIB}
    notes = [event.text for event in told if isinstance(event, Note)]
    assert any("kept awake" in text for text in notes)
    assert any("12.9 GB" in text for text in notes)
