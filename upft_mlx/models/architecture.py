"""What a model is made of: its shapes and bytes, from config.json and the headers of its weights. Nothing is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upft_mlx.errors import ModelError
from upft_mlx.escape import one_line
from upft_mlx.models.adapter_files import LAYER
from upft_mlx.models.files import BYTES, Tensor, json_object, read_header, text_config
from upft_mlx.recipe.schema import Lora, Quantize

STATE_SPACE = "state space layers"


@dataclass(frozen=True)
class Matrix:
    """A linear layer or an embedding; stacked experts are one tall matrix."""

    name: str
    outputs: int
    inputs: int
    bits: int = 0
    """Bits of a number; 0: it is a floating one."""
    group: int = 1
    """Numbers that share a scale and a bias, if it is quantized."""
    experts: int = 1
    """Matrices that are stacked in it, each with an adapter of its own."""

    @property
    def size(self) -> int:
        """Numbers in it."""
        return self.outputs * self.inputs

    @property
    def place(self) -> tuple[int, str]:
        """Its layer, and its name in the layer as `lora.keys` has it; -1 and nothing outside the layers."""
        found = LAYER.search(self.name)
        return (int(found[1]), found[2]) if found else (-1, "")

    def bytes(self, float_bytes: int) -> int:
        """Its bytes in memory, where floating numbers take `float_bytes` each."""
        if not self.bits:
            return self.size * float_bytes
        return self.size * self.bits // 8 + 2 * (self.size // self.group) * float_bytes


@dataclass(frozen=True)
class Architecture:
    """The shapes of a decoder."""

    hidden: int
    layers: int
    intermediate: int
    """Width of the MLP; of a mixture of experts that of all active experts together."""
    heads: int
    kv_width: int
    """Numbers in the keys of one token in one layer; the values have as many."""
    vocabulary: int
    attending: int
    """Layers with keys and values; the others keep a state."""
    state: int
    """Numbers of the state that a linear attention layer keeps of a sequence."""
    active: int
    """Experts that a token passes in a layer."""
    is_causal: bool
    """Whether all attention is plainly causal: no windows, no soft caps."""
    unusual: tuple[str, ...]
    """What a decoder of llama's kind does not have, so that config.json alone does not tell its modules."""
    matrices: tuple[Matrix, ...]
    other_numbers: int
    """Numbers in norms, biases and the like."""
    float_bytes: int
    """Bytes of a floating number in the folder."""

    @property
    def parameters(self) -> int:
        """Weights."""
        return sum(matrix.size for matrix in self.matrices) + self.other_numbers

    def weight_bytes(self, float_bytes: int) -> int:
        """Bytes of the weights in memory, where floating numbers take `float_bytes` each."""
        return sum(matrix.bytes(float_bytes) for matrix in self.matrices) + self.other_numbers * float_bytes

    def dense_bytes(self) -> int:
        """Bytes of a float32 copy of the quantized layers and of an embedding that is the head (`cpu_layers.py`)."""
        tied = not any(matrix.name.endswith("lm_head") for matrix in self.matrices)
        return sum(4 * matrix.size for matrix in self.matrices if matrix.bits and (tied or "embed" not in matrix.name))

    def adapted(self, lora: Lora) -> list[Matrix]:
        """The matrices that get an adapter."""
        first = 0 if lora.num_layers < 0 else max(0, self.layers - lora.num_layers)
        return [m for m in self.matrices if m.place[0] >= first and (lora.keys is None or m.place[1] in lora.keys)]

    def adapter_numbers(self, lora: Lora) -> int:
        """Trainable numbers of an adapter."""
        return sum(lora.rank * (m.experts * m.inputs + m.outputs) for m in self.adapted(lora))


def read_architecture(folder: Path, quantize: Quantize | None = None) -> Architecture:
    """The architecture of a model folder; see `from_config`."""
    files = sorted(folder.glob("model*.safetensors"))
    headers = {name: tensor for file in files for name, tensor in read_header(file).items()}
    return from_config(json_object(folder / "config.json"), headers, quantize, folder / "config.json")


def from_config(
    config: dict[str, Any],
    headers: Mapping[str, Tensor] | None = None,
    quantize: Quantize | None = None,
    path: Path = Path("config.json"),
) -> Architecture:
    """The architecture that a config states; with the weights' headers, matrices and types are those that are there.

    A recipe's `quantize` applies to matrices that are not quantized already and whose inputs are whole groups.

    Raises:
        ModelError: a field that a decoder has is missing, or is not what it is in others.
    """
    stated = config.get("quantization") or config.get("quantization_config") or {}
    try:
        shapes, assumed = _decoder(text_config(config))
        rest = (quantize.bits, quantize.group_size) if quantize else (0, 1)
        if not headers and isinstance(stated.get("bits"), int) and isinstance(stated.get("group_size"), int):
            rest = stated["bits"], stated["group_size"]
        return Architecture(**shapes, **_weights(headers or assumed, stated, *rest))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        what = f"does not describe a decoder: {one_line(str(error))}"
        raise ModelError(what, "memory cannot be planned for it", path=path) from None


