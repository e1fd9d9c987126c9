r"""What a tidied answer is: the grammar of answers (pure strings, no sympy). What `notation.tidy` returns is read.

answer    = [name "="] value [unit]              x = 5 cm
value     = number | time | group | text | expression
number    = what has an exact value              1,080.5   3 1/2   0.\overline{36}   2^{10}   \binom{10}{3}   50%
time      = hour[:minute] [AM | PM]              12:30 PM
group     = tuple, interval, set, list, union    (3, 1/2]   {1, 2}   1, 2   A \cup B   a \pm b
          | matrix, ratio, order of size         \begin{pmatrix}..   1:2   a < b \le c
text      = words, Roman numerals, labels        \text{cat}   no   IX   AAS   3 remainder 2
expression = whatever else                       2x + 1
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from upft_mlx.grade.exact import exact
from upft_mlx.grade.units import Unit, split_unit

MAX_LENGTH = 400  # characters; a longer answer is compared as text only

_DECIMAL = r"(?:(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?:\ \d{3})+|\d+)(?:\.\d*)?|\.\d+)"
_INTEGER = re.compile(r"-?\d+", re.A)
_PLAIN = re.compile(
    rf"""(?P<sign>[-+]?)\s*
    (?:(?:(?P<whole>\d{{1,3}}(?:,\d{{3}})+|\d+)(?:\s*(?=\\frac)|\s+(?=\d+\s*/)))?
        (?:\\frac\{{(?P<a>-?{_DECIMAL})\}}\{{(?P<b>-?{_DECIMAL})\}}|(?P<c>{_DECIMAL})\s*/\s*(?P<d>{_DECIMAL}))
      |(?P<decimal>{_DECIMAL})
        (?:\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*\{{?(?P<power>-?\d{{1,2}})\}}?|e(?P<e>-?\d{{1,2}}))?
    )(?:\s*(?P<percent>%))?""",
    re.X | re.I | re.A,
)
_TIME = re.compile(
    r"(?P<hour>1?\d|2[0-3])(?::(?P<minute>[0-5]\d))?(?:\s*(?:\\text\{)?(?P<half>[ap])\.?\s*m\b\.?\}?)?", re.I | re.A
)
_DATE = re.compile(r"\d{1,2}/\d{1,2}/\d{4}", re.A)
_ATOM = r"(?:(?:\\[a-z]+(?: ?[A-Z]{1,4}(?![A-Za-z]))?|\|?[A-Za-z]{1,2}'*\|?)(?:_(?:\w|\{\w+\}))?(?:\(\w\))?)"
_NAME = re.compile(  # x, x_1, f(x), \theta, |AB|, A:B, \frac{AB}{CD}, (x, y), Area
    rf"\s*(?:{_ATOM}(?:\s*[:/]\s*{_ATOM})*|\\frac\{{{_ATOM}\}}\{{{_ATOM}\}}|\([A-Za-z](?:,\s*[A-Za-z])+\)"
    r"|\\text\{[^{}]*\}|[A-Za-z]{3,}(?: [A-Za-z]+)*)\s*",
    re.A,
)
_FUNCTION = r"(?!(?:sin|cos|tan|cot|sec|csc|log|ln|mod)\b)"
_PROSE = re.compile(rf"\\text|[^\W\d_]{{4,}}|(?<= ){_FUNCTION}[A-Za-z]{{2,}}|\b{_FUNCTION}[A-Za-z]{{2,}}(?= )")
_COMMANDS = re.compile(r"\\(?:begin|end)\{\w+\}|\\(?!text\b)[A-Za-z]+|_\{[^{}]*\}")
_PRODUCT = re.compile(r"[a-d]{2,}|[k-n]{2,}|[p-t]{2,}|[u-w]{2,}|[x-z]{2,}|[a-z][x-z]|\w")
_SHORT = re.compile("no|on|of|or|so|up|us|we|is|in|it|at|as|an|am|by|my|he|me|to|go|do|if|be|ok", re.I)
_MATRIX = re.compile(r"\\begin\{[pbB]?matrix\}((?:(?!\\begin).)*)\\end\{[pbB]?matrix\}", re.S)
_SIZES = re.compile(r"\s*(<|>|\\le |\\ge )\s*")
_TURNED = {"<": ">", ">": "<", r"\le ": r"\ge ", r"\ge ": r"\le "}
_OPEN, _CLOSE = "([{", ")]}"


@dataclass(frozen=True)
class Number:
    """A number: its exact value, digits behind the point (0 where it is no decimal), percent sign or not."""

    value: Fraction
    places: int = 0
    percent: bool = False


@dataclass(frozen=True)
class Time:
    """A time of day in minutes; `half` says how it is written: "am" and "pm", or "" for the clock's hours alone."""

    minutes: int
    half: str
    hour: bool
    """Whether the hour stands alone, as in 5 PM."""


