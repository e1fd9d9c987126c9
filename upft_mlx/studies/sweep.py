"""A grid of settings on one recipe: chosen on a development part of a benchmark, reported once on the rest.

    sweep/SETTINGS/               a run directory; what several settings need alike is made once and copied
    sweep/SETTINGS/looks/rest/    the chosen one on what was not chosen on
    sweep/sweep.json, sweep.md, sweep.svg

Each setting is a run of its own and is continued like one. The best of several settings looks better than it is where
it was chosen, so what is reported was measured on other problems.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from upft_mlx.data.benchmarks import resolve
from upft_mlx.distributed.seam import leads
from upft_mlx.errors import RecipeError
from upft_mlx.escape import one_line, quoted
from upft_mlx.evaluation.summary import rounded_grades
from upft_mlx.events import Note, Observer, ignore
from upft_mlx.fingerprints import definite
from upft_mlx.models.find import find_model
from upft_mlx.pipeline import run_stage
from upft_mlx.recipe.grid import Grid, Settings, all_valid, combinations, in_words
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import write_atomically, write_json
from upft_mlx.rundir import RunDir, versions
from upft_mlx.studies.compare import keep_aside, run_cell
from upft_mlx.studies.method_table import COSTS
from upft_mlx.studies.sweep_table import Cell, Sweep, best, figure, markdown, tried

LOOK = "rest"


def sweep(
    recipe: Recipe, grid: Grid, run_dir: str | Path, notify: Observer = ignore, *, on: str | None = None
) -> Sweep:
    """Run what is missing, choose on the development part, and measure the chosen setting on the rest.

    Args:
        recipe: what all settings have in common.
        grid: values by field.
        run_dir: of the recipe; the sweep is in its folder sweep/.
        notify: receives progress events.
        on: the label of the benchmark to choose on; None: the first.

    Raises:
        RecipeError: the grid is wrong, or there is no such benchmark.
        UpftError: one of its kinds; progress is saved.
    """
    label = _benchmark(recipe, on)
    settings, root = combinations(grid), Path(run_dir) / "sweep"
    development, rest = parts(recipe, label)
    all_valid(development, settings)  # all are checked before the first one runs
    made = [path.parent for path in sorted(root.glob("*/recipe.json"))]
    development = definite(development, find_model(development), RunDir(made[0] if made else root))  # one day for all
    recipes = all_valid(development, settings)
    cells = []
    for number, (one, its) in enumerate(zip(settings, recipes, strict=True), start=1):
        notify(Note(f"{number} of {len(settings)}: {in_words(one)}"))
        folder = root / folder_name(one)
        donors = [RunDir(path.parent) for path in sorted(root.glob("*/recipe.json")) if path.parent != folder]
        cells.append(_cell(one, its, label, folder, donors, notify))
    chosen, rounding = best(cells), rounded_grades(label, [RunDir(cell.run) for cell in cells])
    samples = next(spec.samples for spec in resolve(recipe.evaluate) if spec.label == label)
    (its,) = all_valid(definite(rest, find_model(rest), RunDir(chosen.run)), [chosen.settings])
    notify(Note(f"chosen: {in_words(chosen.settings)}; now on the rest"))
    found = Sweep(
        benchmark=label,
        problems=len(chosen.tuned),
        rounding=rounding,
        tried=tried(cells, samples, rounding or 0.0),
        chosen=chosen.settings,
        run=chosen.run,
        rest=run_stage(its, chosen.run, "evaluate", notify, look=LOOK).benchmarks,
        reported=len(list(root.glob(f"*/looks/{LOOK}/evaluation/summary.json"))),
    )
    if leads():
        _write(found, recipe, root)
    return found


def _benchmark(recipe: Recipe, on: str | None) -> str:
    labels = [spec.label for spec in resolve(recipe.evaluate)]
    if not labels:
        raise RecipeError("empty", "a sweep needs something to choose on", field="evaluate.benchmarks")
    if on is not None and on not in labels:
        raise RecipeError(f"no benchmark {quoted(on)}", f"the recipe has {', '.join(labels)}", field="--on")
    return labels[0] if on is None else on


def parts(recipe: Recipe, label: str) -> tuple[Recipe, Recipe]:
    """The recipe with only the part to choose on of this benchmark, and the one with what is left to report on.

    A benchmark from another file or dataset is taken as it is; one from the same loses what was chosen on. Where the
    recipe itself gives the benchmark a part, that one is reported on only if there is no other.
    """
    data = recipe.dump()
    specs = resolve(recipe.evaluate)
    entries = dict(zip([spec.label for spec in specs], data["evaluate"]["benchmarks"], strict=True))
    sources = {s.label: (s.builtin, s.path, s.dataset, s.config, s.split) for s in specs}  # gpqa-freeform has gpqa's
    chosen_on = entries[label]
    other = "development" if chosen_on["part"] == "rest" else "rest"
    left = [
        {**entry, "part": other} if sources[name] == sources[label] else entry
        for name, entry in entries.items()
        if chosen_on["part"] is None or name != label or len(entries) == 1
    ]
    part = {**chosen_on, "part": chosen_on["part"] or "development"}
    with_parts = [
        {**data, "evaluate": {**data["evaluate"], "benchmarks": some, "until": "end"}} for some in ([part], left)
    ]
    development, rest = map(Recipe.model_validate, with_parts)
    return development, rest


def folder_name(settings: Settings) -> str:
    """Readable, and another one for other settings."""
    words = in_words(settings)
    name = re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-.")[:60]
    return f"{name}-{hashlib.sha256(words.encode()).hexdigest()[:6]}"


def _cell(
    settings: dict[str, Any], recipe: Recipe, label: str, folder: Path, donors: Sequence[RunDir], notify: Observer
) -> Cell:
    found = run_cell(recipe, one_line(in_words(settings)), folder, donors, notify)
    return Cell(
        settings=settings,
        run=str(folder),
        base=found.base[label],
        tuned=found.scores[label],
        **{name: getattr(found, name) for name in COSTS},
    )


def _write(found: Sweep, recipe: Recipe, root: Path) -> None:
    of = {"recipe": recipe.dump(), "on": found.benchmark, "settings": [one.settings for one in found.tried]}
    keep_aside(root, "sweep", "of", of)
    write_json(root / "sweep.json", {"of": of, "versions": versions(), **found.dump()})
    write_atomically(root / "sweep.md", f"# {recipe.name}: settings side by side\n\n{markdown(found)}")
    write_atomically(root / "sweep.svg", figure(found))