def _decoder(text: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The shapes that config.json tells, and the headers that a decoder of llama's kind with them has."""

    def number(*names: str, needed: bool = False) -> int:
        size = next((int(text[name]) for name in names if text.get(name)), 0)
        if needed and size < 1:
            raise LookupError(f"lacks `{names[0]}`")
        return size

    hidden, heads = number("hidden_size", "n_embd", needed=True), number("num_attention_heads", "n_head", needed=True)
    layers, vocabulary = number("num_hidden_layers", "n_layer", needed=True), number("vocab_size", needed=True)
    # The MLP: one, or `many` experts of which a token passes some.
    many = number("num_experts", "num_local_experts", "n_routed_experts")
    active, expert = number("num_experts_per_tok"), number("moe_intermediate_size")
    experts = active * expert + number("shared_expert_intermediate_size") if active * expert else 0
    inner = experts if experts > 0 else number("intermediate_size", "n_inner", needed=True)
    head = number("head_dim") or hidden // heads
    queries, keys = heads * head, (number("num_key_value_heads") or heads) * head
    # Each layer attends or, with linear attention, keeps a state.
    kinds = [str(kind) for kind in text.get("layer_types") or ()]
    attending = sum(kind.endswith("attention") and not kind.startswith("linear") for kind in kinds)
    states = [number(f"linear_{name}") for name in ("num_value_heads", "key_head_dim", "value_head_dim")]
    if states[0] and not kinds:
        attending = layers // (number("full_attention_interval") or layers)
    windows = "sliding_attention" in kinds or text.get("sliding_window_pattern") or text.get("attn_logit_softcapping")
    unusual = {
        "a mixture of experts": many,
        "linear attention layers": states[0] or "linear_attention" in kinds,
        STATE_SPACE: "ssm_cfg" in text or "mamba_d_state" in text,
    }
    shapes = {
        "hidden": hidden,
        "layers": layers,
        "intermediate": inner,
        "heads": heads,
        "kv_width": keys,
        "vocabulary": vocabulary,
        "attending": attending or layers,
        "state": math.prod(states),
        "active": active or 1,
        "is_causal": not windows,
        "unusual": tuple(kind for kind, found in unusual.items() if found),
    }
    stack, width = ((many,), expert or inner) if many else ((), inner)
    inside = {
        **{f"self_attn.{name}_proj": (size, hidden) for name, size in (("q", queries), ("k", keys), ("v", keys))},
        "self_attn.o_proj": (hidden, queries),
        **{f"mlp.{name}_proj": (*stack, width, hidden) for name in ("gate", "up")},
        "mlp.down_proj": (*stack, hidden, width),
    }
    names = {f"model.layers.{n}.{name}": size for n in range(layers) for name, size in inside.items()}
    names["model.embed_tokens"] = (vocabulary, hidden)
    if not text.get("tie_word_embeddings", False):
        names["lm_head"] = (vocabulary, hidden)
    norms = {"norms": Tensor("BF16", (2 * hidden * layers,))}
    return shapes, norms | {f"{name}.weight": Tensor("BF16", size) for name, size in names.items()}


def _weights(headers: Mapping[str, Tensor], stated: Mapping[str, Any], bits: int, group: int) -> dict[str, Any]:
    """The matrices that the headers tell. Quantized ones have scales beside them; others get `bits` if they can.

    `stated`: the config's quantization, with one group size for all layers, and others under the names of some.
    """
    matrices, known = [], 0
    for name, tensor in headers.items():
        base, dot, last = name.rpartition(".")
        if last != "weight" or not dot or len(tensor.shape) < 2 or "conv" in base.rpartition(".")[2]:
            continue
        inputs = tensor.shape[-1]
        how = (0, 1) if inputs % group else (bits, group)
        beside = [headers[f"{base}.{part}"] for part in ("scales", "biases") if f"{base}.{part}" in headers]
        if f"{base}.scales" in headers:  # (outputs, inputs / group)
            own = stated.get(base)
            size = (own if isinstance(own, dict) and "group_size" in own else stated).get("group_size", 64)
            inputs = beside[0].shape[-1] * size
            how = tensor.shape[-1] * 32 // inputs, size  # bits of each number in the packed 32-bit words
        experts = tensor.shape[0] if len(tensor.shape) == 3 else 1
        matrices.append(Matrix(base, math.prod(tensor.shape[:-1]), inputs, *how, experts))
        known += tensor.size + sum(part.size for part in beside)
    kind = next((tensor.kind for tensor in headers.values() if tensor.kind in ("F64", "F32", "F16", "BF16")), "BF16")
    others = sum(tensor.size for tensor in headers.values()) - known
    return {"matrices": tuple(matrices), "other_numbers": others, "float_bytes": BYTES[kind]}
