"""Base and all methods on one recipe: the same problems, the same evaluation, several seeds.

    compare/METHOD/seed-S/      a run directory; what several methods need alike is made once and copied
    compare/compare.json, compare.md, BENCHMARK.svg

Each cell is a run of its own and is continued like one. What a cell takes over from another one (solutions that were
sampled with the same settings, the base model's answers) keeps its cost in the ledger.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upft_mlx.digests import digest
from upft_mlx.distributed.seam import leads
from upft_mlx.errors import RecipeError, RowsError
from upft_mlx.evaluation.evaluate import scores_of
from upft_mlx.evaluation.summary import rounded_grades
from upft_mlx.events import Note, Observer, Variant, ignore
from upft_mlx.fingerprints import definite
from upft_mlx.job import Job
from upft_mlx.models.find import find_model
from upft_mlx.pipeline import do, learn, opened, prepare, refuse_changed, report, take_over
from upft_mlx.quantities import duration
from upft_mlx.recipe.cells import BASE, recipe_for_cell
from upft_mlx.recipe.schema import Recipe
from upft_mlx.recipe.studies import BEST_OF_PREFIX
from upft_mlx.rows import read_json, write_atomically, write_json
from upft_mlx.rundir import RunDir, fingerprint, versions
from upft_mlx.stages import LEARNING
from upft_mlx.studies.best_of_prefix import measure as best_of_prefix
from upft_mlx.studies.method_table import Cell, Comparison, figure, markdown, summarize

STAGES = ("generate", "build", "train", "evaluate")
"""The stages of a cell; base runs only the last one."""


def compare(recipe: Recipe, run_dir: str | Path, notify: Observer = ignore) -> Comparison:
    """Run what is missing and summarise.

    Raises:
        RecipeError: the recipe has no benchmark to compare on.
        UpftError: one of its kinds; progress is saved.
    """
    if not recipe.evaluate.benchmarks:
        raise RecipeError("empty", "a comparison needs something to measure", field="evaluate.benchmarks")
    root = Path(run_dir) / "compare"
    made = [path.parent for path in sorted(root.glob("*/seed-*/recipe.json"))]
    recipe = definite(recipe, find_model(recipe), RunDir(made[0] if made else root))  # one day for all cells
    plan = [(method, seed) for seed in seeds(recipe) for method in (BASE, *recipe.compare.methods)]
    recipes = {cell: recipe_for_cell(recipe, *cell) for cell in plan}  # all are checked before the first one runs
    cells, spent = [], dict[str, list[float]]()
    for number, (method, seed) in enumerate(plan, start=1):
        left = seconds_left(spent, [name for name, _ in plan[number - 1 :]])
        told = "" if left is None else f"; about {duration(left)} left"
        notify(Note(f"{number} of {len(plan)}: {method}, seed {seed}{told}"))
        folder, begin = root / method.replace(":", "-") / f"seed-{seed}", time.monotonic()
        donors = [RunDir(path) for path in sorted(root.glob("*/seed-*")) if path != folder]
        cells.append(run_cell(recipes[method, seed], method, folder, donors, notify))
        spent.setdefault(method, []).append(time.monotonic() - begin)
    machine = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
    bases = [RunDir(path) for path in sorted((root / BASE).glob("seed-*"))]
    rounding = {label: rounded_grades(label, bases) for label in cells[0].scores}
    found = Comparison(
        **vars(summarize(cells, rounding)),
        recipe=recipe.dump(),
        versions=versions(),
        machine=machine,
        rounding=rounding,
    )
    if not leads():
        return found
    keep_aside(root, "compare", "recipe", found.recipe)
    write_json(root / "compare.json", found.dump())
    write_atomically(root / "compare.md", f"# {recipe.name}: methods side by side\n\n{markdown(found, rounding)}")
    for name in found.benchmarks:
        write_atomically(root / f"{name}.svg", figure(found, name))
    return found


def seconds_left(spent: Mapping[str, Sequence[float]], methods: Sequence[str]) -> float | None:
    """About how long the cells of these methods take, by those that ran; None while only base has.

    A cell that was done already takes next to no time and says nothing of others: the longest one of a method counts,
    and for a method that has not run yet the mean of the others.
    """
    longest = {method: max(seconds) for method, seconds in spent.items()}
    known = [seconds for method, seconds in longest.items() if method != BASE]
    if not known:
        return None
    return sum(longest.get(method, sum(known) / len(known)) for method in methods)


def keep_aside(root: Path, stem: str, key: str, made_of: Any) -> None:
    """Move the results of another study aside, whose STEM.json has another value at `key`; its cells keep their own."""
    before: Any
    try:
        before = read_json(root / f"{stem}.json")
    except RowsError:
        before = digest(root / f"{stem}.json")
    of: Any = before.get(key) if isinstance(before, dict) else before  # somebody's own file may hold anything
    if of == made_of:
        return
    kept = root / ".kept" / fingerprint(of)
    for path in [*root.glob("*.svg"), root / f"{stem}.md", root / f"{stem}.json"]:  # this last: it says what to move
        if path.is_file():
            kept.mkdir(parents=True, exist_ok=True)
            path.replace(kept / path.name)


def seeds(recipe: Recipe) -> range:
    """One per run of a method."""
    return range(recipe.seed, recipe.seed + recipe.compare.seeds)


def run_cell(
    recipe: Recipe, method: str, folder: Path, donors: Sequence[RunDir] = (), notify: Observer = ignore
) -> Cell:
    """Run what is missing of one cell.

    Args:
        recipe: of the cell, with its seed.
        method: its name in the results; `base` is evaluated as it is.
        folder: its run directory.
        donors: runs to take over from what was made from the same inputs.
        notify: receives progress events.
    """
    job = prepare(recipe, folder, notify)
    job.donors = donors
    if method.partition(":")[0] == BEST_OF_PREFIX:  # prefixes are picked at test time, and nothing is trained
        with opened(job):
            measured = {part.entry.label: best_of_prefix(job, part) for part in job.sets}
        scores = {name: of for name, (of, _) in measured.items()}
        return Cell(method, job.recipe.seed, scores, sum(tokens for _, tokens in measured.values()), 0, 0.0, 0)
    with opened(job):
        refuse_changed(job)
        if method != BASE:
            learn(job)
            for donor in donors:
                take_over(job, donor)
        for stage in STAGES if method != BASE else STAGES[-1:]:
            do(job, stage)
        report(job)
    return _result(job, method)


def _result(job: Job, method: str) -> Cell:
    learning = LEARNING if job.recipe.uses_answers else ()
    stages = [entry for name in (*learning, *STAGES[:-1]) if (entry := job.run.entry(name)) is not None]
    variants: tuple[Variant, ...] = ("base",) if method == BASE else ("base", "tuned")
    base, *tuned = (
        {part.entry.label: scores_of(part.entry, job.run.rows_of(part.entry.label, variant)) for part in job.sets}
        for variant in variants
    )
    return Cell(
        method=method,
        seed=job.recipe.seed,
        scores=tuned[0] if tuned else base,
        tokens_sampled=sum(entry.tokens_sampled for entry in stages),
        tokens_trained=sum(entry.tokens_trained for entry in stages),
        seconds=sum(entry.seconds for entry in stages),
        peak_memory_bytes=max((entry.peak_memory_bytes for entry in stages), default=0),
        base=base,
    )
