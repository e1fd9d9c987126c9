"""The oracle of the loss, which knows neither batches nor modes, and models of other families with an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from helpers.family_configs import VOCABULARY, config_of, make
from upft_mlx.models.adapters import add_lora
from upft_mlx.models.load import Loaded
from upft_mlx.recipe.schema import Lora
from upft_mlx.training.batches import Example


def oracle(model: nn.Module, rows: Sequence[Example]) -> mx.array:
    """Row by row, unpadded, full logits, and the mask written out."""
    total = mx.array(0.0)
    for example in rows:
        logits = model(mx.array([list(example.ids)]))[0].astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        terms = [
            -logprobs[position - 1, token] for position, token in enumerate(example.ids) if position >= example.start
        ]
        total = total + sum(terms[1:], terms[0]) / len(terms)
    return total / len(rows)


def flat(gradients: Any) -> dict[str, np.ndarray[Any, Any]]:
    return {name: np.array(array) for name, array in dict(tree_flatten(gradients)).items()}


def family(name: str, **changes: Any) -> nn.Module:
    """A random model of a family with an adapter that does something; `changes` of its configuration."""
    model = make(config_of(name, VOCABULARY, **changes))
    add_lora(Loaded(model, None, {}, Path(), mx.float32), Lora(rank=4, scale=2.0), seed=1)
    for _, part in model.named_modules():
        if "lora_b" in part:
            part.lora_b = 0.1 * mx.random.normal(part.lora_b.shape)
    model.train()
    return model
