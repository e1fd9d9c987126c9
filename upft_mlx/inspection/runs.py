"""The runs of a folder side by side: when each was made, what it says, and where their recipes differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from upft_mlx.errors import RunDirError, UpftError
from upft_mlx.escape import one_line, to_json
from upft_mlx.evaluation.benchmark_result import load_results
from upft_mlx.inspection.browse import current_stages, recipe_of, refuse_changed
from upft_mlx.recipe.evaluate import Benchmark
from upft_mlx.results.report import headline
from upft_mlx.rows import read_json
from upft_mlx.rundir import RunDir

_NOT_SHOWN = ("name", "prompt.date")
"""Fields that differ without meaning anything."""
_DEFAULTS = {name: field.get_default(call_default_factory=True) for name, field in Benchmark.model_fields.items()}


def list_runs(folder: Path) -> list[dict[str, Any]]:
    """The runs below a folder, the newest first.

    Returns:
        Of each `run` (its folder), `when` (local time, to the minute, of its last change), `model`, `method`, `stages`
        (those that are done and belong together), `verdict` (one line), `benchmarks` (delta, ci95 and p_value of each
        that was compared), `differs` (its values of the recipe fields in which it differs from most of the others) and
        `error` (why it cannot be read; None).

    Raises:
        RunDirError: there is no run.
    """
    runs = [RunDir(path.parent) for path in sorted(folder.glob("*/recipe.json"))]
    if (folder / "recipe.json").is_file():
        runs.append(RunDir(folder))
    if not runs:
        raise RunDirError(f"{folder}: no runs here", "`upft demo` makes one; or name the folder that holds your runs")
    found = [_run(run) for run in runs]
    found.sort(key=lambda facts: facts["when"], reverse=True)
    usual = _usual([facts["fields"] for facts in reversed(found) if facts["fields"]])
    for facts in found:
        fields = facts.pop("fields")
        facts["differs"] = {name: value for name, value in fields.items() if value != usual.get(name)}
    return found


def _run(run: RunDir) -> dict[str, Any]:
    stamp = max(path.stat().st_mtime for path in (run.recipe, run.ledger) if path.exists())
    when = datetime.fromtimestamp(stamp).isoformat(sep=" ", timespec="minutes")
    found: dict[str, Any] = {"run": str(run.root), "when": when, "model": None, "method": None, "stages": []}
    try:
        recipe, stages = recipe_of(run), current_stages(run)
        benchmarks = {}
        if "evaluate" in stages:
            refuse_changed(run, "evaluate", "evaluation/summary.json")
            benchmarks = load_results(read_json(run.summary)["benchmarks"])
    except UpftError as error:
        return {**found, "verdict": "", "benchmarks": {}, "fields": {}, "error": one_line(str(error))}
    paired = {name: result.paired for name, result in benchmarks.items() if result.paired}
    keys = ("delta", "ci95", "p_value")
    return {
        **found,
        "model": recipe.model,
        "method": recipe.method,
        "stages": stages,
        "verdict": headline(benchmarks),
        "benchmarks": {name: {key: getattr(of, key) for key in keys} for name, of in paired.items()},
        "fields": dict(_flat(recipe.dump())),
        "error": None,
    }


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """The fields with dotted names; a value as JSON, a text as it is, an entry of a list without its defaults."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        elif f"{before}{name}" not in _NOT_SHOWN:
            if isinstance(value, list):
                value = [_stated(item) if isinstance(item, dict) else item for item in value]
            yield f"{before}{name}", value if isinstance(value, str) else to_json(value, indent=None)


def _stated(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of `evaluate.benchmarks` without the fields that have their defaults."""
    return {name: value for name, value in entry.items() if name not in _DEFAULTS or value != _DEFAULTS[name]}


def _usual(runs: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The value of each field that most runs have; the oldest run's where several are as frequent."""
    usual = {}
    for name in dict.fromkeys(name for fields in runs for name in fields):
        values = [fields[name] for fields in runs if name in fields]
        usual[name] = max(values, key=values.count)  # the first of the most frequent ones
    return usual
