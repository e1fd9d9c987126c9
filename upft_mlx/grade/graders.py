r"""The graders of the benchmarks: which answer a completion gives, and whether it is right.

maths      equality of values and expressions (`grade.is_correct`)
integer    AIME: an integer, written out; `073` is 73, `\frac{146}{2}` and 73.5 are wrong
choice     a letter: `\boxed{C}`, `<answer>C</answer>`, "the answer is (C)", "C is correct", "C) 42" in the last line;
           a letter alone in the last line wins over one that is stated or called correct
"""

import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from upft_mlx.grade.answers import (
    TAIL,
    behind_statement,
    boxed_answer,
    extract_answer,
    is_cut_off,
    own_words,
    stated_answer,
    tagged_answer,
)
from upft_mlx.grade.correct import judge
from upft_mlx.grade.equal import Rules
from upft_mlx.grade.notation import tidy
from upft_mlx.grade.units import split_unit
from upft_mlx.grade.values import MAX_LENGTH, written
from upft_mlx.grade.workers import GaveUpError

Grader = Literal["maths", "integer", "choice"]
LETTERS = "ABCDEFGHIJ"

_COMMANDS = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox|boxed)\s*\{|[*_${}\\]")
_LETTER = re.compile(r"\W*(?:(?:option|choice|answer)\W+)?([A-J])(?=\s*$|\s*[).:,;\]]|\s+[-\u2013\u2014]\s)", re.I)
_LABEL = re.compile(r"[\s*_]*[A-J][):][\s*_]*", re.I)
"""`C)`: an option whose text was cut off, not a choice."""
_CHOSEN = re.compile(
    r"\b(?:correct|right|best|final)\s+(?:answer|option|choice)(?:\s+is)?\W{0,6}(?:(?:option|choice)\W+)?"
    r"(?!I [a-z])([A-J])\b"
    r"|\banswer\s+(?:(?:must|should|would|has\s+to)\s+be|is\s+(?:therefore|thus|hence|then|clearly))\W{1,6}"
    r"(?:(?:option|choice)\W+)?([A-J])\b"
    r"|\b(?:option|choice|answer)\s+\(?([A-J])\)?\s+is\s+(?:the\s+)?(?:correct|right|best)"
    r"|(?:^|[.!:]\s+|\b(?i:so|thus|hence|therefore|then),?\s+)[*(]*([A-J])[*)]*\s+is\s+(?:the\s+)?"
    r"(?:correct|right|best|answer)\b(?!,?\s+(?:and|or|if|only|but|in)\b)"
    r"|\b(?:choose|chose|select|pick)\s+(?:(?:option|choice)\s+)?\(?([A-J])\b",
    re.M,
)
_ANOTHER = re.compile(r"[\s).:]*(?:,|;|&|/|and|or)\s*(?:(?:and|or)\s+)?\(?[A-J]\)?(?=\s*(?:$|[,.;)&/]|and\b|or\b))")


@dataclass(frozen=True)
class Task:
    """What one completion is graded on."""

    completion: str
    gold: str
    """The bare answer; a letter for `choice`."""
    grader: Grader = "maths"
    percent_as_unit: bool = False
    """See `grade.Rules`."""


@dataclass(frozen=True)
class Verdict:
    """What a grader found."""

    answer: str | None
    """What it took for the answer, None where it found none."""
    correct: bool
    gave_up: bool = False
    """Whether the time was over before there was a verdict; such an answer is wrong."""


def letter_in(answer: str | None) -> str | None:
    """The letter that an answer is, as `C`, `(C)` or `c.`; None where it is something else."""
    letter = (answer or "").strip().strip("(). ").upper()
    return letter if len(letter) == 1 and letter in LETTERS else None


def grader_of(answers: Iterable[str | None]) -> Grader:
    """The grader of problems that name none: `choice` where all answers that are known are letters, else maths."""
    known = False
    for answer in answers:
        if answer is not None and letter_in(answer) is None:
            return "maths"
        known = known or answer is not None
    return "choice" if known else "maths"


def grade(task: Task) -> Verdict:
    """The verdict of the task's grader; never raises."""
    if task.grader == "choice":
        letter = chosen_letter(task.completion)
        return Verdict(letter, letter is not None and letter == letter_in(task.gold))
    answer = extract_answer(task.completion)
    if task.grader == "integer":  # `m + n = 73` is 73, a value to be worked out is none
        if answer is None or len(answer) > MAX_LENGTH:
            return Verdict(answer, correct=False)
        texts = (tidy(text).rpartition("=")[2].strip() for text in (answer, task.gold))
        texts = (re.sub(r"^\{([^{}]*)\}$", r"\1", text) for text in texts)  # what a box in a box leaves
        given, wanted = (written(split_unit(text)[0]) for text in texts)
        plain = given is not None and not given.percent and r"\frac" not in answer and "/" not in answer
        return Verdict(answer, plain and given is not None and wanted is not None and given.value == wanted.value)
    try:
        return Verdict(answer, judge(task.completion, task.gold, Rules(task.percent_as_unit)))
    except GaveUpError:
        return Verdict(answer, correct=False, gave_up=True)


def grade_all(tasks: Sequence[Task]) -> list[Verdict]:
    """The verdicts on the tasks, in their order; several workers compare at a time."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
        return list(threads.map(grade, tasks))


def chosen_letter(completion: str) -> str | None:
    """The letter chosen: boxed, tagged, alone in the last line, stated, called correct, or first in that line."""
    text = own_words(completion)
    boxed = boxed_answer(text)
    if boxed is None and is_cut_off(text):
        return None
    last = text[-TAIL:].rstrip().rpartition("\n")[2]
    alone = last if letter_in(_COMMANDS.sub("", last)) and not _LABEL.fullmatch(last) else None
    for found in (boxed, tagged_answer(text), alone, stated_answer(text), behind_statement(text)):
        if letter := _leading_letter(found):
            return letter
    chosen = list(_CHOSEN.finditer(text[-TAIL:]))
    if chosen and not _ANOTHER.match(text[-TAIL:], chosen[-1].end()):
        return next(group for group in chosen[-1].groups() if group).upper()
    return _leading_letter(last)


def _leading_letter(text: str | None) -> str | None:
    """`C`, `(C)`, `C) 42`, `Option C: 42`, `\\text{C. 42}`; a sentence that begins with "A" is none."""
    match = _LETTER.match(plain := _COMMANDS.sub("", text[:MAX_LENGTH])) if text else None
    return match[1].upper() if match and not _ANOTHER.match(plain, match.end()) else None
