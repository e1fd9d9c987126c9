"""GGUF, the file of llama.cpp, LM Studio and Ollama: its metadata and tensors, read within bounds.

    "GGUF", version, number of tensors, number of fields
    fields: name, type, value            general.architecture, llama.block_count, tokenizer.ggml.tokens, ...
    tensors: name, shape (fastest first), type, offset
    the tensors' blocks, each tensor at a multiple of general.alignment

Q4_0, Q4_1 and Q8_0 have a float16 scale for every 32 weights, which is MLX's affine quantization with groups of 32:
the same numbers, in another order of bits. Other quantized types are decoded by the package gguf.

The metadata holds a tokenizer of one of two kinds: byte-level BPE with merges ("gpt2"), whose text is cut into words by
a rule that has only a name in the file (`tokenizer.ggml.pre`), and SentencePiece ("llama"), whose scores say what is
merged first.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from upft_mlx.errors import ModelError
from upft_mlx.escape import one_line, quoted
from upft_mlx.machine.requirements import pip_install
from upft_mlx.models.files import check_size

Array = npt.NDArray[Any]
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _LIST = 8, 9
TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    30: ("BF16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    20: ("IQ4_NL", 32, 18),
    23: ("IQ4_XS", 256, 136),
}
"""The types of tensors by number: name, weights in a block, bytes of a block."""
AFFINE = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}
"""The types that MLX has, and their bits."""
_MOST_FIELDS, _MOST_TENSORS, _MOST_ITEMS, _MOST_TEXT = 10_000, 100_000, 8_000_000, 4 << 20


@dataclass(frozen=True)
class Placed:
    """A tensor: its type, its shape with rows first, and where its blocks are."""

    kind: str
    shape: tuple[int, ...]
    start: int
    bytes: int


@dataclass(frozen=True)
class Gguf:
    """A GGUF file."""

    path: Path
    fields: dict[str, Any]
    """Metadata by name: numbers, truths, texts, and lists of these."""
    tensors: dict[str, Placed]
    data: mmap.mmap

    def blocks(self, name: str) -> Array:
        """The bytes of a tensor, (rows, bytes of a row)."""
        place = self.tensors[name]
        raw = np.frombuffer(self.data, np.uint8, place.bytes, place.start)
        return raw.reshape(math.prod(place.shape[:-1]), -1)

    def values(self, name: str) -> Array:
        """A tensor as float32, or float16 where it is that in the file.

        Raises:
            ModelError: its type needs the package gguf, which is not installed.
        """
        place, raw = self.tensors[name], self.blocks(name)
        if place.kind == "F32":
            return raw.view("<f4").reshape(place.shape)
        if place.kind == "F16":
            return raw.view("<f2").reshape(place.shape)
        if place.kind == "BF16":
            return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(place.shape)
        try:
            from gguf import GGMLQuantizationType, quants
        except ImportError:
            raise ModelError(
                f"{one_line(name)} is {place.kind}, which the package gguf decodes",
                f"`{pip_install(sys.executable)} gguf` installs it",
                path=self.path,
            ) from None
        decoded: Array = quants.dequantize(raw, GGMLQuantizationType[place.kind])
        return decoded.reshape(place.shape)

    def affine(self, name: str) -> tuple[Array, Array, Array]:
        """A tensor of Q4_0, Q4_1 or Q8_0 in MLX's form: words (O, D / 8 or 4), scales and biases (O, D / 32)."""
        place = self.tensors[name]
        rows = place.shape[0]
        blocks = self.blocks(name).reshape(rows, place.shape[-1] // 32, -1)  # (O, groups, bytes of a block)
        scales = blocks[..., :2].copy().view("<f2")[..., 0]
        if place.kind == "Q8_0":  # d q with -128 <= q < 128, as d (q + 128) - 128 d
            codes = (blocks[..., 2:].view(np.int8).astype(np.int16) + 128).astype(np.uint8)
            return codes.reshape(rows, -1).view("<u4"), scales, (-128 * scales.astype(np.float32)).astype(np.float16)
        if place.kind == "Q4_0":  # d (q - 8)
            biases, nibbles = (-8 * scales.astype(np.float32)).astype(np.float16), blocks[..., 2:]
        else:  # d q + m
            biases, nibbles = blocks[..., 2:4].copy().view("<f2")[..., 0], blocks[..., 4:]
        codes = np.concatenate([nibbles & 15, nibbles >> 4], axis=-1)  # 16 bytes: first half low, second half high
        packed = codes[..., 0::2] | (codes[..., 1::2] << 4)
        return packed.reshape(rows, -1).view("<u4"), scales, biases


def read_gguf(path: Path) -> Gguf:
    """A GGUF file's metadata and where its tensors are.

    Raises:
        ModelError: it is none, is cut, is a part of several, or holds what a file of a model does not.
    """
    check_size(path, 2**50)
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot be read: {one_line(str(error))}", "download it again", path=path) from None
    reader = _Reader(data)
    try:
        if reader.take(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version = reader.number("<I")
        if version not in (2, 3):
            raise ValueError(f"version {version}; 2 and 3 are known")
        tensors, fields = reader.count(_MOST_TENSORS), reader.count(_MOST_FIELDS)
        found = {reader.text(): reader.value(reader.number("<I")) for _ in range(fields)}
        alignment = found.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= 1 << 20:
            raise ValueError(f"general.alignment: {quoted(alignment)}")
        stated = [reader.tensor() for _ in range(tensors)]
        start = -(-reader.at // alignment) * alignment
        placed = {name: Placed(kind, shape, start + offset, size) for name, kind, shape, offset, size in stated}
        for name, place in placed.items():
            if place.start + place.bytes > len(data):
                raise ValueError(f"{one_line(name)}: ends behind the end of the file")
    except (ValueError, struct.error, UnicodeDecodeError, OverflowError) as error:
        raise ModelError(
            f"not a GGUF file of a model: {one_line(str(error))}", "download it again", path=path
        ) from None
    if (parts := found.get("split.count", 1)) != 1:
        remedy = "put them together with llama.cpp's `llama-gguf-split --merge`"
        raise ModelError(f"is one part of {one_line(str(parts))}", remedy, path=path)
    return Gguf(path, found, placed, data)


class _Reader:
    """Reads one value after the other; what would be behind the end of the file is a ValueError."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self.at, self._items = data, 0, 0

    def take(self, size: int) -> bytes:
        if size > len(self._data) - self.at:
            raise ValueError("it is cut")
        self.at += size
        return self._data[self.at - size : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def count(self, most: int) -> int:
        found = int(self.number("<Q"))
        if found > most:
            raise ValueError(f"{found:,} entries, more than {most:,}")
        return found

    def text(self) -> str:
        return self.take(self.count(_MOST_TEXT)).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _LIST:
            raise ValueError(f"a value of type {kind}")
        inner, count = self.number("<I"), self.count(_MOST_ITEMS)
        self._items += count
        if self._items > _MOST_ITEMS:
            raise ValueError(f"more than {_MOST_ITEMS:,} values")
        if inner == _TEXT:
            return [self.text() for _ in range(count)]
        if inner not in _SCALARS:
            raise ValueError(f"a list of type {inner}")
        form = _SCALARS[inner]
        return list(struct.unpack(f"<{count}{form[1]}", self.take(count * struct.calcsize(form))))

    def tensor(self) -> tuple[str, str, tuple[int, ...], int, int]:
        """Name, type, shape with rows first, offset, bytes."""
        name, shown = (text := self.text()), one_line(text)
        dimensions = self.number("<I")
        if not 0 < dimensions <= 4:
            raise ValueError(f"{shown}: {dimensions} dimensions")
        shape = tuple(int(self.number("<Q")) for _ in range(dimensions))[::-1]
        if not all(0 < side < 2**40 for side in shape):
            raise ValueError(f"{shown}: shape {shape}")
        number, offset = self.number("<I"), int(self.number("<Q"))
        if number not in TYPES:
            known = ", ".join(kind for kind, *_ in TYPES.values())
            raise ValueError(f"{shown}: a tensor of type {number}; known are {known}")
        kind, weights, size = TYPES[number]
        if shape[-1] % weights:
            raise ValueError(f"{shown}: rows of {shape[-1]} weights are no whole blocks of {kind}")
        return name, kind, shape, offset, math.prod(shape) // weights * size


# The tokenizer.

_REMEDY = "put tokenizer.json and tokenizer_config.json of the model that it was made from beside the file"
_NORMAL, _CONTROL, _OWN, UNUSED = 1, 3, 4, 5
"""`tokenizer.ggml.token_type`; 2 is the unknown token, 6 a byte."""
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN, _LLAMA_3 = _WORDS % "", _WORDS % "{1,3}"
_RULES = {
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _QWEN),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _LLAMA_3),
    **dict.fromkeys(("smollm", "gpt-2")),
}
"""How text is cut into words, by the rule's name; None: as GPT-2 does."""
_SPACE = "\u2581"


def write_tokenizer(gguf: Gguf, folder: Path) -> None:
    """Write the files of a tokenizer, with its chat template.

    Raises:
        ModelError: it is of a kind that is not known here, or damaged; says what to do.
    """
    fields = gguf.fields
    tokens, kinds = fields.get("tokenizer.ggml.tokens"), fields.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise ModelError("has no tokenizer (tokenizer.ggml.tokens)", _REMEDY, path=gguf.path)
    kinds = kinds if isinstance(kinds, list) else [_NORMAL] * len(tokens)
    if len(kinds) != len(tokens) or len(set(tokens)) != len(tokens):
        raise ModelError("two tokens are the same, or some have no type", _REMEDY, path=gguf.path)
    makers = {"gpt2": _byte_level, "llama": _sentence_piece}
    if (model := fields.get("tokenizer.ggml.model")) not in makers:
        raise ModelError(f"{quoted(model)}: unknown kind", _REMEDY, field="tokenizer.ggml.model", path=gguf.path)
    from tokenizers import AddedToken

    try:
        tokenizer = makers[model](gguf, tokens, kinds)
        for special, kind in ((True, _CONTROL), (False, _OWN)):
            own = [
                AddedToken(t, special=special, normalized=False)
                for t, k in zip(tokens, kinds, strict=True)
                if k == kind
            ]
            (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(own)
        tokenizer.save(str(folder / "tokenizer.json"))
    except ModelError:
        raise
    except Exception as error:  # tokenizers raises an Exception of no kind
        raise ModelError(f"its tokenizer cannot be made: {one_line(str(error))}", _REMEDY, path=gguf.path) from None
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, ours in (("bos", "bos"), ("eos", "eos"), ("padding", "pad"), ("unknown", "unk")):
        number = fields.get(f"tokenizer.ggml.{name}_token_id")
        if type(number) is int and 0 <= number < len(tokens):
            settings[f"{ours}_token"] = tokens[number]
    template = fields.get("tokenizer.chat_template")
    if isinstance(template, str):
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")


def _byte_level(gguf: Gguf, tokens: list[str], kinds: list[int]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    rule, merges = gguf.fields.get("tokenizer.ggml.pre"), gguf.fields.get("tokenizer.ggml.merges")
    if rule not in _RULES:
        problem = f"{quoted(rule)}: unknown rule; known are {', '.join(_RULES)}"
        raise ModelError(problem, _REMEDY, field="tokenizer.ggml.pre", path=gguf.path)
    texts = [merge for merge in merges if isinstance(merge, str)] if isinstance(merges, list) else []
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in texts) if right]
    if not pairs or len(pairs) != len(merges or ()):
        problem = "expected pairs of tokens with a space between them"
        raise ModelError(problem, _REMEDY, field="tokenizer.ggml.merges", path=gguf.path)
    pattern = _RULES[rule]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=pattern == _LLAMA_3))
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)]
    if pattern is not None:
        steps.insert(0, pre_tokenizers.Split(Regex(pattern), behavior="isolated"))
    elif rule == "smollm":
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    if pattern == _QWEN:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(gguf: Gguf, tokens: list[str], kinds: list[int]) -> Any:
    """As BPE: of two neighbours that make a token, those that make the token with the best score are merged first."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = gguf.fields.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise ModelError("one number for each token", _REMEDY, field="tokenizer.ggml.scores", path=gguf.path)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    found = []
    for token, kind, score in zip(tokens, kinds, scores, strict=True):
        if kind == _NORMAL and len(token) <= 256:
            parts = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
            inside = [(a, b) for a, b in parts if a in vocabulary and b in vocabulary]
            found += [(-score, vocabulary[a], vocabulary[b], a, b) for a, b in inside]
    merges = [(a, b) for *_, a, b in sorted(found)]
    prefixed = gguf.fields.get("tokenizer.ggml.add_space_prefix", True)
    number = gguf.fields.get("tokenizer.ggml.unknown_token_id")
    unknown = tokens[number] if type(number) is int and 0 <= number < len(tokens) else None
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    spaces = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefixed else spaces
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(content=" ", left=1)] if prefixed else [])])
    return tokenizer


def rule_of(content: dict[str, Any]) -> tuple[str | None, str]:
    """The kind and rule in llama.cpp's terms of a tokenizer.json; None where no name of it is known here."""
    model, splitter = content.get("model") or {}, content.get("pre_tokenizer") or {}
    if model.get("type") != "BPE":
        return None, ""
    if model.get("byte_fallback"):
        return "llama", "default"
    steps = splitter.get("pretokenizers", [splitter])
    kinds = [step.get("type") for step in steps]
    pattern = (steps[0].get("pattern") or {}).get("Regex") if kinds[0] == "Split" else None
    if pattern in (_QWEN, _LLAMA_3):
        return "gpt2", "qwen2" if pattern == _QWEN else "llama-bpe"
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and steps[1].get("use_regex", True):
        return "gpt2", "smollm"
    plain = kinds == ["ByteLevel"] and steps[0].get("use_regex", True) and not steps[0].get("add_prefix_space")
    return ("gpt2", "gpt-2") if plain else (None, "")
