"""What a model's small files say about it, without reading weights: size, quantization, whether it thinks.

config.json, tokenizer_config.json or chat_template.jinja, model.safetensors.index.json
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from upft_mlx.errors import ModelError
from upft_mlx.models.architecture import Architecture, from_config
from upft_mlx.models.files import TEMPLATE, TEMPLATE_BYTES, bounded, json_object, own_template, text_config
from upft_mlx.models.find import find_config

Thinking = Literal["switch", "always", "never"]


@dataclass(frozen=True)
class ModelFacts:
    """The facts about a model in its small files."""

    kind: str
    """Its `model_type`."""
    parameters: int | None
    """Computed from the shape; None if there is none."""
    bits: int | None
    """Bits of its quantized weights; None: not quantized."""
    bytes: int | None
    """Bytes of its weights on disk; None if neither files nor shape say."""
    context: int | None
    """Longest sequence (tokens)."""
    thinking: Thinking
    """`switch`: its chat template has `enable_thinking`; `always`: it always thinks; `never`: it never does."""
    boxed: bool
    r"""Whether its chat template already asks for a `\boxed` answer."""
    shape: Architecture | None = None
    """The shape in config.json; None if it is not a dense transformer."""


def model_facts(name: str) -> ModelFacts:
    """The facts of a local folder, an embedded model or a Hub model, of which only the small files are downloaded.

    Raises:
        ModelError: no such model, or it has no chat template.
        OfflineError: the Hub model is not on this machine and the Hub cannot be asked.
        RecipeError: the name is neither a folder nor a Hub id.
    """
    with TemporaryDirectory() as folder:
        return read_model_facts(find_config(name, Path(folder)), name)


def read_model_facts(folder: Path, name: str) -> ModelFacts:
    """The facts in a folder; errors call it `name`.

    Raises:
        ModelError: a file is malformed, or there is no chat template.
    """
    config = json_object(folder / "config.json")
    template = chat_template(folder)
    if not template:
        raise ModelError(
            "has no chat template",
            "use an instruct model, or write the recipe by hand with a prompt.chat_template",
            path=name,
        )
    shape, context = dense_shape(config), text_config(config).get("max_position_embeddings")
    stated = [config.get(field) for field in ("quantization", "quantization_config")]
    bits = [found["bits"] for found in stated if isinstance(found, dict) and isinstance(found.get("bits"), int)]
    size: Any = sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if not size and index.is_file():
        meta = json_object(index).get("metadata")
        size = meta.get("total_size") if isinstance(meta, dict) else None
    if not isinstance(size, (int, float)) or size <= 0:
        size = shape.weight_bytes(shape.float_bytes) if shape else None
    return ModelFacts(
        kind=str(config.get("model_type", "unknown")),
        parameters=shape.parameters if shape else None,
        bits=int(bits[0]) if bits else None,
        bytes=None if size is None else int(size),
        context=context if isinstance(context, int) else None,
        thinking=thinking(template),
        boxed="boxed" in template,
        shape=shape,
    )


def chat_template(folder: Path, own: str | None = None) -> str:
    """The chat template of a model folder, empty if it has none; that in the file `own` where one is given.

    Raises:
        ModelError, RecipeError: it cannot be read.
    """
    if own is not None:
        return own_template(own)
    file = folder / TEMPLATE
    if file.is_file():
        return bounded(file, TEMPLATE_BYTES).decode("utf-8", errors="replace")
    settings = folder / "tokenizer_config.json"
    found = json_object(settings).get("chat_template") if settings.is_file() else None
    if isinstance(found, list):  # several, by name
        by_name = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        found = by_name.get("default") or next(iter(by_name.values()), None)
    return found if isinstance(found, str) else ""


def thinking(template: str) -> Thinking:
    """What a chat template says about thinking.

    A template with `enable_thinking` can switch it. One that opens `<think>` in the generation prompt, or that cuts
    what stands before `</think>` out of earlier turns, belongs to a model that always thinks.
    """
    if "enable_thinking" in template:
        return "switch"
    prompt = template[max(0, template.rfind("add_generation_prompt")) :]
    return "always" if "<think>" in prompt or "</think>" in template else "never"


def dense_shape(config: dict[str, Any]) -> Architecture | None:
    """The shape of a dense transformer; None for other kinds, whose weights config.json does not describe."""
    try:
        found = from_config(config)
    except ModelError:
        return None
    return None if found.unusual else found
