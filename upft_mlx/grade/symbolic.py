r"""Equality of two expressions by Math-Verify, past what it gets wrong (sympy is loaded at the first need).

What could take long is refused (`too_costly`); whatever else takes long, or much memory, is the business of the process
that asks: `grading` asks in one that can be killed.
"""

import logging
import re
from functools import lru_cache
from itertools import accumulate
from typing import Any

from upft_mlx.grade.values import MAX_LENGTH, is_maths

MAX_DEPTH = 8  # brackets inside brackets
MAX_EXPONENT = 100
MAX_NUMERIC_EXPONENT = 9999  # where there is no letter and no function: 2^{4950}
DIGITS = 40  # to which constants are worked out

here = False
"""Whether this process is one that may ask Math-Verify: a worker, which can be killed."""

_HEAVY = re.compile(
    r"\\(?:int|iint|oint|prod|lim|cdots|ldots|dots)(?![a-z])|!!|[)}\]]\s*!|\d{3,}\s*!|\d{40,}|\\binom\{[^{}]*\d{4}"
    r"|\\sum.*(?:\\sum|\d{3})|\d{3}.*\\sum"
    r"|(?:\^|\*\*|\\exp)\s*(?:[{(](?:[^{}()]|\{[^{}]*\})*|\d+|\w)\s*(?:\^|\*\*)"  # towers
    r"|\\exp[^a-z]*\d{3}|(?:\^|\*\*)\s*\{[^{}]*\{[^{}]*\d{3}"
    r"|[)}\]]\s*(?:\^|\*\*)\s*\{?\s*(?:1[1-9]|[2-9]\d|\d{3})"  # powers of brackets
)
_EXPONENT = re.compile(r"(?:\^|\*\*)\s*\{?\s*-?(\d+)", re.A)
_BRACKET_POWER = re.compile(r"[)}\]]\s*(?:\^|\*\*)")
_BASED = re.compile(r"\d[A-F]*\s*_")  # 52_8: Math-Verify drops the base
_UNREAD = re.compile(  # Math-Verify loses order and primes of \overrightarrow{AB}, \frac{dy}{dx}, f'(x)
    r"\\[a-zA-Z]+\s*\{?\s*[A-Z]{2}|\\frac\{d[a-z]?\}\{d[a-z]|'"
)
_IMAGINARY = re.compile(r"(?<![a-zA-Z\\])i(?![a-zA-Z])(?!.*\\sum)")
_DECIMAL = re.compile(r"\d*\.(\d+)")


def equal(wanted: str, given: str, precision: int, *, strict: bool, allow_set_relation_comp: bool) -> bool:
    """Whether Math-Verify holds two tidied answers equal and their values bear it out; what it cannot read is unequal.

    Args:
        wanted: the gold answer.
        given: the model's.
        precision: see `equal.Rules`, like the rest.
        strict: whether names of variables count.
        allow_set_relation_comp: whether a relation may equal a gold set.
    """
    _, verify, _ = load()
    try:
        first, second = parsed = [_parsed(text.replace("%", "")) for text in (wanted, given)]
        # digits behind the point of the longest decimal
        places = max((len(match[1]) for match in _DECIMAL.finditer(f"{wanted} {given}")), default=None)
        constant = _same_constant(first[0], second[0], precision, places)
        if constant is not None:
            return constant
        options = {"strict": strict, "allow_set_relation_comp": allow_set_relation_comp, "timeout_seconds": None}
        if not verify(*parsed, float_rounding=precision, **options):
            return False
        from sympy import Expr, Rational

        if not strict or not isinstance(first[0], Expr) or not isinstance(second[0], Expr):
            return True
        names = sorted(first[0].free_symbols | second[0].free_symbols, key=str)
        point = {name: Rational(7 * place + 13, 11 + 2 * place) for place, name in enumerate(names)}
        there = _same_constant(first[0].subs(point), second[0].subs(point), float("inf"), places)
        return there is not False  # equal at a point as well, or not to be told
    except MemoryError:
        raise
    except Exception:  # sympy raises nearly anything on a model's text
        return False


