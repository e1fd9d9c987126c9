r"""Answers as text: finding one in a completion, and writing equal ones alike (pure strings, no sympy).

Where an answer is looked for, first hit wins:

    \boxed{...} or \fbox{...}    the last complete one; boxes joined by "," / "and" / "or" are one list
    #### N                       GSM8K's mark, on the last line, or alone with a number on an earlier one
    the answer is X, Answer: X   within the last lines, also the bare `A: X`
    x = 3/4                      a text that is nothing but one line of maths
    ... 42 ...                   the last number, or the maths between $ signs that ends behind it
"""

import re
from itertools import pairwise

from upft_mlx.values import as_number, is_maths, key, number_pattern, tidy

__all__ = ["extract_answer", "normalize_answer", "normalize_gold"]

TAIL = 2000  # characters at the end of a completion in which an unmarked answer is looked for
STATED_LINES = 3  # non-blank lines at the end in which "the answer is" counts

_BRACES = re.compile(r"(?P<box>\\+(?:boxed|fbox)\s*\{)|\\.|[{}]", re.S)
_JOINT = re.compile(r"\\[()\[\]]|\\q?quad|\\(?:text|mbox)\s*\{|[\s$}]")
_AND = re.compile(r"(?:,|;|(?:[a-z]{3,12}\s+)?,?\s*(?:and|or))(?:\s*[A-Za-z]\w?(?:_\w+)?\s*=)?", re.A)  # \boxed{1} and y = \boxed{2}
_HASHES = re.compile(r"^[ \t]*####[ \t]*(\S.*?)[ \t]*$", re.M)
_STATED = re.compile(
    r"(?:\banswer(?:\s+(?:to|for)\s[^.:\n]{1,80}?)?[\s*_]*(?:\bis\b|\bare\b|:|=)|^\s*A:)[\s*_:]*(?=\S)", re.I | re.M
)
_FINAL = re.compile(r"\bfinal answer(?:\s+(?:to|for)\s[^.:\n]{1,80}?)?\s+is[\s*_:]*(?=\S)", re.I)
_FALSE_START = re.compile(r"(?:wrong|incorrect|possible|your)\s+$", re.I)
_SENTENCE_END = re.compile(r"\.\s+(?=[A-Z(*])|,?\s+(?:because|since|which|as)\s|\s*I hope\b", re.I)
_MATHS = re.compile(
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<![\\$\d])\$(?:(?!\s)([^$\n]+?)(?<![\s\\])| ([^$\n]+?) )\$(?!\d)", re.S
)
_NUMBER = re.compile(rf"(?<![A-Za-z\d.,])(?:(?<![\w.)}}])-)?[$€£]?{number_pattern}(?:\s?(?:\\?%|percent))?", re.A)
_TEXT = re.compile(r"\\(?:text|mbox|mathrm|textbf)\s*\{[^{}]+\}")


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
    r"""A gold answer in its data set's own format (`... #### 18`, a solution with `\boxed{...}`) as the bare answer.

    A bare answer comes back as it is, less the $ signs around it.
    """
    bare = text.strip()
    marked = _boxed(bare) or _after_hashes(bare)
    if marked is None and (len(bare) > 200 or "\n" in bare):
        marked = extract_answer(bare)
    if marked is None:
        whole = _MATHS.fullmatch(bare)
        marked = _inside(whole) if whole else bare
    return marked.strip()


def normalize_answer(answer: str) -> str:
    r"""The key under which equal answers are grouped: `0.5`, `\frac12` and `x = 1/2` share one, so do `1, 2` and `2, 1`.

    Only the writing is evened out; answers that are equal by algebra (`1/\sqrt2`, `\sqrt2/2`) keep different keys.
    """
    return key(tidy(answer))


def _boxed(text: str) -> str | None:
    """The last complete box that is not empty, with those that "and", "or" or a comma join to it."""
    spans = [(a, b, inside) for a, b, inside in _boxes(text) if inside.strip()]
    if not spans:
        return None
    joined = [spans[-1][2].strip()]
    for (_, end, inside), (start, _, _) in reversed(list(pairwise(spans))):
        between = text[end:start]
        if between and (len(between) > 60 or "\n\n" in between or not _AND.fullmatch(_JOINT.sub(" ", between).strip())):
            break
        joined.insert(0, inside.strip())
    distinct = {normalize_answer(part): part for part in joined}
    return ", ".join(distinct.values())


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """(start, end, content) of every complete outermost box, in one pass: no brace is read twice."""
    open_at: list[tuple[int, int] | None] = []
    spans: list[tuple[int, int, str]] = []
    for token in _BRACES.finditer(text):
        if token["box"]:
            open_at.append(token.span())
        elif token[0] == "{":
            open_at.append(None)
        elif token[0] == "}" and open_at and (box := open_at.pop()):
            while spans and spans[-1][0] > box[0]:
                spans.pop()
            spans.append((box[0], token.end(), text[box[1] : token.start()]))
    return spans


def _after_hashes(text: str) -> str | None:
    """GSM8K's `#### N`. A line `#### Step 2` is a heading, unless it is the last line of the text."""
    marks = list(_HASHES.finditer(text))
    for mark in reversed(marks):
        if not text[mark.end() :].strip() or as_number(tidy(mark[1])):
            return mark[1]
    return None


def _stated(text: str) -> str | None:
    """X of "the answer is X" or "Answer: X" within the last lines, of "the final answer is X" anywhere."""
    lines = [line for line in text[-TAIL:].splitlines() if line.strip()]
    tail = "\n".join(lines[-STATED_LINES:])
    starts = [m for m in _STATED.finditer(tail) if not _FALSE_START.search(tail[max(0, m.start() - 20) : m.start()])]
    if starts:
        rest = tail[starts[-1].end() :]
    elif finals := list(_FINAL.finditer(text)):
        rest = text[finals[-1].end() :]
    else:
        return None
    sentence = _SENTENCE_END.split(rest.splitlines()[0], maxsplit=1)[0]
    return _value_of(sentence.replace("**", "").replace("__", "").strip().rstrip(".").strip())


def _value_of(phrase: str) -> str | None:
    """The answer inside the rest of a sentence: "18 dollars", "$x = 3$ or $x = 5$", "(C)", "the integer 7"."""
    if not phrase or is_maths(tidy(phrase)) or as_number(tidy(phrase)):
        return phrase or None
    if leading := _NUMBER.match(phrase):
        return leading[0]
    if value := _last_value(phrase):
        return value
    return phrase if len(phrase) <= 40 else None


def _bare(text: str) -> str | None:
    r"""The whole text where it is one line of maths and nothing else, as in `\frac{8}{3}` or `$x + 1$`."""
    line = text.strip()
    if not line or "\n" in line or len(line) > 200:
        return None
    if whole := _MATHS.fullmatch(line):
        return _inside(whole)
    return line if is_maths(tidy(line)) or _TEXT.fullmatch(line) else None


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
