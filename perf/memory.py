"""Does memory stay flat with more problems? python perf/memory.py

Each row is a process of its own that loads problems, samples or builds, and says its largest resident size.

  build      10,000 and 100,000 problems with a prefix of 16 tokens each (made up; nothing is sampled)
  generate   200 and 2,000 problems, the first 4 tokens of each solution, on the embedded model
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

SIZES = {"build": (10_000, 100_000), "generate": (200, 2_000)}


def question(number: int) -> str:
    """About as long as one of GSM8K's."""
    words = ["apples", "pens", "books", "cards"]
    text = f"Ann has {number} {words[number % 4]} and buys {number % 97} more in a shop that sells them by the dozen. "
    return text * 2 + "How many does she have in the end?"


def recipe(stage: str, folder: Path) -> Any:
    """The quickstart's model; prefixes only for generate."""
    from upft_mlx.recipe.schema import Recipe

    ratio = 0.0 if stage == "generate" else 0.1
    prefix = {"length": 4 if stage == "generate" else 16, "structure_ratio": ratio}
    return Recipe.model_validate(
        {"model": "builtin:arithmetic", "problems": {"path": str(folder / "p.jsonl")}, "prefix": prefix}
    )


def work(stage: str, count: int, folder: Path) -> None:
    """One row: prints the largest resident size in bytes."""
    from upft_mlx import pipeline
    from upft_mlx.rows import Solution, write_rows

    with (folder / "p.jsonl").open("w") as file:
        file.writelines(json.dumps({"question": question(number)}) + "\n" for number in range(count))

    def solutions() -> Iterator[Solution]:
        for number in range(count):
            yield Solution(str(number), 0, "prefix", list(range(40, 56)), "First, we find what is there.", "length")

    job = pipeline.prepare(recipe(stage, folder), folder / "run")
    with pipeline.opened(job):
        if stage == "build":
            write_rows(job.run.solutions, solutions())
        pipeline.do(job, stage)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        work(options.row[0], int(options.row[1]), Path(options.row[2]))
        return
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("upft-mlx", "mlx", "mlx-lm"))
    print(f"{versions}; Python {platform.python_version()}; {platform.machine()}, {os.cpu_count()} cores")
    for stage, counts in SIZES.items():
        peaks = []
        for count in counts:
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, __file__, "--row", stage, str(count), folder]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                peaks.append(int(done.stdout.split()[-1]))
            print(f"{stage:>9}  {count:>7,} problems: {peaks[-1] / 1e6:.0f} MB")
        print(f"{'':>9}  ten times the problems: {peaks[1] / peaks[0] - 1:+.1%}")


if __name__ == "__main__":
    main()
