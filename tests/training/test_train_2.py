"""Training: what a step does, what is kept, and that an interrupted run ends with the bytes of a whole one: more."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest
from conftest import MODEL
from helpers.train import MakeRecipe, comparable, metrics, rows, run
from pydantic import ValidationError

from upft_mlx.distributed.interrupt import deferred_interrupt
from upft_mlx.errors import ModelError
from upft_mlx.events import Event, Note, Progress
from upft_mlx.models.adapters import adapter_weights, add_lora
from upft_mlx.models.load import load
from upft_mlx.recipe.schema import Lora, Quantize, Train
from upft_mlx.rows import TrainingRow, read_rows
from upft_mlx.rundir import RunDir
from upft_mlx.training.batches import PASS_TOKENS, to_examples
from upft_mlx.training.checkpoints import latest
from upft_mlx.training.step import Stepper
from upft_mlx.training.train import train

__all__ = ["run"]


def test_keys_choose_the_modules_and_too_many_layers_are_refused() -> None:
    loaded = load(MODEL)
    add_lora(loaded, Lora(keys=("self_attn.q_proj",)), seed=0)
    assert all("self_attn.q_proj.lora_" in name for name in adapter_weights(loaded.model))
    with pytest.raises(ModelError, match=r"lora\.num_layers: 9, but the model has 4 layers"):
        add_lora(load(MODEL), Lora(num_layers=9), seed=0)
    with pytest.raises(ModelError, match=r"no linear module 'q_proj'.*self_attn\.q_proj"):
        add_lora(load(MODEL), Lora(keys=("q_proj",)), seed=0)


@pytest.fixture
def compiling() -> Iterator[None]:
    """MLX compiles, which conftest.py switches off."""
    mx.enable_compile()
    yield
    mx.disable_compile()


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_compiled_step_of_a_gpu_is_the_plain_one(
    run: RunDir, dropout: float, compiling: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled here on the CPU: same losses and weights over shapes that come again and a restored state.

    With dropout the random state goes through; without, the shared tokens' keys and values do.
    """
    monkeypatch.setattr("upft_mlx.training.batches.LEAST_SAVED", 0)
    examples = to_examples(list(read_rows(run.train, TrainingRow)), max_length=64)
    steps = [examples[i : i + 4] for i in (0, 4, 0, 8)]
    results = []
    for compiled in (False, True):
        loaded = load(MODEL)
        add_lora(loaded, Lora(rank=2, dropout=dropout), seed=0)
        loaded.model.train()
        settings = Train(learning_rate=1e-3, micro_batch_size=3)
        stepper = Stepper(loaded.model, settings, shared=3, dropout=dropout > 0, compiled=compiled)
        assert stepper.shared == (0 if dropout else 3)
        losses = [stepper.step(step, 1e-3, seed)[0] for seed, step in enumerate(steps[:2])]
        kept = {k: mx.array(v) for k, v in adapter_weights(loaded.model).items()}
        optimizer = {k: mx.array(v) for k, v in stepper.arrays().items()}
        stepper.step(steps[2], 1e-3, 9)
        stepper.restore(kept, optimizer)
        losses += [stepper.step(step, 2e-3, seed)[0] for seed, step in enumerate(steps[2:], start=2)]
        losses.append(stepper.loss(examples))
        results.append((losses, adapter_weights(loaded.model)))
    (plain, weights), (fast, fast_weights) = results
    assert fast == pytest.approx(plain, rel=1e-5)
    for name, array in weights.items():
        assert mx.allclose(fast_weights[name], array, rtol=1e-4, atol=1e-6), name


def test_the_validation_loss_weighs_every_sequence_the_same(run: RunDir) -> None:
    examples = to_examples(list(read_rows(run.train, TrainingRow)), max_length=64)[:7]
    loaded = load(MODEL)
    alone = [Stepper(loaded.model, Train()).loss([example]) for example in examples]
    assert max(alone) - min(alone) > 0.1
    for size in (2, 3, 16, None):
        stepper = Stepper(loaded.model, Train(micro_batch_size=size))
        assert stepper.loss(examples) == pytest.approx(sum(alone) / 7, rel=1e-5)


