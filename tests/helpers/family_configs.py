"""Tiny random models of mlx-lm's families: a table of configurations, each with what differs from the common one."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

VOCABULARY = 90
COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
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
_SHARED_MOE = {**_MOE, "num_shared_experts": 1, "first_k_dense_replace": 1}
_ROUTED = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
}
_LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
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
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
}
_MAMBA = {"mamba_d_conv": 4, "mamba_d_state": 16, "mamba_expand": 2}

EXACT: dict[str, dict[str, Any]] = {
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

OTHERS: dict[str, dict[str, Any]] = {
    "Klear": {**_MOE, "attention_bias": False, "n_shared_experts": 1},
    "afm7": {
        "hidden_dim": 32,
        "num_layers": 4,
        "num_kv_reuse_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "hidden_dim_scale_factor": 2.0,
    },
    "afmoe": {
        **_SHARED_MOE,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 6,
        "num_dense_layers": 1,
    },
    "apertus": {"mlp_bias": False, "attention_bias": False, "post_norm": False, "qk_norm": True},
    "baichuan_m1": {"sliding_window": 6, "sliding_window_layers": [0], "conv_window": 2, "tie_word_embeddings": False},
    "bailing_moe": {**_SHARED_MOE},
    "bailing_moe_linear": {**_SHARED_MOE, "layer_group_size": 2, "group_norm_size": 1},
    "bailing_hybrid": {
        **_SHARED_MOE,
        **_LATENT,
        "n_group": 1,
        "topk_group": 1,
        "layer_group_size": 2,
        "group_norm_size": 1,
        "routed_scaling_factor": 1.0,
    },
    "cohere": {"layer_norm_eps": 1e-5, "logit_scale": 0.1},
    "dbrx": {
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 4,
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
        "tie_word_embeddings": False,
    },
    "deepseek": {**_ROUTED, "moe_layer_freq": 1},
    "deepseek_v2": {
        **_ROUTED,
        **_LATENT,
        "moe_layer_freq": 1,
        "topk_method": "gready",
        "rope_scaling": {"type": "yarn", "factor": 1.0, "mscale_all_dim": 0.0},
    },
    "deepseek_v3": {**_ROUTED, **_LATENT, "moe_layer_freq": 1},
    "deepseek_v32": {
        **_ROUTED,
        **_LATENT,
        "moe_layer_freq": 1,
        "index_head_dim": 8,
        "index_n_heads": 2,
        "index_topk": 4,
    },
    "dots1": _ROUTED,
    "ernie4_5": {"use_bias": False},
    "ernie4_5_moe": {
        "use_bias": False,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 32,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": 1,
        "moe_layer_interval": 1,
    },
    "exaone": {"num_layers": 2, "layer_norm_epsilon": 1e-5},
    "exaone4": {
        **_SLIDING,
        "rope_scaling": {"rope_type": "default"},
        "sliding_window_pattern": "LG",
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "exaone_moe": {
        **_SHARED_MOE,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention"],
        "is_moe_layer": [False, True],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "falcon_h1": {
        **_MAMBA,
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_n_groups": 1,
        "ssm_multipliers": [1.0] * 5,
        "mlp_multipliers": [1.0, 1.0],
    },
    "gemma": {},
    "gemma3": {"text_config": {**COMMON, **_SLIDING, "query_pre_attn_scalar": 8, "model_type": "gemma3_text"}},
    "gemma3n": {
        "text_config": {
            **COMMON,
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": 90,
            "sliding_window": 6,
            "rope_local_base_freq": 1000.0,
            "final_logit_softcapping": 3.0,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "activation_sparsity_pattern": [0.0] * 4,
            "hidden_size_per_layer_input": 8,
            "altup_num_inputs": 2,
            "altup_coef_clip": 120.0,
            "altup_correct_scale": True,
            "altup_active_idx": 0,
            "laurel_rank": 8,
            "model_type": "gemma3n_text",
        }
    },
    "gemma4_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": 6,
        "num_kv_shared_layers": 2,
        "vocab_size_per_layer_input": 90,
        "hidden_size_per_layer_input": 8,
    },
    "glm": {},
    "glm4": {"attention_bias": False, "partial_rotary_factor": 0.5},
    "glm4_moe": {
        **_ROUTED,
        "rope_scaling": None,
        "use_qk_norm": True,
        "attention_bias": False,
        "partial_rotary_factor": 0.5,
    },
    "glm4_moe_lite": {**_ROUTED, **_LATENT},
    "gpt2": {"n_ctx": 128, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 128, "layer_norm_epsilon": 1e-5},
    "gpt_bigcode": {
        "n_embd": 32,
        "n_layer": 2,
        "n_inner": 64,
        "n_head": 4,
        "n_positions": 128,
        "layer_norm_epsilon": 1e-5,
    },
    "gpt_neox": {"layer_norm_eps": 1e-5, "rotary_emb_base": 10000, "rotary_pct": 0.5},
    "gpt_oss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 6,
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_scaling": None,
    },
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
    "granitemoe": {**_GRANITE, "num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoehybrid": {
        **_GRANITE,
        "layer_types": ["mamba", "attention"],
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_proj_bias": False,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_n_groups": 1,
        "mamba_conv_bias": True,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 32,
    },
    "helium": {"attention_bias": False, "mlp_bias": False},
    "hunyuan": {
        "attention_bias": False,
        "moe_topk": 2,
        "num_experts": 4,
        "num_shared_expert": 1,
        "use_mixed_mlp_moe": True,
        "use_qk_norm": True,
        "use_cla": True,
        "cla_share_factor": 2,
        "rope_scaling": {"alpha": 1000.0, "type": "dynamic", "factor": 1.0},
    },
    "hunyuan_v1_dense": {"rope_scaling": {"alpha": 1000.0, "type": "dynamic", "factor": 1.0}},
    "internlm2": {},
    "internlm3": {},
    "jamba": {
        **_MAMBA,
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
    "kimi_linear": {
        **_SHARED_MOE,
        **_LATENT,
        "model_max_length": 128,
        "linear_attn_config": {
            "kda_layers": [1],
            "full_attn_layers": [2],
            "num_heads": 4,
            "head_dim": 32,
            "short_conv_kernel_size": 4,
        },
    },
    "lfm2": {
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 32,
        "block_multiple_of": 8,
        "block_ff_dim": 64,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "full_attn_idxs": [1],
    },
    "lfm2_moe": {
        **_MOE,
        "norm_eps": 1e-5,
        "conv_bias": False,
        "conv_L_cache": 3,
        "use_expert_bias": True,
        "num_dense_layers": 1,
        "full_attn_idxs": [1],
    },
    "lille-130m": {
        "block_size": 128,
        "layer_norm_eps": 1e-5,
        "n_embd": 256,
        "n_head": 4,
        "n_kv_heads": 2,
        "n_layer": 2,
    },
    "llama4_text": {"intermediate_size_mlp": 64, "no_rope_layers": [1, 0], "use_qk_norm": True},
    "longcat_flash": {
        **_ROUTED,
        **_LATENT,
        "attention_method": "MLA",
        "zero_expert_type": "identity",
        "ffn_hidden_size": 64,
        "moe_topk": 2,
        "expert_ffn_hidden_size": 32,
        "zero_expert_num": 2,
        "num_layers": 2,
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
        "attention_bias": False,
    },
    "mamba": {"state_size": 16, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True, "time_step_rank": 4},
    "mamba2": {
        "num_heads": 4,
        "head_dim": 16,
        "state_size": 16,
        "layer_norm_epsilon": 1e-5,
        "conv_kernel": 4,
        "n_groups": 1,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_limit": [0.0, 100.0],
        "time_step_rank": "auto",
    },
    "mimo": {"num_nextn_predict_layers": 0},
    "minicpm": {"tie_word_embeddings": False, "dim_model_base": 16, "scale_depth": 1.4, "scale_emb": 2.0},
    "minicpm3": {
        **_LATENT,
        "rope_scaling": {"original_max_position_embeddings": 64, "short_factor": 1.0, "long_factor": 1.0},
        "dim_model_base": 16,
        "scale_depth": 1.4,
        "scale_emb": 2.0,
    },
    "minimax": {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 0, "rotary_dim": 4},
    "ministral3": {
        "rope_parameters": {"rope_theta": 10000.0, "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 64}
    },
    "mistral3": {"text_config": {**COMMON, "model_type": "llama"}},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "nanochat": {"num_key_value_heads": 4},
    "nemotron": {"hidden_act": "relu2", "norm_eps": 1e-5, "partial_rotary_factor": 0.5},
    "nemotron_h": {
        "attention_bias": False,
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "mamba_proj_bias": False,
        "ssm_state_size": 16,
        "conv_kernel": 4,
        "n_groups": 1,
        "mlp_bias": False,
        "layer_norm_epsilon": 1e-5,
        "use_bias": False,
        "use_conv_bias": True,
        "num_hidden_layers": 3,
        "hybrid_override_pattern": ["M", "*", "-"],
    },
    "olmo3": {"sliding_window": 6, "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "olmoe": {**_MOE},
    "openelm": {
        "num_transformer_layers": 2,
        "model_dim": 32,
        "ffn_dim_divisor": 8,
        "num_query_heads": [4, 4],
        "num_kv_heads": [2, 2],
        "ffn_multipliers": [2.0, 2.0],
        "head_dim": 8,
        "share_input_output_layers": True,
    },
    "phi": {"partial_rotary_factor": 0.5},
    "phimoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "rope_scaling": None},
    "phixtral": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "rotary_dim": 4,
        "model_dim": 32,
        "num_heads": 4,
        "num_layers": 2,
        "num_vocab": 90,
    },
    "plamo": {"n_shared_head": 2},
    "plamo2": {
        "num_key_value_heads": 2,
        "hidden_size_per_head": 8,
        "mamba_d_state": 16,
        "mamba_d_conv": 4,
        "mamba_num_heads": 4,
        "mamba_step": 2,
        "mamba_chunk_size": 8,
        "mamba_enabled": True,
    },
    "qwen": {"n_embd": 32, "kv_channels": 8, "emb_dropout_prob": 0, "attn_dropout_prob": 0, "layer_norm_epsilon": 1e-5},
    "qwen2_moe": {**_MOE, "shared_expert_intermediate_size": 32},
    "qwen2_vl": {"text_config": {**COMMON, "model_type": "qwen2"}},
    "qwen3_5": {"text_config": {**COMMON, **_LINEAR_ATTENTION}},
    "qwen3_5_moe": {"text_config": {**COMMON, **_LINEAR_ATTENTION, **_MOE, "shared_expert_intermediate_size": 32}},
    "qwen3_next": {**_LINEAR_ATTENTION, **_MOE, "shared_expert_intermediate_size": 32, "partial_rotary_factor": 0.5},
    "qwen3_vl": {"text_config": {**COMMON, "model_type": "qwen3"}},
    "recurrent_gemma": {
        "attention_bias": False,
        "conv1d_width": 4,
        "logits_soft_cap": 3.0,
        "attention_window_size": 6,
        "lru_width": 32,
        "block_types": ["recurrent", "attention"],
    },
    "rwkv7": {
        "norm_eps": 1e-5,
        "head_dim": 32,
        "a_low_rank_dim": 8,
        "v_low_rank_dim": 8,
        "gate_low_rank_dim": 8,
        "decay_low_rank_dim": 8,
    },
    "seed_oss": {},
    "smollm3": {"no_rope_layer_interval": 2},
    "stablelm": {"use_qkv_bias": False, "partial_rotary_factor": 0.5, "layer_norm_eps": 1e-5},
    "starcoder2": {"norm_epsilon": 1e-5},
    "telechat3": {},
}
FAMILIES = {**EXACT, **OTHERS}
UNTRIED = {
    "bitnet": "computes with a kernel for Metal",
    "olmo": "needs the package ai2-olmo",
    "phi3small": "crashes MLX's CPU backend",
}
"""Families that cannot be tried everywhere, and why."""


def config_of(name: str, vocabulary: int, **changes: Any) -> dict[str, Any]:
    """The config.json of a tiny model of a family."""
    config = {"model_type": name, **COMMON, "vocab_size": vocabulary, **FAMILIES[name], **changes}
    if "text_config" in config:
        config["text_config"] = {"model_type": name, **config["text_config"], "vocab_size": vocabulary}
    return {key: vocabulary if value == VOCABULARY else value for key, value in config.items()}


def make(config: dict[str, Any]) -> nn.Module:
    """A random model of this configuration."""
    kind = {"mistral": "llama"}.get(config["model_type"], config["model_type"])
    module = import_module(f"mlx_lm.models.{kind}")
    mx.random.seed(3)
    model: nn.Module = module.Model(module.ModelArgs.from_dict(config))

    def trained(weight: mx.array) -> mx.array:
        """Larger than a fresh model's: attention that depends on what it sees, so that a wrong mask shows; none 0."""
        if not mx.any(weight).item():
            return 0.1 * mx.random.normal(weight.shape).astype(weight.dtype)
        return 2.5 * weight if weight.ndim > 1 else weight

    model.update(tree_map(trained, model.parameters()))
    return model
