"""Every mode of the loss on every family: the oracle's gradient, and a test that sees each mode broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any
from unittest.mock import patch

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from helpers.family_configs import EXACT as FAMILIES
from helpers.loss import family, flat, oracle
from mlx.utils import tree_map

from upft_mlx.models.families import SharedKeys
from upft_mlx.sampling.same_logits import scalar
from upft_mlx.training import loss as loss_module
from upft_mlx.training.batches import LEAST_POSITIONS, Example, make_batch, split
from upft_mlx.training.chunked_loss import Head, chunked_loss
from upft_mlx.training.loss import Modes, choose_modes, make_loss, to_arrays, value_and_grad

SHARED = 3
ROWS = [
    Example("prefix", [2, 3, 4, 5, 6, 7, 8, 9, 10, 11], start=6),
    Example("at the boundary", [2, 3, 4, *range(20, 27)], start=8),
    Example("structure", [2, 3, 4, *range(30, 47)], start=5),
    Example("shortest", [2, 3, 4, 50, 51], start=4),
]
MODES = {
    "all logits": (Modes(gather=False, share=False), None),
    "gathered": (Modes(share=False), None),
    "gathered and shared": (Modes(), None),
    "shared": (Modes(gather=False), None),
    "checkpointed": (Modes(share=False, checkpoint=True), None),
    "micro-batches of 3": (Modes(), 3),
    "chunked": (Modes(share=False, chunk=12), None),
    "chunked, shared, micro-batches of 3": (Modes(chunk=12), 3),
    "chunked, checkpointed": (Modes(share=False, checkpoint=True, chunk=12), None),
    "micro-batches of 1, checkpointed": (Modes(share=False, checkpoint=True), 1),
}
TOLERANCE = 1e-5
"""Relative, of the gradient: a BLAS adds up in an order of its own; faults move it by 1e-4 and more."""


def gradient(model: nn.Module, modes: Modes, size: int | None = None) -> tuple[float, dict[str, Any]]:
    """Loss and gradient of a step over ROWS in micro-batches of `size`."""
    step = value_and_grad(model, modes)
    with patch("upft_mlx.training.batches.LEAST_SAVED", 0):
        batches = split(ROWS, size, SHARED if modes.share else 0)
    results = [step(*to_arrays(batch)) for batch in batches]
    losses, gradients = zip(*results, strict=True)
    total = gradients[0]
    for more in gradients[1:]:
        total = tree_map(mx.add, total, more)
    return sum(scalar(loss) for loss in losses), flat(total)


@cache
def expected(name: str) -> tuple[float, dict[str, Any]]:
    """Row by row, unpadded, all logits."""
    model = family(name)
    loss, gradients = nn.value_and_grad(model, lambda: oracle(model, ROWS))()
    return scalar(loss), flat(gradients)


def distance(found: dict[str, Any], wanted: dict[str, Any]) -> float:
    """The largest difference of any element, in units of the largest gradient where that is above 1."""
    assert found.keys() == wanted.keys()
    largest = max(float(np.abs(array).max()) for array in wanted.values())
    return max(float(np.abs(found[name] - array).max()) for name, array in wanted.items()) / max(1.0, largest)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradient_are_the_oracles(name: str, mode: str) -> None:
    loss, gradients = gradient(family(name), *MODES[mode])
    wanted_loss, wanted = expected(name)
    assert loss == pytest.approx(wanted_loss, rel=2e-6)
    assert all(np.abs(array).max() > 1e-4 for array in wanted.values()), "every adapter has something to learn"
    assert distance(gradients, wanted) < TOLERANCE


@pytest.mark.parametrize("name", FAMILIES)
def test_all_modes_are_chosen_by_themselves(name: str) -> None:
    modes, reasons = choose_modes(family(name), dropout=False, checkpoint=False)
    assert (replace(modes, chunk=0), reasons) == (Modes(), [])
    assert modes.chunk >= LEAST_POSITIONS


def test_a_head_that_is_trained_is_not_chunked_and_has_its_gradient() -> None:
    model = family("llama")
    model.lm_head.unfreeze()
    modes, _ = choose_modes(model, dropout=False, checkpoint=False)
    assert modes == Modes()
    assert np.abs(gradient(model, modes)[1]["lm_head.weight"]).max() > 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_a_chunk_that_is_lost_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(head: Head, hidden: mx.array, *rest: Any) -> mx.array:
        return chunked_loss(head, mx.roll(hidden, 1, 0), *rest)

    monkeypatch.setattr(loss_module, "chunked_loss", shifted)
    assert broken(name, "chunked") > 100 * TOLERANCE


def broken(name: str, mode: str) -> float:
    """How far from the oracle's a broken mode's gradient is."""
    return distance(gradient(family(name), *MODES[mode])[1], expected(name)[1])


@pytest.mark.parametrize("name", FAMILIES)
def test_reading_the_rows_one_off_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = loss_module._at
    monkeypatch.setattr(loss_module, "_at", lambda hidden, positions: original(hidden, mx.maximum(positions - 1, 0)))
    assert broken(name, "gathered") > 100 * TOLERANCE


@pytest.mark.parametrize("name", FAMILIES)
def test_shared_tokens_without_a_gradient_of_their_own_are_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is right then, only the gradient is not: what the shared tokens' keys and values contribute lacks."""
    original = SharedKeys.__init__

    def stop(self: SharedKeys, keys: mx.array | None = None, values: mx.array | None = None) -> None:
        cut = [None if array is None else mx.stop_gradient(array) for array in (keys, values)]
        original(self, *cut)

    monkeypatch.setattr(SharedKeys, "__init__", stop)
    assert broken(name, "gathered and shared") > 10 * TOLERANCE


