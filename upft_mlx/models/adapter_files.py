"""Adapters as other tools leave them: an mlx-lm folder (LoRA or DoRA) or a PEFT folder, read as mlx-lm has it.

mlx-lm: adapter_config.json with `fine_tune_type` and `lora_parameters`, adapters.safetensors with `lora_a` (in, r),
`lora_b` (r, out) and, of DoRA, `m` (out,). PEFT: adapter_config.json with `peft_type`, adapter_model.safetensors with
`lora_A` (r, in), `lora_B` (out, r), `lora_magnitude_vector` (out,). Anyone may have written them: each field and shape
is checked before an array is read.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from upft_mlx.errors import ModelError, RecipeError
from upft_mlx.escape import one_line, quoted
from upft_mlx.models.files import Tensor, json_object, read_header, text_config
from upft_mlx.models.hub import reason
from upft_mlx.recipe.start import FROM_ADAPTER

if TYPE_CHECKING:
    import mlx.core as mx

    from upft_mlx.recipe.schema import Recipe

Kind = Literal["lora", "dora"]
CONFIG, MLX_LM, PEFT = "adapter_config.json", "adapters.safetensors", "adapter_model.safetensors"
LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.(.+)$")
"""A module's layer, and its name inside the layer (a key)."""
_PART = re.compile(r"(?:base_model\.model\.)?(.+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?$")
_PLAIN = (True, False, None, "gaussian", "orthogonal", "eva")
"""PEFT's `init_lora_weights` that leave the base's weights alone; PiSSA, OLoRA, CorDA and LoftQ change them."""
_UNREAD = {
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    "use_qalora": (False, None),
    "arrow_config": (None,),
    "use_bdlora": (False, None),
}
"""Fields of PEFT's that change what is computed, and the values at which they do not."""
_MOST_RANK = 4096
_FLOATS = ("F32", "F16", "BF16")
Place = tuple[int, str]
"""A layer's number, and a key inside it."""


@dataclass(frozen=True)
class AdapterFiles:
    """What the files of an adapter say, checked; the arrays themselves are not read yet."""

    folder: Path
    kind: Kind
    rank: int
    scale: float
    dropout: float
    keys: tuple[str, ...] | None
    """Modules inside a layer; None: all linear ones."""
    num_layers: int | None
    """mlx-lm's number, -1 for all; None: of a PEFT adapter, which says it by its modules."""
    places: dict[Place, dict[str, str]]
    """A PEFT adapter's tensors' names by module, `lora_A` to name; empty for mlx-lm, whose names are the model's."""
    factors: dict[Place, float]
    """The scales of a PEFT adapter's modules, as multiples of `scale`."""

    def layers_of(self, layers: int) -> int:
        """The number of last layers with an adapter (-1: all) on a model with this many."""
        first = min((layer for layer, _ in self.places), default=0)
        found = layers - first if self.num_layers is None else self.num_layers
        return -1 if found == layers else found

    def parameters(self) -> dict[str, Any]:
        """mlx-lm's `lora_parameters`."""
        keys = {} if self.keys is None else {"keys": list(self.keys)}
        return {"rank": self.rank, "scale": self.scale, "dropout": self.dropout, **keys}


def read_adapter(folder: Path) -> AdapterFiles:
    """What an adapter's files say.

    Raises:
        ModelError: there is no adapter, or of another kind; names the file and the field, or the array.
    """
    refuse_missing_adapter(folder)
    config = json_object(folder / CONFIG)
    if config.get("peft_type") is not None:
        return _read_peft(folder, config)
    kind = config.get("fine_tune_type", "lora")  # mlx-lm writes `dora` and `full` as well
    if kind not in ("lora", "dora"):
        raise ModelError(
            f"fine_tune_type is {quoted(kind)}, but only LoRA and DoRA adapters can be switched on and off",
            "fuse it into the model with `mlx_lm fuse`, and use that folder as the model",
            path=folder,
        )
    path, stated = folder / CONFIG, config.get("lora_parameters")
    if not isinstance(stated, dict):
        raise ModelError("lacks `lora_parameters`, an object", "use an adapter of mlx-lm or PEFT", path=path)
    keys = stated.get("keys")
    listed = isinstance(keys, list) and bool(keys) and all(isinstance(key, str) for key in keys)
    _refuse(path, "lora_parameters.keys", keys, keys is None or listed, "a list of module names")
    layers = config.get("num_layers")
    _refuse(
        path, "num_layers", layers, type(layers) is int and (layers == -1 or 0 < layers <= 1000), "-1, or 1 to 1000"
    )
    rank = _rank(path, "lora_parameters.rank", stated.get("rank"))
    scale = _number(path, "lora_parameters.scale", stated.get("scale"), 0.0)
    dropout = _number(path, "lora_parameters.dropout", stated.get("dropout", 0.0), 0.0, 1.0)
    read_header(folder / MLX_LM)
    return AdapterFiles(folder, kind, rank, scale, dropout, None if keys is None else tuple(keys), layers, {}, {})


