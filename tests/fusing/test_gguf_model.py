"""GGUF files: what is written of a model and read again is the same model, whatever the family and the type.

That transformers and llama.cpp read the same is measured by perf/experiments/check_gguf.py.
"""

from __future__ import annotations

import itertools
import json
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import pytest
from conftest import MODEL
from helpers.gguf import FAMILIES, SHAPE, rewritten, write_family
from helpers.runs import made, shown, there

from upft_mlx.errors import ExportError, ModelError, UpftError
from upft_mlx.fusing.gguf_model import write_gguf
from upft_mlx.models.facts import chat_template
from upft_mlx.models.find import find_model
from upft_mlx.models.gguf.file import TYPES, read_gguf
from upft_mlx.models.gguf.model import conversion_notes, gguf_folder
from upft_mlx.models.load import load, load_tokenizer
from upft_mlx.recipe.load import load_recipe

__all__ = ["made", "there"]
TOKENS = mx.array([[11, 12, 13, 14, 15, 100, 30, 7, 8]])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "upft" / "gguf"


def fails(kind: type[UpftError], action: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        action()
    return str(caught.value)


def logits(folder: Path) -> np.ndarray[Any, Any]:
    return np.array(load(folder).model(TOKENS).astype(mx.float32))


FORMS: dict[str, tuple[mx.Dtype, dict[str, Any], str]] = {
    "float32": (mx.float32, {}, "F32"),
    "bfloat16": (mx.bfloat16, {}, "BF16"),
    "4 bits": (mx.float16, {"bits": 4, "group_size": 32}, "Q4_1"),
    "groups of 64": (mx.float16, {"bits": 4, "group_size": 64}, "Q4_1"),
    "mxfp4": (mx.bfloat16, {"bits": 4, "group_size": 32, "mode": "mxfp4"}, "BF16"),
    "nvfp4": (mx.float16, {"bits": 4, "group_size": 16, "mode": "nvfp4"}, "BF16"),
}
OTHERS = [("qwen2", "groups of 64"), ("llama", "mxfp4"), ("qwen3", "nvfp4")]


@pytest.mark.parametrize(
    ("family", "form"),
    [*itertools.product(FAMILIES, ("float32", "bfloat16", "4 bits")), *OTHERS],
)
def test_what_is_written_and_read_again_is_the_same_model(tmp_path: Path, family: str, form: str) -> None:
    dtype, quantize, kind = FORMS[form]
    folder = write_family(tmp_path / "model", family, dtype, **quantize)
    said = write_gguf(folder, tmp_path / "m.gguf", "tiny")
    assert said.startswith(f"{kind} ")
    back = gguf_folder(tmp_path / "m.gguf")
    assert np.abs(logits(back) - logits(folder)).max() < 1e-4
    assert conversion_notes(back) == []
    assert json.loads((back / "config.json").read_text())["model_type"] == FAMILIES[family]["model_type"]


def test_rope_parameters_of_transformers_5_are_written(tmp_path: Path) -> None:
    """mlx-lm's qwen3 reads them; without `rope_theta` beside them the file said 10,000."""
    folder = write_family(tmp_path / "model", "qwen3")
    config = json.loads((folder / "config.json").read_text())
    rope = {"rope_theta": 77.0, "rope_type": "linear", "factor": 3.0}
    del config["rope_theta"]
    (folder / "config.json").write_text(json.dumps({**config, "rope_parameters": rope}))
    write_gguf(folder, tmp_path / "m.gguf", "tiny")
    back = gguf_folder(tmp_path / "m.gguf")
    assert json.loads((back / "config.json").read_text())["rope_theta"] == 77.0
    assert np.abs(logits(back) - logits(folder)).max() < 1e-4


@pytest.mark.parametrize("quantize", [{}, {"bits": 4, "group_size": 32}])
def test_a_model_is_never_whole_in_memory(
    tmp_path: Path, quantize: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 7 billion weights in 16 bits, all tensors at once took 15 GB."""
    monkeypatch.setitem(SHAPE, "num_hidden_layers", 12)
    monkeypatch.setitem(SHAPE, "intermediate_size", 1024)
    monkeypatch.setitem(SHAPE, "hidden_size", 256)
    folder = write_family(tmp_path / "model", "qwen2", mx.float16, **quantize)
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    tracemalloc.start()
    write_gguf(folder, tmp_path / "m.gguf", "tiny")
    peak = tracemalloc.get_traced_memory()[1] + mx.get_peak_memory() - before
    tracemalloc.stop()
    size = (tmp_path / "m.gguf").stat().st_size
    assert size > 5e6
    assert peak < size * 2 / 3, (peak, size)


@pytest.mark.parametrize(("kind", "bits"), [("Q4_0", 4), ("Q4_1", 4), ("Q8_0", 8)])
def test_blocks_of_32_are_mlxs_groups_of_32(tmp_path: Path, kind: str, bits: int) -> None:
    """The package gguf quantizes and decodes; MLX computes with the same numbers without decoding them."""
    source = write_family(tmp_path / "model", "llama")
    write_gguf(source, tmp_path / "source.gguf", "tiny")
    values = rewritten(tmp_path / "source.gguf", tmp_path / "m.gguf", kind)
    folder = gguf_folder(tmp_path / "m.gguf")
    config = json.loads((folder / "config.json").read_text())
    assert (config["quantization"]["bits"], config["quantization"]["group_size"]) == (bits, 32)
    plain = shutil.copytree(folder, tmp_path / "plain")
    del config["quantization"], config["quantization_config"]
    (plain / "config.json").write_text(json.dumps(config))
    arrays = mx.load(str(source / "model.safetensors"))
    assert isinstance(arrays, dict)
    order = np.arange(64).reshape(4, 8, 2).swapaxes(1, 2).ravel()  # of query rows in mlx-lm's order, two halves a head
    names = {"lm_head": "output", "model.embed_tokens": "token_embd", "model.layers.1.mlp.down_proj": "blk.1.ffn_down"}
    found = load(folder).model
    for ours, theirs in {**names, "model.layers.0.self_attn.q_proj": "blk.0.attn_q"}.items():
        module = dict(found.named_modules())[ours]
        decoded = mx.dequantize(module.weight, module.scales, module.biases, 32, bits)
        wanted = values[f"{theirs}.weight"]
        assert np.array_equal(np.array(decoded), wanted[order] if theirs.endswith("attn_q") else wanted), ours


def test_blocks_have_the_sizes_that_llama_cpp_gives_them() -> None:
    known = {kind.name: gguf.GGML_QUANT_SIZES[kind] for kind in gguf.GGMLQuantizationType}
    assert {kind: (weights, size) for kind, weights, size in TYPES.values()}.items() <= known.items()
    assert {number: gguf.GGMLQuantizationType(number).name for number in TYPES} == {n: t[0] for n, t in TYPES.items()}


def test_mlxs_own_reader_finds_the_same_numbers(tmp_path: Path) -> None:
    write_gguf(write_family(tmp_path / "model", "qwen2"), tmp_path / "source.gguf", "tiny")
    rewritten(tmp_path / "source.gguf", tmp_path / "m.gguf", "Q4_0")
    theirs, file = mx.load(str(tmp_path / "m.gguf")), read_gguf(tmp_path / "m.gguf")
    assert isinstance(theirs, dict)
    words, scales, biases = file.affine("blk.0.ffn_up.weight")
    for part, ours in (("weight", words), ("scales", scales), ("biases", biases)):
        assert np.array_equal(np.array(theirs[f"blk.0.ffn_up.{part}"]), ours)


@pytest.mark.parametrize("kind", ["Q5_0", "Q5_1"])
def test_what_mlx_has_no_form_for_is_decoded_with_a_note(tmp_path: Path, kind: str) -> None:
    source = write_family(tmp_path / "model", "qwen2")
    write_gguf(source, tmp_path / "source.gguf", "tiny")
    values = rewritten(tmp_path / "source.gguf", tmp_path / "m.gguf", kind)
    folder = gguf_folder(tmp_path / "m.gguf")
    (note,) = conversion_notes(folder)
    assert note.startswith(f"m.gguf: MLX has no {kind}; these weights are decoded and rounded to float16")
    weight = dict(load(folder).model.named_modules())["model.layers.1.mlp.up_proj"].weight
    assert np.array_equal(np.array(weight), values["blk.1.ffn_up.weight"].astype(np.float16).astype(np.float32))


def test_8_bits_that_came_from_q8_0_become_q8_0_again_and_others_float16(tmp_path: Path) -> None:
    write_gguf(write_family(tmp_path / "model", "qwen2"), tmp_path / "source.gguf", "tiny")
    rewritten(tmp_path / "source.gguf", tmp_path / "m.gguf", "Q8_0")
    folder = gguf_folder(tmp_path / "m.gguf")
    assert write_gguf(folder, tmp_path / "again.gguf", "tiny").startswith("Q8_0 ")
    assert np.array_equal(logits(gguf_folder(tmp_path / "again.gguf")), logits(folder))
    other = write_family(tmp_path / "other", "qwen2", mx.float16, bits=6, group_size=32)
    assert write_gguf(other, tmp_path / "other.gguf", "tiny").startswith("F16 ")
    assert np.abs(logits(gguf_folder(tmp_path / "other.gguf")) - logits(other)).max() < 0.05


def test_an_exported_run_is_the_fused_model_and_a_model_to_train_again(there: Path) -> None:
    said = shown("export", "runs/r", "--format", "gguf-model")
    assert "runs/r/export/gguf-model: F16 " in said
    folder = find_model(load_recipe("r.yaml", ["model=runs/r/export/gguf-model/r.gguf"]))
    assert np.abs(logits(folder) - logits(there / "runs/r/fused")).max() < 1e-4
    assert load_tokenizer(folder).eos_token == load_tokenizer(MODEL).eos_token
    said = shown(
        "run", "r.yaml", "--run-dir", "runs/again", "--set", "model=runs/r/export/gguf-model/r.gguf", "--plain"
    )
    assert (there / "runs/again/fused/model.safetensors").is_file()
    said = shown("export", "r.yaml", "--format", "gguf-model", "--set", "publish.fuse=adapter", status=1)
    assert "fuse" in said


# The tokenizer.

TEXT = "Sam's 12345 cups,  l\u2019\u00e9t\u00e9 \u4f60\u597d \U0001f34e\n\n  x+=1 I'LL go <|im_start|>user"


@pytest.mark.parametrize(("name", "size"), [("embedded", 600), ("small-8k", 8832)])
def test_the_tokenizer_comes_back(tmp_path: Path, name: str, size: int, request: pytest.FixtureRequest) -> None:
    folder = write_family(tmp_path / "model", "qwen2")
    if name != "embedded":
        source = request.getfixturevalue("shared") / "data" / "tokenizers" / name
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(source / file, folder / file)
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        arrays = mx.load(str(folder / "model.safetensors"))
        assert isinstance(arrays, dict)
        arrays["model.embed_tokens.weight"] = mx.zeros((size, 64))
        mx.save_safetensors(str(folder / "model.safetensors"), arrays, {"format": "mlx"})
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "vocab_size": size}))
    write_gguf(folder, tmp_path / "m.gguf", "tiny")
    ours, theirs = load_tokenizer(folder), load_tokenizer(gguf_folder(tmp_path / "m.gguf"))
    assert theirs.encode(TEXT) == ours.encode(TEXT)
    assert theirs.decode(theirs.encode(TEXT)) == ours.decode(ours.encode(TEXT))
    assert (theirs.eos_token, sorted(theirs.eos_token_ids)) == (ours.eos_token, sorted(ours.eos_token_ids))
    turns = [{"role": "user", "content": "1 + 1?"}]
    shown = [t.apply_chat_template(turns, add_generation_prompt=True, tokenize=False) for t in (ours, theirs)]
    assert shown[0] == shown[1]


BOS = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {}}]}
NO_BOS = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}]}


@pytest.mark.parametrize(
    ("processor", "stated", "written"),
    [
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, BOS]}, None, True),
        (BOS, None, True),
        (BOS, False, False),
        (NO_BOS, None, False),
        (None, True, True),
        (None, None, None),
    ],
)
def test_whether_a_text_begins_with_bos_is_written(
    tmp_path: Path, processor: Any, stated: bool | None, written: bool | None
) -> None:
    """Llama 3 says it in the tokenizer alone. Where nothing does, llama.cpp has a rule for each kind of tokenizer."""
    folder = write_family(tmp_path / "model", "qwen2")
    for name, field, value in (
        ("tokenizer.json", "post_processor", processor),
        ("tokenizer_config.json", "add_bos_token", stated),
    ):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, field: value}))
    write_gguf(folder, tmp_path / "m.gguf", "tiny")
    field = gguf.GGUFReader(tmp_path / "m.gguf").fields.get("tokenizer.ggml.add_bos_token")
    assert (None if field is None else field.contents()) is written


def test_an_added_token_without_an_embedding_is_left_out(tmp_path: Path) -> None:
    """As Gemma 3's <image_soft_token>, whose number is its vocab_size."""
    folder = write_family(tmp_path / "model", "qwen2")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 600, "content": "<image_soft_token>"})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    write_gguf(folder, tmp_path / "m.gguf", "tiny")
    tokens = gguf.GGUFReader(tmp_path / "m.gguf").fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == 600
    assert "<image_soft_token>" not in tokens
    assert load_tokenizer(gguf_folder(tmp_path / "m.gguf")).encode(TEXT) == load_tokenizer(MODEL).encode(TEXT)


