"""A model folder as one GGUF file for llama.cpp, LM Studio and Ollama: the inverse of models/gguf/model.py.

4-bit weights of MLX become Q4_1, which has a float16 scale and bias for every 32 weights: the same numbers. Larger
groups repeat their scale for every 32 weights. 8-bit weights that came from Q8_0 become Q8_0 again. Other
quantized weights are decoded: those of modes without biases (mxfp4) to bfloat16, which has the same numbers. Weights
that are not quantized keep their type.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from upft_mlx.errors import ExportError
from upft_mlx.escape import one_line, quoted
from upft_mlx.fusing.rounding import unpack
from upft_mlx.models.facts import chat_template
from upft_mlx.models.files import json_object
from upft_mlx.models.gguf.file import UNUSED, Array, rule_of
from upft_mlx.models.gguf.model import FAMILIES, TOP, halves_in_turn, layer_names, llama3_factors
from upft_mlx.training.checkpoints import load_safetensors

_ARCHITECTURES = {**{ours: arch for arch, ours in FAMILIES.items()}, "mistral": "llama"}
_NOT_HERE = "use --format dequantized, and llama.cpp's convert_hf_to_gguf.py on that folder"


def write_gguf(folder: Path, file: Path, name: str) -> str:
    """Write a model folder as a GGUF file.

    Args:
        folder: of a llama, mistral, qwen2, qwen3, gemma, gemma2 or gemma3_text model with a tokenizer.json.
        file: is written.
        name: what the model is called in the file.

    Returns:
        What was written, in words.

    Raises:
        ExportError: the package gguf is not installed, or it has no place for this family, its tokenizer or a weight.
    """
    try:
        import gguf
    except ImportError:
        raise ExportError("the package gguf is not installed", "pip install gguf") from None
    config = json_object(folder / "config.json")
    arch = _ARCHITECTURES.get(str(config.get("model_type")))
    if arch is None:
        kind = quoted(str(config.get("model_type")))
        raise ExportError(f"a model of type {kind} cannot be written here; {', '.join(_ARCHITECTURES)} can", _NOT_HERE)
    writer = gguf.GGUFWriter(file, arch)
    try:
        writer.add_type(gguf.GGUFType.MODEL)
        writer.add_name(name)
        _write_shape(writer, arch, config)
        _write_tokenizer(writer, folder, config)
        kinds: Counter[str] = Counter()
        for tensor, array, kind in _tensors(folder, arch, config):
            writer.add_tensor(tensor, array, raw_dtype=gguf.GGMLQuantizationType[kind])
            kinds[kind] += array.nbytes
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        types = {
            "F32": "ALL_F32",
            "F16": "MOSTLY_F16",
            "BF16": "MOSTLY_BF16",
            "Q4_1": "MOSTLY_Q4_1",
            "Q8_0": "MOSTLY_Q8_0",
        }
        writer.add_file_type(gguf.LlamaFileType[types[kinds.most_common(1)[0][0]]])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    each = ", ".join(f"{kind} {size / 1e6:.1f} MB" for kind, size in kinds.most_common())
    return f"{each}, for llama.cpp, LM Studio and Ollama"


def _write_shape(writer: Any, arch: str, config: dict[str, Any]) -> None:
    heads, rope = config["num_attention_heads"], config.get("rope_parameters") or {}  # of transformers 5
    scaling = config.get("rope_scaling") or rope
    default = {"qwen2": 1e6, "gemma3": 1e6}.get(arch, 10000.0)
    theta = float(config.get("rope_theta") or rope.get("rope_theta") or default)
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_context_length(config.get("max_position_embeddings") or 32768)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(theta)
    writer.add_vocab_size(config["vocab_size"])
    if arch in ("gemma2", "gemma3"):
        writer.add_sliding_window(config.get("sliding_window") or {"gemma2": 4096, "gemma3": 512}[arch])
        largest = {"gemma2": 46, "gemma3": 62}[arch] == config["num_hidden_layers"]
        scalar, known = config.get("query_pre_attn_scalar"), config["hidden_size"] / heads if largest else head_dim
        if scalar is not None and abs(scalar - known) > 1e-3:
            raise ExportError(f"query_pre_attn_scalar is {scalar}, llama.cpp would take {known}", _NOT_HERE)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(float(config.get("attn_logit_softcapping") or 50.0))
        writer.add_final_logit_softcapping(float(config.get("final_logit_softcapping") or 30.0))
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "linear":
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(scaling["factor"]))
    elif kind == "llama3":
        factors = llama3_factors(theta, head_dim, scaling).astype(np.float32)
        writer.add_tensor("rope_freqs.weight", factors)
    elif kind != "default":
        raise ExportError(f"rope_scaling of type {quoted(kind)} cannot be written here", _NOT_HERE)


def _tensors(folder: Path, arch: str, config: dict[str, Any]) -> Any:
    """Each tensor in llama.cpp's terms: name, array (bytes where GGUF has a type of its own), type."""
    inside = {ours: theirs for theirs, ours in layer_names(arch).items()}
    top = {ours: theirs for theirs, ours in TOP.items()}
    arrays: dict[str, mx.array] = {}
    for part in sorted(folder.glob("model*.safetensors")):
        arrays |= load_safetensors(part)
    quantization = config.get("quantization") or {}
    for name in [name for name in arrays if not name.endswith((".scales", ".biases"))]:
        module, _, leaf = name.rpartition(".")
        place = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
        theirs = f"blk.{place[1]}.{inside[place[2]]}" if place and place[2] in inside else top.get(module)
        if theirs is None or leaf not in ("weight", "bias"):
            raise ExportError(f"{one_line(name)}: llama.cpp has no such weight", _NOT_HERE)
        weight, scales = arrays[name], arrays.get(f"{module}.scales") if leaf == "weight" else None
        own = quantization.get(module)
        how = own if isinstance(own, dict) else quantization
        if scales is not None and (mode := how.get("mode") or "affine") != "affine":
            weight, scales = mx.dequantize(weight, scales, None, how.get("group_size"), how.get("bits"), mode), None
        if scales is not None:
            array, kind = _blocks(weight, scales, arrays[f"{module}.biases"], how)
        elif weight.ndim < 2 or weight.dtype == mx.float32:  # llama.cpp wants norms and biases in float32
            array, kind = np.array(weight.astype(mx.float32)), "F32"
        elif weight.dtype == mx.bfloat16:
            array, kind = np.array(weight.view(mx.uint16)).view(np.uint8), "BF16"
        else:
            array, kind = np.array(weight), "F16"
        heads = {"attn_q": config["num_attention_heads"]}
        heads["attn_k"] = config.get("num_key_value_heads") or heads["attn_q"]
        count = heads.get(theirs.rpartition(".")[2])
        if arch == "llama" and count is not None:
            array = halves_in_turn(array, count)
        elif arch.startswith("gemma") and module.endswith("norm"):
            array = array + np.float32(1)
        yield f"{theirs}.{leaf}", np.ascontiguousarray(array), kind


