"""`upft demo`: forecast from a few answers, train by the rule that it picks, and measure; and the paper's rule."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upft_mlx.events import Note, Observer, ignore
from upft_mlx.pipeline import run
from upft_mlx.recipe.schema import Recipe
from upft_mlx.results.facts import RunReport
from upft_mlx.rows import read_json
from upft_mlx.rundir import RunDir
from upft_mlx.studies.compare import run_cell

CAVEAT = (
    "This is one toy world. In another, where the model mostly begins carelessly, picking by consensus lost 15.5 "
    "points, and the forecast had said so (-11.2). Forecast with your own model before you train: upft forecast RECIPE"
)
"""What the demo does not show; the figures are those of docs/measured/forecast.md."""


@dataclass(frozen=True)
class Demo:
    """What was forecast, and what it and the paper's rule gave."""

    chosen: str
    """The rule that the forecast picked."""
    forecast: str
    """The forecast in words."""
    greedy_base: float
    """How often base is right greedily on the forecast's problems, a share."""
    measured: dict[str, dict[str, Any]]
    """By benchmark: temperature, samples, and tuned minus base (`benchmark_result.Paired`) of the rule chosen."""
    paper: dict[str, dict[str, Any]]
    """The same of the paper's rule."""
    caveat: str = CAVEAT
    """What it does not show."""


def run_demo(recipe: Recipe, run_dir: Path, notify: Observer = ignore) -> tuple[RunReport, Demo]:
    """Run the recipe, then the paper's rule on the same problems into `paper/`.

    Raises:
        UpftError: one of its kinds; what was done is kept.
    """
    facts = run(recipe, run_dir, notify)
    choice = read_json(RunDir(run_dir).choice / "choice.json")
    notify(Note("now the paper's own rule, the first sample and nothing checked, on the same problems"))
    data = recipe.model_dump()
    data["prefix"] |= {"selection": "first", "structure": "unchecked"}
    data["generate"]["samples"] = 1
    paper = run_dir / "paper"
    run_cell(Recipe.model_validate(data), "upft", paper, [RunDir(run_dir)], notify)
    return facts, Demo(
        chosen=choice["selection"],
        forecast=choice["text"],
        greedy_base=choice["forecast"]["greedy_base"]["mean"],
        measured=_paired(RunDir(run_dir)),
        paper=_paired(RunDir(paper)),
    )


def _paired(run: RunDir) -> dict[str, dict[str, Any]]:
    """By benchmark: temperature, samples, and tuned minus base with its interval."""
    found = read_json(run.summary)["benchmarks"]
    return {
        name: {**result["paired"], "temperature": result["base"]["temperature"], "samples": result["base"]["samples"]}
        for name, result in found.items()
    }
