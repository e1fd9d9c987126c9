"""Digests of files: what a stage wrote is known again, whatever happens to the file afterwards."""

from __future__ import annotations

import hashlib
from pathlib import Path

_BLOCK = 1 << 20
_known: dict[tuple[int, int, int, int], str] = {}
"""By device, inode, size and time of change, so that a process reads each file once, wherever it is moved to."""


def digest(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal, read in blocks.

    Raises:
        OSError: it cannot be read.
    """
    state = path.stat()
    key = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
    if key not in _known:
        found = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                found.update(block)
        _known[key] = found.hexdigest()
    return _known[key]
