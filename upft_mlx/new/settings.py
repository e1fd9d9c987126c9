"""The numbers of a new recipe, chosen from the facts about model and data. Pure; each has its reason next to it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from upft_mlx.errors import RecipeError
from upft_mlx.models.facts import ModelFacts
from upft_mlx.new.data_facts import DataFacts
from upft_mlx.planning.budget import MARGIN, another_mac
from upft_mlx.planning.memory import TrainingPass, fusing_peak, training_peak
from upft_mlx.recipe.schema import Lora

_SMALL_SET = 1000
"""Maximum number of problems for which the paper's settings for LIMO (817) are used."""
_CHARACTERS = 2.5
"""Characters per token, low on purpose: formulas have many tokens."""
_MAC = another_mac(16)
"""The Mac a recipe should fit on if its model does. Fixed, so that the file is the same on every machine."""


@dataclass(frozen=True)
class NewSettings:
    """What `upft new` writes, and why."""

    thinks: bool
    """Whether solutions begin with a long thought."""
    enable_thinking: bool | None
    """The chat template's switch; None if it has none."""
    length: int
    """`prefix.length` (tokens)."""
    structure_ratio: float
    epochs: int
    max_tokens: int
    """`generate.max_tokens` of a full solution."""
    max_length: int | None
    """`train.max_length` (tokens); None: the default is enough."""
    trained_together: int
    """`train.batch_size` (sequences)."""
    grad_checkpoint: bool
    step_bytes: int | None
    """Peak bytes of a step with the longest row, without checkpointing; None: unknown."""
    fuse: str
    """`publish.fuse`."""
    fuse_bytes: int | None
    """Peak bytes of fusing in 16 bits, the worst case of `auto`; None: unknown."""


def choose_settings(model: ModelFacts, data: DataFacts, trained: int | None, *, thinking: bool) -> NewSettings:
    """The numbers for a model and `trained` problems (None: not known).

    Raises:
        RecipeError: `thinking` is asked for, and the chat template has no switch.
    """
    if thinking and model.thinking == "never":
        raise RecipeError(
            "the model's chat template has no `enable_thinking`", "leave the option out", field="--thinking"
        )
    thinks = model.thinking == "always" or thinking
    small = trained is not None and trained <= _SMALL_SET
    max_tokens = 8192 if thinks else 1024
    if model.context:  # at most half of it
        max_tokens = min(max_tokens, max(1, model.context // 2))
    prompt = math.ceil(data.longest / _CHARACTERS) + 128
    longest = prompt + max_tokens
    step = sixteen = None
    if model.shape is not None:  # a step with one full-solution row, run through the model alone; fusing in 16 bits
        row = TrainingPass(sequences=1, tokens=longest, shared=0, rows=max_tokens, accumulates=True)
        step = round(training_peak(model.shape, Lora(), row, _MAC, checkpoint=False))
        sixteen = round(fusing_peak(model.shape, Lora(), _MAC, prompt, all_float32=True))
    return NewSettings(
        thinks=thinks,
        enable_thinking=thinking if model.thinking == "switch" else None,
        length=min(128 if thinks else 16, max_tokens),
        structure_ratio=0.3 if small else 0.1,
        epochs=3 if small else 1,
        max_tokens=max_tokens,
        max_length=256 * math.ceil(longest / 256) if longest > 2048 else None,
        trained_together=8 if trained is not None and trained < 320 else 16,
        grad_checkpoint=thinks or not _fits(step),
        step_bytes=step,
        fuse="auto" if _fits(sixteen) or model.bits is None else "mixed",
        fuse_bytes=sixteen,
    )


def _fits(peak: int | None) -> bool:
    """Whether it fits on a Mac with 16 GB; an unknown size counts as fitting, and `upft plan` checks it later."""
    return peak is None or peak <= MARGIN * _MAC.bytes
