"""The adapter's update written into the weights: a folder that stock mlx-lm loads.

Re-quantising to the base's few bits rounds small updates away (mlx-lm #654), so what is kept is measured, and
`auto` takes the base's own bits only where they keep the effect, 16 bits for the touched layers otherwise.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Iterator
from dataclasses import asdict

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from upft_mlx.adapters import load_adapter
from upft_mlx.batches import Example, to_examples
from upft_mlx.errors import UpftError
from upft_mlx.events import Note, Observer, Progress, ignore
from upft_mlx.fidelity import Fidelity, compare, log_probabilities, probes
from upft_mlx.models import Loaded
from upft_mlx.recipe import Recipe
from upft_mlx.rows import TrainingRow, read_rows, write_json
from upft_mlx.rundir import RunDir, remove

_DTYPES = {"bf16": mx.bfloat16, "fp16": mx.float16}


def fuse(recipe: Recipe, loaded: Loaded, run: RunDir, notify: Observer = ignore) -> Fidelity:
    """Write fused/ and fidelity.json.

    Raises:
        UpftError: the way asked for keeps less than `publish.min_retained`; says what would pass.
    """
    load_adapter(loaded, run.adapter)
    # Measured in float32 on every device: 16-bit activations round by more than a small update moves them.
    loaded.model.set_dtype(mx.float32)
    rows = probes(_held_out(recipe, run))
    layers = {name: module for name, module in loaded.model.named_modules() if hasattr(module, "fuse")}
    adapter = log_probabilities(loaded.model, rows)
    with _switched_off(layers):
        base = log_probabilities(loaded.model, rows)
    ways = _ways(recipe, loaded)
    measured: list[Fidelity] = []
    for index, way in enumerate(ways):
        notify(Progress("fuse", index, len(ways) + 1, "steps"))
        _apply(loaded, layers, way)
        measured.append(compare(way, base, adapter, log_probabilities(loaded.model, rows), _size(loaded, way)))
        if measured[-1].retained >= recipe.publish.min_retained:
            break
    chosen = measured[-1]
    _judge(recipe, loaded, measured, notify)
    notify(Progress("fuse", len(ways), len(ways) + 1, "steps"))
    _save(loaded, layers, chosen.fuse, run)
    notify(Progress("fuse", len(ways) + 1, len(ways) + 1, "steps"))
    write_json(
        run.fidelity,
        {**asdict(chosen), "rows": len(rows), "candidates": [asdict(f) for f in measured]},
    )
    return chosen


def _held_out(recipe: Recipe, run: RunDir) -> list[Example]:
    """The validation rows, or the first training rows where none are held out."""
    rows = list(read_rows(run.valid, TrainingRow)) or list(read_rows(run.train, TrainingRow))
    return to_examples(rows, recipe.train.max_length)


def _ways(recipe: Recipe, loaded: Loaded) -> list[str]:
    """What to try, smallest first."""
    if recipe.publish.fuse != "auto":
        return [recipe.publish.fuse]
    # 16 bits of the model's own kind: a mix of the two would be computed in float32.
    return ["base", "bf16" if loaded.dtype == mx.bfloat16 else "fp16"]


@contextlib.contextmanager
def _switched_off(layers: dict[str, nn.Module]) -> Iterator[None]:
    """The model without its adapter."""
    scales = {name: layer.scale for name, layer in layers.items()}
    for layer in layers.values():
        layer.scale = 0.0
    try:
        yield
    finally:
        for name, layer in layers.items():
            layer.scale = scales[name]


def _apply(loaded: Loaded, layers: dict[str, nn.Module], way: str) -> None:
    """Put the fused layers into the model in place of the adapters."""
    fused = []
    for name, layer in layers.items():
        module = _fused(layer, way, loaded.dtype)
        module.set_dtype(mx.float32)  # exact: what is saved is cast back
        fused.append((name, module))
    loaded.model.update_modules(tree_unflatten(fused))
    mx.eval(loaded.model.parameters())


def _fused(layer: nn.Module, way: str, dtype: mx.Dtype) -> nn.Module:
    """One layer with its update, added in float32 and then rounded as `way` says."""
    inner = _inner(layer)
    layer.set_dtype(mx.float32)
    fused: nn.Module = layer.fuse(dequantize=True)
    fused.set_dtype(_DTYPES.get(way, dtype))
    if way == "base" and hasattr(inner, "bits"):
        fused = fused.to_quantized(group_size=inner.group_size, bits=inner.bits, mode=inner.mode)
    return fused


def _inner(layer: nn.Module) -> nn.Module:
    """The layer under an adapter."""
    inner: nn.Module = layer["linear"] if "linear" in layer else layer["embedding"]
    return inner


def _size(loaded: Loaded, way: str) -> int:
    """Bytes of the weights as they will be saved."""
    full = mx.float32.size if loaded.dtype == mx.float32 and way == "base" else 2
    arrays = dict(tree_flatten(loaded.model.parameters())).values()
    return sum(a.size * full if mx.issubdtype(a.dtype, mx.floating) else a.nbytes for a in arrays)


def _judge(recipe: Recipe, loaded: Loaded, measured: list[Fidelity], notify: Observer) -> None:
    """Say what is kept; refuse a way that was asked for and keeps too little."""
    chosen, least = measured[-1], recipe.publish.min_retained
    if chosen.retained >= least or least == 0:
        return
    text = (
        f"fusing as {chosen.fuse} keeps {chosen.retained:.1%} of the adapter's effect "
        f"(publish.min_retained: {least:.0%})"
    )
    if recipe.publish.fuse == "auto":
        notify(Note(f"{text}; no smaller way keeps more, the adapter itself is in adapter/"))
    else:
        raise UpftError(
            f"{text}; set publish.fuse: auto, bf16 or fp16, or publish.min_retained: 0 to fuse all the same"
        )


def _save(loaded: Loaded, layers: dict[str, nn.Module], way: str, run: RunDir) -> None:
    """Write the folder beside its place and move it there when it is whole."""
    from mlx_lm.utils import save

    model, config = loaded.model, dict(loaded.config)
    model.set_dtype(loaded.dtype)
    modules = dict(model.named_modules())
    for name in layers:
        modules[name].set_dtype(_DTYPES.get(way, loaded.dtype))
    if way != "base" and "quantization" in config:
        config["quantization"] = {**config["quantization"], **dict.fromkeys(layers, False)}
    temporary = run.root / ".fused.tmp"
    remove(temporary)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            save(temporary, str(loaded.path), model, loaded.tokenizer, config, donate_model=False)
        remove(run.fused)
        temporary.rename(run.fused)
    except RuntimeError as error:  # MLX's word for a full or read-only disk
        raise OSError(5, f"cannot be written ({error})", str(run.fused)) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
