"""Rounding that serves the outputs of a layer instead of its weights: what is lost at one weight others make up for.

A layer's inputs are strongly correlated, so that many matrices give nearly the same outputs. Both formats here use the
second moments of the inputs, E[x x^T] over calibration rows, and minimise E[|W x - W' x|^2] for the wanted W:

- `feedback` rounds column after column and corrects the columns to come for the error made (GPTQ, arXiv 2210.17323);
- `fit_scales` leaves the base's codes and moves each group's scale and bias, by least squares.

Columns are taken in blocks: the memory is that of one block, and correlations across blocks are not used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.floating[Any]]
Round = Callable[[Matrix, npt.NDArray[np.intp]], Matrix]
"""Rounds columns (O, k) of the matrix, given their indices (k,)."""

DAMPING = 0.01
"""Share of the mean second moment that is added to each: directions that no calibration input has still count."""
_PANEL = 64
_ROWS = 128


def feedback(wanted: Matrix, moments: list[Matrix], rounded: Round) -> Matrix:
    """Round a matrix so that its outputs stay.

    Args:
        wanted: (O, D) float32.
        moments: of its inputs, a (B, B) matrix for each block of columns.
        rounded: nearest rounding of columns.

    Returns:
        (O, D), every value as `rounded` returns it.
    """
    result = np.empty_like(wanted)
    start = 0
    for block in moments:
        order = np.argsort(-np.diag(block), kind="stable")  # those that matter most have most to correct them
        columns, size = start + order, len(block)
        damping = DAMPING * float(np.mean(np.diag(block))) or 1.0
        inverse = np.linalg.inv(block[np.ix_(order, order)].astype(np.float64) + damping * np.eye(size))
        upper = np.linalg.cholesky(inverse).T.astype(wanted.dtype)  # (B, B)
        left = wanted[:, columns]  # (O, B), a copy: what is still to be rounded, corrected for the errors so far
        for first in range(0, size, _PANEL):
            panel = slice(first, min(first + _PANEL, size))
            errors = np.empty_like(left[:, panel])
            for j in range(panel.start, panel.stop):
                made = rounded(left[:, j : j + 1], columns[j : j + 1])[:, 0]
                result[:, columns[j]] = made
                errors[:, j - first] = (left[:, j] - made) / upper[j, j]
                left[:, j + 1 : panel.stop] -= np.outer(errors[:, j - first], upper[j, j + 1 : panel.stop])
            left[:, panel.stop :] -= errors @ upper[panel, panel.stop :]  # columns of other panels, once per panel
        start += size
    return result


def round_float16(values: Matrix) -> Matrix:
    """The nearest float16 values, as float32."""
    with np.errstate(over="ignore"):  # beyond 65504 it is infinite, as in MLX
        return values.astype(np.float16).astype(np.float32)


def round_bfloat16(values: Matrix) -> Matrix:
    """The nearest bfloat16 values, ties to even, as float32; numpy has no such type."""
    raw = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((raw + 0x7FFF + ((raw >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def fit_scales(delta: Matrix, codes: Matrix, moments: list[Matrix], group: int) -> tuple[Matrix, Matrix]:
    """The changes of scales and biases that come nearest to a change of the weights.

    Args:
        delta: (O, D), the wanted change.
        codes: (O, D), the base's.
        moments: of the inputs, a (B, B) matrix for each block of columns.
        group: columns that share a scale and a bias; divides B.

    Returns:
        Changes of the scales and of the biases, each (O, D / group).
    """
    scales, biases = [], []
    start = 0
    for block in moments:
        columns = slice(start, start + len(block))
        made = [
            _fit(delta[r : r + _ROWS, columns], codes[r : r + _ROWS, columns], block, group)
            for r in range(0, len(delta), _ROWS)
        ]
        scales.append(np.concatenate([part[0] for part in made]))
        biases.append(np.concatenate([part[1] for part in made]))
        start += len(block)
    return np.concatenate(scales, axis=1), np.concatenate(biases, axis=1)


def _fit(delta: Matrix, codes: Matrix, moments: Matrix, group: int) -> tuple[Matrix, Matrix]:
    """Rows of one block: 2 N unknowns per row (N groups), scales on centred codes so that both are independent."""
    rows, size = delta.shape
    count = size // group
    h = moments.astype(np.float64) / (np.mean(np.diag(moments)) or 1.0)
    grouped = codes.astype(np.float64).reshape(rows, count, group)
    mean = grouped.mean(axis=-1)  # (R, N)
    centred = grouped - mean[..., None]  # (R, N, G)
    seen = np.matmul(centred.transpose(1, 0, 2), h.reshape(count, group, size))  # (N, R, D): H times each group's codes
    seen = seen.transpose(1, 0, 2).reshape(rows, count, count, group)  # (R, N, N', G)
    bias_bias = np.broadcast_to(h.reshape(count, group, count, group).sum(axis=(1, 3)), (rows, count, count))
    scale_bias = seen.sum(axis=-1)  # (R, N, N')
    scale_scale = np.einsum("rmng,rng->rmn", seen, centred)
    normal = np.block([[bias_bias, scale_bias.transpose(0, 2, 1)], [scale_bias, scale_scale]])  # (R, 2N, 2N)
    pulled = (delta.astype(np.float64) @ h).reshape(rows, count, group)
    right = np.concatenate([pulled.sum(axis=-1), (pulled * centred).sum(axis=-1)], axis=1)  # (R, 2N)
    # Moments of few inputs are not quite positive in float32: a group that hardly matters may come out below zero.
    seen_of = np.einsum("rii->ri", normal)
    size_of = np.sqrt(np.maximum(seen_of, 1e-6 * seen_of.max(axis=1, keepdims=True)).clip(1e-24))
    normal = normal / size_of[:, :, None] / size_of[:, None, :] + 1e-4 * np.eye(2 * count)
    found = np.linalg.solve(normal, (right / size_of)[..., None])[..., 0] / size_of
    scale, bias = found[:, count:], found[:, :count]
    return scale.astype(delta.dtype), (bias - scale * mean).astype(delta.dtype)


def pack(codes: npt.NDArray[np.integer[Any]], bits: int) -> npt.NDArray[np.uint32]:
    """Codes (O, D) as MLX keeps them: a row is one string of bits, lowest first, in 32-bit words."""
    flat = (codes[..., None].astype(np.uint8) >> np.arange(bits, dtype=np.uint8)) & 1
    words = np.packbits(flat.reshape(len(codes), -1), axis=1, bitorder="little")
    return words.view("<u4").astype(np.uint32)


def unpack(words: npt.NDArray[np.uint32], bits: int) -> npt.NDArray[np.uint8]:
    """The codes (O, D) of MLX's 32-bit words."""
    raw = np.ascontiguousarray(words.astype("<u4")).view(np.uint8)
    flat = np.unpackbits(raw, axis=1, bitorder="little").reshape(len(words), -1, bits)
    codes: npt.NDArray[np.uint8] = (flat << np.arange(bits, dtype=np.uint8)).sum(axis=-1, dtype=np.uint8)
    return codes
