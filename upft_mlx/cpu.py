"""Quantized layers on MLX's CPU backend: a dense copy for the forward pass.

There the product with a quantized matrix runs at less than half the rate of a dense one (perf/products.py), while the
product of its backward pass is the fastest of all. So a layer keeps its weights a second time, dequantized and
transposed, for the one, and its quantized weights for the other. On a GPU quantized products are fast, and nothing of
this happens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from upft_mlx.device import memory_bytes, on_gpu

MEMORY_SHARE = 1 / 8
"""Of the machine's memory that the copies may take; a model that is larger does without."""


class DenseForward(nn.QuantizedLinear):
    """A quantized layer with a dense copy, which is no parameter of it: it is neither trained nor saved."""

    _forward: Callable[[mx.array], mx.array]
    _copied: tuple[mx.array, ...]
    """The arrays of which the copy was made."""

    def __call__(self, x: mx.array) -> mx.array:
        """(..., inputs) to (..., outputs); as a quantized layer once its weights or the precision are others."""
        current = all(a is b for a, b in zip(self._copied, _parts(self), strict=True))
        if not current or x.dtype != mx.float32:
            plain: mx.array = super().__call__(x)  # type: ignore[no-untyped-call]
            return plain
        y = self._forward(x)
        return y + self.bias if "bias" in self else y


def add_dense_copies(model: nn.Module) -> bool:
    """Give the quantized layers of a model on the CPU their copies; embeddings and heads stay as they are.

    Returns:
        Whether it was done: not off the CPU, nor where the copies would take too much memory.
    """
    layers = [layer for _, layer in model.named_modules() if type(layer) is nn.QuantizedLinear and _fits(layer)]
    bytes_needed = sum(4 * _inputs(layer) * layer.weight.shape[0] for layer in layers)
    if on_gpu() or not layers or bytes_needed > MEMORY_SHARE * memory_bytes():
        return False
    for layer in layers:
        layer._forward, layer._copied = _with_dense_forward(layer), _parts(layer)
        layer.__class__ = DenseForward
    return True


def _fits(layer: nn.QuantizedLinear) -> bool:
    """float32 layers only: with others the copy would change the precision."""
    return bool(layer.mode == "affine" and layer.scales.dtype == mx.float32)


def _parts(layer: nn.QuantizedLinear) -> tuple[mx.array, mx.array, mx.array]:
    assert layer.biases is not None  # affine quantization has them
    return layer.weight, layer.scales, layer.biases


def _inputs(layer: nn.QuantizedLinear) -> int:
    return int(layer.scales.shape[1] * layer.group_size)


def _with_dense_forward(layer: nn.QuantizedLinear) -> Callable[[mx.array], mx.array]:
    """The layer's product: dense forward, quantized backward."""
    parts = _parts(layer)
    how = {"group_size": layer.group_size, "bits": layer.bits}
    dense = mx.contiguous(mx.dequantize(*parts, **how).T)
    mx.eval(dense)

    @mx.custom_function
    def product(x: mx.array) -> mx.array:
        return x @ dense

    @product.vjp
    def backward(x: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        return mx.quantized_matmul(cotangent, *parts, transpose=False, **how)

    return cast("Callable[[mx.array], mx.array]", product)
