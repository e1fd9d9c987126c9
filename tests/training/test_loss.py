"""The loss and its gradient against an oracle that knows neither batches nor gathering."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from helpers.loss import family, flat, oracle
from mlx.utils import tree_flatten

from upft_mlx.models.adapters import add_lora
from upft_mlx.models.load import Loaded
from upft_mlx.recipe.schema import Lora
from upft_mlx.sampling.same_logits import scalar
from upft_mlx.training.batches import LEAST_POSITIONS, Example, make_batch
from upft_mlx.training.loss import Modes, choose_modes, make_loss, supervised_logits, to_arrays, value_and_grad

VOCABULARY = 90
ROWS = [
    Example("prefix", [3, 4, 5, 6, 7, 8, 9, 10, 11], start=6),
    Example("at the boundary", list(range(20, 29)), start=8),
    Example("structure", list(range(30, 47)), start=4),
    Example("one id", [50, 51], start=1),
]


@pytest.fixture
def model(fresh: Loaded) -> nn.Module:
    """The embedded model with an adapter that does something."""
    add_lora(fresh, Lora(rank=4, scale=2.0), seed=1)
    mx.random.seed(2)
    for name, module in fresh.model.named_modules():
        if "lora_b" in module:
            module.lora_b = 0.05 * mx.random.normal(module.lora_b.shape)
        assert name is not None
    return fresh.model


def test_loss_equals_the_oracle(model: nn.Module) -> None:
    found = scalar(make_loss(model, Modes())(*to_arrays(make_batch(ROWS))))
    assert found == pytest.approx(scalar(oracle(model, ROWS)), rel=1e-6)


def test_positions_outside_the_prefix_have_exactly_zero_gradient(model: nn.Module) -> None:
    """The gradient with respect to the logits themselves, at every position of a full forward pass."""
    batch = make_batch(ROWS)
    _, tokens, rows, targets, weights = to_arrays(batch)
    logits = model(tokens).reshape(batch.tokens.size, -1)

    def of_logits(full: mx.array) -> mx.array:
        return (weights * nn.losses.cross_entropy(full[rows], targets)).sum()

    gradient = np.abs(np.array(mx.grad(of_logits)(logits))).sum(axis=-1).reshape(batch.tokens.shape)
    for index, example in enumerate(ROWS):
        inside = range(example.start - 1, len(example.ids) - 1)
        for position in range(batch.tokens.shape[1]):
            assert (gradient[index, position] > 0) == (position in inside), (example.id, position)


def test_ids_after_the_supervised_ones_do_not_matter(model: nn.Module) -> None:
    """What stands in the padding changes neither loss nor gradient by a single bit."""
    batch = make_batch(ROWS)
    shared, tokens, *rest = to_arrays(batch)
    noise = np.array(batch.tokens)
    for index, example in enumerate(ROWS):
        noise[index, len(example.ids) - 1 :] = 77
    assert (noise != batch.tokens).any()
    step = value_and_grad(model, Modes())
    loss_a, gradients_a = step(shared, tokens, *rest)
    loss_b, gradients_b = step(shared, mx.array(noise), *rest)
    assert scalar(loss_a) == scalar(loss_b)
    for name, array in flat(gradients_a).items():
        assert (array == flat(gradients_b)[name]).all(), name


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_mask_that_is_off_by_one_would_be_seen(model: nn.Module, shift: int) -> None:
    """Guards the oracle: moving the first supervised id changes the loss by far more than the tolerance."""
    moved = [Example(e.id, e.ids, e.start + shift) for e in ROWS if 1 < e.start < len(e.ids) - 1]
    kept = [e for e in ROWS if 1 < e.start < len(e.ids) - 1]
    difference = scalar(oracle(model, moved)) - scalar(oracle(model, kept))
    assert abs(difference) > 1e-3


def test_the_loss_weighs_sequences_not_tokens(model: nn.Module) -> None:
    alone = [scalar(make_loss(model, Modes())(*to_arrays(make_batch([row])))) for row in ROWS]
    together = scalar(make_loss(model, Modes())(*to_arrays(make_batch(ROWS))))
    assert together == pytest.approx(sum(alone) / len(alone), rel=1e-5)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_the_loss_of_a_16_bit_model_is_computed_in_float32(model: nn.Module, dtype: mx.Dtype) -> None:
    """From the model's own logits; a float16 sum over the vocabulary would be off in the third digit."""
    model.set_dtype(dtype)
    arrays = to_arrays(make_batch(ROWS))
    found = make_loss(model, Modes())(*arrays)
    logits = np.array(supervised_logits(model, *arrays[:3], Modes()).astype(mx.float32), np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    picked = logprobs[np.arange(len(logprobs)), np.array(arrays[3])]
    assert found.dtype == mx.float32
    assert scalar(found) == pytest.approx(-float((np.array(arrays[4]) * picked).sum()), rel=1e-5)


class NormFirst(nn.Module):
    """A family in which `model.norm` stands before the layers: gathering there would be silently wrong."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.model = nn.Module()
        self.model.embed = nn.Embedding(VOCABULARY, 16)
        self.model.norm = nn.RMSNorm(16)
        self.layers = [nn.Linear(16, 16)]

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        hidden = self.model.norm(self.model.embed(tokens))
        hidden = mx.cumsum(hidden, axis=1)  # mixes positions after the norm
        logits: mx.array = self.model.embed.as_linear(self.layers[0](hidden))
        return logits


def test_a_family_without_a_final_norm_gets_all_logits_and_the_right_loss_and_says_so() -> None:
    mx.random.seed(0)
    model = NormFirst()
    modes, reasons = choose_modes(model, dropout=False, checkpoint=False)
    assert modes == Modes(gather=False, share=False)
    assert "logits are computed at all positions: this model family has no norm right" in reasons[0]
    assert "this model family's layers take no keys and values" in reasons[1]
    found = scalar(make_loss(model, modes)(*to_arrays(make_batch(ROWS))))
    assert found == pytest.approx(scalar(oracle(model, ROWS)), rel=1e-5)


def test_shared_tokens_are_off_with_dropout_and_with_checkpointing_and_the_reason_is_given(model: nn.Module) -> None:
    modes, reasons = choose_modes(model, dropout=False, checkpoint=False)
    chunk = modes.chunk
    assert (modes, reasons) == (Modes(chunk=chunk), [])
    modes, (reason,) = choose_modes(model, dropout=True, checkpoint=False)
    assert modes == Modes(share=False, chunk=chunk)
    assert "with lora.dropout each needs its own noise" in reason
    modes, (reason,) = choose_modes(model, dropout=False, checkpoint=True)
    assert modes == Modes(share=False, checkpoint=True, chunk=chunk)
    assert "train.grad_checkpoint computes the layers twice" in reason


def test_trying_the_modes_leaves_the_models_parameters_in_their_order(model: nn.Module) -> None:
    before = list(dict(tree_flatten(model.parameters())))
    call = type(model.layers[0]).__call__
    choose_modes(model, dropout=False, checkpoint=True)
    value_and_grad(model, Modes(share=False, checkpoint=True))(*to_arrays(make_batch(ROWS)))
    assert list(dict(tree_flatten(model.parameters()))) == before
    assert isinstance(model.model.norm, nn.RMSNorm)
    assert type(model.layers[0]).__call__ is call


def test_chunks_hold_the_logits_of_some_positions_only() -> None:
    shape = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 60_000}
    rows = [Example(str(row), list(range(2, 260)), start=2) for row in range(2)]
    peaks = {}
    for size in (0, LEAST_POSITIONS):
        step = value_and_grad(family("llama", **shape), Modes(share=False, chunk=size))
        arrays = to_arrays(make_batch(rows))
        mx.eval(arrays)
        mx.reset_peak_memory()
        mx.eval(step(*arrays))
        peaks[size] = mx.get_peak_memory()
    assert peaks[LEAST_POSITIONS] < 0.4 * peaks[0], peaks
