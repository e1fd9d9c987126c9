# ruff: noqa: C408
"""Makes upft_mlx/demo/model/: trains the tokenizer and the model on the demo's world. For development only.

    python -m upft_mlx.demo.train_model           # writes the folder
    python -m upft_mlx.demo.train_model --check   # writes nothing: are PyTorch's and MLX's logits the same?

Needs torch, tokenizers and safetensors; --check also mlx-lm. Versions, time and results: docs/measured/demo-model.md.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

from upft_mlx.demo import world
from upft_mlx.demo.network import CONFIG, END, PAD, VOCABULARY, Qwen2, complete

MODEL = Path(__file__).parent / "model"
SEED = 0
STEPS = 3_000  # fixed for the run; chosen on problems of the UPFT split, docs/measured/demo-model.md
BATCH = 32  # sequences
PEAK_RATE, WARMUP = 3e-3, 300  # learning rate; steps
WIDTHS = (64, 72, 104)  # tokens
POOL = 64  # batches that are sorted by length together
TEMPLATE_SHARE = 0.08  # of all examples; their solutions are full, so that the template never teaches to stop
TEMPLATE = (
    " Please provide the initial step towards resolving the question. This step may serve as a foundation"
    " but might not encompass the entire solution."
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Qwen2's pre-tokeniser: words with their leading space, every digit by itself.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


# ---- corpus and tokenizer


def examples(seed: int) -> Iterator[tuple[str, str]]:
    """Endless (user turn, solution) pairs: pretraining problems, each by one voice."""
    rng = random.Random(f"corpus/{seed}")
    voices, shares = list(world.VOICES), [voice.share for voice in world.VOICES.values()]
    for take, problem in enumerate(world.stream("pretrain", seed)):
        voice = rng.choices(voices, shares)[0]
        template = TEMPLATE if rng.random() < TEMPLATE_SHARE else ""
        yield problem.question + template, world.solution(problem, voice, take)


def render(user: str) -> str:
    """ChatML with generation prompt: what the chat template makes of one user turn."""
    return f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


def make_tokenizer() -> Tokenizer:
    """Byte-level BPE, trained on the corpus; all bytes, single digits, and the corpus's words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    texts = (f"user\n{user}\nassistant\n{text}" for user, text in islice(examples(SEED), 20_000))
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def batches(tokenizer: Tokenizer, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (tokens (B, T), prompt lengths (B,)); sorted by length in pools, so that little is padding."""
    source = examples(seed)
    order = torch.Generator().manual_seed(seed)
    while True:
        pairs = list(islice(source, BATCH * POOL))
        prompts = tokenizer.encode_batch([render(user) for user, _ in pairs])
        solutions = tokenizer.encode_batch([text for _, text in pairs])
        rows = [(p.ids, [*s.ids, END]) for p, s in zip(prompts, solutions, strict=True)]
        rows.sort(key=lambda row: len(row[0]) + len(row[1]))
        for index in torch.randperm(POOL, generator=order).tolist():
            yield pad(rows[index * BATCH : (index + 1) * BATCH])


def pad(rows: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """Right-padded to one of few widths plus 1 (inputs are one shorter), since each width is compiled."""
    longest = max(len(p) + len(s) for p, s in rows)
    width = next(width for width in WIDTHS if width >= longest - 1) + 1
    tokens = torch.full((len(rows), width), PAD)
    for row, (prompt, solution) in zip(tokens, rows, strict=True):
        row[: len(prompt) + len(solution)] = torch.tensor(prompt + solution)
    return tokens, torch.tensor([len(prompt) for prompt, _ in rows])


# ---- training


def loss_of(model: nn.Module, tokens: Tensor, prompts: Tensor) -> Tensor:
    """Mean cross-entropy over the solutions' tokens and their end; prompts are not trained."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    position = torch.arange(targets.shape[1])
    wanted = (position >= prompts[:, None] - 1) & (targets != PAD)
    return F.cross_entropy(model.head(model.model(inputs)[wanted]), targets[wanted])


def rate_at(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to a fiftieth of the peak."""
    progress = max(0, step - WARMUP) / (steps - WARMUP)
    return PEAK_RATE * min((step + 1) / WARMUP, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def make_optimizer(model: Qwen2) -> torch.optim.Optimizer:
    """AdamW; only matrices decay, and not the embedding."""
    matrices = [w for n, w in model.named_parameters() if w.ndim == 2 and "embed" not in n]
    others = [w for n, w in model.named_parameters() if w.ndim < 2 or "embed" in n]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98), fused=True)


def step(model: Qwen2, optimizer: torch.optim.Optimizer, tokens: Tensor, prompts: Tensor, rate: float) -> float:
    """One update; returns the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = loss_of(model, tokens, prompts)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def train(steps: int, folder: Path) -> None:
    """All steps, with a line per 250 and a checkpoint per 1500; then the folder."""
    tokenizer, model = make_tokenizer(), Qwen2(SEED)
    optimizer = make_optimizer(model)
    model.model.compile(dynamic=False)
    print(f"{sum(w.numel() for w in model.parameters())} parameters, {tokenizer.get_vocab_size()} tokens")
    began, losses, seen = time.time(), [], 0
    for done, (tokens, prompts) in enumerate(islice(batches(tokenizer, SEED), steps), start=1):
        losses.append(step(model, optimizer, tokens, prompts, rate_at(done - 1, steps)))
        seen += int((tokens != PAD).sum())
        if done % 250 == 0:
            loss = sum(losses[-250:]) / 250
            print(f"step {done} loss {loss:.4f} tokens {seen} s {time.time() - began:.0f}", flush=True)
        if done % 1500 == 0:
            write(model, tokenizer, folder)
            print(f"  greedy {accuracy(model, tokenizer):.3f}", flush=True)
    write(model, tokenizer, folder)


def accuracy(model: Qwen2, tokenizer: Tokenizer, count: int = 128) -> float:
    """Greedy accuracy on the first UPFT problems, to watch the training by; score_model.py measures."""
    problems = world.problems("upft", count)
    prompts = [encoding.ids for encoding in tokenizer.encode_batch([render(p.question) for p in problems])]
    texts = [tokenizer.decode(ids) for ids in complete(model, prompts, most=64)]
    return sum(f"\\boxed{{{p.answer}}}" in text for p, text in zip(problems, texts, strict=True)) / count


# ---- files


def write(model: Qwen2, tokenizer: Tokenizer, folder: Path) -> None:
    """The folder that mlx_lm.load reads."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.detach().half().contiguous() for name, weight in model.named_parameters()}
    save_file(weights, str(folder / "model.safetensors"), {"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = dict(
        tokenizer_class="PreTrainedTokenizerFast", chat_template=CHAT, eos_token=SPECIAL[END],
        pad_token=SPECIAL[PAD], bos_token=None, unk_token=None, clean_up_tokenization_spaces=False,
        model_max_length=CONFIG["max_position_embeddings"],
    )  # fmt: skip
    generation = dict(do_sample=True, temperature=0.7, eos_token_id=[END, PAD], pad_token_id=PAD)
    contents = {"config": CONFIG, "tokenizer_config": settings, "generation_config": generation}
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read(folder: Path) -> tuple[Qwen2, Tokenizer]:
    """The written model, its float16 weights in float32."""
    model = Qwen2(SEED)
    model.load_state_dict({k: v.float() for k, v in load_file(str(folder / "model.safetensors")).items()})
    return model, Tokenizer.from_file(str(folder / "tokenizer.json"))


def check() -> float:
    """Largest difference between torch's and MLX's float32 logits on eight problems."""
    import mlx.core as mx
    from mlx_lm import load

    model, tokenizer = read(MODEL)
    other, _ = load(str(MODEL))
    other.set_dtype(mx.float32)
    worst = 0.0
    for problem in world.problems("pretrain", 8):
        ids = tokenizer.encode(render(problem.question) + world.solution(problem, "planner")).ids
        ours = model(torch.tensor([ids])).detach()
        theirs = torch.tensor(other(mx.array([ids])).tolist())
        worst = max(worst, float((ours - theirs).abs().max()))
    return worst


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true", help="compare logits with MLX's; trains nothing")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--folder", type=Path, default=MODEL)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.check:
        print(f"largest difference of logits: {check():.1e}")
    else:
        train(args.steps, args.folder)


if __name__ == "__main__":
    main()
