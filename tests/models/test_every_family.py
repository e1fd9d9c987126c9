"""Every family of mlx-lm works, or is refused with one of our errors; docs/assets/families.json says which."""

from __future__ import annotations

import json
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import MODEL
from helpers.families import tried, write_family
from helpers.family_configs import COMMON, FAMILIES, UNTRIED, config_of, make

from upft_mlx.errors import ModelError
from upft_mlx.fusing.formats import write_model
from upft_mlx.models import families
from upft_mlx.models.load import load, quantizes_its_own_way

DATA: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent.parent / "docs" / "assets" / "families.json").read_text(encoding="utf-8")
)
QUICK = ("llama", "gemma3n", "qwen3_moe", "qwen3_5", "lfm2", "mamba2", "seed_oss", "recurrent_gemma")
"""A layer of each kind, and each of the families that had a fault of its own."""


def check(name: str, folder: Path) -> None:
    """What works is what the page says, on the version of mlx-lm that it was made with; elsewhere nothing is raised."""
    if find_spec(f"mlx_lm.models.{'llama' if name == 'mistral' else name}") is None:
        pytest.skip(f"this mlx-lm has no {name}")
    found = tried(name, folder)
    if DATA["mlx-lm"] == metadata.version("mlx-lm") and mx.default_device().type == mx.DeviceType.cpu:
        assert found == DATA["families"][name]


def test_the_page_has_every_family_of_the_table() -> None:
    assert set(DATA["families"]) == set(FAMILIES)
    assert DATA["untried"] == UNTRIED
    assert sum(found["train"] == "yes" for found in DATA["families"].values()) >= 90


@pytest.mark.parametrize("name", QUICK)
def test_a_family_works_as_the_page_says(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in QUICK])
def test_every_other_family_works_as_the_page_says(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


def test_gemma_3n_without_a_cache_is_gemma_3n_with_one() -> None:
    """Its upper layers have no keys of their own: mlx-lm's pass without a cache gives them some."""
    from mlx_lm.models.cache import make_prompt_cache

    model, tokens = make(config_of("gemma3n", 90)), mx.array([[5, 6, 7, 8, 9, 10, 11, 12]])
    cached = model(tokens, cache=make_prompt_cache(model))
    assert not mx.allclose(model(tokens), cached, atol=1e-3), "mlx-lm has fixed this: remove `_WithCache`"
    families.prepare(model)
    assert mx.allclose(model(tokens), cached, atol=1e-4)


def test_modules_whose_weights_the_model_reads_get_no_adapter() -> None:
    model = make(config_of("gemma3n", 90))
    keys = families.default_keys(model)
    assert keys is not None
    assert "self_attn.q_proj" in keys
    assert "altup.modality_router" in keys
    assert not {"altup.prediction_coefs", "altup.correction_coefs"} & set(keys)
    assert families.default_keys(make(config_of("llama", 90))) is None


@pytest.mark.parametrize(("name", "changes"), [("olmo", {"model_type": "olmo"}), ("llama", {"head_dim": 7})])
def test_a_model_that_cannot_be_called_is_refused_when_it_is_loaded(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    """mlx-lm's olmo ends the process where its package is missing; a shape that does not fit raises in a pass."""
    if name == "olmo" and find_spec("hf_olmo"):
        pytest.skip("hf_olmo is installed")
    folder = write_family("llama", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(ModelError, match="loaded"):
        load(folder)


def test_a_head_that_the_model_reads_itself_is_not_quantized(tmp_path: Path) -> None:
    from helpers.adapter import Q4

    assert COMMON["tie_word_embeddings"]
    loaded = load(write_family("seed_oss", tmp_path / "model"), quantize=Q4)
    assert "scales" not in loaded.model.model.embed_tokens
    assert "scales" in loaded.model.model.layers[0].self_attn.q_proj


def test_layers_that_a_family_keeps_in_more_bits_are_quantized_as_by_mlx_lm(tmp_path: Path) -> None:
    """The router of the experts was rounded to 4 bits like all other layers; the saved model keeps the bits."""
    from helpers.adapter import Q4
    from mlx_lm.utils import load_model

    folder = write_family("qwen3_moe", tmp_path / "model", hidden_size=96)
    loaded = load(folder, quantize=Q4)
    gates = {name: m for name, m in loaded.model.named_modules() if name.endswith("mlp.gate")}
    assert {(m.bits, m.group_size) for m in gates.values()} == {(8, 32)}, "64, as mlx-lm says, does not divide 96"
    assert loaded.model.model.layers[0].self_attn.q_proj.bits == 4
    write_model(loaded, loaded.config, tmp_path / "saved")
    back = {name: m.bits for name, m in load_model(tmp_path / "saved")[0].named_modules() if hasattr(m, "bits")}
    assert back == {name: m.bits for name, m in loaded.model.named_modules() if hasattr(m, "bits")}
    assert (quantizes_its_own_way(folder), quantizes_its_own_way(MODEL)) == (True, False)


@pytest.mark.parametrize(
    ("kind", "own"), [("qwen3_5_moe", True), ("qwen3_vl_moe", True), ("solar_open", False), ("no_such_kind", False)]
)
def test_a_family_s_own_bits_are_found_in_the_model_that_it_imports(kind: str, own: bool, tmp_path: Path) -> None:
    """If they were missed, rows sampled with other bits would count as this model's."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    assert quantizes_its_own_way(tmp_path) == own