@dataclass(frozen=True)
class Group:
    """Several answers; `kind` is "{}" (list, set), "U" (union), "M2" (matrix of 2 rows), ":" (ratio), brackets like
    "(]", or "<" with the signs of an order of size."""

    kind: str
    parts: tuple[str, ...]

    @property
    def ordered(self) -> bool:
        """Whether the parts' places matter."""
        return self.kind not in {"{}", "U"}


@dataclass(frozen=True)
class Text:
    """Words, in small letters and without spaces and punctuation."""

    words: str


@dataclass(frozen=True)
class ParsedAnswer:
    """An answer as the grammar reads it."""

    name: str
    latex: str
    """The value as it is written."""
    value: Number | Time | Group | Text | None
    """None of an expression."""
    unit: Unit | None = None


@lru_cache(maxsize=4096)
def read(text: str) -> ParsedAnswer:
    """The answer that a tidied text is."""
    if _DATE.fullmatch(text):
        return ParsedAnswer("", text, as_text(text))
    if number := as_number(text):
        return ParsedAnswer("", text, number)
    name, body = sides(text)
    if number := as_number(body):
        return ParsedAnswer(name, body, number)
    if (time := _TIME.fullmatch(body)) and (time["minute"] or time["half"]):
        hour, half = int(time["hour"]), (time["half"] or "").lower()
        hour = hour % 12 + 12 * (half == "p") if half else hour
        return ParsedAnswer(name, body, Time(60 * hour + int(time["minute"] or 0), half, time["minute"] is None))
    bare, unit = split_unit(body)
    if unit and (number := as_number(bare)):
        return ParsedAnswer(name, bare, number, unit)
    if group := as_group(body):
        return _compound(name, body, group) or ParsedAnswer(name, body, group)
    if unit and is_maths(bare):
        return ParsedAnswer(name, bare, None, unit)
    if is_text(body):
        return ParsedAnswer(name, body, as_text(body))
    return ParsedAnswer(name, body.replace(r"\text{degree}", ""), None)


def _compound(name: str, body: str, group: Group) -> ParsedAnswer | None:
    """`2 hours, 30 minutes` as one quantity: the parts have different units of one dimension."""
    parts = [read(part) for part in group.parts] if group.kind == "{}" else []
    units = [part.unit for part in parts if part.unit and isinstance(part.value, Number)]
    if len(units) < max(2, len(parts)) or len({unit.base for unit in units}) > 1 or not units[0].base:
        return None
    if len({unit.factor for unit in units}) < len(units):
        return None
    values = [part.value.value * unit.factor for part, unit in zip(parts, units, strict=True)]  # type: ignore[union-attr]
    unit = Unit(Fraction(1), units[0].base, frozenset(), compound=True)
    return ParsedAnswer(name, body, Number(sum(values, Fraction(0))), unit)


def as_number(text: str) -> Number | None:
    """The exact number: written out (`written`), or worked out from what has only numbers in it (`exact`)."""
    if (number := written(text)) or len(text) > MAX_LENGTH:
        return number
    bare = text.rstrip("% ")
    percent, value = bare != text, exact(bare)
    return None if value is None else Number(value / 100 if percent else value, 0, percent)


def written(text: str) -> Number | None:
    """The number written out: an integer, decimal, a/b, mixed number, a x 10^n, percentage."""
    if len(text) > MAX_LENGTH:
        return None
    if _INTEGER.fullmatch(text):
        return Number(Fraction(int(text)))
    match = _PLAIN.fullmatch(text)
    if match is None:
        return None
    decimal, divisor = match["decimal"], _decimal(match["b"] or match["d"] or "1")
    if divisor == 0:
        return None
    value = _decimal(decimal or match["a"] or match["c"]) / divisor + _decimal(match["whole"] or "0")
    value *= Fraction(10) ** int(match["power"] or match["e"] or 0) * (-1 if match["sign"] == "-" else 1)
    places, percent = len((decimal or "").partition(".")[2]), match["percent"] is not None
    return Number(value / 100 if percent else value, places, percent)


def _decimal(digits: str) -> Fraction:
    return Fraction(re.sub(r"[, ]", "", digits).rstrip(".") or "0")


def as_group(text: str) -> Group | None:
    r"""The parts of a tuple, interval, set, list, union, matrix, ratio, order or `a \pm b`; None of one answer."""
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
    if len(parts := _split(text, ":")) > 1:
        return Group(":", parts)
    if _SIZES.search(text):
        return _order(text)
    return Group("{}", _both_signs((text,))) if r"\pm" in text else None


