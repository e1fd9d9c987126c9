r"""Is this answer right? The cheap exact comparison first, Math-Verify for what is left.

    is_correct(r"... so \boxed{\frac{2}{4}}", "0.5")      True, without sympy
    is_correct(r"... \boxed{(x-1)(x+1)}", "x^2 - 1")      True, by Math-Verify
    is_correct(r"... \boxed{52_9}", "52_8")               False: the base counts

Groups (tuples, lists, sets, intervals, unions, matrices) are compared part by part here, so Math-Verify sees single
expressions only. It is called without its timeouts (they are signals, which only the main thread can set); what could
take long there is graded wrong unless it is written exactly like the gold answer: see `too_costly`.
"""

import logging
import re
import sys
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from types import FrameType
from typing import Any

from upft_mlx.answers import extract_answer, normalize_answer, normalize_gold
from upft_mlx.values import MAX_LENGTH, Group, Number, as_group, as_number, by_name, is_maths, key, sides, tidy

__all__ = ["extract_answer", "is_correct", "normalize_answer", "normalize_gold"]

BUDGET = 1_000_000  # Python calls that one parse or comparison may take
MAX_PARTS = 32  # of a group; a longer one is compared as text only
MAX_DEPTH = 8  # brackets inside brackets
MAX_EXPONENT = 100  # of a number or a symbol; 9999 where there is no function and no root, as in 2^{4950}
MAX_BRACKET_EXPONENT = 10  # of a bracket, which sympy may have to expand
ROUNDED_PLACES = 6  # digits behind the point from which a decimal may stand for a fraction

_BASED = re.compile(r"\d\s*_")  # 52_8: Math-Verify drops the base
_HEAVY = re.compile(r"\\(?:int|iint|oint|prod|lim|binom|choose)(?![a-z])|\\(?:cdots|ldots|dots)|!!|[)}\]]\s*!|\d{3,}\s*!")
_EXPONENT = re.compile(r"(?P<bracket>[)}\]])?\s*(?:\^|\*\*)\s*(?:\{(?P<braced>[^{}]*)|(?P<bare>-?\d|[^\d]))")
_PERCENT_BEHIND = re.compile(r"boxed\s*\{[^{}]*\}[\s$]*(?:\\?%|percent|pct)")
_WHOLE = re.compile(r"[<>]|\\begin|\\(?:le|ge|ne)(?![a-z])|(?<!\\)=")


def is_correct(completion: str, gold: str, *, percent_as_unit: bool = False) -> bool:
    r"""Whether the answer of `completion` equals `gold`, which may be in its data set's own format.

    `10\%` equals `10\%` and `0.1`, not `10`. With `percent_as_unit` it equals `10` too: for data sets like GSM8K,
    whose gold answers to "what percentage" leave the sign off. Never raises; no answer is a wrong answer.
    """
    answer = extract_answer(completion)
    if answer is None or len(answer) > MAX_LENGTH:
        return False
    wanted, given = tidy(normalize_gold(gold)), tidy(answer)
    if not wanted or not given:
        return False
    percent_as_unit = percent_as_unit or _percent_behind_box(completion) or _percent_behind_box(gold)
    if percent_as_unit and ("%" in wanted) != ("%" in given):
        return _equal(wanted, given) or _equal(wanted.replace("%", ""), given.replace("%", ""))
    return _equal(wanted, given)


def _percent_behind_box(text: str) -> bool:
    r"""Whether the sign stands outside, as in `\boxed{20}\%`: data sets keep the inside, so both readings are right."""
    return _PERCENT_BEHIND.search(text[max(0, text.rfind("boxed")) :]) is not None


def _equal(wanted: str, given: str) -> bool:
    """Whether two tidied answers are equal; names (`x =`) count only where both have one."""
    (name, value), (given_name, given_value) = sides(wanted), sides(given)
    if name and given_name and name != given_name:
        return _symbolic(wanted, given)
    if bool(name) != bool(given_name) and "=" in value + given_value:
        return _symbolic(wanted, given)
    return _same_value(value, given_value)


def _same_value(wanted: str, given: str) -> bool:
    if key(wanted) == key(given):
        return True
    numbers = as_number(wanted), as_number(given)
    if numbers[0] and numbers[1]:
        return _same_number(numbers[0], numbers[1])
    groups = as_group(wanted), as_group(given)
    if groups[0] and groups[1]:
        return _same_group(groups[0], groups[1])
    if (groups[0] or groups[1]) and not _WHOLE.search(wanted + given):
        return False
    return _symbolic(wanted, given)


def _same_number(a: Number, b: Number) -> bool:
    """Exact equality, or a decimal of six places and more that is the other number rounded.

    Floating point's tail (0.30000000000000004) is forgiven from ten places on.
    """
    if a.value == b.value:
        return True
    long, other = (a, b) if a.places >= b.places else (b, a)
    distance = abs(a.value - b.value)
    unit = Fraction(1, 10**long.places)
    if long.places >= ROUNDED_PLACES and abs(long.value) >= 1000 * unit and distance <= unit / 2:
        return True
    return long.places >= 10 and distance <= abs(other.value) / 10**9


