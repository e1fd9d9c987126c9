"""The loss and its gradient against an oracle that knows neither batches nor gathering."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from upft_mlx import loss as loss_module
from upft_mlx.adapters import add_lora
from upft_mlx.batches import Example, make_batch
from upft_mlx.loss import gathers_exactly, make_loss, scalar, supervised_logits, to_arrays, value_and_grad
from upft_mlx.models import Loaded
from upft_mlx.recipe import Lora

VOCABULARY = 90
ROWS = [
    Example("prefix", [3, 4, 5, 6, 7, 8, 9, 10, 11], start=6),
    Example("at the boundary", list(range(20, 29)), start=8),
    Example("structure", list(range(30, 47)), start=4),
    Example("one id", [50, 51], start=1),
]


def oracle(model: nn.Module, rows: Sequence[Example]) -> mx.array:
    """Row by row, unpadded, full logits, and the mask written out."""
    total = mx.array(0.0)
    for example in rows:
        logits = model(mx.array([example.ids]))[0].astype(mx.float32)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        terms = [
            -logprobs[position - 1, token] for position, token in enumerate(example.ids) if position >= example.start
        ]
        total = total + sum(terms[1:], terms[0]) / len(terms)
    return total / len(rows)


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


def flat(gradients: Any) -> dict[str, np.ndarray[Any, Any]]:
    return {name: np.array(array) for name, array in dict(tree_flatten(gradients)).items()}


def test_loss_equals_the_oracle(model: nn.Module) -> None:
    found = scalar(make_loss(model)(*to_arrays(make_batch(ROWS))))
    assert found == pytest.approx(scalar(oracle(model, ROWS)), rel=1e-6)


@pytest.mark.parametrize("gather", [True, False])
def test_gradient_equals_the_oracles(model: nn.Module, gather: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "gathers_exactly", lambda _: gather)
    _, gradients = value_and_grad(model)(*to_arrays(make_batch(ROWS)))
    expected = flat(nn.value_and_grad(model, lambda: oracle(model, ROWS))()[1])
    found = flat(gradients)
    assert found.keys() == expected.keys()
    assert any(np.abs(array).max() > 1e-3 for array in expected.values())
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-6, atol=1e-6, err_msg=name)


def test_positions_outside_the_prefix_have_exactly_zero_gradient(model: nn.Module) -> None:
    """The gradient with respect to the logits themselves, at every position of a full forward pass."""
    batch = make_batch(ROWS)
    tokens, rows, targets, weights = to_arrays(batch)
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
    tokens, *rest = to_arrays(batch)
    noise = np.array(batch.tokens)
    for index, example in enumerate(ROWS):
        noise[index, len(example.ids) - 1 :] = 77
    assert (noise != batch.tokens).any()
    step = value_and_grad(model)
    loss_a, gradients_a = step(tokens, *rest)
    loss_b, gradients_b = step(mx.array(noise), *rest)
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
    alone = [scalar(make_loss(model)(*to_arrays(make_batch([row])))) for row in ROWS]
    together = scalar(make_loss(model)(*to_arrays(make_batch(ROWS))))
    assert together == pytest.approx(sum(alone) / len(alone), rel=1e-5)


def tiny(name: str) -> nn.Module:
    """A random model of another family."""
    from importlib import import_module

    module = import_module(f"mlx_lm.models.{name}")
    common = {
        "model_type": name,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "rope_theta": 10000.0,
        "max_position_embeddings": 128,
    }
    mx.random.seed(0)
    model: nn.Module = module.Model(module.ModelArgs.from_dict(common))
    return model


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2"])
def test_gathering_before_the_head_gives_the_familys_own_logits(family: str) -> None:
    model = tiny(family)
    batch = make_batch(ROWS)
    tokens, rows, _, _ = to_arrays(batch)
    assert gathers_exactly(model)
    found = supervised_logits(model, tokens, rows, gather=True)
    expected = supervised_logits(model, tokens, rows, gather=False)
    np.testing.assert_allclose(np.array(found), np.array(expected), rtol=1e-5, atol=1e-5)


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


def test_a_family_without_a_final_norm_gets_all_logits_and_the_right_loss() -> None:
    mx.random.seed(0)
    model = NormFirst()
    assert not gathers_exactly(model)
    found = scalar(make_loss(model)(*to_arrays(make_batch(ROWS))))
    assert found == pytest.approx(scalar(oracle(model, ROWS)), rel=1e-5)


def test_gathering_leaves_the_models_parameters_in_their_order(model: nn.Module) -> None:
    before = list(dict(tree_flatten(model.parameters())))
    gathers_exactly(model)
    assert list(dict(tree_flatten(model.parameters()))) == before
    assert isinstance(model.model.norm, nn.RMSNorm)
