"""Rates of matrix products on this device, in GFLOP/s, at the shapes of a training step: python perf/products.py

What upft_mlx/cpu.py rests on: with MLX's CPU backend on x86, a dense product in the layout NN is more than twice as
fast as a product with a quantized matrix, but for the one of the backward pass.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from importlib import metadata

import mlx.core as mx

SHAPES = ((960, 128, 704), (960, 704, 128), (960, 128, 128), (64, 128, 704), (160, 128, 8832))
"""Rows, inputs, outputs."""


def rate(operations: int, run: Callable[[], mx.array]) -> float:
    """GFLOP/s, the mean of five after a first."""
    mx.eval(run())
    begin = time.perf_counter()
    for _ in range(5):
        mx.eval(run())
    return 5 * operations / (time.perf_counter() - begin) / 1e9


def main() -> None:
    """A line per shape."""
    print(f"mlx {metadata.version('mlx')}; {platform.machine()}, {os.cpu_count()} cores; {mx.default_device()}")
    print(f"{'rows x inputs x outputs':>24}  forward: dense NN, dense NT, 4 bits   backward: dense NN, 4 bits")
    for rows, inputs, outputs in SHAPES:
        x, gradient = mx.random.normal((rows, inputs)), mx.random.normal((rows, outputs))
        weight = mx.random.normal((outputs, inputs))
        transposed, parts = mx.contiguous(weight.T), mx.quantize(weight, group_size=64, bits=4)
        mx.eval(x, gradient, weight, transposed, parts)
        runs: list[Callable[[], mx.array]] = [
            lambda x=x, w=transposed: x @ w,
            lambda x=x, w=weight: x @ w.T,
            lambda x=x, p=parts: mx.quantized_matmul(x, *p, transpose=True, group_size=64, bits=4),
            lambda g=gradient, w=weight: g @ w,
            lambda g=gradient, p=parts: mx.quantized_matmul(g, *p, transpose=False, group_size=64, bits=4),
        ]
        rates = [rate(2 * rows * inputs * outputs, run) for run in runs]
        name = f"{rows} x {inputs} x {outputs}"
        print(f"{name:>24}  {rates[0]:17.1f} {rates[1]:9.1f} {rates[2]:7.1f} {rates[3]:20.1f} {rates[4]:7.1f}")


if __name__ == "__main__":
    main()
