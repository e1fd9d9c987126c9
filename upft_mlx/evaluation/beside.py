"""Base's answers that a run in the same folder has already: a cache by fingerprint, kept in the runs themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from upft_mlx.digests import digest
from upft_mlx.errors import RunDirError
from upft_mlx.rundir import LedgerEntry, RunDir


def as_written(entry: LedgerEntry, root: Path, name: str) -> Path | None:
    """A file of an evaluation in `root`; None where it is not there, or not as a finished evaluation wrote it."""
    path = root / name
    whole = path.is_file() and (not entry.done or entry.outputs.get(name, digest(path)) == digest(path))
    return path if whole else None


def measured_beside(run: RunDir, label: str, wanted: str) -> Iterator[tuple[LedgerEntry, Path]]:
    """The runs beside this one, and what they measured apart, that have rows of base with the fingerprint `wanted`.

    Only of evaluations that are finished, and only as they were written; a run that cannot be read has none.
    """
    folder, name = run.root.resolve().parent, f"evaluation/{label}/base.jsonl"
    for ledger in sorted((*folder.glob("*/ledger.json"), *folder.glob("*/looks/*/ledger.json"))):
        try:
            entry = RunDir(ledger.parent).entry("evaluate")
        except (RunDirError, OSError):
            continue
        if entry is None or not entry.done or (entry.inputs or {}).get(f"{label} base") != wanted:
            continue
        if name in entry.outputs and as_written(entry, ledger.parent, name):
            yield entry, ledger.parent
