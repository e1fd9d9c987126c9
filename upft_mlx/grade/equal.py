r"""Whether two answers are equal, by what they are (`values.read`): a comparison for each kind.

What is cheap is decided here. Expressions are Math-Verify's business, which only a worker may ask (`grading`).
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from upft_mlx.grade import symbolic, values
from upft_mlx.grade.answers import extract_answer, normalize_gold
from upft_mlx.grade.notation import LABELLED, decimal_commas, tidy
from upft_mlx.grade.values import (
    MAX_LENGTH,
    Group,
    Number,
    ParsedAnswer,
    Text,
    Time,
    as_number,
    as_text,
    key,
    read,
    sides,
)

MAX_NESTING = 30  # brackets inside brackets; no answer of MATH has more than 5
MAX_PARTS = 32  # of a group; longer ones are compared as text only

_PERCENT_BEHIND = re.compile(r"boxed\s*\{[^{}]*\}[\s$]*(?:\\?%|percent|pct)")
_RELATION = re.compile(r"[<>]|\\begin|\\(?:le|ge|ne)(?![a-z])|(?<!\\)=")
_BINOMIAL = re.compile(r"\\binom\{([^{}]*)\}\{([^{}]*)\}")
_LETTER_UNIT = re.compile(r"(-?[\d.,/]*\d\s*)([mgshlNJWV])(\^\{?[23]\}?)?", re.A)
_VARIABLE = re.compile(r"[a-df-hj-zA-Z]")
_COMMANDS = re.compile(r"\\[a-zA-Z]+")
_CONTROLS = re.compile("[\x00-\x07\x0e-\x1f\x7f]")  # nobody writes these; "\\frac" in JSON may become one of the rest


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


def correct(completion: str, gold: str, rules: Rules) -> bool:
    """Whether the completion's answer equals the gold one.

    Raises:
        symbolic.CostlyError: it takes Math-Verify, and this process is no worker.
    """
    types = rules.match_types
    answer = completion if types is None else extract_answer(completion, types)
    bare_gold = gold.strip() if types is None else normalize_gold(gold)
    if answer is None or _CONTROLS.search(answer.strip()):
        return False
    if max(len(answer), len(bare_gold)) > MAX_LENGTH:
        return "".join(answer.split()) == "".join(bare_gold.split())
    if max(symbolic.depths(answer), default=0) > MAX_NESTING:
        return False
    if types == ("expr",):
        answer, bare_gold = decimal_commas(answer), decimal_commas(bare_gold)
    wanted, given = tidy(bare_gold), tidy(answer)
    if not wanted or not given:
        return False
    if types is None:  # the writing: variants of notation and the percent sign aside; lists in order, nothing computed
        texts = (re.sub(r"\\(?=\\)|%", "", text) for text in (wanted, given))
        first, second = ([key(part) for part in values.elements(tidy(text))] for text in texts)
        return first == second
    if _equal(wanted, given, rules):
        return True
    if "%" not in wanted + given:
        return False
    optional = rules.percent_as_unit or _percent_behind_box(completion) or _percent_behind_box(gold)
    return optional and _equal(wanted.replace("%", "").strip(), given.replace("%", "").strip(), rules)


def _percent_behind_box(text: str) -> bool:
    r"""Whether the sign stands outside, as in `\boxed{20}\%`: data sets keep the inside, so both may be meant."""
    return "boxed" in text and _PERCENT_BEHIND.search(text[text.rfind("boxed") :]) is not None


def _equal(wanted: str, given: str, rules: Rules) -> bool:
    """Whether two tidied answers are equal; names (`x =`) and units count only where both have one."""
    if wanted == given:
        return True
    labels = [(label, other) for label, other in ((wanted, given), (given, wanted)) if LABELLED.match(label)]
    if len(labels) == 1:
        [(text, other)] = labels
        _, one, another, rest = LABELLED.split(text, maxsplit=1)
        return other == (one or another) if re.fullmatch("[A-J]", other) else _equal(rest, other, rules)
    a, b = read(wanted), read(given)
    if a.name and b.name and a.name != b.name:
        return _same_mathematics(wanted, given, rules)
    if bool(a.name) != bool(b.name) and "=" in sides(wanted)[1] + sides(given)[1]:
        return _same_mathematics(wanted, given, rules)
    if bool(a.unit) != bool(b.unit):
        # `5 m` with its letter as a unit: that is what it is where the other answer has one.
        letters = (None if answer.unit else _LETTER_UNIT.fullmatch(answer.latex) for answer in (a, b))
        a, b = (
            read(rf"{match[1]}\text{{{match[2]}}}{match[3] or ''}") if match else answer
            for match, answer in zip(letters, (a, b), strict=True)
        )
    if a.unit and b.unit:
        factor = a.unit.within(b.unit)
        return factor is not None and _same_value(a, b, factor, rules)
    alone = a.unit or b.unit
    return not (alone and alone.compound) and _same_value(a, b, Fraction(1), rules)


def _same_value(a: ParsedAnswer, b: ParsedAnswer, factor: Fraction, rules: Rules) -> bool:
    """Whether a equals b times the factor between their units."""
    first, second = a.value, b.value
    if isinstance(first, Text) or isinstance(second, Text):
        fold = isinstance(first, Text) and isinstance(second, Text)
        if not fold and first is not None and second is not None:
            return False
        return as_text(a.latex, fold=fold) == as_text(b.latex, fold=fold)
    if isinstance(first, Time) or isinstance(second, Time):
        return _same_time(first, second)
    if isinstance(first, Number) and isinstance(second, Number):
        scaled = second if factor == 1 else Number(second.value * factor, 0, second.percent)
        return _same_number(first, scaled, rules.precision) or _same_matrix(a.latex, b.latex, rules)
    if isinstance(first, Group) and isinstance(second, Group):
        return _same_group(first, second, rules) or (
            (values.is_order(first) or values.is_order(second)) and _same_mathematics(a.latex, b.latex, rules)
        )
    if isinstance(first, Group) or isinstance(second, Group):
        return _same_matrix(a.latex, b.latex, rules) or (
            _RELATION.search(a.latex + b.latex) is not None and _same_mathematics(a.latex, b.latex, rules)
        )
    other = b.latex if factor == 1 else rf"({b.latex})\cdot\frac{{{factor.numerator}}}{{{factor.denominator}}}"
    if key(a.latex) == key(other):
        return True
    expression = b.latex if first else a.latex
    if (first or second) and "=" not in expression and _VARIABLE.search(_COMMANDS.sub(" ", expression)):
        return False  # a number is no x
    return _same_mathematics(a.latex, other, rules)


def _same_time(a: object, b: object) -> bool:
    """Whether times of day are the same: with AM or PM, or the clock's hours, where both say it; `5 PM` may be 5."""
    if isinstance(a, Time) and isinstance(b, Time):
        alike = bool(a.half) == bool(b.half) or any(not 60 <= t.minutes < 13 * 60 for t in (a, b) if not t.half)
        day = 24 * 60 if alike else 12 * 60
        return (a.minutes - b.minutes) % day == 0
    time, other = (a, b) if isinstance(a, Time) else (b, a)
    if not isinstance(time, Time) or not isinstance(other, Number):
        return False
    return time.hour and 1 <= other.value <= 12 and (time.minutes // 60 - other.value) % 12 == 0


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


def _same_matrix(wanted: str, given: str, rules: Rules) -> bool:
    r"""Whether `\binom{a}{b}` and a column of a matrix are the same: some write a vector so."""
    if (r"\binom" in wanted) == (r"\binom" in given):
        return False
    texts = (_BINOMIAL.sub(r"\\begin{pmatrix}\1\\\\\2\\end{pmatrix}", text) for text in (wanted, given))
    first, second = (values.as_group(text) for text in texts)
    return first is not None and second is not None and _same_group(first, second, rules)


def _same_group(a: Group, b: Group, rules: Rules) -> bool:
    """In order, or as sets: a tuple never equals a list, nor `(` equals `[`; `x = 1, y = 2` may be either."""
    if a.kind != b.kind and "()" in (a.kind, b.kind):
        a, b = values.by_name(a) or a, values.by_name(b) or b
    if a.kind != b.kind:
        a, b = values.as_set(a) or a, (values.as_set(b) if rules.allow_set_relation_comp else None) or b
    if not rules.strict and {a.kind, b.kind} == {"()", "{}"}:
        a, b = Group("()", a.parts), Group("()", b.parts)
    if a.kind != b.kind or max(len(a.parts), len(b.parts)) > MAX_PARTS:
        return False
    if a.kind == ":":  # `2:4` is `1:2`
        first, second = ([number.value for part in group.parts if (number := as_number(part))] for group in (a, b))
        known = len(first) == len(a.parts) and len(second) == len(first) and all(first) and all(second)
        if known and len({x / y for x, y in zip(first, second, strict=True)}) == 1:
            return True
    if a.ordered:
        return len(a.parts) == len(b.parts) and all(_equal(*pair, rules) for pair in zip(a.parts, b.parts, strict=True))
    named = values.by_name(a) and values.by_name(b)
    wanted, given = (  # by what equal elements have in common
        {(read(part).name if named else "", key(part), read(part).unit): part for part in group.parts}
        for group in (a, b)
    )
    rest = [part for name, part in given.items() if name not in wanted]
    for part in (part for name, part in wanted.items() if name not in given):
        match = next((candidate for candidate in rest if _equal(part, candidate, rules)), None)
        if match is None:
            return False
        rest.remove(match)
    return not rest


def _same_mathematics(wanted: str, given: str, rules: Rules) -> bool:
    """Equality of two expressions by Math-Verify.

    Raises:
        symbolic.CostlyError: this process is no worker.
    """
    if not symbolic.comparable(wanted, given):
        return False
    if not symbolic.here:
        raise symbolic.CostlyError
    options = {"strict": rules.strict, "allow_set_relation_comp": rules.allow_set_relation_comp}
    return symbolic.equal(wanted, given, rules.precision, **options)
