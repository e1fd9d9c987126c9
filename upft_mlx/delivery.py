"""What leaves a run: exports for other tools, and the upload to the Hub."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from upft_mlx.card import base_of
from upft_mlx.events import Observer, ignore
from upft_mlx.exported import deliver, earlier_export
from upft_mlx.models import load
from upft_mlx.pipeline import Pipeline
from upft_mlx.publish import listing, refuse_unknown, require_repo
from upft_mlx.publish import push as upload
from upft_mlx.recipe import Recipe
from upft_mlx.rundir import remove


def export(
    recipe: Recipe, run_dir: str | Path, form: str, to: Path | None, dtype: str = "bf16", notify: Observer = ignore
) -> dict[str, Any]:
    """Write the adapter for PEFT, or the fused model without quantization.

    Args:
        recipe: the run's.
        run_dir: of the run.
        form: `peft` or `dequantized`.
        to: the folder; None: RUN/export/FORM.
        dtype: of a dequantized model, `bf16` or `fp16`.
        notify: receives progress events.

    Raises:
        RunDirError: there is no current adapter.
        ExportError: the folder holds something that is not an earlier export, or cannot be written.
        UpftError: one of its kinds.
    """
    from upft_mlx.export import export_dequantized, export_peft

    pipeline = Pipeline(recipe, run_dir, notify)
    folder = to or pipeline.run.root / "export" / form
    earlier = earlier_export(folder)
    with pipeline.opened():
        pipeline.require("export")
        with _beside(pipeline.run.work / f"export-{form}") as beside:
            if form == "peft":
                base = base_of(recipe, pipeline.model_path).hub_id or str(pipeline.model_path)
                detail = export_peft(pipeline.run, pipeline.model_path, base, beside)
            else:
                loaded = load(pipeline.model_path, quantize=recipe.quantize, trust_remote_code=recipe.trust_remote_code)
                asked = pipeline.questions
                detail = export_dequantized(recipe, loaded, pipeline.run, beside, dtype, notify, asked)
            deliver(beside, folder, earlier)
    return {"format": form, "folder": str(folder), "detail": detail}


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """Where an export is made, a folder of the run that is gone afterwards, however it ends."""
    remove(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            folder.parent.rmdir()


def push(recipe: Recipe, run_dir: str | Path, notify: Observer = ignore, *, dry_run: bool = False) -> dict[str, Any]:
    """Upload the result to `publish.repo`.

    Returns:
        The repository and the files that went up or, with `dry_run`, would.

    Raises:
        RecipeError: `publish.repo` is missing.
        RunDirError: there is no current result.
        PublishError: the Hub refuses, or something must not be published.
    """
    if not dry_run:
        require_repo(recipe.publish)
    pipeline = Pipeline(recipe, run_dir, notify)
    with pipeline.opened():
        pipeline.refuse_changed()
        pipeline.require("push")
        pipeline.report()  # and with it the card, from what is measured by now
        refuse_unknown(pipeline.result, pipeline.known_files())
        found = listing(recipe.publish, pipeline.result)
        return found if dry_run else {**found, "url": upload(recipe.publish, pipeline.result, notify)}
