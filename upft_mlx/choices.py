"""The numbers of a new recipe, from what is known of model and data. Pure; each has its reason beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from upft_mlx.data_facts import DataFacts
from upft_mlx.errors import RecipeError
from upft_mlx.model_facts import ModelFacts

_SMALL_SET = 1000
"""Problems up to which the paper's settings for LIMO (817) are taken."""
_CHARACTERS = 2.5
"""Per token, few on purpose: formulas have many tokens."""


@dataclass(frozen=True)
class Choices:
    """What `upft new` writes down, and why."""

    thinks: bool
    """Whether solutions begin with a long thought."""
    enable_thinking: bool | None
    """The chat template's switch; None where there is none."""
    length: int
    """`prefix.length` (tokens)."""
    structure_ratio: float
    epochs: int
    max_tokens: int
    """Of a full solution."""
    max_length: int | None
    """`train.max_length` (tokens); None: the default has room."""
    sampled_together: int
    """`batch_size` in sampling and evaluation (sequences)."""
    trained_together: int
    """`train.batch_size` (sequences)."""
    grad_checkpoint: bool


def choose(model: ModelFacts, data: DataFacts, trained: int | None, *, thinking: bool) -> Choices:
    """The numbers for a model and `trained` problems (None: not known).

    Raises:
        RecipeError: `thinking` is asked for, and the chat template has no switch.
    """
    if thinking and model.thinking == "never":
        raise RecipeError("--thinking: the model's chat template has no `enable_thinking`; leave the option out")
    thinks = model.thinking == "always" or thinking
    small = trained is not None and trained <= _SMALL_SET
    max_tokens = _within(model.context, 8192 if thinks else 1024)
    longest = math.ceil(data.longest / _CHARACTERS) + 128 + max_tokens
    return Choices(
        thinks=thinks,
        enable_thinking=thinking if model.thinking == "switch" else None,
        length=min(128 if thinks else 16, max_tokens),
        structure_ratio=0.3 if small else 0.1,
        epochs=3 if small else 1,
        max_tokens=max_tokens,
        max_length=256 * math.ceil(longest / 256) if longest > 2048 else None,
        sampled_together=_together(model.bytes, thinks=thinks),
        trained_together=8 if trained is not None and trained < 320 else 16,
        grad_checkpoint=thinks,
    )


def _within(context: int | None, tokens: int) -> int:
    """At most half of what the model can hold."""
    return min(tokens, max(1, context // 2)) if context else tokens


def _together(size: int | None, *, thinks: bool) -> int:
    """Fewer sequences for larger models, whose keys and values are larger, and for longer ones."""
    gigabytes = (size or 5e9) / 1e9
    batch = 32 if gigabytes < 1 else 16 if gigabytes < 4 else 8
    return max(4, batch // 2) if thinks else batch
