"""Formats for fused weights: the bits of the layers with an adapter, and how they are rounded."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from upft_mlx.fusing.rounding import Matrix, feedback, fit_scales, pack, round_bfloat16, round_float16, unpack
from upft_mlx.models.grid_lora import inner_layer, is_on_grid, moved_biases
from upft_mlx.models.load import Loaded
from upft_mlx.rows import write_error
from upft_mlx.rundir import remove

DTYPES = {"bf16": mx.bfloat16, "fp16": mx.float16}
MIXED_BITS = (6, 8)


@dataclass(frozen=True)
class Format:
    """The format of the layers with an adapter."""

    name: str
    """`base`, `base-fp16`, `mixed-6`, `mixed-8`, `bf16` or `fp16`, with `-fitted` for fitted rounding."""
    dtype: mx.Dtype
    """The type of their weights or, if quantized, of their scales."""
    bits: int | None = None
    """Bits of their weights; None: not quantized."""
    whole: bool = False
    """Whether all other weights of the model's type become `dtype` as well."""
    fitted: bool = False
    """Whether the rounding preserves the layers' outputs (see `fitting`) instead of each weight."""

    @property
    def width(self) -> int:
        """Bits per weight without scales: the sort key for trying formats."""
        return self.bits or 8 * self.dtype.size

    @property
    def second_name(self) -> str | None:
        """The alias of an unquantized `base`: its dtype."""
        return next((name for name, dtype in DTYPES.items() if self.bits is None and dtype == self.dtype), None)

    @property
    def family(self) -> str:
        """The value of `publish.fuse` that it belongs to."""
        return self.name.partition("-")[0]


def candidate_formats(loaded: Loaded, layers: dict[str, nn.Module]) -> list[Format]:
    """All formats for a model with an adapter on `layers`."""
    own, quantized = loaded.dtype, base_bits(layers)
    result = [Format("base", own, quantized)]
    if quantized is not None:
        if own == mx.bfloat16 and all(is_on_grid(layer) for layer in layers.values()):
            # of the same size, with steps an eighth as large for the biases, which are all that such an update moves
            result.append(Format("base-fp16", mx.float16, quantized, whole=True))
        result += [Format(f"mixed-{bits}", own, bits) for bits in MIXED_BITS if bits > quantized]
    # The model's own type first. The other 16-bit type would be computed in float32, in matrices converted for every
    # token, if it stood beside the model's own: then the whole model takes it, which for scales and norms is exact.
    sixteen = sorted(DTYPES, key=lambda name: (DTYPES[name] != own, name != "fp16"))
    for name in sixteen:
        if quantized is not None or DTYPES[name] != own:
            result.append(Format(name, DTYPES[name], whole=own in DTYPES.values() and DTYPES[name] != own))
    if all(can_be_fitted(layer) for layer in layers.values()):
        result += [
            replace(form, name=f"{form.name}-fitted", fitted=True)
            for form in result
            if form.bits or form.dtype.size == 2
        ]
    return sorted(result, key=lambda form: (form.width, form.whole))  # stable: fitted after nearest


def can_be_fitted(layer: nn.Module) -> bool:
    """Whether a layer is a plain matrix, unquantized or quantized in a form that `fitting` supports."""
    inner = inner_layer(layer)
    return isinstance(inner, nn.Linear) or (isinstance(inner, nn.QuantizedLinear) and inner.mode == "affine")


def input_size(layer: nn.Module) -> int:
    """Columns of a layer's matrix."""
    return int(layer["lora_a"].shape[0])


def base_bits(layers: dict[str, nn.Module]) -> int | None:
    """The smallest number of bits of the layers under the adapters; None if they are not quantized."""
    bits = [inner.bits for layer in layers.values() if hasattr(inner := inner_layer(layer), "bits")]
    return min(bits) if bits else None


def fused_layer(layer: nn.Module, form: Format, moments: list[Matrix] | None = None) -> nn.Module:
    """One layer with its update, added in float32 and then rounded as `form` says.

    `moments` are those of the layer's inputs, for a form that is fitted.
    """
    inner = inner_layer(layer)
    layer.set_dtype(mx.float32)
    fused: nn.Module = layer.fuse(dequantize=True)
    quantized = form.bits is not None and hasattr(inner, "bits")
    if quantized and form.family == "base" and is_on_grid(layer):
        return _with_moved_biases(layer, form, moments or [])
    if form.fitted and quantized and form.family == "base":
        return _with_fitted_scales(layer, fused, form, moments or [])
    wanted = np.array(fused.weight) if form.fitted else None
    fused.set_dtype(form.dtype)
    if quantized:
        fused = fused.to_quantized(**quantization_of(inner, form))
    if wanted is not None:
        _round_with_feedback(fused, wanted, form, moments or [])
    return fused


