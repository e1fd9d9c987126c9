"""Loading models with mlx-lm, and quantizing them here.

mlx, mlx-lm and transformers are imported inside the functions, so `upft --help` answers at once.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upft_mlx.errors import ModelError
from upft_mlx.escape import quoted
from upft_mlx.models.chat import end_of_turn
from upft_mlx.models.files import json_object, own_template
from upft_mlx.models.gate import Stamps, admit
from upft_mlx.models.hub import reason
from upft_mlx.models.rendering import confine

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn

    from upft_mlx.recipe.schema import Quantize, Recipe

READ = (
    *("*.json", "*.safetensors", "*.jinja", "additional_chat_templates/*.jinja"),
    *("*.model", "*.tiktoken", "*.txt"),  # merges.txt, vocab.txt and other tokenizers
    "**/*.py",
)
"""What mlx-lm and transformers may read of a model folder."""


@dataclass
class Loaded:
    """A model ready for use."""

    model: nn.Module
    tokenizer: Any
    """mlx-lm's TokenizerWrapper."""
    config: dict[str, Any]
    path: Path
    dtype: mx.Dtype
    """The type of the folder's unquantized weights; what runs may be float32 instead, see `load`."""
    trusted: bool = False
    """Whether the recipe lets the folder's own code run; only then it goes with what is made of the model."""
    types: dict[str, mx.Dtype] = field(default_factory=dict)
    """The types of the floating arrays that have another than `dtype` in the folder: mlx-lm keeps what experts are
    chosen by in float32."""
    continues: tuple[bool, bool] | None = field(default=None, init=False)
    """Whether it continues from shared caches, and in batches, as tried by `Prefill`; None: not tried yet."""

    def cast(self, dtype: mx.Dtype) -> None:
        """Give the weights this type, and those in `types` their own."""
        from mlx.utils import tree_flatten

        arrays = dict(tree_flatten(self.model.parameters()))
        own = [(name, arrays[name].astype(kind)) for name, kind in self.types.items() if name in arrays]
        self.model.set_dtype(dtype)
        self.model.load_weights(own, strict=False)

    @cached_property
    def eos_id(self) -> int:
        """The token that ends an assistant turn in the chat template; the tokenizer's EOS may be another one."""
        return end_of_turn(self.tokenizer)

    @property
    def eos_ids(self) -> list[int]:
        """All tokens that end a completion in sampling."""
        return sorted({int(token) for token in self.tokenizer.eos_token_ids} | {self.eos_id})

    @property
    def generation_config(self) -> dict[str, Any]:
        """The model's own sampling settings, empty where it has none."""
        path = self.path / "generation_config.json"
        return json_object(path) if path.exists() else {}


def load(
    path: Path,
    *,
    quantize: Quantize | None = None,
    trust_remote_code: bool = False,
    chat_template: str | None = None,
) -> Loaded:
    """Load a model folder with mlx-lm and, if asked, quantize it layer by layer.

    On MLX's CPU backend the weights are cast to float32: 16-bit matrix products are about ten times slower
    there. What is saved later has the folder's own type again. Layers are made faster there (`cpu_layers.py`).
    The file `chat_template` takes the place of the model's own template, also in what is saved.

    Raises:
        RecipeError: the template cannot be read.
        ModelError: the folder cannot be loaded, or is to be quantized and is already.
    """
    import mlx.core as mx
    from mlx_lm.utils import load_model

    from upft_mlx.models.cpu_layers import add_dense_copies, add_fast_activations
    from upft_mlx.models.families import prepare

    tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code, chat_template=chat_template)
    try:
        code = json_object(path / "config.json").get("model_file")
        if code is not None and not trust_remote_code:
            raise ModelError(
                f"wants to run its own code ({quoted(code)})",
                "if you trust it, set trust_remote_code: true",
                path=path,
            )
        known = "trust_remote_code" in inspect.signature(load_model).parameters  # before 0.32 mlx-lm asked nobody
        trusted = {"trust_remote_code": trust_remote_code} if known else {}
        model, config = load_model(path, lazy=True, model_config=rope_fields(path), **trusted)
        dtype = Counter(_floating(model).values()).most_common(1)[0][0]
        if quantize is not None:
            _quantize(path, model, config, quantize)
        types = {name: kind for name, kind in _floating(model).items() if kind != dtype}
        if mx.default_device().type == mx.DeviceType.cpu:
            model.set_dtype(mx.float32)
        prepare(model)
        mx.eval(model.parameters())
        add_dense_copies(model)
        add_fast_activations(model)
    except ModelError:
        raise
    except (Exception, SystemExit) as error:  # mlx, mlx-lm and the model's own code raise what they like
        raise ModelError(f"cannot be loaded: {reason(error)}", path=path) from error
    return Loaded(model, tokenizer, config, path, dtype, trust_remote_code, types)


def load_for(recipe: Recipe, path: Path) -> Loaded:
    """A recipe's model from its folder, as the recipe wants it; see `load`."""
    return load(
        path,
        quantize=recipe.quantize,
        trust_remote_code=recipe.trust_remote_code,
        chat_template=recipe.prompt.chat_template,
    )


def rope_fields(path: Path) -> dict[str, Any]:
    """Fields of config.json on the rotation of positions that transformers 5 keeps in `rope_parameters`.

    Most of mlx-lm's families look for them outside of it, and without a word take their defaults. None for those that
    read `rope_parameters`.

    Raises:
        ModelError: config.json is malformed.
    """
    file = path / "config.json"
    return _rope_fields(json_object(file)) if file.is_file() else {}


