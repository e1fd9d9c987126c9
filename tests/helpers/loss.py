"""The oracle of the loss, which knows neither batches nor modes, and tiny random models of other families."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map

from upft_mlx.models.adapters import add_lora
from upft_mlx.models.load import Loaded
from upft_mlx.recipe.schema import Lora
from upft_mlx.training.batches import Example

VOCABULARY = 90


def oracle(model: nn.Module, rows: Sequence[Example]) -> mx.array:
    """Row by row, unpadded, full logits, and the mask written out."""
    total = mx.array(0.0)
    for example in rows:
        logits = model(mx.array([example.ids]))[0].astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        terms = [
            -logprobs[position - 1, token] for position, token in enumerate(example.ids) if position >= example.start
        ]
        total = total + sum(terms[1:], terms[0]) / len(terms)
    return total / len(rows)


def flat(gradients: Any) -> dict[str, np.ndarray[Any, Any]]:
    return {name: np.array(array) for name, array in dict(tree_flatten(gradients)).items()}


_COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "rope_theta": 10000.0,
    "max_position_embeddings": 128,
}
_SLIDING = {"sliding_window": 6, "sliding_window_pattern": 2, "num_hidden_layers": 4}
_MOE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}
_GRANITE = {
    "logits_scaling": 2.0,
    "attention_multiplier": 0.3,
    "embedding_multiplier": 2.0,
    "residual_multiplier": 0.5,
    "attention_bias": False,
    "mlp_bias": False,
}
_LINEAR_ATTENTION = {
    "num_hidden_layers": 4,
    "full_attention_interval": 2,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": _MOE,
    "gemma2": {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    "gemma3_text": {**_SLIDING, "query_pre_attn_scalar": 8},
    "phi3": {"tie_word_embeddings": False},
    "granite": _GRANITE,
    "cohere2": {**_SLIDING, "layer_norm_eps": 1e-5, "logit_scale": 0.1},
    "olmo2": {},
}
"""Families in which every mode is exact: with sliding windows, soft caps, logit scales, experts, tied heads and not."""


def family(name: str, **changes: Any) -> nn.Module:
    """A random model of a family with an adapter that does something; `changes` of its configuration."""
    module = import_module(f"mlx_lm.models.{'llama' if name == 'mistral' else name}")
    if name == "qwen3_5":
        config = {"text_config": {**_COMMON, **_LINEAR_ATTENTION, "model_type": name}}
    else:
        config = {**_COMMON, **FAMILIES[name], **changes}
    mx.random.seed(3)
    model: nn.Module = module.Model(module.ModelArgs.from_dict({"model_type": name, **config}))
    # Larger weights than a fresh model's: attention that depends on what it sees, so that a wrong mask shows.
    model.update(tree_map(lambda p: 2.5 * p if p.ndim > 1 else p, model.parameters()))
    add_lora(Loaded(model, None, {}, Path(), mx.float32), Lora(rank=4, scale=2.0), seed=1)
    for _, part in model.named_modules():
        if "lora_b" in part:
            part.lora_b = 0.1 * mx.random.normal(part.lora_b.shape)
    model.train()
    return model
