"""Answers made to keep a grader busy, to crash it or to fool it: all of them wrong."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

GOLD = "42"


def _deep(rng: random.Random) -> str:
    depth = rng.choice([50, 1000, 10_000])
    opening, closing = rng.choice(
        [(r"\frac{1}{", "}"), (r"\sqrt{", "}"), ("(", ")"), ("{", "}"), (r"\left[", r"\right]")]
    )
    return rf"\boxed{{{opening * depth}42{closing * depth}}}"


def _short_and_deep(rng: random.Random) -> str:
    depth = rng.randint(3, 40)
    opening, closing = rng.choice([(r"\frac{x}{1+", "}"), (r"\sqrt{2+", "}"), ("(1+", ")"), ("{3,", "}"), ("[4,", ")")])
    return rf"\boxed{{{opening * depth}42{closing * depth}}}"


def _digits(rng: random.Random) -> str:
    digits = rng.choice("123456789") * rng.choice([300, 5000, 2_000_000])
    return rng.choice([rf"\boxed{{{digits}}}", f"#### {digits}", f"The answer is {digits}.", digits])


def _unclosed(rng: random.Random) -> str:
    return rng.choice([r"\boxed{", r"\boxed{" * 5000, r"\fbox{\boxed{"]) + rng.choice(
        ["42", r"\frac{84}{2", "42 " * 500]
    )


def _nulls(rng: random.Random) -> str:
    inside = rng.choice(["4\x002", "42\x00", "\x00" * 1000, "\x00\x01\x02 42", "\ud800", "\x1b[31m42\x1b[0m"])
    return rng.choice([rf"\boxed{{{inside}}}", f"The answer is {inside}", inside])


def _towers(rng: random.Random) -> str:
    base, height = rng.choice("29x"), rng.randint(3, 60)
    towers = [
        "^{".join([base] * height) + "}" * (height - 1),
        "**".join([base] * height),
        rf"({base}+1)^{{{10 ** rng.randint(2, 9)}}}",
        rf"{10 ** rng.randint(3, 30)}!",
        rf"\binom{{{10 ** rng.randint(4, 9)}}}{{{10**3}}}",
        rf"\sum_{{k=1}}^{{{10 ** rng.randint(3, 9)}}} k^{{k}}",
        rf"\int_0^\infty e^{{-x^{{{rng.randint(2, 99)}}}}} \sin(x^x) dx",
        "+".join(rf"(x+{k})^{{9}}" for k in range(40)),
        "".join(rf"(x_{{{k}}}+{k})^{{10}}" for k in range(20)),
        r"\log(" * 20 + "2" + ")" * 20,
    ]
    return rf"\boxed{{{rng.choice(towers)}}}"


def _lists(rng: random.Random) -> str:
    parts = [
        rf"\frac{{{rng.randint(1, 99)}x+\sqrt{{{rng.randint(2, 99)}}}}}{{y-{k}}}" for k in range(rng.randint(8, 40))
    ]
    nested = "{" * 30 + "1,2},3},4},5},6},7},8},9}" + "}" * 22
    return rf"\boxed{{{rng.choice([', '.join(parts), nested, '(' + ', '.join(parts) + ')'])}}}"


PIECES = [
    *(
        "\\",
        "$",
        "\n",
        " ",
        "\n\n#### ",
        "answer is ",
        r"\boxed{}",
        "{}",
        "**",
        "<answer>",
        "Q:\n",
        "a b ",
        "1,",
        "\u00e9",
    ),
    *(
        "A: ",
        r"\frac",
        "final answer is ",
        "answer: ",
        "\\\\boxed",
        "</think>",
        "%",
        "-",
        "(",
        "0.",
        r"\text{",
        "= ",
        "1 000 ",
    ),
]


def _noise(rng: random.Random) -> str:
    return rng.choice(PIECES) * rng.choice([10, 1000, 300_000])


def _soup(rng: random.Random) -> str:
    pieces = [
        *"0123456789xyz+-*/^_=<>(){}[],.;:%$!& ",
        r"\frac{",
        r"\sqrt{",
        r"\boxed{",
        r"\pm",
        r"\cup",
        r"\begin{pmatrix}",
    ]
    return rf"\boxed{{{''.join(rng.choices(pieces, k=rng.randint(20, 350)))}}}"


KINDS: tuple[Callable[[random.Random], str], ...] = (
    *(_deep, _short_and_deep, _digits, _unclosed, _nulls, _towers, _lists, _noise, _soup),
)


def hostile(count: int, seed: int = 0) -> list[str]:
    """So many answers, the kinds in turn; none of them gives GOLD."""
    rng = random.Random(seed)
    return [KINDS[index % len(KINDS)](rng) for index in range(count)]


GOLDS = [
    *(
        "2^{1000}",
        r"\frac{x+1}{y-2}",
        r"\sqrt{x}+\sin x",
        "x^2-5x+6=0",
        r"\log_3 x",
        r"(1,\sqrt2)",
        r"\{1,\sqrt{x},y\}",
    ),
    *(r"\binom{1000}{500}", "100!", r"\text{yes}", "x<5", r"e^{x^{2}}", r"x_1=\sqrt2, x_2=\sqrt3", "42"),
]


def _costly(rng: random.Random) -> str:
    """What the grader does not refuse at once."""
    n = rng.randint(2, 60)
    answers = [
        *(
            rf"\log_{{{n}}} x",
            rf"\frac{{x^{{{n}}}-1}}{{x-1}}",
            rf"{n}^{{x}}={n + 1}^{{y}}",
            rf"x^{{{n}}}+y^{{{n}}}={n}^{{{n}}}",
        ),
        *(rf"\tan(\tan(\tan(x^{{{n}}})))", "+".join(rf"\frac{{1}}{{x+{k}}}" for k in range(20)), "x" * 100_000),
        rf"{n}^{{{n}}}" + r" + \frac{a}{b} + \sqrt{c}" * 5000,
    ]
    return rf"\boxed{{{rng.choice(answers)}}}"


def hostile_pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """So many pairs of a completion and a gold, one or both hostile; none of them equal.

    Short ones that differ only in their numbers are left out: several of those take until they are given up.
    """
    rng = random.Random(seed)
    texts = hostile(count, seed + 1)
    golds = [rng.choice(GOLDS) if place % 5 else _costly(rng) for place in range(count)]
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for place, (text, gold) in enumerate(zip(texts, golds, strict=True)):
        pair = (text if place % 2 else _costly(rng), gold)
        shape = (re.sub(r"\d+", "n", pair[0]), re.sub(r"\d+", "n", gold))
        found.setdefault(shape if sum(map(len, pair)) < 600 else pair, pair)
    return list(found.values())
