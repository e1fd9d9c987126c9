"""Models: what is found, what is refused and why, local quantization, adapters; all without the network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from conftest import MODEL
from helpers.input import COMMIT, no_network, write
from mlx.utils import tree_flatten

from upft_mlx.errors import ModelError, OfflineError, RecipeError, UpftError
from upft_mlx.models.adapters import add_lora, load_adapter
from upft_mlx.models.chat import Renderer
from upft_mlx.models.find import find_model, model_hash
from upft_mlx.models.load import Loaded, load, load_tokenizer
from upft_mlx.recipe.schema import Lora, Prompt, Quantize, Recipe

__all__ = ["no_network"]
pytestmark = pytest.mark.usefixtures("no_network")


def recipe(model: str | Path, revision: str | None = None) -> Recipe:
    data = {"model": str(model), "revision": revision, "problems": {"builtin": "arithmetic"}}
    return Recipe.model_validate(data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the embedded model that a test may damage."""
    return Path(shutil.copytree(MODEL, tmp_path / "model"))


def change(path: Path, **values: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    data = {**json.loads(path.read_text()), **values}
    write(path, json.dumps({key: value for key, value in data.items() if value is not None}))


def fails(kind: type[UpftError], action: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        action()
    return str(caught.value)


# Finding.


def test_the_embedded_model_is_found() -> None:
    assert find_model(recipe("builtin:arithmetic")) == MODEL


def test_a_folder_is_found(folder: Path) -> None:
    assert find_model(recipe(folder)) == folder


def test_an_unknown_embedded_model_lists_what_there_is() -> None:
    found = fails(RecipeError, lambda: find_model(recipe("builtin:algebra")))
    assert found == "model: 'builtin:algebra': unknown; the embedded models are builtin:arithmetic"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    found = fails(ModelError, lambda: find_model(recipe(tmp_path / "nowhere")))
    assert found == f"{tmp_path}/nowhere: no such model folder; use a folder that exists, or a Hub id (user/name)"


def test_a_file_is_no_model(tmp_path: Path) -> None:
    path = write(tmp_path / "model.bin", b"x")
    assert "model.bin: a file, not a model folder" in fails(ModelError, lambda: find_model(recipe(path)))


@pytest.mark.parametrize("name", ["gpt2", "a/b/c", "a b/c", "/", "user/", "user/na me", "https://x.y/z"])
def test_a_name_that_can_be_neither_folder_nor_hub_id_is_refused(name: str) -> None:
    with pytest.raises((RecipeError, ModelError), match=r"Hub id|config\.json is missing"):
        find_model(recipe(name))


@pytest.mark.parametrize("name", ["user/a--b", "user/-x", "user/" + "x" * 100, "user/x.git"])
def test_a_name_that_the_hub_refuses_is_refused(name: str) -> None:
    assert "(user/name)" in fails(RecipeError, lambda: find_model(recipe(name)))


def remove(*names: str) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


def only_bin(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def config(content: str) -> Callable[[Path], object]:
    return lambda folder: write(folder / "config.json", content)


INCOMPLETE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (
        remove("config.json"),
        ": not a model folder: config.json is missing; use a folder that has it",
    ),
    "no weights": (remove("model.safetensors"), ": no model*.safetensors; only safetensors weights are"),
    "weights of another kind": (
        only_bin,
        "only safetensors weights are supported, convert others with `mlx_lm.",
    ),
    "no tokenizer": (remove("tokenizer.json", "tokenizer_config.json"), ": no tokenizer (tokenizer.json or"),
    "config not JSON": (config("{oops"), "/config.json: not JSON: Expecting property name"),
    "config not UTF-8": (
        lambda f: write(f / "config.json", b"\xff"),
        "/config.json: not JSON: ",
    ),
    "config nested deeply": (config("[" * 100_000), "/config.json: not JSON: "),
    "config a list": (config("[]"), "/config.json: expected a JSON object, found a list"),
    "config without model_type": (config("{}"), "/config.json: lacks `model_type`; download the model again"),
}


@pytest.mark.parametrize("case", INCOMPLETE)
def test_an_incomplete_folder_is_refused_before_anything_is_loaded(folder: Path, case: str) -> None:
    damage, part = INCOMPLETE[case]
    damage(folder)
    found = fails(ModelError, lambda: find_model(recipe(folder)))
    assert found.startswith(str(folder))
    assert part in found


# The Hub's cache.


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub's client, which is offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put_into_cache(cache: Path, name: str, refs: tuple[str, ...] = ("main",)) -> Path:
    """The embedded model in the layout of the Hub's client."""
    repo = cache / f"models--{name.replace('/', '--')}"
    for ref in refs:
        write(repo / "refs" / ref, COMMIT)
    return Path(shutil.copytree(MODEL, repo / "snapshots" / COMMIT))


def test_a_hub_model_is_found_in_the_cache(cache: Path) -> None:
    snapshot = put_into_cache(cache, "user/name")
    assert find_model(recipe("user/name")) == snapshot
    assert find_model(recipe("user/name", COMMIT)) == snapshot


def test_a_revision_is_found_in_the_cache(cache: Path) -> None:
    snapshot = put_into_cache(cache, "user/name", ("v1",))
    assert find_model(recipe("user/name", "v1")) == snapshot
    assert "user/name" in fails(OfflineError, lambda: find_model(recipe("user/name")))
    assert "user/name" in fails(OfflineError, lambda: find_model(recipe("user/name", "v2")))


@pytest.mark.usefixtures("cache")
def test_a_hub_model_that_is_not_in_the_cache_is_named_with_what_to_do() -> None:
    assert fails(OfflineError, lambda: find_model(recipe("user/name"))) == (
        "model user/name: not on this machine, and the network is off (--offline or HF_HUB_OFFLINE=1); "
        "`upft fetch` downloads it, or set `model` to a local folder"
    )


def test_a_download_that_broke_off_is_refused(cache: Path) -> None:
    (put_into_cache(cache, "user/name") / "model.safetensors").unlink()
    assert "no model*.safetensors" in fails(ModelError, lambda: find_model(recipe("user/name")))


# Loading.


def cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


UNLOADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights cut": (cut, "model.safetensors: not a safetensors file: "),
    "weights junk": (
        lambda f: f.joinpath("model.safetensors").write_bytes(b"x" * 99),
        "model.safetensors: not a safetensors file: ",
    ),
    "weights empty": (
        lambda f: f.joinpath("model.safetensors").write_bytes(b""),
        "model.safetensors: not a safetensors file: ",
    ),
    "other shapes": (
        lambda f: change(f / "config.json", hidden_size=128),
        "Expected shape (600, 128) but received",
    ),
    "more layers": (lambda f: change(f / "config.json", num_hidden_layers=5), "5, but the weights have 4 layers"),
    "field missing": (lambda f: change(f / "config.json", hidden_size=None), "cannot be loaded: "),
    "field of another type": (
        lambda f: change(f / "config.json", hidden_size="x"),
        "config.json: hidden_size: 'x': expected a number from 1 to 16,777,216",
    ),
    "unknown kind": (lambda f: change(f / "config.json", model_type="zork"), "Model type zork not supported"),
    "code of its own": (lambda f: change(f / "config.json", model_file="own.py"), "trust_remote_code"),
    "tokenizer junk": (
        lambda f: write(f / "tokenizer.json", "x"),
        "tokenizer.json: not JSON",
    ),
    "tokenizer empty": (
        lambda f: write(f / "tokenizer.json", "{}"),
        "tokenizer.json: model: None: expected an object",
    ),
    "tokenizer unknown": (
        lambda f: change(f / "tokenizer.json", model={"type": "Zork"}),
        "the tokenizer cannot be loaded: ",
    ),
    "tokenizer settings junk": (
        lambda f: write(f / "tokenizer_config.json", "x"),
        "tokenizer_config.json: not JSON",
    ),
}


@pytest.mark.parametrize("case", UNLOADABLE)
def test_what_cannot_be_loaded_is_named_with_the_reason(folder: Path, case: str) -> None:
    damage, part = UNLOADABLE[case]
    damage(folder)
    found = fails(ModelError, lambda: load(folder))
    assert found.startswith(str(folder))
    assert part in found
    assert "\n" not in found
    assert len(found) < 500


def test_a_tokenizer_without_an_eos_token_is_refused(folder: Path) -> None:
    change(folder / "tokenizer_config.json", eos_token=None)
    change(folder / "config.json", model_type="zork", eos_token_id=None)  # a known type brings a token of its own
    change(folder / "generation_config.json", eos_token_id=None)
    found = fails(ModelError, lambda: load_tokenizer(folder))
    assert found == f"{folder}: the tokenizer has no eos_token; set it in tokenizer_config.json"


def test_a_tokenizer_is_loaded_once_for_each_state_of_its_folder(folder: Path, tmp_path: Path) -> None:
    """A run loaded it about ten times, half a second each with a vocabulary of 49,152."""
    first = load_tokenizer(folder)
    assert load_tokenizer(folder) is first
    template = tmp_path / "own.jinja"
    for text in ("{{ messages[0].content }} (mine)", "{{ messages[0].content }} (mine too)"):
        template.write_text(text)
        own = load_tokenizer(folder, chat_template=str(template))
        assert own.apply_chat_template([{"role": "user", "content": "1 + 1"}], tokenize=False) == f"1 + 1{text[25:]}"
    assert load_tokenizer(folder) is first
    assert "mine" not in first.apply_chat_template([{"role": "user", "content": "1 + 1"}], tokenize=False)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": "<|endoftext|>"}))
    assert load_tokenizer(folder).eos_token == "<|endoftext|>" != first.eos_token


def test_a_model_is_loaded_in_float32_on_the_cpu_and_knows_its_own_type(loaded: Loaded) -> None:
    if mx.default_device().type == mx.DeviceType.cpu:
        assert {array.dtype for array in dict(tree_flatten(loaded.model.parameters())).values()} == {mx.float32}
    assert loaded.dtype == mx.float16


def test_what_ends_a_completion_is_known(loaded: Loaded) -> None:
    assert loaded.tokenizer.decode([loaded.eos_id]) == "<|im_end|>"
    assert loaded.eos_id in loaded.eos_ids


@pytest.mark.parametrize("content", ["{oops", "[]"])
def test_broken_sampling_settings_are_refused(folder: Path, content: str) -> None:
    whole = load(folder)
    assert "eos_token_id" in whole.generation_config
    write(folder / "generation_config.json", content)
    assert f"{folder}/generation_config.json: " in fails(ModelError, lambda: whole.generation_config)
    (folder / "generation_config.json").unlink()
    assert whole.generation_config == {}


# Quantization.


def quantized(model: nn.Module) -> list[Any]:
    return [m for _, m in model.named_modules() if isinstance(m, (nn.QuantizedLinear, nn.QuantizedEmbedding))]


@pytest.mark.parametrize(("bits", "group_size"), [(4, 64), (8, 32)])
def test_a_model_is_quantized_as_mlx_does_it(loaded: Loaded, bits: int, group_size: int) -> None:
    model = load(MODEL, quantize=Quantize.model_validate({"bits": bits, "group_size": group_size}))
    modules = quantized(model.model)
    assert len(modules) == 4 * 7 + 1
    assert {(m.bits, m.group_size) for m in modules} == {(bits, group_size)}
    assert model.config["quantization"] == {"group_size": group_size, "bits": bits, "mode": "affine"}
    name = "model.layers.0.mlp.up_proj"
    weight = dict(tree_flatten(loaded.model.parameters()))[f"{name}.weight"]
    packed, scales, biases = mx.quantize(weight.astype(mx.float16), group_size=group_size, bits=bits)
    q = dict(tree_flatten(model.model.parameters()))
    assert mx.array_equal(q[f"{name}.weight"], packed)
    assert mx.allclose(q[f"{name}.scales"], scales.astype(mx.float32), atol=1e-6)
    restored = mx.dequantize(packed, scales, biases, group_size=group_size, bits=bits).astype(mx.float32)
    assert mx.all(mx.abs(restored - weight) <= mx.abs(scales).max())


def test_a_group_size_that_fits_no_layer_is_refused_instead_of_quantizing_nothing() -> None:
    found = fails(ModelError, lambda: load(MODEL, quantize=Quantize(group_size=128)))
    assert found.startswith("quantize.group_size: 128 divides the input size of no layer")
    assert "use a smaller one" in found


def test_a_model_that_is_quantized_already_is_refused(folder: Path) -> None:
    from mlx_lm.utils import save_config

    model = load(MODEL, quantize=Quantize(bits=4, group_size=32))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.model.parameters())))
    settings = {"group_size": 32, "bits": 4}
    save_config({**json.loads((MODEL / "config.json").read_text()), "quantization": settings}, folder / "config.json")
    assert quantized(load(folder).model)
    found = fails(ModelError, lambda: load(folder, quantize=Quantize()))
    assert found == f"{folder}: is quantized already; remove `quantize` from the recipe"


