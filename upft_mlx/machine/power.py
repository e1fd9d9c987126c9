"""Battery, low power mode, sleep and heat of a Mac, as `pmset` and the thermal notification tell them.

`pmset -g therm` says nothing about most of the throttling on Apple silicon; the level of
`com.apple.system.thermalpressurelevel`, which needs no root either, does. Both are read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from upft_mlx.machine.requirements import Platform, here

THERMAL_LEVELS = ("nominal", "moderate", "heavy", "trapping", "sleeping")
"""OSThermalNotification.h's names of thermalpressurelevel, from 0; from `heavy` on the chip is slowed down."""
THROTTLED = 2


@dataclass(frozen=True)
class Power:
    """What is known; None where macOS does not say."""

    on_battery: bool | None = None
    charge: int | None = None
    """Charge of the battery, in percent."""
    low_power_mode: bool | None = None
    sleep_minutes: int | None = None
    """Idle time until the Mac sleeps; 0: never."""
    power_nap: bool | None = None
    speed_limit: int | None = None
    """The CPU's limit because of heat (percent)."""
    thermal_level: int | None = None
    """Index into THERMAL_LEVELS."""

    @property
    def heat(self) -> str | None:
        """How heat slows this Mac down; None if it does not."""
        if self.thermal_level is not None and self.thermal_level >= THROTTLED:
            return f"thermal pressure {THERMAL_LEVELS[min(self.thermal_level, len(THERMAL_LEVELS) - 1)]}"
        if self.speed_limit is not None and self.speed_limit < 100:
            return f"CPU limited to {self.speed_limit} %"
        return None

    def concerns(self) -> dict[str, str]:
        """Reasons against a long run now, by kind."""
        found = {}
        if self.on_battery:
            left = f" ({self.charge} %)" if self.charge is not None else ""
            found["battery"] = (
                f"on battery{left}: plug in for a long run; if the battery runs empty, run the same command to continue"
            )
        if self.low_power_mode:
            found["low power mode"] = (
                "low power mode is on, which slows this Mac down; turn it off in System Settings, Battery"
            )
        if self.heat:
            found["heat"] = (
                f"heat slows this Mac down ({self.heat}): give it air and a hard surface; the results stay the same, "
                "but take longer"
            )
        return found


def read_power(source: Platform | None = None) -> Power | None:
    """The power state of a Mac, by default this one; None on other systems."""
    source = source or here()
    if source.system != "Darwin":
        return None
    battery = source.ask("pmset", "-g", "batt") or ""
    settings = source.ask("pmset", "-g") or ""
    heat = source.ask("pmset", "-g", "therm") or ""
    level = source.ask("notifyutil", "-g", "com.apple.system.thermalpressurelevel") or ""
    drawn = re.search(r"drawing from '([^']*)'", battery)
    low = [_setting(settings, "lowpowermode"), _setting(settings, "powermode")]
    nap = _setting(settings, "powernap")
    return Power(
        on_battery=drawn[1] != "AC Power" if drawn else None,
        charge=_number(r"(\d+)%", battery),
        low_power_mode=1 in low if low != [None, None] else None,  # powermode has 2 for high power
        sleep_minutes=_setting(settings, "sleep"),
        power_nap=None if nap is None else bool(nap),
        speed_limit=_number(r"CPU_Speed_Limit\s*=\s*(\d+)", heat),
        thermal_level=_number(r"thermalpressurelevel\s+(\d+)", level),
    )


def _setting(settings: str, name: str) -> int | None:
    """A line such as ` sleep                1 (sleep prevented by powerd)`."""
    return _number(rf"(?m)^\s*{name}\s+(\d+)", settings)


def _number(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text)
    return int(found[1]) if found else None
