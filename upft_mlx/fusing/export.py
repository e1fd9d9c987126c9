"""The result for other tools: the adapter for PEFT or as GGUF, or the fused model without quantization."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from upft_mlx.errors import ExportError, ModelError
from upft_mlx.escape import quoted
from upft_mlx.events import Observer, ignore
from upft_mlx.fusing.formats import DTYPES, Format, write_model
from upft_mlx.fusing.fuser import Fuser
from upft_mlx.machine.requirements import pip_install
from upft_mlx.models.files import json_object, read_header
from upft_mlx.models.gguf.model import halves_in_turn
from upft_mlx.models.hub import reason
from upft_mlx.models.load import Loaded
from upft_mlx.quantities import disk, many, percent
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import write_json
from upft_mlx.rundir import RunDir
from upft_mlx.training.checkpoints import save_safetensors

_ARCHITECTURES = {
    **{name: name for name in ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3")},
    "mistral": "llama",
    "gemma3_text": "gemma3",
}
"""llama.cpp's name of a model type's architecture."""
_LORA = re.compile(r"^(model\.layers\.(\d+)\.(.+))\.(lora_a|lora_b|m)$")
_PEFT = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}


def export_peft(run: RunDir, model: Path, base: str, folder: Path) -> str:
    """Write the adapter as PEFT reads it: adapter_model.safetensors and adapter_config.json.

    mlx-lm keeps `lora_a` (in, r) and `lora_b` (r, out) with a `scale`; PEFT `lora_A` (r, in) and `lora_B` (out, r) with
    `lora_alpha` = scale * r.

    Args:
        run: has the adapter.
        model: the folder that it was trained on, to check the modules' names.
        base: the model that PEFT loads below the adapter.
        folder: is written.

    Returns:
        What was written, in words.

    Raises:
        ExportError: PEFT has no name for a module that the adapter is on.
        ModelError: the adapter cannot be read.
    """
    matrices, lora = _matrices(run, model, "PEFT")
    made = {f"base_model.model.{m.module}.{_PEFT[m.which]}": mx.contiguous(m.array.T) for m in matrices}
    modules, layers = {m.module.rpartition(".")[2] for m in matrices}, {m.layer for m in matrices}
    save_safetensors(folder / "adapter_model.safetensors", made)
    dora = any(m.which == "m" for m in matrices)
    write_json(folder / "adapter_config.json", _peft_config(lora, base, modules, layers, dora=dora))
    return f"{many(len({m.module for m in matrices}), 'module')}, rank {lora['rank']}, on {base}"


@dataclass(frozen=True)
class _Matrix:
    """`lora_a` (in, r), `lora_b` (r, out) or, of DoRA, `m` (out,) of a module, as mlx-lm keeps it."""

    module: str
    layer: int
    which: str
    array: mx.array


def _matrices(run: RunDir, model: Path, reader: str) -> tuple[list[_Matrix], dict[str, Any]]:
    """The adapter's matrices and LoRA settings, where `reader` has a name for each of its modules.

    Raises:
        ExportError: it has none.
        ModelError: the adapter cannot be read.
    """
    try:
        config = json_object(run.adapter / "adapter_config.json")
        arrays = mx.load(str(run.adapter / "adapters.safetensors"))
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"the adapter cannot be read: {reason(error)}", "train again", path=run.adapter) from None
    assert isinstance(arrays, dict)
    names = {name for file in model.glob("model*.safetensors") for name in read_header(file)}
    found = []
    for name, array in arrays.items():
        parts = _LORA.match(name)
        if parts is None or array.ndim > 2 or f"{parts[1]}.weight" not in names:
            raise ExportError(f"{name}: {reader} has no such module", "an adapter on it can be used with mlx-lm only")
        found.append(_Matrix(parts[1], int(parts[2]), parts[4], array))
    return found, config["lora_parameters"]


def export_gguf(run: RunDir, model: Path, base: str, folder: Path) -> str:
    """Write the adapter as llama.cpp and Ollama read it: adapter.gguf, in float32, to be loaded beside the base's GGUF.

    GGUF keeps PEFT's matrices under llama.cpp's names. llama.cpp rotates a llama's query and key heads in another order
    of rows, so their `lora_b` is reordered.

    Args and errors are those of `export_peft`; also:

    Raises:
        ExportError: the package gguf is not installed, or llama.cpp's names for this family are not known here.
    """
    try:
        import gguf
    except ImportError:
        raise ExportError(
            "the package gguf is not installed", f"`{pip_install(sys.executable)} gguf` installs it"
        ) from None

    config = json_object(model / "config.json")
    kind = config.get("model_type")
    arch = next((arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == _ARCHITECTURES.get(str(kind))), None)
    if arch is None:
        remedy = f"known are {', '.join(sorted(_ARCHITECTURES))}; --format peft or dequantized can be converted there"
        raise ExportError(f"llama.cpp's names for a model of type {quoted(str(kind))} are not known here", remedy)
    matrices, lora = _matrices(run, model, "llama.cpp")
    if any(matrix.which == "m" for matrix in matrices):
        raise ExportError("llama.cpp has no DoRA adapters", "use --format dequantized, or the adapter with mlx-lm")
    heads = {"q_proj": config["num_attention_heads"]}
    heads["k_proj"] = config.get("num_key_value_heads") or heads["q_proj"]
    tensors = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(folder / "adapter.gguf", gguf.MODEL_ARCH_NAMES[arch])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(base)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, lora["scale"] * lora["rank"])
    for matrix in matrices:
        name = tensors.get_name(f"{matrix.module}.weight", try_suffixes=(".weight",))
        if name is None:
            raise ExportError(f"{matrix.module}: llama.cpp has no such module", "use the adapter with mlx-lm")
        array = np.array(matrix.array.T.astype(mx.float32))  # lora_a (r, in), lora_b (out, r)
        count = heads.get(matrix.module.rpartition(".")[2])
        if arch == gguf.MODEL_ARCH.LLAMA and matrix.which == "lora_b" and count is not None:
            array = halves_in_turn(array, count)
        writer.add_tensor(f"{name}.{matrix.which}", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return (
        f"{many(len(matrices) // 2, 'module')}, rank {lora['rank']}, for llama.cpp and Ollama beside a GGUF of {base}"
    )


def _peft_config(lora: dict[str, Any], base: str, modules: set[str], layers: set[int], *, dora: bool) -> dict[str, Any]:
    alpha = lora["scale"] * lora["rank"]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora["rank"],
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": lora["dropout"],
        "target_modules": sorted(modules),
        "layers_to_transform": sorted(layers),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": dora,
    }


def export_dequantized(
    recipe: Recipe,
    loaded: Loaded,
    run: RunDir,
    folder: Path,
    dtype: str,
    notify: Observer = ignore,
    questions: Sequence[str] = (),
) -> str:
    """Write the fused model with no weight quantized, as transformers loads it.

    Args:
        recipe: its prompt is measured with.
        loaded: the base model.
        run: has the adapter and the rows.
        folder: is written.
        dtype: `bf16` or `fp16`.
        notify: receives a note with the cost of rounding to it.
        questions: to measure on beside the validation rows.

    Returns:
        What was written, in words.

    Raises:
        ExportError: transformers names the modules of this model differently.
    """
    from mlx_lm.utils import dequantize_model

    for name, module in loaded.model.named_modules():
        if "weight" in module and module.weight.ndim > 2:  # stacked experts, convolutions
            raise ExportError(f"{name}: transformers keeps such weights in another form", "use fused/ with mlx-lm")
    fuser = Fuser(recipe, loaded, run, questions, notify)
    form = Format("dequantized", DTYPES[dtype], whole=True)
    fuser.apply(form)
    dequantize_model(loaded.model)
    loaded.cast(form.dtype)
    found = fuser.judge(form)
    loaded.cast(form.dtype)
    config = {k: v for k, v in loaded.config.items() if k not in ("quantization", "quantization_config")}
    config["torch_dtype"] = str(form.dtype).removeprefix("mlx.core.")
    write_model(loaded, config, folder)
    template, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if template.is_file():  # Ollama and older tools look for it in the other file only
        stated = json.loads(settings.read_text(encoding="utf-8"))
        write_json(settings, {**stated, "chat_template": template.read_text(encoding="utf-8")})
    kept = f"{dtype}, {disk(found.bytes)}, keeps {found.kept}"
    if found.retained >= (least := recipe.publish.min_retained):
        return kept
    # float16 has steps an eighth as large as bfloat16's
    remedy = "take --dtype fp16" if dtype == "bf16" else "fused/ with mlx-lm, or --format peft, keeps it"
    return f"{kept}: less than publish.min_retained, {percent(least, 0)}; {remedy}"
