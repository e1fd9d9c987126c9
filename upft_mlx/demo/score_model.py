# mypy: ignore-errors
# ruff: noqa: C408
"""Scores upft_mlx/demo/model/ in MLX: accuracy with intervals, openings, lengths. For development only.

    python -m upft_mlx.demo.score_model --split upft                # greedy, and samples at temperature 0.7
    python -m upft_mlx.demo.score_model --split upft --bits 8       # quantized, group size 32

Decisions about the model are made on the split "upft"; "evaluation" is scored once, for docs/measured/demo-model.md.
"""

import argparse
import math
import re
from collections import Counter
from pathlib import Path

import mlx.core as mx
from mlx_lm import load
from mlx_lm.generate import batch_generate
from mlx_lm.sample_utils import make_sampler
from mlx_lm.utils import quantize_model

from upft_mlx.demo import world

MODEL = Path(__file__).parent / "model"
MOST = 64  # tokens of a completion
COUNTS = {"upft": world.TRAIN_ROWS, "evaluation": world.TEST_ROWS}


def prepare(bits: int):
    """Model in float32 (float16 is slow on a CPU) and tokenizer; `bits` 0 leaves the weights whole."""
    model, tokenizer, config = load(str(MODEL), return_config=True)
    model.set_dtype(mx.float32)
    if bits:
        model, _ = quantize_model(model, config, group_size=32, bits=bits)
    return model, tokenizer


def complete(model, tokenizer, questions: list[str], temperature: float) -> list[tuple[str, int]]:
    """Text and length (tokens) of one completion per question."""
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
        for question in questions
    ]
    sizes = dict(completion_batch_size=128, prefill_batch_size=32)
    options = dict(max_tokens=MOST, return_token_ids=True, sampler=make_sampler(temperature))
    response = batch_generate(model, tokenizer, prompts, **options, **sizes)
    return [(tokenizer.decode(ids), len(ids)) for ids in response.token_ids]


def is_right(text: str, problem: world.Problem) -> bool:
    """Does the completion end with the boxed answer?"""
    return text.rstrip().endswith(f"\\boxed{{{problem.answer}}}")


def opening(text: str, problem: world.Problem) -> str:
    """The voice that a completion opens with; stepper and hasty are told apart by the first operation."""
    voice, operations = world.voice_of(text), re.findall(r"\d([-+*/])\d", text)
    if voice != "first" or not operations:
        return voice
    return "first, right" if operations[0] == world.KINDS[problem.kind].first else "first, wrong"


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share."""
    z = 1.96
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)


def shares(names: list[str], right: list[bool]) -> dict[str, str]:
    """For each name its share of all and the accuracy within it."""
    counts, hits = Counter(names), Counter(name for name, hit in zip(names, right, strict=True) if hit)
    return {name: f"{counts[name] / len(names):.3f}: {hits[name] / counts[name]:.3f}" for name in sorted(counts)}


def report(model, tokenizer, split: str, count: int, temperature: float) -> None:
    """Prints the accuracy at one temperature, by kind and by opening."""
    problems = world.problems(split, count)
    completions = complete(model, tokenizer, [problem.question for problem in problems], temperature)
    texts = [text for text, _ in completions]
    right = [is_right(text, problem) for text, problem in zip(texts, problems, strict=True)]
    low, high = wilson(sum(right) / count, count)
    lengths = [length for _, length in completions]
    print(f"{split} T={temperature}: {sum(right) / count:.3f} [{low:.3f}, {high:.3f}] n={count}")
    print("  kinds   ", shares([problem.kind for problem in problems], right))
    print("  openings", shares(list(map(opening, texts, problems)), right))
    print(f"  tokens   {sum(lengths) / count:.1f}, cut {lengths.count(MOST)}", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--split", choices=COUNTS, default="upft")
    parser.add_argument("--bits", type=int, choices=[0, 4, 8], default=0)
    parser.add_argument("--limit", type=int, default=0, help="problems; 0 takes all")
    parser.add_argument("--samples", type=int, default=2, help="samples per problem at temperature 0.7")
    args = parser.parse_args()
    model, tokenizer = prepare(args.bits)
    count = args.limit or COUNTS[args.split]
    report(model, tokenizer, args.split, count, 0.0)
    for seed in range(args.samples):
        mx.random.seed(seed)
        report(model, tokenizer, args.split, count, 0.7)


if __name__ == "__main__":
    main()
