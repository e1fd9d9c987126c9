r"""LaTeX's many ways of writing one answer, evened out (pure strings).

Nothing is computed: `1/2` and `0.5` stay different here (see `values`). What is marked as text stays marked, for `cat`
is a word and `c a t` a product.

    tidy(r"\$1{,}080.00")              -> r"1,080.00\text{dollar}"
    tidy(r"\dfrac12 \mbox{ cm}^2")     -> r"\frac{1}{2} \text{cm}^2"
    tidy(r"x = 1 \text{ or } x = 2")   -> "x = 1, x = 2"
    tidy("3\u00bd, \u221a2, 5\u00b0")       -> r"3\frac{1}{2}, \sqrt{2}, 5\text{degree}"
"""

import re
import unicodedata
from collections.abc import Callable

from upft_mlx.grade.units import KNOWN

_GREEK = {code: f"\\{unicodedata.name(chr(code)).split()[-1].lower()} " for code in range(0x3B1, 0x3CA)}
_SYMBOLS = _GREEK | str.maketrans({
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-"), **dict.fromkeys("\u00f7\u2044", "/"), "\u200b": "",
    "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u00b1": r"\pm ", "\u00b0": r"^\circ ", "\u03bb": r"\lambda ",
    "\u2264": r"\le ", "\u2265": r"\ge ", "\u2260": r"\ne ", "\u2208": r"\in ", "\u222a": r"\cup ",
    "\u221e": r"\infty ", "\u2205": r"\emptyset ", "\u211d": r"\mathbb{R}",
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"',
})  # fmt: skip
_SIGNS = {"$": "dollar", "\u00a2": "cent", "\u00a3": "pound", "\u20ac": "euro", "\u00a5": "yuan", "\u20b9": "rupee"}
_SIGN = "[{}]".format("".join(_SIGNS))
_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_SIMPLE = re.compile(r"-?\d+(?:\.\d+)?", re.A)


def tidy(answer: str) -> str:
    """`answer` with what carries no meaning removed and variants of one notation written alike."""
    if _SIMPLE.fullmatch(answer):
        return answer
    text = answer if answer.isascii() else _in_ascii(answer)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text).strip()
    text = text.strip('*`"').strip().rstrip(".,;:").strip()
    if text.lower() in _WORDS:
        return str(_WORDS.index(text.lower()))
    return text[1:-1] if re.fullmatch(r"\([A-Za-z]\)", text) else text


def decimal_commas(text: str) -> str:
    """Numbers like `2,74` with a point: a comma that separates no thousands; `7,425` and lists stay."""
    return _DECIMAL_COMMA.sub(r"\1.\2", text)


def _in_ascii(text: str) -> str:
    """Full-width digits, superscripts, fractions, roots and signs of Unicode as LaTeX writes them."""

    def even(match: re.Match[str]) -> str:
        return unicodedata.normalize("NFKC", match[0])

    text = re.sub("[\u00b2\u00b3\u00b9\u2070-\u207f]+", lambda match: f"^{{{even(match)}}}", text)
    text = re.sub("[\u2080-\u208e]+", lambda match: f"_{{{even(match)}}}", text)
    text = re.sub("[\u00bc-\u00be\u2150-\u215e]", lambda m: r"\frac{{{}}}{{{}}}".format(*even(m).split("\u2044")), text)
    text = unicodedata.normalize("NFKC", text.translate(_SYMBOLS)).translate(_SYMBOLS)
    return re.sub(r"\u221a\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+|[a-z]))", r"\\sqrt{\1\2\3}", text)


def _text(match: re.Match[str]) -> str:
    r"""`\mbox{ adults, }` as `\text{adults},`; digits, formulas, single letters and connectives need no mark."""
    inside = _JOINT.sub(", ", match["text"]).strip()
    parts = [part.strip() for part in inside.split(",")]
    marked = (part if not _WORDY.search(part) or _LOOSE.search(part) else rf"\text{{{part}}}" for part in parts)
    return f" {', '.join(marked)} "


def _currency(match: re.Match[str]) -> str:
    """The amount, its currency behind it as a unit."""
    return rf"{match['amount']}\text{{{_SIGNS[match['sign']]}}}"


