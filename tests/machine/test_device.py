"""Memory limits and staying awake, with stand-ins for what only a Mac has."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from upft_mlx import pipeline
from upft_mlx.events import Event, Note
from upft_mlx.machine.device import awake, limit_memory, working_set_bytes
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
def caffeinate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A stand-in for the command; writes its arguments to the file and waits to be ended."""
    said = tmp_path / "said"
    command = tmp_path / "bin" / "caffeinate"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\necho "$$ $*" > {said}.part\nmv {said}.part {said}\nexec sleep 60\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(sys, "platform", "darwin")
    return said


def wait_for(path: Path) -> str:
    for _ in range(500):
        if path.exists():
            return path.read_text()
        time.sleep(0.01)
    pytest.fail(f"{path} was not written")


def test_memory_is_limited_to_and_wired_in_a_macs_working_set(mac: dict[str, Any]) -> None:
    assert limit_memory() == "memory is limited to this Mac's working set, 12.0 GiB, and wired"
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
    assert any("12.0 GiB" in text for text in notes)
