r"""Where the answer stands in a completion or in a data set's solution (pure strings, no sympy).

What follows `</think>` counts, and what precedes a turn that the model invents (`Question: ...`). There, the first of
these wins:

    \boxed{...} or \fbox{...}    the last complete one; boxes joined by "," / "and" / "or" are one list
    <answer>X</answer>           the last one
    #### N                       GSM8K's mark: on the last line, or with nothing but a number behind it
    the answer is X, Answer: X   within the last lines, also a line `A: X`; "the final answer is X" anywhere
    # Answer                     a heading of that name: what stands below it
    \frac{8}{3}, Yes.            a text that is nothing but one line of maths, or up to three words
    ... **42** ...               a number in bold in the last line
    ... 42 ...                   the last number, or the maths between $ signs with no number behind it

A box that is opened and never closed is an answer that was cut off: where no other is complete, there is none.
"""

import html
import re
from collections.abc import Sequence
from itertools import pairwise

from upft_mlx.grade.notation import LABELLED, QUANTITIES, decimal_commas, tidy
from upft_mlx.grade.values import MAX_LENGTH, Number, is_maths, key, read

TAIL = 2000  # characters at the end of a completion in which an unmarked answer is looked for
STATED_LINES = 3  # non-blank lines at the end in which "the answer is" counts
JOINT_LENGTH = 60  # characters at most between two boxes of one list
LONGEST = 1_000_000  # characters of a text that are looked at, the last ones
MARKS = 50  # of the lines that begin with ####, the last so many are looked at