def test_a_sentencepiece_tokenizer_comes_back(tmp_path: Path) -> None:
    """Against the package sentencepiece, with a vocabulary that it has trained: scores decide what is merged."""
    spm = pytest.importorskip("sentencepiece")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(f"Sam has {n} bags of {n + 3} cups and loses {n % 7}." for n in range(400)))
    spm.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(tmp_path / "spm"),
        vocab_size=330,
        model_type="bpe",
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        byte_fallback=True,
        minloglevel=2,
    )
    reference = spm.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    size = reference.get_piece_size()
    writer.add_tokenizer_model("llama")
    writer.add_token_list([reference.id_to_piece(i) for i in range(size)])
    writer.add_token_scores([reference.get_score(i) for i in range(size)])
    kinds = [
        2 if reference.is_unknown(i) else 3 if reference.is_control(i) else 6 if reference.is_byte(i) else 1
        for i in range(size)
    ]
    writer.add_token_types(kinds)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    from upft_mlx.models.gguf.file import write_tokenizer

    folder = tmp_path / "made"
    folder.mkdir()
    write_tokenizer(read_gguf(tmp_path / "m.gguf"), folder)
    (folder / "config.json").write_text('{"model_type": "llama", "eos_token_id": 2}')
    ours = load_tokenizer(folder)
    for text in ("Sam has 12 bags of cups", "loses  7, \u00e9t\u00e9 \U0001f34e", "x"):
        assert ours.encode(text) == reference.encode(text), text
        assert ours.decode(ours.encode(text)) == text


