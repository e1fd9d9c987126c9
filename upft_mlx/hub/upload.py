"""Publishing a run's result on the Hugging Face Hub: the files, and the upload.

Only files that a model folder needs and the model card are ever uploaded: no solutions, no evaluation rows, nothing
else of the run directory. Uploads go through huggingface_hub, which continues what was cut: what the Hub has already is
not sent again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Container
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from upft_mlx.errors import OfflineError, PublishError, RecipeError
from upft_mlx.events import Note, Observer, ignore
from upft_mlx.models.hub import is_offline, reason
from upft_mlx.quantities import disk, many
from upft_mlx.recipe.publish import Publish
from upft_mlx.stages import is_terms

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ALLOWED = (
    *("README.md", "config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors", "*.py"),
    *("model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "*.tiktoken"),
    *("chat_template.jinja", "chat_template.json", "adapters.safetensors", "adapter_config.json"),
)
"""With the model's terms (`is_terms`), all that is ever uploaded."""
_PLAIN = re.compile(r"[\w.+-]+")
"""Names that mean themselves where the Hub's client takes them for patterns."""
WAITS = (1.0, 4.0, 15.0, 60.0)
"""Seconds before each retry after a dropped connection or an error of the Hub."""
_LOG_IN = "run `hf auth login`, or set HF_TOKEN to a token with write access"
_SECRETS = {
    b"hf_": rb"hf_[A-Za-z0-9]{30,}",
    b"gh": rb"gh[opsur]_[A-Za-z0-9]{36}",
    b"github_pat_": rb"github_pat_[A-Za-z0-9_]{60,}",
    b"sk-": rb"(?<![A-Za-z0-9])sk-(?=[A-Za-z_-]*[0-9])(?=[a-z0-9_-]*[A-Z])[A-Za-z0-9_-]{32,}",
    b"AKIA": rb"AKIA[A-Z0-9]{16}(?![A-Za-z0-9])",
    b"-----BEGIN ": rb"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----",
}
"""What access tokens and private keys begin with, and the whole of them: Hugging Face, GitHub, OpenAI and others."""
_CHUNK, _OVERLAP = 16 << 20, 4096

Result = TypeVar("Result")


def files_to_push(folder: Path) -> list[Path]:
    """The files of a folder that are uploaded, and no others.

    Raises:
        PublishError: one of them holds an access token, or leads out of the folder.
    """
    from huggingface_hub import get_token

    own = (get_token() or "").encode()
    found = []
    for path in sorted(folder.iterdir()):
        known = is_terms(path.name) or any(fnmatchcase(path.name, pattern) for pattern in ALLOWED)
        if not known or _PLAIN.fullmatch(path.name) is None or (path.is_dir() and not path.is_symlink()):
            continue
        if path.is_symlink() or not path.is_file():
            raise PublishError("is not a plain file, so it will not be uploaded", "remove it, or fuse again", path=path)
        _refuse_secrets(path, own, path.stat().st_mtime_ns)
        found.append(path)
    return found


def refuse_unknown(folder: Path, known: Container[str]) -> None:
    """Refuse files that would be uploaded although neither the run nor the card wrote them.

    Raises:
        PublishError: there is one.
    """
    for path in files_to_push(folder):
        if path.name not in known:
            raise PublishError("was not made by this run, so it will not be uploaded", "move it away", path=path)


@lru_cache
def _refuse_secrets(path: Path, own: bytes, changed: int) -> None:
    """Search every byte of every file: weights also have a header with texts; 5 s per GB."""
    before = b""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            part = before + chunk
            secret = bool(own) and own in part
            for start, whole in _SECRETS.items():  # looking for the beginning first takes a tenth of the time
                place = part.find(start)
                while place >= 0 and not secret:
                    secret = re.compile(whole).match(part, place) is not None
                    place = part.find(start, place + 1)
            if secret:
                raise PublishError(
                    "contains an access token or a private key, so it will not be uploaded",
                    "remove it from the recipe or the model's folder, and fuse again",
                    path=path,
                )
            before = part[-_OVERLAP:]


def push(publish: Publish, folder: Path, notify: Observer = ignore) -> str:
    """Upload a folder's files, in a new repository or over an earlier push.

    Returns:
        The repository's address.

    Raises:
        PublishError: the Hub refuses; says why and what to do.
        OfflineError: the network is off, or the Hub cannot be reached.
        RecipeError: `publish.repo` is missing.
    """
    from huggingface_hub import HfApi, get_token

    repo = require_repo(publish)
    files = files_to_push(folder)
    if is_offline():
        raise OfflineError("push needs the network, which is off (--offline or HF_HUB_OFFLINE=1)")
    if get_token() is None:
        raise PublishError("not logged in to the Hub", _LOG_IN)
    api = HfApi()
    _attempts(lambda: _ensure_repo(api, repo, publish, notify), repo, notify)
    size = sum(path.stat().st_size for path in files)
    notify(Note(f"push: {many(len(files), 'file')}, {disk(size)}, to {repo}"))
    options: dict[str, Any] = {
        "allow_patterns": [path.name for path in files],
        # what is left of an earlier push: weights in other shards would be loaded as well; code and terms may be the
        # owner's, and the Hub's `*` means folders, too
        "delete_patterns": [name for name in ALLOWED if not name.startswith("*")],
        "commit_message": "Upload with upft_mlx",
    }
    _attempts(lambda: api.upload_folder(repo_id=repo, folder_path=folder, **options), repo, notify)
    return f"{api.endpoint}/{repo}"


