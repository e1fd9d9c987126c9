"""Download once everything that a recipe needs from the Hub; afterwards it runs without a network."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from shutil import disk_usage
from typing import Any

from upft_mlx.data.benchmarks import BenchmarkSpec, load_benchmark, resolve
from upft_mlx.data.problems import load_problems
from upft_mlx.data.source import Source
from upft_mlx.errors import FetchError, OfflineError
from upft_mlx.events import Note, Observer, ignore
from upft_mlx.models.find import FILES, find_model, is_hub_model
from upft_mlx.models.hub import is_offline
from upft_mlx.models.load import load_tokenizer
from upft_mlx.quantities import disk, many
from upft_mlx.recipe.schema import Recipe

_ROOM = 500 * 10**6
"""Bytes that must stay free besides the download."""


@dataclass(frozen=True)
class Repository:
    """A Hub repository that a recipe reads."""

    kind: str
    """`model` or `dataset`."""
    name: str
    revision: str | None
    commit: str | None
    """The commit of the revision; None if the Hub does not say."""
    bytes: int | None
    """Bytes still to download; an upper limit for a dataset, with its converted copy. None if the Hub does not say."""


def fetch(recipe: Recipe, notify: Observer = ignore) -> dict[str, Any]:
    """Download the recipe's model and datasets; say first how much disk space they take.

    Returns:
        What there is now, as plain values.

    Raises:
        OfflineError: the network is off, or the Hub cannot be reached.
        FetchError: there is not enough room on the disk.
        UpftError: one of its kinds, where something is missing on the Hub or cannot be used.
    """
    entries = resolve(recipe.evaluate)
    if is_offline():
        raise OfflineError("fetch needs the network, which is off (--offline or HF_HUB_OFFLINE=1)")
    repositories = _repositories(recipe, entries)
    _check_room([r for r in repositories if r.bytes != 0], notify)
    path = find_model(recipe)
    load_tokenizer(path, trust_remote_code=recipe.trust_remote_code)
    notify(Note(f"fetch: the model is in {path}"))
    problems = load_problems(recipe.problems, builtin="train" if recipe.problems.builtin else None)
    notify(Note(f"fetch: {many(len(problems), 'problem')}"))
    benchmarks = {}
    for entry in entries:
        benchmarks[entry.label] = len(load_benchmark(entry))
        notify(Note(f"fetch: benchmark {entry.label}, {many(benchmarks[entry.label], 'problem')}"))
    found = [{"kind": r.kind, "name": r.name, "revision": r.revision, "commit": r.commit} for r in repositories]
    return {"model": str(path), "problems": len(problems), "benchmarks": benchmarks, "repositories": found}


def _repositories(recipe: Recipe, entries: list[BenchmarkSpec]) -> list[Repository]:
    """What the Hub says about what the recipe reads; where it says nothing, the download names the error."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

    wanted: dict[tuple[str, str, str | None], None] = {}
    if is_hub_model(recipe.model):
        wanted["model", recipe.model, recipe.revision] = None
    sources: list[Source] = [recipe.problems, *entries]
    for source in sources:
        if source.dataset is not None and source.path is None:
            wanted["dataset", source.dataset, source.revision] = None
    found = []
    for kind, name, revision in wanted:
        try:
            info = HfApi().repo_info(name, repo_type=kind, revision=revision, files_metadata=True)
        except (HTTPError, HFValidationError, OSError):
            found.append(Repository(kind, name, revision, None, None))
            continue
        missing = 0
        for file in getattr(info, "siblings", None) or []:
            if kind == "model" and not any(fnmatch(file.rfilename, pattern) for pattern in FILES):
                continue
            cached = try_to_load_from_cache(name, file.rfilename, revision=info.sha, repo_type=kind)
            missing += 0 if isinstance(cached, str) else (file.size or 0)
        size = missing * (2 if kind == "dataset" else 1)  # a dataset is converted: a second copy
        found.append(Repository(kind, name, revision, info.sha, size))
    return found


def _check_room(repositories: list[Repository], notify: Observer) -> None:
    """Say what is downloaded and where, and refuse a download that does not fit."""
    from huggingface_hub import constants

    if not repositories:
        notify(Note("fetch: everything is already downloaded"))
        return
    cache = Path(constants.HF_HUB_CACHE)
    free = disk_usage(next(folder for folder in (cache, *cache.parents) if folder.is_dir())).free
    needed = sum(r.bytes or 0 for r in repositories)
    parts = []
    for r in repositories:
        size = "the Hub does not say how large" if r.bytes is None else disk(r.bytes)
        most = "at most " if r.kind == "dataset" and r.bytes is not None else ""
        parts.append(f"{r.kind} {r.name} ({most}{size})")
    room = "disk space" if any(r.bytes is None for r in repositories) else f"{disk(needed)} of disk space"
    notify(Note(f"fetch: {room}: {', '.join(parts)}; {disk(free)} are free in {cache}"))
    if needed + _ROOM > free:
        raise FetchError(
            f"{disk(needed)} are needed and {disk(free)} are free",
            "make room, or set HF_HOME to a folder on a larger disk",
            path=cache,
        )
