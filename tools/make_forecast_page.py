"""Writes docs/measured/forecast.md: does the forecast hold, and does choosing by it help?

    python tools/make_forecast_page.py WORK simulate
    python tools/make_forecast_page.py WORK careful          (and: careless)
    python tools/make_forecast_page.py WORK smollm2 MODEL
    python tools/make_forecast_page.py WORK gsm8k MODEL QUESTIONS.jsonl
    python tools/make_forecast_page.py WORK page

Each finished unit is a line of WORK/units.jsonl, and each training run is a run directory that continues. The page
takes what WORK lacks from its own data, docs/assets/forecast.json, and `smollm2` does not measure that again. What is
compared, and what would count as failure, is in `PLAN`. The page shows it above the results.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import make_evidence as evidence

from upft_mlx.dataset.selection import pick
from upft_mlx.errors import TrainingError
from upft_mlx.forecasting.estimate import Graded, Mean, weigh
from upft_mlx.forecasting.probe import held_out
from upft_mlx.pipeline import run_forecast
from upft_mlx.recipe.schema import Recipe
from upft_mlx.recipe.studies import Selection
from upft_mlx.rows import Solution, read_json
from upft_mlx.rundir import RunDir
from upft_mlx.studies.analyze import run_analysis
from upft_mlx.studies.compare import run_cell
from upft_mlx.studies.two_way import two_way_mean

ANSWERS, SAMPLES, PREFIXES, RATIO = 64, 16, 8, 0.2
"""Problems with answers, full solutions of each, prefixes of each other problem, and the share of structure rows."""
RATES = (3e-4, 1e-3)
CHOOSE, REPORT = range(2), range(5)
"""Seeds."""

PLAN = f"""## What is compared, and what counts as failure

Written down before the results.

1. The forecast of `first` must contain zero in every world, and intervals must cover the true value in 93 to 97 % of
   simulated samples.
2. Forecast (t = 8, T = 0.6) against the measured change of sampled accuracy (T = 0.7, problems not trained on), over
   all rules and worlds: the rank correlation (Spearman) must be at least 0.8, and no rule whose forecast interval lies
   above zero may measure below zero.
3. `auto` and `probe` with {ANSWERS} answers ({SAMPLES} solutions each; {PREFIXES} prefixes of each other problem; p =
   {RATIO}): in both toy worlds at least 80 % of RFT's gain, at most 25 % of its trained and 40 % of its sampled tokens,
   and never below base, sampled or greedy (an interval below zero is a failure). The learning rate (3e-4 or 1e-3) is
   chosen with seeds 0 and 1 on one half of the evaluation problems; reported are seeds 0 to 4 on the other half.
4. On SmolLM2, `auto` and `probe` with {ANSWERS} answers (8 solutions each; 8 prefixes of each other problem) never
   measure below base, sampled or greedy (an interval below zero is a failure). 256 problems to train on, 512 others to
   report, seeds 0 to 2. The learning rate (1e-4 or 3e-4) is chosen with seed 0 and `prefix_confidence` on 256 other
   problems: the one that gains more, sampled and greedy together.