def test_a_tokenizer_beside_the_file_is_used_instead(tmp_path: Path) -> None:
    write_gguf(write_family(tmp_path / "model", "qwen2"), tmp_path / "source.gguf", "tiny")
    file = changed(tmp_path / "source.gguf", tmp_path / "m.gguf", "tokenizer.ggml.pre", "other")
    found = fails(ModelError, lambda: gguf_folder(file))
    assert found.startswith(f"{file}: tokenizer.ggml.pre: 'other': unknown rule; known are qwen2")
    assert found.endswith(
        "put tokenizer.json and tokenizer_config.json of the model that it was made from beside the file"
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (MODEL / name).exists():
            shutil.copy(MODEL / name, tmp_path / name)
    assert load_tokenizer(gguf_folder(file)).encode("1 + 1") == load_tokenizer(MODEL).encode("1 + 1")


def test_a_chat_template_beside_the_file_takes_precedence_over_the_one_in_it(tmp_path: Path) -> None:
    """It was ignored without a tokenizer beside it; an earlier conversion without it is not reused."""
    write_gguf(write_family(tmp_path / "model", "qwen2"), tmp_path / "m.gguf", "tiny")
    before = gguf_folder(tmp_path / "m.gguf")
    (tmp_path / "chat_template.jinja").write_text("{{ messages[-1].content }} mine")
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "of another tokenizer"}')
    found = gguf_folder(tmp_path / "m.gguf")
    assert (found != before, chat_template(found)) == (True, "{{ messages[-1].content }} mine")
    assert load_tokenizer(found).encode("1 + 1") == load_tokenizer(before).encode("1 + 1")


