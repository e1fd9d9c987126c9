"""Peak memory of sampling, training and fusing by formula, before anything is loaded.

The terms are what a step must hold; how many copies of each MLX holds at its peak was measured and fitted
(`perf/plan_memory.py`, MLX 0.32.4 on the CPU, errors in docs/use/planning.md). Nothing of it has been seen on Metal,
whose attention is taken from MLX's source: see `Machine.attends_in_blocks`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from upft_mlx.models.architecture import Architecture
from upft_mlx.recipe.schema import Lora
from upft_mlx.sampling.chunks import prompts_per_wave
from upft_mlx.training.batches import chunk_positions

CACHE_STEP = 256
"""Tokens by which mlx-lm's key-value caches grow."""
OPTIMIZER_COPIES = 3
"""Copies of the adapter in float32, in memory and in a checkpoint: itself and AdamW's two moments."""
MOMENTS_BLOCK, MOMENTS_BYTES = 1024, 2**30
"""Columns of a block of second moments, and bytes of them that fitted rounding holds at once (`fusing/moments.py`)."""
PROBED_ROWS, ROW_POSITIONS, PROBED_PROMPTS, GREEDY_TOKENS, PROBED_TOGETHER = 16, 16, 12, 32, 2
"""What a fused model is compared on (`fusing/fidelity.py`): rows, positions of each, prompts, tokens of each greedy
completion, and sequences in a batch. The adapter's log-probabilities of all are held, vocabulary wide."""
BLOCK = 512
"""Positions whose scores attention in blocks holds at once."""

# How many copies of each term MLX holds at its peak; fitted by perf/plan_memory.py.
SAVED = {"hidden": 7.44, "kv": 0.41, "mlp": 4.96, "rank": 10.56, "joined": 1.07, "scores": 0.63, "cast": 0.47}
"""Copies that a layer with an adapter keeps for the backward pass."""
BACKWARD = {"hidden": 7.70, "mlp": 9.04, "kv": 1.44}
"""Copies in the layer whose gradients are computed."""
HEAD, CHUNK = {"logits": 6.84, "hidden": 9.81}, 9.2
"""Copies at the end of the forward pass, and of one chunk's logits if there are several (at 151,936 tokens)."""
REST = {"lowest": 2.11, "update": 1.50}
"""`lowest`: what the lowest layer with an adapter need not hold, since nobody asks for the gradient of its inputs;
`update`: adapters' worth of temporaries in the update."""
PASSED = {"layers": 1.94, "hidden": 1.11, "mlp": 1.7, "scores": 1.76}
"""While a wave of prompts is passed: layers whose caches are held twice, and copies in the layer at work."""
DECODED = {"layers": 1.0, "logits": 4.0}
"""While a batch begins or is joined: layers whose caches are held twice; copies when the next tokens are drawn."""
STATES, EXPERTS = {"saved": 1.7, "backward": 3.0}, 2.9
"""Copies of the states of all positions of a linear attention layer, and of what the active experts take in: measured
on Qwen3-Next's and Qwen3 MoE's layers, 4 bits, float32 (`tests/planning/test_budget.py`)."""


@dataclass(frozen=True)
class Machine:
    """Where a recipe runs, and the memory that it may take."""

    is_gpu: bool
    bytes: int = 0
    """What a run may take."""
    what: str = ""
    """`bytes` in words."""
    whole: int = 0
    """All of the machine's memory (bytes); UPFT_MEMORY_GB where that is set."""
    dense_bytes: int = 0
    """What dense copies of quantized layers may take, where there are any: on the CPU (`models/cpu_layers.py`)."""
    attends_in_blocks: bool = False
    """Whether causal attention holds the scores of some positions at a time, in the backward pass too: on Metal from
    MLX 0.32.4 on (its `sdpa_vjp_blocked`; that of 0.32.2 computes all)."""

    def number(self, model: Architecture) -> int:
        """Bytes of a floating number in weights, activations and caches: in the CPU's memory all have 32 bits."""
        return model.float_bytes if self.is_gpu else 4

    def weight_bytes(self, model: Architecture, number: int) -> int:
        """Bytes of the loaded model, where floating numbers have `number`."""
        return model.weight_bytes(number) + min(model.dense_bytes(), self.dense_bytes)


