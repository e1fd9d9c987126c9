"""Training: what a step does, what is kept, and that an interrupted run ends with the bytes of a whole one."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import MODEL
from helpers.loss import flat, oracle
from helpers.train import MakeRecipe, comparable, metrics, rows, run
from mlx.utils import tree_map
from mlx_lm.utils import load as mlx_lm_load

from upft_mlx.distributed import seam
from upft_mlx.distributed.ranks import Ranks
from upft_mlx.errors import TrainingError
from upft_mlx.events import Event, Note, Progress
from upft_mlx.models.adapters import adapter_weights, add_lora
from upft_mlx.models.load import load
from upft_mlx.recipe.schema import Lora, Quantize, Recipe, Train
from upft_mlx.rows import TrainingRow, read_rows, write_rows
from upft_mlx.rundir import RunDir
from upft_mlx.sampling.same_logits import scalar
from upft_mlx.training import checkpoints
from upft_mlx.training import loss as loss_module
from upft_mlx.training import step as step_module
from upft_mlx.training.batches import Example, StepCounts, to_examples, total_steps
from upft_mlx.training.checkpoints import Position, latest
from upft_mlx.training.step import Stepper, learning_rate
from upft_mlx.training.train import train

__all__ = ["run"]


def test_training_lowers_the_loss_and_writes_what_mlx_lm_loads(make_recipe: MakeRecipe, run: RunDir) -> None:
    recipe = make_recipe(train={"epochs": 4, "learning_rate": 1e-2})
    position = train(recipe, load(MODEL), run)
    lines = metrics(run)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.1
    assert position.step == lines[-1]["step"] == 16
    assert sum(line["supervised_tokens"] for line in lines) == position.trained_tokens == 4 * (11 * 6 + 3 * 24)
    assert sum(line["examples"] for line in lines) == 4 * 14
    assert [line["step"] for line in lines] == [*range(1, 11), 12, 14, 16]
    model, *_ = mlx_lm_load(str(MODEL), adapter_path=str(run.adapter))
    base, *_ = mlx_lm_load(str(MODEL))
    tokens = mx.array([[11, 12, 13]])
    assert not mx.allclose(model(tokens), base(tokens), atol=1e-2)


def test_the_reported_loss_is_the_mean_of_the_steps_since_the_last_report(
    make_recipe: MakeRecipe, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([8.0, *[2.0] * 9, 4.0, 2.0, 1.0, 7.0])
    monkeypatch.setattr(Stepper, "step", lambda *_: (next(losses), StepCounts(1, 1, 1)))
    monkeypatch.setattr(Stepper, "loss", lambda *_: 3.0)
    train(make_recipe(train={"steps": 14, "report_every": 12, "validate_every": 99}), load(MODEL), run)
    each = [(1, 8.0), *((step, 2.0) for step in range(2, 11))]
    assert [(line["step"], line["loss"]) for line in metrics(run)] == [*each, (12, 3.0), (14, 4.0)]


def interrupted(recipe: Recipe, run: RunDir, after: int) -> None:
    """Train until `after` steps are done, then fail as if the process had been killed."""

    class Killed(BaseException):
        pass

    def stop(event: Event) -> None:
        if type(event).__name__ == "Progress" and getattr(event, "done", 0) == after:
            raise Killed

    with pytest.raises(Killed):
        train(recipe, load(MODEL), run, stop)


@pytest.mark.parametrize("stops", [[1], [3], [5], [2, 7], [1, 2, 3, 4, 5, 6, 7]])
def test_a_stopped_run_ends_with_the_bytes_of_a_whole_one(
    make_recipe: MakeRecipe, run: RunDir, tmp_path: Path, stops: list[int]
) -> None:
    settings = {"epochs": 2, "checkpoint_every": 2, "validate_every": 3, "report_every": 3, "schedule": "cosine"}
    recipe = make_recipe(train=settings, lora={"dropout": 0.1})
    whole = RunDir(tmp_path / "whole")
    shutil.copytree(run.root, whole.root)
    train(recipe, load(MODEL), whole)
    for after in stops:
        interrupted(recipe, run, after)
    train(recipe, load(MODEL), run)
    for name in ("adapters.safetensors", "adapter_config.json"):
        assert (run.adapter / name).read_bytes() == (whole.adapter / name).read_bytes(), name
    assert comparable(run) == comparable(whole)


def test_the_best_validation_loss_is_kept_or_the_last_step(
    make_recipe: MakeRecipe, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters: list[dict[str, mx.array]] = []
    losses = iter([3.0, 1.0, 1.0] * 2)  # of equal ones the first is the best: it took less training

    def loss(self: Stepper, *_: Any) -> float:
        adapters.append(adapter_weights(self.model))
        return next(losses)

    monkeypatch.setattr(Stepper, "loss", loss)
    notes: list[str] = []

    def note(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    settings = {"steps": 3, "validate_every": 1}
    position = train(make_recipe(train=settings), load(MODEL), run, note)
    assert (position.best_step, position.best_loss) == (2, 1.0)
    assert_same(mx.load(str(run.adapter / "adapters.safetensors")), adapters[1])
    assert notes[-1] == "saved step 2 (best validation loss, 1.0000)"
    shutil.rmtree(run.adapter)
    train(make_recipe(train={**settings, "save": "last"}), load(MODEL), run, note)
    assert_same(mx.load(str(run.adapter / "adapters.safetensors")), adapters[5])
    assert notes[-1] == "saved the last step (3)"


@pytest.mark.parametrize("held", [2, 3])
def test_no_more_validation_rows_than_needed_are_measured(
    make_recipe: MakeRecipe, run: RunDir, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    """With 12,000 problems, measuring all held-out rows every 50 steps took 31 % of the time of the steps."""
    monkeypatch.setattr("upft_mlx.training.batches.MOST_VALIDATED", 2)
    write_rows(run.valid, rows(held, seed=1))
    measured: list[list[str]] = []

    def loss(_: Stepper, examples: Sequence[Example]) -> float:
        measured.append([example.id for example in examples])
        return 1.0

    monkeypatch.setattr(Stepper, "loss", loss)
    train(make_recipe(train={"steps": 3, "validate_every": 1}), load(MODEL), run)
    first, *others = measured
    assert len(first) == len(set(first)) == 2
    assert others == [first, first], "only the same rows show which step is best"


def assert_same(found: Any, expected: dict[str, mx.array]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert mx.array_equal(found[name], array), name


def test_without_validation_rows_the_last_step_is_kept(make_recipe: MakeRecipe, run: RunDir) -> None:
    write_rows(run.valid, [])
    position = train(make_recipe(train={"steps": 2}), load(MODEL), run)
    assert position.best_loss is None
    assert "valid_loss" not in metrics(run)[-1]
    assert (run.adapter / "adapters.safetensors").exists()


def test_only_the_last_checkpoints_are_kept(make_recipe: MakeRecipe, run: RunDir) -> None:
    train(make_recipe(train={"steps": 7, "checkpoint_every": 2, "keep": 2}), load(MODEL), run)
    assert sorted(path.name for path in run.checkpoints.glob("step-*")) == ["step-0000006", "step-0000007"]


@pytest.mark.parametrize("missing", ["adapters.safetensors", "optimizer.safetensors", "position.json"])
def test_an_incomplete_checkpoint_is_refused_with_what_is_missing(
    make_recipe: MakeRecipe, run: RunDir, missing: str
) -> None:
    recipe = make_recipe(train={"epochs": 2})
    interrupted(recipe, run, 3)
    (run.checkpoints / "step-0000002" / missing).unlink()
    with pytest.raises(TrainingError, match=rf"incomplete checkpoint, {missing} missing; move this folder away"):
        train(recipe, load(MODEL), run)


def test_a_checkpoint_holds_everything_the_next_step_depends_on(make_recipe: MakeRecipe, run: RunDir) -> None:
    interrupted(make_recipe(train={"epochs": 2}), run, 3)
    found = latest(run.checkpoints)
    assert found is not None
    position, adapter, optimizer = found
    assert isinstance(position, Position)
    assert position.step == 2
    assert len(optimizer) == 2 * len(adapter) + 2  # two moments each, the step and the learning rate
    assert all(array.dtype == mx.float32 for array in adapter.values())
    assert {array.dtype for array in optimizer.values()} == {mx.float32, mx.uint64}


def test_training_that_an_earlier_version_began_continues_in_its_order(
    make_recipe: MakeRecipe, run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last step of an epoch was a smaller one; in another order some rows would come twice and others never."""
    recipe = make_recipe(train={"epochs": 2, "checkpoint_every": 1})
    whole, new = (RunDir(shutil.copytree(run.root, tmp_path / name)) for name in ("whole", "new"))
    train(recipe, load(MODEL), new)
    with monkeypatch.context() as patched:
        patched.setattr("upft_mlx.training.train.Position", partial(Position, even=False))
        train(recipe, load(MODEL), whole)
        interrupted(recipe, run, 2)
    (path,) = run.checkpoints.glob("step-*")
    said = json.loads((path / "position.json").read_text())
    assert said.pop("even") is False
    (path / "position.json").write_text(json.dumps(said))
    (path / "digests.json").unlink()
    train(recipe, load(MODEL), run)
    expected, found, other = ((r.adapter / "adapters.safetensors").read_bytes() for r in (whole, run, new))
    assert found == expected != other