# As a model of a recipe.


def test_a_recipe_names_the_file_and_it_is_converted_once(tmp_path: Path, cache: Path) -> None:
    folder = write_family(tmp_path / "model", "qwen2", mx.float16, bits=4, group_size=32)
    write_gguf(folder, tmp_path / "m.gguf", "tiny")
    (tmp_path / "r.yaml").write_text("model: m.gguf\nproblems: {builtin: arithmetic}\n")
    recipe = load_recipe(tmp_path / "r.yaml")
    assert recipe.model == str(tmp_path / "m.gguf")
    found = find_model(recipe)
    before = {path: path.stat().st_mtime_ns for path in found.iterdir()}
    assert find_model(recipe) == found
    assert {path: path.stat().st_mtime_ns for path in found.iterdir()} == before
    shutil.copy(tmp_path / "m.gguf", tmp_path / "sha256-1234")  # as Ollama calls it
    assert find_model(load_recipe(tmp_path / "r.yaml", [f"model={tmp_path / 'sha256-1234'}"])) == found
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [found.name]


def test_what_was_cut_in_the_middle_is_made_again(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_gguf(write_family(tmp_path / "model", "qwen2"), tmp_path / "m.gguf", "tiny")
    whole = gguf_folder(tmp_path / "m.gguf")
    (whole / "upft_conversion.json").unlink()  # as if it had been cut by something else than us
    (whole / "model-00001.safetensors").write_bytes(b"half")
    assert np.isfinite(logits(gguf_folder(tmp_path / "m.gguf"))).all()
    shutil.rmtree(whole)

    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mx, "save_safetensors", fail)
    with pytest.raises(OSError, match="No space"):
        gguf_folder(tmp_path / "m.gguf")
    assert [path.name for path in cache.iterdir() if path.is_dir()] == []


