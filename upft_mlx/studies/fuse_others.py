"""`upft fuse --adapter`: other adapters than the run's own, added up, measured and fused beside the run."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from upft_mlx.digests import digest
from upft_mlx.errors import FuseError, RecipeError
from upft_mlx.events import Observer, ignore
from upft_mlx.fusing.fuse import fuse
from upft_mlx.fusing.merge import merge, readable
from upft_mlx.models.find import model_hash
from upft_mlx.pipeline import check_memory, opened, prepare
from upft_mlx.quantities import disk
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import read_json, write_json
from upft_mlx.rundir import remove


def fuse_others(
    recipe: Recipe,
    run_dir: str | Path,
    weights: Mapping[Path, float],
    notify: Observer = ignore,
    *,
    force: bool = False,
) -> dict[str, Any]:
    """Write RUN/merged/NAME: the adapters as one in adapter/, fused/, and fidelity.json. The run's own files stay.

    Args:
        recipe: the run's; its model is the adapters' base, its rows and questions are measured on.
        run_dir: of the run, whose dataset/ is built.
        weights: of each adapter's update, by its folder.
        notify: receives progress events.
        force: fuse even if less than `publish.min_retained` is kept.

    Raises:
        RecipeError: a weight is 0 or not finite, or an adapter is given twice.
        FuseError: they cannot be added up, or fusing keeps too little.
        UpftError: another of its kinds.
    """
    for path, weight in weights.items():
        if not -100 <= weight <= 100 or weight == 0:
            raise RecipeError(f"{weight:g}: expected a weight from -100 to 100, not 0", field=f"--adapter {path}")
    if len({path.resolve() for path in weights}) < len(weights):
        raise RecipeError("the same adapter is given twice", "add up its weights", field="--adapter")
    readable(weights)
    hashes = sorted((model_hash(path), weight) for path, weight in weights.items())
    words = "-".join(f"{path.resolve().parent.name}-{path.name}-{weight:g}" for path, weight in weights.items())
    name = re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-")[:60]
    name = f"{name}-{hashlib.sha256(repr(hashes).encode()).hexdigest()[:6]}".lower()
    job = prepare(recipe, run_dir, notify)
    with opened(job):
        job.require("fuse --adapter", "build")
        made, work = job.run.root / "merged" / name, job.run.work / f"merged-{name}"
        _refuse_own(made)
        check_memory(job, "fuse")
        remove(work)
        view = copy.copy(job.run)
        view.adapter, view.fused, view.fidelity = work / "adapter", work / "fused", work / "fidelity.json"
        loaded = job.load()
        try:
            rank = merge(loaded, weights, view.adapter)
            kept = fuse(job.recipe, loaded, view, notify, questions=job.questions, force=force)
            files = {name: digest(work / name) for name in _files(work)}
            adapters = {str(path): weight for path, weight in weights.items()}
            write_json(work / "merged.json", {"adapters": adapters, "files": files})
            made.parent.mkdir(exist_ok=True)
            remove(made)
            work.rename(made)
        finally:
            remove(work)
    detail = f"rank {rank}, {kept.fuse}, {disk(kept.bytes)}, keeps {kept.kept}"
    return {"folder": str(made), "rank": rank, "fuse": kept.fuse, "retained": kept.retained, "detail": detail}


def _files(folder: Path) -> list[str]:
    """The files in it but hidden ones and merged.json, by relative path."""
    paths = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path.as_posix() for path in paths if path.name[0] != "." and path != Path("merged.json")]


def _refuse_own(folder: Path) -> None:
    """Refuse to replace what was not made by fusing, or was changed since; earlier versions wrote no digests.

    Raises:
        FuseError: there is such a file.
    """
    described = read_json(folder / "merged.json")
    if not isinstance(described, dict):
        described = {"files": {}}
    for name in _files(folder) if "files" in described else ():
        if described["files"].get(name) != digest(folder / name):
            problem = "was not made by fusing these adapters, or was changed since, and would be replaced"
            raise FuseError(problem, "move it away", path=folder / name)
