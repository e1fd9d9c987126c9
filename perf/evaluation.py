"""What evaluating base and tuned costs here and with mlx-lm: python perf/evaluation.py [--problems 500] [--samples 4]

The embedded model, unquantized, with an adapter that a short run trains, on its held-out problems at T = 0.7, or with
--shape smollm2 SmolLM2-135M-Instruct at 4 bits with an adapter of one step on GSM8K questions, base and tuned, by

  ours             `upft evaluate`: everything from loading the model to summary.json, grading included
  batch_generate   `mlx_lm.generate.batch_generate` on all prompts, each as often as samples are wanted, once per model;
                   with its own batch sizes, and with ours; loading and generating only
  generate         `mlx_lm.generate` call after call in one process; `--calls` calls per model are timed and scaled to
                   all; generating only

All load the model as upft_mlx does (float32 on the CPU, which is kind to mlx-lm: its 16-bit products are slow there).
In turns, `--rounds` times; the medians are compared. A short run of each before is not counted. At T = 0 the
completions of ours and of `mlx_lm.generate` are compared on `--greedy` problems.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from turns import SHARED, cpu, cpu_of_workers, make_model, read

from upft_mlx.demo.world import problems as make_problems
from upft_mlx.machine import blas
from upft_mlx.models.adapters import load_adapter
from upft_mlx.models.chat import Renderer
from upft_mlx.models.find import find_model
from upft_mlx.models.load import Loaded, load
from upft_mlx.pipeline import run_stage
from upft_mlx.recipe.schema import Prompt, Recipe
from upft_mlx.rows import EvaluationRow, read_rows

TEMPERATURE = 0.7
EMBEDDED = "builtin:arithmetic"
VARIANTS = ("base", "tuned")


def recipe_for(work: Path, options: argparse.Namespace) -> Recipe:
    """The quickstart with one sampled and one greedy benchmark."""
    if options.shape == EMBEDDED:
        made = make_problems("evaluation", options.problems)
        rows = [{"id": p.id, "question": p.question, "answer": p.answer} for p in made]
        recipe: dict[str, Any] = {"model": EMBEDDED, "problems": {"builtin": "arithmetic", "limit": 256}}
    else:
        data = SHARED / "data" / "benchmarks"
        rows = read(data / "gsm8k_test.jsonl")[: options.problems]
        make_model(options.shape, work / "model")
        recipe = {
            "model": str(work / "model"),
            "problems": {"path": str(data / "gsm8k_train.jsonl"), "limit": 4},
            "prefix": {"structure_ratio": 0},
            "train": {"steps": 1, "batch_size": 4, "valid_ratio": 0},
        }
    path = work / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe["generate"] = {"max_tokens": 64, "batch_size": 64}
    recipe["prefix"] = {"length": 8, **recipe.get("prefix", {})}
    recipe["evaluate"] = {"max_tokens": options.tokens, "batch_size": options.batch, "benchmarks": []}
    return Recipe.model_validate(recipe)


def with_benchmark(recipe: Recipe, work: Path, **fields: Any) -> Recipe:
    """The recipe with one benchmark."""
    data = recipe.dump()
    data["evaluate"]["benchmarks"] = [{"name": "held-out", "path": str(work / "problems.jsonl"), **fields}]
    return Recipe.model_validate(data)


class Models:
    """The model as mlx-lm's users load it: one for each variant."""

    def __init__(self, recipe: Recipe, adapter: Path) -> None:
        self._recipe, self._adapter = recipe, adapter

    def load(self, variant: str) -> Loaded:
        """A fresh one."""
        loaded = load(find_model(self._recipe))
        if variant == "tuned":
            load_adapter(loaded, self._adapter)
        return loaded


def ours(recipe: Recipe, run: Path, adapter: Path) -> int:
    """`upft evaluate` into a new directory, in a folder of its own: runs in one folder share base's answers."""
    facts = run_stage(recipe, run, "evaluate", adapter=adapter)
    measured = facts.benchmarks["held-out"].measured.values()
    return sum(one.n * one.samples for one in measured)


def batched(models: Models, questions: list[str], samples: int, tokens: int, **sizes: int) -> int:
    """`batch_generate` once per model."""
    from mlx_lm.generate import batch_generate
    from mlx_lm.sample_utils import make_sampler

    count = 0
    for variant in VARIANTS:
        loaded = models.load(variant)
        renderer = Renderer(loaded.tokenizer, Prompt())
        prompts = [renderer.ids(question) for question in questions for _ in range(samples)]
        sampler = make_sampler(temp=TEMPERATURE)
        found = batch_generate(loaded.model, loaded.tokenizer, prompts, max_tokens=tokens, sampler=sampler, **sizes)
        count += len(found.texts)
    return count


