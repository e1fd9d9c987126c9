"""CPU time of this checkout against another commit's: python perf/against.py [--commit 4af643a] [--rounds 1] [PART ...]

Both sides run the same `upft` commands on the same files in turns, each in processes of its own, in one environment:
this one's. The other commit is checked out beside it for the time of the comparison. What is reported is the CPU time
of the commands, loading included, and for the test suite wall time. Steps are taken by each side's `train` in a
process of its own on the same rows, and the second one counts: the first one also makes what is made once.

  step      a training step on SmolLM2-135M-Instruct at 4 bits: 8 GSM8K prefixes with prompts, LoRA on all layers
  sampling  prefixes of 16 tokens for 8 GSM8K questions with the same model
  evaluate  16 GSM8K questions, 32 tokens each, the base model alone
  quickstart  `upft run quickstart`, which is what `upft demo` ran at that commit
  tests     each side's whole suite, and the tests that both sides have, by name; only when asked for

The model is made by shared/bin/make_smollm2.py, or is the folder that UPFT_SMOLLM2 names.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

from turns import ROOT, SHARED, gsm8k_rows, make_model, write

PARTS = ("step", "sampling", "evaluate", "quickstart", "tests")
STAGES = {"sampling": "generate", "evaluate": "evaluate"}
"""The command of a part."""
STEP = """
import os, sys, time
from pathlib import Path
from upft_mlx import load_recipe
from upft_mlx.rundir import RunDir
try:
    from upft_mlx.models.load import load
    from upft_mlx.training.step import Stepper
    from upft_mlx.training.train import train
except ImportError:  # the names at 4af643a
    from upft_mlx.models import load
    from upft_mlx.stage_train import Stepper, train

real, calls = Stepper.step, []


def step(self, *arguments):
    begin = time.process_time()
    found = real(self, *arguments)
    if calls:  # the first one also makes what is made once
        print(time.process_time() - begin, flush=True)
        os._exit(0)
    calls.append(1)
    return found


Stepper.step = step
recipe = load_recipe(sys.argv[1])
train(recipe, load(Path(recipe.model)), RunDir(Path(sys.argv[2])))
"""
SETTINGS = ("prefix.eos=true", "prefix.template=paper")
OURS = ('prompt.instruction="{question}"',)
"""The same rows on both sides: the defaults have changed since, and the other side has no such field."""


def main() -> None:
    """Print a line per part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART")
    parser.add_argument("--commit", default="4af643a")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    parts = options.parts or [part for part in PARTS if part != "tests"]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"this checkout: {blas(ROOT)}; {options.commit}: {options.rounds} rounds in turns, medians")
    with tempfile.TemporaryDirectory() as folder, checkout(options.commit, Path(folder) / "other") as other:
        work = Path(folder)
        model = work / "smollm2"
        if {"step", "sampling", "evaluate"} & set(parts):
            make_model("smollm2", model)
        for part in parts:
            if part == "tests":
                compare_suites(other, work)
                continue
            costs: dict[Path, list[float]] = {ROOT: [], other: []}
            for number in range(options.rounds):
                for side in (ROOT, other) if number % 2 == 0 else (other, ROOT):
                    costs[side].append(measure(part, side, model, work / f"{part}-{number}-{side.name}"))
            ours, theirs = (statistics.median(costs[side]) for side in (ROOT, other))
            print(f"{part:9} {ours:8.1f} CPU s against {theirs:8.1f}: {theirs / ours:5.1f} times less", flush=True)


@contextmanager
def checkout(commit: str, folder: Path) -> Iterator[Path]:
    """The other commit's files, for a while."""
    subprocess.run(["git", "-C", ROOT, "worktree", "add", "-q", "--detach", folder, commit], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", folder], check=True)


def blas(side: Path) -> str:
    """What matrix products run on."""
    code = "from upft_mlx.machine import blas; print(blas.used())"
    return run(side, ["-c", code])[1].strip()


def measure(part: str, side: Path, model: Path, work: Path) -> float:
    """What a part costs on one side."""
    work.mkdir()
    if part == "quickstart":
        return run(side, ["-m", "upft_mlx", "run", "quickstart", "--plain", "--run-dir", str(work / "run")])[0]
    recipe = work / "recipe.json"
    recipe.write_text(json.dumps(recipe_of(model)))
    if part == "step":
        same = {"sample": 0, "kind": "prefix"}
        rows = ({"id": str(n), "problem_id": str(n), **same, **row} for n, row in enumerate(gsm8k_rows(model, 8)))
        write(work / "run" / "dataset" / "train.jsonl", rows)
        write(work / "run" / "dataset" / "valid.jsonl", ())
        return float(run(side, ["-c", STEP, str(recipe), str(work / "run")])[1])
    settings = (*SETTINGS, *(OURS if side == ROOT and part != "evaluate" else ()))
    command = ["-m", "upft_mlx", STAGES[part], str(recipe), "--run-dir", str(work / "run"), "--plain"]
    return run(side, [*command, *(f"--set={setting}" for setting in settings)])[0]


def compare_suites(other: Path, work: Path) -> None:
    """Print how both suites end, their wall times, and the summed times of the tests that both have."""
    walls, times = {}, {}
    for side in (ROOT, other):
        result, begin = work / f"tests-{side.name}.xml", time.perf_counter()
        processes = ["-n", "auto"] if side == ROOT else []  # each as its README says
        run(side, ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={result}", *processes], cwd=side)
        walls[side] = time.perf_counter() - begin
        times[side], outcomes = Counter[str](), Counter[str]()
        for case in ElementTree.parse(result).iter("testcase"):
            times[side][case.get("name", "").partition("[")[0]] += float(case.get("time", 0))
            outcome = next((part.tag for part in case if not part.tag.startswith("system-")), "passed")
            outcomes[outcome] += 1
            if outcome in ("failure", "error"):
                print(f"tests     {side.name}: {outcome} in {case.get('classname')}: {case.get('name')}", flush=True)
        print(f"tests     {side.name}: {dict(outcomes)} in {walls[side]:.0f} s", flush=True)
    print(f"tests     {walls[ROOT]:8.1f} s wall against {walls[other]:8.1f}: {walls[ROOT] / walls[other]:.2f} of it")
    names = times[ROOT].keys() & times[other].keys()
    ours, theirs = (sum(times[side][name] for name in names) for side in (ROOT, other))
    which = f"{len(names):,} test functions that both have, of {len(times[other]):,} and {len(times[ROOT]):,}"
    print(f"          {ours:8.1f} s      against {theirs:8.1f}: {ours / theirs:.2f} of it; {which}", flush=True)


def recipe_of(model: Path) -> dict[str, object]:
    """A small run on real questions."""
    data = SHARED / "data" / "benchmarks"
    return {
        "model": str(model),
        "problems": {"path": str(data / "gsm8k_train.jsonl"), "limit": 8},
        "generate": {"max_tokens": 64, "batch_size": 8},
        "prefix": {"length": 16, "structure_ratio": 0},
        "train": {"batch_size": 8, "learning_rate": 1e-4, "valid_ratio": 0, "steps": 2},
        "evaluate": {
            "max_tokens": 32,
            "benchmarks": [{"name": "gsm8k", "path": str(data / "gsm8k_test.jsonl"), "limit": 16}],
        },
    }


def run(side: Path, arguments: list[str], cwd: Path | None = None) -> tuple[float, str]:
    """CPU seconds of a Python on one side, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(side), "UPFT_SHARED": str(SHARED)}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd or side,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode and "pytest" not in arguments:
        sys.exit(f"{side.name}: {' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


if __name__ == "__main__":
    main()
