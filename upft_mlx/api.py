"""The verbs of the command line as functions: a recipe in, the facts of the run out.

    from upft_mlx import load_recipe, run
    facts = run(load_recipe("quickstart"))

`analyze`, `compare`, `forecast`, `plan`, `preview` and `sweep` return a result with fields, and its `dump()` is what
the command prints with `--json`; the others return that itself. `notify` is called with what happens (`events.py`);
`print` will do. The command line says what goes wrong in one message; here it is raised (`errors.py`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from upft_mlx import pipeline
from upft_mlx.errors import ExportError
from upft_mlx.events import Observer, Reply, Variant, ignore
from upft_mlx.forecasting.estimate import Forecast
from upft_mlx.fusing.exported import deliver, earlier_export
from upft_mlx.hub.card import base_of
from upft_mlx.hub.upload import listing, refuse_unknown, require_repo
from upft_mlx.hub.upload import push as upload
from upft_mlx.inspection import preview as inspection_preview
from upft_mlx.inspection.ask import Conversation, open_asker
from upft_mlx.inspection.preview import EXAMPLES, Preview
from upft_mlx.machine import requirements
from upft_mlx.models.files import TEMPLATE, own_template
from upft_mlx.recipe.grid import Grid
from upft_mlx.recipe.schema import Recipe
from upft_mlx.results.plan import Plan
from upft_mlx.rows import write_atomically
from upft_mlx.rundir import RunDir, look_name, remove
from upft_mlx.studies import compare as studies_compare
from upft_mlx.studies import sweep as studies_sweep
from upft_mlx.studies.analyze import run_analysis
from upft_mlx.studies.fuse_others import fuse_others
from upft_mlx.studies.method_table import Comparison
from upft_mlx.studies.prefix_statistics import Analysis
from upft_mlx.studies.sweep_table import Sweep

Facts = dict[str, Any]
"""Plain values, ready for `json.dumps`."""


def run(recipe: Recipe, run_dir: str | Path | None = None, notify: Observer = ignore) -> Facts:
    """All stages: problems to a fused, measured model. Repeats nothing that is done, continues what was interrupted.

    Args:
        recipe: the recipe.
        run_dir: where the run is kept; None: runs/NAME.
        notify: receives progress events.

    Returns:
        The facts of the run, as in report.md.

    Raises:
        UpftError: one of its kinds; the run directory keeps what was done.
    """
    _begin()
    return pipeline.run(recipe, _folder(recipe, run_dir), notify).dump()


def plan(
    recipe: Recipe,
    run_dir: str | Path | None = None,
    notify: Observer = ignore,
    *,
    mac: float | None = None,
    calibrates: bool = True,
) -> Plan:
    """What the recipe will cost: tokens, memory, disk and time.

    Args:
        recipe: the recipe.
        run_dir: solutions that are there already say how long solutions are; None: runs/NAME.
        notify: receives a note when the calibration begins.
        mac: plan for a Mac with this many GB of memory instead of this machine.
        calibrates: whether the model may be loaded, about ten seconds, where this machine's speed is not known yet.

    Returns:
        Tokens, peak memory (bytes), disk (bytes) and, where this machine's speed is known, time (seconds); `dump()` is
        what `upft plan --json` prints.

    Raises:
        UpftError: one of its kinds, as a run would raise it.
    """
    _begin()
    return pipeline.plan_recipe(recipe, _folder(recipe, run_dir), notify, mac=mac, calibrates=calibrates)


def forecast(recipe: Recipe, run_dir: str | Path | None = None, notify: Observer = ignore) -> Forecast:
    """What each rule that picks prefixes would change, before any training, from the problems that have answers.

    Args:
        recipe: the recipe; `forecast` says how many problems and samples are used.
        run_dir: where it is kept; None: runs/NAME. Continues what was interrupted.
        notify: receives progress events.

    Returns:
        For each rule and prefix length the forecast change of sampled accuracy (-1 to 1) with its 95 % interval, and
        advice.

    Raises:
        ProblemsError: fewer than 8 problems have an answer.
        UpftError: another of its kinds.
    """
    _begin()
    return pipeline.run_forecast(recipe, _folder(recipe, run_dir), notify)


def sweep(
    recipe: Recipe,
    grid: Grid,
    run_dir: str | Path | None = None,
    notify: Observer = ignore,
    *,
    on: str | None = None,
) -> Sweep:
    """Train every combination of settings, choose on a development part, and measure the chosen one on the rest.

    Args:
        recipe: what all combinations have in common.
        grid: values by field, `{"prefix.length": [8, 16]}`.
        run_dir: the sweep is in its folder sweep/; None: runs/NAME. Continues what was interrupted.
        notify: receives progress events.
        on: the label of the benchmark to choose on; None: the recipe's first.

    Raises:
        RecipeError: the grid is wrong, or there is no such benchmark.
        UpftError: another of its kinds; the runs keep what was done.
    """
    _begin()
    return studies_sweep.sweep(recipe, grid, _folder(recipe, run_dir), notify, on=on)


def analyze(recipe: Recipe, run_dir: str | Path | None = None, notify: Observer = ignore) -> Analysis:
    """How long a prefix the recipe's model and problems support; continues where it stopped. See `run`.

    Returns:
        By prefix length how alike samples begin and how often prefixes of right and wrong samples lead to a right
        answer, and a recommended length; `dump()` is the content of analysis.json.

    Raises:
        UpftError: one of its kinds; what was sampled is kept.
    """
    _begin()
    return run_analysis(recipe, _folder(recipe, run_dir), notify)


def compare(recipe: Recipe, run_dir: str | Path | None = None, notify: Observer = ignore) -> Comparison:
    """Base and the methods of the recipe's compare section over several seeds; continues where it stopped. See `run`.

    Returns:
        For each method its costs, and for each benchmark its accuracy and the difference to base with 95 % intervals;
        `dump()` is the content of compare.json.

    Raises:
        RecipeError: the recipe has no benchmark to compare on.
        UpftError: another of its kinds.
    """
    _begin()
    return studies_compare.compare(recipe, _folder(recipe, run_dir), notify)


def preview(
    recipe: Recipe,
    run_dir: str | Path | None = None,
    *,
    rows: int = EXAMPLES,
    problem: str | None = None,
    model: bool = False,
) -> Preview:
    """The exact prompts, some training rows token by token, and the rules; nothing is written.

    Args:
        recipe: the recipe.
        run_dir: its rows are shown where it has some; None: runs/NAME.
        rows: the largest number of training rows shown.
        problem: the id of the only one to show.
        model: load the model as well, and say how likely it finds the rows.

    Returns:
        The prompts and rows, with the text, supervision and weight of each token, and the rules in words; `dump()` is
        what `upft preview --json` prints.

    Raises:
        ProblemsError: there is no such problem, or it trains no row.
        UpftError: another of its kinds.
    """
    _begin()
    return inspection_preview.preview(recipe, _folder(recipe, run_dir), rows=rows, problem=problem, model=model)


def ask(
    recipe: Recipe,
    question: str,
    run_dir: str | Path | None = None,
    notify: Observer = ignore,
    *,
    adapter: str | Path | None = None,
    temperature: float = 0.0,
    max_tokens: int | None = None,
) -> dict[Variant, Reply]:
    """What base and, where there is an adapter, tuned answer to a question.

    Args:
        recipe: the recipe.
        question: asked as a problem of the recipe is.
        run_dir: whose adapter is used; None: runs/NAME.
        notify: receives the notes that `upft ask` prints, such as settings in which adapter and recipe differ.
        adapter: the folder of one to use instead.
        temperature: 0 is greedy.
        max_tokens: of an answer; None: `evaluate.max_tokens`.

    Raises:
        UpftError: one of its kinds.
    """
    _begin()
    run = RunDir(_folder(recipe, run_dir))
    given = None if adapter is None else Path(adapter)
    asker = open_asker(recipe, run, given, temperature, max_tokens, notify)
    return Conversation(asker, keep=False).ask(question)


def generate(recipe: Recipe, run_dir: str | Path | None = None, notify: Observer = ignore) -> Facts:
    """Sample the solutions that the recipe needs into solutions.jsonl; continues where it stopped. See `run`."""
    return _stage("generate", recipe, run_dir, notify)


def build(recipe: Recipe, run_dir: str | Path | None = None, notify: Observer = ignore) -> Facts:
    """Turn solutions.jsonl into the training and validation rows in dataset/. See `run`.

    Raises:
        RunDirError: there are no current solutions.
        UpftError: another of its kinds.
    """
    return _stage("build", recipe, run_dir, notify)


def train(recipe: Recipe, run_dir: str | Path | None = None, notify: Observer = ignore) -> Facts:
    """Train the LoRA adapter on dataset/; continues from the last checkpoint. See `run`.

    Raises:
        RunDirError: there is no current dataset.
        UpftError: another of its kinds.
    """
    return _stage("train", recipe, run_dir, notify)


def evaluate(
    recipe: Recipe,
    run_dir: str | Path | None = None,
    notify: Observer = ignore,
    *,
    adapter: str | Path | None = None,
) -> Facts:
    """Measure base and, once there is an adapter, tuned on the recipe's benchmarks. See `run`.

    Args:
        recipe: the recipe.
        run_dir: where the run is kept; None: runs/NAME.
        notify: receives progress events.
        adapter: the folder of one to measure instead of the run's own; what is found is kept apart, in
            the folder in looks/ that `upft evaluate RECIPE --adapter` uses.

    Raises:
        UpftError: one of its kinds.
    """
    foreign = None if adapter is None else Path(adapter)
    look = None if foreign is None else look_name(foreign)
    return _stage("evaluate", recipe, run_dir, notify, adapter=foreign, look=look)


def fuse(
    recipe: Recipe,
    run_dir: str | Path | None = None,
    notify: Observer = ignore,
    *,
    force: bool = False,
    adapters: Mapping[Path, float] | None = None,
) -> Facts:
    """Write the adapter into the weights: fused/, a folder that mlx-lm loads. See `run`.

    Args:
        recipe: the recipe.
        run_dir: where the run is kept; None: runs/NAME.
        notify: receives progress events.
        force: fuse even if less than `publish.min_retained` is kept.
        adapters: the folders of others, with the weight of each, to fuse instead into RUN/merged.

    Raises:
        RunDirError: there is no current adapter.
        FuseError: fusing would lose too much.
        UpftError: another of its kinds.
    """
    if not adapters:
        return _stage("fuse", recipe, run_dir, notify, force=force)
    _begin()
    return fuse_others(recipe, _folder(recipe, run_dir), adapters, notify, force=force)


def _stage(stage: str, recipe: Recipe, run_dir: str | Path | None, notify: Observer, **options: Any) -> Facts:
    _begin()
    return pipeline.run_stage(recipe, _folder(recipe, run_dir), stage, notify, **options).dump()


def _folder(recipe: Recipe, run_dir: str | Path | None) -> Path:
    """The run directory, as the command line chooses it."""
    return Path("runs") / recipe.name if run_dir is None else Path(run_dir)


def _begin() -> None:
    """As on the command line: not on a machine that cannot compute; no telemetry, unless the environment wants it."""
    requirements.check()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def export(
    recipe: Recipe, run_dir: str | Path, form: str, to: Path | None, dtype: str = "bf16", notify: Observer = ignore
) -> dict[str, Any]:
    """Write the adapter for PEFT or as GGUF, the fused model as GGUF, or the model without quantization.

    Args:
        recipe: the run's.
        run_dir: of the run.
        form: `peft`, `gguf`, `gguf-model` or `dequantized`.
        to: the folder; None: RUN/export/FORM.
        dtype: of a dequantized model, `bf16` or `fp16`.
        notify: receives progress events.

    Raises:
        RunDirError: there is no current adapter or, for `gguf-model`, no current fused model.
        ExportError: the folder holds something that is not an earlier export, or cannot be written.
        UpftError: one of its kinds.
    """
    from upft_mlx.fusing.export import export_dequantized, export_gguf, export_peft
    from upft_mlx.fusing.gguf_model import write_gguf

    job = pipeline.prepare(recipe, run_dir, notify)
    folder = to or job.run.root / "export" / form
    earlier = earlier_export(folder)
    with pipeline.opened(job):
        job.require("export", "fuse" if form == "gguf-model" else "train")
        if form == "gguf-model" and recipe.publish.fuse == "adapter":
            raise ExportError("is adapter: there is no fused model", "set it to auto", field="publish.fuse")
        with _beside(job.run.work / f"export-{form}") as beside:
            if form == "gguf-model":
                detail = write_gguf(job.run.fused, beside / f"{recipe.name}.gguf", recipe.name)
            elif form == "dequantized":
                detail = export_dequantized(recipe, job.load(), job.run, beside, dtype, notify, job.questions)
            else:
                base = base_of(recipe, job.model_path).hub_id or str(job.model_path)
                write = export_gguf if form == "gguf" else export_peft
                detail = write(job.run, job.model_path, base, beside)
                if own := recipe.prompt.chat_template:  # whoever puts the adapter on must ask as it was trained
                    write_atomically(beside / TEMPLATE, own_template(own))
            deliver(beside, folder, earlier)
    return {"format": form, "folder": str(folder), "detail": detail}


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """Where an export is made, a folder of the run that is gone afterwards, however it ends."""
    remove(folder)
    folder.mkdir(parents=True)
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
    job = pipeline.prepare(recipe, run_dir, notify)
    with pipeline.opened(job):
        pipeline.refuse_changed(job)
        job.require("push", "fuse")
        pipeline.report(job)  # and with it the card, from what is measured by now
        folder = pipeline.result(job)
        refuse_unknown(folder, pipeline.known_files(job))
        found = listing(recipe.publish, folder)
        return found if dry_run else {**found, "url": upload(recipe.publish, folder, notify)}