# What is refused.


def changed(file: Path, to: Path, name: str, value: Any) -> Path:
    """A copy of a GGUF file with another value of one field, or without it (None)."""
    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(to, str(reader.fields["general.architecture"].contents()))
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        kind, new = field.types[0], field.contents() if key != name else value
        if key == name and isinstance(value, str):
            kind, inner = gguf.GGUFValueType.STRING, None
        if new is not None:
            writer.add_key_value(key, new, kind, inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return to


FIELDS: dict[str, tuple[str, Any, str]] = {
    "no layers": ("qwen2.block_count", None, "qwen2.block_count: None: expected a whole number above 0"),
    "a text for a number": ("qwen2.embedding_length", "64", "qwen2.embedding_length: '64': expected a whole number"),
    "no tokens": ("tokenizer.ggml.tokens", None, "has no tokenizer (tokenizer.ggml.tokens); put tokenizer.json"),
    "an unknown tokenizer": ("tokenizer.ggml.model", "bert", "tokenizer.ggml.model: 'bert': unknown kind; put"),
    "no merges": ("tokenizer.ggml.merges", None, "tokenizer.ggml.merges: expected pairs of tokens"),
}


@pytest.mark.parametrize("case", FIELDS)
def test_a_field_that_is_missing_or_wrong_is_named(tmp_path: Path, case: str) -> None:
    write_gguf(write_family(tmp_path / "model", "qwen2"), tmp_path / "source.gguf", "tiny")
    name, value, wanted = FIELDS[case]
    file = changed(tmp_path / "source.gguf", tmp_path / "m.gguf", name, value)
    assert fails(ModelError, lambda: gguf_folder(file)).startswith(f"{file}: {wanted}")


def damaged(change: Callable[[bytearray], object]) -> Callable[[bytes], bytes]:
    def apply(content: bytes) -> bytes:
        new = bytearray(content)
        change(new)
        return bytes(new)

    return apply


BYTES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda b: b"", "cannot be read: "),
    "another file": (lambda b: b"PK\x03\x04" + b, "not a GGUF file of a model: it does not begin with GGUF"),
    "another version": (damaged(lambda b: b.__setitem__(slice(4, 8), struct.pack("<I", 9))), "version 9; 2 and 3 are"),
    "cut in the header": (lambda b: b[:300], "not a GGUF file of a model: it is cut"),
    "cut in the weights": (lambda b: b[:-50000], "ends behind the end of the file"),
    "countless fields": (
        damaged(lambda b: b.__setitem__(slice(16, 24), struct.pack("<Q", 2**60))),
        "1,152,921,504,606,846,976 entries, more than 10,000",
    ),
    "a text without an end": (
        damaged(lambda b: b.__setitem__(slice(24, 32), struct.pack("<Q", 2**62))),
        "entries, more than 4,194,304",
    ),
}


