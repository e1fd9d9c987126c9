"""The gate that a model folder passes before anything in it is used: whoever made it need not mean well.

No link leads out of the folder (a snapshot in the Hub's cache consists of links into its own blobs/), no file is larger
than such files are, JSON is JSON, numbers are numbers that a model can have, and the weights' headers are whole. What
passes may still not be loaded; what does not pass is named with the file and the field.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from upft_mlx.errors import ModelError
from upft_mlx.escape import one_line, quoted
from upft_mlx.models.files import AGAIN, LARGEST, TEMPLATE_BYTES, check_size, json_object, read_header, text_config
from upft_mlx.models.rendering import EndedError, RefusedError, try_tokenizer
from upft_mlx.quantities import many
from upft_mlx.stages import is_terms

_READ = (".json", ".jsonl", ".safetensors", ".py", ".model", ".tiktoken", ".txt", ".jinja", ".md")
"""What is read, or goes with what is made of a model, with the names below."""
TEMPLATES = "additional_chat_templates"
"""A folder with more chat templates, by name."""
_TERMS_BYTES = 1 << 20
_LAYERS, _LARGE = 1000, 2**24
_LAYER_FIELD = re.compile(r"layers?$")
_SIZE_FIELD = re.compile(r"(size|dim|heads?|experts?|width|rank|groups?|embd|inner)$")
_COUNTS = (
    *("num_hidden_layers", "n_layer", "hidden_size", "n_embd", "intermediate_size", "n_inner", "vocab_size"),
    *("num_attention_heads", "n_head", "num_key_value_heads", "head_dim", "max_position_embeddings"),
    *("moe_intermediate_size", "num_experts_per_tok"),
)
"""Fields that are a whole number above 0, or a list of them, or null."""
_SETTINGS = (("temperature", 0, 100), ("top_p", 0, 1), ("top_k", -1, 2**24), ("min_p", 0, 1))
"""Sampling settings with their smallest and largest values; a `top_k` of -1 keeps all tokens."""
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_NOT_TEXT = re.compile(r"vision|visual|audio")
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,99}", re.ASCII)
Stamps = tuple[tuple[str, tuple[int, ...]], ...]
"""The state of a folder's files: their names with inodes, sizes and times of change."""


def admit(folder: Path) -> Stamps:
    """Check a model folder that has config.json, and its weights where it has some; once for each state of its files.

    Raises:
        ModelError: names the file, the field and its value.

    Returns:
        That state.
    """
    try:
        found = [entry.name for entry in os.scandir(folder)]
        names = sorted(name for name in found if name.endswith(_READ) or is_terms(name) or name == TEMPLATES)
        stamps = tuple((name, _stamp(folder / name)) for name in names)
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", "set model to another folder", path=folder) from None
    _admit(folder, stamps)
    return stamps


def _stamp(path: Path) -> tuple[int, ...]:
    found = path.lstat()
    return found.st_ino, found.st_size, found.st_mtime_ns, path.stat().st_mtime_ns if path.exists() else 0


@lru_cache(maxsize=16)
def _admit(folder: Path, stamps: Stamps) -> None:
    paths = [folder / name for name, _ in stamps]
    files = [path for path in paths if path.name != TEMPLATES and (path.is_symlink() or not path.is_dir())]
    files += sorted((folder / TEMPLATES).glob("*.jinja"))
    most = {".safetensors": 2**50, ".jinja": TEMPLATE_BYTES}
    for file in files:
        _stays_inside(file, folder)
        check_size(file, most.get(file.suffix, _TERMS_BYTES if is_terms(file.name) else LARGEST))
    config = json_object(folder / "config.json")
    _check_config(folder / "config.json", config)
    path = folder / "generation_config.json"
    settings = json_object(path) if path.exists() else {}
    _check_ids(path, settings)
    for name, least, largest in _SETTINGS:
        value: Any = settings.get(name)
        fits = type(value) in (int, float) and least <= value <= largest and (name != "top_k" or value == int(value))
        kind = "whole number" if name == "top_k" else "number"
        _refuse(path, name, value, value is None or fits, f"a {kind} from {least} to {largest:,}")
    _check_tokenizer(folder)
    # Refuse more layers than there are weights for, before any is made.
    headers = [path for path in paths if path.name.startswith("model") and path.name.endswith(".safetensors")]
    names = [name for path in headers for name in read_header(path) if not _NOT_TEXT.search(name)]
    last = max((int(place[1]) for name in names if (place := _LAYER.search(name))), default=None)
    stated = text_config(config).get("num_hidden_layers")
    if isinstance(stated, int) and last is not None and stated > last + 1:
        raise ModelError(
            f"{stated}, but the weights have {many(last + 1, 'layer')}",
            AGAIN,
            field="num_hidden_layers",
            path=folder / "config.json",
        )


def _stays_inside(file: Path, folder: Path) -> None:
    """Refuse a link that leads out of the folder; in the Hub's cache, out of the repository's blobs/."""
    if not file.is_symlink() and not file.parent.is_symlink():
        return
    home, target = folder.resolve(), file.resolve()
    blobs = [home.parent.parent / "blobs"] if home.parent.name == "snapshots" else []
    if not any(target.is_relative_to(place.resolve()) for place in (home, *blobs)):
        raise ModelError("is a link that leads out of the model folder", "put the file itself there", path=file)
    if not target.is_file():
        raise ModelError("is a link to a file that is missing", AGAIN, path=file)


def terms(folder: Path) -> list[Path]:
    """The files with the terms of a model, plain and small, which go with what is made of it."""
    found = sorted(path for path in folder.iterdir() if is_terms(path.name) and path.is_file())
    for path in found:
        _stays_inside(path, folder)
    return [path for path in found if path.stat().st_size <= _TERMS_BYTES]