def refuse_missing_adapter(adapter: Path) -> None:
    """Refuse a path that is no adapter, before a model is loaded for it.

    Raises:
        ModelError: there is no such folder, or it has no adapter_config.json.
    """
    if (adapter / CONFIG).is_file():
        return
    inside = next((path.parent for path in sorted(adapter.glob(f"*/{CONFIG}"))), None)
    meant = f"did you mean {quoted(str(inside))}?" if inside else ""
    remedy = meant or f"use a folder with {CONFIG} and {MLX_LM}, or PEFT's {PEFT}"
    there = f"not an adapter: {CONFIG} is missing" if adapter.exists() else "no such adapter folder"
    raise ModelError(there, remedy, path=adapter)


def started(recipe: Recipe, model_path: Path) -> Recipe:
    """The recipe with rank, scale, layers and keys of the adapter that training starts from; as it is without one.

    Raises:
        ModelError: the adapter is missing or damaged.
        RecipeError: the recipe sets another value than the adapter has; one line each.
    """
    lora = recipe.lora
    if lora.start_from is None:
        return recipe
    files = read_adapter(Path(lora.start_from))
    _refuse(files.folder / CONFIG, "lora_parameters.scale", files.scale, files.scale > 0, "a number above 0")
    layers = text_config(json_object(model_path / "config.json")).get("num_hidden_layers")
    if not isinstance(layers, int):
        raise ModelError("lacks `num_hidden_layers`", "train without lora.start_from", path=model_path / "config.json")
    found: dict[str, Any] = {
        "rank": files.rank,
        "scale": files.scale,
        "num_layers": files.layers_of(layers),
        "keys": files.keys,
    }
    wrong = []
    for name in FROM_ADAPTER:
        wanted, has = getattr(lora, name), found[name]
        same = wanted == has or (name == "num_layers" and {wanted, has} == {-1, layers})
        same = same or (name == "keys" and sorted(wanted or ()) == sorted(has or ()))
        if name in lora.model_fields_set and not same:
            shown = f"{_shown(wanted)}, but the adapter {lora.start_from} has {_shown(has)}"
            wrong.append(RecipeError(shown, "leave the field out: the adapter decides it", field=f"lora.{name}"))
    if wrong:
        raise RecipeError.of_all(wrong)
    return recipe.having("lora", **found)


