"""What Python takes of the CPU time of a stage: python perf/python_share.py [--models builtin,smollm2] [--profile]

Sampling, training and evaluation as `upft` does them, each from its first progress event, when the model is loaded, to
its last. MLX computes on threads of its own on the CPU backend, so the CPU time of each thread says who took it:

  MLX        threads that Python did not start: the streams, and BLAS in them
  eval       the main thread inside mx.eval, mx.async_eval, tolist and item: MLX hands the operations to its threads
  Python     the rest of this process: the loop, building the graph, rendering, rows, the display's events
  workers    the processes that grade answers and render prompts

All but MLX's is "outside"; building the graph, which MLX does in C++ when Python calls it, counts as Python.
SmolLM2 and the questions come from the folder that UPFT_SHARED names (default ../shared).
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
from pathlib import Path
from typing import Any

from turns import SHARED, InMlx, make_model, spent

from upft_mlx.events import Event, Progress
from upft_mlx.machine import blas
from upft_mlx.pipeline import run_stage
from upft_mlx.recipe.schema import Recipe

EMBEDDED = "builtin:arithmetic"


def recipe_of(model: str, options: argparse.Namespace) -> Recipe:
    """A run on real questions, or on the embedded model's own."""
    evaluate: dict[str, Any] = {"benchmarks": []}
    problems: dict[str, Any] = {"builtin": "arithmetic", "limit": 256}
    if model != EMBEDDED:
        data = SHARED / "data" / "benchmarks"
        problems = {"path": str(data / "gsm8k_train.jsonl"), "limit": options.problems}
        entry = {"name": "gsm8k", "path": str(data / "gsm8k_test.jsonl"), "limit": options.problems}
        evaluate = {"benchmarks": [entry], "max_tokens": 32}
    else:
        evaluate = {"benchmarks": [{"name": "arithmetic", "limit": 128}]}
    return Recipe.model_validate(
        {
            "model": model,
            "problems": problems,
            "generate": {"max_tokens": 64},
            "prefix": {"length": 16, "structure_ratio": 0},
            "train": {"steps": options.steps, "batch_size": 8, "valid_ratio": 0, "checkpoint_every": 10**6},
            "evaluate": evaluate,
        }
    )


def measured(recipe: Recipe, run: Path, stage: str, inside: InMlx, profile: bool) -> dict[str, float]:
    """CPU seconds of a stage's work, by who took them."""
    marks: list[dict[str, float]] = []
    profiler = cProfile.Profile(time.thread_time)

    def watch(event: Event) -> None:
        if isinstance(event, Progress) and event.stage == stage:
            if not marks and profile:
                profiler.enable()
            marks[1:] = [spent(inside)]

    run_stage(recipe, run, stage, watch)
    profiler.disable()
    if profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
    return {name: marks[-1][name] - marks[0][name] for name in marks[0]}


def main() -> None:
    """A line per model and stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=f"{EMBEDDED},smollm2")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--problems", type=int, default=32)
    parser.add_argument("--profile", action="store_true", help="also list where Python's time goes")
    options = parser.parse_args()
    print(blas.used())
    print(f"{'':28}{'MLX':>9}{'eval':>9}{'Python':>9}{'workers':>9}   Python of all")
    with InMlx() as inside, tempfile.TemporaryDirectory() as folder:
        for model in options.models.split(","):
            name = model
            if model != EMBEDDED:
                name = str(Path(folder) / "model")
                make_model(model, Path(name))
            recipe = recipe_of(name, options)
            for stage in ("generate", "build", "train", "evaluate"):
                if stage == "build":
                    run_stage(recipe, Path(folder) / model, stage)
                    continue
                found = measured(recipe, Path(folder) / model, stage, inside, options.profile)
                cells = "".join(f"{seconds:8.2f}s" for seconds in found.values())
                print(f"{model:19}{stage:9}{cells}   {found['Python'] / sum(found.values()):.1%}", flush=True)


if __name__ == "__main__":
    main()
