"""The fields of `lora` that an adapter decides from which training starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FROM_ADAPTER = ("rank", "scale", "num_layers", "keys")


def without_open(lora: Any, serialize: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """The section as plain values; what an adapter decides that nobody has read yet is left out, not at its default."""
    found = serialize(lora)
    still_open = set(FROM_ADAPTER) - lora.model_fields_set if lora.start_from is not None else ()
    return {name: value for name, value in found.items() if name not in still_open}