def _order(text: str) -> Group | None:
    """`c > b > a` as a < b < c; None where the signs go both ways."""
    first, *rest = _SIZES.split(text)
    signs, parts = rest[::2], [first, *rest[1::2]]
    if signs[0] in {">", r"\ge "}:
        signs, parts = [_TURNED[sign] for sign in reversed(signs)], parts[::-1]
    if not all(parts) or not set(signs) <= {"<", r"\le "}:
        return None
    return Group("".join(sign[:2] for sign in signs), tuple(parts))


def is_order(group: Group) -> bool:
    """Whether it is an order of size."""
    return group.kind[0] in "<\\"


def as_set(group: Group) -> Group | None:
    r"""The interval of `1 < x \le 2` and of `x > 1`, the union of several; None of what is no such relation."""
    if not is_order(group):
        sets = [as_set(order) for part in group.parts if _SIZES.search(part) and (order := _order(part))]
        texts = [f"{s.kind[0]}{s.parts[0]},{s.parts[1]}{s.kind[1]}" for s in sets if s]
        return Group("U", tuple(texts)) if group.kind == "{}" and len(texts) == len(group.parts) else None
    named = [_NAME.fullmatch(part) is not None for part in group.parts]
    brackets = ("(" if group.kind[0] == "<" else "[") + (")" if group.kind[-1] == "<" else "]")
    if named == [False, True, False]:
        return Group(brackets, group.parts[::2])
    if named == [True, False]:
        return Group("(" + brackets[1], (r"-\infty", group.parts[1]))
    return Group(brackets[0] + ")", (group.parts[0], r"\infty")) if named == [False, True] else None


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
    if not any(separator in text for separator in separators):
        return (text.strip(),) if text.strip() else ()
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
    if len(parts) > 1:
        return parts
    return _split(text, ", " if ", " in text and re.search(r"\d,\d{3}(?!\d)", text) else ",")


def _both_signs(parts: tuple[str, ...]) -> tuple[str, ...]:
    r"""`a \pm b` as its two values, parts without the sign as they are."""
    signs = {part: "+-" if part.count(r"\pm") == 1 else "+" for part in parts}
    return tuple(part.replace(r"\pm", sign).strip() for part in parts for sign in signs[part])


def sides(text: str) -> tuple[str, str]:
    r"""The name and the value of an answer: `x = 5`, `x \in A`, `x = 2 + 3 = 5`, `x = 1, 2`; no name is "".

    Of sums (`2 + 3 = 5`) the end is the value, of `1/3 \approx 0.33` the exact side. An equation between
    expressions (`2x + y = 3`) is a value itself.
    """
    if "=" not in text and r"\in " not in text and r"\approx" not in text:
        return "", text
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


def is_text(text: str) -> bool:
    """Whether it is to be compared as words: marked as text, prose, a word, a Roman numeral or a label like ABC."""
    letters = text.strip("'\"")
    if not (letters.isascii() and letters.isalpha()):
        return not is_maths(text)
    if len(letters) == 1:
        return False
    if letters.isupper():
        return True
    return (_SHORT.fullmatch(letters) is not None) if len(letters) == 2 else not _PRODUCT.fullmatch(letters)


def as_text(text: str, *, fold: bool = True) -> Text:
    """The words of a text, in small letters if `fold`; digits and mathematics in it stay as they are."""
    bare = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    words = re.sub(r"(?i)\b(?:the|an)\b|\ba (?=[a-z]{3})|(?<=[a-z])-(?=[a-z])", " ", bare)
    return Text(re.sub(r"[\s\"'`_]+|(?<!\d)[.,;:!?]|[.,;:!?](?!\d)", "", words.casefold() if fold else words))


@lru_cache(maxsize=4096)
def key(text: str) -> str:
    """One string for all writings of a tidied answer."""
    if len(text) > MAX_LENGTH:
        return re.sub(r"\s", "", text)
    answer = read(text)
    value = answer.value
    if isinstance(value, Number):
        return str(value.value)
    if isinstance(value, Text):
        return value.words
    if isinstance(value, Time):
        return f"{value.minutes}{value.half}m"
    if value is None:
        return re.sub(r"\s", "", answer.latex)
    named = by_name(value) is not None
    keys = [f"{sides(part)[0]}={key(part)}" if named else key(part) for part in value.parts]
    keys = keys if value.ordered else sorted(set(keys))
    return keys[0] if len(keys) == 1 else f"{value.kind[0]}{','.join(keys)}{value.kind[-1]}"


def by_name(group: Group) -> Group | None:
    """`y = 2, x = 1` as the point (1, 2), in the order of the names; None unless each value has its own."""
    named = sorted(sides(part) for part in group.parts) if group.kind == "{}" else []
    if len({name for name, _ in named} - {""}) < max(2, len(named)):
        return None
    return Group("()", tuple(value for _, value in named))
