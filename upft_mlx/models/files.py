"""Reading the files of a model folder, which anyone may have written: JSON and safetensors headers, within bounds."""

from __future__ import annotations

import json
import math
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upft_mlx.errors import ModelError, RecipeError
from upft_mlx.escape import one_line

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "I64": 8, "U8": 1, "I8": 1, "BOOL": 1}
"""Bytes of a number, by the names that safetensors has for its type."""
LARGEST = 64 << 20
"""Bytes of a JSON file or header; the largest tokenizers (Gemma 3) have 33 MB."""
TEMPLATE = "chat_template.jinja"
"""Where a model folder has its chat template, if not in tokenizer_config.json."""
TEMPLATE_BYTES = 1 << 20
"""The largest chat template; the longest published ones have 30 KB."""
AGAIN = "download the model again"
_VALUES, _NESTED = 8_000_000, 2_000_000
"""Values, and lists and objects, of a JSON file: what stands for more takes over 1 GB when it is read."""


@dataclass(frozen=True)
class Tensor:
    """An array of a weights file: its type, by safetensors' name, and shape."""

    kind: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model folder.

    Raises:
        ModelError: it is none, or too large to be one.
    """
    try:
        return _object(bounded(path, LARGEST))
    except ValueError as error:
        raise ModelError(one_line(str(error)), AGAIN, path=path) from None


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of a model's decoder; those in `text_config` override the outer ones."""
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else config


def _object(content: bytes) -> dict[str, Any]:
    if content.count(b",") > _VALUES or content.count(b"[") + content.count(b"{") > _NESTED:
        raise ValueError(f"holds more than {_VALUES:,} values")
    try:
        value = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found a {type(value).__name__}")
    return value


def bounded(path: Path, most: int) -> bytes:
    """The content of a plain file of at most `most` bytes.

    Raises:
        ModelError: it is none, or cannot be read.
    """
    size = check_size(path, most)
    try:
        with path.open("rb") as file:
            return file.read(size)  # a buffer of that many bytes is made at once: of `most`, 64 MB for each config.json
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", AGAIN, path=path) from None


def own_template(path: str | Path) -> str:
    """The chat template in a file of the user's (`prompt.chat_template`).

    Raises:
        RecipeError: it cannot be read, or is none.
    """
    field = "prompt.chat_template"
    try:
        text = bounded(Path(path), TEMPLATE_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        problem = f"{path}: not a text file (byte {error.start} is not UTF-8)"
        raise RecipeError(problem, "name a Jinja template", field=field) from None
    except ModelError as error:
        raise RecipeError(f"{path}: {error.problem}", "name a Jinja template", field=field) from None
    if not text.strip():
        raise RecipeError(f"{path}: is empty", "fill it in, or remove the field: the model has its own", field=field)
    return text


def check_size(path: Path, most: int) -> int:
    """The size of a file in bytes. What is larger than `most`, or no file, is refused: a pipe would be read for ever.

    Raises:
        ModelError: says which.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", AGAIN, path=path) from None
    if not stat.S_ISREG(found.st_mode):
        raise ModelError("not a plain file", AGAIN, path=path)
    if found.st_size > most:
        raise ModelError(f"{found.st_size:,} bytes, more than {most:,}", AGAIN, path=path)
    return found.st_size


def read_header(path: Path) -> dict[str, Tensor]:
    """The arrays of a safetensors file, without reading them.

    Raises:
        ModelError: the file is cut or is no safetensors file.
    """
    check_size(path, 2**50)
    tensors: dict[str, Tensor] = {}
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            room = path.stat().st_size - 8 - length
            if room < 0:
                raise ValueError("its header is longer than the file")
            if length > LARGEST:
                raise ValueError(f"its header has {length:,} bytes")
            header = _object(file.read(length))
        header.pop("__metadata__", None)
        for name, stated in header.items():
            entry: dict[str, Any] = stated if isinstance(stated, dict) else {}
            kind: Any = entry.get("dtype")
            shape: Any = entry.get("shape")
            place: Any = entry.get("data_offsets")
            if not isinstance(kind, str) or not _are_counts(shape) or not _are_counts(place) or len(place) != 2:
                raise ValueError(f"{one_line(name)}: needs dtype, shape and data_offsets")
            tensors[name] = tensor = Tensor(kind, tuple(shape))
            if not place[0] <= place[1] <= room:
                raise ValueError(f"{one_line(name)}: ends behind the end of the file")
            if kind in BYTES and tensor.size * BYTES[kind] != place[1] - place[0]:
                raise ValueError(f"{one_line(name)}: its shape does not fit its bytes")
    except (OSError, ValueError, struct.error) as error:
        shown = one_line(str(error))
        raise ModelError(f"not a safetensors file: {shown}", AGAIN, path=path) from None
    return tensors


def _are_counts(value: Any) -> bool:
    """Whether it is a short list of numbers that a shape or a place in a file can have."""
    return isinstance(value, list) and len(value) <= 16 and all(type(n) is int and 0 <= n < 2**48 for n in value)
