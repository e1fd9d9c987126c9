"""Layers on MLX's CPU backend: dense copies of quantized weights, updates added in products, a faster activation.

There a product with a quantized matrix runs at 2 to 7 GFLOP/s, whatever the BLAS, and a dense one at up to 150 with
OpenBLAS (perf/experiments/products.py has the rates per shape). So layers and tied heads keep their weights a second
time, dequantized, as (inputs, outputs): that layout is the faster one for a single row and no slower for many. Without
a fast BLAS the quantized product of the backward pass is faster than the dense one, and stays. With it, MLX's `exp`
on x86 takes as long for an activation as the product before it; a power of two takes a third of that. On a GPU
quantized products and `exp` are fast, and nothing of this happens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn

from upft_mlx.machine.blas import used as blas
from upft_mlx.machine.device import dense_bytes_limit, memory_bytes, on_gpu


class DenseLinear(nn.QuantizedLinear):
    """A quantized layer with a dense copy, which is not a parameter: it is neither trained nor saved."""

    _product: Callable[[mx.array], mx.array]
    _copied: tuple[mx.array, ...]
    """The arrays of which the copy was made."""

    def __call__(self, x: mx.array) -> mx.array:
        """(..., inputs) to (..., outputs); as a quantized layer once its weights or the precision are others."""
        if x.dtype != mx.float32 or not _is_current(self):
            plain: mx.array = super().__call__(x)  # type: ignore[no-untyped-call]
            return plain
        y = self._product(x)
        return y + self.bias if "bias" in self else y


class DenseHead(nn.QuantizedEmbedding):
    """A quantized embedding, with a dense copy from its first use as a head on."""

    _product: Callable[[mx.array], mx.array]
    _copied: tuple[mx.array, ...]

    def as_linear(self, x: mx.array) -> mx.array:
        """(..., hidden) to logits (..., V)."""
        if not self._copied:
            self._product, self._copied = _dense_product(self), _parts(self)
        if x.dtype != mx.float32 or not _is_current(self):
            plain: mx.array = super().as_linear(x)  # type: ignore[no-untyped-call]
            return plain
        return self._product(x)


_DENSE: dict[type, type] = {
    nn.QuantizedLinear: DenseLinear,
    nn.QuantizedEmbedding: DenseHead,
    DenseLinear: DenseLinear,
    DenseHead: DenseHead,
}


def add_dense_copies(model: nn.Module) -> int:
    """Give the quantized layers of a model on the CPU their copies, as far as memory allows.

    To be called again after weights were replaced (`set_dtype` replaces all of them): until then a layer whose arrays
    are others than those that were copied computes with them as they are, which is right, and slow.

    Returns:
        How many layers compute with one; 0 on a GPU.
    """
    room = dense_bytes_limit(memory_bytes())
    done = 0
    for _, layer in () if on_gpu() else model.named_modules():
        kind = _DENSE.get(type(layer))
        if kind is not None and layer.mode == "affine" and layer.scales.dtype == mx.float32:
            # Only of float32 layers: with others the copy would change the precision.
            inputs = layer.scales.shape[1] * layer.group_size
            room -= 4 * inputs * layer.weight.shape[0]
            if room < 0:
                break
            layer.__class__ = kind
            if isinstance(layer, DenseHead):
                layer._copied = ()  # made at its first use as a head
            elif not _is_current(layer):
                layer._product, layer._copied = _dense_product(layer), _parts(layer)
            done += 1
    return done


def add_updates_in_products(model: nn.Module) -> int:
    """On the CPU, let LoRA layers add their update in the product that makes it, not in two passes of their own.

    That is about half of what an adapter costs: a layer of the embedded model takes 24 us with mlx-lm's layer for 32
    rows, 17 with this one, 9 without an adapter. The outputs are mlx-lm's but for rounding.

    Returns:
        How many layers that did not yet; 0 on a GPU.
    """
    from mlx_lm.tuner.lora import LoRALinear

    class Adding(LoRALinear):  # type: ignore[misc]  # mlx-lm has no types
        """y = W x + scale * (x A) B, the last product onto the first."""

        def __call__(self, x: mx.array) -> mx.array:
            if not x.dtype == self.lora_a.dtype == self.lora_b.dtype == mx.float32:
                plain: mx.array = super().__call__(x)
                return plain
            inner = self.scale * (self.dropout(x) @ self.lora_a)  # scaled where the arrays are small
            return mx.addmm(self.linear(x), inner, self.lora_b)

    layers = [layer for _, layer in model.named_modules() if type(layer) is LoRALinear] if not on_gpu() else []
    for layer in layers:
        layer.__class__ = Adding
    return len(layers)


_INVERSE_E = 1 / math.e
_LOWEST = -80.0
"""The lowest gate that counts: below it the result is 0 to 30 digits, and the power would overflow."""


@mx.custom_function
def _swiglu(gate: mx.array, x: mx.array) -> tuple[mx.array, mx.array]:
    sigmoid = 1 / (1 + mx.power(_INVERSE_E, gate))
    return gate * sigmoid * x, sigmoid


@_swiglu.vjp
def _swiglu_backward(
    inputs: tuple[mx.array, mx.array], gradients: tuple[mx.array, mx.array], outputs: tuple[mx.array, mx.array]
) -> tuple[mx.array, mx.array]:
    (gate, x), gradient, sigmoid = inputs, gradients[0], outputs[1]
    silu = gate * sigmoid
    return gradient * x * (sigmoid + silu - silu * sigmoid), gradient * silu


def swiglu(gate: mx.array, x: mx.array, *, trains: bool = False) -> mx.array:
    """silu(gate) * x, by the power function of the C library: less than half of the time of MLX's `exp`.

    Where it trains, the sigmoid is kept for the backward pass, which takes a fourth of MLX's time.
    """
    if not trains:
        return gate / (1 + mx.power(_INVERSE_E, mx.maximum(gate, _LOWEST))) * x
    product, _ = cast("tuple[mx.array, mx.array]", _swiglu(gate, x))
    return product


def _with_mlx_lms(self: Any, x: mx.array) -> Any:
    return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


def _spelled_out(self: Any, x: mx.array) -> Any:
    return self.down_proj(nn.silu(self.gate_proj(x)) * self.up_proj(x))


def add_fast_activations(model: nn.Module) -> int:
    """On the CPU, let MLPs that compute down(silu(gate(x)) * up(x)), and nothing else, use `swiglu` in float32.

    Their code decides: nearly all of mlx-lm's families have a class of their own with the same two lines.

    Returns:
        How many layers that did not yet; 0 on a GPU.
    """

    def computes(call: Any) -> tuple[bytes, tuple[str, ...]] | None:
        code = getattr(call, "__code__", None)
        return None if code is None else (code.co_code, code.co_names)

    same = {computes(_with_mlx_lms), computes(_spelled_out)}
    done, fast = 0, dict[type, type]()
    for _, layer in () if on_gpu() else model.named_modules():
        kind = type(layer)
        if kind not in fast and computes(kind.__call__) in same:

            def call(self: Any, x: mx.array, plain: Callable[[Any, mx.array], Any] = kind.__call__) -> Any:
                if x.dtype != mx.float32:
                    return plain(self, x)
                return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x), trains=self.training))

            fast[kind] = type(kind.__name__, (kind,), {"__call__": call})
        if kind in fast:
            layer.__class__ = fast[kind]
            done += 1
    return done


def _parts(layer: DenseLinear | DenseHead) -> tuple[mx.array, mx.array, mx.array]:
    return layer["weight"], layer["scales"], layer["biases"]  # affine quantization has all three


def _is_current(layer: DenseLinear | DenseHead) -> bool:
    copied = getattr(layer, "_copied", None)
    return copied is not None and all(a is b for a, b in zip(copied, _parts(layer), strict=True))


def _dense_product(layer: DenseLinear | DenseHead) -> Callable[[mx.array], mx.array]:
    """The layer's product without its bias."""
    parts = _parts(layer)
    how = {"group_size": layer.group_size, "bits": layer.bits}
    dense = mx.contiguous(mx.dequantize(*parts, **how).T)  # (inputs, outputs)
    mx.eval(dense)
    if blas().is_fast:
        return lambda x: x @ dense

    @mx.custom_function
    def product(x: mx.array) -> mx.array:
        return x @ dense

    @product.vjp
    def backward(x: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
        return mx.quantized_matmul(cotangent, *parts, transpose=False, **how)

    return cast("Callable[[mx.array], mx.array]", product)
