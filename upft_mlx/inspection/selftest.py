"""A known-answer test of what training computes, on this device.

A tiny Qwen2 whose weights are computed, not drawn, gets three rows with prompts, prefixes and padding. Its loss and the
norm of its gradient are known from a float64 program that shares nothing with MLX (tests/inspection/test_selftest.py
runs it each time); a wrong mask, weight, position or kernel moves them far beyond the tolerance. Products with 4-bit
weights, packed by hand, are compared with the sums written out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt
from mlx.utils import tree_flatten, tree_unflatten

from upft_mlx.sampling.same_logits import scalar
from upft_mlx.training.batches import Example, make_batch, shared_length
from upft_mlx.training.loss import Modes, to_arrays, value_and_grad

LOSS = 5.1695246995
"""The loss of `rows()` under `make_model()`, in float64."""
GRADIENT_NORM = 12.71152
"""Over all parameters."""
TOLERANCE = 1e-3
"""Relative. float32 on the CPU stays below 1e-5, and so does the loss with operands rounded to the ten bits of TF32, as
some GPUs do it; each fault tried in the tests moves loss or gradient by more than 2e-2."""
SHAPE: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "vocab_size": 96,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
GROUP = 64
"""Weights that share a scale and a bias, of 4 bits each."""


@dataclass(frozen=True)
class Check:
    """How far what this device computes is from what is known."""

    name: str
    error: float
    """Relative."""

    @property
    def right(self) -> bool:
        """False for nan as well."""
        return self.error <= TOLERANCE


def checks() -> Iterator[Check]:
    """All checks: the loss as training computes it and plainly, then quantized products."""
    for where, modes in (("", Modes()), (", all positions", Modes(gather=False, share=False))):
        loss, norm = loss_and_gradient_norm(modes)
        yield Check(f"loss{where}", abs(loss - LOSS) / LOSS)
        yield Check(f"gradient{where}", abs(norm - GRADIENT_NORM) / GRADIENT_NORM)
    yield from _quantized_products()


def uniform(count: int, start: int = 0) -> npt.NDArray[np.float64]:
    """`count` numbers in [-1, 1) that look random, exact in float32: a hash of start, start + 1, ..."""
    word = np.arange(start + 1, start + count + 1, dtype=np.uint64) * np.uint64(2654435761) % np.uint64(2**32)
    word = (word ^ (word >> np.uint64(15))) * np.uint64(2246822519) % np.uint64(2**32)
    word = (word ^ (word >> np.uint64(13))) * np.uint64(3266489917) % np.uint64(2**32)
    return (word >> np.uint64(16)).astype(np.float64) / 2**15 - 1


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, npt.NDArray[np.float64]]:
    """Weights for parameters of these names and shapes, exact in float32: norms around 1, others by their inputs."""
    made, start = {}, 0
    for name, shape in sorted(shapes.items()):
        count = int(np.prod(shape))
        values = uniform(count, start).reshape(shape)
        scale = 2.0 / math.sqrt(shape[-1]) if len(shape) > 1 else 0.25
        offset = 1.0 if "norm" in name else 0.0
        made[name] = (offset + scale * values).astype(np.float32).astype(np.float64)
        start += count
    return made


def make_model() -> nn.Module:
    """The model, all of whose parameters are trainable."""
    from mlx_lm.models.qwen2 import Model, ModelArgs

    model: nn.Module = Model(ModelArgs(**SHAPE))
    shapes = {name: array.shape for name, array in dict(tree_flatten(model.parameters())).items()}
    arrays = [(name, mx.array(values.astype(np.float32))) for name, values in weights(shapes).items()]
    model.update(tree_unflatten(arrays))
    return model


def rows() -> list[Example]:
    """Three rows that share their first five tokens, with prefixes of 3, 8 and 5 tokens."""
    vocabulary = SHAPE["vocab_size"]
    common = [7, 3, 11, 29, 5]
    made = []
    for number, (prompt, prefix) in enumerate([(9, 3), (12, 8), (7, 5)]):
        own = [(17 * number + 13 * k * k + 5 * k + 1) % vocabulary for k in range(prompt + prefix - len(common))]
        made.append(Example(f"row-{number}", [*common, *own], prompt))
    return made


def loss_and_gradient_norm(modes: Modes) -> tuple[float, float]:
    """What this device makes of the rows."""
    examples = rows()
    shared = shared_length(examples) if modes.share else 0
    model = make_model()
    loss, gradients = value_and_grad(model, modes)(*to_arrays(make_batch(examples, shared)))
    squares = [scalar((array * array).sum()) for array in dict(tree_flatten(gradients)).values()]
    return scalar(loss), math.sqrt(sum(squares))


def _quantized_products() -> Iterator[Check]:
    """One row, as in decoding, and several, as in a prompt; and the product of the backward pass."""
    outputs, inputs = 64, 2 * GROUP
    codes = ((uniform(outputs * inputs) + 1) * 8).astype(np.int64).reshape(outputs, inputs)  # 0 to 15
    scales = (uniform(outputs * 2, 9000).reshape(outputs, 2) * 0.05 + 0.1).astype(np.float32)
    biases = (-7.5 * scales).astype(np.float32)
    packed = sum(codes[:, k::8] << (4 * k) for k in range(8))  # eight codes a word, the first in the lowest bits
    parts = (mx.array(np.asarray(packed, dtype=np.uint32)), mx.array(scales), mx.array(biases))
    dense = codes * np.repeat(scales, GROUP, 1).astype(np.float64) + np.repeat(biases, GROUP, 1).astype(np.float64)
    for name, count, transpose in (("one row", 1, True), ("48 rows", 48, True), ("backward", 48, False)):
        width = inputs if transpose else outputs
        x = uniform(count * width, 20000).reshape(count, width)
        wanted = x @ (dense.T if transpose else dense)
        found = mx.quantized_matmul(
            mx.array(x.astype(np.float32)), *parts, transpose=transpose, group_size=GROUP, bits=4
        )
        error = float(np.abs(np.array(found) - wanted).max() / np.abs(wanted).max())
        yield Check(f"4-bit product, {name}", error)


def gigaflops(size: int = 768) -> float:
    """The rate of a square float32 product on this device in GFLOP/s, the best of five; takes half a second at most."""
    x = mx.random.normal((size, size))
    mx.eval(x @ x)
    seconds = math.inf
    for _ in range(5):
        start = time.perf_counter()
        mx.eval(x @ x)
        seconds = min(seconds, time.perf_counter() - start)
    return 2 * size**3 / seconds / 1e9
