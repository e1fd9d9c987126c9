"""The matrix products that a training step cannot do without: counted, and timed one by one."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from turns import RANK, RATE, cpu, recipe

Products = dict[tuple[Any, ...], int]


def products(config: dict[str, Any], batch: int, length: int, shared: int, supervised: int) -> Products:
    """The matrix products of one step that nothing can spare, as (kind, sizes) and how often.

    Counted are: the frozen quantized matrices forward, and backward to their inputs, but for the first layer's
    q, k and v, whose inputs need no gradient; LoRA's two factors forward, their gradients and those of their inputs;
    attention's two products forward and four backward; the head at the supervised positions, forward and backward.
    Shared tokens go through once, and in the last layer only their keys and values are needed. Padding is counted as
    it is computed. Not counted is what is no matrix product: norms, rotations, softmax, activations, the optimizer.
    """
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or hidden // heads
    linear = {"q": (hidden, heads * size), "k": (hidden, groups * size), "v": (hidden, groups * size)}
    linear |= {"o": (heads * size, hidden), "gate": (hidden, inner), "up": (hidden, inner), "down": (inner, hidden)}
    found: Products = {}

    def add(*key: Any) -> None:
        found[key] = found.get(key, 0) + 1

    for layer in range(layers):
        for rows, last in ((batch * length, False), (shared, layer == layers - 1)):
            for name, (into, out) in linear.items() if rows else ():
                if last and name not in "kv":
                    continue
                add("forward", rows, into, out)
                add("dense", rows, into, RANK)
                add("dense", rows, RANK, out)
                add("dense", rows, out, RANK)  # to the inner activation
                add("dense", RANK, rows, out)  # to B
                add("dense", into, rows, RANK)  # to A
                if layer or name not in "qkv":
                    add("backward", rows, into, out)
                    add("dense", rows, RANK, into)
        for own, keys, copies in ((length, shared + length, batch), (shared if layer < layers - 1 else 0, shared, 1)):
            if own:
                for into, out in ((size, keys), (keys, size), (size, keys), (keys, size)):
                    add("attention", copies * heads, own, into, out)
                for _ in range(2):  # to keys and to values
                    add("attention", copies * heads, keys, own, size)
    add("head", supervised, hidden, config["vocab_size"])
    add("backward", supervised, hidden, config["vocab_size"])
    return found


def flop(key: tuple[Any, ...]) -> int:
    """Operations of one product; a multiplication and an addition are two."""
    total = 2
    for size in key[1:]:
        total *= size
    return total


def timed(key: tuple[Any, ...]) -> float:
    """CPU seconds of one product at its real shape and type, the mean of three after a first.

    Frozen matrices compute with their dense copies (upft_mlx/models/cpu_layers.py).
    """
    import mlx.core as mx

    kind, *sizes = key
    if kind in ("forward", "backward", "head"):
        rows, into, out = sizes
        weight = mx.random.normal((into, out))
        x = mx.random.normal((1, rows, out if kind == "backward" else into))
        mx.eval(weight, x)
        run = lambda: x @ (weight.T if kind == "backward" else weight)  # noqa: E731
    else:
        *stack, rows, into, out = sizes
        a, b = mx.random.normal((*stack, rows, into)), mx.random.normal((*stack, into, out))
        mx.eval(a, b)
        run = lambda: a @ b  # noqa: E731
    mx.eval(run())
    begin = cpu()
    for _ in range(3):
        mx.eval(run())
    return (cpu() - begin) / 3


def left_to_gain(rows: Path, options: argparse.Namespace, loaded: Any) -> dict[str, Any]:
    """CPU seconds of a step of middle length, and of the products that it cannot do without; measured in turns."""
    from upft_mlx.rows import TrainingRow, read_rows
    from upft_mlx.training.batches import split, steps_from, to_examples
    from upft_mlx.training.step import Stepper
    from upft_mlx.training.train import shared_length

    examples = to_examples(list(read_rows(rows, TrainingRow)), 2048)
    stepper = Stepper(loaded.model, recipe(options).train, shared=shared_length(examples))
    stream = steps_from(examples, options.batch, 0, 0)
    steps = sorted((next(stream)[1] for _ in range(options.steps)), key=lambda part: max(len(e.ids) for e in part))
    part = steps[len(steps) // 2]
    config, needed = loaded.config, Counter[tuple[Any, ...]]()
    batches = split(part, stepper.micro_batch_size, stepper.shared)
    for batch in batches:
        needed.update(products(config, *batch.tokens.shape, len(batch.shared), len(batch.positions)))
    stepper.step(part, RATE, 0)
    step, alone = [], []
    for seed in range(3):
        begin = cpu()
        stepper.step(part, RATE, seed)
        step.append(cpu() - begin)
        alone.append(sum(timed(key) * count for key, count in needed.items()))
    gflop = sum(flop(key) * count for key, count in needed.items()) / 1e9
    shapes = [list(batch.tokens.shape) for batch in batches]
    return {"step": sum(step) / 3, "products": sum(alone) / 3, "gflop": gflop, "shapes": shapes}
