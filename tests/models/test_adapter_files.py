"""Adapters that other tools wrote: what is read of them, what is refused, and training that goes on from one."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from conftest import MODEL
from helpers.adapter import Q4, run, write_mlx_lm
from mlx_lm.tuner.utils import load_adapters

from upft_mlx.errors import ModelError, RecipeError
from upft_mlx.fusing.export import export_peft
from upft_mlx.models.adapter_files import read_adapter, started
from upft_mlx.models.adapters import AdapterSwitch, adapter_weights, add_lora, load_adapter
from upft_mlx.models.load import load
from upft_mlx.recipe.load import load_recipe
from upft_mlx.recipe.schema import Quantize, Recipe
from upft_mlx.rows import write_json
from upft_mlx.rundir import RunDir
from upft_mlx.training.checkpoints import save_safetensors

__all__ = ["run"]
TOKENS = mx.array([[11, 12, 13, 14, 15, 100, 30]])
Change = Callable[[Path], object]


def logits(model: Any) -> np.ndarray[Any, Any]:
    return np.array(model(TOKENS).astype(mx.float32))


def write_peft(folder: Path, *, layers: tuple[int, ...] = (1, 3), dora: bool = False, **config: Any) -> Path:
    """A PEFT adapter on two kinds of modules, q_proj with twice the rank where `rank_pattern` is given."""
    rng, r = np.random.default_rng(0), config.get("r", 2)
    arrays: dict[str, mx.array] = {}
    for layer in layers:
        for key, (outputs, inputs) in {"self_attn.q_proj": (64, 64), "mlp.down_proj": (64, 192)}.items():
            own = 2 * r if "q_proj" in key and "rank_pattern" in config else r
            name = f"base_model.model.model.layers.{layer}.{key}"
            shapes: dict[str, tuple[int, ...]] = {"lora_A.weight": (own, inputs), "lora_B.weight": (outputs, own)}
            shapes |= {"lora_magnitude_vector": (outputs,)} if dora else {}
            arrays |= {f"{name}.{part}": mx.array(rng.normal(size=s).astype("f4")) * 0.1 for part, s in shapes.items()}
    stated = {"peft_type": "LORA", "r": r, "lora_alpha": 8, "lora_dropout": 0.1, "use_dora": dora, **config}
    write_json(folder / "adapter_config.json", stated)
    save_safetensors(folder / "adapter_model.safetensors", arrays)
    return folder


# Reading.


@pytest.mark.parametrize("quantize", [None, Q4], ids=["dense", "4 bits"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_mlx_lms_adapters_do_what_mlx_lm_does_with_them(tmp_path: Path, kind: str, quantize: Quantize | None) -> None:
    folder = write_mlx_lm(tmp_path / "a", kind)
    ours, theirs, base = (load(MODEL, quantize=quantize) for _ in range(3))
    load_adapter(ours, folder)
    load_adapters(theirs.model, str(folder))
    assert np.abs(logits(ours.model) - logits(theirs.model.eval())).max() < 1e-5
    assert np.abs(logits(ours.model) - logits(base.model)).max() > 0.05


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_what_goes_to_peft_and_comes_back_is_the_same_model(run: RunDir, tmp_path: Path, kind: str) -> None:
    write_mlx_lm(run.adapter, kind)
    export_peft(run, MODEL, "org/base", tmp_path / "peft")
    ours, back, base = load(MODEL), load(MODEL), load(MODEL)
    load_adapter(ours, run.adapter)
    load_adapter(back, tmp_path / "peft")
    assert np.abs(logits(ours.model) - logits(back.model)).max() < 1e-4
    assert np.abs(logits(ours.model) - logits(base.model)).max() > 0.05


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"layers.3.mlp.down_proj": 2}},
        {"rank_pattern": {"^model.layers.1.self_attn.q_proj": 4, "model\\.layers\\.3\\.self_attn\\.q_proj": 4}},
    ],
    ids=["plain", "rslora", "patterns", "anchored"],
)
def test_a_peft_adapter_adds_what_pefts_documentation_says(tmp_path: Path, config: dict[str, Any]) -> None:
    """W + B A alpha / r, with the module's own r and alpha; alpha / sqrt(r) for rsLoRA. Other modules stay."""
    folder = write_peft(tmp_path / "peft", **config)
    loaded, base = load(MODEL), load(MODEL)
    load_adapter(loaded, folder)
    arrays = mx.load(str(folder / "adapter_model.safetensors"))
    assert isinstance(arrays, dict)
    before = dict(base.model.named_modules())
    seen = 0
    for name, module in loaded.model.named_modules():
        if "lora_a" not in module:
            continue
        added = module.fuse(dequantize=True).weight - before[name].weight
        layer = int(name.split(".")[2])
        if layer not in (1, 3):
            assert mx.abs(added).max() == 0
            assert mx.abs(module.lora_a).max() == mx.abs(module.lora_b).max() == 0  # no gradient either
            continue
        a, b = (arrays[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        alpha = 2 if "alpha_pattern" in config and name.endswith("layers.3.mlp.down_proj") else 8
        factor = alpha / math.sqrt(a.shape[0]) if config.get("use_rslora") else alpha / a.shape[0]
        assert mx.allclose(added, factor * b @ a, atol=1e-5), name
        seen += 1
    assert seen == 4
    assert {int(n.split(".")[2]) for n, m in loaded.model.named_modules() if "lora_a" in m} == {1, 2, 3}


def test_a_dora_adapter_of_peft_scales_the_rows_of_the_weight(tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "peft", layers=(3,), dora=True)
    loaded, base = load(MODEL), load(MODEL)
    load_adapter(loaded, folder)
    arrays = mx.load(str(folder / "adapter_model.safetensors"))
    assert isinstance(arrays, dict)
    name = "model.layers.3.mlp.down_proj"
    w = dict(base.model.named_modules())[name].weight
    a, b = (arrays[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    wanted = w + 4.0 * b @ a
    wanted = arrays[f"base_model.model.{name}.lora_magnitude_vector"][:, None] * wanted
    wanted = wanted / mx.linalg.norm(w + 4.0 * b @ a, axis=1, keepdims=True)
    found = dict(loaded.model.named_modules())[name].fuse(dequantize=True).weight
    assert mx.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_switched_off_it_is_the_base_bit_for_bit(tmp_path: Path, kind: str) -> None:
    base, loaded = load(MODEL), load(MODEL)
    switch = AdapterSwitch(loaded, write_mlx_lm(tmp_path / "a", kind))
    tuned = logits(loaded.model)
    switch("base")
    assert np.array_equal(logits(loaded.model), logits(base.model))
    switch("tuned")
    assert np.array_equal(logits(loaded.model), tuned)


# What is refused.


def stated(**values: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        write_json(path, {**json.loads(path.read_text()), **values})

    return change


def arrays_changed(change: Callable[[dict[str, mx.array]], object]) -> Change:
    def apply(folder: Path) -> None:
        found = mx.load(str(folder / "adapter_model.safetensors"))
        assert isinstance(found, dict)
        change(found)
        save_safetensors(folder / "adapter_model.safetensors", found)

    return apply


Q = "base_model.model.model.layers.1.self_attn.q_proj"
EMBEDDING = "base_model.model.model.embed_tokens.lora_embedding_A"
BAD: dict[str, tuple[Change, str]] = {
    "another method": (stated(peft_type="IA3"), r"/adapter_config.json: peft_type: 'IA3': expected LORA"),
    "a rank of text": (stated(r="8"), r"adapter_config.json: r: '8': expected a number from 1 to 4096"),
    "a huge rank": (stated(r=10**9), r"r: 1000000000: expected a number from 1 to 4096"),
    "no alpha": (stated(lora_alpha=None), r"lora_alpha: None: expected a number"),
    "alpha not finite": (stated(lora_alpha=math.inf), r"adapter_config.json: lora_alpha: "),
    "no update": (stated(lora_alpha=0), r"adapter_config.json: lora_alpha: 0: expected a number above 0"),
    "no update by patterns": (
        stated(alpha_pattern={"q_proj": 0, "down_proj": 0.0}),
        r"adapter_config.json: alpha_pattern: .*q_proj.*: expected a number above 0",
    ),
    "biases": (stated(bias="all"), r"bias: 'all': expected none: it is not supported here"),
    "other modules": (stated(modules_to_save=["lm_head"]), r"modules_to_save: \['lm_head'\]: expected None"),
    "PiSSA": (stated(init_lora_weights="pissa"), r"init_lora_weights: 'pissa': expected one that leaves the base"),
    "a regular expression": (stated(alpha_pattern={"(a+)+$": 2}), r"alpha_pattern: '\(a\+\)\+\$': expected names"),
    "a pattern of text": (stated(rank_pattern={"q_proj": "9"}), r"rank_pattern: '9': expected a number"),
    "rank and r differ": (stated(r=4), r"_proj.lora_A.weight: rank 2, but adapter_config.json has r 4 for it"),
    "DoRA without magnitudes": (stated(use_dora=True), r"has no lora_magnitude_vector"),
    "a lone half": (arrays_changed(lambda a: a.pop(f"{Q}.lora_B.weight")), r"q_proj.lora_A.weight: has no lora_B"),
    "an embedding": (
        arrays_changed(lambda a: a.update({EMBEDDING: mx.zeros((2, 2))})),
        r"embedding_A: only adapters on",
    ),
    "an adapter on vision": (
        arrays_changed(lambda a: a.update({"base_model.model.vision.layers.0.q.lora_A.weight": mx.zeros((2, 2))})),
        r"vision.layers.0.q.lora_A.weight: only adapters on linear modules of the text model's layers",
    ),
    "halves that do not fit": (
        arrays_changed(lambda a: a.update({f"{Q}.lora_B.weight": mx.zeros((64, 3))})),
        r"q_proj.lora_B.weight: \(64, 3\) does not go with \(2, 64\) of lora_A",
    ),
    "another model's": (
        arrays_changed(lambda a: a.update({f"{Q}.lora_A.weight": mx.zeros((2, 99))})),
        r"layers.1.self_attn.q_proj.lora_a \(99, 2\) does not fit .*; it belongs to another model",
    ),
    "too many layers": (
        arrays_changed(
            lambda a: a.update({k.replace("layers.3", "layers.9"): a.pop(k) for k in list(a) if "layers.3" in k})
        ),
        r"layers.9.*: the model has no such module; it belongs to another model",
    ),
    "whole numbers": (
        arrays_changed(lambda a: a.update({f"{Q}.lora_A.weight": mx.zeros((2, 64), mx.int32)})),
        "I32 inst",
    ),
    "twice": (
        arrays_changed(lambda a: a.update({Q.removeprefix("base_model.") + ".lora_A.weight": a[f"{Q}.lora_A.weight"]})),
        "a second lora_A of the same module",
    ),
    "cut": (
        lambda f: (f / "adapter_model.safetensors").write_bytes((f / "adapter_model.safetensors").read_bytes()[:-9]),
        "adapter_model.safetensors: not a safetensors file",
    ),
    "empty": (arrays_changed(lambda a: a.clear()), "holds no adapter"),
    "pickled": (
        lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
        "only adapter_model.bin is there, which can run code when it is read; save the adapter again with safe_seria",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_peft_adapter_that_cannot_be_used_is_named_with_file_and_field(tmp_path: Path, case: str) -> None:
    folder = write_peft(tmp_path / "peft")
    change, wanted = BAD[case]
    change(folder)
    with pytest.raises(ModelError) as caught:
        load_adapter(load(MODEL), folder)
    assert str(caught.value).startswith(str(folder))
    assert re.search(wanted, str(caught.value)), str(caught.value)


# Training that starts from one.


def recipe(folder: Path, lora: dict[str, Any] | None = None, **sections: Any) -> Recipe:
    data = {"model": "builtin:arithmetic", "problems": {"builtin": "arithmetic", "limit": 8}, **sections}
    return Recipe.model_validate({**data, "lora": {"start_from": str(folder), **(lora or {})}})


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_training_starts_with_the_adapters_own_weights(tmp_path: Path, kind: str) -> None:
    folder = write_mlx_lm(tmp_path / "a", kind)
    loaded = load(MODEL)
    config = add_lora(loaded, started(recipe(folder), MODEL).lora, seed=0)
    found, wanted = adapter_weights(loaded.model), mx.load(str(folder / "adapters.safetensors"))
    assert isinstance(wanted, dict)
    assert found.keys() == wanted.keys()
    assert all(mx.array_equal(found[name], wanted[name]) for name in wanted)
    assert config == {**json.loads((folder / "adapter_config.json").read_text()), "fine_tune_type": kind}


def test_a_16_bit_adapter_is_trained_in_float32(tmp_path: Path) -> None:
    folder = write_mlx_lm(tmp_path / "a")
    arrays = mx.load(str(folder / "adapters.safetensors"))
    assert isinstance(arrays, dict)
    save_safetensors(folder / "adapters.safetensors", {n: a.astype(mx.bfloat16) for n, a in arrays.items()})
    loaded = load(MODEL)
    add_lora(loaded, started(recipe(folder), MODEL).lora, seed=0)
    assert {array.dtype for array in adapter_weights(loaded.model).values()} == {mx.float32}


def test_its_settings_are_the_adapters(tmp_path: Path) -> None:
    found = started(recipe(write_mlx_lm(tmp_path / "a"), {"dropout": 0.1}), MODEL).lora
    assert (found.rank, found.scale, found.num_layers, found.dropout) == (3, 5.0, 2, 0.1)
    assert found.keys == ("self_attn.q_proj", "mlp.down_proj")
    found = started(recipe(write_peft(tmp_path / "p", layers=(0, 1, 2, 3))), MODEL).lora
    assert (found.rank, found.scale, found.num_layers) == (2, 4.0, -1)
    assert found.keys == ("mlp.down_proj", "self_attn.q_proj")


def test_what_contradicts_it_is_refused_with_names(tmp_path: Path) -> None:
    folder = write_mlx_lm(tmp_path / "a")
    wanted = {"rank": 16, "scale": 2.0, "num_layers": -1, "keys": ["mlp.up_proj"]}
    with pytest.raises(RecipeError) as caught:
        started(recipe(folder, wanted), MODEL)
    lines = str(caught.value).splitlines()
    has = f"but the adapter {folder} has"
    assert [line.partition(";")[0] for line in lines] == [
        f"lora.rank: 16, {has} 3",
        f"lora.scale: 2.0, {has} 5.0",
        f"lora.num_layers: -1, {has} 2",
        f"lora.keys: mlp.up_proj, {has} self_attn.q_proj, mlp.down_proj",
    ]
    same = {"rank": 3, "keys": ["mlp.down_proj", "self_attn.q_proj"]}
    assert started(recipe(folder, same), MODEL).lora.rank == 3
    assert started(recipe(write_mlx_lm(tmp_path / "all", layers=-1), {"num_layers": 4}), MODEL).lora.num_layers == -1


def test_one_without_an_update_is_refused_with_file_and_field(tmp_path: Path) -> None:
    """mlx-lm's adapter of scale 0 can be measured, not trained; it ended in a traceback of pydantic's."""
    folder = write_mlx_lm(tmp_path / "a")
    config = json.loads((folder / "adapter_config.json").read_text())
    stated(lora_parameters={**config["lora_parameters"], "scale": 0.0})(folder)
    assert read_adapter(folder).scale == 0
    with pytest.raises(ModelError, match=r"adapter_config.json: lora_parameters.scale: 0.0: expected a number above 0"):
        started(recipe(folder), MODEL)


def test_what_it_decides_stays_open_until_it_is_read(tmp_path: Path) -> None:
    """A dump that is read again, as for `--limit` or a sweep, contradicts nothing that nobody wrote."""
    unread = recipe(write_mlx_lm(tmp_path / "a"))
    assert set(unread.dump()["lora"]) == {"dropout", "grid", "start_from"}
    again = started(Recipe.model_validate(unread.model_dump()), MODEL)
    assert again.dump()["lora"]["rank"] == 3
    assert started(Recipe.model_validate(again.dump()), MODEL) == again


def test_its_path_starts_at_the_recipes_folder(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "model: builtin:arithmetic\nproblems: {builtin: arithmetic}\nlora: {start_from: a}\n"
    )
    assert load_recipe(tmp_path / "r.yaml").lora.start_from == str(tmp_path / "a")


@pytest.mark.parametrize("made", ["mlx-lm", "dora", "peft"])
def test_a_whole_run_goes_on_from_it(tmp_path: Path, made: str) -> None:
    """Trained a little further it is still near the start; base is the model without it; a changed one trains again."""
    from upft_mlx import pipeline

    folder = tmp_path / "a"
    write_peft(folder) if made == "peft" else write_mlx_lm(folder, "dora" if made == "dora" else "lora")
    small: dict[str, Any] = {
        "generate": {"max_tokens": 16},
        "train": {"steps": 2, "batch_size": 4, "learning_rate": 1e-6, "valid_ratio": 0.0},
        "evaluate": {"max_tokens": 16, "benchmarks": [{"name": "arithmetic", "limit": 2}]},
        "publish": {"fuse": "fp16", "min_retained": 0},
    }
    chosen, where = recipe(folder, **small), tmp_path / "run"
    facts = pipeline.run(chosen, where)
    assert facts.benchmarks["arithmetic"].compared is not None
    after, before, base = load(MODEL), load(MODEL), load(MODEL)
    load_adapter(after, where / "adapter")
    load_adapter(before, folder)
    near, far = (np.abs(logits(after.model) - logits(other.model)).max() for other in (before, base))
    assert 0 < near < 0.01 * far
    fused = load(where / "fused")
    assert np.abs(logits(fused.model) - logits(after.model)).max() < 0.02 * far
    job = pipeline.prepare(chosen, where)
    assert all(job.is_current(stage) for stage in ("generate", "build", "train", "fuse"))
    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    assert pipeline.prepare(recipe(moved, **small), where).is_current("train")
    stated(note="another file")(moved)
    job = pipeline.prepare(recipe(moved, **small), where)
    assert job.is_current("build")
    assert not job.is_current("train")


def test_a_run_does_not_start_from_its_own_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from upft_mlx import pipeline

    folder, other = (write_mlx_lm(tmp_path / name / "adapter") for name in ("run", "RUN"))
    pipeline.prepare(recipe(other), tmp_path / "run")
    with monkeypatch.context() as mac:  # its file system takes one case for the other
        mac.setattr(Path, "samefile", lambda one, other: str(one).lower() == str(other).lower())
        with pytest.raises(RecipeError, match=r"RUN/adapter: is this run's own"):
            pipeline.prepare(recipe(other), tmp_path / "run")
    with pytest.raises(RecipeError, match=r"lora.start_from: .*adapter: is this run's own, which training would repl"):
        pipeline.prepare(recipe(folder), tmp_path / "run")


def test_a_missing_one_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no such adapter folder; use a folder with adapter_config\.json"):
        started(recipe(tmp_path / "nowhere"), MODEL)
    write_mlx_lm(tmp_path / "runs" / "adapter")
    with pytest.raises(ModelError, match=r"did you mean '.*runs/adapter'"):
        read_adapter(tmp_path / "runs")