def _lines(match: re.Match[str]) -> str:
    """The lines of an environment as a list."""
    return (match[1] or match[2]).replace("&", "").replace(r"\\", ", ")


def _quantities(match: re.Match[str]) -> str:
    """`2 h 30 min` as a list, its words marked; products like `2x 3y` stay."""
    parts = re.findall(_QUANTITY, match[0])
    words = [marked or bare for _, marked, bare in parts]
    if any(len(word) == 1 and word not in KNOWN for word in words):
        return match[0]
    return ", ".join(rf"{number}\text{{{word}}}" for (number, *_), word in zip(parts, words, strict=True))


_DECIMAL_COMMA = re.compile(r"(?<![\d.,])(\d+),(\d{1,2}|\d{4,}|(?<=(?<!\d)0,)\d+)(?![\d,]|\.\d)")
_JOINT = re.compile(r",?(?:^|\s+)(?:and|or)(?:\s+|$)|,\s*(?:and|or)\s+")
_WORDY = re.compile(r"[A-Za-z]{2}|^[b-df-hj-z]$")
_LOOSE = re.compile(r"\d|^\(?[A-Z]\)?\W*$|^(?:percent|pct|thousand|[mbtr]+illion|dozen)")
_END = r"(?![a-zA-Z])"
_QUANTITY = r"(\d[\d./]*)\s*(?:\\text\{([^{}]*)\}|([A-Za-z]+)(?![A-Za-z]))"
_RULES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    # delimiters, boxes, backslashes doubled by JSON
    (r"(?<!\\)\\[()\[\]]", " "),
    (r"(?<!\\)\$\$?(?=\S)([^$]*[^$\s])\$?\$(?!\d)|(?<!\\)\$ ([^$]*) \$", r" \1\2 "),
    (r"\\+(?:boxed|fbox)\s*(?=\{)", ""),
    (rf"(?<!\\)\\\\(?=(?:[dt]?frac|sqrt|text|left|right|pi|le|ge|cup|infty){_END})", r"\\"),
    # spacing and size; `\!` and `{,}` inside 1,\!000 are thousands separators
    (rf"\\(?:left|right|[bB]igg?[lr]?){_END}\.?", ""),
    (r",\s*\\!\s*(?=\d{3})|\s*\{,\s*\}\s*(?=\d{3})", ","),
    (r"(?<!\\)\\(?:displaystyle|limits|[!,;:> ])|~", " "),
    (rf"\\q?quad{_END}", " "),
    # text, degrees, large numbers, currencies
    (r"\\(?:text(?:bf|rm|normal|it)?|mbox|mathrm)\s*\{(?P<text>[^{}]*)\}", _text),
    (r"\\(?:mathbf|bm|boldsymbol|operatorname\*?)\s*\{([^{}]*)\}", r"\1"),
    (r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?|\\degree(?![a-zA-Z])", r"\\text{degree}"),
    (r"(?<=[\d}])\s*\\?\b(?:dozen)\b", r" \\cdot 12"),
    (r"(?<=[\d}])\s*thousands?\b", r" \\cdot 10^{3}"),
    (r"(?<=[\d}])\s*millions?\b", r" \\cdot 10^{6}"),
    (r"(?<=[\d}])\s*billions?\b", r" \\cdot 10^{9}"),
    (r"(?<=[\d}])\s*trillions?\b", r" \\cdot 10^{12}"),
    (r"\bUSD?\s*\\?\$|\bUSD\s*(?=\d)", "$"),
    (rf"\\?(?P<sign>{_SIGN})\s*(?P<amount>-?[\d.,]*\d(?: \\cdot 10\^\{{\d+\}}|\s+\d+/\d+(?![\d./]))?)", _currency),
    (rf"(?P<amount>\d)\s*\\?(?P<sign>{_SIGN})", _currency),
    (rf"\\?{_SIGN}", " "),
    (r"^(?:negative|minus) (?=\d)", "-"),
    (r"^(?:the )?(\d*(?:1st|2nd|3rd|\dth))\.?$", lambda match: match[1][:-2]),
    (r"(?<=\d)\s*x\s*(?=10\s*\^)", r"\\times "),
    (r"^([A-Z])\s*(?=\([^()]*,[^()]*\)$)", r"\1="),
    (r"\\%|(?<![a-zA-Z])(?:percent(?:age)?|pct)\b", "%"),
    # fractions, roots, binomials, subscripts, repeating decimals, environments
    (rf"\\[dtc]frac{_END}", r"\\frac"),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\\frac\s*(\d)\s*(?=\{)", r"\\frac{\1}"),
    (r"(\\frac\{[^{}]*\})\s*(\d)", r"\1{\2}"),
    (r"\\frac\s*\{\s*([^{}]*?)\s*\}\s*\{\s*([^{}]*?)\s*\}", r"\\frac{\1}{\2}"),
    (r"\\sqrt\s*(\d)", r"\\sqrt{\1}"),
    (r"\\[dt]binom", r"\\binom"),
    (r"\{?\s*\b([\w+-]+)\s*\\choose\s*([\w+-]+)\s*\}?", r"\\binom{\1}{\2}"),
    (r"(?<=[\dA-F])_\s*(\d+)|_\s*(\d)|_\s*\{\s*(\w+)\s*\}", r"_{\1\2\3}"),
    (r"\\[lr]angle(?![a-z])", lambda match: "()"[match[0] == r"\rangle"]),
    (r"(?<=\.)(\d*)(?:\\(?:overline|bar|dot)\s*\{?\s*(\d+)\s*\}?|\((\d+)\))", r"\1\\overline{\2\3}"),
    (r"(?<=\.)(\d*?)(\d+?)\2\2+\s*(?:\.\.\.|\\[lc]?dots)$", r"\1\\overline{\2}"),
    (r"^(?:12 )?noon$", "12:00 pm"),
    (r"[\[(]\s*\\begin\{array\}\{[^{}]*\}(.*?)\\end\{array\}\s*[\])]", r"\\begin{pmatrix}\1\\end{pmatrix}"),
    (r"\\begin\{cases\}([^&]*)\\end\{cases\}|\\begin\{aligned\}(.*)\\end\{aligned\}", _lines),
    # sets, infinity, relations
    (r"\\varnothing|\\\{\s*\\\}|^(?i:(?:\\text\{)?no (?:real )?solutions?\}?)$", r"\\emptyset "),
    (r"(?:^|(?<=\\in ))(?:(?i:(?:\\text\{)?all real(?:s| numbers)\}?)\W*|\\mathbb\s*\{?R\}?)$", r"(-\\infty,\\infty)"),
    (r"(?:(?<=[\[(,;])|^)\s*\+\s*(?=\\infty)", ""),
    (rf"\\(?:leq|leqslant|le){_END}|<=", r"\\le "),
    (rf"\\(?:geq|geqslant|ge){_END}|>=", r"\\ge "),
    (rf"\\(?:neq|ne){_END}|!=", r"\\ne "),
    (rf"\\lt{_END}", "<"),
    (rf"\\gt{_END}", ">"),
    (rf"\\in{_END}", r"\\in "),
    (r"\\?\bsqrt\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"(?<![\\a-zA-Z])(?=(?:sin|cos|tan|cot|sec|csc|log|ln|pi)(?![a-zA-Z]))", r"\\"),
    (r"\\pmod\s*\{?(\w+)\}?|\(\\?mod (\w+)\)", r"\\pmod{\1\2}"),
    (r"(?<=\d)\s*:\s*(?=\d)", ":"),
    (rf"\\mid{_END}|\\colon{_END}", ":"),
    # quantities and lists get commas
    (r"(?<=\d)\s*(?:\\text\{)?(?:remainder|rem\.?|[Rr])\}?\s*(?=\d)", " remainder "),
    (rf"^(?:{_QUANTITY}[\s,]*(?:and\s+)?){{2,}}$", _quantities),
    (r",?\s+(?:and|or)\s+|(?<=[\d)])(?:and|or)(?=[-\d(])", ", "),
    (r"\s+", " "),
]  # fmt: skip
QUANTITIES = re.compile(rf"(?:{_QUANTITY}[\s,]*(?:and\s+)?){{2,}}", re.A)
LABELLED = re.compile(r"(?:\(([A-J])\)\s*|([A-J])[).:]\s+)(?=[\w$\\(-])")
r"""A choice with what it says: `(A) 5`, `B) \pi`."""
_REWRITES = [(re.compile(pattern, re.A), replacement) for pattern, replacement in _RULES]
