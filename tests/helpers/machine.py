"""Stand-ins for machines: what `sw_vers`, `sysctl`, `pmset` and `notifyutil` print on them there."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from upft_mlx.machine import requirements
from upft_mlx.machine.requirements import Platform

MAINS = """Now drawing from 'AC Power'
 -InternalBattery-0 (id=12345678)	100%; charged; 0:00 remaining present: true
"""
BATTERY = """Now drawing from 'Battery Power'
 -InternalBattery-0 (id=12345678)	76%; discharging; 4:12 remaining present: true
"""
DESKTOP = "Now drawing from 'AC Power'\n"
UPS = """Now drawing from 'UPS Power'
 -Back-UPS 900 (id=12345678)	64%; discharging; 0:23 remaining present: true
"""
SETTINGS = """System-wide power settings:
Currently in use:
 standby              1
 Sleep On Power Button 1
 hibernatefile        /var/vm/sleepimage
 powernap             1
 networkoversleep     0
 disksleep            10
 sleep                1 (sleep prevented by sharingd, powerd)
 hibernatemode        3
 ttyskeepawake        1
 displaysleep         10
 tcpkeepalive         1
 lowpowermode         0
 womp                 1
"""
LOW_POWER = SETTINGS.replace("lowpowermode         0", "lowpowermode         1")
HIGH_POWER = SETTINGS.replace(" lowpowermode         0", " powermode            2")
POWER_MODE_LOW = SETTINGS.replace(" lowpowermode         0", " powermode            1")
COOL = """Note: No thermal warning level has been recorded
Note: No performance warning level has been recorded
Note: No CPU power status has been recorded
"""
LIMITED = """2026-01-20 05:08:37 -0700 CPU Power notify
	CPU_Scheduler_Limit 	= 100
	CPU_Available_CPUs 	= 8
	CPU_Speed_Limit 	= 62
"""

M2 = {
    "sw_vers -productVersion": "15.5\n",
    "sysctl -n hw.memsize": "17179869184\n",
    "sysctl -n machdep.cpu.brand_string": "Apple M2\n",
    "sysctl -n sysctl.proc_translated": "0\n",
    "pmset -g batt": MAINS,
    "pmset -g": SETTINGS,
    "pmset -g therm": COOL,
    "notifyutil -g com.apple.system.thermalpressurelevel": "com.apple.system.thermalpressurelevel 0\n",
}


def level(number: int) -> dict[str, str]:
    """The thermal notification at this level."""
    key = "notifyutil -g com.apple.system.thermalpressurelevel"
    return {key: f"com.apple.system.thermalpressurelevel {number}\n"}


def mac(
    changes: dict[str, str | None] | None = None,
    *,
    architecture: str = "arm64",
    python: tuple[int, ...] = (3, 12, 4),
    executable: str = "/Users/me/.venv/bin/python",
) -> Platform:
    """A MacBook Air with an M2 on mains, but for `changes` (None: the command fails)."""
    outputs: dict[str, str | None] = {**M2, **(changes or {})}
    return Platform("Darwin", architecture, python, executable, lambda *command: outputs[" ".join(command)])


def rosetta() -> Platform:
    """An Intel Python on that Mac."""
    return mac({"sysctl -n sysctl.proc_translated": "1\n"}, architecture="x86_64", executable="/usr/local/bin/python3")


def intel() -> Platform:
    """A Mac with an Intel processor, where sysctl.proc_translated does not exist."""
    chip = "Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz\n"
    changes: dict[str, str | None] = {"sysctl -n machdep.cpu.brand_string": chip}
    return mac({**changes, "sysctl -n sysctl.proc_translated": None}, architecture="x86_64")


def old_macos() -> Platform:
    """The M2 with macOS 13."""
    return mac({"sw_vers -productVersion": "13.6.9\n"})


def apples_python() -> Platform:
    """The M2 with the Python of Apple's developer tools."""
    folder = "/Library/Developer/CommandLineTools/usr/bin/python3"
    return mac(python=(3, 9, 6), executable=folder)


def linux() -> Platform:
    """A machine with Linux."""
    outputs = {
        "cat /proc/cpuinfo": "processor\t: 0\nmodel name\t: AMD EPYC 9B14\n",
        "cat /proc/meminfo": "MemTotal:       65832100 kB\nMemFree:        1000 kB\n",
    }
    return Platform("Linux", "x86_64", (3, 11, 7), "/home/me/.venv/bin/python", lambda *c: outputs.get(" ".join(c)))


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[Platform], None]:
    """Pretend to be a machine."""

    def pretend(source: Platform) -> None:
        monkeypatch.setattr(requirements, "here", lambda: source)
        monkeypatch.setattr("upft_mlx.machine.power.here", lambda: source)

    return pretend