def _rope_fields(config: dict[str, Any]) -> dict[str, Any]:
    text, rope, kind = (config.get(name) for name in ("text_config", "rope_parameters", "model_type"))
    if isinstance(text, dict):  # a type such as qwen2_5_vl_text has no code: that of the whole model imports it
        inner = _rope_fields(text if _code(str(text.get("model_type"))) else {**text, "model_type": kind})
        return {"text_config": {**text, **inner}} if inner else {}
    if not isinstance(rope, dict) or config.get("rope_theta") is not None or _reads_rope_parameters(str(kind)):
        return {}
    whole, local = (part if isinstance(part := rope.get(f"{of}_attention"), dict) else {} for of in ("full", "sliding"))
    whole = whole or rope  # Gemma 3 has one for each kind of layer
    found = {name: whole.get(name) for name in ("rope_theta", "partial_rotary_factor")}
    found["rope_scaling"] = whole if whole.get("rope_type", "default") != "default" else None
    found["rope_local_base_freq"] = local.get("rope_theta")
    return {name: value for name, value in found.items() if value is not None and config.get(name) is None}


def _reads_rope_parameters(kind: str) -> bool:
    """Whether mlx-lm's code of a model type does; True where it has none."""
    codes = _codes(kind)
    return not codes or any("rope_parameters" in code for code in codes)


def quantizes_its_own_way(path: Path) -> bool:
    """Whether mlx-lm gives some layers of a model their own bits, such as 8 for the router of the experts."""
    return any("quant_predicate" in code for code in _codes(str(json_object(path / "config.json").get("model_type"))))


def _codes(kind: str) -> list[str]:
    """mlx-lm's code of a model type and of the models that it imports; empty for an unknown type."""
    code = _code(kind) or ""
    parts = re.findall(r"^from \. import (.+)$|^from \.(\w+) import Model\b", code, re.M)
    models = [_code(name.strip()) for names, model in parts for name in (model or names).split(",")]
    return [found for found in (code, *models) if found]


def _code(kind: str) -> str | None:
    """mlx-lm's code of a model type; None for an unknown type."""
    from mlx_lm.utils import MODEL_REMAPPING

    code = None if "." in kind else find_spec(f"mlx_lm.models.{MODEL_REMAPPING.get(kind, kind)}")
    return None if code is None or code.origin is None else Path(code.origin).read_text(encoding="utf-8")


def _floating(model: nn.Module) -> dict[str, mx.Dtype]:
    """The types of a model's floating arrays, by name."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    types = {name: array.dtype for name, array in dict(tree_flatten(model.parameters())).items()}
    return {name: kind for name, kind in types.items() if mx.issubdtype(kind, mx.floating)}


def load_tokenizer(path: Path, *, trust_remote_code: bool = False, chat_template: str | None = None) -> Any:
    """Load the tokenizer of a model folder, as mlx-lm's TokenizerWrapper.

    While the folder stays as it is, all callers get the same one, and none may change it: a run needs it about ten
    times, and each load takes half a second with a vocabulary of 49,152.

    Raises:
        RecipeError: the file `chat_template` cannot be read.
        ModelError: it cannot be loaded, or has no EOS token.
    """
    own = None if chat_template is None else own_template(chat_template)
    return _load_tokenizer(path, admit(path), trust_remote_code, own)


@lru_cache(maxsize=4)
def _load_tokenizer(path: Path, _: Stamps, trust_remote_code: bool, template: str | None) -> Any:
    from mlx_lm.utils import load_config
    from mlx_lm.utils import load_tokenizer as load

    try:
        eos = load_config(path).get("eos_token_id")
        tokenizer = load(path, {"trust_remote_code": trust_remote_code}, eos_token_ids=eos)
    except (Exception, SystemExit) as error:  # tokenizers raises bare exceptions, mlx-lm's olmo ends the process
        raise ModelError(f"the tokenizer cannot be loaded: {reason(error)}", path=path) from error
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer has no eos_token", "set it in tokenizer_config.json", path=path)
    confine(tokenizer._tokenizer, path)
    if template is not None:
        tokenizer._tokenizer.chat_template = template
        tokenizer._chat_template, tokenizer.has_chat_template = None, True
        tokenizer._tokenizer.init_kwargs.pop("chat_template_type", None)  # names one that mlx-lm brings for a family
    return tokenizer


def _quantize(path: Path, model: nn.Module, config: dict[str, Any], quantize: Quantize) -> None:
    import mlx.nn as nn

    from upft_mlx.models.families import read_from_outside

    if "quantization" in config or "quantization_config" in config:
        raise ModelError("is quantized already", "remove `quantize` from the recipe", path=path)

    as_they_are = read_from_outside(model)
    default = {"group_size": quantize.group_size, "bits": quantize.bits, "mode": "affine"}
    wanted = getattr(model, "quant_predicate", None) or (lambda *_: True)  # as mlx_lm.convert does
    stated: dict[str, Any] = dict(default)

    def how(name: str, module: nn.Module) -> bool | dict[str, Any]:
        weight = getattr(module, "weight", None)
        if not hasattr(module, "to_quantized") or id(module) in as_they_are or weight is None:
            return False
        own = weight.shape[-1] % quantize.group_size == 0 and wanted(name, module)
        if not isinstance(own, dict):
            return bool(own)
        stated[name] = {**default, **own}
        if weight.shape[-1] % stated[name]["group_size"]:
            stated[name]["group_size"] = quantize.group_size
        return dict(stated[name])

    if not any(how(name, module) for name, module in model.named_modules()):
        raise ModelError(
            f"{quantize.group_size} divides the input size of no layer of {path}",
            "use a smaller one (32, 64)",
            field="quantize.group_size",
        )
    nn.quantize(model, quantize.group_size, quantize.bits, class_predicate=how)
    config["quantization"] = config["quantization_config"] = stated
