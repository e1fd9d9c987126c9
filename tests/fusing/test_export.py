"""Exports for other tools. That transformers and peft read them is measured by perf/experiments/check_exports.py, with
torch.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
import pytest
from conftest import MODEL
from helpers.adapter import Q4, run, write_adapter
from helpers.runs import made, shown, there
from mlx_lm.utils import load as mlx_lm_load

from upft_mlx.errors import ExportError
from upft_mlx.fusing.export import export_dequantized, export_gguf, export_peft
from upft_mlx.fusing.gguf_model import write_gguf
from upft_mlx.models.load import load
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rundir import RunDir
from upft_mlx.sampling.same_logits import scalar
from upft_mlx.training.checkpoints import save_safetensors

__all__ = ["made", "run", "there"]
MakeRecipe = Callable[..., Recipe]
TOKENS = mx.array([[11, 12, 13, 14, 15]])


def arrays_of(path: Path) -> dict[str, mx.array]:
    arrays = mx.load(str(path))
    assert isinstance(arrays, dict)
    return arrays


def test_pefts_matrices_give_the_same_update(run: RunDir, tmp_path: Path) -> None:
    """B A alpha / r of PEFT is scale (a b)^T of mlx-lm, for every module."""
    write_adapter(run, 0.02)
    export_peft(run, MODEL, "org/base", tmp_path / "peft")
    ours, theirs = (
        arrays_of(run.adapter / "adapters.safetensors"),
        arrays_of(tmp_path / "peft/adapter_model.safetensors"),
    )
    config = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    assert len(ours) == len(theirs) == 4 * 7 * 2
    for name in (name for name in ours if name.endswith("lora_a")):
        module = name.removesuffix(".lora_a")
        a, b = (theirs[f"base_model.model.{module}.lora_{part}.weight"] for part in "AB")
        assert a.shape[0] == b.shape[1] == config["r"] == 4
        expected = 2.0 * (ours[name] @ ours[f"{module}.lora_b"]).T
        assert mx.allclose(b @ a * (config["lora_alpha"] / config["r"]), expected, atol=1e-7)


def test_pefts_config_names_modules_layers_and_base(run: RunDir, tmp_path: Path) -> None:
    write_adapter(run, 0.02)
    export_peft(run, MODEL, "org/base", tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["task_type"], config["lora_alpha"]) == ("LORA", "CAUSAL_LM", 8)
    assert config["base_model_name_or_path"] == "org/base"
    assert config["layers_to_transform"] == [0, 1, 2, 3]
    assert config["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


@pytest.mark.parametrize(
    "name", ["model.layers.0.mlp.switch_mlp.up_proj.lora_a", "lm_head.lora_a", "transformer.h.0.x.lora_b"]
)
def test_a_module_that_peft_does_not_know_is_refused(run: RunDir, tmp_path: Path, name: str) -> None:
    write_adapter(run, 0.02)
    arrays = arrays_of(run.adapter / "adapters.safetensors")
    save_safetensors(run.adapter / "adapters.safetensors", {**arrays, name: mx.zeros((4, 4))})
    with pytest.raises(ExportError, match="PEFT has no such module"):
        export_peft(run, MODEL, "org/base", tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


@pytest.mark.parametrize(("dtype", "bound"), [("bf16", 0.2), ("fp16", 0.03)])
def test_the_dequantized_model_is_the_adapters_with_nothing_quantized(
    make_recipe: MakeRecipe, run: RunDir, tmp_path: Path, dtype: str, bound: float
) -> None:
    adapted = write_adapter(run, 0.05, Q4)
    export_dequantized(make_recipe(), load(MODEL, quantize=Q4), run, tmp_path / "out", dtype)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert "quantization" not in config
    assert "quantization_config" not in config
    assert config["torch_dtype"] == {"bf16": "bfloat16", "fp16": "float16"}[dtype]
    kinds = {array.dtype for array in arrays_of(tmp_path / "out/model.safetensors").values()}
    assert kinds == {{"bf16": mx.bfloat16, "fp16": mx.float16}[dtype]}
    model, *_ = mlx_lm_load(str(tmp_path / "out"))
    model.set_dtype(mx.float32)
    expected, base = adapted.model(TOKENS), load(MODEL, quantize=Q4).model(TOKENS)
    assert scalar(mx.abs(model(TOKENS) - expected).max()) < bound * scalar(mx.abs(base - expected).max())


def test_it_says_what_rounding_costs(make_recipe: MakeRecipe, run: RunDir, tmp_path: Path) -> None:
    write_adapter(run, 0.0001, Q4)
    said = [
        export_dequantized(make_recipe(), load(MODEL, quantize=Q4), run, tmp_path / dtype, dtype)
        for dtype in ("bf16", "fp16")
    ]
    kept = float(said[1].split("keeps ")[1].split("%")[0])
    assert ", keeps none of the adapter's effect (" in said[0]
    assert said[0].endswith(" as the base is): less than publish.min_retained, 90 %; take --dtype fp16")
    assert ("less than" in said[1]) == (kept < 90)


def test_what_keeps_enough_needs_no_advice(make_recipe: MakeRecipe, run: RunDir, tmp_path: Path) -> None:
    write_adapter(run, 0.05, Q4)
    said = export_dequantized(make_recipe(), load(MODEL, quantize=Q4), run, tmp_path / "out", "fp16")
    assert said.endswith("of the adapter's effect")


def test_the_chat_template_is_where_old_and_new_tools_look_for_it(
    make_recipe: MakeRecipe, run: RunDir, tmp_path: Path
) -> None:
    """Ollama reads tokenizer_config.json only (its convert/tokenizer.go), transformers 5 writes a file of its own."""
    from transformers import AutoTokenizer

    write_adapter(run, 0.05, Q4)
    base, out = load(MODEL, quantize=Q4), tmp_path / "out"
    export_dequantized(make_recipe(), base, run, out, "fp16")
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == (out / "chat_template.jinja").read_text() == base.tokenizer.chat_template
    assert settings["eos_token"] == base.tokenizer.eos_token
    turns = [{"role": "user", "content": "2 + 2?"}]
    for tokenizer in (AutoTokenizer.from_pretrained(out), mlx_lm_load(str(out))[1]):
        assert tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False).count("2 + 2?") == 1


def test_what_llama_cpp_reads_gives_the_same_update(run: RunDir, tmp_path: Path) -> None:
    """B A alpha / r of the GGUF, as its own package reads it, is scale (a b)^T of mlx-lm."""
    write_adapter(run, 0.02)
    export_gguf(run, MODEL, "org/base", tmp_path)
    file = gguf.GGUFReader(tmp_path / "adapter.gguf")
    found = {tensor.name: np.array(tensor.data) for tensor in file.tensors}
    said = {name: field.contents() for name, field in file.fields.items()}
    assert said["general.architecture"] == "qwen2"
    assert (said["general.type"], said["adapter.type"], said["adapter.lora.alpha"]) == ("adapter", "lora", 8.0)
    ours = arrays_of(run.adapter / "adapters.safetensors")
    assert len(found) == len(ours)
    modules = {"self_attn.q_proj": "attn_q", "self_attn.o_proj": "attn_output", "mlp.down_proj": "ffn_down"}
    for layer, (name, theirs) in itertools.product(range(4), modules.items()):
        a, b = (found[f"blk.{layer}.{theirs}.weight.lora_{part}"] for part in "ab")
        module = f"model.layers.{layer}.{name}"
        expected = 2.0 * (ours[f"{module}.lora_a"] @ ours[f"{module}.lora_b"]).T
        assert np.allclose(b @ a * (8.0 / a.shape[0]), np.array(expected), atol=1e-7)


def test_a_llamas_query_and_key_rows_are_put_in_llama_cpps_order(run: RunDir, tmp_path: Path) -> None:
    """The order in which make_smollm2.py finds a GGUF's rows: each head's two halves, one row of each in turn."""
    write_adapter(run, 0.02)
    model = shutil.copytree(MODEL, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    export_gguf(run, model, "org/base", tmp_path)
    found = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(tmp_path / "adapter.gguf").tensors}
    ours = arrays_of(run.adapter / "adapters.safetensors")
    for name, theirs, heads in (("q_proj", "attn_q", 4), ("k_proj", "attn_k", 2), ("v_proj", "attn_v", 0)):
        rows = np.array(ours[f"model.layers.0.self_attn.{name}.lora_b"].T)
        half = len(rows) // max(1, heads) // 2
        order = [head * 2 * half + i // 2 + i % 2 * half for head in range(heads) for i in range(2 * half)]
        assert np.array_equal(found[f"blk.0.{theirs}.weight.lora_b"], rows[order] if heads else rows)


def test_no_number_of_key_heads_means_that_of_the_query_heads(run: RunDir, tmp_path: Path) -> None:
    """Some configs of llamas have null there: the key rows kept mlx-lm's order."""
    write_adapter(run, 0.02)
    model = shutil.copytree(MODEL, tmp_path / "model")
    config = {**json.loads((model / "config.json").read_text()), "model_type": "llama"}
    found = []
    for heads in (config["num_attention_heads"], None):
        (model / "config.json").write_text(json.dumps({**config, "num_key_value_heads": heads}))
        export_gguf(run, model, "org/base", tmp_path)
        tensors = gguf.GGUFReader(tmp_path / "adapter.gguf").tensors
        found.append(next(np.array(tensor.data) for tensor in tensors if tensor.name == "blk.0.attn_k.weight.lora_b"))
    one, other = found
    assert np.array_equal(one, other)


