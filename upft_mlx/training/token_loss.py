"""The negative log-likelihood of each supervised id, by a forward pass without gradients."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.nn as nn

from upft_mlx.training.batches import Example, split
from upft_mlx.training.loss import Modes, supervised_nats, to_arrays


def token_losses(model: nn.Module, examples: Sequence[Example], modes: Modes, shared: int = 0) -> list[list[float]]:
    """Nats of each supervised id of each example.

    Args:
        model: as it is now; dropout is off while it is asked.
        examples: rows.
        modes: how the model computes its logits.
        shared: number of tokens that all examples begin with; 0 where the modes do not share.
    """
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].ids))
    nats: list[float] = []
    training = model.training
    model.eval()
    for batch in split([examples[index] for index in order], None, shared) if examples else []:
        count = int((batch.weights > 0).sum())
        shared_ids, tokens, positions, targets, _ = to_arrays(batch)
        found = supervised_nats(model, shared_ids, tokens, positions[:count], targets[:count], modes)  # (N,)
        nats += found.tolist()  # type: ignore[arg-type]
    model.train(training)
    parts = iter(nats)
    by_index = {index: [next(parts) for _ in range(examples[index].supervised)] for index in order}
    return [by_index[index] for index in range(len(examples))]
