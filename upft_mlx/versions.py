"""What a stage makes takes its place only when it is whole, and what was there before is kept.

    .work/STAGE-FINGERPRINT/    a stage at work: its files and its entry; another fingerprint has another folder
    .kept/STAGE-FINGERPRINT/    an earlier version: its files and its entry

`install` moves the old version out and the new one in. It can be cut anywhere: `settle`, the first thing that a
command does in a run directory, takes it up again.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from upft_mlx.errors import RunDirError
from upft_mlx.rows import Solution, TrainingRow, read_json, read_rows, write_json
from upft_mlx.rundir import (
    LedgerEntry,
    RunDir,
    changed,
    dump,
    fingerprint,
    missing,
    read_entry,
    remove,
    result_files,
    written,
)
from upft_mlx.stages import STAGES


@dataclass(frozen=True)
class Version:
    """One version of a stage's outputs that is kept, or one that is not finished."""

    name: str
    stage: str
    entry: LedgerEntry
    folder: Path

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    @property
    def is_whole(self) -> bool:
        """Whether its files are there as the stage wrote them."""
        return self.entry.is_whole(self.folder)

    @property
    def has_own(self) -> bool:
        """Whether it holds the user's work: files that the stage did not write, rows or an adapter changed by hand."""
        more = set(result_files(self.stage, self.folder)) - self.entry.outputs.keys()
        by_hand = STAGES[self.stage].adopted_as and (self.entry.adopted or changed(self.entry, self.folder))
        return bool(more or by_hand)

    @property
    def damage(self) -> list[str]:
        """The files that are missing or not what was written."""
        return [*missing(self.entry, self.folder), *changed(self.entry, self.folder)]


def kept(run: RunDir, stage: str | None = None) -> list[Version]:
    """The versions that are kept, the newest first."""
    return _versions(run.kept, stage)


def unfinished(run: RunDir, stage: str | None = None) -> list[Version]:
    """What stages have begun and not finished, the newest first."""
    return _versions(run.work, stage)


def _versions(folder: Path, stage: str | None) -> list[Version]:
    files = sorted(folder.glob("*/entry.json"), key=lambda file: -file.stat().st_mtime_ns)
    found = [
        Version(file.parent.name, file.parent.name.partition("-")[0], read_entry(file, read_json(file)), file.parent)
        for file in files
    ]
    return [version for version in found if version.stage in ((stage,) if stage else STAGES)]


def find(run: RunDir, name: str) -> Version:
    """The kept or unfinished version of this name.

    Raises:
        RunDirError: there is none; names those that there are.
    """
    known = {version.name: version for version in (*unfinished(run), *kept(run))}
    if name not in known:
        there = f"there are {', '.join(known)}" if known else "none is kept"
        raise RunDirError(f"no kept version {name!r}", there, path=run.root)
    return known[name]


# A stage at work.


def begun(run: RunDir, stage: str, inputs: dict[str, Any]) -> LedgerEntry:
    """The entry of what this stage has begun with these inputs, or a fresh one."""
    current = fingerprint(inputs)
    file = run.work / f"{stage}-{current}" / "entry.json"
    others = [version for version in unfinished(run, stage) if version.folder != file.parent]
    for other in others[STAGES[stage].keeps :]:
        _discard(other.folder)
    return read_entry(file, read_json(file)) if file.exists() else LedgerEntry(current, inputs=inputs)


def pause(run: RunDir, stage: str, entry: LedgerEntry) -> None:
    """Note what an unfinished stage has cost; where it has made nothing, nothing stays."""
    folder = run.work / f"{stage}-{entry.fingerprint}"
    if any(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != "entry.json"):
        write_json(folder / "entry.json", dump(entry))
    else:
        _discard(folder)


def finish(run: RunDir, stage: str, entry: LedgerEntry) -> LedgerEntry:
    """Put what a stage has made in its place.

    Returns:
        The entry with the digests of the outputs.
    """
    folder = run.work / f"{stage}-{entry.fingerprint}"
    entry = replace(entry, done=True, outputs=written(stage, folder))
    write_json(folder / "entry.json", dump(entry))
    install(run, folder)
    return entry