_BRACES = re.compile(r"(?P<box>\\{1,4}(?:boxed|fbox|framebox)\s*\{)|\\.|[{}]", re.S)
_BARE_BOX = re.compile(r"\\{1,4}(?:boxed|fbox|framebox)\s*(-?[\d.,/]*\d|[A-Za-z](?![A-Za-z]))")
_TURN = re.compile(
    r"^[^\w\n]{0,8}(?:question|problem|exercise|Q|human|user|instruction)\b[^\S\n]*\d*[*_]*:"
    r"|<\|(?:im_end|eot_id|end)",
    re.I | re.M,
)
_TAGGED = re.compile(
    r"<(?:final_)?answer>(.{1,2000}?)</(?:final_)?answer>|\[ANSWER\](.{1,2000}?)\[/ANSWER\]", re.I | re.S
)
_HEADED = re.compile(r"^[^\w\n]*(?:the\s+)?(?:final\s+)?(?:answer|solution\s+set)[^\w\n]*$", re.I | re.M)
_BOLD = re.compile(r"\*\*([^*\n]{1,60}?)\*\*")
_LABEL = re.compile(r"(?:step|part|case|option|note|example|method)\b|.*:\s*$", re.I)
_JOINT_NOISE = re.compile(r"\\[()\[\]]|\\q?quad|\\(?:text|mbox)\s*\{|[\s$}]")
_JOINT = re.compile(  # "and", "dollars and", "and y ="
    r"(?:,|;|(?:for part \(?\w\)? and)|(?:[a-z]{3,12}\s+)?,?\s*(?:and|or))(?:\s*[A-Za-z]\w?(?:_\w+)?\s*=)?", re.A
)
_HASHES = re.compile(r"^[ \t]*####(.+)$", re.M)
_TO = r"(?:\s+(?:to|for)\s[^.:\n]{1,80}?)?"
_WORDS = "answer|respuesta|r\u00e9ponse|antwort|resposta|risposta|\u043e\u0442\u0432\u0435\u0442"
_IS = r"\bis\b|\bare\b|\bequals\b|\bes\b|\best\b|\bist\b|\blautet\b|\b\u00e9\b|:|="
_STATED = re.compile(
    rf"(?:\bfinal answer{_TO}\s+(?:would|should|will) be\b"
    rf"|\b(?:{_WORDS}){_TO}[\s*_]*(?:{_IS})|^[^\S\n]*(?-i:A):|\u7b54\u6848(?:\u662f|\u4e3a|\uff1a|:))[\s*_:\uff1a]*(?=\S)",
    re.I | re.M,
)
_FINAL = re.compile(rf"\bfinal answer{_TO}\s+is[\s*_:]*(?=\S)", re.I)
_FALSE_START = re.compile(r"(?:wrong|incorrect|possible|your)\s+$", re.I)
_SENTENCE_END = re.compile(r"\u3002|\.\s+(?=[A-Z(*])|,?\s+(?:because|since|which|as)\s|\s*I hope\b", re.I)
_MATHS = re.compile(
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)"
    r"|(?<![\\$\d])\$(?:(?!\s)([^$\n]+?)(?<![\s\\])| ([^$\n]+?) )\$(?!\d)",  # "$5 or $6" is no maths
    re.S,
)
_DELIMITED = re.compile(  # whatever stands between: without plain numbers around, a $ sign is no dollar
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\(([^\n]+?)\\\)|(?<!\\)\$((?:\\[^\n]|[^$\n\\])+)\$", re.S
)
_DENIED = re.compile(r"(?:not|never|neither|no longer|unknown)\b(?!\s+defined)|n't\b", re.I)
_NO_ANSWER = re.compile(
    r"(?:\b(?:not|never|neither|nor|cannot|(?:less|more|greater|fewer) than)|n't)(?:\s+(?:equal(?: to)?|be))?\s+\W*$"
    r"|\bbetween\s[^.\n]{1,40}\band\s+\W*$",
    re.I,
)
_GOES_ON = re.compile(r"\s*(?:[-+*/^=:<>]|,?\s*(?:or|and|to|remainder|rem|R)\b|\\[a-z]|,\s*\d)")
_KIND = re.compile(r"(?:the )?(?:set|interval|point|(?:ordered )?pair|triple|vector|matrix)\s+(?=[\[({\\$])", re.I)
_DATE = re.compile(r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?\s\d{1,2}(?:,?\s\d{4})?", re.I)
_TAG = re.compile(r"<(b|i|u|p|em|strong|span|code)>([^<]{0,200})</\1>")
_ENTITY = re.compile(r"&(?:lt|gt|le|ge|ne|amp|nbsp|minus|times);")
_INTEGER = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_VULGAR = "[\u00bc-\u00be\u2150-\u215e]"
_FRACTION = rf"(?:\\[dt]?frac\s*\{{-?\d+\}}\s*\{{\d+\}}|{_VULGAR})"
_AMOUNT = (
    rf"(?:(?:\d{{1,3}}[^\S\n]?)?{_FRACTION}|\d{{1,3}}(?:,\d{{3}})*[^\S\n]\d+/\d+(?![./]?\d)"  # 5 1/2
    rf"|{_INTEGER}(?:\.\d+)?(?:/\d+(?!\.?\d))?|\.\d+)"
)
_COMPOUND = re.compile(r"\d[\d.]* [a-z]+,? (?:and )?\d[\d.]* [a-z]+(?! [a-z]+ \d)", re.A)
_CLOCK = r"\d{1,2}(?::\d\d)?\s?[ap]\.?m\b\.?|\d+(?::\d+)+"
_NUMBER = re.compile(
    rf"(?<![A-Za-z\d.,])(?:{_CLOCK}|(?:(?<![\w.)}}])-)?[$\u00a3\u20ac]?{_AMOUNT}(?:\s?(?:\\?%|percent))?)", re.A | re.I
)
_EITHER = re.compile(rf"({_NUMBER.pattern})[$\s]+or[$\s]+$", re.A | re.I)
_DOUBT = r"if|when|whether|unless|not|never|no|neither|nor|or|suppose|let|between|\w*n't"
_LEADS = r"is|are|was|were|be|has|have|had|gets?|got|makes?|equals?|costs?|needs?|leaves?"
_FILLER = r"(?:left|more|each|old|altogether|together|now|in (?:total|all))\b"
_UNIT = rf"(?:\s(?!squared|cubed|times|in\b|{_FILLER})[a-z]+)?"
_CONCLUDED = re.compile(  # "There are 34 apples left."
    rf"(?!(?:.*[^\w'])?(?:{_DOUBT})\b)[A-Z][^\d.!?$:;\n]{{0,100}}(?:\s(?:{_LEADS})|'s)\s+"
    rf"(?:(?:now|only|just|exactly|still)\s+)?(?P<value>{_NUMBER.pattern}{_UNIT})(?:\s{_FILLER})*\s*[.!]?",
    re.A | re.I,
)
_LAST_SENTENCE = re.compile(  # what comes before a conclusion: its numbers are not the answer
    r"^.*[.!]\s+(?=(?:so|thus|hence|therefore|then|altogether|together|in total|in all|that|the (?:final )?answer)\b)",
    re.I | re.S,
)
_NAMED = re.compile(rf"(?!.*{_VULGAR})" r"\W{0,3}[^\W\d_]+(?:[ -][^\W\d_]+){0,2}[.!*]{0,3}")
_WORD = re.compile(r"\\(?:text|mbox|mathrm|textbf)\s*\{[^{}]+\}|[A-Za-z]")


def extract_answer(completion: str, match_types: Sequence[str] = ("latex", "expr")) -> str | None:
    """The answer that a completion gives, as it is written there; None where it gives none.

    Args:
        completion: the text.
        match_types: see `grade.Rules`.
    """
    text = own_words(completion)
    if "string" in match_types:  # a single letter A to D that is stated, boxed or all there is
        for found in (boxed_answer(text), stated_answer(text), text.strip()[:20]):
            if found and re.fullmatch("[A-D]", letter := tidy(found).strip("() .")):
                return letter
    if "latex" not in match_types:
        return _plain(decimal_commas(text[-TAIL:])) if "expr" in match_types else None
    boxed = boxed_answer(text)
    if "expr" not in match_types:
        spans = list(_DELIMITED.finditer(text[-TAIL:]))  # between single `$` signs or `\( \)` it may not span lines
        return boxed or _said_last(text) or (_inside(spans[-1]) if spans else None)
    if boxed:
        return _said_last(text) or boxed
    if is_cut_off(text):
        return None
    return (
        tagged_answer(text)
        or _after_hashes(text)
        or stated_answer(text)
        or _headed(text)
        or _bare(text)
        or _in_bold(text[-TAIL:])
        or _last_value(text[-TAIL:])
    )


def own_words(completion: str) -> str:
    """The completion less its thoughts and less what it invents after its answer: the next question."""
    completion = completion[-LONGEST:]
    if "&" in completion or "</" in completion:
        completion = _TAG.sub(r"\2", _ENTITY.sub(lambda match: html.unescape(match[0]), completion))
    thought, _, spoken = completion.rpartition("</think>")
    text = spoken if thought and spoken.strip() else completion
    marks = [mark.end() for mark in (_STATED.search(text), re.search("boxed|####", text)) if mark]
    turn = _TURN.search(text, min(marks)) if marks else None
    return text[: turn.start()] if turn else text


def is_cut_off(text: str) -> bool:
    r"""Whether a `\boxed{` stays open; `\boxed 5`, without braces, is none."""
    return re.search(r"\\(?:boxed|fbox|framebox)\s*\{\s*[^\s}]", text) is not None


def _said_last(text: str) -> str | None:
    """X of "the final answer is X" behind the last box: there the box held a result on the way."""
    final = next(iter(_FINAL.finditer(text, max(0, text.rfind("boxed")))), None)
    value = _first_value(text[final.end() :][:TAIL]) if final else None
    return value if value and is_maths(tidy(value)) else None  # "the final answer is boxed above" says nothing new


def _plain(text: str) -> str | None:
    """A plain number: all of the text, the stated one, else the last."""
    if _is_number(text):
        return text
    stated = stated_answer(text)
    if stated and _is_number(stated):
        return stated
    numbers = list(_NUMBER.finditer(text))
    return numbers[-1][0].strip() if numbers else None


def normalize_gold(text: str) -> str:
    r"""The bare answer of a gold answer in its data set's format: `... #### 18`, a solution with `\boxed{...}`.

    A bare answer is returned as it is, without the $ signs around it. A short chat reply becomes its number if a verb
    leads to the number and its sentence has no other: "So it is 34.", "There are 34 apples left.". A text that only
    names a number ("Apollo 11", "5 is odd", "It is not 34.") stays a text.
    """
    bare = text[-LONGEST:].strip()
    marked = boxed_answer(bare) or _after_hashes(bare)
    if marked is None and (len(bare) > MAX_LENGTH / 2 or "\n" in bare):
        marked = extract_answer(bare)
    if marked is None and (said := _CONCLUDED.fullmatch(_LAST_SENTENCE.sub("", bare))):
        marked = said["value"]
    if marked is None:
        whole = _MATHS.fullmatch(bare)
        marked = _inside(whole) if whole else bare
    return marked.strip()


def normalize_answer(answer: str) -> str:
    r"""The key that equal answers share, for majority votes: `0.5`, `\frac12`, `x = 1/2`; or `1, 2` and `2, 1`.

    Only the writing is evened out: answers equal by algebra (`1/\sqrt2`, `\sqrt2/2`) keep different keys.
    """
    return key(tidy(answer)) if len(answer) <= MAX_LENGTH else "".join(answer.split())


def boxed_answer(text: str) -> str | None:
    """The last complete box that is not empty, with those that "and", "or" or a comma join to it."""
    spans = [(start, end, text[begin : end - 1].strip()) for start, begin, end in _boxes(text)]
    spans = [span for span in spans if span[2]]
    if not spans:
        bare = list(_BARE_BOX.finditer(text))
        return bare[-1][1] if bare else None
    joined = [spans[-1][2]]
    for (_, end, inside), (start, _, _) in reversed(list(pairwise(spans))):
        between = text[end:start]
        if len(between) > JOINT_LENGTH or "\n\n" in between:
            break
        if between and not _JOINT.fullmatch(_JOINT_NOISE.sub(" ", between).strip()):
            break
        joined.insert(0, inside)
    return ", ".join({normalize_answer(part): part for part in joined}.values())


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
    for mark in reversed(list(_HASHES.finditer(text))[-MARKS:]):
        value, last = mark[1].replace("**", "").strip(), not text[mark.end() :].strip()
        if last and _STATED.search(value):
            return stated_answer(value)
        if value and (last or (len(value) <= MAX_LENGTH and _is_number(value))) and not _HEADED.match(value):
            return value
    return None


def tagged_answer(text: str) -> str | None:
    """X of `<answer>X</answer>`, where X may be a sentence itself."""
    tags = list(_TAGGED.finditer(text[-2 * TAIL :]))
    inside = next(group for group in tags[-1].groups() if group).strip() if tags else ""
    return (stated_answer(inside) or _first_value(inside)) if inside else None


def _headed(text: str) -> str | None:
    """What stands below a heading `# Answer` near the end."""
    heads = list(_HEADED.finditer(text[-TAIL:]))
    below = text[-TAIL:][heads[-1].end() :].strip() if heads else ""
    return _first_value(below) if below and below.count("\n") <= 2 * STATED_LINES else None


def _in_bold(text: str) -> str | None:
    """The last `**42**` of the last line; `**Step 3:**` is a label."""
    line = text.rstrip().rpartition("\n")[2]
    for bold in reversed(_BOLD.findall(line)):
        if not _LABEL.match(bold) and len(_NUMBER.findall(bold)) == 1:
            return _last_value(bold)
    return None


def stated_answer(text: str) -> str | None:
    """X of "the answer is X" or "Answer: X" within the last lines, of "the final answer is X" anywhere."""
    behind = behind_statement(text)
    return _first_value(behind) if behind else None


def behind_statement(text: str) -> str | None:
    """The text after "the answer is"."""
    tail = "\n".join([line for line in text[-TAIL:].splitlines() if line.strip()][-STATED_LINES:])
    marks = [mark for mark in _STATED.finditer(tail) if not _FALSE_START.search(tail[: mark.start()][-20:])]
    if marks:
        return tail[marks[-1].end() :]
    finals = list(_FINAL.finditer(text))
    return text[finals[-1].end() :][:TAIL] if finals else None


def _first_value(rest: str) -> str | None:
    """The answer at the start of `rest`: "18 dollars. So ...", "$x = 3$ or $x = 5$", "(C)", "the integer 7"."""
    if rest.startswith(("\\[", "$$")) and (display := _MATHS.match(rest)):
        return _inside(display)
    phrase = _SENTENCE_END.split(rest.splitlines()[0], maxsplit=1)[0]
    phrase = phrase.replace("**", "").replace("__", "").strip(" `").rstrip(".").strip(" `")
    phrase = _KIND.sub("", phrase)
    if _DENIED.match(phrase):
        return None
    if whole := _MATHS.fullmatch(phrase):
        return _inside(whole)
    if not phrase or is_maths(tidy(phrase)) or _is_number(phrase) or _WORD.fullmatch(phrase):
        return phrase or None
    if QUANTITIES.fullmatch(phrase) or LABELLED.match(phrase) or _DATE.fullmatch(phrase):
        return phrase
    if number := _NUMBER.match(phrase):
        if not _GOES_ON.match(phrase, number.end()):
            return number[0]
        if "=" not in phrase and len(phrase) <= 40:
            return phrase
    return _last_value(phrase) or (phrase if len(phrase) <= 40 else None)


def _is_number(text: str) -> bool:
    """Whether a text is a number, with its unit or without."""
    return isinstance(read(tidy(text)).value, Number)


def _bare(text: str) -> str | None:
    r"""The whole text where it is one line of maths or up to three words: `\frac{8}{3}`, `$x + 1$`, `New York.`"""
    line = text.strip()
    if not line or "\n" in line or "boxed" in line or len(line) > 200:
        return None
    if whole := _MATHS.fullmatch(line):
        return _inside(whole)
    maths = re.search(r"[-+*/^=<>\\\d]", line) and is_maths(tidy(line))
    return line if maths or _WORD.fullmatch(line) or _NAMED.fullmatch(line) else None


def _last_value(text: str) -> str | None:
    """The last number, or the maths between delimiters where no number follows it; of `5 or 6` both.

    A number that is denied or a bound is no answer: "is not 6", "between 5 and 6".
    """
    numbers = list(_NUMBER.finditer(text))
    maths = [span for span in _MATHS.finditer(text) if is_maths(tidy(_inside(span)))]
    if maths and (not numbers or numbers[-1].end() <= maths[-1].end()):
        last, value = maths[-1], _inside(maths[-1])
    elif numbers:
        last, value = numbers[-1], numbers[-1][0].strip()
    else:
        return None
    before = text[max(0, last.start() - 60) : last.start()]
    if _NO_ANSWER.search(before):
        return None
    together = _COMPOUND.search(text[max(0, last.start() - 60) : last.end() + 20])
    if together and (unit := read(tidy(together[0])).unit) and unit.compound:
        return together[0]
    either = _EITHER.search(before)
    return f"{either[1]}, {value}" if either else value


def _inside(maths: re.Match[str]) -> str:
    """What stands between the delimiters."""
    return next(group for group in maths.groups() if group).strip()