"""


class Units:
    """What is finished: one JSON line each."""

    def __init__(self, work: Path) -> None:
        self.path = work / "units.jsonl"
        work.mkdir(parents=True, exist_ok=True)
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.done: dict[str, Any] = dict(json.loads(line) for line in lines)

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        """The unit of this name; made and written down where it is not there."""
        if name not in self.done:
            print(name, flush=True)
            self.done[name] = make()
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([name, self.done[name]]) + "\n")
        return self.done[name]


# Known values: a world in which each prefix has a worth of its own.


def simulate(units: Units) -> None:
    """How often the interval holds the true forecast, by rule and number of problems."""
    for rule in ("first", "consensus", "probe", "label"):
        for problems in (32, 64, 256):
            units.get(f"simulate/{rule}/{problems}", lambda rule=rule, problems=problems: coverage(rule, problems))


def coverage(rule: Selection, problems: int, repeats: int = 400) -> dict[str, float]:
    """The share of `repeats` forecasts whose interval holds the truth, and their mean beside it."""
    rng = random.Random(f"{rule}/{problems}")
    found = [simulated(rule, problems, rng) for _ in range(repeats)]
    truth = sum(true for _, true in found) / len(found)
    held = sum(value.ci95[0] <= truth <= value.ci95[1] for value, _ in found)
    return {"covered": held / repeats, "mean": sum(value.mean for value, _ in found) / repeats, "truth": truth}


def simulated(rule: Selection, count: int, rng: random.Random, samples: int = 8) -> tuple[Any, float]:
    """One forecast of a rule, and what its picks are truly worth beyond the mean.

    Each problem has 5 prefixes. How often they are drawn and how often they lead to a right answer hang together a
    little, differently from problem to problem; a feature of two numbers tells something about the worth.
    """
    import numpy as np

    made, worths, features = [], [], []
    for number in range(count):
        base = rng.betavariate(1.5, 1.5)
        worth = [min(1.0, max(0.0, rng.gauss(base, 0.25))) for _ in range(5)]
        weights = [rng.random() + 0.5 * value for value in worth]
        starts = rng.choices(range(5), weights, k=samples)
        right = [rng.random() < worth[start] for start in starts]
        rows = [Solution(str(number), n, "full", [start, 9], "", "stop") for n, start in enumerate(starts)]
        total = sum(weights)
        made.append(Graded(str(number), rows, right))
        worths.append((worth, sum(w * v for w, v in zip(weights, worth, strict=True)) / total))
        features.append(np.array([[worth[s] + rng.gauss(0, 0.3), rng.gauss(0, 1)] for s in starts]))
    scores = held_out(features, [item.right for item in made], 1, 0) if rule == "probe" else None
    picks = [simulated_pick(rule, item, None if scores is None else scores[n]) for n, item in enumerate(made)]
    fresh = {
        (item.problem_id, item.first_alike(found, 1), 1): [
            rng.random() < worth[item.solutions[found].completion_ids[0]] for _ in range(2)
        ]
        for item, found, (worth, _) in zip(made, picks, worths, strict=True)
        if found is not None
    }
    value = weigh(rule, 1, made, picks, fresh, {}, 0.0).forecast
    true = [
        worth[item.solutions[found].completion_ids[0]] - mean
        for item, found, (worth, mean) in zip(made, picks, worths, strict=True)
        if found is not None
    ]
    return value, sum(true) / len(true)


def simulated_pick(rule: Selection, item: Graded, scores: Sequence[float] | None) -> int | None:
    """What the rule picks."""
    if rule == "label":
        return next((number for number, mark in enumerate(item.right) if mark), None)
    if scores is not None:
        return max(range(len(scores)), key=lambda number: scores[number])
    return pick(rule, item.solutions, 1, None)


# The toy worlds.


def toy_recipe(model: Path, work: Path, seed: int, selection: Selection = "first", rate: float = 1e-3) -> Recipe:
    """One cell's recipe; both halves of the evaluation problems, sampled and greedy."""
    data = evidence.recipe(model, None, "", seed, work).model_dump()
    answers = selection in ("auto", "probe")
    data["generate"]["samples"] = 1 if selection == "first" else PREFIXES if answers else SAMPLES
    data["prefix"] |= {"selection": selection, "template": "none", "eos": False, "structure_ratio": RATIO}
    data["forecast"] |= {"problems": ANSWERS, "samples": SAMPLES, "lengths": (evidence.LENGTH,)}
    data["train"]["learning_rate"] = rate
    data["evaluate"] |= {"samples": 3, "temperature": 0.7}
    data["evaluate"]["benchmarks"] = [
        {"name": f"{half}{greedy and '-greedy'}", "path": str(work / f"{half}.jsonl"), **settings}
        for half in ("choose", "report")
        for greedy, settings in (("", {}), ("greedy", {"samples": 1, "temperature": 0.0}))
    ]
    return Recipe.model_validate(data)


def toy(units: Units, work: Path, name: str) -> None:
    """The forecast and the cells of one world."""
    evidence.write_halves(work)
    world = evidence.World(name, work)
    units.get(f"{name}/forecast", lambda: forecast(toy_recipe(world.model, work, 0), work / name / "forecast", 256))
    for selection in ("probe", "auto"):
        gains = {}
        for rate in RATES:
            cells = [toy_cell(units, world, selection, rate, seed) for seed in CHOOSE]
            gains[rate] = change(cells, "choose").mean
        best = max(gains, key=lambda rate: gains[rate])
        units.get(
            f"{name}/{selection}/rate", lambda gains=gains, best=best: {"rate": best, "gains": list(gains.values())}
        )
    for seed in REPORT:
        for selection in ("probe", "auto"):
            toy_cell(units, world, selection, units.done[f"{name}/{selection}/rate"]["rate"], seed)
    for seed in CHOOSE:
        toy_cell(units, world, "prefix_confidence", RATES[0], seed)


def forecast(recipe: Recipe, folder: Path, problems: int) -> dict[str, Any]:
    """The forecast of all rules at the recipe's length."""
    data = recipe.model_dump()
    data["forecast"]["problems"] = problems
    return run_forecast(Recipe.model_validate(data), folder).dump()


