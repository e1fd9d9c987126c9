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
from fractions import Fraction
from functools import lru_cache
from typing import Any

from upft_mlx.answers import extract_answer, normalize_answer, normalize_gold
from upft_mlx.values import MAX_LENGTH, Group, Number, as_group, as_number, is_maths, key, sides, tidy

__all__ = ["extract_answer", "is_correct", "normalize_answer", "normalize_gold"]

MAX_PARTS = 32  # of a group; a longer one is compared as text only
MAX_DEPTH = 8  # brackets inside brackets
MAX_EXPONENT = 9999  # of a number or a symbol, 2^{4950} for instance
MAX_BRACKET_EXPONENT = 10  # of a bracket, which sympy may have to expand
ROUNDED_PLACES = 6  # digits behind the point from which a decimal may stand for a fraction

_BASE = re.compile(r"(-?[0-9A-Za-z.]+)\s*_\s*\{?\s*(\w+)\s*\}?")
_HEAVY = re.compile(r"\\(?:int|iint|oint|prod|lim|sum|binom|choose)(?![a-z])|\\(?:cdots|ldots|dots)|!!|[)}\]]\s*!|\d{5,}!")
_EXPONENT = re.compile(r"(?P<bracket>[)}\]])?\s*(?:\^|\*\*)\s*(?:\{(?P<braced>[^{}]*)|(?P<bare>-?\d|[^\d]))")
_RELATIONAL = re.compile(r"[<>]|\\(?:le|ge|ne)(?![a-z])|(?<!\\)=")


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
    if percent_as_unit and ("%" in wanted) != ("%" in given):
        return _equal(wanted, given) or _equal(wanted.replace("%", ""), given.replace("%", ""))
    return _equal(wanted, given)


def _equal(wanted: str, given: str) -> bool:
    """Whether two tidied answers are equal; names (`x =`) count only where both have one."""
    if key(wanted) == key(given) and "" in (names := {sides(wanted)[0], sides(given)[0]}) | ({""} if len(names) == 1 else set()):
        return True
    return False
