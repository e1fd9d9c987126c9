"""Writes the tables of docs/macs.md, between its markers, from the models' shapes: python docs/make_memory_tables.py

Bytes by first principles: what the weights, the keys and values of a token, the adapter and the inputs of the linear
layers must take. What a program takes beside it (temporary arrays, the logits, MLX's cache) is not in them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

GB = 1e9
GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """The numbers of a model's config.json that its bytes depend on."""

    name: str
    hidden: int
    """`hidden_size`."""
    feed: int
    """`intermediate_size`."""
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    """Whether the head is the embedding."""
    biases: bool
    """Whether q_proj, k_proj and v_proj have a bias (Qwen2 does, Llama does not)."""
    head: int = 128
    """Values per head."""

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the linear layers of one layer: q, k, v, o, gate, up, down."""
        q, kv = self.heads * self.head, self.kv_heads * self.head
        h, f = self.hidden, self.feed
        return [(h, q), (h, kv), (h, kv), (q, h), (h, f), (h, f), (f, h)]

    @property
    def quantized(self) -> int:
        """Weights in matrices, which quantization makes smaller; the embedding is one."""
        return self.tables + self.linear

    @property
    def linear(self) -> int:
        """Weights of the linear layers inside the layers: those that get an adapter by default."""
        return self.layers * sum(i * o for i, o in self.matrices)

    @property
    def tables(self) -> int:
        """Weights of the embedding and the head."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def plain(self) -> int:
        """Norms and biases, which stay 16 bits."""
        biases = (self.heads + 2 * self.kv_heads) * self.head if self.biases else 0
        return self.layers * (2 * self.hidden + biases) + self.hidden

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.quantized + self.plain

    def weights(self, bits: int, group: int = 64) -> float:
        """Bytes in memory and, nearly, on disk: a group of weights shares a scale and a bias of 16 bits each."""
        per_weight = bits / 8 + (4 / group if bits < 16 else 0)
        return self.quantized * per_weight + self.plain * 2

    @property
    def kv(self) -> int:
        """Bytes of keys and values for one token, 16 bits."""
        return 2 * self.layers * self.kv_heads * self.head * 2

    def adapter(self, rank: int = 16) -> int:
        """Bytes of the adapter, its gradient and AdamW's two moments, float32."""
        return 4 * 4 * self.layers * rank * sum(i + o for i, o in self.matrices)

    @property
    def fused_in_16_bits(self) -> float:
        """Bytes while a 16-bit way of fusing a 4-bit base is measured: the touched layers are float32 then."""
        return self.linear * 4 + self.tables * 4.5 / 8

    @property
    def inputs(self) -> int:
        """Bytes of the linear layers' inputs for one token, 16 bits: the backward pass needs them all."""
        q = self.heads * self.head
        return 2 * self.layers * (2 * self.hidden + q + self.feed)


SHAPES = (
    Shape("Qwen2.5 0.5B", 896, 4864, 24, 14, 2, 151_936, True, True, head=64),
    Shape("Qwen2.5 1.5B", 1536, 8960, 28, 12, 2, 151_936, True, True),
    Shape("Qwen2.5 3B", 2048, 11008, 36, 16, 2, 151_936, True, True),
    Shape("Qwen2.5 7B", 3584, 18944, 28, 28, 4, 152_064, False, True),
    Shape("Llama 3.1 8B", 4096, 14336, 32, 32, 8, 128_256, False, False),
    Shape("Qwen2.5 14B", 5120, 13824, 48, 40, 8, 152_064, False, True),
    Shape("Qwen2.5 32B", 5120, 27648, 64, 40, 8, 152_064, False, True),
)
MACS = {8: 2 / 3, 16: 2 / 3, 24: 2 / 3, 36: 2 / 3, 64: 3 / 4, 128: 3 / 4}
"""GiB of memory, and the share of it that is taken for the working set."""
BITS = (16, 8, 4)
SEQUENCES, FEW, TOKENS = 32, 8, 1024 + 200
"""`generate.batch_size` by default and a smaller choice; `generate.max_tokens` with a prompt of 200 tokens."""
PASS = 512
"""Tokens that training passes at a time by default."""
FILL = 0.7
"""Share of the working set that what is counted may take; the rest is for what is not."""


def weights_table() -> str:
    """Bytes of the weights by bits."""
    rows = ["| model | parameters | 4 bits | 8 bits | 16 bits |", "|---|---|---|---|---|"]
    for shape in SHAPES:
        sizes = " | ".join(f"{shape.weights(bits) / GB:.2f} GB" for bits in (4, 8, 16))
        rows.append(f"| {shape.name} | {shape.parameters / 1e9:.2f} billion | {sizes} |")
    return "\n".join(rows)


def rest_table() -> str:
    """What sampling and training need beside the weights."""
    rows = [
        f"| model | KV cache per token | {SEQUENCES} x {TOKENS:,} tokens | adapter, gradient, moments "
        f"| inputs per token | {PASS} tokens | fusing in 16 bits |",
        "|---|---|---|---|---|---|---|",
    ]
    for shape in SHAPES:
        cells = (
            f"{shape.kv / 1024:.0f} KiB",
            f"{sampling(shape) / GB:.2f} GB",
            f"{shape.adapter() / GB:.2f} GB",
            f"{shape.inputs / 1e6:.2f} MB",
            f"{PASS * shape.inputs / GB:.2f} GB",
            f"{shape.fused_in_16_bits / GB:.1f} GB",
        )
        rows.append(f"| {shape.name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def sampling(shape: Shape, sequences: int = SEQUENCES) -> int:
    """Bytes of the KV cache when a batch is at its longest."""
    return sequences * TOKENS * shape.kv


def counted(shape: Shape, bits: int, sequences: int = SEQUENCES) -> float:
    """Bytes of the larger of sampling and training, as far as they are counted here."""
    training = shape.adapter() + PASS * shape.inputs
    return shape.weights(bits) + max(sampling(shape, sequences), training)


def most_bits(shape: Shape, room: float) -> str:
    """The most bits with which a model has room, by default or, marked, with few sequences at a time."""
    for sequences, mark in ((SEQUENCES, ""), (FEW, "*")):
        for bits in BITS:
            if counted(shape, bits, sequences) <= FILL * room:
                return f"{bits}{mark}"
    return "no"


def fits_table() -> str:
    """The most bits that each Mac has room for, by what is counted here."""
    rooms = {memory: memory * share * GIB for memory, share in MACS.items()}
    rows = [
        "| model | " + " | ".join(f"{memory} GB" for memory in rooms) + " |",
        "|---|" + "---|" * len(rooms),
        "| (working set, about) | " + " | ".join(f"{room / GIB:.1f} GiB" for room in rooms.values()) + " |",
    ]
    rows += [f"| {shape.name} | " + " | ".join(most_bits(shape, r) for r in rooms.values()) + " |" for shape in SHAPES]
    return "\n".join(rows)


def with_tables(text: str) -> str:
    """The page with its tables written anew."""
    for name, table in (("weights", weights_table()), ("rest", rest_table()), ("fits", fits_table())):
        pattern = rf"(<!-- {name} -->\n\n).*?(\n<!-- end -->)"
        text, count = re.subn(pattern, rf"\g<1>{table}\n\g<2>", text, flags=re.DOTALL)
        assert count == 1, f"docs/macs.md has {count} places for the table {name}"
    return text


if __name__ == "__main__":
    page = Path(__file__).with_name("macs.md")
    page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
