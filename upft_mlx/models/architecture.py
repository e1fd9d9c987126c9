"""What a model is made of: its shapes and bytes, from config.json and the headers of its weights. Nothing is loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from upft_mlx.errors import ModelError
from upft_mlx.escape import one_line
from upft_mlx.models.files import BYTES, Tensor, json_object, read_header
from upft_mlx.recipe.schema import Lora, Quantize

_FLOATS = ("F64", "F32", "F16", "BF16")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
STATE_SPACE = "state space layers"
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.(.+)$")


@dataclass(frozen=True)
class Quantized:
    """How a matrix is stored with fewer bits."""

    bits: int
    group_size: int


@dataclass(frozen=True)
class Matrix:
    """A linear layer or an embedding: (outputs, inputs), quantized or not."""

    name: str
    outputs: int
    inputs: int
    stored: Quantized | None
    """None: as floating numbers."""
    is_embedding: bool = False
    experts: int = 1
    """Matrices that are stacked in it, each with an adapter of its own."""

    @property
    def size(self) -> int:
        """Numbers in it."""
        return self.outputs * self.inputs


@dataclass(frozen=True)
class Architecture:
    """The shapes of a decoder."""

    model_type: str
    hidden: int
    layers: int
    intermediate: int
    """Width of the MLP; of a mixture of experts that of all active experts together."""
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    matrices: tuple[Matrix, ...]
    other_numbers: int
    """Numbers in norms, biases and the like."""
    float_bytes: int
    """Bytes of a floating number in the folder."""
    attending: int = 0
    """Layers with keys and values; the others keep a state."""
    state: int = 0
    """Numbers of the state that a linear attention layer keeps of a sequence."""
    active: int = 1
    """Experts that a token passes in a layer."""
    is_causal: bool = True
    """Whether all attention is plainly causal: no windows, no soft caps."""
    unusual: tuple[str, ...] = ()
    """What a decoder of llama's kind does not have, so that config.json alone does not tell its modules."""

    @property
    def unmeasured(self) -> list[str]:
        """What the formulas of `planning/memory.py` were not measured for."""
        return [kind for kind in self.unusual if kind == STATE_SPACE]

    @property
    def kv_width(self) -> int:
        """Numbers in the keys of one token in one layer; the values have as many."""
        return self.kv_heads * self.head_dim

    @property
    def parameters(self) -> int:
        """Weights."""
        return sum(matrix.size for matrix in self.matrices) + self.other_numbers

    def weight_bytes(self, float_bytes: int) -> int:
        """Bytes of the weights in memory, where floating numbers take `float_bytes` each."""
        total = self.other_numbers * float_bytes
        for matrix in self.matrices:
            if matrix.stored is None:
                total += matrix.size * float_bytes
            else:
                groups = matrix.size // matrix.stored.group_size
                total += matrix.size * matrix.stored.bits // 8 + 2 * groups * float_bytes
        return total

    def dense_bytes(self) -> int:
        """Bytes of a float32 copy of the quantized linear layers and of an embedding that is the head too, see
        `cpu_layers.py`.
        """
        tied = not any(matrix.name.endswith("lm_head") for matrix in self.matrices)
        return sum(4 * matrix.size for matrix in self.matrices if matrix.stored and (tied or not matrix.is_embedding))

    def modules(self) -> list[str]:
        """The names of the matrices inside a layer, as `lora.keys` has them."""
        return sorted({place[2] for matrix in self.matrices if (place := _LAYER.search(matrix.name))})

    def adapter_numbers(self, lora: Lora) -> int:
        """Trainable numbers of an adapter."""
        return sum(lora.rank * (m.experts * m.inputs + m.outputs) for m in self.adapted(lora))

    def adapted(self, lora: Lora) -> list[Matrix]:
        """The matrices that get an adapter."""
        first = 0 if lora.num_layers < 0 else max(0, self.layers - lora.num_layers)
        chosen = []
        for matrix in self.matrices:
            place = _LAYER.search(matrix.name)
            if place and int(place[1]) >= first and (lora.keys is None or place[2] in lora.keys):
                chosen.append(matrix)
        return chosen


def read_architecture(folder: Path, quantize: Quantize | None = None) -> Architecture:
    """The architecture of a model folder: shapes from the weights' headers where they are there, else from config.json.

    Args:
        folder: with config.json.
        quantize: the recipe's; applied to a model that is not quantized.

    Raises:
        ModelError: config.json lacks what a decoder has, or a header is damaged.
    """
    path = folder / "config.json"
    config = json_object(path)
    files = sorted(folder.glob("model*.safetensors"))
    tensors = {name: tensor for file in files for name, tensor in read_header(file).items()}
    return from_config(config, tensors, quantize, str(path))


def from_config(
    config: dict[str, Any],
    tensors: Mapping[str, Tensor] | None = None,
    quantize: Quantize | None = None,
    where: str = "config.json",
) -> Architecture:
    """The architecture that a config states; `tensors`: the weights' headers, to be exact about shapes.

    Raises:
        ModelError: a field that a decoder has is missing, or is not what it is in others.
    """
    try:
        return _decoder(config, tensors or {}, quantize, where)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        shown = one_line(f"{type(error).__name__}: {error}")
        raise ModelError(
            f"does not describe a decoder ({shown})", "memory cannot be planned for it", path=where
        ) from None


