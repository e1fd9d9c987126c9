r"""Is this answer right? The cheap exact comparison first, Math-Verify for what is left.

    is_correct(r"... so \boxed{\frac{2}{4}}", "0.5")      True, without sympy
    is_correct(r"... \boxed{(x-1)(x+1)}", "x^2 - 1")      True, by Math-Verify
    is_correct(r"... \boxed{52_9}", "52_8")               False: the base counts

Groups (tuples, lists, sets, intervals, unions, matrices) are compared part by part here, so that Math-Verify
sees single expressions only. It is called without its timeouts, which are signals and work in the main thread
alone. Instead, what could take long is refused (`too_costly`) and its calls are counted (`_within_budget`).
"""

import logging
import re
import sys
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from types import FrameType
from typing import Any

from upft_mlx import values
from upft_mlx.answers import extract_answer, normalize_answer, normalize_gold
from upft_mlx.notation import tidy
from upft_mlx.values import MAX_LENGTH, Group, Number, as_group, as_number, key, sides

__all__ = ["extract_answer", "is_correct", "normalize_answer", "normalize_gold"]

BUDGET = 1_000_000  # Python calls that one parse or one comparison may take; MATH's answers need 0.2 million
MAX_PARTS = 32  # of a group; longer ones are compared as text only
MAX_DEPTH = 8  # brackets inside brackets
MAX_EXPONENT = 100
MAX_NUMERIC_EXPONENT = 9999  # where there is no letter and no function: 2^{4950}
MAX_BRACKET_EXPONENT = 10  # of a bracket, which may have to be expanded
ROUNDED_PLACES = 6  # digits behind the point from which a decimal may stand for a fraction

_PERCENT_BEHIND = re.compile(r"boxed\s*\{[^{}]*\}[\s$]*(?:\\?%|percent|pct)")
_WHOLE = re.compile(r"[<>]|\\begin|\\(?:le|ge|ne)(?![a-z])|(?<!\\)=")
_BASED = re.compile(r"\d\s*_")  # 52_8: Math-Verify drops the base
_HEAVY = re.compile(
    r"\\(?:int|iint|oint|prod|lim|binom|choose|cdots|ldots|dots)(?![a-z])|!!|[)}\]]\s*!|\d{3,}\s*!|\d{40,}"
)
_POWER = re.compile(r"(?P<bracket>[)}\]])?\s*(?:\^|\*\*|\\exp(?![a-z]))\s*")


def is_correct(completion: str, gold: str, *, percent_as_unit: bool = False) -> bool:
    r"""Whether the answer of `completion` equals `gold`, which may be in its data set's own format.

    `10\%` equals `10\%` and `0.1`, not `10`. With `percent_as_unit` it equals `10` too: for data sets like
    GSM8K, whose gold answers to "what percentage" leave the sign off. Never raises; no answer is a wrong one.
    """
    answer, bare_gold = extract_answer(completion), normalize_gold(gold)
    if answer is None or max(len(answer), len(bare_gold)) > MAX_LENGTH:
        return False
    wanted, given = tidy(bare_gold), tidy(answer)
    if not wanted or not given:
        return False
    if _equal(wanted, given):
        return True
    optional = percent_as_unit or _percent_behind_box(completion) or _percent_behind_box(gold)
    return optional and "%" in wanted + given and _equal(wanted.replace("%", ""), given.replace("%", ""))


def _percent_behind_box(text: str) -> bool:
    r"""Whether the sign stands outside, as in `\boxed{20}\%`: data sets keep the inside, so both may be meant."""
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
    distance, unit = abs(a.value - b.value), Fraction(1, 10**long.places)
    if long.places >= ROUNDED_PLACES and abs(long.value) >= 1000 * unit and distance <= unit / 2:
        return True
    return long.places >= 10 and distance <= abs(other.value) / 10**9


def _same_group(a: Group, b: Group) -> bool:
    """In order, or as sets: a tuple never equals a list, nor `(` equals `[`; `x = 1, y = 2` may be either."""
    if a.kind != b.kind and "()" in (a.kind, b.kind):
        a, b = values.by_name(a) or a, values.by_name(b) or b
    if a.kind != b.kind or max(len(a.parts), len(b.parts)) > MAX_PARTS:
        return False
    if a.ordered:
        return len(a.parts) == len(b.parts) and all(map(_equal, a.parts, b.parts))
    named = values.by_name(a) and values.by_name(b)
    wanted, given = ({(sides(part)[0] if named else "", key(part)): part for part in group.parts} for group in (a, b))
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
    if not values.is_maths(wanted) or not values.is_maths(given) or ("%" in wanted) != ("%" in given):
        return False
    if _BASED.search(f"{wanted} {given}") or _tiny_decimal(wanted, given) or _other_case(wanted, given):
        return False
    if too_costly(wanted) or too_costly(given):
        return False
    return _verify(wanted.replace("%", ""), given.replace("%", ""))