class CostlyError(Exception):
    """The comparison takes Math-Verify, and so a worker."""


def comparable(wanted: str, given: str) -> bool:
    """Whether Math-Verify can be trusted with these, and not for long."""
    if not is_maths(wanted) or not is_maths(given) or ("%" in wanted) != ("%" in given):
        return False
    both = f"{wanted} {given}"
    if _BASED.search(both) or _UNREAD.search(both):
        return False
    # Math-Verify reads capital letters as small ones, which makes R equal r.
    letters = [set(re.findall("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", text))) for text in (wanted, given)]
    lowered = [{letter.lower() for letter in found} for found in letters]
    if letters[0] != letters[1] and lowered[0] == lowered[1]:
        return False
    return not too_costly(wanted) and not too_costly(given)


def _same_constant(a: Any, b: Any, precision: float, places: int | None) -> bool | None:
    """Whether two constants have one value, or one is the other rounded; None of what is no constant.

    Args:
        a: an expression.
        b: another.
        precision: digits behind the point from which a decimal may be rounded.
        places: how many the longest decimal has; None: there is none, and the values are exact.
    """
    if not all(getattr(value, "is_number", False) and getattr(value, "is_commutative", False) for value in (a, b)):
        return None
    first, second = (value.evalf(DIGITS, maxn=4 * DIGITS).as_real_imag() for value in (a, b))
    size = max(map(abs, (*first, *second)))
    if not size.is_finite:
        return bool(a == b)
    distance = max(abs(first[0] - second[0]), abs(first[1] - second[1]))
    if places is not None and places >= precision and 2 * distance * 10**places <= 1:
        return bool(size * 10**places >= 1000)
    return bool(distance <= size / 10 ** (DIGITS - 10 if places is None else 12))


@lru_cache(maxsize=1024)
def _parsed(text: str) -> Any:
    from sympy import Expr, I

    parse, _, config = load()
    options = {"extraction_config": [config], "fallback_mode": "no_fallback", "parsing_timeout": None}
    found = parse(rf"\boxed{{{text}}}", **options)
    if found and _IMAGINARY.search(text) and isinstance(found[0], Expr):
        return [found[0].subs({name: I for name in found[0].free_symbols if name.name == "i"}), *found[1:]]
    return found


@lru_cache(maxsize=1)
def load() -> tuple[Any, Any, Any]:
    """`parse`, `verify` and what to extract."""
    from math_verify import LatexExtractionConfig, parse, verify

    for module in ("parser", "grader"):  # both warn that their timeouts are off, and of what they gave up
        logging.getLogger(f"math_verify.{module}").setLevel(logging.CRITICAL)
    config = LatexExtractionConfig(boxed_match_priority=0)
    first, second = (parse(rf"\boxed{{{text}}}", [config], parsing_timeout=None) for text in ("(x+1)^2", "x^2+2x+1"))
    verify(first, second, timeout_seconds=None)  # the first time takes a second: tables are built, modules loaded
    return parse, verify, config


def too_costly(answer: str) -> bool:
    """Whether an expression could keep sympy busy: towers and high powers, factorials, sums, deep nesting."""
    if len(answer) > MAX_LENGTH or _HEAVY.search(answer) or max(depths(answer), default=0) > MAX_DEPTH:
        return True
    numeric = not re.search("[a-zA-Z]", re.sub(r"\\(?:frac|cdot|times)", "", answer))
    highest = max((int(digits) for digits in _EXPONENT.findall(answer)), default=0)
    return len(_BRACKET_POWER.findall(answer)) > 4 or highest > (MAX_NUMERIC_EXPONENT if numeric else MAX_EXPONENT)


def depths(text: str) -> list[int]:
    """How many brackets are open after each character."""
    return list(accumulate((character in "([{") - (character in ")]}") for character in text))