def one_by_one(models: Models, questions: list[str], calls: int, tokens: int) -> Cost:
    """What a call of `mlx_lm.generate` costs, the mean over `calls` calls for each model."""
    from mlx_lm import generate
    from mlx_lm.sample_utils import make_sampler

    costs = []
    for variant in VARIANTS:
        loaded = models.load(variant)
        renderer = Renderer(loaded.tokenizer, Prompt())
        sampler = make_sampler(temp=TEMPERATURE)
        step = max(1, len(questions) // calls)
        chosen = [renderer.ids(question) for question in questions[::step][:calls]]

        def call_all(loaded: Loaded = loaded, chosen: list[list[int]] = chosen, sampler: Any = sampler) -> None:
            for ids in chosen:
                generate(loaded.model, loaded.tokenizer, ids, max_tokens=tokens, sampler=sampler)

        costs.append(timed(call_all).times(1 / len(chosen)))
    return Cost(*(statistics.mean(values) for values in zip(*costs, strict=True)))


class Cost(NamedTuple):
    """What work took, in seconds."""

    wall: float
    cpu: float
    """Of this process and those it started."""

    def times(self, factor: float) -> Cost:
        """So many times the same work."""
        return Cost(factor * self.wall, factor * self.cpu)


def timed(work: Callable[[], object]) -> Cost:
    """What it costs."""
    import mlx.core as mx

    mx.clear_cache()
    wall, before = time.perf_counter(), cpu() + cpu_of_workers()
    work()
    return Cost(time.perf_counter() - wall, cpu() + cpu_of_workers() - before)


def greedy(recipe: Recipe, models: Models, work: Path, adapter: Path, options: argparse.Namespace) -> dict[str, int]:
    """How many completions and answers at T = 0 are those of `mlx_lm.generate`."""
    from mlx_lm import generate

    from upft_mlx.grade.correct import extract_answer

    run_stage(with_benchmark(recipe, work), work / "greedy", "evaluate", adapter=adapter)
    questions = [json.loads(line)["question"] for line in (work / "problems.jsonl").open(encoding="utf-8")]
    found = {"compared": 0, "same text": 0, "same answer": 0}
    for variant in VARIANTS:
        loaded = models.load(variant)
        renderer = Renderer(loaded.tokenizer, Prompt())
        rows = list(read_rows(work / "greedy" / "evaluation" / "held-out" / f"{variant}.jsonl", EvaluationRow))
        for question, row in list(zip(questions, rows, strict=True))[:: max(1, len(rows) // options.greedy)][
            : options.greedy
        ]:
            text = generate(loaded.model, loaded.tokenizer, renderer.ids(question), max_tokens=options.tokens)
            found["compared"] += 1
            found["same text"] += text == row.completion
            found["same answer"] += extract_answer(text) == row.answer
    return found


def race(
    recipe: Recipe, models: Models, work: Path, adapter: Path, options: argparse.Namespace
) -> dict[str, list[Cost]]:
    """What each contestant costs, in turns."""
    questions = [json.loads(line)["question"] for line in (work / "problems.jsonl").open(encoding="utf-8")]
    wanted, total = options.samples, 2 * len(questions) * options.samples
    sampled = with_benchmark(recipe, work, samples=wanted, temperature=TEMPERATURE)
    few = with_benchmark(recipe, work, samples=2, temperature=TEMPERATURE, limit=8)
    sizes = {"completion_batch_size": options.batch, "prefill_batch_size": options.batch}
    ours(few, work / "warm", adapter)
    batched(models, questions[:8], 2, options.tokens)
    one_by_one(models, questions, 2, options.tokens)
    costs: dict[str, list[Cost]] = {}
    for number in range(options.rounds):
        run = work / f"round-{number}" / "run"
        contestants: dict[str, Callable[[], Cost]] = {
            "ours": partial(timed, partial(ours, sampled, run, adapter)),
            "batch_generate, its sizes": lambda: timed(lambda: batched(models, questions, wanted, options.tokens)),
            "batch_generate, our sizes": lambda: timed(
                lambda: batched(models, questions, wanted, options.tokens, **sizes)
            ),
            "generate, scaled": lambda: one_by_one(models, questions, options.calls, options.tokens).times(total),
        }
        for name, measure in contestants.items():
            costs.setdefault(name, []).append(measure())
            wall, spent = costs[name][-1]
            print(f"round {number + 1}: {name} {wall:.1f} s, {spent:.1f} CPU s", flush=True)
    return costs


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("problems", 500),
        ("samples", 4),
        ("batch", 64),
        ("rounds", 3),
        ("calls", 50),
        ("greedy", 250),
        ("tokens", 64),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--shape", default=EMBEDDED, help=f"{EMBEDDED}, smollm2 or smollm2-float32")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        recipe = recipe_for(work, options)
        for stage in ("generate", "build", "train"):
            run_stage(recipe, work / "trained", stage)
        adapter, models = work / "trained" / "adapter", Models(recipe, work / "trained" / "adapter")
        costs = race(recipe, models, work, adapter, options)
        same = greedy(recipe, models, work, adapter, options)
    medians = {name: Cost(*map(statistics.median, zip(*values, strict=True))) for name, values in costs.items()}
    print(
        f"\n{options.problems} problems x {options.samples}, base and tuned, T = {TEMPERATURE}, batch {options.batch}"
    )
    mine = medians["ours"]
    for name, (wall, spent) in medians.items():
        ratios = f"ours is {wall / mine.wall:.2f}x, by CPU time {spent / mine.cpu:.2f}x"
        print(f"  {name:26} {wall:7.1f} s {spent:7.1f} CPU s   {ratios}")
    print(f"at T = 0, of {same['compared']} completions {same['same text']} have the same text as mlx_lm.generate's, "
          f"{same['same answer']} the same answer")  # fmt: skip
    versions = {name: metadata.version(name) for name in ("mlx", "mlx-lm")}
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {blas.used()}, mlx {versions['mlx']}, mlx-lm {versions['mlx-lm']}")
    if options.json:
        options.json.write_text(json.dumps({"costs": costs, "greedy": same, "versions": versions}, indent=2))


if __name__ == "__main__":
    main()