def install(run: RunDir, folder: Path) -> None:
    """Move a finished version from `folder` to its place, and what is there to `.kept/`; may be repeated.

    Its plan is on the disk before the first move; with `recipe`, the version's recipe becomes the run's, too, if
    it is a version of what the run is made of.
    """
    stage = folder.name.partition("-")[0]
    entry = read_entry(folder / "entry.json", read_json(folder / "entry.json"))
    plan = read_json(folder / "install.json") or {"old": _set_aside(run, stage), "out": []}
    old = run.kept / plan["old"]
    write_json(folder / "install.json", plan)
    for name in STAGES[stage].outputs:
        new, place = folder / name, run.root / name
        if name not in plan["out"]:
            if _exists(place):
                if place.is_symlink() and place.is_dir():  # what is in the folder moves, and the link stays
                    for child in place.iterdir():
                        _transfer(child, old / name / child.name)
                else:
                    _transfer(place, old / name)
            plan["out"].append(name)
            write_json(folder / "install.json", plan)
        if new.exists():
            _transfer(new, place.resolve() if place.is_symlink() else place)
    run.record(stage, entry)
    if plan.get("recipe") and entry.recipe is not None and run.is_described_by(stage):
        write_json(run.recipe, entry.recipe)
    _discard(folder)
    if not any(_exists(old / name) for name in STAGES[stage].outputs):
        _discard(old)
    others = [version for version in kept(run, stage) if version.folder != old]  # by the clock, which may be set back
    for version in others[STAGES[stage].keeps - old.exists() :]:
        if not version.has_own:
            _discard(version.folder)


