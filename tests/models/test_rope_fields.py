"""config.json as transformers 5 writes it: what it says of positions is what the model computes with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from helpers.families import write_family

from upft_mlx.models.find import model_hash
from upft_mlx.models.load import load, rope_fields

LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "factor": 8.0}
PLAIN = {"rope_type": "default"}
BEFORE: dict[str, dict[str, Any]] = {
    "llama": {"rope_theta": 500.0, "rope_scaling": LLAMA_3},
    "qwen2": {"rope_theta": 77.0},
    "qwen3": {"rope_theta": 77.0},
    "gemma3_text": {"rope_theta": 500.0, "rope_local_base_freq": 50.0, "rope_scaling": LINEAR},
}
"""The fields that earlier versions of transformers write, by family."""
AFTER: dict[str, dict[str, Any]] = {
    "llama": {**LLAMA_3, "rope_theta": 500.0},
    "qwen2": {**PLAIN, "rope_theta": 77.0},
    "qwen3": {**PLAIN, "rope_theta": 77.0},
    "gemma3_text": {
        "full_attention": {**LINEAR, "rope_theta": 500.0},
        "sliding_attention": {**PLAIN, "rope_theta": 50.0},
    },
}
"""`rope_parameters` of transformers 5."""
TOKENS = mx.array([list(range(16, 56))])


def rewritten(folder: Path, removed: tuple[str, ...], **fields: Any) -> None:
    file = folder / "config.json"
    config = {name: value for name, value in json.loads(file.read_text()).items() if name not in removed}
    file.write_text(json.dumps({**config, **fields}))


@pytest.mark.parametrize("family", BEFORE)
def test_positions_are_rotated_as_rope_parameters_say(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_family(family, tmp_path / "model")
    other = load(folder).model(TOKENS)
    rewritten(folder, (), **BEFORE[family])
    wanted = load(folder).model(TOKENS)
    assert not mx.allclose(wanted, other, atol=1e-3), "the fields matter"
    rewritten(folder, tuple(BEFORE[family]), rope_parameters=AFTER[family])
    loaded = load(folder)
    assert mx.array_equal(loaded.model(TOKENS), wanted)
    now = model_hash(folder)
    monkeypatch.setattr("upft_mlx.models.find.rope_fields", lambda path: {})
    assert (model_hash(folder) == now) == (family == "qwen3"), "runs from before are another model's"
    if family != "qwen3":  # mlx-lm reads them there; elsewhere what is fused must have them where mlx-lm looks
        assert loaded.config["rope_theta"] == BEFORE[family]["rope_theta"]


def test_fields_that_are_outside_are_left_as_they_are(tmp_path: Path) -> None:
    folder = write_family("llama", tmp_path / "model")
    rewritten(folder, (), rope_theta=500.0)
    wanted = load(folder).model(TOKENS)
    rewritten(folder, (), rope_parameters={**PLAIN, "rope_theta": 7.0})
    assert mx.array_equal(load(folder).model(TOKENS), wanted)


@pytest.mark.parametrize("kind", ["llama", "a.b", "unknown"])
@pytest.mark.parametrize("wrong", [[], "x", {"full_attention": 3, "sliding_attention": None}])
def test_what_is_no_set_of_parameters_says_nothing(tmp_path: Path, kind: str, wrong: Any) -> None:
    folder = write_family("llama", tmp_path / "model")
    rewritten(folder, ("rope_theta",), rope_parameters=wrong, model_type=kind)
    assert rope_fields(folder) == {}


def test_the_text_of_a_vision_model_is_rotated_as_its_rope_parameters_say(tmp_path: Path) -> None:
    """mlx-lm has no family of that name, so its rope parameters were ignored and default values used."""
    folder = write_family("qwen2", tmp_path / "model")
    rewritten(folder, (), rope_theta=77.0)
    wanted = load(folder).model(TOKENS)
    config = json.loads((folder / "config.json").read_text())
    text = {**config, "model_type": "qwen2_5_vl_text", "rope_parameters": {**PLAIN, "rope_theta": 77.0}}
    del text["rope_theta"]
    outer = {"model_type": "qwen2_5_vl", "eos_token_id": config["eos_token_id"], "text_config": text}
    (folder / "config.json").write_text(json.dumps(outer))
    loaded = load(folder)
    assert loaded.config["text_config"]["rope_theta"] == 77.0
    assert mx.array_equal(loaded.model(TOKENS), wanted)


@pytest.mark.parametrize("kind", ["qwen3_vl", "qwen3_5_moe"])
def test_the_text_of_a_vision_model_whose_code_reads_them_is_left_as_it_is(kind: str, tmp_path: Path) -> None:
    folder = write_family("qwen3", tmp_path / "model")
    text = {"model_type": f"{kind}_text", "rope_parameters": {**PLAIN, "rope_theta": 77.0}}
    (folder / "config.json").write_text(json.dumps({"model_type": kind, "text_config": text}))
    assert rope_fields(folder) == {}
