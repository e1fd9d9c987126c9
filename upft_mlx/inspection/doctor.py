"""What `upft doctor` checks: the machine, packages, Hub, disk, power, and the results of this device.

Each finding is one line: ok, a warning or an error, and for the last two what to do. Nothing is changed and the
network is not used. For the Hub, it reports only whether and where a login exists.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from upft_mlx._version import __version__
from upft_mlx.machine.power import THERMAL_LEVELS, Power, read_power
from upft_mlx.machine.requirements import Machine, Platform, here, look, mlx_refusal, pip_install, refusal
from upft_mlx.quantities import disk, memory, percent

Severity = Literal["ok", "warning", "error"]
PACKAGES = ("mlx", "mlx-lm", "transformers", "datasets", "huggingface-hub")
GIB = 2**30
FEW_BYTES = 10 * 10**9
"""Less free disk space than this gets a warning: a 7B model in 4 bits and its fused copy take 8 to 9 GB."""
LITTLE_MEMORY = 7 * GIB
"""Less than a Mac with 8 GB has."""
_WRONG = (
    "this is not the known answer, so you cannot trust results from this device; upgrade mlx and mlx-lm, and report "
    "it with the output of `upft doctor --json`"
)


@dataclass(frozen=True)
class Finding:
    """One line."""

    group: str
    name: str
    value: str
    status: Severity = "ok"
    advice: str = ""
    """What to do; empty if it is ok."""

    def dump(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def examine(source: Platform | None = None, folder: Path | None = None) -> Iterator[Finding]:
    """All findings, one after the other; the last ones take a second or two.

    Args:
        source: the machine; default: this one.
        folder: where runs would be kept; default: the working directory.
    """
    source = source or here()
    machine = look(source)
    trouble = refusal(machine)
    broken = mlx_refusal(source) if trouble is None else None
    system = f"macOS {machine.macos or 'of unknown version'}" if machine.is_mac else machine.system
    yield Finding("machine", "system", system, "error" if trouble else "ok", trouble or "")
    yield Finding("machine", "chip", machine.chip or "unknown")
    python = f"{machine.python}, {machine.architecture}{', under Rosetta' if machine.translated else ''}"
    yield Finding("machine", "Python", f"{python}, {machine.executable}")
    yield from _safely("machine", lambda: _memory(machine, usable=not (trouble or broken)))
    if not (trouble or broken):
        yield from _safely("machine", _blas)
    yield from _safely("packages", _packages)
    yield from _safely("hub", _hub)
    yield _working_folder(folder)
    yield from _power(read_power(source))
    if trouble or broken:
        yield Finding("self-test", "MLX", "not run", "error", broken or "see the error of the system, above")
    else:
        yield from _safely("self-test", _self_test)


def _safely(group: str, look_at: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A check that fails gets its own line, and the others still run."""
    try:
        yield from look_at()
    except Exception as error:
        advice = "reinstall the package it names, or report it with `upft doctor --json`"
        yield Finding(group, "check", f"fails: {type(error).__name__}: {error}", "error", advice)


def failed(findings: list[Finding]) -> bool:
    """Whether something is an error."""
    return any(finding.status == "error" for finding in findings)


def _memory(machine: Machine, *, usable: bool) -> Iterator[Finding]:
    size = machine.memory_bytes
    text = f"{size / GIB:.1f} GiB ({memory(size)})" if size else "unknown"
    little = size is not None and size < LITTLE_MEMORY
    advice = "only the smallest models fit (0.5B in 4 bits)" if little else ""
    yield Finding("machine", "memory", text, "warning" if little else "ok", advice)
    if not usable:
        return
    from upft_mlx.machine.device import compiles_first, nvidia_memory_bytes, working_set_bytes

    working_set, nvidia = working_set_bytes(), nvidia_memory_bytes()
    if working_set is not None:
        share = f", {percent(working_set / size, 0)} of the memory" if size else ""
        yield Finding("machine", "working set", f"{memory(working_set)} on Metal{share}")
    elif nvidia is not None:
        yield Finding("machine", "working set", f"{memory(nvidia)} on an NVIDIA GPU")
        if wait := compiles_first():  # the self-test below may be their first use
            yield Finding("machine", "kernels", wait)
    elif not machine.is_mac:
        yield Finding("machine", "working set", "not macOS: MLX runs on the CPU")
    else:
        advice = "MLX runs on the CPU, many times slower; is this a virtual machine?"
        yield Finding("machine", "working set", "Metal is not available", "warning", advice)