# Adapters.


def test_too_many_layers_are_refused_with_both_numbers(fresh: Loaded) -> None:
    found = fails(ModelError, lambda: add_lora(fresh, Lora(num_layers=5), 0))
    assert found == "lora.num_layers: 5, but the model has 4 layers only"


@pytest.mark.parametrize("key", ["q_proj", "self_attn", "self_attn.qproj", "input_layernorm", "self_attn.rope"])
def test_a_key_that_is_no_linear_module_is_refused_and_the_valid_ones_are_listed(fresh: Loaded, key: str) -> None:
    found = fails(ModelError, lambda: add_lora(fresh, Lora(keys=("mlp.up_proj", key)), 0))
    assert found == (
        f"lora.keys: no linear module {key!r} in the model's layers; they have mlp.down_proj, mlp.gate_proj, "
        "mlp.up_proj, self_attn.k_proj, self_attn.o_proj, self_attn.q_proj, self_attn.v_proj"
    )


def test_every_key_that_the_message_lists_is_accepted(fresh: Loaded) -> None:
    keys = fails(ModelError, lambda: add_lora(fresh, Lora(keys=("x",)), 0)).split("they have ")[1].split(", ")
    config = add_lora(fresh, Lora(keys=tuple(keys), num_layers=1), 0)
    assert config["lora_parameters"]["keys"] == keys
    assert len(dict(tree_flatten(fresh.model.trainable_parameters()))) == 2 * len(keys)


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("adapter_config.json", None, ": not an adapter: adapter_config.json is missing"),
        ("adapter_config.json", "{oops", "/adapter_config.json: not JSON: Expecting property name"),
        ("adapter_config.json", "[]", "/adapter_config.json: expected a JSON object, found a list"),
        ("adapter_config.json", "{}", "/adapter_config.json: lacks `lora_parameters`, an object"),
        ("adapters.safetensors", None, "/adapters.safetensors: cannot be read: No such file"),
        ("adapters.safetensors", "junk", "/adapters.safetensors: not a safetensors file"),
    ],
)
def test_a_broken_adapter_is_refused(fresh: Loaded, tmp_path: Path, name: str, content: str | None, part: str) -> None:
    parameters = {"rank": 4, "scale": 1.0, "dropout": 0.0}
    write(tmp_path / "adapter_config.json", json.dumps({"num_layers": 1, "lora_parameters": parameters}))
    write(tmp_path / "adapters.safetensors", "")
    if content is None:
        (tmp_path / name).unlink()
    else:
        write(tmp_path / name, content)
    found = fails(ModelError, lambda: load_adapter(fresh, tmp_path))
    assert found.startswith(f"{tmp_path}{part}")