def _decoder(
    config: dict[str, Any], tensors: Mapping[str, Tensor], quantize: Quantize | None, where: str
) -> Architecture:
    text = config.get("text_config")
    text = {**config, **(text if isinstance(text, dict) else {})}

    def number(*names: str) -> int:
        for name in names:
            if isinstance(value := text.get(name), int) and value > 0:
                return int(value)
        raise ModelError(f"lacks `{names[0]}`", "memory cannot be planned for this model", path=where)

    hidden, heads = number("hidden_size", "n_embd"), number("num_attention_heads", "n_head")
    layers, active = number("num_hidden_layers", "n_layer"), int(text.get("num_experts_per_tok") or 1)
    experts = 0
    if text.get("num_experts_per_tok") and text.get("moe_intermediate_size"):
        experts = active * int(text["moe_intermediate_size"]) + int(text.get("shared_expert_intermediate_size") or 0)
    sizes = [int(text.get(f"linear_{name}") or 0) for name in ("num_value_heads", "key_head_dim", "value_head_dim")]
    kinds = [str(kind) for kind in text.get("layer_types") or ()]
    attending = sum(kind.endswith("attention") and not kind.startswith("linear") for kind in kinds)
    if sizes[0] and not kinds:
        attending = layers // int(text.get("full_attention_interval") or layers)
    windows = "sliding_attention" in kinds or text.get("sliding_window_pattern") or text.get("attn_logit_softcapping")
    unusual = {
        "a mixture of experts": any(text.get(name) for name in _EXPERTS),
        "linear attention layers": sizes[0] or "linear_attention" in kinds,
        STATE_SPACE: "ssm_cfg" in text or "mamba_d_state" in text,
    }
    bare = Architecture(
        model_type=str(text.get("model_type", "")),
        hidden=hidden,
        layers=layers,
        intermediate=experts or number("intermediate_size", "n_inner"),
        heads=heads,
        kv_heads=int(text.get("num_key_value_heads") or heads),
        head_dim=int(text.get("head_dim") or hidden // heads),
        vocabulary=number("vocab_size"),
        matrices=(),
        other_numbers=2 * hidden * layers,
        float_bytes=2,
        attending=attending or layers,
        state=math.prod(sizes),
        active=active,
        is_causal=not windows,
        unusual=tuple(kind for kind, found in unusual.items() if found),
    )
    stated = config.get("quantization") or config.get("quantization_config") or {}
    how = None if quantize is None else Quantized(quantize.bits, quantize.group_size)
    if tensors:
        matrices = _from_headers(tensors, stated)
        known = {f"{matrix.name}.{part}" for matrix in matrices for part in ("weight", "scales", "biases")}
        kind = next((tensor.kind for tensor in tensors.values() if tensor.kind in _FLOATS), "BF16")
        others = sum(tensor.size for name, tensor in tensors.items() if name not in known)
        bare = replace(bare, other_numbers=others, float_bytes=BYTES[kind])
    else:
        matrices, bits, group = _from_shapes(bare, text), stated.get("bits"), stated.get("group_size")
        how = Quantized(bits, group) if isinstance(bits, int) and isinstance(group, int) else how
    if how is not None:  # but for what is quantized already, and inputs that are no whole groups
        matrices = [m if m.stored or m.inputs % how.group_size else replace(m, stored=how) for m in matrices]
    return replace(bare, matrices=tuple(matrices))


def _from_headers(tensors: Mapping[str, Tensor], stated: Mapping[str, Any]) -> list[Matrix]:
    """The weights of all linear layers; quantized ones have scales beside them, stacked experts are one tall matrix.

    `stated`: the config's quantization, with one group size for all layers, and others under the names of some.
    """
    found = []
    for name, tensor in tensors.items():
        base, dot, last = name.rpartition(".")
        if last != "weight" or not dot or len(tensor.shape) < 2 or "conv" in base.rpartition(".")[2]:
            continue
        outputs, inputs, how = math.prod(tensor.shape[:-1]), tensor.shape[-1], None
        if (scales := tensors.get(f"{base}.scales")) is not None:  # (outputs, inputs / group)
            own = stated.get(base)
            group = own["group_size"] if isinstance(own, dict) and "group_size" in own else stated.get("group_size", 64)
            inputs = scales.shape[-1] * group
            how = Quantized(tensor.shape[-1] * 32 // inputs, group)  # bits of each number in the packed 32-bit words
        experts = tensor.shape[0] if len(tensor.shape) == 3 else 1
        found.append(Matrix(base, outputs, inputs, how, "embed" in base.rpartition(".")[2], experts))
    return found


def _from_shapes(bare: Architecture, text: dict[str, Any]) -> list[Matrix]:
    """The matrices of a decoder of llama's kind."""
    hidden, inner, queries = bare.hidden, bare.intermediate, bare.heads * bare.head_dim
    if many := int(next((text[name] for name in _EXPERTS if text.get(name)), 0)):
        inner = many * int(text.get("moe_intermediate_size") or bare.intermediate)
    sizes = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (bare.kv_width, hidden),
        "self_attn.v_proj": (bare.kv_width, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    found = [Matrix("model.embed_tokens", bare.vocabulary, hidden, None, is_embedding=True)]
    if not text.get("tie_word_embeddings", False):
        found.append(Matrix("lm_head", bare.vocabulary, hidden, None))
    for layer in range(bare.layers):
        found += [Matrix(f"model.layers.{layer}.{name}", *size, None) for name, size in sizes.items()]
    return found
