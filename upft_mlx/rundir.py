"""A run directory: where things are, what is done (the ledger), and that only one process writes.

The ledger (`ledger.json`) has one entry per finished stage, with a digest of each file that the stage wrote. A stage is
current when its entry's fingerprint is that of the recipe, the model and the data it would be run with now. What is
not finished is in `.work/`, earlier versions of what is finished in `.kept/` (`versions.py`).
"""

from __future__ import annotations

import copy
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from upft_mlx import __version__
from upft_mlx.digests import digest
from upft_mlx.errors import NO_ROOM, RowsError, RunDirError
from upft_mlx.escape import to_json
from upft_mlx.machine import blas
from upft_mlx.rows import own_file, read_json, write_atomically, write_json
from upft_mlx.stages import STAGES, in_run, is_terms


@dataclass(frozen=True)
class LedgerEntry:
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
    outputs: dict[str, str] = field(default_factory=dict)
    """The files that it wrote, by their path in the run directory, and the digest of each; empty in the ledgers of
    earlier versions."""
    recipe: dict[str, Any] | None = None
    """recipe.json of its time."""
    adopted: str | None = None
    """A digest of the outputs that somebody changed by hand and wants to be used (`upft adopt`); None: as written."""

    def is_whole(self, root: Path) -> bool:
        """Whether the stage is done and its files below `root` are unchanged."""
        return self.done and bool(self.outputs) and not (missing(self, root) or changed(self, root))


