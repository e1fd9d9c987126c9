"""Fusing: the fused model is the adapter's model, stock mlx-lm loads it, and what rounding loses is measured."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import MODEL
from helpers.adapter import Q4, run, write_adapter
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load as mlx_lm_load

from upft_mlx.errors import FuseError, ModelError
from upft_mlx.events import Event, Note
from upft_mlx.fusing.export import export_dequantized
from upft_mlx.fusing.fidelity import Comparison, greedy_probes, retained
from upft_mlx.fusing.formats import Format, write_model
from upft_mlx.fusing.fuse import fuse
from upft_mlx.fusing.fuser import Fuser
from upft_mlx.models.load import Loaded, load
from upft_mlx.planning.memory import Machine
from upft_mlx.recipe.schema import Quantize, Recipe
from upft_mlx.results.fidelity import Fidelity
from upft_mlx.rows import TrainingRow, read_rows
from upft_mlx.rundir import RunDir
from upft_mlx.sampling.same_logits import scalar
from upft_mlx.training.batches import Example, to_examples
from upft_mlx.training.checkpoints import save_safetensors
from upft_mlx.training.divergence import kl_per_position

__all__ = ["run"]
MakeRecipe = Callable[..., Recipe]
TOKENS = mx.array([[11, 12, 13, 14, 15]])


@pytest.mark.parametrize("quantize", [None, Q4, Quantize(bits=8, group_size=32)])
def test_the_fused_model_is_the_adapters_model_in_stock_mlx_lm(
    make_recipe: MakeRecipe, run: RunDir, quantize: Quantize | None
) -> None:
    adapted = write_adapter(run, 0.02, quantize)
    chosen = fuse(make_recipe(publish={"fuse": "fp16"}), load(MODEL, quantize=quantize), run)
    fused, *_ = mlx_lm_load(str(run.fused))
    fused.set_dtype(mx.float32)
    expected, base = adapted.model(TOKENS), load(MODEL, quantize=quantize).model(TOKENS)
    found = fused(TOKENS)
    off = scalar(mx.abs(found - expected).max())
    effect = scalar(mx.abs(base - expected).max())
    assert off < 0.02 * effect
    assert chosen.retained > 0.99


def test_the_fused_folder_answers_like_any_model(make_recipe: MakeRecipe, run: RunDir) -> None:
    write_adapter(run, 0.001, Q4)
    fuse(make_recipe(), load(MODEL, quantize=Q4), run)
    reloaded = load(run.fused)
    original = load(MODEL)
    messages = [{"role": "user", "content": "Ann has 3 apples."}]
    ids = [m.tokenizer.apply_chat_template(messages, add_generation_prompt=True) for m in (reloaded, original)]
    assert ids[0] == ids[1]
    assert reloaded.eos_ids == original.eos_ids
    assert not list(run.root.glob(".fused*"))


def test_the_bases_own_four_bits_lose_a_small_update_and_auto_notices(make_recipe: MakeRecipe, run: RunDir) -> None:
    write_adapter(run, 0.0005, Q4)
    chosen = fuse(make_recipe(), load(MODEL, quantize=Q4), run)
    facts = json.loads(run.fidelity.read_text())
    by_way = {candidate["fuse"]: candidate for candidate in facts["candidates"]}
    assert by_way["base"]["retained"] < 0.5
    assert chosen.fuse == "fp16"
    assert by_way["fp16"]["retained"] > 0.9
    assert by_way["base"]["bytes"] < by_way["fp16"]["bytes"]
    config = json.loads((run.fused / "config.json").read_text())
    assert config["quantization"]["model.layers.0.self_attn.q_proj"] is False


def test_auto_stays_small_where_that_keeps_the_effect(make_recipe: MakeRecipe, run: RunDir) -> None:
    write_adapter(run, 0.05, Quantize(bits=8, group_size=32))
    chosen = fuse(make_recipe(), load(MODEL, quantize=Quantize(bits=8, group_size=32)), run)
    assert chosen.fuse == "base"
    assert chosen.retained > 0.9
    fused, *_ = mlx_lm_load(str(run.fused))
    assert fused.model.layers[0].self_attn.q_proj.bits == 8


@pytest.mark.parametrize(("base", "chosen"), [(0.94, "mixed-8"), (0.96, "base")])
def test_auto_takes_the_smallest_way_that_keeps_95_percent(
    make_recipe: MakeRecipe, run: RunDir, monkeypatch: pytest.MonkeyPatch, base: float, chosen: str
) -> None:
    """What each form keeps is made up; the rest of the choice is real."""
    kept = {"base": base, "base-fitted": 0.9, "mixed-6": 0.9, "mixed-6-fitted": 0.949, "mixed-8": 0.951}
    kept["mixed-8-fitted"] = 0.98
    judge = Fuser.judge

    def judged(self: Fuser, form: Format) -> Fidelity:
        self.measured[form.name] = replace(judge(self, form), retained=kept[form.name])
        return self.measured[form.name]

    monkeypatch.setattr(Fuser, "judge", judged)
    write_adapter(run, 0.02, Q4)
    assert fuse(make_recipe(), load(MODEL, quantize=Q4), run).fuse == chosen
    demanding = make_recipe(publish={"min_retained": 0.97})
    assert fuse(demanding, load(MODEL, quantize=Q4), run).fuse == "mixed-8-fitted"


def test_a_way_that_loses_the_effect_is_refused_with_those_that_keep_it_and_their_sizes(
    make_recipe: MakeRecipe, run: RunDir
) -> None:
    write_adapter(run, 0.0005, Q4)
    with pytest.raises(FuseError, match=r"fusing as base-fitted keeps (none|[\d.]+ %) of the adapter's") as caught:
        fuse(make_recipe(publish={"fuse": "base"}), load(MODEL, quantize=Q4), run)
    assert not run.fused.exists()
    assert not run.fidelity.exists()
    options = dict(re.findall(r"(\w+) \((?:\d bits, )?([\d.]+ MB), keeps", str(caught.value)))
    assert set(options) == {"fp16", "adapter"}
    size = (run.adapter / "adapters.safetensors").stat().st_size
    assert options["adapter"] == f"{size / 1e6:.1f} MB"
    for name, option in options.items():
        chosen = fuse(make_recipe(publish={"fuse": name}), load(MODEL, quantize=Q4), run)
        assert f"{chosen.bytes / 1e6:.1f} MB" == option


def test_less_than_nothing_is_said_in_words() -> None:
    found = Fidelity(kl=0.3, top1_agreement=0.5, greedy_agreement=0.1, fuse="base", retained=-2.0, kl_base=0.1, bytes=1)
    assert found.kept == "none of the adapter's effect (3.0 times as far from the adapter as the base is)"
    assert replace(found, retained=0.971).kept == "97.1 % of the adapter's effect"
    assert replace(found, retained=1.0, kl_base=1e-13).kept == "no effect, as the adapter has none"


def test_a_refusal_tries_16_bits_only_where_there_is_room_for_them(
    make_recipe: MakeRecipe, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_adapter(run, 0.0005, Q4)
    tight = Machine(is_gpu=True, bytes=1_000_000, what="a small machine", whole=2**30)
    monkeypatch.setattr("upft_mlx.fusing.fuse.this_machine", lambda: tight)
    asked = make_recipe(publish={"fuse": "mixed", "min_retained": 1.0})
    with pytest.raises(
        FuseError, match=r"; 16 bits were not tried because measuring them does not fit in memory\. To"
    ) as caught:
        fuse(asked, load(MODEL, quantize=Q4), run)
    assert "fp16" not in str(caught.value)


@pytest.mark.parametrize("form", ["force", "min_retained"])
def test_what_loses_the_effect_is_fused_where_that_is_asked_for(
    make_recipe: MakeRecipe, run: RunDir, form: str
) -> None:
    write_adapter(run, 0.0005, Q4)
    publish = {"fuse": "base", **({"min_retained": 0.0} if form == "min_retained" else {})}
    kept = fuse(make_recipe(publish=publish), load(MODEL, quantize=Q4), run, force=form == "force")
    assert kept.retained < 0.5
    assert run.fused.exists()


def test_auto_is_refused_as_well_where_nothing_keeps_enough(make_recipe: MakeRecipe, run: RunDir) -> None:
    write_adapter(run, 0.0005, Q4)
    with pytest.raises(FuseError, match=r"these values of publish\.fuse pass: adapter \(.* keeps 100\.0 %\)\. To fuse"):
        fuse(make_recipe(publish={"min_retained": 1.0}), load(MODEL, quantize=Q4), run)


def test_mixed_gives_the_touched_layers_more_bits_and_leaves_the_others(make_recipe: MakeRecipe, run: RunDir) -> None:
    write_adapter(run, 0.02, Q4)
    chosen = fuse(make_recipe(publish={"fuse": "mixed"}), load(MODEL, quantize=Q4), run)
    bits = int(chosen.fuse.split("-")[1])
    assert bits in (6, 8)
    fused, _, config = mlx_lm_load(str(run.fused), return_config=True)
    assert fused.model.layers[0].self_attn.q_proj.bits == bits
    assert fused.model.embed_tokens.bits == 4
    assert config["quantization"]["model.layers.3.mlp.down_proj"]["bits"] == bits
    assert mx.array_equal(fused.model.embed_tokens.weight, load(MODEL, quantize=Q4).model.model.embed_tokens.weight)


@pytest.mark.parametrize("form", ["base", "mixed", "bf16", "fp16"])
def test_what_is_written_is_what_was_measured(make_recipe: MakeRecipe, run: RunDir, form: str) -> None:
    """The folder, loaded by mlx-lm, diverges from the adapter exactly as fidelity.json says."""
    adapted = write_adapter(run, 0.02, Q4)
    chosen = fuse(make_recipe(publish={"fuse": form, "min_retained": 0.0}), load(MODEL, quantize=Q4), run)
    rows = to_examples(list(read_rows(run.valid, TrainingRow)), 2048)
    comparison = Comparison(adapted.model, rows, greedy_probes(adapted, [list(e.ids[: e.start]) for e in rows]))
    fused, *_ = mlx_lm_load(str(run.fused))
    size = sum(file.stat().st_size for file in run.fused.glob("*.safetensors"))
    assert chosen.bytes == pytest.approx(size, rel=0.15)  # and the file's header
    fused.set_dtype(mx.float32)
    found = comparison.of(fused)
    assert found.kl == pytest.approx(chosen.kl, rel=1e-3)
    assert found.top1_agreement == chosen.top1_agreement
    assert found.greedy_agreement == chosen.greedy_agreement


def test_a_fused_folder_takes_an_adapter_on_top_in_stock_mlx_lm(make_recipe: MakeRecipe, run: RunDir) -> None:
    write_adapter(run, 0.02, Q4)
    fuse(make_recipe(publish={"fuse": "mixed", "min_retained": 0.0}), load(MODEL, quantize=Q4), run)
    fused, *_ = mlx_lm_load(str(run.fused))
    before = fused(TOKENS)
    linear_to_lora_layers(fused, -1, {"rank": 4, "scale": 2.0, "dropout": 0.0})
    assert mx.allclose(fused(TOKENS), before)  # a fresh adapter does nothing


def test_adapter_means_not_fused(make_recipe: MakeRecipe, run: RunDir) -> None:
    write_adapter(run, 0.02, Q4)
    fuse(make_recipe(), load(MODEL, quantize=Q4), run)
    chosen = fuse(make_recipe(publish={"fuse": "adapter"}), load(MODEL, quantize=Q4), run)
    assert chosen.retained == 1
    assert not run.fused.exists()
    assert json.loads(run.fidelity.read_text())["base"]["kl"] > 0


@pytest.mark.parametrize(("quantize", "bits"), [(None, 16), (Quantize(bits=8, group_size=32), 8)])
def test_mixed_is_refused_where_it_would_be_the_base(
    make_recipe: MakeRecipe, run: RunDir, quantize: Quantize | None, bits: int
) -> None:
    write_adapter(run, 0.02, quantize)
    with pytest.raises(FuseError, match=rf"publish\.fuse: mixed: has no effect when the base has {bits} bits"):
        fuse(make_recipe(publish={"fuse": "mixed"}), load(MODEL, quantize=quantize), run)


@pytest.fixture
def bfloat(tmp_path: Path) -> Path:
    """The embedded model in bfloat16."""
    loaded = load(MODEL)
    loaded.model.set_dtype(mx.bfloat16)
    config = {**loaded.config, "torch_dtype": "bfloat16"}
    write_model(loaded, config, tmp_path / "bfloat")
    return tmp_path / "bfloat"


def test_a_bfloat16_model_becomes_float16_as_a_whole_where_bfloat16_loses_the_effect(
    make_recipe: MakeRecipe, run: RunDir, bfloat: Path
) -> None:
    """One float16 matrix in a bfloat16 model would be computed in float32, converted for every token."""
    write_adapter(run, 0.0005)
    chosen = fuse(make_recipe(), load(bfloat), run)
    facts = {found["fuse"]: found for found in json.loads(run.fidelity.read_text())["candidates"]}
    assert chosen.fuse == "fp16"
    assert facts["base"]["retained"] < 0.95 <= facts["fp16"]["retained"]
    assert facts["base"]["bytes"] == facts["fp16"]["bytes"]
    arrays = mx.load(str(run.fused / "model.safetensors"))
    assert isinstance(arrays, dict)
    assert {array.dtype for array in arrays.values()} == {mx.float16}
    assert json.loads((run.fused / "config.json").read_text())["torch_dtype"] == "float16"


@pytest.mark.parametrize("form", ["bf16", "fp16", "dequantized"])
def test_what_a_folder_keeps_in_float32_stays_as_it_is(
    make_recipe: MakeRecipe, run: RunDir, bfloat: Path, form: str
) -> None:
    """mlx-lm's folders of models with experts do so with what experts are chosen by."""
    name, file = "model.layers.1.input_layernorm.weight", bfloat / "model.safetensors"
    arrays = mx.load(str(file))
    assert isinstance(arrays, dict)
    arrays[name] = arrays[name].astype(mx.float32) + 1e-5
    mx.save_safetensors(str(file), arrays, {"format": "mlx"})
    write_adapter(run, 0.02)
    recipe = make_recipe(publish={"fuse": "fp16" if form == "fp16" else "base", "min_retained": 0.0})
    if form == "dequantized":
        export_dequantized(recipe, load(bfloat), run, run.fused, "fp16")
        size = None
    else:
        size = fuse(recipe, load(bfloat), run).bytes
    found = mx.load(str(run.fused / "model.safetensors"))
    assert isinstance(found, dict)
    assert mx.array_equal(found[name], arrays[name])
    assert {array.dtype for other, array in found.items() if other != name} == {
        mx.bfloat16 if form == "bf16" else mx.float16
    }
    assert size in (None, sum(array.nbytes for array in found.values()))