# config.json and generation_config.json.


def _check_config(path: Path, config: dict[str, Any]) -> None:
    kind = config.get("model_type")
    if kind is None:
        raise ModelError("lacks `model_type`", AGAIN, path=path)
    _refuse(path, "model_type", kind, isinstance(kind, str) and _NAME.fullmatch(kind), "the name of an architecture")
    code = config.get("model_file")
    plain = isinstance(code, str) and Path(code).name == code and code.endswith(".py")
    _refuse(path, "model_file", code, code is None or plain, "a Python file in the folder")
    _check_numbers(path, config)
    for name in ("quantization", "quantization_config"):
        stated = config.get(name)
        _refuse(path, name, stated, stated is None or isinstance(stated, dict), "an object")
        sections = [stated, *(item for item in stated.values() if isinstance(item, dict))] if stated else []
        for section in sections:
            for field, values in (("bits", range(1, 17)), ("group_size", (16, 32, 64, 128, 256))):
                value = section.get(field)
                fits = value is None or (type(value) is int and value in values) or value == -1
                _refuse(path, f"{name}.{field}", value, fits, f"one of {', '.join(map(str, values))}")
    _check_ids(path, config)


def _check_numbers(path: Path, section: dict[str, Any], prefix: str = "") -> None:
    """Sizes and counts, also of the parts of a model of several (`text_config`)."""
    for name, value in section.items():
        where = f"{prefix}{name}"
        if isinstance(value, dict):
            if where.count(".") < 4:
                _check_numbers(path, value, f"{where}.")
            continue
        most = _LAYERS if _LAYER_FIELD.search(name) else _LARGE if _SIZE_FIELD.search(name) else 2**40
        for item in value if isinstance(value, list) else [value]:
            if type(item) is int:
                _refuse(path, where, item, -1 <= item <= most or most == 2**40, f"a number up to {most:,}")
            if name in _COUNTS and prefix in ("", "text_config."):
                fits = item is None or (type(item) is int and 0 < item <= most)
                _refuse(path, where, item, fits, f"a number from 1 to {most:,}")


def _check_ids(path: Path, settings: dict[str, Any]) -> None:
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        value = settings.get(name)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        fits = len(ids) <= 1000 and all(type(item) is int and -1 <= item <= _LARGE for item in ids)
        _refuse(path, name, value, fits, "a token's number, or a list of them")


# The tokenizer.


def _check_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    settings = json_object(path) if path.exists() else {}
    for name, value in settings.items():
        if name.endswith("_file") and isinstance(value, str):
            target = folder / value
            leaves = not target.resolve().is_relative_to(folder.resolve()) and os.path.lexists(target)
            cached = leaves and any(f.is_symlink() and f.resolve() == target.resolve() for f in folder.iterdir())
            _refuse(path, name, value, not leaves or cached, "a file in the folder")
        if name in ("tool_parser_type", "chat_template_type", "tokenizer_class"):
            _refuse(path, name, value, value is None or (isinstance(value, str) and _NAME.fullmatch(value)), "a name")
    _refuse(path, "init_inputs", settings.get("init_inputs"), not settings.get("init_inputs"), "empty")
    template = settings.get("chat_template")  # a text, or several as a list of objects with name and template
    several = template if isinstance(template, list) else []
    texts = [item.get("template") if isinstance(item, dict) else item for item in several] if several else [template]
    for text in texts:
        _refuse(path, "chat_template", text, text is None or isinstance(text, str), "a text")
        if isinstance(text, str) and len(text) > TEMPLATE_BYTES:
            raise ModelError(
                f"{len(text):,} characters, more than {TEMPLATE_BYTES:,}", AGAIN, field="chat_template", path=path
            )
    if (folder / "tokenizer.json").exists():
        _check_vocabulary(folder / "tokenizer.json", _stamp(folder / "tokenizer.json"))


@lru_cache(maxsize=16)
def _check_vocabulary(path: Path, stamp: tuple[int, ...]) -> None:
    """Ids that a table can be made of (mlx-lm makes one as long as the largest), and a text that can be encoded."""
    content = json_object(path)
    model, added = content.get("model"), content.get("added_tokens")
    _refuse(path, "model", model, isinstance(model, dict), "an object")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else []
    for token in added if isinstance(added, list) else []:
        _refuse(
            path, "added_tokens", token, isinstance(token, dict) and isinstance(token.get("content"), str), "tokens"
        )
        ids.append(token.get("id"))
    wrong = [item for item in ids if type(item) is not int or not 0 <= item <= _LARGE]
    _refuse(path, "vocab", wrong[:1], not wrong, f"ids up to {_LARGE:,}")
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        longest = max(map(len, _texts(content.get(part))), default=0)
        most = 4 << 20 if part == "normalizer" else 1 << 16  # SentencePiece's table of characters is a text of 300 KB
        _refuse(path, part, f"a text of {longest:,} characters", longest <= most, f"texts up to {most:,} characters")
    try:
        try_tokenizer(path)
    except RefusedError as error:
        raise ModelError(f"the tokenizer cannot be loaded: {error}", AGAIN, path=path) from None
    except EndedError as error:
        raise ModelError(f"the tokenizer {error}", "use another model", path=path) from None


def _texts(value: Any, depth: int = 20) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)) and depth:
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item, depth - 1)


def _refuse(path: Path, field: str, value: Any, fits: Any, expected: str) -> None:
    if not fits:
        raise ModelError(f"{quoted(value)}: expected {expected}", AGAIN, field=one_line(field), path=path)