class RunDir:
    """The paths of a run and its ledger."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._moved: dict[str, Path] = {}
        """The outputs of the stage at work, which are not in their places yet."""
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
        self.answers = self.root / "answers"
        self.choice = self.root / "choice"
        self.forecast = self.root / "forecast"
        self.fused = self.root / "fused"
        self.fidelity = self.root / "fidelity.json"
        self.ledger = self.root / "ledger.json"
        self.copy = self.root / ".ledger.json"
        """The ledger once more: without one, hours of work would hang on each byte of a small file."""
        self.report = self.root / "report.md"
        self.page = self.root / "report.html"
        self.picture = self.root / "report.svg"
        self.looks = self.root / "looks"
        self.work = self.root / ".work"
        self.kept = self.root / ".kept"

    def rows_of(self, benchmark: str, variant: str) -> Path:
        """The evaluation rows of one benchmark entry and variant."""
        return self.evaluation / benchmark / f"{variant}.jsonl"

    def working(self, stage: str, fingerprint: str) -> RunDir:
        """The same run with this stage's outputs in a folder of their own, where it works until they are complete."""
        view, folder = copy.copy(self), self.work / f"{stage}-{fingerprint}"
        view._moved = {name: folder / name for name in (*STAGES[stage].outputs, *STAGES[stage].scratch)}
        for attribute, path in vars(self).items():
            if isinstance(path, Path) and path != self.root and path.is_relative_to(self.root):
                first, *rest = path.relative_to(self.root).parts
                if first in view._moved:
                    setattr(view, attribute, view._moved[first].joinpath(*rest))
        return view

    def asked_with(self, field: str) -> Any:
        """A field of the prompt section in recipe.json; None if it is missing."""
        made = read_json(self.recipe)
        prompt = made.get("prompt") if isinstance(made, dict) else None
        return prompt.get(field) if isinstance(prompt, dict) else None

    def described(self) -> dict[str, Any]:
        """recipe.json; empty if it is missing or damaged."""
        with suppress(RowsError):
            if isinstance(found := read_json(self.recipe), dict):
                return found
        return {}

    def command(self, verb: str) -> str:
        """What a shell runs to do this with the run."""
        return f"upft {verb} {shlex.quote(str(self.root))}"

    def place(self, name: str) -> Path:
        """The path of an output by its name in the run directory, as a stage at work sees it."""
        return self._moved.get(name, self.root / name)

    def entry(self, stage: str) -> LedgerEntry | None:
        """The ledger's entry of a stage."""
        return self.entries().get(stage)

    def entries(self) -> dict[str, LedgerEntry]:
        """All entries of the ledger, by stage.

        Raises:
            RunDirError: the ledger is damaged, or of another version.
        """
        return read_ledger(self.ledger)

    def ledger_from_copy(self) -> Iterator[str]:
        """Put the copy in the place of a ledger that is damaged or gone, and say so.

        Raises:
            RunDirError: the copy is no better.
        """
        try:
            if self.ledger.exists() or not self.copy.exists():
                self.entries()
                return
        except RunDirError:
            if not self.copy.exists():
                raise
        read_ledger(self.copy)
        write_atomically(self.ledger, self.copy.read_bytes())
        yield f"{self.ledger}: was damaged or missing; its copy takes its place"

    def record(self, stage: str, entry: LedgerEntry | None) -> None:
        """Write or, with None, remove a stage's entry."""
        entries = self.entries()
        entries.pop(stage, None)
        if entry is not None:
            entries[stage] = entry
        ledger = {name: dump(found) for name, found in entries.items()}
        write_json(self.ledger, ledger)
        write_json(self.copy, ledger)

    def is_described_by(self, stage: str, *, learns: bool = False) -> bool:
        """Whether recipe.json is that of this stage: a forecast or an analysis leaves that of a run's own stages.

        Args:
            stage: its name.
            learns: whether the stages that learn from a few answers belong to the run.
        """
        of_run = in_run(learns=learns)
        return stage in of_run or not any(entry.done for name, entry in self.entries().items() if name in of_run)

    @contextmanager
    def locked(self, *, writes: bool = True) -> Iterator[None]:
        """Make the directory and keep other processes out of it; after an error, one that is still empty goes again.

        Args:
            writes: whether the run's own files are written; a look writes to a folder of its own.

        Raises:
            RunDirError: if it cannot be made, holds the user's files in a run's place, or another process works in it.
            OSError: the disk is full.
        """
        try:
            if writes:
                self._refuse_foreign()
            made = [path for path in (self.root / ".lock", self.root, *self.root.parents) if not path.exists()]
            self.root.mkdir(parents=True, exist_ok=True)
            lock = os.fdopen(own_file(self.root / ".lock", os.O_RDWR | os.O_CREAT), "r+")
        except OSError as error:
            if error.errno in NO_ROOM:  # then another place is not the remedy
                raise
            lock_itself = str(error.filename) == str(self.root / ".lock")
            raise RunDirError(
                f"cannot be used as run directory: {'.lock: ' if lock_itself else ''}{error.strerror}",
                "choose another with --run-dir",
                path=self.root,
            ) from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock.fileno()).st_nlink == 0:  # another process has just removed it, see below
                    raise BlockingIOError
            except OSError:
                raise RunDirError(
                    "another upft process is using this folder",
                    "wait for it, or choose another with --run-dir",
                    path=self.root,
                ) from None
            try:
                yield
            except BaseException:
                with suppress(OSError):
                    for path in made if [path.name for path in self.root.iterdir()] == [".lock"] else ():
                        path.rmdir() if path.is_dir() else path.unlink()
                raise

    def _refuse_foreign(self) -> None:
        """Refuse a folder in which no run has begun if it holds something that a run would replace."""
        if "hashes" in self.described() or any(path.exists() for path in (self.ledger, self.copy, self.work)):
            return
        outputs = (self.root / name for stage in STAGES.values() for name in stage.outputs)
        for path in (self.recipe, self.report, self.page, self.picture, *outputs):
            held = any(not inside.name.startswith(".") for inside in path.iterdir()) if path.is_dir() else path.exists()
            if held:  # an empty folder may wait on another disk
                problem = f"holds {path.name}, which upft did not write and would replace"
                raise RunDirError(problem, "choose an empty folder or a new one with --run-dir", path=self.root)

    def take_back(self) -> None:
        """Remove recipe.json where nothing else has been made, and of a look its folder; `locked` removes a run's."""
        with suppress(OSError):  # a folder that holds anything else stays, and a rank's replica may be gone already
            if {path.name for path in self.root.iterdir()} <= {self.recipe.name, ".lock"}:
                self.recipe.unlink(missing_ok=True)
                self.root.rmdir()
                self.root.parent.rmdir()


def read_ledger(path: Path) -> dict[str, LedgerEntry]:
    """The entries of a ledger by stage, none where there is no file.

    Raises:
        RunDirError: it is damaged, or of another version.
    """
    try:
        ledger = read_json(path) if path.exists() else {}
    except RowsError as error:
        raise RunDirError(error.problem, error.remedy, path=error.path, line=error.line) from None
    if not isinstance(ledger, dict):
        raise _not_a_ledger(path)
    return {stage: read_entry(path, found) for stage, found in ledger.items()}


