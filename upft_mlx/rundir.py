"""A run directory: where things are, what is done (the ledger), and that only one process writes.

The ledger (`ledger.json`) has one entry per stage. A stage is current when its entry is done and its
fingerprint is that of the recipe, the model and the data it would be run with now.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from upft_mlx.errors import RunDirError
from upft_mlx.rows import read_json, write_json


@dataclass(frozen=True)
class Entry:
    """What a stage has cost so far; a continued stage adds up."""

    fingerprint: str
    done: bool = False
    inputs: dict[str, Any] | None = None
    """What the fingerprint was made of, to say later what changed."""
    tokens_sampled: int = 0
    tokens_trained: int = 0
    """Supervised tokens, over all epochs."""
    tokens_processed: int = 0
    """Passed through the model, prompts and padding included."""
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    """MLX's peak, loading included."""
    detail: str = ""
    """What came out, in words."""


class RunDir:
    """The paths of a run (design.md, "Run directory") and its ledger."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.recipe = self.root / "recipe.json"
        self.solutions = self.root / "solutions.jsonl"
        self.partial = self.root / "solutions.partial.jsonl"
        self.train = self.root / "dataset" / "train.jsonl"
        self.valid = self.root / "dataset" / "valid.jsonl"
        self.adapter = self.root / "adapter"
        self.checkpoints = self.root / "adapter" / "checkpoints"
        self.metrics = self.root / "metrics.jsonl"
        self.likelihood = self.root / "likelihood.json"
        self.movement = self.root / "movement.json"
        self.evaluation = self.root / "evaluation"
        self.summary = self.root / "evaluation" / "summary.json"
        self.analysis = self.root / "analysis"
        self.fused = self.root / "fused"
        self.fidelity = self.root / "fidelity.json"
        self.ledger = self.root / "ledger.json"
        self.report = self.root / "report.md"
        self.picture = self.root / "report.svg"

    def rows_of(self, benchmark: str, side: str) -> Path:
        """The evaluation rows of one benchmark entry and side."""
        return self.evaluation / benchmark / f"{side}.jsonl"

    def entry(self, stage: str) -> Entry | None:
        """The ledger's entry of a stage."""
        found = self._ledger().get(stage)
        return Entry(**found) if found else None

    def _ledger(self) -> dict[str, Any]:
        ledger = read_json(self.ledger) or {}
        names = {field.name for field in fields(Entry)}
        if not isinstance(ledger, dict) or any(not isinstance(e, dict) or set(e) != names for e in ledger.values()):
            raise RunDirError(
                f"{self.ledger}: not a ledger of this version; delete it, the stages then run again, or choose another "
                "--run-dir"
            )
        return ledger

    def record(self, stage: str, entry: Entry | None) -> None:
        """Write or, with None, remove a stage's entry."""
        ledger = self._ledger()
        ledger.pop(stage, None)
        if entry is not None:
            ledger[stage] = asdict(entry)
        write_json(self.ledger, ledger)

    def is_current(self, stage: str, fingerprint: str) -> bool:
        """Whether a stage is done with these inputs."""
        entry = self.entry(stage)
        return entry is not None and entry.done and entry.fingerprint == fingerprint

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the directory and keep other processes out of it.

        Raises:
            RunDirError: if it cannot be made, or another process works in it.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / ".lock").open("w")
        except OSError as error:
            raise RunDirError(
                f"{self.root}: cannot be used as run directory: {error.strerror}; choose another with --run-dir"
            ) from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunDirError(
                    f"{self.root}: another upft process works in this run directory; wait for it, or choose "
                    "another with --run-dir"
                ) from None
            yield


def fingerprint(inputs: dict[str, Any]) -> str:
    """A short hash of plain values."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def changes(old: dict[str, Any] | None, new: dict[str, Any]) -> list[str]:
    """The names of the inputs that differ, nested ones joined with dots."""
    found: list[str] = []
    old = old or {}
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += [f"{key}.{name}" for name in changes(before, after)]
        elif before != after:
            found.append(key)
    return found


def remove(*paths: Path) -> None:
    """Delete files and folders that may not exist."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
