"""Model folders of any shape with random weights and the embedded model's tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from conftest import MODEL
from mlx.utils import tree_flatten
from mlx_lm.models import qwen2


def write_model(folder: Path, *, bits: int | None = 4, group_size: int = 32, ends: int = 0, **shape: Any) -> Path:
    """A Qwen2 model; `shape`: hidden_size, num_hidden_layers, ... where they differ from the default.

    With `ends`, so many tokens end a completion: of random weights each token is one of them about once in 600.
    """
    config = {
        "model_type": "qwen2",
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "intermediate_size": 352,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 600,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        **shape,
    }
    mx.random.seed(0)
    model = qwen2.Model(qwen2.ModelArgs.from_dict(config))
    if bits is not None:
        nn.quantize(model, group_size=group_size, bits=bits)
        config["quantization"] = {"group_size": group_size, "bits": bits}
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (MODEL / name).exists():
            shutil.copy(MODEL / name, folder / name)
    eos = json.loads((MODEL / "config.json").read_text())["eos_token_id"]
    config["eos_token_id"] = [*([eos] if isinstance(eos, int) else eos), *range(100, 100 + ends)]
    (folder / "config.json").write_text(json.dumps(config))
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    return folder
