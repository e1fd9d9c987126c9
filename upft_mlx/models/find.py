"""Finding a model: an embedded one, a folder, a GGUF file, or the Hub; and its fingerprint."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from upft_mlx.errors import ModelError, OfflineError, RecipeError
from upft_mlx.escape import quoted
from upft_mlx.models.gate import admit
from upft_mlx.models.gguf.model import gguf_folder
from upft_mlx.models.hub import reason
from upft_mlx.models.load import READ, rope_fields

if TYPE_CHECKING:
    from upft_mlx.recipe.schema import Recipe


BUILTIN = {"builtin:arithmetic": "model"}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+\Z", re.ASCII)
FILES = [
    *("*.json", "model*.safetensors", "*.py", "tokenizer.model", "*.tiktoken", "*.txt", "*.jinja"),
    *("README.md", "LICEN[CS]E*", "licen[cs]e*", "NOTICE*", "notice*"),  # the licence and the terms (`is_terms`)
]
"""What is downloaded of a Hub model."""
SMALL_FILES = ["config.json", "tokenizer_config.json", "*.jinja", "model.safetensors.index.json"]
"""What says how large a model is and how it is asked."""
_PROBE_BYTES = 1 << 20


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
    """The folder of a model that is no Hub model; a GGUF file's is in the cache."""
    if name in BUILTIN:
        return Path(__file__).parent.parent / "demo" / BUILTIN[name]
    if name.startswith("builtin:"):
        raise RecipeError(f"{quoted(name)}: unknown", f"the embedded models are {', '.join(BUILTIN)}", field="model")
    path = Path(name)
    if path.is_dir():
        return path
    if path.is_file():
        with path.open("rb") as file:
            begins = file.read(4)
        if begins == b"GGUF" or path.suffix.lower() == ".gguf":  # Ollama calls its files by their digests
            return gguf_folder(path)
        whole = (
            f"its folder, {path.parent}" if path.suffix == ".safetensors" else "a folder, or a Hub id such as user/name"
        )
        raise ModelError("a file, not a model folder", f"use {whole}", path=path)
    remedy = f"{_beside(path)}use a folder that exists, or a Hub id (user/name)"
    if path.is_absolute():
        raise ModelError("no such model folder", remedy, path=name)
    if not HUB_ID.match(name):
        raise RecipeError(f"{quoted(name)}: neither a folder nor a Hub id", remedy, field="model")
    return None


def _beside(path: Path) -> str:
    """`did you mean ...? `, if a folder beside the missing one is called nearly the same."""
    folders = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, folders, n=1)
    return f"did you mean {quoted(str(path.parent / near[0]))}? " if near else ""


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
                name, revision=revision, allow_patterns=list(patterns), local_files_only=offline, local_dir=folder
            )
        )
    except GatedRepoError:
        raise ModelError(
            f"model {name}: access is gated", "accept its terms on the Hub, then `hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise ModelError(f"model {name}: no revision {quoted(revision)} on the Hub", "check `revision`") from None
    except RepositoryNotFoundError:
        remedy = f"{_beside(Path(name))}check `model`"
        raise ModelError(f"model {name}: no such model on the Hub, or it is private", remedy) from None
    except HFValidationError:
        raise RecipeError(f"{quoted(name)}: not a valid Hub id (user/name)", field="model") from None
    except (LocalEntryNotFoundError, ConnectionError):
        raise _not_here(name, offline=offline) from None
    except HfHubHTTPError as error:
        raise ModelError(f"model {name}: the Hub refused: {reason(error)}", "try again later") from None
    except HTTPError:
        raise _not_here(name, offline=offline) from None


def _not_here(name: str, *, offline: bool) -> OfflineError:
    why = "the network is off (--offline or HF_HUB_OFFLINE=1)" if offline else "the Hub cannot be reached"
    meant = _beside(Path(name)).rstrip()
    problem = f"model {name}: not on this machine, and {why}{f'; {meant}' if meant else ''}"
    otherwise = "set `model` to a local folder"
    if offline:
        return OfflineError(problem, otherwise, fetched="it")
    return OfflineError(problem, f"check the connection, or {otherwise}")


def _checked(path: Path, *, weights: bool = True) -> Path:
    """The folder, if it has what loading needs."""
    if not (path / "config.json").is_file():
        raise ModelError("not a model folder: config.json is missing", "use a folder that has it", path=path)
    if weights and not any(path.glob("model*.safetensors")):
        raise ModelError(
            "no model*.safetensors",
            "only safetensors weights are supported, convert others with `mlx_lm.convert`",
            path=path,
        )
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        raise ModelError(
            "no tokenizer (tokenizer.json or tokenizer.model)", "copy it from the model's source", path=path
        )
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
        size = file.stat().st_size
        with file.open("rb") as stream:
            if size <= 8 * _PROBE_BYTES:
                digest.update(stream.read())
                continue
            digest.update(str(size).encode())
            for start in (0, size // 2, size - _PROBE_BYTES):
                stream.seek(start)
                digest.update(stream.read(_PROBE_BYTES))
    if fields := rope_fields(path):  # what an earlier version computed without them is another model's
        digest.update(repr(sorted(fields.items())).encode())
    return digest.hexdigest()[:16]
