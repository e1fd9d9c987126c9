"""The known-answer test: its numbers come from a float64 program of its own, and what is broken is found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt
import pytest
from mlx.utils import tree_flatten

from upft_mlx.inspection import selftest
from upft_mlx.inspection.selftest import GRADIENT_NORM, LOSS, SHAPE, checks, make_model, rows
from upft_mlx.models.families import SharedKeys
from upft_mlx.training import loss
from upft_mlx.training.batches import Batch, Example, make_batch
from upft_mlx.training.loss import Modes

Values = npt.NDArray[np.float64]
HEADS, KV_HEADS, WIDTH = 4, 2, 16


# A Qwen2 in numpy and float64, row by row; nothing of MLX or of the package.


def norm(x: Values, weight: Values) -> Values:
    normed: Values = x / np.sqrt((x * x).mean(-1, keepdims=True) + SHAPE["rms_norm_eps"]) * weight
    return normed


def rotated(x: Values) -> Values:
    """x (heads, T, D) with rotary positions 0 to T - 1; halves are the pairs."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None] * SHAPE["rope_theta"] ** (-np.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def attention(x: Values, w: dict[str, Values], at: str) -> Values:
    def heads(name: str, count: int) -> Values:
        projected = x @ w[f"{at}.{name}.weight"].T + w[f"{at}.{name}.bias"]
        split: Values = projected.reshape(len(x), count, WIDTH).transpose(1, 0, 2)
        return split

    queries, keys = rotated(heads("q_proj", HEADS)), rotated(heads("k_proj", KV_HEADS))
    values = heads("v_proj", KV_HEADS)
    keys, values = (np.repeat(part, HEADS // KV_HEADS, 0) for part in (keys, values))
    scores = queries @ keys.transpose(0, 2, 1) / np.sqrt(WIDTH)
    scores = np.where(np.tril(np.ones((len(x), len(x)), bool)), scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (shares / shares.sum(-1, keepdims=True)) @ values
    return np.asarray(mixed.transpose(1, 0, 2).reshape(len(x), -1) @ w[f"{at}.o_proj.weight"].T)


def logits(ids: list[int], w: dict[str, Values]) -> Values:
    x = w["model.embed_tokens.weight"][ids]
    for layer in range(SHAPE["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        x = x + attention(norm(x, w[f"{at}.input_layernorm.weight"]), w, f"{at}.self_attn")
        y = norm(x, w[f"{at}.post_attention_layernorm.weight"])
        gate, up = (y @ w[f"{at}.mlp.{name}.weight"].T for name in ("gate_proj", "up_proj"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[f"{at}.mlp.down_proj.weight"].T
    return np.asarray(norm(x, w["model.norm.weight"]) @ w["model.embed_tokens.weight"].T)


def loss_in_float64(w: dict[str, Values]) -> float:
    """The mean over rows of the mean over a row's prefix."""
    total = 0.0
    for row in rows():
        out = logits(list(row.ids[:-1]), w)
        chances = out - np.log(np.exp(out).sum(-1, keepdims=True))
        terms = [-chances[place - 1, row.ids[place]] for place in range(row.start, len(row.ids))]
        total += sum(terms) / len(terms) / len(rows())
    return total


def known_weights() -> dict[str, Values]:
    return {name: np.array(array, np.float64) for name, array in dict(tree_flatten(make_model().parameters())).items()}


def slope(along: dict[str, Values], step: float = 1e-5) -> float:
    """The derivative of the loss along a direction of length 1."""
    w = known_weights()
    ahead = loss_in_float64({name: w[name] + step * along[name] for name in w})
    behind = loss_in_float64({name: w[name] - step * along[name] for name in w})
    return (ahead - behind) / (2 * step)


def unit(direction: dict[str, Values]) -> dict[str, Values]:
    length = np.sqrt(sum((part * part).sum() for part in direction.values()))
    return {name: part / length for name, part in direction.items()}


def gradient() -> dict[str, Values]:
    model = make_model()
    arrays = loss.to_arrays(make_batch(rows()))
    _, found = loss.value_and_grad(model, Modes(share=False))(*arrays)
    return {name: np.array(array, np.float64) for name, array in dict(tree_flatten(found)).items()}


def test_the_known_loss_is_that_of_a_float64_program() -> None:
    assert loss_in_float64(known_weights()) == pytest.approx(LOSS, rel=1e-9)


def test_the_known_norm_is_the_slope_along_the_gradient_in_the_float64_program() -> None:
    assert slope(unit(gradient())) == pytest.approx(GRADIENT_NORM, rel=1e-5)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_gradient_predicts_the_slope_in_other_directions_too(seed: int) -> None:
    draw = np.random.default_rng(seed)
    found = gradient()
    along = unit(
        {name: found[name] / np.abs(found[name]).max() + draw.normal(size=found[name].shape) for name in found}
    )
    predicted = sum((found[name] * along[name]).sum() for name in found)
    assert slope(along) == pytest.approx(predicted, rel=1e-3)


def test_the_weights_are_computed_and_exact_in_float32() -> None:
    mx.random.seed(1)
    once = known_weights()
    mx.random.seed(2)
    again = known_weights()
    for name, values in once.items():
        assert (values == again[name]).all()
        assert (values == selftest.weights({n: v.shape for n, v in once.items()})[name]).all()


# On this device, sound and broken.


def wrong() -> list[str]:
    return [answer.name for answer in checks() if not answer.right]


def test_this_device_computes_what_is_known() -> None:
    found = list(checks())
    assert len(found) == 7
    assert max(answer.error for answer in found) < 1e-5  # the tolerance leaves room for other devices


def rows_changed(change: Callable[[Example], Example]) -> Callable[[], list[Example]]:
    changed = [change(row) for row in rows()]
    return lambda: changed


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_mask_that_is_one_token_off_is_found(monkeypatch: pytest.MonkeyPatch, shift: int) -> None:
    monkeypatch.setattr(selftest, "rows", rows_changed(lambda row: Example(row.id, row.ids, row.start + shift)))
    assert len(wrong()) == 4


def test_a_mean_over_tokens_instead_of_rows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def uneven(*arguments: Any) -> Batch:
        batch = make_batch(*arguments)
        used = batch.weights > 0
        return Batch(batch.shared, batch.tokens, batch.positions, batch.targets, (used / used.sum()).astype(np.float32))

    monkeypatch.setattr(selftest, "make_batch", uneven)
    assert len(wrong()) == 4


def test_attention_that_sees_the_future_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_lm.models import qwen2

    monkeypatch.setattr(qwen2, "create_attention_mask", lambda *a, **k: None)
    assert len(wrong()) == 4


def test_shared_tokens_at_wrong_positions_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = SharedKeys.__init__

    def init(self: Any, *parts: Any) -> None:
        real(self, *parts)
        self.offset = 0

    monkeypatch.setattr(SharedKeys, "__init__", init)
    assert wrong() == ["loss", "gradient"]


def test_a_wrong_gradient_is_found_where_the_loss_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    real = nn.value_and_grad

    def halved(*arguments: Any) -> Callable[..., Any]:
        def work(*arrays: mx.array) -> Any:
            value, found = real(*arguments)(*arrays)
            found["model"]["layers"][0]["self_attn"]["q_proj"]["weight"] *= 0.5
            return value, found

        return work

    monkeypatch.setattr(nn, "value_and_grad", halved)
    assert wrong() == ["gradient", "gradient, all positions"]


def test_not_a_number_is_not_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "loss_and_gradient_norm", lambda modes: (float("nan"), float("nan")))
    assert len(wrong()) == 4


def test_codes_that_are_read_in_another_order_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = mx.quantized_matmul

    def swapped(x: mx.array, packed: mx.array, *parts: Any, **how: Any) -> mx.array:
        nibbles = 0x0F0F0F0F
        return real(x, ((packed & nibbles) << 4) | ((packed >> 4) & nibbles), *parts, **how)

    monkeypatch.setattr(mx, "quantized_matmul", swapped)
    assert len(wrong()) == 3
