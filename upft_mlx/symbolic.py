r"""Equality of two expressions by Math-Verify, within an allowance of work (sympy is loaded at the first need).

Math-Verify's own timeouts are signals and work in the main thread alone, so it is called without them. Instead,
what could take long is refused (`too_costly`), its calls of functions are counted, and the clock is looked at while
counting. Whoever must be sure that nothing outlives the clock, C code included, grades in another process
(`graders.GraderPool`).
"""

import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from itertools import accumulate
from types import FrameType
from typing import Any

from upft_mlx.values import MAX_LENGTH

CALLS = 1_000_000
"""Python calls that one parse or one comparison may take; MATH's answers need 0.2 million."""
SECONDS = 4.0
"""Time that the comparison of one answer may take in all; it takes milliseconds."""
MAX_DEPTH = 8  # brackets inside brackets
MAX_EXPONENT = 100
MAX_NUMERIC_EXPONENT = 9999  # where there is no letter and no function: 2^{4950}
MAX_BRACKET_EXPONENT = 10  # of a bracket, which may have to be expanded

_HEAVY = re.compile(
    r"\\(?:int|iint|oint|prod|lim|binom|choose|cdots|ldots|dots)(?![a-z])|!!|[)}\]]\s*!|\d{3,}\s*!|\d{40,}"
)
_POWER = re.compile(r"(?P<bracket>[)}\]])?\s*(?:\^|\*\*|\\exp(?![a-z]))\s*")


on_load: Callable[[str], object] = str
"""Called with "loading" before sympy is loaded and with "loaded" behind it: that takes seconds, once."""


class Spent(BaseException):
    """The allowance is used up. No Exception: sympy and Math-Verify swallow those."""


_deadline: ContextVar[float] = ContextVar("deadline", default=float("inf"))


@contextmanager
def allowance(seconds: float | None = None) -> Iterator[None]:
    """What happens inside is to end within `seconds` (unset: SECONDS); one that is running already goes on."""
    if _deadline.get() < float("inf"):
        yield
        return
    token = _deadline.set(time.monotonic() + (SECONDS if seconds is None else seconds))
    try:
        yield
    finally:
        _deadline.reset(token)


def check() -> None:
    """Look at the clock.

    Raises:
        Spent: the allowance's time is over.
    """
    if time.monotonic() > _deadline.get():
        raise Spent


def verified(wanted: str, given: str, **options: Any) -> bool:
    """Math-Verify's verdict on two tidied answers; what it cannot read is unequal.

    Args:
        wanted: the gold answer.
        given: the model's.
        options: of `math_verify.verify`.

    Raises:
        Spent: it took too long.
    """
    _, verify, _ = _math_verify()
    try:
        return bool(_counted(verify, _parsed(wanted), _parsed(given), timeout_seconds=None, **options))
    except Exception:  # sympy raises nearly anything on a model's text
        return False


@lru_cache(maxsize=1024)
def _parsed(text: str) -> Any:
    parse, _, config = _math_verify()
    options = {"extraction_config": [config], "fallback_mode": "no_fallback", "parsing_timeout": None}
    return _counted(parse, rf"\boxed{{{text}}}", **options)


def _counted(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """`function`'s result, or Spent raised inside it after CALLS calls of functions or at the deadline.

    This thread's profiling hook counts them: that works in any thread, and a grade hardly depends on the machine's
    speed. Where somebody else profiles, nothing is counted.
    """
    if sys.getprofile() is not None:
        return function(*args, **options)
    left = CALLS
    check()

    def count(_frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal left
        if event == "call":
            left -= 1
            if left < 0:
                raise Spent
            if left % 512 == 0:
                check()

    sys.setprofile(count)
    try:
        return function(*args, **options)
    finally:
        sys.setprofile(None)


@lru_cache(maxsize=1)
def _math_verify() -> tuple[Any, Any, Any]:
    """`parse`, `verify`, the extraction; loading them, which takes seconds, is not charged to the answer."""
    start = time.monotonic()
    on_load("loading")
    from math_verify import LatexExtractionConfig, parse, verify

    for module in ("parser", "grader"):  # both warn that their timeouts are off, and of what they gave up
        logging.getLogger(f"math_verify.{module}").setLevel(logging.CRITICAL)
    config = LatexExtractionConfig(boxed_match_priority=0)
    parse(r"\boxed{x}", [config], parsing_timeout=None)  # the first one builds the parser's tables
    _deadline.set(_deadline.get() + time.monotonic() - start)
    on_load("loaded")
    return parse, verify, config


def too_costly(answer: str) -> bool:
    """Whether an expression could keep sympy busy: towers and high powers, factorials, sums, deep nesting."""
    if len(answer) > MAX_LENGTH or _HEAVY.search(answer) or max(depths(answer), default=0) > MAX_DEPTH:
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
    open_at = depths(text)
    if open_at[:1] != [1]:
        number = re.match(r"-?\d+", text, re.A)
        return number[0] if number else text[:1]
    return text[: open_at.index(0)] if 0 in open_at else text


def depths(text: str) -> list[int]:
    """How many brackets are open after each character."""
    return list(accumulate((character in "([{") - (character in ")]}") for character in text))