@dataclass(frozen=True)
class TrainingPass:
    """A (micro-)batch: sequences, tokens of each behind those that all share, and supervised positions, all padded; and
    whether the step has other passes, so that their gradients are held as well.
    """

    sequences: int
    tokens: int
    shared: int
    rows: int
    accumulates: bool


@dataclass(frozen=True)
class SamplingLoad:
    """A chunk: completions decoded together, prompts, samples of each, tokens of a long one and the first that all
    share, tokens decoded at most; and whether all are decoded, as prefixes are: a batch is gone before others join.
    """

    batch_size: int
    prompts: int
    samples: int
    prompt_tokens: int
    shared: int
    max_tokens: int
    end_together: bool = False


def training_peak(model: Architecture, lora: Lora, one: TrainingPass, machine: Machine, *, checkpoint: bool) -> float:
    """Peak bytes of a training step whose largest pass is `one`.

    `checkpoint`: whether layers are computed again in the backward pass (`shared` is 0 then).
    """
    number, adapter = machine.number(model), 4 * model.adapter_numbers(lora)
    layers = model.layers if lora.num_layers < 0 else min(model.layers, lora.num_layers)
    hidden, mlp, kv = model.hidden, model.intermediate, model.kv_width
    tokens, span = one.sequences * one.tokens, one.tokens + one.shared
    passed, blocks = tokens + one.shared, machine.attends_in_blocks and model.is_causal
    # What a layer keeps for the backward pass: any, one with attention more, one with linear attention more.
    kept = number * passed * (SAVED["hidden"] * hidden + SAVED["kv"] * kv + SAVED["mlp"] * mlp)
    kept += number * passed * EXPERTS * model.active * hidden if model.active > 1 else 0
    kept += 4 * passed * SAVED["rank"] * lora.rank
    if one.shared:  # the shared keys and values are joined with each sequence's own
        kept += number * SAVED["joined"] * one.sequences * span * kv
    if number < 4:  # an adapter's input is cast to float32
        kept += 4 * SAVED["cast"] * passed * (6 * hidden + mlp)
    scores = 0.0 if blocks else 4 * SAVED["scores"] * one.sequences * model.heads * one.tokens * span
    states = 4 * STATES["saved"] * passed * model.state
    # What the layer whose gradients are computed, or the head, holds beside that.
    backward = BACKWARD["hidden"] * hidden + BACKWARD["mlp"] * mlp + BACKWARD["kv"] * kv
    backward = 4 * tokens * (backward + STATES["backward"] * model.state)
    if blocks:
        backward += 4 * one.sequences * model.heads * min(BLOCK, one.tokens) * span
    rows = min(HEAD["logits"] * one.rows, CHUNK * chunk_positions(model.vocabulary))
    head = 4 * rows * model.vocabulary + HEAD["hidden"] * number * tokens * hidden
    if checkpoint:  # the inputs of all layers, of which the one that is computed again keeps its own in `kept`
        held = (layers - 1) * number * tokens * hidden + max(kept + max(scores, states) + backward, head)
    else:
        share = model.attending / model.layers
        lowest = REST["lowest"] * number * tokens * (hidden + kv + mlp)
        held = layers * (kept + share * scores + (1 - share) * states) + max(backward, head) - lowest
    optimizer = (OPTIMIZER_COPIES + one.accumulates) * adapter
    return machine.weight_bytes(model, number) + optimizer + max(held, REST["update"] * adapter)