def toy_cell(units: Units, world: Any, selection: Selection, rate: float, seed: int) -> dict[str, Any]:
    """Base and tuned of one cell."""

    def make() -> dict[str, Any]:
        choice = read_json(world.root / f"probe-{rate:g}" / f"seed-{seed}" / "choice" / "choice.json")
        if selection == "auto" and choice is not None and choice["selection"] == "probe":  # then it is the same recipe
            return {**units.done[f"{world.name}/probe/{rate:g}/{seed}"]}
        return measured(
            toy_recipe(world.model, world.work, seed, selection, rate), world.root, selection, f"{rate:g}", seed
        )

    found: dict[str, Any] = units.get(f"{world.name}/{selection}/{rate:g}/{seed}", make)
    return found


def measured(recipe: Recipe, root: Path, selection: str, setting: str, seed: int) -> dict[str, Any]:
    """Train, and measure base and tuned; where `auto` does not train, tuned is base."""
    folder = root / f"{selection}-{setting}" / f"seed-{seed}"
    donors = [RunDir(path) for path in sorted(root.glob(f"*/seed-{seed}")) if path != folder]
    donors.append(RunDir(root / "forecast"))  # it has the answers of seed 0
    base = recipe.model_dump() | {"method": "upft"}
    base["prefix"] |= {"selection": "first", "structure": "unchecked"}
    base["generate"]["samples"] = 1
    before = run_cell(Recipe.model_validate(base), "base", root / "base" / f"seed-{seed}", donors)
    try:
        after = run_cell(recipe, selection, folder, [*donors, RunDir(root / "base" / f"seed-{seed}")])
    except TrainingError as error:
        after, refused = before, str(error)
    else:
        refused = ""
    return {
        "base": {name: list(scores.values()) for name, scores in before.scores.items()},
        "tuned": {name: list(scores.values()) for name, scores in after.scores.items()},
        "tokens_sampled": after.tokens_sampled,
        "tokens_trained": after.tokens_trained,
        "chosen": (read_json(folder / "recipe.json") or {}).get("prefix", {}).get("selection"),
        "refused": refused,
    }


def change(cells: Sequence[dict[str, Any]], label: str) -> Mean:
    """Tuned minus base over problems and seeds."""
    pairs = [(cell["base"][label], cell["tuned"][label]) for cell in cells]
    table = [[tuned[p] - base[p] for base, tuned in pairs] for p in range(len(pairs[0][0]))]
    return two_way_mean(table, (-1.0, 1.0))


# A real model.

REAL_RULES: tuple[Selection, ...] = (
    *("first", "prefix_confidence", "probe", "consensus", "auto"),
    *("confidence", "label", "majority_answer", "longest"),
)
"""In the order in which they are measured: rules that sample prefixes alone cost least and come first."""
REAL_SEEDS = range(3)
REAL_RATES = (1e-4, 3e-4)
REAL_PROBLEMS = {"train": 256, "choose": 256, "report": 512}
"""Drawn together, so that no problem is in two parts."""
GSM8K_QUESTIONS, GSM8K_TOKENS, ONE_STEP_QUESTIONS = 32, 256, 24
"""Of prefix accuracy."""
ROW = ("id", "question", "answer")


def real(units: Units, work: Path, model: Path) -> None:
    """SmolLM2-135M-Instruct on one-step problems."""
    root = work / "smollm2"
    units.get(
        "smollm2/forecast",
        lambda: forecast(real_recipe(model, work, 0, "first", REAL_RATES[0]), root / "forecast", ANSWERS),
    )
    for rate in REAL_RATES:
        recipe = real_recipe(model, work, 0, "prefix_confidence", rate, "choose")
        units.get(
            f"smollm2/choose/{rate:g}",
            lambda recipe=recipe, rate=rate: measured(recipe, work / "choose", "choose", f"{rate:g}", 0),
        )
    rate = chosen_rate(units.done)
    for seed in REAL_SEEDS:
        for selection in REAL_RULES:
            recipe = real_recipe(model, work, seed, selection, rate)
            units.get(
                f"smollm2/{selection}/{rate:g}/{seed}",
                lambda recipe=recipe, seed=seed, rule=selection: measured(recipe, root, rule, f"{rate:g}", seed),
            )


def chosen_rate(units: Mapping[str, Any]) -> float:
    """The learning rate that gained more on the problems for choosing, sampled and greedy together."""

    def gain(rate: float) -> float:
        cell = units[f"smollm2/choose/{rate:g}"]
        return sum(change([cell], label).mean for label in ("choose", "choose-greedy"))

    return max(REAL_RATES, key=gain)


