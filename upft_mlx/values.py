r"""What an answer's text denotes: a number, a group of answers, or an expression (pure strings, no sympy).

    tidy("\$1{,}080.00")       -> "1,080.00"        LaTeX's spacing, currency, \text{units} and variants evened out
    as_number("1,080.00")      -> Number(1080)      exact: a Fraction
    as_group("(3, \frac12]")   -> Group("(]", ...)  parts in order; a list or a set is Group("{}", ...), any order
    key("1, 0.5")              -> "{1/2,1}"         equal for equal answers
"""

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_LENGTH = 400  # characters; a longer answer is compared as text only

_WORDS = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_NOT_UNITS = "sqrt|frac|pi|sin|cos|tan|cot|sec|csc|log|exp|infty|times|cdot|and|or"
_INTEGER = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
number_pattern = (
    rf"(?:\\[dt]?frac\s*\{{-?\d+\}}\s*\{{\d+\}}|{_INTEGER}(?:\.\d+)?(?:/\d+(?!\.?\d))?|\.\d+)"  # as it stands in prose
)

_DECIMAL = r"(?:(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d+)(?:\.\d*)?|\.\d+)"
_PLAIN = re.compile(
    rf"""(?P<sign>[-+]?)\s*(?:
        (?:(?P<whole>\d+)(?:\s*(?=\\frac)|\s+(?=\d+\s*/)))?
            (?:\\frac\{{(?P<a>-?{_DECIMAL})\}}\{{(?P<b>-?{_DECIMAL})\}}|(?P<c>{_DECIMAL})\s*/\s*(?P<d>{_DECIMAL}))
        |(?P<decimal>{_DECIMAL})(?:\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*\{{?(?P<power>-?\d{{1,2}})\}}?|e(?P<e>-?\d{{1,2}}))?
    )(?:\s*(?P<percent>%))?(?:\s*(?P<factor>{"|".join(_WORDS)})s?)?(?P<unit>\s*
        (?!(?:{_NOT_UNITS})\b)(?:cm|mm|km|ft|kg|mg|ml|lb|oz|hr|mi|yd|[ap]m|mph|lbs|(?:(?<=\s)[A-Za-z]{{3}}|[A-Za-z]{{4,}}))
        (?:[\s./-]+[A-Za-z]+\.?){{0,4}}(?:\^\{{?[23]\}}?|[²³])?)?""",
    re.X | re.I | re.A,
)

_SYMBOLS = {
    "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "÷": "/", "π": r"\pi ", "∞": r"\infty ",  # noqa: RUF001
    "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∈": r"\in ", "±": r"\pm ", "°": "", "％": "%",  # noqa: RUF001
    "\u00a0": " ", "\u2009": " ", "\u202f": " ",
}  # fmt: skip
_UNIT_TEXT = re.compile(r"(?<=[^\s,;_({\[=])\s*\\(?:text|mbox|textbf|textrm|textnormal|mathrm)\s*\{([^{}]*)\}(\^\{?[23]\}?)?")
def _drop_unit(match: re.Match[str]) -> str:
    """Remove `\\text{ cm}^2` behind a value; keep connectives, percent and factors such as million."""
    word = match[1].strip().lower()
    if word in {"and", "or", ",", "and,"} or word.startswith(("percent", "%", "\\%", *_WORDS)):
        return f" {match[1].strip()} "
    return " "