def _blas() -> Iterator[Finding]:
    """The library for MLX's matrix products, and their speed."""
    from upft_mlx.inspection.selftest import gigaflops
    from upft_mlx.machine import blas

    used = blas.used()
    value = f"{used}, {gigaflops():.0f} GFLOP/s"
    slow = sys.platform == "linux" and not used.is_fast and used.trouble
    advice = f"matrix products are about 30 times slower than they could be: {used.trouble}" if slow else ""
    yield Finding("machine", "matrix products", value, "warning" if slow else "ok", advice)


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    yield Finding("packages", "upft-mlx", __version__)
    pip = pip_install(sys.executable)
    try:
        needed = [Requirement(line) for line in metadata.requires("upft-mlx") or []]
    except metadata.PackageNotFoundError:  # run from a clone that is not installed
        needed = []
    needs = {r.name: r.specifier for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})}
    for name in PACKAGES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding("packages", name, "not installed", "error", f"`{pip} {name}` installs it")
            continue
        if needs.get(name, SpecifierSet()).contains(version, prereleases=True):
            yield Finding("packages", name, version)
        else:
            advice = f"upft needs {needs[name]}: `{pip} '{name}{needs[name]}'`"
            yield Finding("packages", name, version, "error", advice)


def _hub() -> Iterator[Finding]:
    from huggingface_hub import constants, get_token

    file = Path(constants.HF_TOKEN_PATH)
    where = str(file) if file.is_file() else "the Hub's client"  # never the token
    for name in ("HUGGING_FACE_HUB_TOKEN", "HF_TOKEN"):  # the client looks for the last one first
        where = f"environment variable {name}" if os.environ.get(name) else where
    if get_token() is None:
        yield Finding("hub", "login", "none: needed for private models and `upft push`")
    else:
        yield Finding("hub", "login", f"found a token ({where})")
    if constants.is_offline_mode():
        yield Finding("hub", "network", "off (HF_HUB_OFFLINE)")
    yield _disk("cache", Path(constants.HF_HUB_CACHE), "hub")


def _working_folder(folder: Path | None) -> Finding:
    try:
        return _disk("working folder", folder or Path.cwd())
    except OSError as error:  # it was deleted, or a folder above it is closed
        reason = error.strerror or str(error)
        return Finding("disk", "working folder", "none", "error", f"cannot be read: {reason}; change to another folder")


def _disk(name: str, folder: Path, group: str = "disk") -> Finding:
    """Free disk space in a folder that may not exist yet, and whether it is writable."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        free = shutil.disk_usage(place).free
    except OSError as error:
        return Finding(group, name, str(folder), "error", f"cannot be read: {error.strerror}")
    value = f"{folder}, {disk(free)} free"
    other = "put the cache elsewhere with HF_HOME=DIR" if group == "hub" else "put runs elsewhere with --run-dir DIR"
    if not os.access(place, os.W_OK):
        return Finding(group, name, value, "error", f"{place} cannot be written; {other}")
    if free < FEW_BYTES:
        return Finding(group, name, value, "warning", f"not much for a model and a run; make room, or {other}")
    return Finding(group, name, value)


def _power(power: Power | None) -> Iterator[Finding]:
    if power is None:
        yield Finding("power", "source", "not macOS")
        return
    concerns = power.concerns()

    def finding(name: str, value: str, kind: str) -> Finding:
        return Finding("power", name, value, "warning" if kind in concerns else "ok", concerns.get(kind, ""))

    charge = f", {power.charge} %" if power.charge is not None else ""
    source = {True: "battery", False: "mains", None: "unknown"}[power.on_battery]
    yield finding("source", f"{source}{charge}", "battery")
    low = {True: "on", False: "off", None: "unknown"}[power.low_power_mode]
    yield finding("low power mode", low, "low power mode")
    sleep = "unknown"
    if power.sleep_minutes is not None:
        idle = f"after {power.sleep_minutes} min idle (not in a run)" if power.sleep_minutes else "never when idle"
        sleep = idle + {True: ", Power Nap on", False: ", Power Nap off", None: ""}[power.power_nap]
    yield Finding("power", "sleep", sleep)
    level = power.thermal_level
    calm = THERMAL_LEVELS[level] if level is not None and level < len(THERMAL_LEVELS) else "nothing recorded"
    yield finding("heat", power.heat or calm, "heat")


def _self_test() -> Iterator[Finding]:
    from upft_mlx.inspection.selftest import checks

    for check in checks():
        value = f"off by {check.error:.1e} (relative)"
        advice = "" if check.right else _WRONG
        yield Finding("self-test", check.name, value, "ok" if check.right else "error", advice)