def _shown(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else "all linear modules" if value is None else str(value)


def _read_peft(folder: Path, config: dict[str, Any]) -> AdapterFiles:
    path, file = folder / CONFIG, folder / PEFT
    _refuse(path, "peft_type", config["peft_type"], config["peft_type"] == "LORA", "LORA")
    for name, plain in _UNREAD.items():
        shown = " or ".join(str(value) for value in plain[:1])
        _refuse(path, name, config.get(name), config.get(name) in plain, f"{shown}: it is not supported here")
    start = config.get("init_lora_weights")
    _refuse(path, "init_lora_weights", start, start in _PLAIN, "one that leaves the base model's weights alone")
    dora, rooted = config.get("use_dora") or False, config.get("use_rslora") or False
    for name, flag in (("use_dora", dora), ("use_rslora", rooted)):
        _refuse(path, name, flag, isinstance(flag, bool), "true or false")
    rank = _rank(path, "r", config.get("r"))
    alpha = _number(path, "lora_alpha", config.get("lora_alpha"), 0.0)
    dropout = _number(path, "lora_dropout", config.get("lora_dropout", 0.0), 0.0, 1.0)
    if not file.is_file() and (folder / "adapter_model.bin").exists():
        raise ModelError(
            "only adapter_model.bin is there, which can run code when it is read",
            "save the adapter again with safe_serialization=True",
            path=folder,
        )
    header = read_header(file)
    places = _places(file, header, ("lora_A", "lora_B", *(("lora_magnitude_vector",) if dora else ())))
    ranks = {}
    for (layer, key), names in places.items():
        a, b = header[names["lora_A"]].shape, header[names["lora_B"]].shape
        wrong = names["lora_B"] if len(a) == 2 and len(b) == 2 else names["lora_A"]
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or not 0 < a[0] <= _MOST_RANK:
            raise ModelError(f"{one_line(wrong)}: {b} does not go with {a} of lora_A", _AGAIN, path=file)
        if dora and header[names["lora_magnitude_vector"]].shape != (b[0],):
            wrong = names["lora_magnitude_vector"]
            raise ModelError(f"{one_line(wrong)}: expected one number for each row, {b[0]:,} in all", _AGAIN, path=file)
        ranks[layer, key] = _stated(path, config, "rank_pattern", names["lora_A"], rank)
        if ranks[layer, key] != a[0]:
            stated = f"rank {a[0]}, but {CONFIG} has r {ranks[layer, key]} for it"
            raise ModelError(f"{one_line(names['lora_A'])}: {stated}", _AGAIN, path=file)
    largest = max(ranks.values())
    scales = {}
    for place, own in ranks.items():
        its = _stated(path, config, "alpha_pattern", places[place]["lora_A"], alpha)
        scales[place] = its / (math.sqrt(own) if rooted else own)
    scale, field = max(scales.values()), "alpha_pattern" if alpha else "lora_alpha"
    _refuse(path, field, config.get(field), scale > 0, "a number above 0")
    factors = {place: own / scale for place, own in scales.items()}
    keys = tuple(sorted({key for _, key in places}))
    return AdapterFiles(folder, "dora" if dora else "lora", largest, scale, dropout, keys, None, places, factors)


_AGAIN = "save the adapter again"


def _places(file: Path, header: dict[str, Tensor], wanted: tuple[str, ...]) -> dict[Place, dict[str, str]]:
    """The tensors' names by module and part; each module has all parts, and there is at least one."""
    places: dict[Place, dict[str, str]] = defaultdict(dict)
    for name, tensor in header.items():
        part = _PART.match(name)
        place = LAYER.search(part[1]) if part else None
        if part is None or place is None or part[2] not in wanted or re.search(r"vision|visual|audio", name):
            raise ModelError(
                f"{one_line(name)}: only adapters on linear modules of the text model's layers are supported",
                "train without it, or merge it into the model with PEFT's merge_and_unload",
                path=file,
            )
        if tensor.kind not in _FLOATS:
            raise ModelError(f"{one_line(name)}: {tensor.kind} instead of {', '.join(_FLOATS)}", _AGAIN, path=file)
        found = places[int(place[1]), place[2]]
        if part[2] in found:
            raise ModelError(f"{one_line(name)}: a second {part[2]} of the same module", _AGAIN, path=file)
        found[part[2]] = name
    for found in places.values():
        if missing := [part for part in wanted if part not in found]:
            raise ModelError(f"{one_line(next(iter(found.values())))}: has no {missing[0]}", _AGAIN, path=file)
    if not places:
        raise ModelError("holds no adapter", "use another folder", path=file)
    return dict(places)


def _stated(path: Path, config: dict[str, Any], field: str, tensor: str, otherwise: float) -> Any:
    """The rank or alpha of a tensor's module: PEFT's patterns are regular expressions of the ends of module names.

    A stranger's regular expression is not run: what is not plain text, dots aside, is refused.
    """
    patterns, module = config.get(field) or {}, _PART.sub(r"\1", tensor)
    _refuse(path, field, patterns, isinstance(patterns, dict) and len(patterns) <= 10_000, "an object")
    for pattern, value in patterns.items():
        plain = pattern.removeprefix("^").replace("\\.", ".")
        _refuse(path, field, pattern, re.fullmatch(r"[\w.]+", plain), "names of modules, without wildcards")
        if f".{module}".endswith(f".{plain}"):
            return _rank(path, field, value) if field == "rank_pattern" else _number(path, field, value, 0.0)
    return otherwise


def _rank(path: Path, field: str, value: Any) -> int:
    _refuse(path, field, value, type(value) is int and 0 < value <= _MOST_RANK, f"a number from 1 to {_MOST_RANK}")
    return int(value)


def _number(path: Path, field: str, value: Any, least: float, below: float = 1e6) -> float:
    fits = type(value) in (int, float) and math.isfinite(value) and least <= value < below
    _refuse(path, field, value, fits, f"a number from {least:g} up to {below:g}")
    return float(value)


def _refuse(path: Path, field: str, value: Any, fits: Any, expected: str) -> None:
    if not fits:
        raise ModelError(f"{quoted(value)}: expected {expected}", "use another adapter", field=field, path=path)


def read_arrays(files: AdapterFiles, modules: dict[Place, str]) -> dict[str, mx.array]:
    """The adapter's arrays under the model's names, as adapters.safetensors has them; float32 from PEFT.

    A PEFT module's own rank or scale goes into its matrices: a smaller rank is filled up with zeros, which change
    nothing and, being zero on both sides, are never trained. In the same way a module that other layers have an
    adapter on and this one has not gets zeros.

    Args:
        files: from `read_adapter`.
        modules: the full names of the model's modules by layer and key.

    Raises:
        ModelError: an array cannot be read, or the model has no such module.
    """
    import mlx.core as mx

    file = files.folder / (PEFT if files.places else MLX_LM)
    try:
        arrays = mx.load(str(file))
    except RuntimeError as error:
        raise ModelError(f"cannot be read: {reason(error)}", "copy the adapter again", path=file) from None
    assert isinstance(arrays, dict)
    if not files.places:
        return arrays
    made = {}
    for place, names in files.places.items():
        if (module := modules.get(place)) is None:
            raise ModelError(
                f"{one_line(names['lora_A'])}: the model has no such module", "it belongs to another model", path=file
            )
        a, b = (arrays[names[part]].astype(mx.float32).T for part in ("lora_A", "lora_B"))  # (in, r), (r, out)
        room = files.rank - a.shape[1]
        made[f"{module}.lora_a"] = mx.pad(a, [(0, 0), (0, room)])
        made[f"{module}.lora_b"] = mx.pad(b * files.factors[place], [(0, room), (0, 0)])
        if files.kind == "dora":
            made[f"{module}.m"] = arrays[names["lora_magnitude_vector"]].astype(mx.float32)
    return made