def test_validation_takes_passes_no_larger_than_a_step_s(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ran `train.batch_size` rows at once: more memory than the step, which no plan had counted."""
    examples = to_examples(list(read_rows(run.train, TrainingRow)), max_length=64)[:7] * 12
    stepper, sizes = Stepper(load(MODEL).model, Train(batch_size=64)), list[int]()
    loss = stepper._loss

    def noted(shared: mx.array, tokens: mx.array, *rest: mx.array) -> mx.array:
        sizes.append(tokens.size)
        return loss(shared, tokens, *rest)

    monkeypatch.setattr(stepper, "_loss", noted)
    stepper.loss(examples)
    assert max(sizes) <= PASS_TOKENS < sum(sizes)


def test_ctrl_c_finishes_the_step_and_saves_it(make_recipe: MakeRecipe, run: RunDir, tmp_path: Path) -> None:
    recipe = make_recipe(train={"epochs": 2, "checkpoint_every": 50})
    whole = RunDir(tmp_path / "whole")
    shutil.copytree(run.root, whole.root)
    train(recipe, load(MODEL), whole)
    before = signal.getsignal(signal.SIGINT)
    notes: list[str] = []

    def press(event: Event) -> None:
        if isinstance(event, Progress) and event.done == 3:
            os.kill(os.getpid(), signal.SIGINT)
        if isinstance(event, Note):
            notes.append(event.text)

    with pytest.raises(KeyboardInterrupt):
        train(recipe, load(MODEL), run, press)
    assert notes[-1] == "interrupted after step 3 of 8, which is saved"
    assert signal.getsignal(signal.SIGINT) is before
    found = latest(run.checkpoints)
    assert found is not None
    assert found[0].step == 3
    train(recipe, load(MODEL), run)
    name = "adapters.safetensors"
    assert (run.adapter / name).read_bytes() == (whole.adapter / name).read_bytes()
    assert comparable(run) == comparable(whole)


def test_a_second_ctrl_c_stops_at_once() -> None:
    with deferred_interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A stand-in for the device facts of a Mac; remembers what is compiled."""
    compiled: list[Any] = []

    def remember(function: Any, **_: Any) -> Any:
        compiled.append(function)
        return function

    monkeypatch.setattr(mx, "default_device", lambda: SimpleNamespace(type=mx.DeviceType.gpu))
    monkeypatch.setattr(mx, "compile", remember)
    return compiled


def test_on_a_gpu_the_weights_keep_their_type_and_the_adapter_is_float32(gpu: list[Any]) -> None:
    loaded = load(MODEL, quantize=Quantize(bits=4, group_size=32))
    assert loaded.model.layers[0].self_attn.q_proj.scales.dtype == mx.float16
    add_lora(loaded, Lora(rank=2), seed=0)
    assert {array.dtype for array in adapter_weights(loaded.model).values()} == {mx.float32}
    stepper = Stepper(loaded.model, Train())
    assert {array.dtype for array in stepper.arrays().values()} == {mx.float32, mx.uint64}
    assert len(gpu) >= 2


def test_on_a_cpu_the_weights_are_float32_and_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "compile", lambda *_, **__: pytest.fail("compiled"))
    loaded = load(MODEL, quantize=Quantize(bits=4, group_size=32))
    assert loaded.model.layers[0].self_attn.q_proj.scales.dtype == mx.float32
    assert loaded.dtype == mx.float16
    Stepper(loaded.model, Train())


def test_micro_batches_checkpointing_and_sharing_train_the_same_adapter(
    make_recipe: MakeRecipe, run: RunDir, tmp_path: Path
) -> None:
    """Over several steps, with clipping: a wrong weight of a micro-batch would show in every one."""
    results: dict[str, tuple[list[dict[str, Any]], Any]] = {}
    variants: dict[str, dict[str, Any]] = {
        "whole": {},
        "micro": {"micro_batch_size": 3},
        "one by one": {"micro_batch_size": 1},
        "checkpointed": {"grad_checkpoint": True},
    }
    for name, settings in variants.items():
        part = RunDir(tmp_path / name)
        shutil.copytree(run.root, part.root)
        train(make_recipe(train={"batch_size": 7, "epochs": 3, "learning_rate": 1e-4, **settings}), load(MODEL), part)
        results[name] = metrics(part), mx.load(str(part.adapter / "adapters.safetensors"))
    lines, adapter = results["whole"]
    for name, (other_lines, other) in results.items():
        assert [x["loss"] for x in other_lines] == pytest.approx([x["loss"] for x in lines], rel=1e-5), name
        assert [x["valid_loss"] for x in other_lines[-1:]] == pytest.approx([lines[-1]["valid_loss"]], rel=1e-5), name
        assert [x["examples"] for x in other_lines] == [x["examples"] for x in lines], name
        for key, array in adapter.items():
            assert mx.linalg.norm(other[key] - array) < 1e-3 * mx.linalg.norm(array), (name, key)
    assert sum(x["padding_tokens"] for x in results["one by one"][0]) < sum(x["padding_tokens"] for x in lines)


