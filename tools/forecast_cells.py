"""The units behind docs/measured/forecast.md: cells by rule and world, what they changed, and the page's data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from make_evidence import ROOT, WORLDS
from make_forecast_page import RATES, REAL_RATES, REAL_SEEDS, REPORT, change, chosen_rate, real_recipe

from upft_mlx.forecasting.estimate import Forecast, Mean, RuleForecast
from upft_mlx.recipe.schema import Recipe
from upft_mlx.studies.compare import run_cell

Units = Mapping[str, Any]
DATA = ROOT / "docs" / "assets" / "forecast.json"


COLDER = 0.42
"""A temperature of 0.6, of the samples that are trained on, times the 0.7 of the evaluation."""


def colder(units: Units, work: Path, model: Path, seed: int) -> dict[str, Any]:
    """A cell in whose `tuned` is the untrained model at a lower temperature."""
    data = real_recipe(model, work, seed, "first", REAL_RATES[0]).model_dump()
    (asked, _) = data["evaluate"]["benchmarks"]
    data["evaluate"]["benchmarks"] = [{**asked, "temperature": COLDER}]
    scores = run_cell(Recipe.model_validate(data), "base", work / "colder" / f"seed-{seed}").scores["report"]
    first = units[f"smollm2/first/{chosen_rate(units):g}/{seed}"]
    return {"base": {"report": first["base"]["report"]}, "tuned": {"report": list(scores.values())}}


def slim(units: Units) -> dict[str, Any]:
    """The units: scores of 0 and 1 as a text of digits, others as means, with the change that they gave."""

    def short(scores: Mapping[str, Any]) -> dict[str, Any]:
        return {name: _short(values) if isinstance(values, list) else values for name, values in scores.items()}

    found = {
        name: {**unit, "base": short(unit["base"]), "tuned": short(unit["tuned"])} if "tuned" in unit else unit
        for name, unit in units.items()
    }
    for world in WORLDS:
        for rule in ("probe", "auto", "prefix_confidence"):
            if any("tuned" in unit for unit in cells_of(units, world, rule)):
                told = {label: change_of(units, world, rule, label) for label in ("report", "report-greedy")}
                found[f"{world}/{rule}/change"] = {label: [v.mean, *v.ci95] for label, v in told.items()}
    return found


def _short(values: Sequence[float]) -> str | float:
    if {*values} <= {0, 1}:
        return "".join(str(int(value)) for value in values)
    return sum(values) / len(values)


def published() -> dict[str, Any]:
    """The units behind the page as it is: what `slim` gave, with digits as scores again."""
    found: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8"))
    for unit in found.values():
        for side in ("base", "tuned") if isinstance(unit, dict) and "tuned" in unit else ():
            unit[side] = {
                label: [float(digit) for digit in score] if isinstance(score, str) else score
                for label, score in unit[side].items()
            }
    return found


def change_of(units: Units, world: str, rule: str, label: str) -> Mean:
    """Tuned minus base over problems and seeds: computed, or as it was published."""
    cells = cells_of(units, world, rule)
    if all(isinstance(cell["tuned"][label], list) for cell in cells):
        return change(cells, label)
    mean, *interval = units[f"{world}/{rule}/change"][label]
    return Mean(mean, tuple(interval))


def rules_of(units: Units, world: str) -> dict[str, RuleForecast]:
    """The forecasts of a world at t = 8."""
    found = Forecast.load(units[f"{world}/forecast"])
    return {rule.selection: rule for rule in found.rules if rule.length == 8}


def cells_of(units: Units, world: str, rule: str) -> list[dict[str, Any]]:
    """The cells of a rule with the setting that was chosen, as far as they are measured."""
    return [units[name] for name in names_of(units, world, rule) if name in units]


def names_of(units: Units, world: str, rule: str) -> list[str]:
    """The names of a rule's cells, one for each seed."""
    if world == "smollm2":
        return [f"smollm2/{rule}/{chosen_rate(units):g}/{seed}" for seed in REAL_SEEDS]
    rate = units.get(f"{world}/{rule}/rate", {"rate": RATES[0]})["rate"]
    return [f"{world}/{rule}/{rate:g}/{seed}" for seed in REPORT]


def mean_of(cells: Sequence[Mapping[str, Any]], name: str) -> float:
    """Of the cells' costs."""
    return sum(float(cell[name]) for cell in cells) / len(cells)