def test_gguf_is_to_be_installed_into_this_python(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pip install gguf` went elsewhere for those who had installed upft with uv or pipx."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ExportError, match=re.escape(f"`{sys.executable} -m pip install gguf` installs it")):
        export_gguf(run, MODEL, "org/base", tmp_path)
    with pytest.raises(ExportError, match=re.escape(f"{sys.executable} -m pip install gguf")):
        write_gguf(MODEL, tmp_path / "m.gguf", "tiny")


def test_a_family_whose_names_in_llama_cpp_are_unknown_is_refused(run: RunDir, tmp_path: Path) -> None:
    write_adapter(run, 0.02)
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(ExportError, match="type 'mamba' are not known here") as caught:
        export_gguf(run, tmp_path, "org/base", tmp_path)
    assert "--format peft" in str(caught.value)


@pytest.mark.parametrize(
    ("form", "file"),
    [
        ("peft", "adapter_model.safetensors"),
        ("gguf", "adapter.gguf"),
        ("gguf-model", "r.gguf"),
        ("dequantized", "model.safetensors"),
    ],
)
def test_the_command_writes_every_format(there: Path, form: str, file: str) -> None:
    assert f"runs/r/export/{form}: " in shown("export", "r.yaml", "--format", form)
    assert (there / f"runs/r/export/{form}/{file}").stat().st_size > 1000
