"""The folder in the user's cache where everything is kept that can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(*names: str) -> Path:
    """`upft/` in $XDG_CACHE_HOME or ~/.cache, or a folder in it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "upft", *names)
