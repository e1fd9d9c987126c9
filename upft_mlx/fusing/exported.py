"""A folder that an export is written to: what is there and is not of an earlier export is never touched.

The folder's manifest lists the files of the export with their digests. Only what it lists, and what is still as it was
written, is replaced by the next export.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from upft_mlx.digests import digest
from upft_mlx.errors import ExportError
from upft_mlx.rows import beside, read_json, replacing, write_json

MANIFEST = ".upft-export.json"


def earlier_export(folder: Path) -> dict[str, list[str]]:
    """The files of an earlier export in a folder, with their digests; none where the folder is empty or missing.

    Raises:
        ExportError: something else is there, a file of the export was changed, or the folder cannot be written.
    """
    if folder.is_symlink() and not folder.exists():
        raise ExportError("is a link to nothing", "make its folder, or choose another", field=f"--to {folder}")
    if not folder.exists():
        above = next(path for path in folder.absolute().parents if path.exists())
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise ExportError(f"cannot be made, {above} is not a folder that you may write to", field=f"--to {folder}")
        return {}
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ExportError("is not a folder that you may write to", "choose another", field=f"--to {folder}")
    found = read_json(folder / MANIFEST) or {}
    files = found.get("files") if isinstance(found, dict) else None
    known: dict[str, list[str]] = files if isinstance(files, dict) else {}
    half_written = {beside(Path(name)).name for name in (MANIFEST, *known)}
    for path in sorted(folder.iterdir()):
        if path.name in (MANIFEST, ".DS_Store") or path.name in half_written:  # the Finder's stays as it is
            continue
        if path.name not in known:
            raise ExportError(
                f"holds {path.name}, which is not of an earlier export",
                "choose an empty folder or a new one",
                field=f"--to {folder}",
            )
        if path.is_symlink() or not path.is_file() or digest(path) not in known[path.name]:
            raise ExportError(
                f"{path.name} was changed after it was exported",
                "move it away, or choose another folder",
                field=f"--to {folder}",
            )
    return known


def deliver(made: Path, folder: Path, earlier: dict[str, list[str]]) -> None:
    """Move the files of an export from where they were made into their folder, over those of an earlier export.

    Raises:
        OSError: they cannot be written.
    """
    files = {path.name: [digest(path)] for path in sorted(made.iterdir())}
    either = {name: [*earlier.get(name, []), *files.get(name, [])] for name in {**earlier, **files}}
    write_json(folder / MANIFEST, {"files": either})  # what a kill leaves half done is known to be ours
    for name in files:
        with replacing(folder / name) as temporary:
            shutil.move(made / name, temporary)
    for name in earlier.keys() - files.keys():
        (folder / name).unlink(missing_ok=True)
    write_json(folder / MANIFEST, {"files": files})