def _tiny_decimal(*answers: str) -> bool:
    """Math-Verify rounds decimals to six places, which makes 0.0000001 equal 0."""
    numbers = [number for number in map(as_number, answers) if number]
    return any(number.places and abs(number.value) < Fraction(1, 1000) for number in numbers)


def _other_case(a: str, b: str) -> bool:
    """Math-Verify reads capital letters as small ones, which makes R equal r."""
    letters = [set(re.findall("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", text))) for text in (a, b)]
    lowered = [{letter.lower() for letter in found} for found in letters]
    return letters[0] != letters[1] and lowered[0] == lowered[1]


def too_costly(answer: str) -> bool:
    """Whether an expression could keep sympy busy: towers and high powers, factorials, sums, deep nesting."""
    if len(answer) > MAX_LENGTH or _HEAVY.search(answer) or max(_depths(answer), default=0) > MAX_DEPTH:
        return True
    if answer.count(r"\sum") > 1 or (r"\sum" in answer and re.search(r"\d{3}", answer)):
        return True
    numeric = not re.search("[a-zA-Z]", re.sub(r"\\(?:frac|cdot|times)", "", answer))
    powers = list(_POWER.finditer(answer))
    if sum(bool(power["bracket"]) for power in powers) > 4:
        return True
    return any(_too_high(power, numeric) for power in powers)


def _too_high(power: re.Match[str], numeric: bool) -> bool:
    """Whether a power has a power or a large number in its exponent."""
    exponent = _argument(power.string[power.end() :])
    limit = MAX_NUMERIC_EXPONENT if numeric else MAX_EXPONENT
    limit = MAX_BRACKET_EXPONENT if power["bracket"] else limit
    return "^" in exponent or any(int(digits) > limit for digits in re.findall(r"\d+", exponent, re.A))


def _argument(text: str) -> str:
    """The bracket at the start of `text` up to its end, else a number or one character."""
    depths = _depths(text)
    if depths[:1] != [1]:
        number = re.match(r"-?\d+", text, re.A)
        return number[0] if number else text[:1]
    return text[: depths.index(0)] if 0 in depths else text


def _depths(text: str) -> list[int]:
    """How many brackets are open after each character."""
    return list(accumulate((character in "([{") - (character in ")]}") for character in text))


def _verify(wanted: str, given: str) -> bool:
    """Math-Verify's verdict; what it cannot read or finish is unequal."""
    _, verify, _, exhausted = _math_verify()
    try:
        return bool(_within_budget(verify, _parsed(wanted), _parsed(given), timeout_seconds=None))
    except (Exception, exhausted):  # sympy raises nearly anything on a model's text
        return False


@lru_cache(maxsize=1024)
def _parsed(text: str) -> Any:
    parse, _, config, _ = _math_verify()
    options = {"extraction_config": [config], "fallback_mode": "no_fallback", "parsing_timeout": None}
    return _within_budget(parse, rf"\boxed{{{text}}}", **options)


def _within_budget(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """`function`'s result, or Math-Verify's TimeoutException raised inside it after BUDGET calls of functions.

    This thread's profiling hook counts them: that works in any thread, and a grade does not depend on the
    machine's speed. Where somebody else profiles, nothing is counted.
    """
    if sys.getprofile() is not None:
        return function(*args, **options)
    left = BUDGET
    *_, exhausted = _math_verify()

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
    """`parse`, `verify`, the extraction, the timeout: imported on first need, sympy takes seconds to load."""
    from math_verify import LatexExtractionConfig, parse, verify
    from math_verify.errors import TimeoutException

    for module in ("parser", "grader"):  # both warn that their timeouts are off, and of what they gave up
        logging.getLogger(f"math_verify.{module}").setLevel(logging.ERROR)
    return parse, verify, LatexExtractionConfig(boxed_match_priority=0), TimeoutException