@pytest.mark.parametrize("case", BYTES)
def test_a_damaged_file_is_refused_whatever_it_says(tmp_path: Path, case: str) -> None:
    write_gguf(write_family(tmp_path / "model", "qwen2"), tmp_path / "m.gguf", "tiny")
    change, wanted = BYTES[case]
    (tmp_path / "m.gguf").write_bytes(change((tmp_path / "m.gguf").read_bytes()))
    found = fails(ModelError, lambda: gguf_folder(tmp_path / "m.gguf"))
    assert found.startswith(f"{tmp_path}/m.gguf: ")
    assert wanted in found


def test_random_bytes_in_the_header_end_in_an_error_of_ours(tmp_path: Path) -> None:
    write_gguf(write_family(tmp_path / "model", "qwen2"), tmp_path / "m.gguf", "tiny")
    content, rng = (tmp_path / "m.gguf").read_bytes(), np.random.default_rng(0)
    size = content.index(b"token_embd.weight")
    for _ in range(60):
        new = bytearray(content)
        for place in rng.integers(0, size, 3):
            new[place] = rng.integers(256)
        (tmp_path / "m.gguf").write_bytes(new)
        try:
            gguf_folder(tmp_path / "m.gguf")
        except ModelError:
            continue


def test_another_family_and_a_part_of_a_file_are_refused(tmp_path: Path) -> None:
    for arch, field, wanted in (
        ("mamba", None, "is of the family 'mamba'; supported are llama, qwen2, qwen3, gemma, gemma2, gemma3"),
        ("llama", ("split.count", 3), "is one part of 3; put them together with llama.cpp's"),
    ):
        writer = gguf.GGUFWriter(tmp_path / "m.gguf", arch)
        if field:
            writer.add_uint16(*field)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        assert wanted in fails(ModelError, lambda: gguf_folder(tmp_path / "m.gguf"))


def test_a_model_without_a_place_in_gguf_is_not_written(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", "qwen2")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    found = fails(ExportError, lambda: write_gguf(folder, tmp_path / "m.gguf", "tiny"))
    assert found.startswith("a model of type 'mamba' cannot be written here; llama, qwen2")
    (folder / "config.json").write_text(json.dumps({**config, "rope_scaling": {"type": "yarn", "factor": 2}}))
    found = fails(ExportError, lambda: write_gguf(folder, tmp_path / "m.gguf", "tiny"))
    assert found.startswith("rope_scaling of type 'yarn' cannot be written here")