def test_the_newest_checkpoint_continues_and_the_oldest_goes(tmp_path: Path) -> None:
    for step in (9, 98, 99, 100, 101):
        checkpoints.save(tmp_path, Position(step), {"a": mx.array([float(step)])}, {"b": mx.array([1.0])}, keep=3)
        found = latest(tmp_path)
        assert found is not None
        assert (found[0].step, found[1]["a"].item()) == (step, step)
    assert sorted(int(path.name[5:]) for path in tmp_path.glob("step-*")) == [99, 100, 101]


def test_a_loss_that_is_not_finite_stops_with_step_and_rows_and_keeps_the_checkpoint(
    make_recipe: MakeRecipe, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Stepper.step

    def step(self: Stepper, examples: Any, rate: float, seed: int) -> tuple[float, StepCounts]:
        loss, counts = original(self, examples, rate, seed)
        return math.nan if int(self.optimizer.step.item()) == 4 else loss, counts

    monkeypatch.setattr(Stepper, "step", step)
    with pytest.raises(TrainingError, match=r"step 4: the loss is nan \(learning rate 0\.001, rows \d+/0, "):
        train(make_recipe(train={"epochs": 2}), load(MODEL), run)
    found = latest(run.checkpoints)
    assert found is not None
    assert found[0].step == 2


def test_a_finite_loss_whose_gradient_is_not_finite_leaves_no_checkpoint_with_its_weights(
    make_recipe: MakeRecipe, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, steps = loss_module.value_and_grad, itertools.count(1)

    def value_and_grad(model: Any, modes: Any) -> Any:
        exact = original(model, modes)

        def inexact(*arrays: Any) -> Any:
            loss, gradients = exact(*arrays)
            bad = next(steps) == 4
            return loss, tree_map(lambda array: array * (math.inf if bad else 1), gradients)

        return inexact

    monkeypatch.setattr(step_module, "value_and_grad", value_and_grad)
    settings = {"epochs": 2, "checkpoint_every": 2, "clip_norm": None}
    with pytest.raises(
        TrainingError, match=r"step 4: the gradient's norm is (inf|nan) \(learning rate 0\.001, rows \d+/0, "
    ):
        train(make_recipe(train=settings), load(MODEL), run)
    found = latest(run.checkpoints)
    assert found is not None
    assert found[0].step == 2
    assert all(bool(mx.isfinite(array).all()) for array in found[1].values())


def test_metrics_stay_json_if_the_validation_loss_is_infinite(
    make_recipe: MakeRecipe, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stepper, "loss", lambda *_: math.inf)
    train(make_recipe(train={"steps": 2, "validate_every": 1}), load(MODEL), run)

    def refuse(name: str) -> None:
        raise AssertionError(name)

    lines = [json.loads(text, parse_constant=refuse) for text in run.metrics.read_text().splitlines()]
    assert [line["valid_loss"] for line in lines] == [None, None]
    assert all(line["loss"] > 0 for line in lines)


def test_rows_without_room_for_a_completion_are_refused(make_recipe: MakeRecipe, run: RunDir) -> None:
    with pytest.raises(TrainingError, match=r"no row has a completion within train\.max_length: 3 tokens"):
        train(make_recipe(train={"max_length": 3}), load(MODEL), run)


@pytest.mark.parametrize(
    ("settings", "step", "expected"),
    [
        ({}, 1, 1 / 3),
        ({}, 3, 1.0),
        ({}, 4, 1.0),
        ({}, 100, 1.0),
        ({"warmup_ratio": 0.0}, 1, 1.0),
        ({"schedule": "cosine"}, 3, 1.0),
        ({"schedule": "cosine", "warmup_ratio": 0.0}, 50, 0.55),
        ({"schedule": "cosine"}, 100, 0.1),
        ({"schedule": "cosine", "warmup_ratio": 0.2}, 10, 0.5),
        ({"schedule": "cosine", "warmup_ratio": 0.2}, 20, 1.0),
        ({"schedule": "cosine", "warmup_ratio": 0.2}, 60, 0.55),
    ],
)
def test_learning_rate(settings: dict[str, Any], step: int, expected: float) -> None:
    found = learning_rate(Train(**{"learning_rate": 2e-4, **settings}), step, 100)
    assert found == pytest.approx(2e-4 * expected)


def test_steps_are_given_or_follow_from_epochs() -> None:
    assert total_steps(Train(batch_size=4), 9) == 3
    assert total_steps(Train(batch_size=4, epochs=2), 9) == 6
    assert total_steps(Train(batch_size=4, steps=50), 9) == 50


Step = tuple[list[str], float, int]
"""The ids of a step's examples, its learning rate and its seed."""


def steps_of(recipe: Recipe, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, mx.array], list[Step]]:
    """The adapter that training begins with, and what each step is given; nothing is computed."""
    given: list[Step] = []

    def step(self: Stepper, examples: Any, rate: float, seed: int) -> tuple[float, StepCounts]:
        given.append(([example.id for example in examples], rate, seed))
        return 1.0, StepCounts(1, 1, 1)

    loaded = load(MODEL)
    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", step)
        patch.setattr(Stepper, "loss", lambda *_: 1.0)
        train(recipe, loaded, run)
    shutil.rmtree(run.adapter)
    return adapter_weights(loaded.model), given


def test_the_seed_decides_adapter_order_and_dropout_and_each_step_has_its_own(
    make_recipe: MakeRecipe, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"epochs": 2, "batch_size": 4, "warmup_ratio": 0.5, "schedule": "cosine", "learning_rate": 1.0}
    adapter, steps = steps_of(make_recipe(train=settings), run, monkeypatch)
    again, same = steps_of(make_recipe(train=settings), run, monkeypatch)
    assert_same(again, adapter)
    assert same == steps
    other_adapter, other = steps_of(make_recipe(train=settings, seed=1), run, monkeypatch)
    drawn = [name for name in adapter if name.endswith("lora_a")]
    assert not any(mx.array_equal(other_adapter[name], adapter[name]) for name in drawn)
    assert [ids for ids, _, _ in other] != [ids for ids, _, _ in steps]
    assert len({seed for _, _, seed in [*steps, *other]}) == 16
    cosine = [0.1 + 0.9 * (1 + math.cos(math.pi * part)) / 2 for part in (0.25, 0.5, 0.75, 1)]
    assert [rate for _, rate, _ in steps] == pytest.approx([0.25, 0.5, 0.75, 1, *cosine])


class Rank(Ranks):
    """One of two ranks that adds nothing of the other's."""

    size = 2

    def __init__(self, rank: int) -> None:
        self.rank = rank


def test_each_rank_has_a_dropout_of_its_own(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks with the same sequence: only the noise tells their losses apart."""
    example = to_examples(list(read_rows(run.train, TrainingRow)), max_length=64)[0]
    losses: dict[float, list[float]] = {}
    for dropout in (0.0, 0.5):
        for rank in (0, 1):
            monkeypatch.setattr(seam, "ranks", lambda rank=rank: Rank(rank))
            stepper = with_effect(dropout)
            losses.setdefault(dropout, []).append(stepper.step([example, example], 1e-4, 7)[0])
    assert losses[0.0][0] == losses[0.0][1]
    assert abs(losses[0.5][0] - losses[0.5][1]) > 1e-4


def with_effect(dropout: float) -> Stepper:
    """A stepper whose adapter changes what the model says."""
    loaded = load(MODEL)
    add_lora(loaded, Lora(rank=4, dropout=dropout), seed=0)
    mx.random.seed(1)
    for _, module in loaded.model.named_modules():
        if "lora_b" in module:
            module.lora_b = 0.05 * mx.random.normal(module.lora_b.shape)
    loaded.model.train()
    return Stepper(loaded.model, Train(), dropout=dropout > 0)


def test_dropout_is_off_in_the_validation_loss_and_on_again_after_it(run: RunDir) -> None:
    examples = to_examples(list(read_rows(run.train, TrainingRow)), max_length=64)[:4]
    stepper, plain = with_effect(0.5), with_effect(0.0)
    for _ in range(2):
        assert stepper.loss(examples) == pytest.approx(plain.loss(examples), rel=1e-5)
        noisy = [stepper.step(examples, 0.0, seed)[0] for seed in (1, 2)]
        assert abs(noisy[0] - noisy[1]) > 1e-4


def test_dropout_switches_nothing_off_but_sharing() -> None:
    """The adapter has an effect, as where training goes on from one: its noise is in every pass."""
    stepper, plain = with_effect(0.5), with_effect(0.0)
    assert plain.modes.chunk > 0
    assert stepper.modes == replace(plain.modes, share=False)
    assert stepper.model.training, "as it was"


def test_validation_rows_that_begin_otherwise_than_all_training_rows_keep_their_loss(
    make_recipe: MakeRecipe, run: RunDir
) -> None:
    """What is passed once is what the training and the validation rows begin with."""
    odd = [TrainingRow("v/0", "v", 0, "prefix", "", "", [5, 6, 300 + i, 40, 41], [20, 21, 22]) for i in range(3)]
    write_rows(run.valid, odd)
    train(make_recipe(train={"steps": 1, "learning_rate": 1e-9}), load(MODEL), run)
    expected = oracle(load(MODEL).model, to_examples(odd, max_length=64))
    assert metrics(run)[-1]["valid_loss"] == pytest.approx(scalar(expected), rel=1e-5)


def test_training_is_adamw_written_out(make_recipe: MakeRecipe, run: RunDir) -> None:
    """Three steps on all rows against NumPy: both betas, bias correction, decay, and the schedule's rates."""
    betas, decay, peak = (0.6, 0.8), 4.0, 1e-2
    settings = {"steps": 3, "batch_size": 16, "learning_rate": peak, "warmup_ratio": 0.5, "schedule": "cosine"}
    settings |= {"betas": betas, "weight_decay": decay, "clip_norm": None, "save": "last"}
    recipe, loaded, rows_ = make_recipe(train=settings), load(MODEL), list(read_rows(run.train, TrainingRow))
    start: dict[str, mx.array] = {}

    def remember(event: Event) -> None:
        if isinstance(event, Progress) and event.done == 0:
            start.update({name: mx.array(array) for name, array in adapter_weights(loaded.model).items()})

    train(recipe, loaded, run, remember)
    found = mx.load(str(run.adapter / "adapters.safetensors"))
    assert isinstance(found, dict)
    model, examples = loaded.model, to_examples(rows_, max_length=64)
    weights = {name: np.array(array, np.float64) for name, array in start.items()}
    first = {name: np.zeros_like(array) for name, array in weights.items()}
    second = {name: np.zeros_like(array) for name, array in weights.items()}
    for step, rate in enumerate((peak / 2, peak, 0.1 * peak), start=1):
        model.load_weights(
            [(name, mx.array(array.astype(np.float32))) for name, array in weights.items()], strict=False
        )
        gradients = flat(nn.value_and_grad(model, lambda: oracle(model, examples))()[1])
        for name, gradient in gradients.items():
            first[name] = betas[0] * first[name] + (1 - betas[0]) * gradient
            second[name] = betas[1] * second[name] + (1 - betas[1]) * gradient.astype(np.float64) ** 2
            m, v = first[name] / (1 - betas[0] ** step), second[name] / (1 - betas[1] ** step)
            weights[name] = weights[name] * (1 - rate * decay) - rate * m / (np.sqrt(v) + 1e-8)
    for name, expected in weights.items():
        off, moved = np.linalg.norm(np.array(found[name]) - expected), np.linalg.norm(expected - np.array(start[name]))
        assert off < 5e-3 * moved, name


def test_clipping_bounds_the_first_step_to_the_same_direction(make_recipe: MakeRecipe, run: RunDir) -> None:
    """AdamW's first step is sign-like, so clipping shows in the second moment it leaves behind."""
    norms: dict[float | None, float] = {}
    for clip in (None, 1e-3):
        shutil.rmtree(run.adapter, ignore_errors=True)
        train(make_recipe(train={"steps": 1, "clip_norm": clip}), load(MODEL), run)
        found = latest(run.checkpoints)
        assert found is not None
        moments = [array for name, array in found[2].items() if name.endswith(".m")]
        norms[clip] = math.sqrt(sum(scalar(mx.square(m).sum()) for m in moments)) / (1 - 0.9)
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-3)
    assert norms[None] > 1e-2


@pytest.mark.parametrize("quantize", [None, Quantize(bits=4, group_size=32), Quantize(bits=8, group_size=32)])
def test_the_adapter_is_float32_on_plain_and_quantized_models(quantize: Quantize | None) -> None:
    loaded = load(MODEL, quantize=quantize)
    config = add_lora(loaded, Lora(rank=3, scale=2.0, num_layers=2), seed=0)
    weights = adapter_weights(loaded.model)
    assert {array.dtype for array in weights.values()} == {mx.float32}
    assert {name.split(".")[2] for name in weights} == {"2", "3"}
    assert all(3 in array.shape for array in weights.values())
    assert config["lora_parameters"] == {"rank": 3, "scale": 2.0, "dropout": 0.0}