def test_a_model_that_overflows_in_float16_is_not_written_in_it(
    make_recipe: MakeRecipe, run: RunDir, bfloat: Path
) -> None:
    arrays = mx.load(str(bfloat / "model.safetensors"))
    assert isinstance(arrays, dict)
    arrays["model.layers.1.mlp.down_proj.weight"] *= 1e6
    arrays["model.layers.2.mlp.down_proj.weight"] *= 1e6
    mx.save_safetensors(str(bfloat / "model.safetensors"), arrays, {"format": "mlx"})
    write_adapter(run, 0.0001)
    seen: list[Event] = []
    chosen = fuse(make_recipe(publish={"min_retained": 0.0}), load(bfloat), run, seen.append)
    assert chosen.fuse == "base"
    assert any(isinstance(event, Note) and "overflow" in event.text for event in seen)
    with pytest.raises(FuseError, match="overflows in it"):
        fuse(make_recipe(publish={"fuse": "fp16"}), load(bfloat), run)


def test_an_adapter_without_effect_counts_as_kept(make_recipe: MakeRecipe, run: RunDir) -> None:
    write_adapter(run, 0.0)
    assert fuse(make_recipe(), load(MODEL), run).retained == 1.0


def test_retained_is_one_for_the_adapter_and_zero_for_the_base() -> None:
    p, q = mx.log(mx.array([[0.25, 0.75], [0.9, 0.1]])), mx.log(mx.array([[0.5, 0.5], [0.9, 0.1]]))
    found = kl_per_position(p, q).tolist()
    assert found == pytest.approx([0.25 * np.log(0.5) + 0.75 * np.log(1.5), 0], rel=1e-5)
    assert retained(0.0, 0.1) == 1
    assert retained(0.1, 0.1) == 0
    assert retained(0.2, 0.1) == -1