def sampling_peak(model: Architecture, load: SamplingLoad, machine: Machine, adapter_numbers: int = 0) -> float:
    """Peak bytes of sampling; `adapter_numbers` of an adapter on the model.

    A chunk's prompts are passed in waves, each of which leaves their caches; when there are enough of them, a batch is
    made of them and decoded (`sampling/sampler.py`). So the peak is where a wave is passed beside what is there by
    then, or where a batch begins: its caches are made a layer at a time, beside those of the prompts. Completions that
    join a batch take the place of others, and need no more than that.
    """
    number, prompt, own = machine.number(model), load.prompt_tokens, load.prompt_tokens - load.shared
    active = min(load.batch_size, load.prompts * load.samples)
    wave = min(load.prompts, prompts_per_wave(load.batch_size, load.samples))
    first = min(load.prompts, wave * (load.batch_size // (wave * load.samples) + 1))  # prompts passed before a batch
    # Bytes of the caches of a sequence: while its prompt is passed, after that, decoded to the end.
    token = 2 * number * model.kv_width * model.attending
    state = 4 * model.state * (model.layers - model.attending)
    padded = state + token * (load.shared + CACHE_STEP * math.ceil(own / CACHE_STEP))
    passed = state + token * prompt
    batch = active * (passed + token * CACHE_STEP * math.ceil(load.max_tokens / CACHE_STEP))
    work = _passing_bytes(model, machine, number, own, prompt)
    passing = padded + max(passed, work + min(1, PASSED["layers"] / model.attending) * padded)
    copied, drawn = DECODED["layers"] / model.attending * batch, 4 * DECODED["logits"] * active * model.vocabulary
    later = 0 if load.end_together else min(wave, load.prompts - first)
    total = max(
        (first - wave) * passed + wave * passing,
        batch + later * passing,
        batch + first * passed + max(copied, drawn),
    )
    return machine.weight_bytes(model, number) + 4 * adapter_numbers + total


def _passing_bytes(model: Architecture, machine: Machine, number: int, own: int, prompt: int) -> float:
    """What a layer takes while it is passed the last `own` positions of a prompt."""
    together = min(BLOCK, own) if machine.attends_in_blocks else own
    copies = number * own * (PASSED["hidden"] * model.hidden + PASSED["mlp"] * model.intermediate)
    return copies + 4 * PASSED["scores"] * model.heads * together * prompt


def fusing_peak(model: Architecture, lora: Lora, machine: Machine, prompt: int, *, all_float32: bool) -> float:
    """Peak bytes of fusing (`fusing/fuser.py`), which measures in float32 on every device.

    `prompt`: tokens of the longest one; `all_float32`: whether a 16-bit format is measured. Then all adapted layers are
    held in float32 beside the base's own. Otherwise the second copy has 8 bits with float32 scales and biases, or the
    base's numbers if it is not quantized.
    """
    adapted = model.adapted(lora)
    largest, all_numbers = max((matrix.size for matrix in adapted), default=0), sum(matrix.size for matrix in adapted)
    fused = sum(matrix.size * (1 + 8 / matrix.group if matrix.bits else 4) for matrix in adapted)
    moments = sum(4 * matrix.inputs * min(MOMENTS_BLOCK, matrix.inputs) for matrix in adapted if matrix.bits)
    fused = max(fused + min(MOMENTS_BYTES, moments), 4 * all_numbers * all_float32)
    positions = PROBED_ROWS * ROW_POSITIONS + PROBED_PROMPTS * (GREEDY_TOKENS + 1)
    compared, length = 4 * model.vocabulary * positions, prompt + GREEDY_TOKENS + 1
    drawn = 4 * DECODED["logits"] * model.vocabulary * (GREEDY_TOKENS + 1)
    passing = PROBED_TOGETHER * (_passing_bytes(model, machine, 4, length, length) + drawn)
    held = machine.weight_bytes(model, 4) + 4 * model.adapter_numbers(lora)
    return held + fused + compared + max(12 * largest, passing)
