"""LoRA that fusing at the base's own bits keeps: its update stays on the quantization grid (QA-LoRA, arXiv 2309.14717).

MLX's affine quantization stores a group of weights of one row as codes, a scale and a bias. An update that is the same
for all weights of a group is a change of that bias: codes and scales stay, and nothing is rounded but the bias, to its
own type. So `lora_a` has one row for each group while it is trained, and the group's inputs are added up before it.
Written to a file, that row is repeated for each input of the group: an adapter like any other for mlx-lm, PEFT and
llama.cpp, with the same outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from upft_mlx.errors import ModelError
from upft_mlx.escape import quoted

if TYPE_CHECKING:
    from mlx_lm.tuner.lora import LoRALinear

_FIELD = "lora.grid"


def inner_layer(layer: nn.Module) -> nn.Module:
    """The layer under an adapter."""
    inner: nn.Module = layer["linear"] if "linear" in layer else layer["embedding"]
    return inner


class GridLora(nn.Module):
    """y = W x + scale * lora_b^T lora_a^T s, where s (..., groups) has the sum of each group's inputs."""

    def __init__(self, plain: LoRALinear) -> None:
        """Take over mlx-lm's layer, whose `lora_a` (in, r) becomes (groups, r): the first row of each group."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.linear, self.dropout, self.scale = plain.linear, plain.dropout, plain.scale
        self.lora_a = plain.lora_a[:: self.linear.group_size]
        self.lora_b = plain.lora_b

    def __call__(self, x: mx.array) -> mx.array:
        """(..., in) to (..., out)."""
        y: mx.array = self.linear(x)
        groups = (*x.shape[:-1], -1, self.linear.group_size)
        sums = self.dropout(x).astype(self.lora_a.dtype).reshape(groups).sum(axis=-1)
        update: mx.array = self.scale * ((sums @ self.lora_a) @ self.lora_b)
        return y + update.astype(x.dtype)

    def plain(self) -> LoRALinear:
        """mlx-lm's layer with the same outputs."""
        from mlx_lm.tuner.lora import LoRALinear

        layer = LoRALinear.from_base(self.linear, r=self.lora_a.shape[1], scale=self.scale)
        layer.dropout = self.dropout
        layer.lora_a = mx.repeat(self.lora_a, self.linear.group_size, axis=0)
        layer.lora_b = self.lora_b
        return layer


def put_on_grid(model: nn.Module, *, fresh: bool) -> None:
    """Make each LoRA layer of a model a `GridLora`.

    Args:
        model: with LoRA layers.
        fresh: whether their `lora_a` may lose all but one row of each group; else the rows of a group must be equal.

    Raises:
        ModelError: a layer's base has no grid of this kind, or an adapter that is not fresh leaves it.
    """
    found = [(name, module) for name, module in model.named_modules() if "lora_a" in module]
    for name, layer in found:
        inner = inner_layer(layer)
        if not hasattr(inner, "bits"):
            raise ModelError(
                f"base, but {quoted(name)} is not quantized",
                "leave it out, set quantize, or choose quantized modules with lora.keys",
                field=_FIELD,
            )
        if not _has_biases(layer):
            raise ModelError(
                f"base is for LoRA on linear layers in MLX's affine quantization; {quoted(name)} is a "
                f"{type(layer).__name__} on a {type(inner).__name__} ({inner.mode})",
                "leave it out, or choose other modules with lora.keys",
                field=_FIELD,
            )
        if not fresh and not is_on_grid(layer):
            raise ModelError(
                f"base, but the adapter to start from changes weights of one group differently ({quoted(name)})",
                "start from an adapter that was trained with lora.grid: base, or leave one of the two out",
                field=_FIELD,
            )
    model.update_modules(tree_unflatten([(name, GridLora(layer)) for name, layer in found]))


def take_off_grid(model: nn.Module) -> None:
    """Make each `GridLora` of a model mlx-lm's layer with the same outputs."""
    found = [(name, module.plain()) for name, module in model.named_modules() if isinstance(module, GridLora)]
    model.update_modules(tree_unflatten(found))


def is_on_grid(layer: nn.Module) -> bool:
    """Whether a layer's update is a change of the biases of its base's groups; `layer`: mlx-lm's, with an adapter."""
    if not _has_biases(layer):
        return False
    rows = layer.lora_a.reshape(-1, inner_layer(layer).group_size, layer.lora_a.shape[1])  # (groups, group, r)
    return bool((rows == rows[:, :1]).all().item())


def moved_biases(layer: nn.Module) -> mx.array:
    """The biases (out, groups) of the groups with the layer's update, float32; `layer` is on the grid."""
    inner = inner_layer(layer)
    delta = layer.lora_a[:: inner.group_size].astype(mx.float32) @ layer.lora_b.astype(mx.float32)  # (groups, out)
    result: mx.array = inner.biases.astype(mx.float32) + layer.scale * delta.T
    return result


def _has_biases(layer: nn.Module) -> bool:
    """Whether a layer is LoRA (not DoRA, whose magnitudes scale every weight) on an affinely quantized matrix."""
    from mlx_lm.tuner.lora import LoRALinear

    inner = inner_layer(layer)
    return type(layer) is LoRALinear and isinstance(inner, nn.QuantizedLinear) and inner.mode == "affine"