def _round_with_feedback(fused: nn.Module, wanted: Matrix, form: Format, moments: list[Matrix]) -> None:
    """Replace the nearest rounding of a layer's weights (O, D), on the same grid."""
    if not hasattr(fused, "bits"):
        fused.weight = mx.array(_to_16_bits(wanted, form.dtype, moments)).astype(form.dtype)
        return
    parts = (np.array(part.astype(mx.float32)) for part in (fused.scales, fused.biases))  # (O, D / group) each
    scales, biases = (np.repeat(part, fused.group_size, axis=1) for part in parts)  # (O, D): as large as the weights
    scales = np.where(scales == 0, np.float32(1e-30), scales)  # of a group of equal weights: divides nothing

    def on_grid(part: Matrix, columns: Any) -> Matrix:
        s: Matrix = scales[:, columns]
        b: Matrix = biases[:, columns]
        return np.clip(np.round((part - b) / s), 0, 2**fused.bits - 1) * s + b

    rounded = feedback(wanted, moments, on_grid)
    codes = np.clip(np.round((rounded - biases) / scales), 0, 2**fused.bits - 1).astype(np.uint8)
    fused.weight = mx.array(pack(codes, fused.bits))


def _to_16_bits(wanted: Matrix, dtype: mx.Dtype, moments: list[Matrix]) -> Matrix:
    nearest = round_bfloat16 if dtype == mx.bfloat16 else round_float16
    return feedback(wanted, moments, lambda part, columns: nearest(part))


def _with_moved_biases(layer: nn.Module, form: Format, moments: list[Matrix]) -> nn.Module:
    """The base's own codes and scales, with the biases that an update on its grid moves, rounded to their type."""
    inner = inner_layer(layer)
    biases, group = moved_biases(layer), inner.group_size
    if form.fitted and form.dtype.size == 2:  # a bias is the weight of the sum of its group's inputs
        blocks = [len(block) // group for block in moments]
        sums = [b.reshape(n, group, n, group).sum(axis=(1, 3)) for b, n in zip(moments, blocks, strict=True)]
        biases = mx.array(_to_16_bits(np.array(biases), form.dtype, sums))
    return _with_codes_of(inner, form, inner.scales, biases)


def _with_fitted_scales(layer: nn.Module, exact: nn.Module, form: Format, moments: list[Matrix]) -> nn.Module:
    """The base's own codes, with scales and biases moved by as much of the update as they can represent."""
    inner = inner_layer(layer)
    if "m" in layer:  # DoRA's update is more than its product
        base = mx.dequantize(inner.weight, inner.scales, inner.biases, inner.group_size, inner.bits)
        delta = np.array(exact.weight - base.astype(mx.float32))
    else:
        delta = np.array(((layer.scale * layer.lora_b.T) @ layer.lora_a.T).astype(mx.float32))
    codes = unpack(np.array(inner.weight), inner.bits)
    scales, biases = fit_scales(delta, codes.astype(np.float32), moments, inner.group_size)
    moved = (old.astype(mx.float32) + mx.array(by) for old, by in ((inner.scales, scales), (inner.biases, biases)))
    return _with_codes_of(inner, form, *moved)


def _with_codes_of(inner: nn.Module, form: Format, scales: mx.array, biases: mx.array) -> nn.Module:
    fused = nn.QuantizedLinear(inner.group_size, 1, "bias" in inner, inner.group_size, inner.bits)
    fused.weight = inner.weight
    fused.scales, fused.biases = scales.astype(form.dtype), biases.astype(form.dtype)
    if "bias" in inner:
        fused.bias = inner.bias.astype(form.dtype)
    return fused


def quantization_of(inner: nn.Module, form: Format) -> dict[str, Any]:
    """How a touched layer is quantized, in mlx-lm's per-layer terms."""
    if form.family == "base" or inner.bits >= (form.bits or 0):
        return {"group_size": inner.group_size, "bits": inner.bits, "mode": inner.mode}
    return {"group_size": max(32, inner.group_size), "bits": form.bits, "mode": "affine"}


def config_of(config: dict[str, Any], layers: dict[str, nn.Module], form: Format) -> dict[str, Any]:
    """The config.json of a model fused to this form."""
    config = dict(config)
    if "quantization" in config and form.family != "base":
        per_layer = {
            name: quantization_of(inner, form) if form.bits is not None and hasattr(inner, "bits") else False
            for name, layer in layers.items()
            if (inner := inner_layer(layer)) is not None
        }
        config["quantization"] = {**config["quantization"], **per_layer}
    if form.whole:
        config.update(
            {key: str(form.dtype).removeprefix("mlx.core.") for key in ("torch_dtype", "dtype") if key in config}
        )
    return config


def size_of(loaded: Loaded, layers: dict[str, nn.Module], form: Format) -> int:
    """Bytes of the weights as they will be saved; the model has its touched layers fused to this form, in float32."""
    rest = form.dtype if form.whole else loaded.dtype
    total = 0
    for name, array in dict(tree_flatten(loaded.model.parameters())).items():
        saved = form.dtype if name.rpartition(".")[0] in layers else loaded.types.get(name, rest)
        total += array.size * saved.size if mx.issubdtype(array.dtype, mx.floating) else array.nbytes
    return total


def write_model(loaded: Loaded, config: dict[str, Any], folder: Path) -> None:
    """Write a model folder, replacing an unfinished one; the caller must write next to a folder that is to be kept.

    Raises:
        OSError: it cannot be written.
    """
    from mlx_lm.utils import save

    remove(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            save(folder, str(loaded.path), loaded.model, loaded.tokenizer, config, donate_model=False)
            if not loaded.trusted:  # mlx-lm copies the folder's code, which nobody has looked at
                remove(*folder.glob("*.py"))
    except RuntimeError as error:
        needed = sum(array.nbytes for array in dict(tree_flatten(loaded.model.parameters())).values())
        raise write_error(error, folder, needed) from None
