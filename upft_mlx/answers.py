r"""Where the answer stands in a completion or in a data set's solution (pure strings, no sympy).

The first of these that is there wins:

    \boxed{...} or \fbox{...}    the last complete one; boxes joined by "," / "and" / "or" are one list
    #### N                       GSM8K's mark: on the last line, or with nothing but a number behind it
    the answer is X, Answer: X   within the last lines, also a line `A: X`; "the final answer is X" anywhere
    \frac{8}{3}                  a text that is nothing but one line of maths
    ... 42 ...                   the last number, or the maths between $ signs with no number behind it
"""

import re
from itertools import pairwise

from upft_mlx.notation import tidy
from upft_mlx.values import MAX_LENGTH, as_number, is_maths, key

__all__ = ["extract_answer", "normalize_answer", "normalize_gold"]

TAIL = 2000  # characters at the end of a completion in which an unmarked answer is looked for
STATED_LINES = 3  # non-blank lines at the end in which "the answer is" counts
JOINT_LENGTH = 60  # characters at most between two boxes of one list

_BRACES = re.compile(r"(?P<box>\\+(?:boxed|fbox)\s*\{)|\\.|[{}]", re.S)
_JOINT_NOISE = re.compile(r"\\[()\[\]]|\\q?quad|\\(?:text|mbox)\s*\{|[\s$}]")
_JOINT = re.compile(  # "and", "dollars and", "and y ="
    r"(?:,|;|(?:[a-z]{3,12}\s+)?,?\s*(?:and|or))(?:\s*[A-Za-z]\w?(?:_\w+)?\s*=)?", re.A
)
_HASHES = re.compile(r"^[ \t]*####(.+)$", re.M)
_TO = r"(?:\s+(?:to|for)\s[^.:\n]{1,80}?)?"
_STATED = re.compile(rf"(?:\banswer{_TO}[\s*_]*(?:\bis\b|\bare\b|:|=)|^\s*(?-i:A):)[\s*_:]*(?=\S)", re.I | re.M)
_FINAL = re.compile(rf"\bfinal answer{_TO}\s+is[\s*_:]*(?=\S)", re.I)
_FALSE_START = re.compile(r"(?:wrong|incorrect|possible|your)\s+$", re.I)
_SENTENCE_END = re.compile(r"\.\s+(?=[A-Z(*])|,?\s+(?:because|since|which|as)\s|\s*I hope\b", re.I)
_MATHS = re.compile(
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)"
    r"|(?<![\\$\d])\$(?:(?!\s)([^$\n]+?)(?<![\s\\])| ([^$\n]+?) )\$(?!\d)",  # "$5 or $6" is no maths
    re.S,
)
_INTEGER = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_AMOUNT = rf"(?:\\[dt]?frac\s*\{{-?\d+\}}\s*\{{\d+\}}|{_INTEGER}(?:\.\d+)?(?:/\d+(?!\.?\d))?|\.\d+)"
_NUMBER = re.compile(rf"(?<![A-Za-z\d.,])(?:(?<![\w.)}}])-)?[$\u00a3\u20ac]?{_AMOUNT}(?:\s?(?:\\?%|percent))?", re.A)
_WORD = re.compile(r"\\(?:text|mbox|mathrm|textbf)\s*\{[^{}]+\}|[A-Za-z]")


def extract_answer(completion: str) -> str | None:
    """The answer that a completion gives, as it is written there; None where it gives none."""
    return (
        _boxed(completion)
        or _after_hashes(completion)
        or _stated(completion)
        or _bare(completion)
        or _last_value(completion[-TAIL:])
    )


def normalize_gold(text: str) -> str:
    r"""The bare answer of a gold answer in its data set's format: `... #### 18`, a solution with `\boxed{...}`.

    A bare answer comes back as it is, less the $ signs around it.
    """
    bare = text.strip()
    marked = _boxed(bare) or _after_hashes(bare)
    if marked is None and (len(bare) > MAX_LENGTH / 2 or "\n" in bare):
        marked = extract_answer(bare)
    if marked is None:
        whole = _MATHS.fullmatch(bare)
        marked = _inside(whole) if whole else bare
    return marked.strip()


def normalize_answer(answer: str) -> str:
    r"""The key that equal answers share, for majority votes: `0.5`, `\frac12`, `x = 1/2`; or `1, 2` and `2, 1`.

    Only the writing is evened out: answers equal by algebra (`1/\sqrt2`, `\sqrt2/2`) keep different keys.
    """
    return key(tidy(answer)) if len(answer) <= MAX_LENGTH else "".join(answer.split())


