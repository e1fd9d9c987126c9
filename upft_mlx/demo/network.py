# mypy: ignore-errors
# ruff: noqa: C408, N806
# PyTorch is no dependency of the package, not even for development: nothing to check the types against.
"""The demo model in PyTorch: Qwen2, with the published format's parameter names. For development only.

PyTorch, since it trains several times faster than MLX on a CPU; `train_model --check` compares their logits.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAD, START, END = range(3)
VOCABULARY = 600
CONFIG = dict(
    model_type="qwen2", architectures=["Qwen2ForCausalLM"], hidden_size=64, num_hidden_layers=4,
    intermediate_size=192, num_attention_heads=4, num_key_value_heads=2, vocab_size=VOCABULARY,
    hidden_act="silu", rms_norm_eps=1e-6, rope_theta=10000.0, max_position_embeddings=512,
    initializer_range=0.02, attention_dropout=0.0, tie_word_embeddings=True, use_cache=True,
    bos_token_id=None, eos_token_id=END, pad_token_id=PAD, torch_dtype="float16",
)  # fmt: skip


class Norm(nn.Module):
    """Root mean square norm."""

    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + CONFIG["rms_norm_eps"]) * self.weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on x (B, heads, T, head size), in halves."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; biases on q, k and v."""

    def __init__(self) -> None:
        super().__init__()
        hidden, self.heads, self.kv = (
            CONFIG["hidden_size"],
            CONFIG["num_attention_heads"],
            CONFIG["num_key_value_heads"],
        )
        self.size = hidden // self.heads
        self.q_proj = nn.Linear(hidden, self.heads * self.size)
        self.k_proj = nn.Linear(hidden, self.kv * self.size)
        self.v_proj = nn.Linear(hidden, self.kv * self.size)
        self.o_proj = nn.Linear(self.heads * self.size, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # noqa: D102
        B, T, _ = x.shape
        q, k, v = (
            f(x).view(B, T, n, self.size).transpose(1, 2)
            for f, n in ((self.q_proj, self.heads), (self.k_proj, self.kv), (self.v_proj, self.kv))
        )
        k, v = (t.repeat_interleave(self.heads // self.kv, 1) for t in (rotate(k, cos, sin), v))
        out = F.scaled_dot_product_attention(rotate(q, cos, sin), k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).reshape(B, T, -1))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        hidden, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and feed-forward, each normed before."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(), FeedForward()
        self.input_layernorm = Norm(CONFIG["hidden_size"])
        self.post_attention_layernorm = Norm(CONFIG["hidden_size"])

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # noqa: D102
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    """Everything but the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, CONFIG["hidden_size"])
        self.layers = nn.ModuleList(Layer() for _ in range(CONFIG["num_hidden_layers"]))
        self.norm = Norm(CONFIG["hidden_size"])
        size = CONFIG["hidden_size"] // CONFIG["num_attention_heads"]
        rates = CONFIG["rope_theta"] ** (-torch.arange(0, size, 2) / size)
        angles = torch.outer(torch.arange(CONFIG["max_position_embeddings"]), rates)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:  # noqa: D102
        x, T = self.embed_tokens(tokens), tokens.shape[1]
        for layer in self.layers:
            x = layer(x, self.cos[:T], self.sin[:T])
        return self.norm(x)


class Qwen2(nn.Module):
    """Body and tied head, with seeded initial weights."""

    def __init__(self, seed: int):
        super().__init__()
        self.model = Body()
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:  # outputs into the residual stream start smaller, by 1 / sqrt(2 layers)
                into = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = 0.02 if "embed" in name else weight.shape[1] ** -0.5 * (8**-0.5 if into else 1)
                nn.init.normal_(weight, std=std, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def forward(self, tokens: Tensor) -> Tensor:  # noqa: D102
        return self.head(self.model(tokens))

    def head(self, x: Tensor) -> Tensor:
        """Logits of final hidden states."""
        return x @ self.model.embed_tokens.weight.T


@torch.no_grad()
def complete(model: Qwen2, prompts: list[list[int]], most: int) -> list[list[int]]:
    """Greedy completions (without end) of prompts; no cache, since the model is small."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    tokens = torch.full((len(prompts), int(lengths.max()) + most), PAD)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    at, every = lengths.clone(), torch.arange(len(prompts))
    done = torch.zeros(len(prompts), dtype=torch.bool)
    for _ in range(most):
        hidden = model.model.forward(tokens[:, : int(at.max())])[every, at - 1]  # not the compiled call
        following = model.head(hidden).argmax(-1)
        done |= (following == END) | (following == PAD)
        tokens[every[~done], at[~done]] = following[~done]
        at[~done] += 1
        if done.all():
            break
    return [row[start:end].tolist() for row, start, end in zip(tokens, lengths.tolist(), at.tolist(), strict=True)]
