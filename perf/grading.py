"""Processor time of grading short answers, here and in another checkout: python perf/grading.py --against FOLDER."""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from pathlib import Path

FORMS = [
    ("#### {a}", "{b}"), ("The answer is {a}.", "{b}"), (r"so it is $\boxed{{{a}}}$.", "{b}"),
    (r"\boxed{{\frac{{{a}}}{{7}}}}", r"\frac{{{b}}}{{7}}"), ("That makes {a} apples", "{b}"),
    (r"\boxed{{{a:,}}}", "{b}"), (r"\boxed{{\${a}}}", "{b}"), (r"Thus \boxed{{({a}, 3)}}", "({b}, 3)"),
    ("It costs ${a}.50 in all", "{b}.5"), ("#### {a} dollars", "{b}"), (r"\boxed{{{a}\%}}", r"{b}\%"),
    (r"\boxed{{{a}, 5}}", "5, {b}"),
]  # fmt: skip


def measure(folder: str, count: int) -> float:
    """CPU seconds to grade `count` answers, half of them right, with the package in that folder."""
    sys.path.insert(0, folder)
    from upft_mlx.grade.correct import is_correct

    rng, pairs = random.Random(1), []
    for place in range(count):
        a = rng.randrange(10_000)
        b = a if place % 2 else rng.randrange(10_000)
        completion, gold = FORMS[place % len(FORMS)]
        pairs.append((completion.format(a=a), gold.format(b=b)))
    start = time.process_time()
    for pair in pairs:
        is_correct(*pair)
    return time.process_time() - start


def main() -> None:
    """Measure in turns, each in a process of its own, and print the least times."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--against", type=Path)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(measure(options.alone, options.count))
        return
    folders = [Path(__file__).parent.parent, *([options.against] if options.against else [])]
    least: dict[Path, float] = {}
    for _ in range(options.rounds):
        for folder in folders:
            command = [sys.executable, __file__, "--alone", str(folder.resolve()), "--count", str(options.count)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            least[folder] = min(least.get(folder, float("inf")), float(done.stdout))
    for folder, seconds in least.items():
        print(f"{folder}: {1e6 * seconds / options.count:.0f} us of processor time for an answer")
    if options.against:
        print(f"ratio: {least[folders[0]] / least[options.against]:.2f}")


if __name__ == "__main__":
    main()
