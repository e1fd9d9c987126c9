"""Rates of matrix products on this device, in GFLOP/s: python perf/experiments/products.py

What upft_mlx/models/cpu_layers.py rests on. Shapes are those of SmolLM2-135M's layers and head, from one row (a
decoding step) to a training batch, and of small models. UPFT_BLAS=none measures MLX's own BLAS.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from importlib import metadata

# isort: off
from upft_mlx.machine import blas  # before MLX, whose import loads the library
import mlx.core as mx

# isort: on

SHAPES = (
    *((rows, 576, 1536) for rows in (1, 8, 32, 256, 960)),
    *((rows, 576, 49152) for rows in (1, 32, 128)),
    *((960, 704, 128), (960, 128, 704)),
)
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
    print(
        f"mlx {metadata.version('mlx')}; {platform.machine()}, {os.cpu_count()} cores; {mx.default_device()}; "
        f"{blas.used()}"
    )
    print(
        f"{'rows x inputs x outputs':>24}  forward: dense NN, dense NT, 4 bits   backward: dense NN, dense NT, 4 bits"
    )
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
            lambda g=gradient, w=transposed: g @ w.T,
            lambda g=gradient, p=parts: mx.quantized_matmul(g, *p, transpose=False, group_size=64, bits=4),
        ]
        rates = [rate(2 * rows * inputs * outputs, run) for run in runs]
        name = f"{rows} x {inputs} x {outputs}"
        print(
            f"{name:>24}  {rates[0]:17.1f} {rates[1]:9.1f} {rates[2]:7.1f} "
            f"{rates[3]:20.1f} {rates[4]:9.1f} {rates[5]:7.1f}"
        )


if __name__ == "__main__":
    main()
