r"""What a tidied answer denotes: a number, a group of answers, or an expression (pure strings, no sympy).

All of it reads what `notation.tidy` returns:

    as_number("1,080.00")     -> Number(1080, places=2)   exact, a Fraction
    as_group(r"(3, 1/2]")     -> Group("(]", ("3", "1/2"))
    sides("x = 2 + 3 = 5")    -> ("x", "5")
    key("1, 0.5")             -> "{1,1/2}"                the same for all writings of an answer
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from upft_mlx.notation import FACTORS

MAX_LENGTH = 400  # characters; a longer answer is compared as text only

_DECIMAL = r"(?:(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?:\ \d{3})+|\d+)(?:\.\d*)?|\.\d+)"
_UNIT = r"""
    (?!(?:sqrt|frac|pi|sin|cos|tan|cot|sec|csc|log|exp|infty|times|cdot)\b)
    (?:cm|mm|km|ft|kg|mg|ml|lb|oz|hr|mi|yd|mph|lbs|(?<=\ )[A-Za-z]{3}|[A-Za-z]{4,})
    (?:[\s./-]+[A-Za-z]+\.?){0,4} (?:\^\{?[23]\}?)?"""
_PLAIN = re.compile(
    rf"""(?P<sign>[-+]?)\s*
    (?:(?:(?P<whole>\d+)(?:\s*(?=\\frac)|\s+(?=\d+\s*/)))?
        (?:\\frac\{{(?P<a>-?{_DECIMAL})\}}\{{(?P<b>-?{_DECIMAL})\}}|(?P<c>{_DECIMAL})\s*/\s*(?P<d>{_DECIMAL}))
      |(?P<decimal>{_DECIMAL})
        (?:\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*\{{?(?P<power>-?\d{{1,2}})\}}?|e(?P<e>-?\d{{1,2}}))?
    )(?:\s*(?P<percent>%))?(?:\s*(?P<factor>{"|".join(FACTORS)})s?)?(?:\s*{_UNIT})?""",
    re.X | re.I | re.A,
)
_NAME = re.compile(  # x, x_1, f(x), \theta, AB, |z|, (x, y)
    r"\s*(?:(?:\\[a-z]+|\|?[A-Za-z]{1,2}\|?)(?:_\{?\w+\}?)?(?:\(\w\))?|\([A-Za-z](?:,\s*[A-Za-z])+\))\s*",
    re.A,
)
_FUNCTION = r"(?!(?:sin|cos|tan|cot|sec|csc|log|ln|mod)\b)"
_PROSE = re.compile(rf"[^\W\d_]{{4,}}|(?<= ){_FUNCTION}[A-Za-z]{{2,}}|\b{_FUNCTION}[A-Za-z]{{2,}}(?= )")
_COMMANDS = re.compile(r"\\(?:begin|end)\{\w+\}|\\[A-Za-z]+|_\{[^{}]*\}")
_MATRIX = re.compile(r"\\begin\{[pbB]?matrix\}((?:(?!\\begin).)*)\\end\{[pbB]?matrix\}", re.S)
_OPEN, _CLOSE = "([{", ")]}"


@dataclass(frozen=True)
class Number:
    """A number written out: its exact value, digits behind the point (0 for a fraction), percent sign or not."""

    value: Fraction
    places: int = 0
    percent: bool = False


@dataclass(frozen=True)
class Group:
    """Several answers; `kind` is "{}" (list, set), "U" (union), "M2" (matrix of 2 rows) or brackets like "(]"."""

    kind: str
    parts: tuple[str, ...]

    @property
    def ordered(self) -> bool:
        """Whether the parts' places matter."""
        return self.kind not in {"{}", "U"}


def as_number(text: str) -> Number | None:
    """The number written out, units dropped: an integer, decimal, a/b, mixed number, a x 10^n, percentage."""
    match = _PLAIN.fullmatch(text) if len(text) <= MAX_LENGTH else None
    if match is None:
        return None
    decimal, divisor = match["decimal"], _decimal(match["b"] or match["d"] or "1")
    if divisor == 0:
        return None
    value = _decimal(decimal or match["a"] or match["c"]) / divisor + int(match["whole"] or 0)
    value *= Fraction(10) ** int(match["power"] or match["e"] or 0)
    value *= FACTORS.get((match["factor"] or "").lower(), 1) * (-1 if match["sign"] == "-" else 1)
    places, percent = len((decimal or "").partition(".")[2]), match["percent"] is not None
    return Number(value / 100 if percent else value, places, percent)


def _decimal(digits: str) -> Fraction:
    return Fraction(re.sub(r"[, ]", "", digits).rstrip("."))


