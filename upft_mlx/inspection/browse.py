"""A run that is there, looked at again: its report, its flips, its rows, from the files in its directory."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from upft_mlx.data.benchmarks import BenchmarkSpec, load_benchmark, resolve
from upft_mlx.data.problems import Problem
from upft_mlx.errors import RunDirError, UpftError
from upft_mlx.escape import quoted
from upft_mlx.evaluation.evaluate import WITHHELD, graded_again
from upft_mlx.evaluation.summary import VARIANTS, flips
from upft_mlx.events import Variant
from upft_mlx.grade.correct import VERSION
from upft_mlx.recipe.fields import SIZES
from upft_mlx.recipe.load import load_recipe
from upft_mlx.recipe.override import with_rule
from upft_mlx.recipe.schema import Recipe
from upft_mlx.results.facts import RunFacts, Seen
from upft_mlx.results.report import collect
from upft_mlx.rows import EvaluationRow, read_json, read_rows
from upft_mlx.rundir import RunDir, changed, missing
from upft_mlx.stages import STAGES, in_run
from upft_mlx.versions import made_from


def find_run(name: str) -> RunDir:
    """A run by its folder, by its name in `runs/`, or by the recipe file that made it.

    Raises:
        RecipeError: not a recipe file.
        RunDirError: there is no such run; names the existing ones.
    """
    for path in (Path(name), Path("runs") / name):
        if (path / "recipe.json").is_file():
            return RunDir(path)
    if Path(name).is_file():
        run = RunDir(Path("runs") / load_recipe(name).name)
        if run.recipe.is_file():
            return run
        remedy = f"`upft run {shlex.quote(name)}` makes it (with --run-dir name that folder instead)"
        raise RunDirError(f"{run.root} is not there yet", remedy, path=name)
    there = sorted(path.parent.name for path in Path("runs").glob("*/recipe.json"))
    known = f"in runs/ there are {', '.join(there)}" if there else "there is no run in runs/ yet; `upft demo` makes one"
    raise RunDirError("not a run directory (no recipe.json in it)", known, path=name)


def find_runs(names: Sequence[str]) -> list[RunDir]:
    """Several runs, as `find_run` finds each.

    Raises:
        RecipeError, RunDirError: as `find_run`, or two names mean the same run.
    """
    found = [find_run(name) for name in names]
    alike = [sum(run.root.samefile(other.root) for other in found) for run in found]
    if twice := [name for name, count in zip(names, alike, strict=True) if count > 1]:
        raise RunDirError(f"{' and '.join(twice)} are the same run", "name each run once")
    return found


def recipe_of(run: RunDir) -> Recipe:
    """The recipe that a run was made with.

    Raises:
        RunDirError: recipe.json is damaged or of another version.
    """
    return _recipe(read_json(run.recipe), run)


def recipe_of_stage(run: RunDir, stage: str) -> Recipe:
    """The recipe that a stage ran with; recipe.json if an earlier version did not record it.

    Raises:
        RunDirError: it is damaged or of another version.
    """
    entry = run.entry(stage)
    return recipe_of(run) if entry is None or entry.recipe is None else _recipe(entry.recipe, run)


def _recipe(data: Any, run: RunDir) -> Recipe:
    try:
        return Recipe.model_validate({k: v for k, v in data.items() if k not in ("versions", "hashes")})
    except (ValidationError, AttributeError):
        raise RunDirError(
            "not a recipe of this version", "run the recipe again to write it anew", path=run.recipe
        ) from None


def settled_by(recipe: Recipe, run: RunDir) -> Recipe:
    """The recipe with the run's numbers and rule where it says `auto`, and its date; as it is where no run is yet.

    Raises:
        RunDirError: the run's recipe.json is damaged or of another version.
    """
    choice = read_json(run.choice / "choice.json") if recipe.prefix.selection == "auto" else None
    if choice is not None and choice["selection"] is not None:
        recipe = with_rule(recipe, choice["selection"])
    data = recipe.dump()
    sizes = [name.split(".") for name in SIZES]
    chosen = [(section, field) for section, field in sizes if data[section][field] == "auto"]
    if not (chosen or data["prompt"]["date"] is None) or not run.recipe.is_file():
        return recipe
    made = recipe_of(run).dump()
    data["prompt"]["date"] = data["prompt"]["date"] or made["prompt"]["date"]
    for section, field in chosen:
        data[section][field] = made[section][field]
    return Recipe.model_validate(data)


def facts_of(run: RunDir) -> RunFacts:
    """What report.md says, from the stages that are done and belong together.

    Raises:
        RunDirError: one of the files that it says was changed after it was written.
    """
    refuse_changed(run, "train", "metrics.jsonl", "likelihood.json", "movement.json")
    refuse_changed(run, "evaluate", "evaluation/summary.json")
    refuse_changed(run, "fuse", "fidelity.json")
    recipe = recipe_of(run)
    facts = collect(recipe, run, current_stages(run, learns=recipe.uses_answers))
    if earlier_stages(run) or not run.report.exists():  # report.md and report.html show what such stages made
        del facts.files["report"]
    elif run.page.exists() and run.page.stat().st_mtime >= run.report.stat().st_mtime:  # else of an earlier result
        facts.files["page"] = str(run.page)
    return facts


def current_stages(run: RunDir, *, learns: bool = False) -> list[str]:
    """The stages of a run that are done and belong together; `learns`: see `stages.in_run`."""
    entries, earlier = run.entries(), earlier_stages(run)
    return [name for name in in_run(learns=learns) if name in entries and entries[name].done and name not in earlier]


def earlier_stages(run: RunDir) -> list[str]:
    """Finished stages that worked on what is no longer there: a stage before them has run again since.

    An evaluation in looks/ depends on stages of the run that it belongs to.
    """
    own, found, whole = run.entries(), list[str](), run_of(run)
    entries = {**(whole.entries() if whole else {}), **own}
    for stage in STAGES:
        for before, used in made_from(entries[stage]).items() if stage in entries else ():
            if before in found or before not in entries or entries[before].fingerprint != used:
                found.append(stage)
    return [stage for stage in dict.fromkeys(found) if stage in own]


def run_of(look: RunDir) -> RunDir | None:
    """The run that an evaluation in looks/ belongs to; None for a run itself."""
    for root in (look.root, look.root.absolute()):
        if root.parent.name == look.looks.name and (whole := RunDir(root.parent.parent)).ledger.exists():
            return whole
    return None


def refuse_changed(run: RunDir, stage: str, *names: str) -> None:
    """What was measured is shown as it was measured, or not at all.

    Raises:
        RunDirError: one of these files of the stage, or of all where none is named, was changed or is gone.
    """
    entry = run.entry(stage)
    if entry is None or not entry.done:
        return
    shown = {name: known for name, known in entry.outputs.items() if not names or name in names}
    entry = replace(entry, outputs=shown)
    for name in [*missing(entry, run.root), *changed(entry, run.root)]:
        raise RunDirError(
            f"{'was changed' if (run.root / name).is_file() else 'is gone'} after `upft {stage}` wrote it",
            f"`{run.command(stage)}` makes it again",
            path=run.root / name,
        )


def seen(run: RunDir, benchmarks: Sequence[str] = (), *, only_flips: bool = False) -> list[Seen]:
    """Problems as both variants answered them, in the order of the benchmarks and their problems.

    Args:
        run: the run.
        benchmarks: labels; empty: all.
        only_flips: only problems where base and tuned disagree.

    Raises:
        RunDirError: no such benchmark, nothing has been measured (for flips: base or tuned), or the rows were changed
            since.
    """
    refuse_changed(run, "evaluate")
    seed, found = recipe_of(run).seed, list[Seen]()
    for entry in _entries(run, benchmarks, VARIANTS if only_flips else ()):
        try:
            problems = {problem.id: problem for problem in load_benchmark(entry, seed)}
        except UpftError:
            problems = {}  # the rows are shown without the questions
        if entry.private:
            problems = {name: replace(problem, question=WITHHELD) for name, problem in problems.items()}
        if only_flips:
            found += [_seen(entry.label, problems, *pair) for pair in flips(entry.label, run)]
            continue
        variants = []
        for variant in VARIANTS:
            path = run.rows_of(entry.label, variant)
            rows = read_rows(path, EvaluationRow) if path.exists() else ()
            variants.append({(row.problem_id, row.sample): row for row in rows})
        base, tuned = variants
        found += [_seen(entry.label, problems, base.get(at), tuned.get(at)) for at in {**base, **tuned}]
    return found


def _entries(run: RunDir, benchmarks: Sequence[str], needed: Sequence[Variant] = ()) -> list[BenchmarkSpec]:
    """The benchmarks of these labels, all of the run where there are none.

    Raises:
        RunDirError: no such benchmark, or none has rows, those of the variants that are `needed` if any are.
    """
    entries = {entry.label: entry for entry in resolve(recipe_of(run).evaluate)}
    if unknown := [label for label in benchmarks if label not in entries]:
        raise RunDirError(
            f"no benchmark {quoted(unknown[0])}", f"this run has {', '.join(entries) or 'none'}", path=run.root
        )
    found = [entries[label] for label in benchmarks or entries]
    there = [{variant for variant in VARIANTS if run.rows_of(entry.label, variant).exists()} for entry in found]
    if not any(variants and variants >= set(needed) for variants in there):
        what = f"{' and '.join(needed)} have not both" if needed and any(there) else "nothing has"
        raise RunDirError(f"{what} been measured yet", f"run `{run.command('evaluate')}`", path=run.root)
    return found


def of_problem(items: Sequence[Seen], problem_id: str) -> list[Seen]:
    """Those of one problem.

    Raises:
        RunDirError: there is none; suggests the nearest ids.
    """
    found = [item for item in items if item.problem_id == problem_id]
    if not found:
        near = difflib.get_close_matches(problem_id, {item.problem_id for item in items}, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else "`upft show RUN --rows` lists them"
        raise RunDirError(f"no problem {quoted(problem_id)} among the rows", hint)
    return found


def regraded(run: RunDir, benchmarks: Sequence[str] = ()) -> dict[str, Any]:
    """What changes when the rows on the disk are graded again by this version's grader; nothing is written.

    Args:
        run: the run.
        benchmarks: labels; empty: all.

    Returns:
        `grader` (this version's) and, by benchmark and variant, `graders` (those of the rows), `rows`, `accuracy`, the
        new one in `regraded`, and in `changed` the rows with `answer_now` and `correct_now`. A private set, whose
        completions are not stored, is `withheld`.

    Raises:
        RunDirError: no such benchmark, or nothing has been measured.
    """
    found: dict[str, Any] = {"grader": VERSION, "benchmarks": {}, "withheld": []}
    for entry in _entries(run, benchmarks):
        variants = {variant: path for variant in VARIANTS if (path := run.rows_of(entry.label, variant)).exists()}
        if entry.private:
            found["withheld"] += [entry.label] if variants else []
            continue
        of = found["benchmarks"][entry.label] = {}
        for variant, path in variants.items():
            rows = list(read_rows(path, EvaluationRow))
            again = graded_again(entry, rows)
            of[variant] = {
                "graders": sorted({row.grader for row in rows}),
                "rows": len(rows),
                "accuracy": sum(row.correct for row in rows) / max(1, len(rows)),
                "regraded": sum(now.correct for now in again) / max(1, len(rows)),
                "changed": [
                    {**asdict(row), "answer_now": now.answer, "correct_now": now.correct}
                    for row, now in zip(rows, again, strict=True)
                    if row.correct != now.correct
                ],
            }
    return found


def _seen(label: str, problems: Mapping[str, Problem], base: EvaluationRow | None, tuned: EvaluationRow | None) -> Seen:
    row = base or tuned
    assert row is not None
    known = problems.get(row.problem_id)
    question, level, subject = (known.question, known.level, known.subject) if known else (None, None, None)
    return Seen(label, row.problem_id, row.sample, question, level, subject, row.gold, base, tuned)
