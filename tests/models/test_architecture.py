"""Shapes and bytes from config.json and headers are those of the loaded model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import MODEL
from helpers.models import write_model
from mlx.utils import tree_flatten

from upft_mlx.errors import ModelError
from upft_mlx.models.adapters import adapter_weights, add_lora
from upft_mlx.models.architecture import from_config, read_architecture
from upft_mlx.models.files import read_header
from upft_mlx.models.load import load
from upft_mlx.planning.memory import Machine
from upft_mlx.recipe.schema import Lora, Quantize

SHAPES: list[dict[str, Any]] = [{}, {"tie_word_embeddings": False}, {"num_key_value_heads": 4, "vocab_size": 1024}]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [None, 4, 8])
def test_config_and_headers_tell_the_same(shape: dict[str, Any], bits: int | None, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", bits=bits, **shape)
    exact = read_architecture(folder)
    told = from_config(json.loads((folder / "config.json").read_text()))
    sizes = {(m.name, m.outputs, m.inputs, m.bits, m.group) for m in exact.matrices}
    assert {(m.name, m.outputs, m.inputs, m.bits, m.group) for m in told.matrices} == sizes
    assert told.parameters == pytest.approx(exact.parameters, rel=0.01), "biases are not in the config"
    assert (exact.matrices[0].bits, exact.matrices[0].group) == ((bits, 32) if bits else (0, 1))


@pytest.mark.parametrize("quantize", [None, Quantize(bits=4, group_size=64), Quantize(bits=8, group_size=32)])
def test_weight_bytes_are_those_of_the_loaded_model(quantize: Quantize | None, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", bits=None, hidden_size=256)
    loaded = load(folder, quantize=quantize)
    arrays = sum(array.nbytes for array in dict(tree_flatten(loaded.model.parameters())).values())
    model = read_architecture(folder, quantize)
    assert model.weight_bytes(4) == arrays
    dense = model.dense_bytes()
    assert bool(dense) == (quantize is not None)
    assert Machine(is_gpu=False, dense_bytes=2**40).weight_bytes(model, 4) == arrays + dense
    assert Machine(is_gpu=False).weight_bytes(model, 4) == arrays, "no room for dense copies"


@pytest.mark.parametrize(
    "lora", [Lora(), Lora(rank=4, num_layers=2), Lora(keys=("self_attn.q_proj", "mlp.down_proj")), Lora(num_layers=1)]
)
def test_adapter_numbers_are_those_of_an_adapter(lora: Lora, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    loaded = load(folder)
    add_lora(loaded, lora, 0)
    numbers = sum(array.size for array in adapter_weights(loaded.model).values())
    assert read_architecture(folder).adapter_numbers(lora) == numbers


def test_layers_quantized_on_their_own_terms_are_read_as_such(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", bits=4, group_size=64, intermediate_size=384)
    path = folder / "model.safetensors"
    arrays = mx.load(str(path))
    assert isinstance(arrays, dict)
    name = "model.layers.1.mlp.down_proj"
    packed = mx.quantize(mx.zeros((128, 384)), group_size=32, bits=8)
    arrays |= {f"{name}.{part}": array for part, array in zip(("weight", "scales", "biases"), packed, strict=True)}
    mx.save_safetensors(str(path), arrays, {"format": "mlx"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization"][name] = {"bits": 8, "group_size": 32}
    (folder / "config.json").write_text(json.dumps(config))
    found = {matrix.name: matrix for matrix in read_architecture(folder).matrices}
    assert (found[name].bits, found[name].group, found[name].inputs) == (8, 32, 384)
    gate = found["model.layers.0.mlp.gate_proj"]
    assert (gate.bits, gate.group) == (4, 64)


def test_half_precision_takes_two_bytes_on_a_gpu_and_four_on_the_cpu() -> None:
    model = read_architecture(MODEL)
    assert (model.float_bytes, model.matrices[0].bits) == (2, 0)
    for is_gpu, size in ((True, 2), (False, 4)):
        machine = Machine(is_gpu)
        assert machine.number(model) == size
        assert machine.weight_bytes(model, size) == size * model.parameters


def test_nested_configs_and_experts_are_understood() -> None:
    text = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 32, "vocab_size": 100}
    moe = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "tie_word_embeddings": True}
    model = from_config({"model_type": "qwen3_5", "text_config": {**text, **moe}})
    assert (model.kv_width, model.intermediate, model.unusual) == (4 * 32, 32, ("a mixture of experts",))
    mlp = [m.size for m in model.matrices if "mlp" in m.name]
    assert sum(mlp) == 2 * 3 * 8 * 16 * 64, "all experts are in memory"


def test_a_config_without_what_a_decoder_has_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x", "hidden_size": 8}))
    with pytest.raises(ModelError, match=r"config\.json: does not describe a decoder: lacks `num_attention_heads`"):
        read_architecture(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not JSON"):
        read_architecture(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x00" * 4, b"\xff" * 16, b"\x08\x00\x00\x00\x00\x00\x00\x00not json"])
def test_a_damaged_header_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors: not a safetensors file"):
        read_header(path)


def test_a_header_lists_types_and_shapes(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    mx.save_safetensors(str(path), {"a": mx.zeros((2, 3), mx.float16), "b": mx.zeros((5,), mx.uint32)})
    found = read_header(path)
    assert {name: (t.kind, t.shape, t.size) for name, t in found.items()} == {
        "a": ("F16", (2, 3), 6),
        "b": ("U32", (5,), 5),
    }