@pytest.mark.parametrize("name", FAMILIES)
def test_shared_tokens_at_a_wrong_position_are_seen_by_gradient_and_by_trial(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = SharedKeys.__init__

    def shift(self: SharedKeys, keys: mx.array | None = None, values: mx.array | None = None) -> None:
        original(self, keys, values)
        self.offset += 2 if keys is not None else 0

    # Masks that a family makes of the offset itself would not fit the keys then: only the rotations are moved.
    def mask(self: SharedKeys, length: int, return_array: bool = False, window_size: int | None = None) -> Any:
        true = SharedKeys()
        true.offset = max(0, self.offset - 2)
        return original_mask(true, length, return_array, window_size)

    original_mask = SharedKeys.make_mask
    monkeypatch.setattr(SharedKeys, "__init__", shift)
    monkeypatch.setattr(SharedKeys, "make_mask", mask)
    assert broken(name, "gathered and shared") > 10 * TOLERANCE
    modes, reasons = choose_modes(family(name), dropout=False, checkpoint=False)
    assert not modes.share
    assert "shared prompt tokens are passed for each sequence" in reasons[0]


@pytest.mark.parametrize(("window", "shared"), [(6, 2), (6, 5), (6, 6), (6, 11), (12, 4), (12, 5), (12, 13)])
@pytest.mark.parametrize("name", ["gemma3_text", "cohere2"])
def test_a_window_sees_the_shared_tokens_that_lie_in_it(name: str, window: int, shared: int) -> None:
    """Shared tokens for less than a window, exactly one, and more; the 8 that a row is padded to fill 12 with 5."""
    begin = list(range(2, 2 + shared))
    lengths = (1, 2, 4, 8, 12)
    rows = [Example(str(n), [*begin, *range(30 + n, 32 + 2 * n)], start=shared + 1) for n in lengths]
    model = family(name, sliding_window=window)
    for row in rows:
        found = scalar(make_loss(model, Modes())(*to_arrays(make_batch([row], shared))))
        assert found == pytest.approx(scalar(oracle(model, [row])), rel=2e-6), row.id


@pytest.mark.parametrize("name", ["gemma3_text", "cohere2"])
def test_a_window_that_forgets_the_shared_tokens_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = SharedKeys.make_mask

    def unlimited(self: SharedKeys, length: int, return_array: bool = False, window_size: int | None = None) -> Any:
        return original(self, length, return_array, None)

    monkeypatch.setattr(SharedKeys, "make_mask", unlimited)
    assert broken(name, "gathered and shared") > 10 * TOLERANCE


@pytest.mark.parametrize("name", FAMILIES)
def test_checkpointing_that_loses_the_adapters_gradient_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the parameters are not arguments of the function that is computed again."""

    def forgetful(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda layer, hidden, *args, **kwargs: original(layer, mx.stop_gradient(hidden), *args, **kwargs)

    monkeypatch.setattr(loss_module, "_recomputed", forgetful)
    assert broken(name, "checkpointed") > 10 * TOLERANCE


def test_micro_batches_that_each_weigh_one_are_seen() -> None:
    model = family("llama")
    step = value_and_grad(model, Modes(share=False))
    parts = [make_batch([row]) for row in ROWS[:3]] + [make_batch(ROWS[3:])]
    wrong = sum(scalar(step(*to_arrays(batch))[0]) for batch in parts)
    assert wrong == pytest.approx(4 * expected("llama")[0], rel=1e-5)


def test_layers_with_a_state_of_their_own_are_not_shared_and_the_loss_stays_right() -> None:
    """Qwen3.5: linear attention keeps a state instead of keys and values; logits are gathered all the same."""
    model = family("qwen3_5")
    modes, reasons = choose_modes(model, dropout=False, checkpoint=False)
    assert replace(modes, chunk=0) == Modes(share=False)
    assert "this model family's layers take no keys and values from outside" in reasons[0]
    found = scalar(make_loss(model, modes)(*to_arrays(make_batch(ROWS))))
    assert found == pytest.approx(scalar(oracle(model, ROWS)), rel=2e-6)
