"""The parts of the campaign: each gives cases, a key and what runs it and says what did not hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from .faults import Faults

Cases = Iterator[tuple[str, Callable[[], str]]]


def faults(folder: Path, seed: int) -> Cases:
    """Each call that fails; see faults.py."""
    world = Faults(folder)
    for name, point, number, kind in world.cases(seed):
        yield f"{name} : {number} {point} : {kind}", partial(world.broken, name, point, number, kind)


PARTS: dict[str, Callable[[Path, int], Cases]] = {"faults": faults}
