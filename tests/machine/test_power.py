"""Battery, low power mode and heat of a Mac are told and stop nothing. With recorded outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.machine import (
    BATTERY,
    DESKTOP,
    HIGH_POWER,
    LIMITED,
    LOW_POWER,
    POWER_MODE_LOW,
    UPS,
    level,
    linux,
    mac,
    on,
)

from upft_mlx import pipeline
from upft_mlx.events import Event, Note
from upft_mlx.machine import device
from upft_mlx.machine.power import Power, read_power
from upft_mlx.machine.requirements import Platform
from upft_mlx.recipe.schema import Recipe

__all__ = ["on"]


def test_the_power_of_a_mac_that_is_fine() -> None:
    power = read_power(mac())
    assert power == Power(
        on_battery=False,
        charge=100,
        low_power_mode=False,
        sleep_minutes=1,
        power_nap=True,
        speed_limit=None,
        thermal_level=0,
    )
    assert power.concerns() == {}


@pytest.mark.parametrize(
    ("changes", "kind", "part"),
    [
        ({"pmset -g batt": BATTERY}, "battery", "on battery (76 %): plug in"),
        ({"pmset -g batt": UPS}, "battery", "on battery (64 %)"),
        ({"pmset -g": LOW_POWER}, "low power mode", "System Settings, Battery"),
        ({"pmset -g": POWER_MODE_LOW}, "low power mode", "System Settings, Battery"),
        ({"pmset -g therm": LIMITED}, "heat", "CPU limited to 62 %"),
        (level(2), "heat", "thermal pressure heavy"),
        (level(9), "heat", "thermal pressure sleeping"),
    ],
)
def test_what_speaks_against_a_long_run_is_told(changes: dict[str, str | None], kind: str, part: str) -> None:
    power = read_power(mac(changes))
    assert power is not None
    assert list(power.concerns()) == [kind]
    assert part in power.concerns()[kind]


@pytest.mark.parametrize("changes", [{"pmset -g batt": DESKTOP}, {"pmset -g": HIGH_POWER}, level(1)])
def test_a_desktop_high_power_and_a_warm_mac_are_fine(changes: dict[str, str | None]) -> None:
    power = read_power(mac(changes))
    assert power is not None
    assert power.concerns() == {}


def test_where_pmset_fails_nothing_is_known_and_nothing_is_said() -> None:
    power = read_power(Platform("Darwin", "arm64", (3, 12, 4), "python", lambda *command: None))
    assert power == Power()
    assert power.concerns() == {}


def test_other_systems_have_no_power_to_read() -> None:
    assert read_power(linux()) is None


def notes(told: list[Event]) -> list[str]:
    return [event.text for event in told if isinstance(event, Note)]


def test_a_run_says_once_that_it_is_on_battery_and_goes_on(
    on: Callable[[Platform], None], make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    on(mac({"pmset -g batt": BATTERY}))
    told: list[Event] = []
    recipe = make_recipe(problems={"limit": 2}, prefix={"structure_ratio": 0.0})
    job = pipeline.prepare(recipe, tmp_path / "run", told.append)
    with pipeline.opened(job):
        pipeline.do(job, "generate")
        pipeline.do(job, "build")
    assert [text for text in notes(told) if "battery" in text] == [
        "on battery (76 %): plug in for a long run; if the battery runs empty, run the same command to continue"
    ]


def test_heat_that_comes_later_is_told_at_the_next_look(on: Callable[[Platform], None]) -> None:
    told: list[Event] = []
    watch = device.PowerWatch(told.append)
    on(mac())
    watch.look()
    assert told == []
    on(mac({**level(3)}))
    watch.look()
    watch.look()
    assert [text.split(":")[0] for text in notes(told)] == ["heat slows this Mac down (thermal pressure trapping)"]


def test_on_linux_a_run_says_nothing_of_power(on: Callable[[Platform], None]) -> None:
    on(linux())
    told: list[Event] = []
    device.PowerWatch(told.append).look()
    assert told == []
