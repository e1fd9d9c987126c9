"""Base's answers that a run in the same folder has already: a cache by fingerprint, kept in the runs themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from upft_mlx.digests import digest
from upft_mlx.errors import RunDirError
from upft_mlx.rundir import RunDir


def measured_beside(run: RunDir, label: str, wanted: str) -> Iterator[Path]:
    """The rows of base in the runs beside this one, and in what they measured apart, with the fingerprint `wanted`.

    Only of evaluations that are finished, and only as they were written; a run that cannot be read has none.
    """
    folder, name = run.root.resolve().parent, f"evaluation/{label}/base.jsonl"
    for ledger in sorted((*folder.glob("*/ledger.json"), *folder.glob("*/looks/*/ledger.json"))):
        try:
            entry = RunDir(ledger.parent).entry("evaluate")
        except (RunDirError, OSError):
            continue
        rows = ledger.parent / name
        if entry is None or not entry.done or (entry.inputs or {}).get(f"{label} base") != wanted or not rows.is_file():
            continue
        if entry.outputs.get(name) == digest(rows):
            yield rows