def _blocks(words: mx.array, scales: mx.array, biases: mx.array, how: dict[str, Any]) -> tuple[Array, str]:
    """A quantized matrix (O, D) as Q4_1 or Q8_0, (O, bytes), where these hold the same numbers; else in float16."""
    bits, group = how["bits"], how["group_size"]
    s, b = (np.array(part.astype(mx.float32)) for part in (scales, biases))
    halves = [part.astype(np.float16) for part in (s, b)]
    exact = all(np.array_equal(half.astype(np.float32), part) for half, part in zip(halves, (s, b), strict=True))
    if exact and (bits == 4 or (bits == 8 and np.array_equal(b, -128 * s))):
        codes = unpack(np.array(words), bits)
        rows = len(codes)
        d, m = (np.repeat(half, group // 32, axis=1)[..., None] for half in halves)  # (O, D / 32, 1)
        grouped = codes.reshape(rows, -1, 32)
        if bits == 8:
            parts = [d.view(np.uint8), (grouped.astype(np.int16) - 128).astype(np.int8).view(np.uint8)]
            return np.concatenate(parts, axis=-1).reshape(rows, -1), "Q8_0"
        packed = grouped[..., :16] | (grouped[..., 16:] << 4)
        return np.concatenate([d.view(np.uint8), m.view(np.uint8), packed], axis=-1).reshape(rows, -1), "Q4_1"
    decoded = mx.dequantize(words, mx.array(s), mx.array(b), group, bits)
    return np.array(decoded.astype(mx.float16)), "F16"


# The tokenizer.


def _write_tokenizer(writer: Any, folder: Path, config: dict[str, Any]) -> None:
    if not (folder / "tokenizer.json").is_file():
        raise ExportError("has no tokenizer.json", _NOT_HERE, path=folder)
    content = json_object(folder / "tokenizer.json")
    model, settings = content["model"], json_object(folder / "tokenizer_config.json")
    kind, rule = rule_of(content)
    if kind is None:
        raise ExportError("llama.cpp's name for its tokenizer's rules is not known here", _NOT_HERE, path=folder)
    size = config["vocab_size"]
    tokens, types = [f"[PAD{number}]" for number in range(size)], [UNUSED] * size
    for token, number in model["vocab"].items():
        tokens[number], types[number] = token, 1
        if kind == "llama" and re.fullmatch(r"<0x[0-9A-F]{2}>", token):
            types[number] = 6
    for token in content.get("added_tokens", []):
        if token["id"] < size:  # Gemma 3's <image_soft_token> has no embedding: llama.cpp leaves it out as well
            tokens[token["id"]], types[token["id"]] = token["content"], 3 if token["special"] else 4
    merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if kind == "llama":
        writer.add_tokenizer_pre("default")
        scores = dict[str, float]()
        for rank, (left, right) in enumerate(merges):
            scores.setdefault(left + right, -float(rank))
        writer.add_token_scores([scores.get(token, -float(len(merges))) for token in tokens])
        writer.add_add_space_prefix("Prepend" in str(content.get("normalizer")))
    else:
        writer.add_tokenizer_pre(rule)
        writer.add_token_merges([f"{left} {right}" for left, right in merges])
    numbers = {token: number for number, token in enumerate(tokens)}
    for field, add in (
        ("bos", writer.add_bos_token_id),
        ("pad", writer.add_pad_token_id),
        ("unk", writer.add_unk_token_id),
    ):
        stated = settings.get(f"{field}_token")
        content_of = stated.get("content") if isinstance(stated, dict) else stated
        if content_of in numbers:
            add(numbers[content_of])
    eos = config.get("eos_token_id")
    ends = eos if isinstance(eos, list) else [eos]
    own = settings.get("eos_token")
    name = own.get("content") if isinstance(own, dict) else own
    ends = [*([numbers[name]] if name in numbers else []), *(end for end in ends if isinstance(end, int))]
    if ends:
        writer.add_eos_token_id(ends[0])
    if others := [end for end in ends if end != ends[0]]:
        writer.add_eot_token_id(others[0])
    if (begins := _begins_with_bos(content, settings)) is not None:
        writer.add_add_bos_token(begins)
    if template := chat_template(folder):
        writer.add_chat_template(template)


def _begins_with_bos(tokenizer: dict[str, Any], settings: dict[str, Any]) -> bool | None:
    """Whether a text begins with BOS; None where nothing says so: llama.cpp knows it by the tokenizer's rules."""
    steps = (tokenizer.get("post_processor") or {}).get("processors") or [tokenizer.get("post_processor") or {}]
    parts = next((step["single"] for step in steps if step.get("type") == "TemplateProcessing"), None)
    stated = settings.get("add_bos_token")
    if stated is None and parts:  # such as Llama 3's
        return "SpecialToken" in parts[0]
    return None if stated is None else bool(stated)
