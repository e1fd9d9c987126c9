"""One-step problems of the size of SmolLM2-135M-Instruct, for studies that need a real model which is sometimes right:
python tools/one_step.py SEED COUNT > problems.jsonl

Additions and subtractions with numbers up to 6, told in two sentences. With `INSTRUCTION` the answers have about 20
tokens, so that a study of many runs fits on a CPU. Problems of different seeds may share an expression, but no two
problems of a list are the same.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import asdict

from upft_mlx.data.problems import Problem

INSTRUCTION = "{question} Answer in one short sentence."
LARGEST = 6
NAMES = ("Mia", "Tom", "Ana", "Ben", "Eva", "Leo", "Zoe", "Sam")
THINGS = ("apples", "books", "coins", "pens", "stones", "cards", "shells", "eggs")


def problems(count: int, seed: int) -> list[Problem]:
    """So many different problems, additions and subtractions in turns; the same for the same seed."""
    rng = random.Random(f"one step/{seed}")
    found: dict[str, str] = {}
    while len(found) < count:
        name, thing = rng.choice(NAMES), rng.choice(THINGS)
        first, second = rng.randint(1, LARGEST), rng.randint(1, LARGEST)
        if len(found) % 2:
            text = f"{name} has {first} {thing} and gets {second} more. How many {thing} does {name} have now?"
            found[text] = str(first + second)
        elif first > second:
            text = f"{name} has {first} {thing} and gives away {second}. How many {thing} does {name} have left?"
            found[text] = str(first - second)
    return [Problem(f"{seed}-{number}", *pair) for number, pair in enumerate(found.items())]


if __name__ == "__main__":
    for problem in problems(int(sys.argv[2]), int(sys.argv[1])):
        print(json.dumps({name: asdict(problem)[name] for name in ("id", "question", "answer")}))
