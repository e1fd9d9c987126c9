"""Tiny models of the families that GGUF files are read and written of, and such files made by the package gguf."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from conftest import MODEL
from mlx.utils import tree_flatten

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 600,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "eos_token_id": 2,
}
LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": False},
    "llama 3.1": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "rope_theta": 500000.0,
        "max_position_embeddings": 65536,
        "rope_scaling": {**LLAMA_3, "original_max_position_embeddings": 8192},
    },
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": False, "head_dim": 128},
    "gemma": {"model_type": "gemma", "head_dim": 32, "tie_word_embeddings": True},
    "gemma2": {"model_type": "gemma2", "head_dim": 256, "query_pre_attn_scalar": 256, "tie_word_embeddings": True},
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "tie_word_embeddings": True,
        "num_hidden_layers": 6,  # mlx-lm wants a layer with full attention, the sixth
        "sliding_window": 4,
    },
}
FAMILIES["gemma3 linear"] = {**FAMILIES["gemma3"], "rope_scaling": {"type": "linear", "factor": 8.0}}


def write_family(folder: Path, family: str, dtype: mx.Dtype = mx.float32, **quantize: Any) -> Path:
    """A model with random weights and norms, the embedded model's tokenizer; `quantize`: bits, group_size, mode."""
    config = {**SHAPE, **FAMILIES[family]}
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    model: nn.Module = module.Model(module.ModelArgs.from_dict(config))
    mx.random.seed(0)
    made: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    weights = [
        (name, 0.1 * mx.random.normal(a.shape) if a.ndim > 1 else a + 0.3 * mx.random.normal(a.shape))
        for name, a in made.items()
    ]
    model.load_weights(weights, strict=False)
    model.set_dtype(dtype)
    if quantize:
        nn.quantize(model, **quantize)
        config["quantization"] = quantize
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (MODEL / name).exists():
            shutil.copy(MODEL / name, folder / name)
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"})
    return folder


def rewritten(file: Path, to: Path, kind: str) -> dict[str, np.ndarray[Any, Any]]:
    """Copy a GGUF file with every matrix as `kind`, by the package gguf; returns the values that it then has."""
    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(to, str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], inner)
    values, number = {}, gguf.GGMLQuantizationType[kind]
    for tensor in reader.tensors:
        array = gguf.quants.dequantize(np.array(tensor.data), tensor.tensor_type)
        if array.ndim > 1:
            raw = gguf.quants.quantize(array.astype(np.float32), number)
            writer.add_tensor(tensor.name, raw, raw_dtype=number)
            array = gguf.quants.dequantize(raw, number)
        else:
            writer.add_tensor(tensor.name, array)
        values[tensor.name] = array
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values