def test_an_adapter_of_another_rank_is_refused(fresh: Loaded, tmp_path: Path) -> None:
    parameters = {"rank": 4, "scale": 1.0, "dropout": 0.0, "keys": ["mlp.up_proj"]}
    write(tmp_path / "adapter_config.json", json.dumps({"num_layers": 1, "lora_parameters": parameters}))
    weights = {"model.layers.3.mlp.up_proj.lora_a": mx.zeros((64, 8))}
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), weights)
    assert "lora_a" in fails(ModelError, lambda: load_adapter(fresh, tmp_path))


def test_a_fine_tune_of_mlx_lm_that_is_no_adapter_is_named_as_such(loaded: Loaded, tmp_path: Path) -> None:
    config = {"fine_tune_type": "full", "num_layers": 2, "lora_parameters": {"rank": 8, "scale": 20.0, "dropout": 0.0}}
    write(tmp_path / "adapter_config.json", json.dumps(config))
    found = fails(ModelError, lambda: load_adapter(loaded, tmp_path))
    assert "fine_tune_type is 'full'" in found
    assert "mlx_lm fuse" in found


# The chat template.


def test_a_model_without_a_chat_template_is_refused(folder: Path) -> None:
    change(folder / "tokenizer_config.json", chat_template=None)
    found = fails(ModelError, lambda: Renderer(load_tokenizer(folder), Prompt()))
    assert found == f"{folder}: has no chat template; use an instruct model, or set prompt.chat_template"