def test_gradient_checkpointing_needs_less_memory(run: RunDir) -> None:
    """MLX's own order of computing would have all layers computed again before the first is used (`__init__.py`)."""
    examples = to_examples(list(read_rows(run.train, TrainingRow)), max_length=64)
    peaks = {}
    for checkpointed in (False, True):
        loaded = load(MODEL)
        add_lora(loaded, Lora(rank=2), seed=0)
        stepper = Stepper(loaded.model, Train(micro_batch_size=64, grad_checkpoint=checkpointed))
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        stepper.step(examples, 1e-4, 0)
        peaks[checkpointed] = mx.get_peak_memory() - before
        del loaded, stepper
        gc.collect()
    assert peaks[True] < 0.6 * peaks[False]


def test_micro_batches_need_less_memory(run: RunDir) -> None:
    examples = to_examples(list(read_rows(run.train, TrainingRow)), max_length=64)
    peaks = {}
    for size in (None, 2):
        loaded = load(MODEL)
        add_lora(loaded, Lora(rank=2), seed=0)
        stepper = Stepper(loaded.model, Train(micro_batch_size=size))
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        stepper.step(examples, 1e-4, 0)
        peaks[size] = mx.get_peak_memory() - before
    assert peaks[2] < 0.4 * peaks[None]


def test_the_metrics_say_what_was_padding(make_recipe: MakeRecipe, run: RunDir) -> None:
    position = train(make_recipe(train={"epochs": 1, "batch_size": 1}), load(MODEL), run)
    lengths = [len(row.prompt_ids) + len(row.completion_ids) - 1 for row in rows(14)]
    padding = sum(-length % 8 for length in lengths)  # alone, nothing is shared
    assert sum(line["padding_tokens"] for line in metrics(run)) == padding == position.padding_tokens
    assert sum(line["processed_tokens"] for line in metrics(run)) == sum(lengths) + padding
    assert position.padding == pytest.approx(padding / (sum(lengths) + padding))


def test_modes_that_are_off_are_noted_with_the_reason(make_recipe: MakeRecipe, run: RunDir) -> None:
    notes: list[str] = []

    def note(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    train(make_recipe(train={"steps": 1}), load(MODEL), run, note)
    assert notes[0] == "shared 3-token start computed once per batch where that saves time"
    shutil.rmtree(run.adapter)
    notes.clear()
    train(make_recipe(train={"steps": 1}, lora={"dropout": 0.1}), load(MODEL), run, note)
    assert "with lora.dropout each needs its own noise" in notes[0]
    assert not any("passed once" in text for text in notes)


def test_training_stops_when_the_validation_loss_has_not_become_better_for_long(
    make_recipe: MakeRecipe, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, notes = [3.0, 1.0, 2.0, 1.0, 0.5], list[str]()
    given = iter(losses)
    monkeypatch.setattr(Stepper, "loss", lambda self, *_: next(given))

    def note(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    recipe = make_recipe(train={"steps": 12, "validate_every": 2, "patience": 2, "checkpoint_every": 50})
    position = train(recipe, load(MODEL), run, note)
    assert (position.step, position.best_step) == (8, 4), "two losses in a row, at 6 and 8, were no better than at 4"
    assert "stopped after step 8 of 12: no better validation loss since step 4" in notes
    assert [line["step"] for line in metrics(run) if "valid_loss" in line] == [2, 4, 6, 8]
    before = (run.adapter / "adapters.safetensors").read_bytes()
    (run.adapter / "adapters.safetensors").unlink()
    again = train(recipe, load(MODEL), run, note)
    assert again.step == 8, "killed after its last step, it stays stopped"
    assert (run.adapter / "adapters.safetensors").read_bytes() == before


def test_patience_without_a_validation_loss_is_refused(make_recipe: MakeRecipe) -> None:
    with pytest.raises(ValidationError, match="patience: 3 without a validation loss"):
        make_recipe(train={"patience": 3, "valid_ratio": 0.0})
