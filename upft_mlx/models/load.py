"""Loading models: finding the folder, mlx-lm's loaders, local quantization.

mlx, mlx-lm and transformers are imported inside the functions, so that `upft --help` answers at once.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upft_mlx.errors import ModelError, OfflineError, RecipeError
from upft_mlx.escape import one_line, quoted
from upft_mlx.models.chat import end_of_turn
from upft_mlx.models.files import json_object
from upft_mlx.models.gate import admit
from upft_mlx.models.rendering import confine

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn

    from upft_mlx.recipe.schema import Quantize, Recipe

BUILTIN = {"builtin:arithmetic": "model"}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+\Z", re.ASCII)
FILES = [
    *("*.json", "model*.safetensors", "*.py", "tokenizer.model", "*.tiktoken", "*.txt", "*.jinja"),
    *("README.md", "LICENSE*"),  # for the licence in the card of what is made of it
]
"""What is downloaded of a Hub model."""
READ = (
    *("*.json", "*.safetensors", "*.jinja", "additional_chat_templates/*.jinja"),
    *("*.model", "*.tiktoken", "*.txt"),  # merges.txt, vocab.txt and other tokenizers
    "**/*.py",
)
"""What mlx-lm and transformers may read of a model folder."""
SMALL_FILES = ["config.json", "tokenizer_config.json", "*.jinja", "model.safetensors.index.json"]
"""What says how large a model is and how it is asked."""
_PROBE_BYTES = 1 << 20


@dataclass
class Loaded:
    """A model ready for use."""

    model: nn.Module
    tokenizer: Any
    """mlx-lm's TokenizerWrapper."""
    config: dict[str, Any]
    path: Path
    dtype: mx.Dtype
    """Of the folder's unquantized weights; what runs may be float32 instead, see `load`."""
    trusted: bool = False
    """Whether the recipe lets the folder's own code run; only then it goes with what is made of the model."""

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


def is_hub_model(name: str) -> bool:
    """Whether a recipe's `model` is a Hub id, not a folder."""
    path = Path(name)
    return bool(HUB_ID.match(name)) and not path.is_absolute() and not path.exists()


def find_model(recipe: Recipe, *, weights: bool = True) -> Path:
    """The folder of the recipe's model; a Hub model is downloaded unless it is in the cache.

    Args:
        recipe: names the model.
        weights: whether they are needed; else they are neither downloaded nor missed.

    Raises:
        ModelError: no such folder, or it lacks config, tokenizer or weights.
        OfflineError: the Hub model is not on this machine and cannot be downloaded.
        RecipeError: the name is neither a folder nor a Hub id.
    """
    files = [pattern for pattern in FILES if weights or not pattern.endswith(".safetensors")]
    return _checked(_local(recipe.model) or _download(recipe.model, recipe.revision, files), weights=weights)