def dump(entry: LedgerEntry) -> dict[str, Any]:
    """An entry for JSON, with a check of itself."""
    data = asdict(entry)
    return {**data, "check": fingerprint(data)}


def read_entry(path: Path, found: Any) -> LedgerEntry:
    """An entry from its JSON; fields that an earlier version did not write have their defaults.

    Raises:
        RunDirError: it is damaged, or of a later version; `path` is the file.
    """
    known = {item.name for item in fields(LedgerEntry)} | {"check"}
    needed = {item.name for item in fields(LedgerEntry) if item.default is MISSING and item.default_factory is MISSING}
    if not isinstance(found, dict) or not needed <= set(found) <= known:
        raise _not_a_ledger(path)
    data = {name: value for name, value in found.items() if name != "check"}
    if found.get("check", fingerprint(data)) != fingerprint(data):
        raise _not_a_ledger(path)
    return LedgerEntry(**data)


def _not_a_ledger(path: Path) -> RunDirError:
    return RunDirError(
        "not a ledger of this version",
        "if a later version wrote it, use that one; if it is damaged, move it away and the stages run "
        "again (what is there is kept in .kept), or choose another --run-dir",
        path=path,
    )


def written(stage: str, root: Path) -> dict[str, str]:
    """The digests of the files of a stage's outputs below `root`, by relative path."""
    return {name: digest(root / name) for name in result_files(stage, root)}


def result_files(stage: str, root: Path) -> list[str]:
    """The files of a stage's outputs below `root`, by relative path.

    Checkpoints are not results, and the model card and the licences are written anew with each report.
    """
    found = []
    for name in STAGES[stage].outputs:
        place = root / name
        for path in sorted(place.rglob("*")) if place.is_dir() else [place] if place.is_file() else []:
            inside = path.relative_to(root)
            hidden = any(part.startswith(".") for part in inside.parts)
            if path.is_file() and not hidden and inside.parts[1:2] != ("checkpoints",) and not is_card(inside):
                found.append(inside.as_posix())
    return found


def is_card(inside: Path) -> bool:
    """Whether a file of the result is one that goes along with it: the card, or the terms of the base model."""
    goes_along = inside.name == "README.md" or is_terms(inside.name)
    return inside.parts[0] in ("adapter", "fused") and len(inside.parts) == 2 and goes_along


def look_name(
    adapter: Path | None, benchmarks: Sequence[str] = (), limit: int | None = None, subset: Sequence[str] = ()
) -> str:
    """The name in looks/ of an evaluation that is not the run's own: readable, and another for other options."""
    foreign = None if adapter is None else adapter.resolve()
    shown = [*(Path(name).stem for name in benchmarks), *([f"limit-{limit}"] if limit else []), *subset]
    shown += [f"adapter-{foreign.name}"] if foreign else []
    words = re.sub(r"[^A-Za-z0-9]+", "-", "-".join(shown)).strip("-")[:40]
    options = to_json([str(foreign), list(benchmarks), limit, sorted(subset)])
    return f"{words}-{hashlib.sha256(options.encode()).hexdigest()[:6]}".lower()


def missing(entry: LedgerEntry, root: Path) -> list[str]:
    """The outputs of an entry that are not there."""
    return [name for name in entry.outputs if not (root / name).is_file()]


def changed(entry: LedgerEntry, root: Path) -> list[str]:
    """The outputs of an entry that are there and are not what was written."""
    return [name for name, known in entry.outputs.items() if (root / name).is_file() and digest(root / name) != known]


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
    """Delete files and folders that may not exist; of a link, the link alone."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


_version = cache(metadata.version)
"""A package's version: its metadata takes milliseconds to read, and a run asks a dozen times."""


def versions() -> dict[str, str]:
    """The versions of this package and of those that a run's numbers depend on."""
    packages = ("mlx", "mlx-lm", "transformers", "datasets", "math-verify")
    products = {"blas": blas.used().name, "blas_threads": str(blas.used().threads)}
    return {"upft-mlx": __version__, **{name: _version(name) for name in packages}, **products}
