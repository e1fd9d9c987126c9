"""Rows of datasets on the Hugging Face Hub, through `datasets`: all of them, or a look at the first."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from upft_mlx.data.source import Located, Place, Source, first_line
from upft_mlx.errors import OfflineError, ProblemsError
from upft_mlx.escape import quoted

_BATCH = 100
"""Rows that are read at a time."""


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
    # Without the network, `datasets` takes what is in its cache whatever the revision.
    commit, files = source.revision or "", [str(file["filename"]) for file in data.cache_files]
    if re.fullmatch("[0-9a-f]{40}", commit) and files and not any(commit in file for file in files):
        raise OfflineError(
            f"dataset {source.dataset}: the cache has another revision than {commit}, and the Hub cannot be asked",
            fetched="that revision",
        )
    yield from _located(source, data)


def look(source: Source, count: int) -> Look:
    """The first `count` rows without downloading the others; without a network from the cache.

    Raises:
        ProblemsError: it cannot be loaded.
        OfflineError: it is not in the cache, and the Hub cannot be reached.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        data = _load(source, source.split)
        return Look(list(itertools.islice(_located(source, data), count)), len(data), tuple(data.info.splits or ()))
    splits = _load(source, None, streaming=True)  # from the cache where the Hub cannot be reached
    if source.split not in splits:
        raise ProblemsError(f"dataset {source.dataset}: no split {quoted(source.split)}", f"it has {', '.join(splits)}")
    chosen = splits[source.split]
    with _hub_errors(source):
        rows = list(itertools.islice(_located(source, chosen), count))
    known = (chosen.info.splits or {}).get(source.split)
    return Look(rows, getattr(known, "num_examples", None) or None, tuple(splits))


def _load(source: Source, split: str | None, *, streaming: bool = False) -> Any:
    import datasets

    datasets.disable_progress_bars()
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # it would tell a server even of local folders
    more = {"streaming": True} if streaming else {}
    with _hub_errors(source):
        return datasets.load_dataset(source.dataset, source.config, split=split, revision=source.revision, **more)


def _located(source: Source, data: Any) -> Iterator[Located]:
    """The rows as they are stored: nobody reads pictures and sounds, and decoding them takes packages of their own."""
    tables = data.with_format("arrow").iter(batch_size=_BATCH)
    for number, row in enumerate((row for table in tables for row in table.to_pylist()), start=1):
        yield Place(f"{source.dataset} ({source.split})", row=number), row


@contextmanager
def _hub_errors(source: Source) -> Iterator[None]:
    """Turn the errors of `datasets` and of the Hub's client into this package's."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub import constants
    from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is imported there
        HfHubHTTPError,
        HTTPError,  # of the HTTP client that this version of huggingface-hub uses
    )

    name = f"dataset {source.dataset}"
    try:
        yield
    except (OSError, ValueError, RuntimeError, HTTPError, DatasetsError) as error:
        if isinstance(error, HfHubHTTPError) or not isinstance(error, (ConnectionError, HTTPError)):
            remedy = "check dataset, config, split and revision"
            raise ProblemsError(f"{name}: cannot be loaded: {first_line(error)}", remedy) from None
        if constants.HF_HUB_OFFLINE:
            problem = f"{name}: not on this machine, and the network is off (--offline or HF_HUB_OFFLINE=1)"
            raise OfflineError(problem, "set `path` to a local file", fetched="it") from None
        problem = f"{name}: not on this machine, and the Hub cannot be reached"
        raise OfflineError(problem, "check the connection, or name a local file") from None
