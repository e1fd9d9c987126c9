"""The result for other tools: the adapter in PEFT's format, the fused model without quantization for transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from upft_mlx.errors import ExportError, ModelError
from upft_mlx.events import Observer, ignore
from upft_mlx.fusing.formats import DTYPES, Format, write_model
from upft_mlx.fusing.fuser import Fuser
from upft_mlx.models.files import json_object, read_header
from upft_mlx.models.hub import reason
from upft_mlx.models.load import Loaded
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import write_json
from upft_mlx.rundir import RunDir
from upft_mlx.training.checkpoints import save_safetensors

_LORA = re.compile(r"^(model\.layers\.(\d+)\.(.+))\.lora_([ab])$")


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
    try:
        config = json_object(run.adapter / "adapter_config.json")
        arrays = mx.load(str(run.adapter / "adapters.safetensors"))
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"the adapter cannot be read: {reason(error)}", "train again", path=run.adapter) from None
    assert isinstance(arrays, dict)
    names = {name for file in model.glob("model*.safetensors") for name in read_header(file)}
    layers, modules, made = set(), set(), {}
    for name, array in arrays.items():
        found = _LORA.match(name)
        if found is None or array.ndim != 2 or f"{found[1]}.weight" not in names:
            raise ExportError(f"{name}: PEFT has no such module", "an adapter on it can be used with mlx-lm only")
        layers.add(int(found[2]))
        modules.add(found[3].rpartition(".")[2])
        made[f"base_model.model.{found[1]}.lora_{found[4].upper()}.weight"] = mx.contiguous(array.T)
    save_safetensors(folder / "adapter_model.safetensors", made)
    write_json(folder / "adapter_config.json", _peft_config(config["lora_parameters"], base, modules, layers))
    return f"{len(made) // 2} modules, rank {config['lora_parameters']['rank']}, on {base}"


def _peft_config(lora: dict[str, Any], base: str, modules: set[str], layers: set[int]) -> dict[str, Any]:
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
        "use_dora": False,
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
    loaded.model.set_dtype(form.dtype)
    found = fuser.judge(form)
    loaded.model.set_dtype(form.dtype)
    config = {k: v for k, v in loaded.config.items() if k not in ("quantization", "quantization_config")}
    config["torch_dtype"] = str(form.dtype).removeprefix("mlx.core.")
    write_model(loaded, config, folder)
    template, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if template.is_file():  # Ollama and older tools look for it in the other file only
        stated = json.loads(settings.read_text(encoding="utf-8"))
        write_json(settings, {**stated, "chat_template": template.read_text(encoding="utf-8")})
    kept = f"{dtype}, {found.bytes / 1e6:.1f} MB, keeps {found.retained:.1%} of the adapter's effect"
    if found.retained >= (least := recipe.publish.min_retained):
        return kept
    # float16 has steps an eighth as large as bfloat16's
    remedy = "take --dtype fp16" if dtype == "bf16" else "fused/ with mlx-lm, or --format peft, keeps it"
    return f"{kept}: less than publish.min_retained, {least:.0%}; {remedy}"
