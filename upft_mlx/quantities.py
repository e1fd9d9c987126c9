"""Numbers as people read them, on screens, in reports and in messages: one format per quantity. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence


def many(number: int, what: str, several: str | None = None) -> str:
    """`1 step`, `1,024 steps`; `several` is a plural that does not end with an s."""
    return f"{number:,} {what if number == 1 else several or f'{what}s'}"


def percent(share: float, digits: int = 1) -> str:
    """0.715 as `71.5 %`, or with no `digits` as `72 %`."""
    return f"{100 * share:.{digits}f} %"


def accuracy(share: float, interval: Sequence[float]) -> str:
    """A share and its interval: `71.5 % [65.3, 77.0]`."""
    return f"{percent(share)} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def points(delta: float) -> str:
    """A signed difference of shares in percentage points; a rounded zero has no minus."""
    return f"{round(100 * delta, 1) + 0.0:+.1f}"


def difference(delta: float, interval: Sequence[float], unit: str = "") -> str:
    """A difference of shares and its interval in percentage points: `+2.1 [-0.4, +4.6]`, `+2.1 points [-0.4, +4.6]`."""
    return f"{points(delta)}{unit} [{points(interval[0])}, {points(interval[1])}]"


def p_value(value: float) -> str:
    """`p 0.012`, cut and not rounded, so that 0.0499 is below 0.05; or that it is smaller than three decimals show."""
    return "p < 0.001" if value < 0.001 else f"p {math.floor(1000 * value + 1e-9) / 1000:.3f}"


def count(number: float) -> str:
    """`812`, `4.1 k`, `12.0 M`."""
    if number < 1000:
        return f"{number:.0f}"
    return f"{number / 1e3:.1f} k" if number < 999_950 else f"{number / 1e6:.1f} M"


def rate(per_second: float) -> str:
    """`1,234 tokens/s`, with a decimal where it matters."""
    return f"{per_second:,.{0 if per_second >= 10 else 1}f} tokens/s"


def memory(size: float) -> str:
    """Bytes in memory, in decimal units: `812 MB`, `12.4 GB`."""
    return f"{size / 1e9:.1f} GB" if size >= 999.5e6 else f"{size / 1e6:.0f} MB"


def disk(size: float) -> str:
    """Bytes of files, downloads and free disk space, in decimal units: `0.4 MB`, `4.28 GB`, `83.9 GB`."""
    if size < 999.95e6:
        return f"{size / 1e6:.1f} MB"
    return f"{size / 1e9:.{1 if size >= 9.995e9 else 2}f} GB"


def duration(seconds: float) -> str:
    """`12.3 s`, `2 min 05 s`, `1 h 02 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def clock(seconds: float) -> str:
    """`0:12`, `1:02:03`."""
    whole = max(0, int(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
