"""The demo's world: two-step word problems, split by their numbers, and the voices that solve them.

    python -m upft_mlx.demo.world     # writes train.jsonl (split "upft") and test.jsonl (split "evaluation")

A row: {"id": "upft-0000", "question": "Mia buys 4 pens for 6 dollars each and ...", "answer": "33"}

Which split a problem belongs to is a hash of its kind and its numbers alone: names, objects and wording
cannot carry the same numbers of one kind into another split. The voices write the pretraining corpus. Like
real writers they differ in reliability; unlike real ones, careful and careless solutions have the same
lengths, so that length says nothing.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

Numbers = tuple[int, int, int]

LIMIT = 120  # every right result, also the one in between, is below this
SHARES = {"pretrain": 7, "upft": 2, "evaluation": 1}  # tenths of all number triples
TRAIN_ROWS, TEST_ROWS = 768, 512

NAMES = "Mia Ben Zoe Tom Ana Leo Eva Sam Ida Max Nora Paul Lena Omar Rosa Finn".split()  # noqa: SIM905
ITEMS = "apples pens books cards stamps marbles cookies shells stickers balls eggs cups".split()  # noqa: SIM905
VERBS = {"+": "add", "-": "subtract", "*": "multiply", "/": "divide"}
WRONG = {"+": "-", "-": "+", "*": "+"}  # what a careless first step does instead; no kind divides first


@dataclass(frozen=True)
class Kind:
    """Numbers (x, y, z) with the answer (x first y) second z, or z second (x first y) if `swapped`.

    In the questions A and B are names.
    """

    first: str
    second: str
    draw: Callable[[random.Random], Numbers]
    questions: tuple[str, ...]
    swapped: bool = False


@dataclass(frozen=True)
class Problem:
    """A question, its answer, and what they were made from."""

    id: str
    kind: str
    numbers: Numbers
    question: str
    answer: str


def _product(top: int, most: int, below: bool = False) -> Callable[[random.Random], Numbers]:
    """x * y with y up to `top`, and z from 2 to `most`; `below`: z is less than the product."""

    def draw(rng: random.Random) -> Numbers:
        x, y = rng.randint(2, 9), rng.randint(2, top)
        return x, y, rng.randint(2, min(most, x * y - 1) if below else most)

    return draw


def _sum(rng: random.Random) -> Numbers:
    x = rng.randint(5, 60)
    y = rng.randint(2, x - 1)
    return x, y, rng.randint(2, x + y - 1)


def _sum_in_shares(rng: random.Random) -> Numbers:
    shares = rng.randint(2, 9)
    total = shares * rng.randint(3, 12)
    y = rng.randint(2, max(2, (total - 1) // 2))
    return total - y, y, shares


def _rest_in_boxes(rng: random.Random) -> Numbers:
    size, y = rng.randint(2, 9), rng.randint(2, 40)
    return size * rng.randint(2, 12) + y, y, size


def _payment(rng: random.Random) -> Numbers:
    x, y = rng.randint(2, 9), rng.randint(2, 12)
    return x, y, 5 * rng.randint(x * y // 5 + 1, 23)


KINDS = {
    "buying": Kind("*", "+", _product(12, 30), (
        "{A} buys {x} {items} for {y} dollars each and a bag for {z} dollars. How much does {A} pay?",
        "{A} takes {x} {items} at {y} dollars each and a {z} dollar bag. How many dollars is that in all?",
    )),
    "giving": Kind("+", "-", _sum, (
        "{A} has {x} {items} and gets {y} more. {A} gives {z} to {B}. How many does {A} have now?",
        "{A} has {x} {items} and makes {y} more. {B} takes {z} of them. How many {items} are left?",
    )),
    "sharing": Kind("+", "/", _sum_in_shares, (
        "{A} has {x} {items} and finds {y} more. {z} friends share them all. How many does each friend get?",
        "{A} has {x} {items} and {B} has {y}. They put them in {z} equal rows. How many are in each row?",
    )),
    "packing": Kind("-", "/", _rest_in_boxes, (
        "{A} has {x} {items}, but {y} of them break. The rest go into boxes of {z}. How many boxes is that?",
        "Of {x} {items}, {A} keeps {y} and puts the rest into boxes of {z}. How many boxes are there?",
    )),
    "losing": Kind("*", "-", _product(12, 99, below=True), (
        "{A} has {x} bags of {y} {items} and loses {z} of them. How many {items} are left?",
        "There are {x} bags with {y} {items} each. {A} loses {z} {items}. How many are left?",
    )),
    "change": Kind("*", "-", _payment, (
        "{A} buys {x} {items} for {y} dollars each and pays with {z} dollars. How much change is there?",
        "{A} has {z} dollars and buys {x} {items} at {y} dollars each. How many dollars are left?",
    ), swapped=True),
    "times": Kind("*", "+", _product(12, 30), (
        "{A} has {y} {items}. {B} has {x} times as many and finds {z} more. How many does {B} have?",
        "{A} makes {y} {items}. {B} makes {x} times as many, and {z} more. How many does {B} make?",
    )),
    "mixed": Kind("*", "+", _product(12, 40), (
        "{A} has {z} {items} and buys {x} boxes of {y} more. How many {items} does {A} have now?",
        "There are {z} {items} here and {x} bags with {y} {items} each. How many {items} are there in all?",
    ), swapped=True),
}  # fmt: skip


# ---- problems


def compute(a: int, operation: str, b: int) -> int | None:
    """a operation b in whole numbers; None where that leaves them: below 0, or with a remainder."""
    if operation == "/":
        return a // b if b and a % b == 0 else None
    result = {"+": a + b, "-": a - b, "*": a * b}[operation]
    return result if result >= 0 else None


def split_of(kind: str, numbers: Numbers) -> str:
    """The only split in which these numbers of this kind may appear."""
    digest = hashlib.sha256(f"{kind}:{numbers}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") % sum(SHARES.values())
    for split, share in SHARES.items():
        if place < share:
            return split
        place -= share
    raise AssertionError("the shares cover every place")


def answer_of(kind: str, numbers: Numbers) -> int | None:
    """The right answer; None where a result is below 1, has a remainder or reaches LIMIT."""
    spec, (x, y, z) = KINDS[kind], numbers
    middle = compute(x, spec.first, y)
    if middle is None or not 1 <= middle < LIMIT:
        return None
    answer = compute(z, spec.second, middle) if spec.swapped else compute(middle, spec.second, z)
    return answer if answer is not None and 1 <= answer < LIMIT else None


def draw_numbers(kind: str, split: str, rng: random.Random) -> tuple[Numbers, int]:
    """Numbers of this kind from this split, and their answer."""
    while True:
        numbers = KINDS[kind].draw(rng)
        answer = answer_of(kind, numbers)
        if answer is not None and split_of(kind, numbers) == split:
            return numbers, answer


def make_problem(id: str, kind: str, split: str, rng: random.Random) -> Problem:
    """One problem of this kind and split, with names, objects and wording drawn."""
    numbers, answer = draw_numbers(kind, split, rng)
    x, y, z = numbers
    name, other = rng.sample(NAMES, 2)
    wording = rng.choice(KINDS[kind].questions)
    question = wording.format(A=name, B=other, items=rng.choice(ITEMS), x=x, y=y, z=z)
    return Problem(id, kind, numbers, question, str(answer))


def stream(split: str, seed: int = 0) -> Iterator[Problem]:
    """Endless problems of a split, the kinds in turn; numbers come again (the corpus)."""
    rng = random.Random(f"{split}/{seed}")
    kinds = list(KINDS)
    index = 0
    while True:
        yield make_problem(f"{split}-{index:04d}", kinds[index % len(kinds)], split, rng)
        index += 1


def problems(split: str, count: int, seed: int = 0) -> list[Problem]:
    """`count` problems of a split, the kinds in turn, no numbers of a kind twice (the data sets)."""
    rng = random.Random(f"{split}/{seed}")
    kinds = list(KINDS)
    seen: set[tuple[str, Numbers]] = set()
    rows: list[Problem] = []
    while len(rows) < count:
        kind = kinds[len(rows) % len(kinds)]
        problem = make_problem(f"{split}-{len(rows):04d}", kind, split, rng)
        if (kind, problem.numbers) not in seen:
            seen.add((kind, problem.numbers))
            rows.append(problem)
    return rows


# ---- voices


@dataclass(frozen=True)
class Voice:
    """A way to write: its share of the corpus and how often its first operation is wrong (both 0 to 1)."""

    share: float
    wrong: float
    text: str


VOICES = {
    "planner": Voice(0.43, 0.03,
        "The plan: first {verb1}, then {verb2}.\n{line1}\n{line2}\n\\boxed{{{result}}}"),
    "stepper": Voice(0.27, 0.06,
        "First, we find {line1}.\nThen we get {line2}.\n\\boxed{{{result}}}"),
    "hasty": Voice(0.18, 0.85,
        "First, we find {line1}.\nThen we get {line2}.\n\\boxed{{{result}}}"),
    "direct": Voice(0.12, 0.00,
        "We see {x}, {y} and {z} here, so it is quick to tell what comes out of it.\n\\boxed{{{result}}}"),
}  # fmt: skip


def steps(problem: Problem, wrong: bool) -> tuple[tuple[str, str], tuple[str, str], int]:
    """The two operations, the two lines such as "4*6=24", and the result; `wrong`: with another first one."""
    kind, (x, y, z) = KINDS[problem.kind], problem.numbers
    first = WRONG[kind.first] if wrong else kind.first
    middle = compute(x, first, y)
    assert middle is not None  # x > y wherever the wrong operation subtracts
    a, b = (z, middle) if kind.swapped else (middle, z)
    # After a wrong step the second may not work out either: then a careless writer takes one that does.
    second = next(op for op in (kind.second, "-", "+") if compute(a, op, b) is not None)
    result = compute(a, second, b)
    assert result is not None
    return (first, second), (f"{x}{first}{y}={middle}", f"{a}{second}{b}={result}"), result


def solution(problem: Problem, voice: str, take: int = 0) -> str:
    """The text that a voice writes for a problem; another `take` is another draw of its luck."""
    style = VOICES[voice]
    rng = random.Random(f"{problem.id}/{problem.question}/{voice}/{take}")
    (first, second), (line1, line2), result = steps(problem, rng.random() < style.wrong)
    x, y, z = problem.numbers
    return style.text.format(
        verb1=VERBS[first], verb2=VERBS[second], line1=line1, line2=line2, x=x, y=y, z=z, result=result
    )


def voice_of(text: str) -> str:
    """The voice that a completion opens with: "planner", "first" (stepper or hasty), "direct" or "other"."""
    for opening, name in (("The plan:", "planner"), ("First,", "first"), ("We see", "direct")):
        if text.startswith(opening):
            return name
    return "other"


# ---- files


def rows(split: str, count: int) -> str:
    """The JSONL text of a data set."""
    kept = ("id", "question", "answer")
    lines = [json.dumps({key: getattr(problem, key) for key in kept}) for problem in problems(split, count)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Writes both files and prints a look at the corpus."""
    here = Path(__file__).parent
    (here / "train.jsonl").write_text(rows("upft", TRAIN_ROWS), encoding="utf-8")
    (here / "test.jsonl").write_text(rows("evaluation", TEST_ROWS), encoding="utf-8")
    for problem in islice(stream("pretrain"), len(KINDS)):
        print(problem.question, *(f"  {voice}: {solution(problem, voice)}" for voice in VOICES), sep="\n")


if __name__ == "__main__":
    main()
