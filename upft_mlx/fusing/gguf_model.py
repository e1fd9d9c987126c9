"""A model folder as one GGUF file for llama.cpp, LM Studio and Ollama: the inverse of models/gguf/model.py.

4-bit weights of MLX become Q4_1, which has a float16 scale and bias for every 32 weights: the same numbers. Larger
groups repeat their scale for every 32 weights. 8-bit weights that came from Q8_0 become Q8_0 again. Other
quantized weights are decoded: those of modes without biases (mxfp4) to bfloat16, which has the same numbers. Weights
that are not quantized keep their type.
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from upft_mlx.errors import ExportError
from upft_mlx.escape import one_line, quoted
from upft_mlx.fusing.rounding import unpack
from upft_mlx.machine.requirements import pip_install
from upft_mlx.models.facts import chat_template
from upft_mlx.models.files import json_object
from upft_mlx.models.gguf.file import UNUSED, Array, rule_of
from upft_mlx.models.gguf.model import FAMILIES, TOP, halves_in_turn, layer_names, llama3_factors
from upft_mlx.quantities import disk
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
        raise ExportError(
            "the package gguf is not installed", f"`{pip_install(sys.executable)} gguf` installs it"
        ) from None
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
        for tensor in _tensors(folder, arch, config):
            kind = gguf.GGMLQuantizationType[tensor.kind]
            block, size = gguf.GGML_QUANT_SIZES[kind]
            count = math.prod(tensor.shape) // block * size
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), count, kind)
            kinds[tensor.kind] += count
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
        writer.write_ti_data_to_file()
        for tensor in _tensors(folder, arch, config):  # again: the header comes first, and memory holds one tensor
            writer.write_tensor_data(tensor.values())
            mx.clear_cache()
    finally:
        writer.close()
    each = ", ".join(f"{kind} {disk(size)}" for kind, size in kinds.most_common())
    return f"{each}, for llama.cpp, LM Studio and Ollama"


def _write_shape(writer: Any, arch: str, config: dict[str, Any]) -> None:
    heads, (theta, scaling, head_dim) = config["num_attention_heads"], _rope(arch, config)
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
    kind = _rope_type(scaling)
    if kind == "linear":
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(scaling["factor"]))
    elif kind not in ("llama3", "default"):  # llama3's are a tensor
        raise ExportError(f"rope_scaling of type {quoted(kind)} cannot be written here", _NOT_HERE)


def _rope(arch: str, config: dict[str, Any]) -> tuple[float, dict[str, Any], int]:
    """The base of the rotary embedding, its scaling and the width of a head."""
    rope = config.get("rope_parameters") or {}  # of transformers 5
    default = {"qwen2": 1e6, "gemma3": 1e6}.get(arch, 10000.0)
    theta = float(config.get("rope_theta") or rope.get("rope_theta") or default)
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return theta, config.get("rope_scaling") or rope, head_dim


def _rope_type(scaling: dict[str, Any]) -> str:
    return scaling.get("rope_type") or scaling.get("type") or "default"


@dataclass(frozen=True)
class _Tensor:
    """A tensor in llama.cpp's terms; its weights are read from the file when its values are made."""

    name: str
    weight: mx.array
    groups: tuple[mx.array, mx.array] | None = None
    """Scales and biases of a quantized matrix."""
    bits: int = 0
    size: int = 0
    """Number of weights in a group."""
    heads: int | None = None
    """Number of heads whose rows llama.cpp wants in another order; None: the same order."""
    raised: bool = False
    """Whether to add 1, as for Gemma's norms."""

    @cached_property
    def kind(self) -> str:
        """GGUF's type with the same numbers; float16 for a quantized matrix that has none."""
        if self.groups is None:
            if self.weight.ndim < 2 or self.weight.dtype == mx.float32:  # llama.cpp wants norms and biases in float32
                return "F32"
            return "BF16" if self.weight.dtype == mx.bfloat16 else "F16"
        s, b = (np.array(part.astype(mx.float32)) for part in self.groups)
        exact = all(np.array_equal(part.astype(np.float16).astype(np.float32), part) for part in (s, b))
        if exact and self.bits == 8 and np.array_equal(b, -128 * s):
            return "Q8_0"
        return "Q4_1" if exact and self.bits == 4 else "F16"

    @property
    def shape(self) -> tuple[int, ...]:
        """Counted in weights, not in bytes."""
        return self.weight.shape if self.groups is None else (len(self.weight), self.groups[0].shape[1] * self.size)

    def values(self) -> Array:
        """The values in this type; bytes if numpy does not have it."""
        if self.groups is not None and self.kind != "F16":
            array = self._blocks(*self.groups)
        elif self.kind == "BF16":
            array = np.array(self.weight.view(mx.uint16)).view(np.uint8)
        else:
            weight = self.weight
            if self.groups is not None:
                scales, biases = (part.astype(mx.float32) for part in self.groups)
                weight = mx.dequantize(weight, scales, biases, self.size, self.bits)
            array = np.array(weight.astype(mx.float32 if self.kind == "F32" else mx.float16))
        if self.heads is not None:
            array = halves_in_turn(array, self.heads)
        return np.ascontiguousarray(array + np.float32(1) if self.raised else array)

    def _blocks(self, scales: mx.array, biases: mx.array) -> Array:
        """Q4_1 or Q8_0, (O, bytes)."""
        codes = unpack(np.array(self.weight), self.bits)
        grouped = codes.reshape(len(codes), -1, 32)
        halves = [np.array(part.astype(mx.float16)) for part in (scales, biases)]
        d, m = (np.repeat(half, self.size // 32, axis=1)[..., None].view(np.uint8) for half in halves)  # (O, D / 32, 2)
        if self.kind == "Q8_0":
            parts = [d, (grouped.astype(np.int16) - 128).astype(np.int8).view(np.uint8)]
        else:
            parts = [d, m, np.bitwise_or(grouped[..., :16], grouped[..., 16:] << 4, dtype=np.uint8)]
        return np.concatenate(parts, axis=-1).reshape(len(codes), -1)


def _tensors(folder: Path, arch: str, config: dict[str, Any]) -> Iterator[_Tensor]:
    """Each tensor; only one is in memory if the caller drops it before the next."""
    theta, scaling, head_dim = _rope(arch, config)
    if _rope_type(scaling) == "llama3":
        yield _Tensor("rope_freqs.weight", mx.array(llama3_factors(theta, head_dim, scaling).astype(np.float32)))
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
        weight, scales, biases = arrays.pop(name), None, None
        if leaf == "weight":
            scales, biases = (arrays.pop(f"{module}.{part}", None) for part in ("scales", "biases"))
        own = quantization.get(module)
        how = own if isinstance(own, dict) else quantization
        if scales is not None and (mode := how.get("mode") or "affine") != "affine":
            weight, scales = mx.dequantize(weight, scales, None, how.get("group_size"), how.get("bits"), mode), None
        groups = None if scales is None or biases is None else (scales, biases)
        heads = {"attn_q": config["num_attention_heads"]}
        heads["attn_k"] = config.get("num_key_value_heads") or heads["attn_q"]
        yield _Tensor(
            f"{theirs}.{leaf}",
            weight,
            groups,
            how.get("bits", 0),
            how.get("group_size", 0),
            heads.get(theirs.rpartition(".")[2]) if arch == "llama" else None,
            arch.startswith("gemma") and module.endswith("norm"),
        )


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
