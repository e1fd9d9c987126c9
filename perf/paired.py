"""How much of the noise base and tuned share, and what drafts save: python perf/paired.py [--old TREE] [--model ...]

    variance  256 problems x 4 at T = 0.7, base and tuned, with this code and with an older commit, `--seeds` adapters
              of each kind: standard error of the paired difference, equal texts, flips, base's accuracy
    drafts    the same once greedily and once at T = 0.7: CPU seconds of base, of tuned with base's answers as drafts,
              and of tuned without; how many of tuned's tokens were the draft's; whether the texts are the same
    batches   base's texts at batch sizes 8 and 32, and with a limit of 50: how many are the same
    draws     what keyed random numbers cost: the draw of a batch, in turns with one that has a key for the batch (one
              `categorical`; with top-p or top-k mlx-lm's sampler), and a decoding step

`--kinds` of adapters of the embedded model: `default` is what the defaults train (the quickstart's recipe), `then` what
they trained at the older commit (learning rate 1e-4, the paper's template and EOS), `strong` what `upft demo` trains.
With `--model` and `--adapter` another model and its adapter are measured, on the questions of `--data`, put as
`--prompt` says (`{question}` and what comes with it). `--old` is a work tree of the older commit, which is made (`git
worktree add`) and removed where the option is not given; it gets the BLAS of this code, which it would not load itself.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OLD = "4af643a"
CHILD = """
import json, sys
from pathlib import Path
root, recipe, run, adapter = sys.argv[1:]
sys.path.insert(0, root)
from upft_mlx.pipeline import run_stage
try:
    from upft_mlx.recipe.schema import Recipe
except ImportError:  # older commits
    from upft_mlx.recipe import Recipe
run_stage(Recipe.model_validate(json.loads(Path(recipe).read_text())), run, "evaluate", adapter=Path(adapter))
"""
KINDS = {
    "default": ("quickstart", []),
    "then": ("quickstart", ["train.learning_rate=1e-4", "prefix.template=paper", "prefix.eos=true"]),
    "strong": ("demo", []),
}
TURNS = 15
"""Draws of each kind, from the medians of which their costs are told."""
Rows = dict[tuple[str, int], dict[str, Any]]


@contextmanager
def old_tree(given: Path | None) -> Iterator[Path]:
    """The older commit's files."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "old"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "-q", "--detach", tree, OLD], check=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", tree], check=True)


