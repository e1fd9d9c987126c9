"""Do two ways of computing logits agree? Shortcuts are tried on a few tokens of each model before they are used."""

from __future__ import annotations

import mlx.core as mx

UNSUPPORTED = (ValueError, TypeError, AttributeError, IndexError, KeyError, NotImplementedError)
"""What a model family raises if it does not accept the caches or shapes of a shortcut."""


def same_logits(found: mx.array, full: mx.array) -> bool:
    """Whether two arrays of logits are equal but for rounding in the precision that the model computes with."""
    if found.shape != full.shape:
        return False
    tolerance = 1e-4 if full.dtype == mx.float32 else 3e-2  # what is wrong is off by about 1
    found, full = found.astype(mx.float32), full.astype(mx.float32)
    return scalar(mx.linalg.norm(found - full)) <= tolerance * max(scalar(mx.linalg.norm(full)), 1e-9)


def scalar(array: mx.array) -> float:
    """The value of a real array of size one."""
    value = array.item()
    assert isinstance(value, (int, float))
    return float(value)