class Says(nn.Module):
    """A model that says the next token of its input, whatever it is, or the tokens given instead."""

    def __init__(self, instead: dict[int, int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.instead = instead

    def __call__(self, tokens: mx.array) -> mx.array:
        following = [[self.instead.get(int(t) + 1, int(t) + 1) for t in row] for row in tokens.tolist()]  # type: ignore
        return 20.0 * (mx.array(following)[..., None] == mx.arange(32))


def test_greedy_agreement_counts_the_tokens_before_the_first_that_differs() -> None:
    """Counting up is greedy from any start. Of 1..4 after the prompt 0 the other says 3 wrong, of 11..12 none."""
    rows = [Example("row", [20, 21, 22], 1)]
    greedy = [Example("a", [0, 1, 2, 3, 4], 1), Example("b", [10, 11, 12], 1)]
    comparison = Comparison(Says({}), rows, greedy)
    same, other = comparison.of(Says({})), comparison.of(Says({3: 9, 22: 5}))
    assert (same.kl, same.top1_agreement, same.greedy_agreement) == (0, 1, 1)
    assert other.top1_agreement == 6 / 8
    assert other.greedy_agreement == (2 / 4 + 2 / 2) / 2


def test_the_greedy_probes_are_the_adapters_own_greedy_tokens_with_their_end(loaded: Loaded) -> None:
    prompt = [
        int(t)
        for t in loaded.tokenizer.apply_chat_template(
            [{"role": "user", "content": "Ann has 3 apples."}], add_generation_prompt=True
        )
    ]
    [probe] = greedy_probes(loaded, [prompt, []])
    assert probe.ids[: probe.start] == prompt
    assert 0 < probe.supervised <= 33
    expected = loaded.model(mx.array([list(probe.ids)]))[0].argmax(axis=-1).tolist()
    assert isinstance(expected, list)
    assert probe.ids[probe.start :] == expected[probe.start - 1 : -1]


def test_an_adapter_of_another_model_is_refused(make_recipe: MakeRecipe, run: RunDir) -> None:
    write_adapter(run, 0.001)
    arrays = mx.load(str(run.adapter / "adapters.safetensors"))
    assert isinstance(arrays, dict)
    name = next(name for name in arrays if name.endswith("lora_a"))
    save_safetensors(run.adapter / "adapters.safetensors", {**arrays, name: mx.zeros((3, 4))})
    with pytest.raises(ModelError, match=rf"{name} \(3, 4\) does not fit .*belongs to another model"):
        fuse(make_recipe(), load(MODEL), run)
    (run.adapter / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match=r"adapter_config\.json is missing"):
        fuse(make_recipe(), load(MODEL), run)


@pytest.mark.parametrize("size", [1e-5, 1e-3, 0.1, 2.0])
def test_divergences_are_exact_however_small(size: float) -> None:
    """Against float64: an update of 1e-5 has an effect of 1e-10 nats, which rounding must not swallow."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 500)) * 3
    moved = logits + size * rng.normal(size=(4, 500))

    def log_softmax(x: Any) -> Any:
        return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))

    p, q = log_softmax(logits), log_softmax(moved)
    expected = (np.exp(p) * (p - q)).sum(axis=-1).mean()
    reference = mx.array(p.astype(np.float32))
    found = kl_per_position(reference, mx.array(q.astype(np.float32))).mean()
    assert scalar(found) == pytest.approx(expected, rel=0.02)
    assert scalar(kl_per_position(reference, reference).max()) == 0


def test_on_a_gpu_the_effect_is_measured_past_the_rounding_of_activations(
    make_recipe: MakeRecipe, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the model computes in 16 bits, whose rounding hides so small an update altogether."""
    monkeypatch.setattr(mx, "default_device", lambda: SimpleNamespace(type=mx.DeviceType.gpu))
    write_adapter(run, 0.0005, Q4)
    chosen = fuse(make_recipe(), load(MODEL, quantize=Q4), run)
    assert chosen.fuse == "fp16"
    assert chosen.retained > 0.9
    arrays = mx.load(str(run.fused / "model.safetensors"))
    assert isinstance(arrays, dict)
    assert {array.dtype for array in arrays.values()} == {mx.float16, mx.uint32}
