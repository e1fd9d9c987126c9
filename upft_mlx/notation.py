r"""LaTeX's many ways of writing one answer, evened out (pure strings).

Nothing is computed: `1/2` and `0.5` stay different here (see `values`).

    tidy(r"\$1{,}080.00")              -> "1,080.00"
    tidy(r"\dfrac12 \text{ cm}^2")     -> r"\frac{1}{2}"
    tidy(r"x = 1 \text{ or } x = 2")   -> "x = 1, x = 2"
"""

import re
from collections.abc import Callable

FACTORS = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}

_SYMBOLS = str.maketrans({
    "\u2212": "-", "\u2013": "-", "\u2014": "-", "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u00f7": "/",
    "\u03c0": r"\pi ", "\u221e": r"\infty ", "\u2264": r"\le ", "\u2265": r"\ge ", "\u2260": r"\ne ",
    "\u222a": r"\cup ", "\u2208": r"\in ", "\u00b1": r"\pm ", "\u00b2": "^2", "\u00b3": "^3", "\u00b0": "",
    "\uff05": "%", "\u00a0": " ", "\u2009": " ", "\u202f": " ",
})  # fmt: skip


def tidy(answer: str) -> str:
    """`answer` with what carries no meaning removed and variants of one notation written alike."""
    text = answer.translate(_SYMBOLS)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text).strip()
    text = text.strip("*").strip().rstrip(".,;:").strip()
    return text[1:-1] if re.fullmatch(r"\([A-Za-z]\)", text) else text


def decimal_commas(text: str) -> str:
    """Numbers like `2,74` with a point: a comma that separates no thousands; `7,425` and lists stay."""
    return _DECIMAL_COMMA.sub(r"\1.\2", text)


def _drop_unit(match: re.Match[str]) -> str:
    r"""Remove `\text{ cm}^2` behind a value; keep connectives, percent, million, e and i."""
    word = match[1].strip()
    kept = word.lower() in {"and", "or", ",", "and,", "e", "i"}
    if kept or word.lower().startswith(("percent", "pct", "%", "\\%", *FACTORS)):
        return f" {word}{match[2] or ''} "
    return " "


_DECIMAL_COMMA = re.compile(r"(?<![\d.,])(\d+),(\d{1,2}|\d{4,}|(?<=(?<!\d)0,)\d+)(?![\d,]|\.\d)")
_TEXT = r"\\(?:text|mbox|textbf|textrm|textnormal|mathrm)\s*\{([^{}]*)\}"
_WORD_END = r"(?![a-zA-Z])"
_RULES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    # delimiters, currency, boxes, backslashes doubled by JSON
    (r"(?<!\\)\\[()\[\]]|\\?[$\u00a3\u20ac]", " "),
    (r"\\+(?:boxed|fbox)\s*(?=\{)", ""),
    (rf"(?<!\\)\\\\(?=(?:[dt]?frac|sqrt|text|left|right|pi|le|ge|cup|infty){_WORD_END})", r"\\"),
    # spacing and size; `\!` and `{,}` inside 1,\!000 are thousands separators
    (rf"\\(?:left|right|[bB]igg?[lr]?){_WORD_END}\.?", ""),
    (r",\s*\\!\s*(?=\d{3})|\s*\{,\s*\}\s*(?=\d{3})", ","),
    (r"(?<!\\)\\(?:displaystyle|limits|[!,;:> ])|~", " "),
    (rf"\\q?quad{_WORD_END}", " "),
    # fractions, roots, subscripts, matrices
    (rf"\\[dtc]frac{_WORD_END}", r"\\frac"),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\\frac\s*(\d)\s*(?=\{)", r"\\frac{\1}"),
    (r"(\\frac\{[^{}]*\})\s*(\d)", r"\1{\2}"),
    (r"\\frac\s*\{\s*([^{}]*?)\s*\}\s*\{\s*([^{}]*?)\s*\}", r"\\frac{\1}{\2}"),
    (r"\\sqrt\s*(\d)", r"\\sqrt{\1}"),
    (r"(?<=\w)_\s*\{\s*(\d+)\s*\}", r"_\1"),
    (r"[\[(]\s*\\begin\{array\}\{[^{}]*\}(.*?)\\end\{array\}\s*[\])]", r"\\begin{pmatrix}\1\\end{pmatrix}"),
    # degrees, infinity, relations
    (r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![a-zA-Z])", " "),
    (r"(?:(?<=[\[(,;])|^)\s*\+\s*(?=\\infty)", ""),
    (rf"\\(?:leq|leqslant|le){_WORD_END}|<=", r"\\le "),
    (rf"\\(?:geq|geqslant|ge){_WORD_END}|>=", r"\\ge "),
    (rf"\\(?:neq|ne){_WORD_END}|!=", r"\\ne "),
    (rf"\\lt{_WORD_END}", "<"),
    (rf"\\gt{_WORD_END}", ">"),
    (rf"\\in{_WORD_END}", r"\\in "),
    # words: units go, lists get commas
    (rf"(?<=[^\s,;_(\{{\[=+*/^<>-])\s*{_TEXT}(\^\{{?[23]\}}?)?", _drop_unit),
    (r"\\%|(?<![a-zA-Z])(?:percent(?:age)?|pct)\b", "%"),
    (_TEXT, r"\1"),
    (r"\\(?:mathbf|textit|operatorname)\s*\{([^{}]*)\}", r"\1"),
    (r",?\s+(?:and|or)\s+|(?<=[\d)])(?:and|or)(?=[-\d(])", ", "),
    (r"\s+", " "),
]
_REWRITES = [(re.compile(pattern), replacement) for pattern, replacement in _RULES]