def _same_group(a: Group, b: Group) -> bool:
    """Part by part in order, or as sets; an ordered group never equals an unordered one, nor `(` equal `[`."""
    if a.kind != b.kind and "()" in (a.kind, b.kind):
        a, b = by_name(a) or a, by_name(b) or b
    if a.kind != b.kind or max(len(a.parts), len(b.parts)) > MAX_PARTS:
        return False
    if a.ordered:
        return len(a.parts) == len(b.parts) and all(map(_equal, a.parts, b.parts))
    wanted, given = ({key(part): part for part in group.parts} for group in (a, b))
    rest = [part for name, part in given.items() if name not in wanted]
    for part in (part for name, part in wanted.items() if name not in given):
        match = next((candidate for candidate in rest if _equal(part, candidate)), None)
        if match is None:
            return False
        rest.remove(match)
    return not rest


@lru_cache(maxsize=4096)
def _symbolic(wanted: str, given: str) -> bool:
    """Equality of two expressions by Math-Verify, past what it gets wrong or could take forever over."""
    pair = f"{wanted} {given}"
    if not is_maths(wanted) or not is_maths(given) or _BASED.search(pair) or _tiny_decimal(wanted, given):
        return False
    if ("%" in wanted) != ("%" in given) or too_costly(wanted) or too_costly(given):
        return False
    return _verify(wanted.replace("%", ""), given.replace("%", ""))


def _tiny_decimal(*answers: str) -> bool:
    """Math-Verify rounds decimals to six places, which makes 0.0000001 equal 0."""
    numbers = [number for number in map(as_number, answers) if number]
    return any(number.places and abs(number.value) < Fraction(1, 1000) for number in numbers)


def too_costly(answer: str) -> bool:
    """Whether an expression could keep sympy busy for long: towers and large powers, factorials, sums, deep nesting."""
    if len(answer) > MAX_LENGTH or _HEAVY.search(answer) or re.search(r"\d{40,}", answer) or _depth(answer) > MAX_DEPTH:
        return True
    if answer.count(r"\sum") > 1 or (r"\sum" in answer and re.search(r"\d{3}", answer)):
        return True
    powers, plain = 0, not re.search(r"\\(?!frac|cdot|times|pi|left|right)[a-z]", answer)
    for power in _EXPONENT.finditer(answer):
        exponent = power["braced"] if power["braced"] is not None else power["bare"]
        largest = max(map(int, re.findall(r"\d+", exponent, re.A)), default=0)
        powers += bool(power["bracket"])
        limit = MAX_BRACKET_EXPONENT if power["bracket"] else MAX_EXPONENT * (100 if plain else 1)
        if "^" in exponent or largest > limit or powers > 4:
            return True
    return False


def _depth(answer: str) -> int:
    """How deep the brackets are nested."""
    depth = deepest = 0
    for character in answer:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def _verify(wanted: str, given: str) -> bool:
    """Math-Verify's verdict, without its signal-based timeouts; what it cannot read or finish is unequal."""
    parse, verify, config, exhausted = _math_verify()
    options = {"extraction_config": [config], "fallback_mode": "no_fallback", "parsing_timeout": None}
    try:
        gold, answer = (
            _within_budget(exhausted, parse, rf"\boxed{{{text}}}", **options) for text in (wanted, given)
        )
        return bool(_within_budget(exhausted, verify, gold, answer, timeout_seconds=None))
    except (Exception, exhausted):  # sympy raises nearly anything on a model's text
        return False


def _within_budget(exhausted: type[BaseException], function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """`function`'s result, or `exhausted` raised in it after BUDGET calls of Python functions.

    Counted by the profiling hook of this thread: it works in any thread and does not depend on the machine's speed.
    Under a profiler nothing is counted.
    """
    if sys.getprofile() is not None:
        return function(*args, **options)
    left = BUDGET

    def count(_frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal left
        if event == "call":
            left -= 1
            if left < 0:
                raise exhausted

    sys.setprofile(count)
    try:
        return function(*args, **options)
    finally:
        sys.setprofile(None)


@lru_cache(maxsize=1)
def _math_verify() -> tuple[Any, Any, Any, type[BaseException]]:
    """`parse`, `verify`, the extraction and the timeout; imported on first need, since sympy takes seconds to load."""
    from math_verify import LatexExtractionConfig, parse, verify
    from math_verify.errors import TimeoutException

    for module in ("parser", "grader"):  # both warn that their timeouts are off, and of each expression given up
        logging.getLogger(f"math_verify.{module}").setLevel(logging.ERROR)
    return parse, verify, LatexExtractionConfig(boxed_match_priority=0), TimeoutException
