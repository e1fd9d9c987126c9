r"""Is this answer right?

    is_correct(r"... so \boxed{\frac{2}{4}}", "0.5")      True: numbers are compared exactly
    is_correct(r"... \boxed{(x-1)(x+1)}", "x^2 - 1")      True, by Math-Verify, in a worker
    is_correct(r"... \boxed{52_9}", "52_8")               False: the base counts

Where an answer stands is found by `answers`, what it is by `values`, what is equal by `equal`.
"""

from collections.abc import Sequence

from upft_mlx.grade import symbolic
from upft_mlx.grade.answers import extract_answer, normalize_answer, normalize_gold
from upft_mlx.grade.equal import Rules, correct
from upft_mlx.grade.workers import GaveUpError, ask

__all__ = ["VERSION", "Rules", "extract_answer", "is_correct", "judge", "normalize_answer", "normalize_gold"]

VERSION = 5
"""The grader's version: rows that another one graded may be right where this one holds them wrong, and the reverse."""


def is_correct(
    completion: str,
    gold: str,
    *,
    percent_as_unit: bool = False,
    match_types: Sequence[str] | None = ("latex", "expr"),
    precision: int | None = 6,
    strict: bool = True,
    allow_set_relation_comp: bool = False,
) -> bool:
    r"""Whether the answer of `completion` equals `gold`, which may be in its data set's own format.

    `10\%` equals `10\%` and `0.1`, not `10`. The options are those of `Rules`. Never raises; no answer is a wrong one,
    and so is one that cannot be compared within `workers.SECONDS` and `workers.MEMORY_BYTES`.
    """
    types = None if match_types is None else tuple(match_types)
    rules = Rules(percent_as_unit, types, 6 if precision is None else precision, strict, bool(allow_set_relation_comp))
    try:
        return judge(completion, gold, rules)
    except GaveUpError:
        return False


def judge(completion: str, gold: str, rules: Rules) -> bool:
    """Whether the completion's answer is right; a worker decides where that takes Math-Verify.

    Raises:
        GaveUpError: it takes too much time or memory.
    """
    try:
        return correct(completion, gold, rules)
    except symbolic.CostlyError:
        return ask(completion, gold, rules)
    except RecursionError:
        return False