def require_repo(publish: Publish) -> str:
    """The name to push to.

    Raises:
        RecipeError: there is none.
    """
    if publish.repo is None:
        raise RecipeError(
            "missing", "set it to user/name, in the recipe or with --set publish.repo=user/name", field="publish.repo"
        )
    return publish.repo


def _ensure_repo(api: HfApi, repo: str, publish: Publish, notify: Observer) -> None:
    """Create the repository, or check that the existing one is ours."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.create_repo(repo, private=publish.private)
        notify(Note(f"push: created {repo}, {'private' if publish.private else 'public'}"))
        return
    except HfHubHTTPError as error:
        if _status(error) != 409:
            raise
    info = api.model_info(repo)
    names = {file.rfilename for file in info.siblings or []}
    if names - {".gitattributes"} and "upft_mlx" not in (info.tags or []):
        raise PublishError(
            f"{repo}: the repository exists, and upft did not create its files",
            "choose another name",
            field="publish.repo",
        )
    if publish.private and not info.private:
        raise PublishError(
            f"{repo}: exists and is public, but publish.private is true",
            "set publish.private: false to keep it public, or choose another name",
            field="publish.repo",
        )
    if info.private and not publish.private:
        raise PublishError(
            f"{repo}: exists and is private, but publish.private is false",
            "make it public in its settings on the Hub, or set publish.private: true to keep it private",
            field="publish.repo",
        )


def _attempts(work: Callable[[], Result], repo: str, notify: Observer) -> Result:
    """Call the function; retry after dropped connections and errors of the Hub.

    Raises:
        PublishError: the Hub refuses, or its faults last.
        OfflineError: it cannot be reached for as long.
    """
    for wait in (*WAITS, None):
        try:
            return work()
        except PublishError:
            raise
        except Exception as error:  # whatever client, transport and transfer library raise
            if not _passes(error) or wait is None:
                raise _explained(error, repo) from None
            notify(Note(f"push: {_text(error)}; retrying in {wait:.0f} s"))
            time.sleep(wait)
    raise AssertionError("unreachable")


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def _root(error: BaseException) -> BaseException:
    """What the client wrapped."""
    while _status(error) is None and isinstance(error, RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _passes(error: BaseException) -> bool:
    """Whether a retry may succeed."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the client's HTTP library

    root = _root(error)
    status = _status(root)
    if status is not None:
        return status in (408, 429) or status >= 500
    return isinstance(root, (ConnectionError, TimeoutError, HTTPError, RuntimeError))


def _explained(error: BaseException, repo: str) -> Exception:
    from huggingface_hub.errors import HFValidationError

    root = _root(error)
    status = _status(root)
    again = "run the same command to continue"
    if isinstance(root, HFValidationError):
        return RecipeError(f"{repo!r}: the Hub does not allow this name: {_text(root)}", field="publish.repo")
    if status is None:
        if _passes(error):
            return OfflineError(f"push: the Hub cannot be reached ({_text(root)})", again)
        return PublishError(f"push to {repo}: {_text(root)}", again)
    owner = repo.partition("/")[0]
    known = {
        401: ("the Hub does not know your token", _LOG_IN),
        403: (f"your token may not write to {owner}", "use one with write access, or another name"),
        404: (f"no such user or organisation as {owner}, or no such repository", "check publish.repo"),
        409: ("somebody else changed the repository at the same time", "run the same command again"),
        429: ("the Hub limits the number of requests", f"wait a few minutes; {again}"),
    }
    problem, remedy = known.get(status, ("the Hub has a problem", again) if status >= 500 else (_text(root), ""))
    return PublishError(f"{repo}: {problem} (HTTP {status})", remedy, field="publish.repo")


def _text(error: BaseException) -> str:
    """An error's text without the queries of addresses, which can hold credentials."""
    return re.sub(r"\?[^\s'\"]+", "", reason(error))


def listing(publish: Publish, folder: Path) -> dict[str, Any]:
    """The files that `upft push` would upload, as plain values."""
    sizes = {path.name: path.stat().st_size for path in files_to_push(folder)}
    return {
        "repo": publish.repo,
        "private": publish.private,
        "files": [{"path": name, "bytes": size} for name, size in sizes.items()],
        "bytes": sum(sizes.values()),
        "left_out": sorted(path.name for path in folder.iterdir() if path.name not in sizes),
    }