def _boxed(text: str) -> str | None:
    """The last complete box that is not empty, with those that "and", "or" or a comma join to it."""
    spans = [(start, end, text[begin : end - 1].strip()) for start, begin, end in _boxes(text)]
    spans = [span for span in spans if span[2]]
    if not spans:
        return None
    joined = [spans[-1][2]]
    for (_, end, inside), (start, _, _) in reversed(list(pairwise(spans))):
        if not _joins(text[end:start]):
            break
        joined.insert(0, inside)
    return ", ".join({normalize_answer(part): part for part in joined}.values())


def _joins(between: str) -> bool:
    """Whether the text between two boxes makes one list of them."""
    if len(between) > JOINT_LENGTH or "\n\n" in between:
        return False
    return not between or _JOINT.fullmatch(_JOINT_NOISE.sub(" ", between).strip()) is not None


def _boxes(text: str) -> list[tuple[int, int, int]]:
    """(start, start of the content, end) of each complete outermost box, in one pass over the text."""
    open_at: list[tuple[int, int] | None] = []
    spans: list[tuple[int, int, int]] = []
    for token in _BRACES.finditer(text):
        if token["box"]:
            open_at.append(token.span())
        elif token[0] == "{":
            open_at.append(None)
        elif token[0] == "}" and open_at and (box := open_at.pop()):
            while spans and spans[-1][0] > box[0]:
                spans.pop()
            spans.append((*box, token.end()))
    return spans


def _after_hashes(text: str) -> str | None:
    """GSM8K's `#### N`. A line `#### Step 2` is a heading, unless it is the last line of the text."""
    for mark in reversed(list(_HASHES.finditer(text))):
        value, last = mark[1].strip(), not text[mark.end() :].strip()
        if value and (last or (len(value) <= MAX_LENGTH and as_number(tidy(value)))):
            return value
    return None


def _stated(text: str) -> str | None:
    """X of "the answer is X" or "Answer: X" within the last lines, of "the final answer is X" anywhere."""
    tail = "\n".join([line for line in text[-TAIL:].splitlines() if line.strip()][-STATED_LINES:])
    marks = [mark for mark in _STATED.finditer(tail) if not _FALSE_START.search(tail[: mark.start()][-20:])]
    if marks:
        return _first_value(tail[marks[-1].end() :])
    finals = list(_FINAL.finditer(text))
    return _first_value(text[finals[-1].end() :][:TAIL]) if finals else None


def _first_value(rest: str) -> str | None:
    """The answer at the start of `rest`: "18 dollars. So ...", "$x = 3$ or $x = 5$", "(C)", "the integer 7"."""
    if rest.startswith(("\\[", "$$")) and (display := _MATHS.match(rest)):
        return _inside(display)
    phrase = _SENTENCE_END.split(rest.splitlines()[0], maxsplit=1)[0]
    phrase = phrase.replace("**", "").replace("__", "").strip().rstrip(".").strip()
    if whole := _MATHS.fullmatch(phrase):
        return _inside(whole)
    if not phrase or is_maths(tidy(phrase)) or as_number(tidy(phrase)):
        return phrase or None
    if (number := _NUMBER.match(phrase)) and not re.match(r"\s*[-+*/=^]", phrase[number.end() :]):
        return number[0]
    return _last_value(phrase) or (phrase if len(phrase) <= 40 else None)


def _bare(text: str) -> str | None:
    r"""The whole text where it is one line of maths and nothing else, as in `\frac{8}{3}` or `$x + 1$`."""
    line = text.strip()
    if not line or "\n" in line or "boxed" in line or len(line) > 200:
        return None
    if whole := _MATHS.fullmatch(line):
        return _inside(whole)
    maths = re.search(r"[-+*/^=<>\\\d]", line) and is_maths(tidy(line))
    return line if maths or _WORD.fullmatch(line) else None


def _last_value(text: str) -> str | None:
    """The last number, or the maths between delimiters where no number follows it."""
    numbers = list(_NUMBER.finditer(text))
    maths = [span for span in _MATHS.finditer(text) if is_maths(tidy(_inside(span)))]
    if maths and (not numbers or numbers[-1].end() <= maths[-1].end()):
        return _inside(maths[-1])
    return numbers[-1][0].strip() if numbers else None


def _inside(maths: re.Match[str]) -> str:
    """What stands between the delimiters."""
    return next(group for group in maths.groups() if group).strip()
