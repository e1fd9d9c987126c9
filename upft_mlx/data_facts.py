"""The contents of a dataset, and splitting it into training problems and test questions."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from upft_mlx.answers import normalize_gold
from upft_mlx.columns import Columns, find_columns
from upft_mlx.errors import ProblemsError
from upft_mlx.escape import quoted
from upft_mlx.hub_data import Located, look
from upft_mlx.problems import SUFFIXES, Problem, first_rows, load_problems, problems_of
from upft_mlx.recipe import Problems

_LOOKED_AT = 100
"""Number of rows to read from a Hub dataset, and on which the columns of any dataset are decided."""
_PROSE = 80
"""Longer answers (characters) are texts rather than numbers or formulas."""
_LETTER = re.compile(r"\(?[A-J]\)?\.?")


@dataclass(frozen=True)
class DataFacts:
    """A dataset as `upft new` found it."""

    source: Problems
    question: str
    """The column."""
    answer: str | None
    """The column, if there is one."""
    rows: int | None
    """None if the Hub does not say."""
    seen: list[Problem] = field(repr=False)
    """All problems of a file, the first ones of a Hub dataset."""
    splits: tuple[str, ...] = ()
    """The names of a Hub dataset's splits."""

    @property
    def answered(self) -> list[Problem]:
        """The seen problems with an answer."""
        return [problem for problem in self.seen if problem.answer is not None]

    @property
    def mean_length(self) -> float:
        """Mean length of the questions seen (characters)."""
        return sum(len(problem.question) for problem in self.seen) / len(self.seen)

    @property
    def longest(self) -> int:
        """Length of the longest question seen (characters)."""
        return max(len(problem.question) for problem in self.seen)


def data_facts(source: Problems) -> DataFacts:
    """Read a whole local file, or the first rows of a Hub dataset.

    Raises:
        ProblemsError: it is missing, empty or malformed, or no column holds questions.
        OfflineError: the Hub dataset is not on this machine and the Hub cannot be reached.
    """
    return _file_facts(source) if source.path is not None else _hub_facts(source)


def is_file(dataset: str) -> bool:
    """Whether a dataset's name means a local file rather than a Hub id.

    Raises:
        ProblemsError: it means a file, and there is none, or one of another kind.
    """
    path = Path(dataset).expanduser()
    if path.is_dir():
        raise ProblemsError(f"{dataset}: is a folder; name a {', '.join(SUFFIXES)} file in it")
    if path.is_file() and path.suffix not in SUFFIXES:
        raise ProblemsError(f"{dataset}: expected a {', '.join(SUFFIXES)} file; convert it, one question per row")
    if path.is_file():
        return True
    if path.suffix in (*SUFFIXES, ".json", ".txt", ".tsv", ".xlsx") or dataset.startswith((".", "/", "~")):
        raise ProblemsError(
            f"{dataset}: no such file; name a {', '.join(SUFFIXES)} file, or a dataset on the Hub such as openai/gsm8k"
        )
    return False


def _file_facts(source: Problems) -> DataFacts:
    rows = first_rows(source, _LOOKED_AT)
    if not rows:
        raise ProblemsError(f"{source.path}: no rows; a dataset needs at least one question")
    columns = _columns(rows, source)
    problems = load_problems(source)
    return DataFacts(source, str(columns.question), columns.answer, len(problems), problems)


def _hub_facts(source: Problems) -> DataFacts:
    found = look(source, _LOOKED_AT)
    if not found.rows:
        raise ProblemsError(f"dataset {source.dataset}: the split {quoted(source.split)} has no rows; set --split")
    columns = _columns(found.rows, source)
    problems = problems_of(found.rows, source)
    return DataFacts(source, str(columns.question), columns.answer, found.count, problems, found.splits)


def _columns(rows: Sequence[Located], source: Problems) -> Columns:
    try:
        together = {column: None for _, row in rows for column in row}
        return find_columns(rows[0][0], together, Columns(question=source.question, answer=source.answer))
    except ProblemsError as error:
        text = re.sub(r"with `(question|answer)`$", r"with --\1", str(error))
        raise ProblemsError(text) from None


@dataclass(frozen=True)
class Split:
    """Training problems and test questions; no question is in both."""

    train: list[Problem]
    test: list[Problem]
    repeated: int
    """Number of rows whose question is also in an earlier row."""


def hold_out(problems: Sequence[Problem], count: int | None, seed: int = 0) -> Split:
    """Set test questions aside, drawn with a seed from the problems with an answer; equal questions stay together.

    Args:
        problems: all of them.
        count: how many to set aside; None: a fifth of those with an answer, at most 200.
        seed: of the draw.

    Raises:
        ProblemsError: too few problems have an answer, or none would be left to train on.
    """
    groups: dict[str, list[Problem]] = {}
    for problem in problems:
        groups.setdefault(_key(problem.question), []).append(problem)
    testable = [group for group in groups.values() if group[0].answer is not None]
    wanted = min(200, round(0.2 * len(testable))) if count is None else count
    if wanted > len(testable) or (wanted and wanted >= len(groups)):
        raise ProblemsError(
            f"--holdout {wanted}: {len(groups)} different questions, {len(testable)} of them with an answer; "
            "set fewer aside, so that some are left to train on"
        )
    drawn = random.Random(f"holdout/{seed}").sample(range(len(testable)), wanted)
    test = [testable[number][0] for number in sorted(drawn)]
    taken = {_key(problem.question) for problem in test}
    train = [problem for problem in problems if _key(problem.question) not in taken]
    return Split(train, test, len(problems) - len(groups))


def _key(question: str) -> str:
    return " ".join(question.split()).casefold()


def all_letters(problems: Sequence[Problem]) -> bool:
    """Whether every answer is the letter of an option."""
    return bool(problems) and all(_LETTER.fullmatch((problem.answer or "").strip()) for problem in problems)


def hard_to_grade(problems: Sequence[Problem]) -> list[Problem]:
    """The problems whose answer is a text of several words, which no grader compares by meaning."""
    bare = ((problem, normalize_gold(str(problem.answer))) for problem in problems)
    return [problem for problem, gold in bare if len(gold) > _PROSE or (len(gold.split()) > 3 and "\\" not in gold)]