def as_group(text: str) -> Group | None:
    r"""The parts of a tuple, interval, set, list, union, matrix or `a \pm b`; None for a single answer."""
    if matrix := _MATRIX.fullmatch(text):
        rows = [row for row in matrix[1].split(r"\\") if row.strip()]
        return Group(f"M{len(rows)}", tuple(cell.strip() for row in rows for cell in row.split("&")))
    if len(union := _split(text, r"\cup")) > 1:
        return Group("U", union)
    if len(parts := elements(text)) > 1:
        return Group("{}", _both_signs(parts))
    inner, brackets = _unwrap(text)
    parts = elements(inner) if brackets else ()
    if brackets == "{}" and parts:
        return Group("{}", _both_signs(parts))
    if len(parts) > 1:
        return Group(brackets, parts)
    return Group("{}", _both_signs((text,))) if r"\pm" in text else None


def _unwrap(text: str) -> tuple[str, str]:
    """The text inside its outermost brackets, and these two; "" where they do not span the text."""
    text = re.sub(r"\\([{}])", r"\1", text)
    depth = 0
    for i, character in enumerate(text):
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth <= 0:
            return (text[1:-1], text[0] + text[-1]) if 0 < i == len(text) - 1 else (text, "")
    return text, ""


def _split(text: str, *separators: str) -> tuple[str, ...]:
    """The parts of `text` between separators outside all brackets, none of them empty."""
    parts, start, depth = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth == 0 and (found := next((s for s in separators if text.startswith(s, i)), "")):
            parts.append(text[start:i])
            start = i + len(found)
    stripped = (part.strip() for part in [*parts, text[start:]])
    return tuple(part for part in stripped if part)


def elements(text: str) -> tuple[str, ...]:
    """The elements of a list: between semicolons where there are any, else between commas."""
    parts = _split(text, ";")
    return parts if len(parts) > 1 else _split(text, ",")


def _both_signs(parts: tuple[str, ...]) -> tuple[str, ...]:
    r"""`a \pm b` as its two values, parts without the sign as they are."""
    signs = {part: "+-" if part.count(r"\pm") == 1 else "+" for part in parts}
    return tuple(part.replace(r"\pm", sign).strip() for part in parts for sign in signs[part])


def sides(text: str) -> tuple[str, str]:
    r"""The name and the value of an answer: `x = 5`, `x \in A`, `x = 2 + 3 = 5`, `x = 1, 2`; no name is "".

    Of sums (`2 + 3 = 5`) the end is the value, of `1/3 \approx 0.33` the exact side. An equation between
    expressions (`2x + y = 3`) is a value itself.
    """
    head, *others = elements(text) or ("",)
    if any(len(_split(other, "=", r"\in ")) > 1 for other in others):
        return "", text
    exact, *rounded = _split(head, r"\approx") or ("",)
    *left, value = _split(exact, "=", r"\in ") or ("",)
    if not left and rounded and _NAME.fullmatch(value):
        left, value = [value], rounded[0]
    if not left and not rounded:
        return "", text
    named = bool(left) and _NAME.fullmatch(left[0]) is not None
    lettered = re.search("[A-Za-z]", _COMMANDS.sub("", "".join(left) + ("" if as_number(value) else value)))
    if left and lettered and not named:
        return "", text
    return left[0].replace(" ", "") if named else "", value + text[len(head) :]


def is_maths(text: str) -> bool:
    """Whether there is no prose: no four letters in a row and no two beside a space, commands apart."""
    return not _PROSE.search(_COMMANDS.sub("", text))


def key(text: str) -> str:
    """One string for all writings of a tidied answer."""
    if len(text) > MAX_LENGTH:
        return re.sub(r"\s", "", text)
    value = sides(text)[1]
    if number := as_number(value):
        return str(number.value)
    if group := as_group(value):
        named = by_name(group) is not None
        keys = [f"{sides(part)[0]}={key(part)}" if named else key(part) for part in group.parts]
        keys = keys if group.ordered else sorted(set(keys))
        return keys[0] if len(keys) == 1 else f"{group.kind[0]}{','.join(keys)}{group.kind[-1]}"
    compact = re.sub(r"\s", "", value)
    return compact if is_maths(value) else compact.casefold()


def by_name(group: Group) -> Group | None:
    """`y = 2, x = 1` as the point (1, 2), in the order of the names; None unless each value has its own."""
    named = sorted(sides(part) for part in group.parts)
    if group.kind != "{}" or len({name for name, _ in named} - {""}) < max(2, len(named)):
        return None
    return Group("()", tuple(value for _, value in named))