_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"(?<!\\)\\[()\[\]]|\\?[$€£]", " "),
        (r"\\+(?:boxed|fbox)\s*(?=\{)", ""),
        (r"(?<!\\)\\\\(?=(?:[dt]?frac|sqrt|text|left|right|pi|le|ge|cup|infty)(?![a-zA-Z]))", r"\\"),
        (r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\.?", ""),
        (r",\s*\\!\s*(?=\d{3})|\{,\s*\}\s*(?=\d{3})", ","),
        (r"(?<!\\)\\(?:displaystyle|limits|[!,;:> ])|~", " "),
        (r"\\q?quad(?![a-zA-Z])", " "),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\frac\s*(\d)\s*(?=\{)", r"\\frac{\1}"),
        (r"(\\frac\{[^{}]*\})\s*(\d)", r"\1{\2}"),
        (r"\\frac\s*\{\s*([^{}]*?)\s*\}\s*\{\s*([^{}]*?)\s*\}", r"\\frac{\1}{\2}"),
        (r"[\[(]\s*\\begin\{array\}\{[^{}]*\}(.*?)\\end\{array\}\s*[\])]", r"\\begin{pmatrix}\1\\end{pmatrix}"),
        (r"\\sqrt\s*(\d)", r"\\sqrt{\1}"),
        (r"(?<=\w)_\s*\{\s*(\d+)\s*\}", r"_\1"),
        (r"(?:(?<=[\[(,;])|^)\s*\+\s*(?=\\infty)", ""),
        (r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![a-zA-Z])", " "),
        (r"\\(?:leq|leqslant|le)(?![a-zA-Z])|<=", r"\\le "),
        (r"\\(?:geq|geqslant|ge)(?![a-zA-Z])|>=", r"\\ge "),
        (r"\\(?:neq|ne)(?![a-zA-Z])|!=", r"\\ne "),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (_UNIT_TEXT.pattern, _drop_unit),
        (r"\\%|\b(?:percent(?:age)?|pct)\b", "%"),
        (r"\\(?:text|mbox|textbf|textrm|textnormal|mathrm|mathbf|textit|operatorname)\s*\{([^{}]*)\}", r"\1"),
        (r",?\s+(?:and|or)\s+|(?<=[\d)])(?:and|or)(?=[-\d(])", ", "),
        (r"\\in(?![a-zA-Z])", r"\\in "),
        (r"\s+", " "),
    ]
]
_NAME = re.compile(
    r"\s*(?:(?:\\[a-z]+|\|?[A-Za-z]{1,2}\|?)(?:_\{?\w+\}?)?(?:\(\w\))?|\([A-Za-z](?:,\s*[A-Za-z])+\))\s*", re.A
)
_PROSE = re.compile(
    r"[^\W\d_]{4,}|(?<= )(?!(?:sin|cos|tan|cot|sec|csc|log|ln|mod)\b)[A-Za-z]{2,}|\b(?!(?:sin|cos|tan|cot|sec|csc|log|ln|mod)\b)[A-Za-z]{2,}(?= )"
)
_MATRIX = re.compile(r"\\begin\{[pbB]?matrix\}((?:(?!\\begin).)*)\\end\{[pbB]?matrix\}", re.S)
_OPEN, _CLOSE = "([{", ")]}"


@dataclass(frozen=True)
class Number:
    """A number written out: its exact value, digits behind the point (0 for fractions), a percent sign or not."""

    value: Fraction
    places: int = 0
    percent: bool = False


@dataclass(frozen=True)
class Group:
    """Several answers. `kind` is the pair of brackets, "U" (a union), "M" (a matrix) or "{}" (a list or set)."""

    kind: str
    parts: tuple[str, ...]

    @property
    def ordered(self) -> bool:
        """Whether the parts' places matter."""
        return self.kind not in {"{}", "U"}


def tidy(answer: str) -> str:
    """`answer` with what carries no meaning removed and variants of one notation written alike."""
    text = "".join(_SYMBOLS.get(character, character) for character in answer)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text).strip()
    text = text.strip().strip("*").strip().rstrip(".,;:").strip()
    return text[1:-1] if re.fullmatch(r"\([A-Za-z]\)", text) else text


def as_number(text: str) -> Number | None:
    """The number that a tidied text writes out, units dropped: integer, decimal, a/b, mixed, a x 10^n, %."""
    match = _PLAIN.fullmatch(text) if len(text) <= MAX_LENGTH else None
    if match is None:
        return None
    decimal = match["decimal"]
    try:
        value = _decimal(decimal) if decimal else _decimal(match["a"] or match["c"]) / _decimal(match["b"] or match["d"])
    except ZeroDivisionError:
        return None
    value = (value + int(match["whole"] or 0)) * Fraction(10) ** int(match["power"] or match["e"] or 0)
    value *= _WORDS.get((match["factor"] or "").lower(), 1) * (-1 if match["sign"] == "-" else 1)
    percent = match["percent"] is not None
    places = len(decimal.partition(".")[2]) if decimal else 0
    return Number(value / 100 if percent else value, places, percent)


def _decimal(digits: str) -> Fraction:
    return Fraction(re.sub(r"[, ]", "", digits).rstrip(".") or "0")