def real_recipe(model: Path, work: Path, seed: int, selection: Selection, rate: float, part: str = "report") -> Recipe:
    """t = 8, one epoch; evaluated on the problems of the part."""
    from one_step import INSTRUCTION, problems

    drawn = iter(problems(sum(REAL_PROBLEMS.values()), 500 + seed))
    files = {name: work / f"one-step-{name}-{seed}.jsonl" for name in REAL_PROBLEMS}
    for name, count in REAL_PROBLEMS.items():
        rows = [{"id": p.id, "question": p.question, "answer": p.answer} for p in itertools.islice(drawn, count)]
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    asked = {"path": str(files[part])}
    return Recipe.model_validate(
        {
            "name": "forecast",
            "model": str(model),
            "seed": seed,
            "problems": {"path": str(files["train"])},
            "prompt": {"instruction": INSTRUCTION},
            "generate": {"max_tokens": 40, "batch_size": 128, "samples": 1 if selection == "first" else 8},
            "prefix": {"length": 8, "selection": selection, "template": "none", "structure_ratio": 0.1},
            "forecast": {"problems": ANSWERS, "samples": 8, "lengths": (4, 8)},
            "train": {"batch_size": 8, "learning_rate": rate, "valid_ratio": 0.0, "save": "last"},
            "evaluate": {
                "max_tokens": 40,
                "batch_size": 128,
                "benchmarks": [
                    {"name": part, "samples": 1, "temperature": 0.7, **asked},
                    {"name": f"{part}-greedy", **asked},
                ],
            },
        }
    )


def gsm8k(units: Units, model: Path, questions: Path, work: Path) -> None:
    """Prefix self-consistency and prefix accuracy by `upft analyze`: on the first GSM8K training questions, and prefix
    accuracy also on one-step problems, of which the model solves more.
    """
    from one_step import INSTRUCTION, problems

    with questions.open(encoding="utf-8") as file:  # not splitlines: a question may have a line separator inside
        rows = [json.loads(line) for line in file]
    easy = [asdict(problem) for problem in problems(ONE_STEP_QUESTIONS, 600)]

    def analysis(name: str, rows: Sequence[Mapping[str, Any]], **changes: Any) -> dict[str, Any]:
        asked = work / f"{name}.jsonl"
        asked.write_text(
            "".join(json.dumps({key: row[key] for key in ROW & row.keys()}) + "\n" for row in rows), "utf-8"
        )
        recipe = {"name": name, "model": str(model), "problems": {"path": str(asked)}, **changes}
        return run_analysis(Recipe.model_validate(recipe), work / name).dump()

    def accuracy(name: str, rows: Sequence[Mapping[str, Any]], **changes: Any) -> dict[str, Any]:
        made = analysis(name, rows, **changes)
        return {"base": made["forecast"]["base"]["mean"], "lengths": made["accuracy"]}

    lengths = (1, 2, 4, 8, 16, 32)
    common: dict[str, Any] = {"samples": 8, "lengths": lengths}
    each: dict[str, Any] = {**common, "trajectories": 8, "rollout_problems": 12, "rollouts": 4}
    long, short = ({"batch_size": 64, "max_tokens": most} for most in (GSM8K_TOKENS, 40))
    alone = [{"id": row["id"], "question": row["question"]} for row in rows[:24]]
    units.get("gsm8k", lambda: analysis("gsm8k", alone, analyze=common, generate=long)["self_consistency"])
    asked = rows[:GSM8K_QUESTIONS]
    units.get("gsm8k/accuracy", lambda: accuracy("gsm8k-accuracy", asked, analyze=each, generate=long))
    some = {"analyze": {**each, "lengths": lengths[:-1], "rollout_problems": ONE_STEP_QUESTIONS}, "generate": short}
    units.get(
        "one-step/accuracy",
        lambda: accuracy("one-step-accuracy", easy, prompt={"instruction": INSTRUCTION}, **some),
    )


def main() -> None:
    """One phase."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("phase", choices=("simulate", "careful", "careless", "smollm2", "gsm8k", "page"))
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("questions", type=Path, nargs="?")
    options = parser.parse_args()
    work = options.work.resolve()
    units = Units(work)
    if options.phase == "simulate":
        simulate(units)
    elif options.phase == "smollm2":
        from forecast_cells import colder, published

        units.done, model = {**published(), **units.done}, options.model.resolve()
        real(units, work, model)
        for seed in REAL_SEEDS:
            units.get(f"smollm2/colder/{seed}", lambda seed=seed: colder(units.done, work, model, seed))
    elif options.phase == "gsm8k":
        gsm8k(units, options.model.resolve(), options.questions.resolve(), work)
    elif options.phase == "page":
        import forecast_page
        from forecast_cells import published

        forecast_page.write({**published(), **units.done})
    else:
        toy(units, work, options.phase)


if __name__ == "__main__":
    main()
