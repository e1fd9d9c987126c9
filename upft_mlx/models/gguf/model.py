"""A GGUF file as a model folder: config.json, weights and tokenizer from its metadata, once, in the user's cache.

The cache is `upft/gguf/` in $XDG_CACHE_HOME or ~/.cache; a folder's name is the hash of what it was made from.
llama.cpp keeps the rows of a llama's query and key heads in another order, and a gemma's norms plus one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from upft_mlx.errors import ModelError
from upft_mlx.escape import one_line, quoted
from upft_mlx.machine.cache import cache_folder
from upft_mlx.models.gguf.file import AFFINE, Array, Gguf, read_gguf, write_tokenizer
from upft_mlx.quantities import disk

CONVERTED = "upft_conversion.json"
"""What a folder was made from, and the notes about it."""
_MADE_BY = 1
"""Raised when the same file becomes another folder."""
_SHARD = 2 << 30
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
_BESIDE = (*_TOKENIZER, "chat_template.jinja", "generation_config.json")
FAMILIES = {
    **{name: name for name in ("llama", "qwen2", "qwen3", "gemma", "gemma2")},
    "gemma3": "gemma3_text",
}
"""mlx-lm's model types by llama.cpp's architectures."""
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def layer_names(arch: str) -> dict[str, str]:
    """mlx-lm's names of the modules in a layer by llama.cpp's."""
    attention = {f"attn_{part}": f"self_attn.{part}_proj" for part in "qkv"}
    attention |= {
        "attn_output": "self_attn.o_proj",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
    }
    mlp = {f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")}
    norms = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    if arch in ("gemma2", "gemma3"):
        norms["ffn_norm"] = "pre_feedforward_layernorm"
        norms |= {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
    return {**attention, **mlp, **norms}


def halves_apart(array: Array, heads: int) -> Array:
    """Rows of a llama's query or key heads: llama.cpp has one of each half in turn, mlx-lm one half after the other."""
    return array.reshape(heads, -1, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def halves_in_turn(array: Array, heads: int) -> Array:
    """The inverse of `halves_apart`."""
    return array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def gguf_folder(path: Path) -> Path:
    """The model folder that a GGUF file is converted to; made at the first call.

    Raises:
        ModelError: the file is damaged, of another family, or its tokenizer is not known here; says what to do.
        OSError: the cache cannot be written.
    """
    gguf = read_gguf(path)
    beside = [found for name in _BESIDE if (found := path.parent / name).is_file()]
    cache = cache_folder("gguf")
    digest = hashlib.sha256(repr((_MADE_BY, len(gguf.data), sorted(gguf.fields.items()))).encode())
    for name, place in sorted(gguf.tensors.items()):  # what each is called, where it is, and bytes of it
        digest.update(repr((name, place)).encode())
        for start in (0, place.bytes // 2, max(0, place.bytes - 4096)):
            digest.update(gguf.data[place.start + start : place.start + min(place.bytes, start + 4096)])
    for file in beside:
        digest.update(repr((file.name, hashlib.sha256(file.read_bytes()).hexdigest())).encode())
    folder = cache / digest.hexdigest()[:24]
    if (folder / CONVERTED).is_file():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / CONVERTED).is_file():
            unfinished = cache / f"{folder.name}.partial"
            for stale in (unfinished, folder):
                shutil.rmtree(stale, ignore_errors=True)
            unfinished.mkdir()
            try:
                convert(gguf, beside, unfinished)
                unfinished.rename(folder)
            except BaseException:  # Ctrl-C, too, leaves no half a model behind; it goes on to the caller
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
    return folder


def conversion_notes(folder: Path) -> list[str]:
    """What somebody should know about the conversion; none of a folder that was not converted."""
    try:
        notes = json.loads((folder / CONVERTED).read_text(encoding="utf-8"))["notes"]
    except (OSError, ValueError, LookupError, TypeError):
        return []
    return [str(note) for note in notes]


def convert(gguf: Gguf, beside: list[Path], folder: Path) -> None:
    """Write a model folder of a GGUF file.

    Args:
        gguf: the file.
        beside: files that replace parts of it: a tokenizer, a chat template, sampling settings.
        folder: is written; the file that says that it is whole comes last.

    Raises:
        ModelError: as `gguf_folder`.
    """
    fields = gguf.fields
    arch = fields.get("general.architecture")
    if arch not in FAMILIES:
        raise ModelError(
            f"is of the family {quoted(arch)}; supported are {', '.join(FAMILIES)}",
            "use a Hub id or a folder with safetensors",
            path=gguf.path,
        )
    config = _config(gguf, str(arch))
    has_tokenizer = any(file.name.startswith("tokenizer.") for file in beside)
    if not has_tokenizer:
        write_tokenizer(gguf, folder)
    for file in beside:
        if has_tokenizer or file.name not in _TOKENIZER:
            shutil.copyfile(file, folder / file.name)
    eos = [fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    ids = list(dict.fromkeys(number for number in eos if type(number) is int))
    if ids:
        config["eos_token_id"] = ids if len(ids) > 1 else ids[0]
    quantized, notes = _write_weights(gguf, str(arch), config, folder)
    if quantized:
        (bits, _), *_ = Counter(quantized.values()).most_common(1)
        own = {name: {"group_size": 32, "bits": its} for name, its in quantized.items() if its != bits}
        config["quantization"] = {"group_size": 32, "bits": bits, "mode": "affine", **own}
        config["quantization_config"] = config["quantization"]
    url = fields.get("general.base_model.0.repo_url") or fields.get("general.source.huggingface.repository") or ""
    hub = re.fullmatch(r"(?:https://huggingface\.co/)?([\w.-]+/[\w.-]+)", str(url), re.ASCII)
    head = {"license": fields.get("general.license"), "base_model": hub and hub[1]}
    lines = [f"{name}: {json.dumps(value)}\n" for name, value in head.items() if isinstance(value, str)]
    if lines:
        (folder / "README.md").write_text(f"---\n{''.join(lines)}---\n", encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    made = {"from": str(gguf.path), "made_by": _MADE_BY, "notes": notes}
    (folder / CONVERTED).write_text(json.dumps(made, indent=1), encoding="utf-8")


# config.json.


def _config(gguf: Gguf, arch: str) -> dict[str, Any]:
    """The config in mlx-lm's terms, each value checked."""
    fields, tensors = gguf.fields, gguf.tensors

    def number(name: str, otherwise: Any = None, *, whole: bool = True) -> Any:
        value = fields.get(f"{arch}.{name}", otherwise)
        fits = type(value) is int if whole else type(value) in (int, float)
        if not fits or not 0 < value < 2**40:
            problem = f"{quoted(value)}: expected a {'whole ' if whole else ''}number above 0"
            raise ModelError(problem, "use another file", field=f"{arch}.{name}", path=gguf.path)
        return value

    heads, hidden = number("attention.head_count"), number("embedding_length")
    if "token_embd.weight" not in tensors:
        raise ModelError("has no token_embd.weight", "use the file of a language model", path=gguf.path)
    head_dim = number("attention.key_length", hidden // heads)
    if number("rope.dimension_count", head_dim) != head_dim:
        remedy = "use a folder with safetensors"
        raise ModelError(
            "rotates a part of each head only", remedy, field=f"{arch}.rope.dimension_count", path=gguf.path
        )
    config = {
        "model_type": FAMILIES[arch],
        "hidden_size": hidden,
        "num_hidden_layers": number("block_count"),
        "intermediate_size": number("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "rms_norm_eps": number("attention.layer_norm_rms_epsilon", whole=False),
        "rope_theta": number("rope.freq_base", 10000.0, whole=False),
        "max_position_embeddings": number("context_length"),
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    if arch == "llama":
        config |= {"attention_bias": "blk.0.attn_q.bias" in tensors, "mlp_bias": "blk.0.ffn_up.bias" in tensors}
    if arch in ("gemma2", "gemma3"):  # llama.cpp knows by the layers which size scales its queries otherwise
        largest = {"gemma2": 46, "gemma3": 62}[arch] == config["num_hidden_layers"]
        config["query_pre_attn_scalar"] = hidden / heads if largest else head_dim
        config["sliding_window"] = number("attention.sliding_window", 4096)
    if arch == "gemma2":
        for name, ours in (("attn", "attn_logit_softcapping"), ("final", "final_logit_softcapping")):
            config[ours] = number(f"{name}_logit_softcapping", {"attn": 50.0, "final": 30.0}[name], whole=False)
    if arch == "gemma3":
        config["sliding_window_pattern"] = 6
        config["rope_local_base_freq"] = number("rope.freq_base_swa", 10000.0, whole=False)
    kind = fields.get(f"{arch}.rope.scaling.type", "none")
    if "rope_freqs.weight" in tensors:
        config["rope_scaling"] = _llama3_scaling(gguf, config)
    elif kind == "linear":
        config["rope_scaling"] = {"type": "linear", "factor": number("rope.scaling.factor", whole=False)}
    elif kind != "none":
        remedy = "use a folder with safetensors"
        raise ModelError(f"{quoted(kind)}: not supported", remedy, field=f"{arch}.rope.scaling.type", path=gguf.path)
    return config


def _llama3_scaling(gguf: Gguf, config: dict[str, Any]) -> dict[str, Any]:
    """Llama 3.1's scaling of positions, of which a GGUF keeps the result: the factor of each frequency."""
    found = gguf.values("rope_freqs.weight").astype(np.float64)
    scaling = {"rope_type": "llama3", "factor": float(found.max()), **_LLAMA_3}
    wanted = llama3_factors(config["rope_theta"], config["head_dim"], scaling)
    if found.shape != wanted.shape or not np.allclose(found, wanted, rtol=1e-3):
        problem = "rope_freqs.weight is not Llama 3.1's scaling"
        raise ModelError(problem, "use a folder with safetensors", path=gguf.path)
    return scaling


_LLAMA_3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def llama3_factors(base: float, size: int, scaling: dict[str, Any]) -> Array:
    """By how much Llama 3.1's scaling divides each frequency of a head with `size` numbers, (size / 2,) float64."""
    low, high, length = (scaling.get(name, otherwise) for name, otherwise in _LLAMA_3.items())
    turn = 2 * np.pi * base ** (np.arange(0, size, 2) / size)  # positions
    smooth = np.clip((length / turn - low) / (high - low), 0, 1)
    factors: Array = 1 / ((1 - smooth) / scaling["factor"] + smooth)
    return factors


# The weights.


def _named(gguf: Gguf, arch: str, config: dict[str, Any]) -> Iterator[tuple[str, str, Callable[[Array], Array]]]:
    """Each tensor's name, mlx-lm's name of its module, and how its rows become mlx-lm's."""
    inside = layer_names(arch)
    for name in gguf.tensors:
        if name == "rope_freqs.weight":
            continue  # in the config
        place = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
        top = re.fullmatch(r"(\w+)\.weight", name)
        if place and place[2] in inside:
            module = f"model.layers.{place[1]}.{inside[place[2]]}"
        elif top and top[1] in TOP:
            module = TOP[top[1]]
        else:
            problem = f"{one_line(name)}: {FAMILIES[arch]} has no such weight here"
            raise ModelError(problem, "use a folder with safetensors", path=gguf.path)
        rows = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
        heads = rows.get(place[2]) if place and arch == "llama" else None
        if heads is not None:
            if gguf.tensors[name].shape[0] != heads * config["head_dim"]:
                problem = (
                    f"{one_line(name)}: {gguf.tensors[name].shape} does not fit {heads} heads of {config['head_dim']}"
                )
                raise ModelError(problem, "download it again", path=gguf.path)
            yield name, module, partial(halves_apart, heads=heads)
        elif arch.startswith("gemma") and module.endswith("norm"):
            yield name, module, lambda array: array.astype(np.float32) - 1
        else:
            yield name, module, lambda array: array


def _write_weights(gguf: Gguf, arch: str, config: dict[str, Any], folder: Path) -> tuple[dict[str, int], list[str]]:
    """Write the weights in files of up to 2 GB; returns the bits of each quantized module, and notes."""
    import mlx.core as mx

    (common, _), *_ = Counter(place.kind for place in gguf.tensors.values() if len(place.shape) > 1).most_common(1)
    small = {"F32": mx.float32, "BF16": mx.bfloat16}.get(common, mx.float16)
    quantized, decoded, part, number = dict[str, int](), Counter[str](), dict[str, mx.array](), 0
    for name, module, of in _named(gguf, arch, config):
        place, weight = gguf.tensors[name], f"{module}.{name.rpartition('.')[2]}"
        if place.kind in AFFINE and len(place.shape) == 2:
            words, scales, biases = (of(array) for array in gguf.affine(name))
            if not np.isfinite(biases).all():
                raise ModelError(
                    f"{one_line(name)}: scales that float16 cannot hold", "use another file", path=gguf.path
                )
            made = {weight: words, f"{module}.scales": scales, f"{module}.biases": biases}
            part |= {key: mx.array(np.ascontiguousarray(array)) for key, array in made.items()}
            quantized[module] = AFFINE[place.kind]
        else:
            array = mx.array(np.ascontiguousarray(of(gguf.values(name))))
            if place.kind == "BF16":
                array = array.astype(mx.bfloat16)
            elif place.kind == "F32" and bool(mx.array_equal(array, array.astype(small).astype(mx.float32))):
                array = array.astype(small)  # exactly, as norms that were in 16 bits before
            elif place.kind not in ("F32", "F16"):
                array = array.astype(mx.float16)
                decoded[place.kind] += array.nbytes
            part[weight] = array
        mx.eval(part)
        if sum(array.nbytes for array in part.values()) > _SHARD:
            number += 1
            mx.save_safetensors(str(folder / f"model-{number:05}.safetensors"), part, {"format": "mlx"})
            part = {}
    if part:
        mx.save_safetensors(str(folder / f"model-{number + 1:05}.safetensors"), part, {"format": "mlx"})
    notes = []
    if decoded:
        was = sum(place.bytes for place in gguf.tensors.values() if place.kind in decoded)
        notes.append(
            f"{gguf.path.name}: MLX has no {' or '.join(decoded)}; these weights are decoded and rounded to float16, "
            f"{disk(sum(decoded.values()))} instead of {disk(was)}"
        )
    return quantized, notes