def _set_aside(run: RunDir, stage: str) -> str:
    """Begin a folder for the version that is there, with its entry; returns its name."""
    entry = run.entry(stage) or LedgerEntry("unknown", detail="not in the ledger")
    names = (f"{stage}-{entry.fingerprint}{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 10_000))))
    outputs = STAGES[stage].outputs
    name = next(name for name in names if not any(_exists(run.kept / name / output) for output in outputs))
    write_json(run.kept / name / "entry.json", dump(entry))
    return name


def bring_back(run: RunDir, version: Version) -> None:
    """Put a kept version in its place again, with the stages before it that it was made from where these are kept.

    Raises:
        RunDirError: its files are damaged.
    """
    if not version.is_whole:
        what = ", ".join(version.damage) or "it was not finished"
        raise RunDirError(f"cannot be restored, not as it was written: {what}", path=version.folder)
    for before, wanted in made_from(version.entry).items():
        there = run.entry(before)
        for earlier in kept(run, before) if there is None or there.fingerprint != wanted else ():
            if earlier.entry.fingerprint == wanted and earlier.is_whole:
                bring_back(run, earlier)
                break
    folder = run.work / f"{version.stage}-{version.entry.fingerprint}"
    _discard(folder)
    folder.parent.mkdir(exist_ok=True)
    write_json(version.folder / "install.json", {"old": _set_aside(run, version.stage), "out": [], "recipe": True})
    version.folder.rename(folder)
    install(run, folder)


def is_in_place(run: RunDir, name: str) -> bool:
    """Whether the version of this name is not kept any more but the current one, as after a restoring that was cut."""
    stage = name.partition("-")[0]
    current = run.entry(stage)
    there = (run.kept / name).exists() or (run.work / name).exists()
    return not there and current is not None and name == f"{stage}-{current.fingerprint}"


def made_from(entry: LedgerEntry) -> dict[str, str]:
    """The stages that a stage worked on, with the fingerprint of each."""
    found = {name.removesuffix(" stage"): of for name, of in (entry.inputs or {}).items() if name.endswith(" stage")}
    return {stage: of for stage, of in found.items() if stage in STAGES}


def forget(version: Version) -> None:
    """Remove a kept version; what tells that it is one goes last, so that a removal that was cut can be repeated.

    Raises:
        OSError: a part of it cannot be removed.
    """
    remove(*(path for path in version.folder.iterdir() if path.name != "entry.json"))
    remove(version.folder)
    _remove_empty(version.folder.parent)


def _discard(folder: Path) -> None:
    """Remove a folder of `.work` or `.kept`, and that where it was the last; what cannot be removed does no harm."""
    shutil.rmtree(folder, ignore_errors=True)
    _remove_empty(folder.parent)


def _remove_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


# Opening a run directory.


def settle(run: RunDir) -> Iterator[str]:
    """Take up what a killed process left and what earlier versions laid out differently; says what is worth saying."""
    yield from run.ledger_from_copy()
    yield from _from_before(run)
    for version in unfinished(run):
        if version.entry.done:
            install(run, version.folder)
    for version in kept(run):
        if not any(_exists(version.folder / name) for name in STAGES[version.stage].outputs):
            _discard(version.folder)  # begun, and killed before the first file was moved


def _from_before(run: RunDir) -> Iterator[str]:
    """Runs of earlier versions: unfinished work in the places of results, an entry per variant, no digests."""
    entries = run.entries()
    variants = {name: entry for name, entry in entries.items() if name.startswith("evaluate/")}
    for stage, entry in entries.items():
        if stage in STAGES and not entry.done:
            _to_work(run, stage, entry, variants)
    for name in variants:
        run.record(name, None)
    unchecked = [stage for stage, entry in run.entries().items() if entry.done and not entry.outputs]
    for stage in unchecked:
        found, outputs = run.entry(stage), written(stage, run.root)
        assert found is not None
        run.record(stage, replace(found, outputs=outputs) if _NEEDED.get(stage, set()) <= outputs.keys() else None)
    if unchecked:
        yield (
            f"an earlier version made this run and kept no digests: {', '.join(unchecked)} taken as found, and checked "
            "from now on"
        )


_NEEDED = {
    "generate": {"solutions.jsonl"},
    "build": {"dataset/train.jsonl", "dataset/valid.jsonl"},
    "train": {"adapter/adapters.safetensors", "adapter/adapter_config.json"},
    "evaluate": {"evaluation/summary.json"},
    "fuse": {"fidelity.json"},
    "analyze": {"analysis/analysis.json"},
}
"""Without these a stage is not done, whatever the ledger of an earlier version says."""


def _to_work(run: RunDir, stage: str, entry: LedgerEntry, variants: dict[str, LedgerEntry]) -> None:
    """Unfinished outputs out of the places of results."""
    folder = run.work / f"{stage}-{entry.fingerprint}"
    for name, variant in variants.items() if stage == "evaluate" else ():
        label, _, which = name.removeprefix("evaluate/").rpartition("/")
        rows = run.rows_of(label, which)
        if rows.exists() and variant.fingerprint != (entry.inputs or {}).get(f"{label} {which}"):
            _transfer(rows, run.evaluation / ".kept" / f"{label}-{which}-{variant.fingerprint}.jsonl")
    for name in (*STAGES[stage].outputs, *STAGES[stage].scratch):
        if (run.root / name).exists():
            _transfer(run.root / name, folder / name)
    write_json(folder / "entry.json", dump(entry))
    run.record(stage, None)


# Outputs that somebody changed on purpose.


def adopt(run: RunDir) -> list[str]:
    """Take the outputs as they are for those that later stages use; the ledger and the model card say so.

    Returns:
        The files that had been changed.

    Raises:
        RunDirError: nothing is changed, or what was measured or fused is.
        RowsError: a changed row is malformed.
    """
    found: list[str] = []
    fingerprints: dict[str, str] = {}
    adoptable = [name for name, of in STAGES.items() if of.adopted_as]
    for stage, known in run.entries().items():
        if stage not in adoptable and known.done and (names := changed(known, run.root)):
            raise RunDirError(
                f"what `upft {stage}` found cannot be adopted",
                f"`{run.command(stage)}` makes it again",
                path=run.root / names[0],
            )
    for stage in adoptable:
        entry = run.entry(stage)
        if entry is None or not (names := changed(entry, run.root)):
            continue
        if gone := missing(entry, run.root):
            raise RunDirError("is missing", f"`{run.command(stage)}` makes it again", path=run.root / gone[0])
        rows: Any = {"generate": Solution, "build": TrainingRow}.get(stage)
        for name in names if rows is not None else ():
            deque(read_rows(run.root / name, rows), maxlen=0)  # a malformed one is refused
        outputs = written(stage, run.root)
        of = fingerprint(outputs)
        inputs = {**(entry.inputs or {}), "adopted": of}
        inputs |= {f"{name} stage": value for name, value in fingerprints.items() if f"{name} stage" in inputs}
        fingerprints[stage] = fingerprint(inputs)
        run.record(stage, replace(entry, fingerprint=fingerprints[stage], inputs=inputs, outputs=outputs, adopted=of))
        found += names
    if not found:
        raise RunDirError("nothing to adopt: its files are what the stages wrote", path=run.root)
    return found


def adopted(run: RunDir) -> dict[str, str]:
    """The stages whose outputs were adopted, with the digest of these."""
    return {stage: entry.adopted for stage, entry in run.entries().items() if entry.adopted}


# Moving.


def _exists(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _transfer(source: Path, target: Path) -> None:
    """Move a file or a folder, into a folder that is there already too; may be repeated after it was cut."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir() and not source.is_symlink() and target.is_dir():
        _transfer_all(source, target)
        return
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        if source.is_dir() and not source.is_symlink():
            target.mkdir()
            _transfer_all(source, target)
        else:
            beside = target.with_name(f".{target.name}.moving")
            shutil.copy2(source, beside, follow_symlinks=False)
            beside.replace(target)
            source.unlink()


def _transfer_all(source: Path, target: Path) -> None:
    for child in sorted(source.iterdir()):
        _transfer(child, target / child.name)
    source.rmdir()


def stamp(version: Version) -> str:
    """When it was set aside, in words."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime((version.folder / "entry.json").stat().st_mtime))
