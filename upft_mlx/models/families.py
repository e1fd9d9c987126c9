"""What some of mlx-lm's model families need before they can be used and trained: found by trial, not by their names.

docs/reference/families.md says what works on each; `tests/helpers/families.py` tries it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

Module = nn.Module
_TRIED = [[1, 2, 3]]


class SharedKeys:
    """What a layer takes for its cache in a pass that gradients go through: keys and values of tokens before its own.

    It speaks the part of mlx-lm's cache protocol that a pass of several tokens needs.
    """

    def __init__(self, keys: mx.array | None = None, values: mx.array | None = None) -> None:
        self.keys, self.values = keys, values
        self.offset = 0 if keys is None else keys.shape[2]
        self._fetched: tuple[mx.array, mx.array] | None = None

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Keys and values (B, heads, P + T, D) of all tokens that those of this pass may attend to."""
        if self.keys is None or self.values is None:
            self.keys, self.values = keys, values
            self._fetched = keys, values
        else:
            self._fetched = _after(self.keys, keys), _after(self.values, values)
        return self._fetched

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """What `update_and_fetch` gave: for later layers that have no keys of their own."""
        assert self._fetched is not None
        return self._fetched

    def make_mask(self, length: int, return_array: bool = False, window_size: int | None = None) -> Any:
        """Causal, within the window if there is one; "causal" lets MLX align the last positions with each other."""
        from mlx_lm.models.base import create_causal_mask

        if return_array or (window_size is not None and self.offset + length > window_size):
            return create_causal_mask(length, self.offset, window_size=window_size)
        return None if length == 1 else "causal"


def _after(shared: mx.array, own: mx.array) -> mx.array:
    """`shared` (1, heads, P, D) before each sequence of `own` (B, heads, T, D)."""
    return mx.concatenate([mx.broadcast_to(shared, (own.shape[0], *shared.shape[1:])), own], axis=2)


def read_from_outside(model: Module) -> set[int]:
    """The `id` of each module whose `weight` the model's code reads itself in a forward pass.

    Such a module can be neither quantized nor replaced by a LoRA layer: those have another `weight`, or none.
    """
    read: set[int] = set()
    original = Module.__getattr__

    def watch(module: Module, name: str) -> Any:
        if name == "weight" and sys._getframe(1).f_locals.get("self") is not module:
            read.add(id(module))
        return original(module, name)

    Module.__getattr__ = watch  # type: ignore[method-assign]
    try:
        model(mx.array(_TRIED))  # only the graph is built: nothing is computed
    finally:
        Module.__getattr__ = original  # type: ignore[method-assign]
    return read


def default_keys(model: Module) -> list[str] | None:
    """The modules that get an adapter where the recipe names none, where those are not all that mlx-lm would take."""
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

    kinds = (nn.Linear, nn.QuantizedLinear, nn.Embedding, nn.QuantizedEmbedding, SwitchLinear, QuantizedSwitchLinear)
    own = read_from_outside(model)
    parts = [item for layer in model.layers for item in layer.named_modules()]
    found = {name for name, module in parts if isinstance(module, kinds) or hasattr(module, "to_lora")}
    taken = {name for name, module in parts if id(module) in own}
    return sorted(found - taken) if found & taken else None


def prepare(model: Module) -> None:
    """Make a model whole that mlx-lm has loaded, and see that it can be called.

    Raises:
        Exception: whatever the model's code raises.
    """
    for _, module in model.named_modules():
        if not hasattr(module, "_no_grad"):  # recurrent_gemma's never had its own
            module.__dict__["_no_grad"] = set()
            module.__dict__["_training"] = False
    if reads_keys_of_others(model):
        kind = type(model)
        model.__class__ = type(kind.__name__, (_WithCache, kind), {})
    model(mx.array(_TRIED))


def reads_keys_of_others(model: Module) -> bool:
    """Whether layers read the keys of earlier ones from their cache, as Gemma 3n's: without a cache they make their
    own, which are not the model's. Such layers cannot be computed again one by one either."""
    return any("is_kv_shared_layer" in vars(module) for _, module in model.named_modules())


class _WithCache(Module):
    """A model whose layers hand keys to others through a cache, and get one in every pass."""

    def __call__(self, inputs: mx.array, cache: Any = None, **rest: Any) -> Any:
        own: Callable[..., Any] = super().__call__
        return own(inputs, cache=[SharedKeys() for _ in self.layers] if cache is None else cache, **rest)
