r"""The exact value of LaTeX that has only numbers in it, a Fraction: read as Python reads sums of brackets.

exact(r"\binom{10}{3} / 2^{10}")   -> 15/128
exact(r"0.\overline{36}")          -> 4/11
"""

import ast
import math
import re
from collections.abc import Callable
from fractions import Fraction
from operator import add, mul, sub, truediv

MAX_BITS = 20_000  # of a number
MAX_FACTORIAL = 1000

_ARITHMETIC = re.compile(r"(?:[\d\s.+*/^!(){}-]|\\(?:frac|binom|cdot|times|div|sqrt|overline)(?![a-z]))+", re.A)


def exact(text: str) -> Fraction | None:
    """The value; None of what is not rational, too large, or has anything else in it."""
    if not _ARITHMETIC.fullmatch(text) or "!!" in text:
        return None
    for pattern, replacement in _PYTHON:
        text = pattern.sub(replacement, text)
    try:
        return _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ArithmeticError, ValueError, TypeError, KeyError, RecursionError, MemoryError):
        return None


def _repeating(match: re.Match[str]) -> str:
    whole, digits, repeated = match[1] or "0", match[2], match[3]
    return f"({whole}+{int(digits + repeated) - int(digits or 0)}/{(10 ** len(repeated) - 1) * 10 ** len(digits)})"


_PYTHON: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"(\d*)\.(\d*)\\overline\{(\d+)\}", re.A), _repeating),
    (re.compile(r"(\d*)\.(\d+)", re.A), lambda match: f"({match[1] or 0}{match[2]}/{10 ** len(match[2])})"),
    (re.compile(r"(\d+)\s*\\frac\{(\d+)\}\{(\d+)\}", re.A), r"(\1+\2/\3)"),  # a mixed number
    (re.compile(r"(?<=[\d)}])\s*(?=\\(?:frac|binom|sqrt))", re.A), "*"),
    (re.compile(r"\\(?:cdot|times)"), "*"),
    (re.compile(r"\\div"), "/"),
    (re.compile(r"\\"), " "),
    (re.compile(r"\^"), "**"),
    (re.compile(r"\{"), "("),
    (re.compile(r"\}"), ")"),
    (re.compile(r"(\d+|\([^()]*\))\s*!", re.A), r"fact(\1)"),
    (re.compile(r"(?<!\d)0+(?=\d)", re.A), ""),
]


def _value(node: ast.expr) -> Fraction:
    """The value of Python's tree; `frac(1)(2)` is a call of a call, `2(3)` a call too, and means a product."""
    match node:
        case ast.Constant(int(value)):
            return Fraction(value)
        case ast.UnaryOp(ast.USub(), operand):
            return -_value(operand)
        case ast.BinOp(left, operator, right):
            return _FUNCTIONS[type(operator).__name__](_value(left), _value(right))
        case ast.Call(ast.Call(ast.Name(name), [first]), [second]):
            return _FUNCTIONS[name](_value(first), _value(second))
        case ast.Call(ast.Name(name), [argument]):
            return _FUNCTIONS[name](_value(argument))
        case ast.Call(left, [right]):
            return _value(left) * _value(right)
    raise ValueError


def _small(value: Fraction) -> int:
    if value.denominator != 1 or not 0 <= value <= MAX_FACTORIAL:
        raise ValueError
    return int(value)


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator == 2:
        base, exponent = _root(base), 2 * exponent
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if exponent.denominator != 1 or size * abs(exponent) > MAX_BITS or base == exponent == 0:
        raise ValueError
    return Fraction(base ** int(exponent))


def _root(value: Fraction) -> Fraction:
    root = Fraction(math.isqrt(value.numerator), math.isqrt(value.denominator))
    if root * root != value:
        raise ValueError
    return root


_FUNCTIONS: dict[str, Callable[..., Fraction]] = {
    "Add": add,
    "Sub": sub,
    "Mult": mul,
    "Div": truediv,
    "Pow": _power,
    "frac": truediv,
    "sqrt": _root,
    "binom": lambda above, below: Fraction(math.comb(_small(above), _small(below))),
    "fact": lambda value: Fraction(math.factorial(_small(value))),
}
