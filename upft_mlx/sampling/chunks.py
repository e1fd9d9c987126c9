"""How much is sampled at a time. The samplers work by these rules, and the memory plan counts with them.

A chunk's rows are written together: a small chunk loses less work to an interruption, a large one keeps the batch full
where lengths differ. The prompts of a chunk are run through the model in waves, each for all of its samples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

GENERATED_BATCHES = {"full": 4, "prefix": 2}
"""Batches per chunk of solutions."""
EVALUATED_BATCHES = 4
"""Batches per chunk of a benchmark's completions, at most."""
EVALUATED_CHUNKS = 8
"""Chunks of a benchmark, at least: the view of a small one has something to show."""
WAVE_PROMPTS = 8
"""Prompts per wave, at least."""
WAVES_PER_BATCH = 4
"""A wave with more prompts has this part of a batch."""


def generated_together(kind: Literal["prefix", "full"], batch_size: int, samples: int) -> int:
    """Problems per chunk of solutions, with `samples` each."""
    return math.ceil(GENERATED_BATCHES[kind] * batch_size / samples)


def evaluated_together(problems: int, batch_size: int, samples: int) -> int:
    """Problems per chunk of a benchmark of `problems`, with `samples` each."""
    batches = max(1, problems * samples // batch_size // EVALUATED_CHUNKS)
    return max(1, min(EVALUATED_BATCHES, batches) * batch_size // samples)


def is_wave(prompts: int, completions: int, batch_size: int) -> bool:
    """Whether this number of prompts, with this number of completions, is a whole wave."""
    return prompts >= WAVE_PROMPTS and WAVES_PER_BATCH * completions >= batch_size


def prompts_per_wave(batch_size: int, samples: int) -> int:
    """Prompts of a whole wave, with `samples` each."""
    return next(number for number in itertools.count(1) if is_wave(number, number * samples, batch_size))


def shared_start(sequences: Sequence[Sequence[int]], prompt_lengths: Sequence[int]) -> int:
    """How many tokens all sequences begin with, which the model needs to see only once.

    At least one prompt token stays with each sequence: the one whose logits predict its first token after the prompt.
    """
    first, last = min(sequences, key=list), max(sequences, key=list)  # what these begin with, all do
    pairs = zip(first, last, strict=False)
    common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    return max(0, min(common, min(prompt_lengths) - 1))
