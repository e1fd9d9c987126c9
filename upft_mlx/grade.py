r"""Is this answer right? The cheap exact comparison first, Math-Verify for what is left.

    is_correct(r"... so \boxed{\frac{2}{4}}", "0.5")      True, without sympy
    is_correct(r"... \boxed{(x-1)(x+1)}", "x^2 - 1")      True, by Math-Verify
    is_correct(r"... \boxed{52_9}", "52_8")               False: the base counts

Groups (tuples, lists, sets, intervals, unions, matrices) are compared part by part here, so that Math-Verify
sees single expressions only (`symbolic`). Which comparisons hold is a matter of `Rules`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from upft_mlx import symbolic, values
from upft_mlx.answers import extract_answer, normalize_answer, normalize_gold
from upft_mlx.notation import decimal_commas, tidy
from upft_mlx.values import MAX_LENGTH, Group, Number, as_group, as_number, key, sides

__all__ = ["Rules", "extract_answer", "is_correct", "normalize_answer", "normalize_gold"]

MAX_NESTING = 30  # brackets inside brackets; no answer of MATH has more than 5
MAX_PARTS = 32  # of a group; longer ones are compared as text only

_PERCENT_BEHIND = re.compile(r"boxed\s*\{[^{}]*\}[\s$]*(?:\\?%|percent|pct)")
_WHOLE = re.compile(r"[<>]|\\begin|\\(?:le|ge|ne)(?![a-z])|(?<!\\)=")
_BASED = re.compile(r"\d\s*_")  # 52_8: Math-Verify drops the base
_CONTROLS = re.compile(
    "[\x00-\x07\x0e-\x1f\x7f]"
)  # nobody writes these; but "\\frac" in JSON may become one of the rest


@dataclass(frozen=True)
class Rules:
    r"""What counts as equal; the names and defaults are Math-Verify's where it has them."""

    percent_as_unit: bool = False
    r"""Whether `60\%` equals `60` too: for data sets like GSM8K, whose golds to "what percentage" leave it off."""
    match_types: tuple[str, ...] | None = ("latex", "expr")
    """Where answers are looked for: `latex` (boxes and maths between delimiters), `expr` (plain numbers), `string`
    (a letter, A to D). None: nowhere, both texts are answers, and a list has an order (hendrycks/math)."""
    precision: int = 6
    """Digits behind the point from which a rounded decimal may stand for another number."""
    strict: bool = True
    """Whether the names of variables count, and a set differs from a tuple."""
    allow_set_relation_comp: bool = False
    r"""Whether `-2 \le x \le 7` equals a gold `x \in [-2, 7]`; a gold relation equals the set in any case."""


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
    and so is one that cannot be compared within some seconds.
    """
    types = None if match_types is None else tuple(match_types)
    rules = Rules(percent_as_unit, types, 6 if precision is None else precision, strict, bool(allow_set_relation_comp))
    try:
        with symbolic.allowance():
            return _is_correct(completion, gold, rules)
    except (symbolic.Spent, RecursionError):
        return False


def _is_correct(completion: str, gold: str, rules: Rules) -> bool:
    types = rules.match_types
    answer = completion if types is None else extract_answer(completion, types)
    bare_gold = gold.strip() if types is None else normalize_gold(gold)
    if answer is None or max(len(answer), len(bare_gold)) > MAX_LENGTH or _CONTROLS.search(answer.strip()):
        return False
    if max(symbolic.depths(answer), default=0) > MAX_NESTING:
        return False
    if types == ("expr",):
        answer, bare_gold = decimal_commas(answer), decimal_commas(bare_gold)
    wanted, given = tidy(bare_gold), tidy(answer)
    if not wanted or not given:
        return False
    if types is None:
        return _same_text(wanted, given)
    if _equal(wanted, given, rules):
        return True
    optional = rules.percent_as_unit or _percent_behind_box(completion) or _percent_behind_box(gold)
    return optional and "%" in wanted + given and _equal(wanted.replace("%", ""), given.replace("%", ""), rules)


def _same_text(wanted: str, given: str) -> bool:
    """Equality of writing: variants of notation and the percent sign aside; lists in order, nothing is computed."""
    texts = (re.sub(r"\\(?=\\)|%", "", text) for text in (wanted, given))
    first, second = ([key(part) for part in values.elements(tidy(text))] for text in texts)
    return first == second


def _percent_behind_box(text: str) -> bool:
    r"""Whether the sign stands outside, as in `\boxed{20}\%`: data sets keep the inside, so both may be meant."""
    return _PERCENT_BEHIND.search(text[max(0, text.rfind("boxed")) :]) is not None


def _equal(wanted: str, given: str, rules: Rules) -> bool:
    """Whether two tidied answers are equal; names (`x =`) count only where both have one."""
    symbolic.check()
    (name, value), (given_name, given_value) = sides(wanted), sides(given)
    if name and given_name and name != given_name:
        return _symbolic(wanted, given, rules)
    if bool(name) != bool(given_name) and "=" in value + given_value:
        return _symbolic(wanted, given, rules)
    return _same_value(value, given_value, rules)


def _same_value(wanted: str, given: str, rules: Rules) -> bool:
    if key(wanted) == key(given):
        return True
    numbers = as_number(wanted), as_number(given)
    if numbers[0] and numbers[1]:
        return _same_number(numbers[0], numbers[1], rules.precision)
    groups = as_group(wanted), as_group(given)
    if groups[0] and groups[1]:
        return _same_group(groups[0], groups[1], rules)
    if (groups[0] or groups[1]) and not _WHOLE.search(wanted + given):
        return False
    return _symbolic(wanted, given, rules)


def _same_number(a: Number, b: Number, precision: int) -> bool:
    """Exact equality, or a decimal of `precision` places and more that is the other number rounded.

    Floating point's tail (0.30000000000000004) is forgiven from ten places on.
    """
    if a.value == b.value:
        return True
    long, other = (a, b) if a.places >= b.places else (b, a)
    distance, unit = abs(a.value - b.value), Fraction(1, 10**long.places)
    if long.places >= precision and abs(long.value) >= 1000 * unit and distance <= unit / 2:
        return True
    return long.places >= 10 and distance <= abs(other.value) / 10**9


def _same_group(a: Group, b: Group, rules: Rules) -> bool:
    """In order, or as sets: a tuple never equals a list, nor `(` equals `[`; `x = 1, y = 2` may be either."""
    if a.kind != b.kind and "()" in (a.kind, b.kind):
        a, b = values.by_name(a) or a, values.by_name(b) or b
    if not rules.strict and {a.kind, b.kind} == {"()", "{}"}:
        a, b = Group("()", a.parts), Group("()", b.parts)
    if a.kind != b.kind or max(len(a.parts), len(b.parts)) > MAX_PARTS:
        return False
    if a.ordered:
        return len(a.parts) == len(b.parts) and all(_equal(*pair, rules) for pair in zip(a.parts, b.parts, strict=True))
    named = values.by_name(a) and values.by_name(b)
    wanted, given = ({(sides(part)[0] if named else "", key(part)): part for part in group.parts} for group in (a, b))
    rest = [part for name, part in given.items() if name not in wanted]
    for part in (part for name, part in wanted.items() if name not in given):
        match = next((candidate for candidate in rest if _equal(part, candidate, rules)), None)
        if match is None:
            return False
        rest.remove(match)
    return not rest


@lru_cache(maxsize=4096)
def _symbolic(wanted: str, given: str, rules: Rules) -> bool:
    """Equality of two expressions by Math-Verify, past what it gets wrong or could take forever over."""
    if not values.is_maths(wanted) or not values.is_maths(given) or ("%" in wanted) != ("%" in given):
        return False
    if _BASED.search(f"{wanted} {given}") or _tiny_decimal(wanted, given) or _other_case(wanted, given):
        return False
    if symbolic.too_costly(wanted) or symbolic.too_costly(given):
        return False
    options = {"float_rounding": rules.precision, "strict": rules.strict}
    relation = {"allow_set_relation_comp": rules.allow_set_relation_comp}
    return symbolic.verified(wanted.replace("%", ""), given.replace("%", ""), **options, **relation)


def _tiny_decimal(*answers: str) -> bool:
    """Math-Verify rounds decimals to six places, which makes 0.0000001 equal 0."""
    numbers = [number for number in map(as_number, answers) if number]
    return any(number.places and abs(number.value) < Fraction(1, 1000) for number in numbers)


def _other_case(a: str, b: str) -> bool:
    """Math-Verify reads capital letters as small ones, which makes R equal r."""
    letters = [set(re.findall("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", text))) for text in (a, b)]
    lowered = [{letter.lower() for letter in found} for found in letters]
    return letters[0] != letters[1] and lowered[0] == lowered[1]