def as_group(text: str) -> Group | None:
    r"""The parts of a tidied tuple, interval, set, list, union, matrix or `a \pm b`; None for a single answer."""
    if matrix := _MATRIX.fullmatch(text):
        rows = [row for row in re.split(r"\\\\", matrix[1]) if row.strip()]
        cells = [cell.strip() for row in rows for cell in row.split("&")]
        return Group(f"M{len(rows)}", tuple(cells))
    if len(union := _split(text, r"\cup")) > 1:
        return Group("U", union)
    if len(parts := _elements(text)) > 1:
        return Group("{}", _spread(parts))
    inner, brackets = _inside(text)
    if brackets and (parts := _elements(inner)):
        if brackets == "{}":
            return Group("{}", _spread(parts))
        return Group(brackets, parts) if len(parts) > 1 else None
    return Group("{}", _spread(parts)) if r"\pm" in text else None


def _inside(text: str) -> tuple[str, str]:
    """The text inside its outermost brackets, and these two; "" where they do not span the text."""
    text = re.sub(r"\\([{}])", r"\1", text)
    if text[:1] not in tuple(_OPEN):
        return text, ""
    depth = 0
    for i, character in enumerate(text):
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth == 0:
            return (text[1:-1], text[0] + text[-1]) if i == len(text) - 1 and i > 1 else (text, "")
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


def _elements(text: str) -> tuple[str, ...]:
    """The elements of a list: between semicolons where there are any, between commas else."""
    parts = _split(text, ";")
    return parts if len(parts) > 1 else _split(text, ",")


def _spread(parts: tuple[str, ...]) -> tuple[str, ...]:
    r"""Each `a \pm b` as its two values."""
    return tuple(
        part.replace(r"\pm", sign).strip() for part in parts for sign in ("+-" if part.count(r"\pm") == 1 else "+")
    )


def sides(text: str) -> tuple[str, str]:
    r"""The name and the value of an answer: `x = 5`, `x \in A`, `x = 2 + 3 = 5`, `x = 1, 2`; "" for a bare value.

    An equation whose left side is not a name (`2x + y = 3`) is a value itself; sums (`2 + 3 = 5`) are worth their end.
    """
    head, *others = _elements(text) or ("",)
    if any(len(_split(other, "=", r"\in ")) > 1 for other in others):
        return "", text
    exact, *rounded = _split(head, r"\approx") or ("",)
    *left, value = _split(exact, "=", r"\in ") or ("",)
    if not left and rounded and _NAME.fullmatch(value):
        left, value = [value], rounded[0]
    named = bool(left) and _NAME.fullmatch(left[0]) is not None
    lettered = re.search("[A-Za-z]", re.sub(r"\\[a-z]+", "", "".join(left) + ("" if as_number(value) else value)))
    if not (left or rounded) or (left and not named and lettered):
        return "", text
    return left[0].replace(" ", "") if named else "", value + text[len(head) :]


def is_maths(text: str) -> bool:
    """Whether a tidied text holds no plain word: four letters in a row, or two beside a space, that are no command."""
    return not _PROSE.search(re.sub(r"\\(?:begin|end)\{\w+\}|\\[A-Za-z]+|_\{[^{}]*\}", "", text))


def key(text: str) -> str:
    """One string for all writings of a tidied answer."""
    if len(text) > MAX_LENGTH:
        return re.sub(r"\s", "", text)
    value = sides(text)[1]
    if number := as_number(value):
        return f"{number.value * 100}%" if number.percent else str(number.value)
    if group := as_group(value):
        keys = [f"{sides(part)[0]}={key(part)}" if by_name(group) else key(part) for part in group.parts]
        keys = keys if group.ordered else sorted(set(keys))
        return keys[0] if len(keys) == 1 else f"{group.kind[0]}{','.join(keys)}{group.kind[-1]}"
    compact = re.sub(r"\s", "", value)
    return compact if is_maths(value) else compact.casefold()


def by_name(group: Group) -> Group | None:
    """`y = 2, x = 1` as the point (1, 2): the values in the order of their names; None unless each has its own name."""
    named = sorted(sides(part) for part in group.parts)
    if group.kind != "{}" or len({name for name, _ in named} - {""}) < max(2, len(named)):
        return None
    return Group("()", tuple(value for _, value in named))