def recipe_for(work: Path, options: argparse.Namespace, seed: int, **benchmark: Any) -> dict[str, Any]:
    """One that both commits read: the problems as a file, one benchmark."""
    from upft_mlx.demo.world import problems

    path, model = options.data, options.model or ROOT / "upft_mlx" / "demo" / "model"
    if path is None:
        path = work / "problems.jsonl"
        rows = [
            {"id": p.id, "question": p.question, "answer": p.answer} for p in problems("evaluation", options.problems)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    one = {"name": "gsm8k" if options.data else "held-out", "label": "x", "path": str(path), "limit": options.problems}
    prompt = options.prompt or (None if options.model else "{question}")  # the embedded model knows nothing else
    asked = {"prompt": prompt} if prompt else {}
    return {
        "model": str(model),
        "seed": seed,
        "problems": {"path": str(path), "limit": 8},
        "evaluate": {
            "benchmarks": [{**one, **asked, **benchmark}],
            "max_tokens": options.max_tokens,
            "batch_size": options.batch,
        },
    }


def adapter_for(work: Path, options: argparse.Namespace, kind: str, seed: int) -> Path:
    """The given one, or what the recipe of its kind trains with this seed."""
    from upft_mlx.pipeline import run_stage
    from upft_mlx.recipe.load import load_recipe

    if options.adapter is not None:
        return Path(options.adapter)
    folder, (name, changes) = work / f"{kind}-{seed}", KINDS[kind]
    recipe = load_recipe(name, [f"seed={seed}", "quantize=null", *changes])
    if (folder / "adapter" / "adapters.safetensors").exists():  # trained for another part of this program
        return folder / "adapter"
    for stage in ("generate", "build", "train"):
        run_stage(recipe, folder, stage)
    return folder / "adapter"


def rows_of(run: Path, variant: str) -> Rows:
    """By problem and sample."""
    with (run / "evaluation" / "x" / f"{variant}.jsonl").open(encoding="utf-8") as lines:
        return {(row["problem_id"], row["sample"]): row for row in map(json.loads, lines)}


def paired(run: Path) -> dict[str, float]:
    """What tells base and tuned apart."""
    base, tuned = rows_of(run, "base"), rows_of(run, "tuned")
    changes: dict[str, list[int]] = {}
    for place, row in base.items():
        changes.setdefault(place[0], []).append(tuned[place]["correct"] - row["correct"])
    means = [statistics.mean(values) for values in changes.values()]
    return {
        "error": statistics.stdev(means) / math.sqrt(len(means)),
        "delta": statistics.mean(means),
        "same": statistics.mean(base[p]["completion"] == tuned[p]["completion"] for p in base),
        "flips": statistics.mean(base[p]["correct"] != tuned[p]["correct"] for p in base),
        "base": statistics.mean(row["correct"] for row in base.values()),
    }


def variance(work: Path, options: argparse.Namespace) -> None:
    """The table of this code beside the older commit."""
    from upft_mlx.machine.blas import used

    blas = used().path
    print("\n| adapter | seed | commit | same texts | flips | tuned - base, points | standard error | base |")
    print("|---|---|---|---|---|---|---|---|")
    with old_tree(options.old) as tree:
        for kind in options.kinds:
            errors: dict[str, list[float]] = {"old": [], "new": []}
            for seed in range(options.seeds):
                adapter, path = adapter_for(work, options, kind, seed), work / f"recipe-{kind}-{seed}.json"
                recipe = recipe_for(work, options, seed, samples=options.samples, temperature=0.7)
                path.write_text(json.dumps(recipe))
                for name, root in (("old", tree), ("new", ROOT)):
                    run = work / f"{name}-{kind}-{seed}"
                    preloaded = {"LD_PRELOAD": blas} if name == "old" and blas else {}
                    command = [sys.executable, "-c", CHILD, root, path, run, adapter]
                    subprocess.run(command, check=True, env={**os.environ, **preloaded})
                    f = paired(run)
                    errors[name].append(f["error"])
                    print(
                        f"| {kind} | {seed} | {OLD if name == 'old' else 'this'} | {f['same']:.1%} | {f['flips']:.1%} "
                        f"| {100 * f['delta']:+.2f} | {100 * f['error']:.2f} | {f['base']:.1%} |",
                        flush=True,
                    )
            old, new = (statistics.mean(errors[name]) for name in ("old", "new"))
            print(
                f"| {kind} | mean | both | | | | {100 * old:.2f} and {100 * new:.2f}: {new / old:.2f}x | |", flush=True
            )


def timed(recipe: dict[str, Any], run: Path, adapter: Path, *, use: bool) -> tuple[dict[str, float], Any]:
    """CPU seconds of both variants of an evaluation, with drafts or without, and its drafts."""
    from upft_mlx.evaluation import evaluate
    from upft_mlx.pipeline import run_stage
    from upft_mlx.recipe.schema import Recipe

    spent: dict[str, float] = {"base": 0.0, "tuned": 0.0}
    seen: list[Any] = []
    sample, drafts = evaluate.Evaluator._sample, evaluate.Drafts

    # Stand-ins for the evaluator's own parts, which is what the `type: ignore` are about.
    def timing(self: Any, variant: str, *rest: Any) -> Any:
        begin = resource.getrusage(resource.RUSAGE_SELF)
        made = sample(self, variant, *rest)  # type: ignore[arg-type]
        end = resource.getrusage(resource.RUSAGE_SELF)
        spent[variant] += end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime
        return made

    class Watched(drafts):  # type: ignore[valid-type, misc]
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            seen.append(self)

        @property
        def pay(self) -> bool:
            return use and bool(super().pay)

    evaluate.Evaluator._sample, evaluate.Drafts = timing, Watched  # type: ignore[method-assign, assignment, misc]
    try:
        run_stage(Recipe.model_validate(recipe), run, "evaluate", adapter=adapter)
    finally:
        evaluate.Evaluator._sample, evaluate.Drafts = sample, drafts  # type: ignore[method-assign, misc]
    return spent, seen[0]


def drafts(work: Path, options: argparse.Namespace) -> None:
    """The table of what drafts save."""
    print("\n| adapter | T | base, CPU s | tuned, drafts | tuned without | accepted of drafted | of all | same texts |")
    print("|---|---|---|---|---|---|---|---|")
    for kind in options.kinds:
        adapter = adapter_for(work, options, kind, 0)
        for temperature in options.temperatures:
            samples = options.samples if temperature else 1
            recipe = recipe_for(work, options, 0, samples=samples, temperature=temperature)
            (benchmark,) = recipe["evaluate"]["benchmarks"]
            warm = {**recipe, "evaluate": {**recipe["evaluate"], "benchmarks": [{**benchmark, "limit": 4}]}}
            name = f"{kind}-{temperature}"
            # Each in a folder of its own: runs in one folder share base's answers.
            runs = {way: work / f"{name}-{way}" / "run" for way in ("warm", "with", "without")}
            timed(warm, runs["warm"], adapter, use=True)
            spent, found = timed(recipe, runs["with"], adapter, use=True)
            without, _ = timed(recipe, runs["without"], adapter, use=False)
            one, other = (rows_of(runs[way], "tuned") for way in ("with", "without"))
            total = sum(row["tokens"] + (row["finish_reason"] == "stop") for row in one.values())
            same = statistics.mean(one[place]["completion"] == other[place]["completion"] for place in one)
            with_drafts, plain = (f"{s['tuned']:.1f} ({s['tuned'] / s['base']:.2f}x)" for s in (spent, without))
            print(
                f"| {kind} | {temperature} | {spent['base']:.1f} | {with_drafts} | {plain} "
                f"| {found.accepted / max(1, found.drafted):.1%} | {found.accepted / total:.1%} | {same:.2%} |",
                flush=True,
            )


def batches(work: Path, options: argparse.Namespace) -> None:
    """How many of base's texts are the same with other batches."""
    from upft_mlx.pipeline import run_stage
    from upft_mlx.recipe.schema import Recipe

    for temperature in (0.0, 0.7):
        found = {}
        for size, limit in ((32, options.problems), (8, options.problems), (32, min(50, options.problems))):
            recipe = recipe_for(work, options, 0, temperature=temperature, limit=limit)
            recipe["evaluate"]["batch_size"] = size
            run = work / f"batches-{temperature}-{size}-{limit}"
            run_stage(Recipe.model_validate(recipe), run, "evaluate")
            found[size, limit] = rows_of(run, "base")
        first = found[32, options.problems]
        for (size, limit), rows in found.items():
            same = sum(rows[place]["completion"] == first[place]["completion"] for place in rows)
            if rows is not first:
                print(f"T = {temperature}: batch {size}, limit {limit}: {same} of {len(rows)} texts as with batch 32")


def draws(work: Path, options: argparse.Namespace) -> None:
    """Milliseconds of a draw and of a decoding step: medians of turns, which other work disturbs alike."""
    from upft_mlx.models.load import load  # isort: skip  # before MLX, for the fast BLAS
    from upft_mlx.sampling.draw import Sampling, drawer, random_key  # isort: skip

    import mlx.core as mx
    import numpy as np
    from mlx_lm.sample_utils import make_sampler

    def categorical(logits: mx.array) -> mx.array:
        return mx.random.categorical(logits * (1 / 0.7))

    def medians(**works: Callable[[], mx.array]) -> dict[str, float]:
        spent: dict[str, list[float]] = {name: [] for name in works}
        for turn in range(TURNS):
            for name in [*works][:: 1 if turn % 2 else -1]:
                begin = time.process_time()
                mx.eval(works[name]())
                spent[name].append(1000 * (time.process_time() - begin))
        return {name: statistics.median(of) for name, of in spent.items()}

    loaded = load(Path(options.model or ROOT / "upft_mlx" / "demo" / "model"))
    size = options.batch
    tokens = mx.array(np.random.default_rng(0).integers(3, 500, (size, 64)))
    cache = loaded.model.make_cache() if hasattr(loaded.model, "make_cache") else None
    if cache is None:
        from mlx_lm.models.cache import make_prompt_cache

        cache = make_prompt_cache(loaded.model)
    logits = loaded.model(tokens, cache=cache)[:, -1]
    mx.eval(logits)
    step = medians(step=lambda: loaded.model(tokens[:, :1], cache=cache)[:, -1])["step"]
    keys = mx.array([random_key(0, "draw", row) for row in range(size)], dtype=mx.uint32)
    print(f"batch {size}: a decoding step after 64 tokens takes {step:.1f} ms of CPU time")
    print("\n| vocabulary | top-p | top-k | keyed, ms | one key, ms | more, of a step | keyed, of a step |")
    print("|---|---|---|---|---|---|---|")
    for vocabulary in (logits.shape[-1], 151_936):
        some = 3 * mx.random.normal((size, vocabulary))
        some -= mx.logsumexp(some, axis=-1, keepdims=True)  # what mlx-lm's sampler takes
        mx.eval(some)
        for top_p, top_k in ((1.0, 0), (0.9, 0), (0.8, 20)):
            if top_k >= vocabulary:
                continue
            with_keys, with_one = drawer(Sampling(0.7, top_p, top_k)), make_sampler(0.7, top_p, top_k=top_k)
            if top_p == 1 and top_k == 0:
                with_one = categorical
            found = medians(  # mypy cannot infer a lambda whose defaults bind the loop's variables
                keyed=lambda some=some, draw=with_keys: draw(some, keys)[0],  # type: ignore[misc]
                one=lambda some=some, draw=with_one: draw(some),  # type: ignore[misc]
            )
            print(
                f"| {vocabulary:,} | {top_p} | {top_k} | {found['keyed']:.1f} | {found['one']:.1f} "
                f"| {(found['keyed'] - found['one']) / step:+.1%} | {found['keyed'] / step:.1%} |",
                flush=True,
            )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"variance": variance, "drafts": drafts, "batches": batches, "draws": draws}
    parser.add_argument("what", nargs="*", choices=[*parts, []], metavar="PART", help=f"{', '.join(parts)}; all")
    for name, default in (("problems", 256), ("samples", 4), ("batch", 32), ("seeds", 3), ("max-tokens", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name in ("old", "model", "adapter", "data"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--prompt")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS])
    parser.add_argument("--temperatures", nargs="+", type=float, default=[0.0, 0.7])
    options = parser.parse_args()
    if options.adapter is not None:
        options.kinds = options.kinds[:1]  # one adapter is measured, whatever it is called
    with tempfile.TemporaryDirectory() as folder:
        for what in options.what or parts:
            parts[what](Path(folder), options)


if __name__ == "__main__":
    main()