def find_config(name: str, folder: Path) -> Path:
    """The folder with a model's small files (`SMALL_FILES`) at least.

    Of a Hub model that is not in the cache they are put into `folder`, not into the cache: there a model without
    weights would pass for a damaged one.

    Raises:
        ModelError, OfflineError, RecipeError: as `find_model`.
    """
    if path := _local(name):
        return _checked(path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        cached = Path(snapshot_download(name, allow_patterns=SMALL_FILES, local_files_only=True))
        if (cached / "config.json").is_file():
            return cached
    except (LocalEntryNotFoundError, ValueError):
        pass  # not in the cache; what is wrong with the name, the download says
    return _download(name, None, SMALL_FILES, folder)


def _local(name: str) -> Path | None:
    """The folder of a model that is no Hub model."""
    if name in BUILTIN:
        return Path(__file__).parent.parent / "demo" / BUILTIN[name]
    if name.startswith("builtin:"):
        raise RecipeError(f"model: {quoted(name)}: unknown; the embedded models are {', '.join(BUILTIN)}")
    path = Path(name)
    if path.is_dir():
        return path
    if path.is_absolute() or path.exists():
        raise ModelError(f"{name}: no such model folder; set model to a folder or a Hub id such as user/name")
    if not HUB_ID.match(name):
        raise RecipeError(f"model: {quoted(name)}: neither a folder nor a Hub id (user/name)")
    return None


def _download(name: str, revision: str | None, patterns: Sequence[str] = FILES, folder: Path | None = None) -> Path:
    """A Hub model's files of these patterns in the cache, or in a folder."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is imported there
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,  # of the HTTP client that this version of huggingface-hub uses
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    offline = bool(constants.HF_HUB_OFFLINE)
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=list(patterns),
                local_files_only=offline,
                local_dir=folder,
            )
        )
    except GatedRepoError:
        raise ModelError(f"model {name}: access is gated; accept its terms on the Hub, then `hf auth login`") from None
    except RevisionNotFoundError:
        raise ModelError(f"model {name}: no revision {quoted(revision)} on the Hub; check `revision`") from None
    except RepositoryNotFoundError:
        raise ModelError(f"model {name}: no such model on the Hub, or it is private; check `model`") from None
    except HFValidationError:
        raise RecipeError(f"model: {quoted(name)}: not a valid Hub id (user/name)") from None
    except (LocalEntryNotFoundError, ConnectionError):
        raise OfflineError(_not_here(name, offline=offline)) from None
    except HfHubHTTPError as error:
        raise ModelError(f"model {name}: the Hub refused: {reason(error)}; try again later") from None
    except HTTPError:
        raise OfflineError(_not_here(name, offline=offline)) from None


def _not_here(name: str, *, offline: bool) -> str:
    why = (
        "the network is off (--offline or HF_HUB_OFFLINE=1); `upft fetch` downloads it"
        if offline
        else "the Hub cannot be reached; check the connection"
    )
    return f"model {name}: not on this machine, and {why}, or set `model` to a local folder"


def _checked(path: Path, *, weights: bool = True) -> Path:
    """The folder, if it has what loading needs."""
    if not (path / "config.json").is_file():
        raise ModelError(f"{path}: not a model folder: config.json is missing; set model to a folder that has it")
    if weights and not any(path.glob("model*.safetensors")):
        raise ModelError(
            f"{path}: no model*.safetensors; only safetensors weights are supported, convert others with "
            "`mlx_lm.convert`"
        )
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        raise ModelError(f"{path}: no tokenizer (tokenizer.json or tokenizer.model); copy it from the model's source")
    admit(path)
    return path


def model_hash(path: Path) -> str:
    """A fingerprint of what loading reads of a model folder or an adapter, names included (`READ`).

    Small files are read whole; of a large one size, beginning, middle and end: hashing gigabytes would delay every
    command, and equal probes in files of different weights do not happen by themselves.
    """
    digest = hashlib.sha256()
    for file in sorted({file for pattern in READ for file in path.glob(pattern) if file.is_file()}):
        digest.update(str(file.relative_to(path)).encode())
        digest.update(_probe(file))
    return digest.hexdigest()[:16]


def _probe(file: Path) -> bytes:
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= 8 * _PROBE_BYTES:
            return stream.read()
        parts = [str(size).encode()]
        for start in (0, size // 2, size - _PROBE_BYTES):
            stream.seek(start)
            parts.append(stream.read(_PROBE_BYTES))
    return b"".join(parts)


def load(path: Path, *, quantize: Quantize | None = None, trust_remote_code: bool = False) -> Loaded:
    """Load a model folder with mlx-lm and, if asked, quantize it layer by layer.

    On MLX's CPU backend the weights are cast to float32: 16-bit matrix products are about ten times slower
    there. What is saved later has the folder's own type again. Quantized layers get a dense copy there
    (`dense_cpu.py`).

    Raises:
        ModelError: the folder cannot be loaded, or is to be quantized and is already.
    """
    import mlx.core as mx
    from mlx_lm.utils import load_model

    from upft_mlx.models.dense_cpu import add_dense_copies

    tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
    try:
        model, config = load_model(path, lazy=True, **_trusting(path, load_model, trust_remote_code))
        dtype = _dtype(model)
        if quantize is not None:
            _quantize(path, model, config, quantize)
        if mx.default_device().type == mx.DeviceType.cpu:
            model.set_dtype(mx.float32)
        mx.eval(model.parameters())
        add_dense_copies(model)
    except ModelError:
        raise
    except Exception as error:  # mlx, mlx-lm and the model's own code raise what they like
        raise ModelError(f"{path}: cannot be loaded: {reason(error)}") from error
    return Loaded(model, tokenizer, config, path, dtype, trust_remote_code)


def load_tokenizer(path: Path, *, trust_remote_code: bool = False) -> Any:
    """Load the tokenizer of a model folder, as mlx-lm's TokenizerWrapper.

    Raises:
        ModelError: it cannot be loaded, or has no EOS token.
    """
    from mlx_lm.utils import load_config
    from mlx_lm.utils import load_tokenizer as load

    admit(path)
    try:
        eos = load_config(path).get("eos_token_id")
        tokenizer = load(path, {"trust_remote_code": trust_remote_code}, eos_token_ids=eos)
    except Exception as error:  # tokenizers raises bare exceptions, transformers its own kinds
        raise ModelError(f"{path}: the tokenizer cannot be loaded: {reason(error)}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{path}: the tokenizer has no eos_token; set it in tokenizer_config.json")
    confine(tokenizer._tokenizer, path)
    return tokenizer


def _trusting(path: Path, load_model: Callable[..., Any], trust_remote_code: bool) -> dict[str, bool]:
    """The argument with which mlx-lm may run a model folder's own code; before 0.32 it asked nobody.

    Raises:
        ModelError: the folder brings code along, and the recipe does not trust it.
    """
    code = json_object(path / "config.json").get("model_file")
    if code is not None and not trust_remote_code:
        raise ModelError(
            f"{path}: wants to run its own code ({quoted(code)}); if you trust it, set trust_remote_code: true"
        )
    known = "trust_remote_code" in inspect.signature(load_model).parameters
    return {"trust_remote_code": trust_remote_code} if known else {}


def reason(error: Exception) -> str:
    """The text of another library's error on one line, without the lists that some append."""
    text = one_line(str(error), 300)
    return one_line(f"{type(error).__name__}: {text}", 300) if isinstance(error, KeyError) or not text else text


def _dtype(model: nn.Module) -> mx.Dtype:
    """The commonest floating type among the arrays of a model."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    arrays = dict(tree_flatten(model.parameters())).values()
    floating = Counter(array.dtype for array in arrays if mx.issubdtype(array.dtype, mx.floating))
    dtype: mx.Dtype = floating.most_common(1)[0][0]
    return dtype


def _quantize(path: Path, model: nn.Module, config: dict[str, Any], quantize: Quantize) -> None:
    import mlx.nn as nn

    if "quantization" in config or "quantization_config" in config:
        raise ModelError(f"{path}: is quantized already; remove `quantize` from the recipe")

    def fits(_: str, module: nn.Module) -> bool:
        weight = getattr(module, "weight", None)
        return hasattr(module, "to_quantized") and weight is not None and weight.shape[-1] % quantize.group_size == 0

    if not any(fits(name, module) for name, module in model.named_modules()):
        raise ModelError(
            f"quantize.group_size: {quantize.group_size} divides the input size of no layer of {path}; "
            "use a smaller one (32, 64)"
        )
    nn.quantize(model, quantize.group_size, quantize.bits, class_predicate=fits)
    config["quantization"] = {"group_size": quantize.group_size, "bits": quantize.bits, "mode": "affine"}
    config["quantization_config"] = config["quantization"]


def is_offline() -> bool:
    """Whether the network is off (`--offline`, or HF_HUB_OFFLINE=1)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def go_offline() -> None:
    """Let nothing use the network; to be called before huggingface-hub or datasets are imported."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
