"""What sampling prefixes costs here and with mlx-lm: python perf/sampling.py [--shape tiny] [--samples 1,4]

The first 16 tokens of solutions to GSM8K questions, greedily, one sample and four per question, by

  ours      upft_mlx's sampler as `upft generate` calls it: chunks of like length, what prompts share passed once, a
            prompt once for all its samples
  mlx-lm    `mlx_lm.generate.batch_generate(max_tokens=16)` on all prompts, each as often as samples are wanted

Both in one process on one model, in turns; a short run of each before is not counted, so that loading kernels is not.
The tokens of both are compared. Peak memory is MLX's, the model included. Greedy, so that tokens can be compared; at a
temperature both draw from the same logits.

The model comes from make_qwen.py, or with --shape smollm2 it is SmolLM2-135M-Instruct at 4 bits, and the questions come
from the data folder that UPFT_SHARED names (default ../shared).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from turns import SHARED, make_model

LENGTH = 16


def prepare(work: Path, options: argparse.Namespace) -> list[str]:
    """model/ and the questions."""
    make_model(options.shape, work / "model")
    with (SHARED / "data" / "benchmarks" / "gsm8k_train.jsonl").open(encoding="utf-8") as lines:
        return [str(json.loads(next(lines))["question"]) for _ in range(options.prompts)]


def ours(loaded: Any, questions: list[str], samples: int, options: argparse.Namespace) -> list[list[int]]:
    """As `upft generate` does it: rendering included, the rows in the order of the questions."""
    from array import array

    from upft_mlx.dataset.prefix import Wanted
    from upft_mlx.models.chat import Renderer
    from upft_mlx.recipe.schema import Prompt
    from upft_mlx.sampling.decoding import Request
    from upft_mlx.sampling.draw import Sampling
    from upft_mlx.sampling.generate import SamplingOrder
    from upft_mlx.sampling.sampler import Sampler

    renderer = Renderer(loaded.tokenizer, Prompt())
    sampler = Sampler(loaded, Sampling(0.0, batch_size=options.batch))
    wanted = [Wanted(number, "prefix", samples) for number in range(len(questions))]
    plan = SamplingOrder(wanted, array("L", map(len, questions)), options.batch)
    made = []
    for number in range(len(plan.sizes)):
        requests = [Request(renderer.ids(questions[w.number]), LENGTH, samples) for w in plan.chunk(number)]
        made += [completion.ids for completion in sampler.sample(requests, seed=number)]
    return [made[line] for line in plan.lines()]


def mlx_lm(loaded: Any, questions: list[str], samples: int, options: argparse.Namespace) -> list[list[int]]:
    """As its users call it: rendering included, its own batch sizes."""
    from mlx_lm.generate import batch_generate

    from upft_mlx.models.chat import Renderer
    from upft_mlx.recipe.schema import Prompt

    renderer = Renderer(loaded.tokenizer, Prompt())
    prompts = [renderer.ids(question) for question in questions for _ in range(samples)]
    result = batch_generate(loaded.model, loaded.tokenizer, prompts, max_tokens=LENGTH, return_token_ids=True)
    ids: list[list[int]] = result.token_ids
    return ids


def timed(work: Callable[[], list[list[int]]]) -> dict[str, Any]:
    """Seconds, CPU seconds, peak memory, and what came out."""
    import mlx.core as mx

    mx.clear_cache()
    mx.reset_peak_memory()
    cpu, begin = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    ids = work()
    seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF)
    spent = after.ru_utime + after.ru_stime - cpu.ru_utime - cpu.ru_stime
    return {"seconds": seconds, "cpu_seconds": spent, "peak_memory_bytes": mx.get_peak_memory(), "ids": ids}


def race(loaded: Any, questions: list[str], samples: int, options: argparse.Namespace) -> dict[str, Any]:
    """Both in turns, `--rounds` times."""
    contestants = {"ours": ours, "mlx-lm": mlx_lm}
    totals: dict[str, dict[str, Any]] = {name: {"seconds": 0.0, "cpu_seconds": 0.0} for name in contestants}
    for function in contestants.values():
        function(loaded, questions[:8], 1, options)
    for number in range(options.rounds):
        for name, function in contestants.items():
            one = timed(lambda function=function: function(loaded, questions, samples, options))  # type: ignore[misc]
            for key in ("seconds", "cpu_seconds"):
                totals[name][key] += one[key]
            totals[name].update(peak_memory_bytes=one["peak_memory_bytes"], ids=one["ids"])
        print(f"samples {samples}: round {number + 1} of {options.rounds}", file=sys.stderr)
    mine, theirs = totals["ours"].pop("ids"), totals["mlx-lm"].pop("ids")
    same = sum(a == b for a, b in zip(mine, theirs, strict=True))
    return {"contestants": totals, "completions": len(mine), "identical": same}


def show(samples: int, found: dict[str, Any], options: argparse.Namespace) -> None:
    """The table of one race."""
    print(f"{options.prompts} questions, {samples} sample(s) each, t = {LENGTH}")
    mine = found["contestants"]["ours"]
    for name, one in found["contestants"].items():
        rate = options.prompts * options.rounds / one["seconds"]
        ratio, cpu = one["seconds"] / mine["seconds"], one["cpu_seconds"] / mine["cpu_seconds"]
        print(
            f"  {name:>7}: {rate:6.2f} questions/s; ours is {ratio:.2f}x, by CPU time {cpu:.2f}x; "
            f"peak {one['peak_memory_bytes'] / 1e6:.0f} MB"
        )
    print(f"  identical completions: {found['identical']} of {found['completions']}")


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="ratio-0.5b")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--samples", default="1,4", help="per question")
    parser.add_argument("--batch", type=int, default=32, help="generate.batch_size of ours; mlx-lm's default is 32 too")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    options = parser.parse_args()
    from upft_mlx.machine import blas
    from upft_mlx.models.load import load

    versions = {name: metadata.version(name) for name in ("upft-mlx", "mlx", "mlx-lm")}
    machine = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
    machine["blas"] = str(blas.used())
    print("; ".join(f"{key} {value}" for key, value in {**versions, **machine, "shape": options.shape}.items()))
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        questions = prepare(Path(folder), options)
        loaded = load(Path(folder) / "model")
        for samples in map(int, options.samples.split(",")):
            results[samples] = race(loaded, questions, samples, options)
            show(samples, results[samples], options)
    if options.json:
        text = json.dumps(
            {"versions": versions, "machine": machine, "shape": options.shape, "results": results}, indent=2
        )
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
