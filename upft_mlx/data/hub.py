"""Rows of datasets on the Hugging Face Hub, through `datasets`: all of them, or a look at the first."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from upft_mlx.data.source import Located, Place, Source
from upft_mlx.errors import OfflineError, ProblemsError
from upft_mlx.escape import quoted


@dataclass(frozen=True)
class Look:
    """The first rows of a Hub dataset's split, and what the Hub says of the rest."""

    rows: list[Located]
    count: int | None
    """Rows of the split; None where the Hub does not say."""
    splits: tuple[str, ...]
    """The names of its splits; those in the cache where the Hub was not asked."""


def hub_rows(source: Source) -> Iterator[Located]:
    """All rows of a Hub dataset.

    Raises:
        ProblemsError: it cannot be loaded.
        OfflineError: it is not on this machine and cannot be downloaded.
    """
    data = _load(source, source.split)
    _refuse_other_commit(source, [str(file["filename"]) for file in data.cache_files])
    yield from _located(source, data)


def look(source: Source, count: int) -> Look:
    """The first `count` rows without downloading the others; without a network from the cache.

    Raises:
        ProblemsError: it cannot be loaded.
        OfflineError: it is not in the cache, and the Hub cannot be reached.
    """
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:
        return _stream(source, count)  # from the cache where the Hub cannot be reached
    data = _load(source, source.split)
    return Look(list(itertools.islice(_located(source, data), count)), len(data), tuple(data.info.splits or ()))


def _stream(source: Source, count: int) -> Look:
    data = _load(source, None, streaming=True)
    if source.split not in data:
        raise ProblemsError(f"dataset {source.dataset}: no split {quoted(source.split)}", f"it has {', '.join(data)}")
    chosen = data[source.split]
    with _hub_errors(source):
        rows = list(itertools.islice(_located(source, chosen), count))
    known = (chosen.info.splits or {}).get(source.split)
    return Look(rows, getattr(known, "num_examples", None) or None, tuple(data))


def _load(source: Source, split: str | None, *, streaming: bool = False) -> Any:
    import datasets

    datasets.disable_progress_bars()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # it would tell a server even of local folders
    more = {"streaming": True} if streaming else {}
    with _hub_errors(source):
        return datasets.load_dataset(source.dataset, source.config, split=split, revision=source.revision, **more)


def _located(source: Source, data: Any) -> Iterator[Located]:
    for number, row in enumerate(data, start=1):
        yield Place(f"{source.dataset} ({source.split})", row=number), dict(row)


@contextmanager
def _hub_errors(source: Source) -> Iterator[None]:
    """Turn the errors of `datasets` and of the Hub's client into this package's."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub import constants
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is imported there
        HfHubHTTPError,
        HTTPError,  # of the HTTP client that this version of huggingface-hub uses
    )

    try:
        yield
    except (OSError, ValueError, RuntimeError, HTTPError, DatasetsError) as error:
        answered = isinstance(error, HfHubHTTPError)
        unreachable = isinstance(error, (ConnectionError, HTTPError)) and not answered
        offline = bool(constants.HF_HUB_OFFLINE)
        raise _hub_error(source, error, unreachable=unreachable, offline=offline) from None


def _refuse_other_commit(source: Source, files: Sequence[str]) -> None:
    """Without the network, `datasets` takes what is in its cache whatever the revision."""
    commit = source.revision or ""
    if re.fullmatch("[0-9a-f]{40}", commit) and files and not any(commit in file for file in files):
        raise OfflineError(
            f"dataset {source.dataset}: the cache has another revision than {commit}, and the Hub cannot be asked",
            fetched="that revision",
        )


def first_line(error: Exception) -> str:
    """The first line of another library's error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _hub_error(source: Source, error: Exception, *, unreachable: bool, offline: bool) -> OfflineError | ProblemsError:
    reason = first_line(error)
    if unreachable and offline:
        return OfflineError(
            f"dataset {source.dataset}: not on this machine, and the network is off (--offline or HF_HUB_OFFLINE=1)",
            "set `path` to a local file",
            fetched="it",
        )
    if unreachable:
        return OfflineError(
            f"dataset {source.dataset}: not on this machine, and the Hub cannot be reached",
            "check the connection, or name a local file",
        )
    return ProblemsError(
        f"dataset {source.dataset}: cannot be loaded: {reason}", "check dataset, config, split and revision"
    )