@pytest.mark.parametrize(
    ("template", "part"),
    [
        ("{{ raise_exception('System role not supported') }}", "System role not supported"),
        ("{{ messages[7].content }}", "check `prompt`"),
        ("{% for %}", "check `prompt`"),
        ("{{ 'a' + 1 }}", "check `prompt`"),
    ],
    ids=["raises", "index", "syntax", "type"],
)
def test_a_chat_template_that_fails_is_named(folder: Path, template: str, part: str) -> None:
    change(folder / "tokenizer_config.json", chat_template=template)
    renderer = Renderer(load_tokenizer(folder), Prompt(system="Be brief."))
    found = fails(ModelError, lambda: renderer.ids("1 + 1?"))
    assert found.startswith(f"{folder}: the chat template refuses the prompt: ")
    assert part in found


# The fingerprint.


def test_the_fingerprint_changes_with_weights_config_and_template_and_not_with_the_place(
    folder: Path,
) -> None:
    before = model_hash(folder)
    assert before == model_hash(MODEL)
    seen = {before}
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    for name, content in (
        ("model.safetensors", bytes(weights)),
        ("config.json", b"{}"),
        ("chat_template.jinja", b"x"),
    ):
        write(folder / name, content)
        assert model_hash(folder) not in seen
        seen.add(model_hash(folder))
