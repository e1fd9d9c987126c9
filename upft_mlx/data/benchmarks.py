"""The evaluation sets: where they are, their columns, their prompt, their grader, and what the recipe says about them.

A benchmark is asked as the recipe's training problems are (`prompt.instruction`), unless its entry sets a `prompt`.
"""

from __future__ import annotations

import difflib
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from upft_mlx.data.forms import with_options
from upft_mlx.data.problems import Problem, stream_problems
from upft_mlx.data.source import Notes
from upft_mlx.errors import ColumnError, ProblemsError, RecipeError
from upft_mlx.escape import one_line, quoted
from upft_mlx.grade.correct import normalize_gold
from upft_mlx.grade.graders import LETTERS, Grader, letter_in
from upft_mlx.quantities import many
from upft_mlx.recipe.evaluate import Benchmark, Evaluate

QUESTION = "{question}"
BOXED = "{question}\nPlease reason step by step, and put your final answer within \\boxed{}."
"""The instruction that Qwen2.5-Math, DeepSeek-R1 and most maths models were trained with."""
LETTER = "{question}\nPlease reason step by step, and put the letter of your answer within \\boxed{}."

_AIME = {"grader": "integer"}
_GPQA = {"private": True}
_GPQA_SOURCE = {
    "dataset": "Idavidrein/gpqa",
    "config": "gpqa_diamond",
    "split": "train",
    "revision": "633f5ee89ab8ad4522a9f850766b73f62147ffdd",
    "question": "Question",
    "answer": "Correct Answer",
}

KNOWN: dict[str, dict[str, Any]] = {
    "arithmetic": {},
    "gsm8k": {"percent_as_unit": True},
    "math500": {"percent_as_unit": True},
    "aime2024": _AIME,
    "aime2025": _AIME,
    "gpqa": {**_GPQA, "grader": "choice"},
    "gpqa-freeform": _GPQA,
}
"""How each benchmark is graded, wherever its problems come from. GSM8K's and MATH's golds drop the percent
sign (in GSM8K's test about 17 of 1319): there `60%` is `60`. `gpqa-freeform` is GPQA-Diamond without its options, as in
the UPFT paper."""

SOURCES: dict[str, dict[str, str]] = {
    "arithmetic": {"builtin": "test"},
    "gsm8k": {
        "dataset": "openai/gsm8k",
        "config": "main",
        "split": "test",
        "revision": "740312add88f781978c0658806c59bc2815b9866",
        "answer": "answer",
    },
    "math500": {
        "dataset": "HuggingFaceH4/MATH-500",
        "split": "test",
        "revision": "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        "answer": "answer",
    },
    "aime2024": {
        "dataset": "HuggingFaceH4/aime_2024",
        "split": "train",
        "revision": "2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
        "answer": "answer",
    },
    "aime2025": {
        "dataset": "math-ai/aime25",
        "split": "test",
        "revision": "563bb8404243c5f09de6ec262f2db674fe5bce9b",
        "answer": "answer",
    },
    "gpqa": _GPQA_SOURCE,
    "gpqa-freeform": _GPQA_SOURCE,
}
"""Where the problems are; a recipe's `path` or `dataset` replaces all of it. Public code pins these revisions and
reads these columns; they were written without access to the Hub (November 2026)."""


class BenchmarkSpec(Benchmark):
    """One benchmark of a recipe with everything resolved: what its entry sets, else the benchmark's or `evaluate`'s."""

    label: str
    """The name in the results and of the folder."""
    samples: int
    temperature: float
    max_tokens: int
    grader: Grader = "maths"
    private: bool = False
    """Whether the set's text must not be stored or shown."""
    builtin: str | None = None
    """The name of a set that ships with the package."""
    development: float = 0.5
    """Share of the problems in the development part."""
    percent_as_unit: bool = False
    """See `grade.Rules`."""

    def plain(self) -> dict[str, Any]:
        """Plain values of all that fingerprints are made of."""
        return {**self.model_dump(exclude={"name"}), "subset": tuple(sorted(self.subset.items()))}


@dataclass(frozen=True)
class BenchmarkSet:
    """A benchmark entry and its problems."""

    entry: BenchmarkSpec
    problems: list[Problem]

    @property
    def completions(self) -> int:
        """Completions of base, and as many of tuned."""
        return len(self.problems) * self.entry.samples


def resolve(evaluate: Evaluate) -> list[BenchmarkSpec]:
    """The recipe's benchmarks with their defaults.

    Raises:
        RecipeError: unknown names, with the nearest known ones; all at once.
    """
    unknown = []
    for name in [b.name for b in evaluate.benchmarks if b.name not in KNOWN and not (b.path or b.dataset)]:
        near = difflib.get_close_matches(name, KNOWN, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        hint = f"write a list: [{name}]; " if "," in name else "check the path; " if Path(name).suffix else hint
        instead = "or name your own with `path` (a local file) or `dataset` (a Hub id)"
        problem, remedy = f"{quoted(name)}: unknown benchmark", f"{hint}known: {', '.join(KNOWN)}; {instead}"
        unknown.append(RecipeError(problem, remedy, field="evaluate.benchmarks"))
    if unknown:
        raise RecipeError.of_all(unknown)
    return [_entry(benchmark, evaluate) for benchmark in evaluate.benchmarks]


def _entry(benchmark: Benchmark, evaluate: Evaluate) -> BenchmarkSpec:
    own = {name: value for name, value in benchmark if value is not None}
    for name in ("samples", "temperature", "max_tokens", "limit"):
        own.setdefault(name, getattr(evaluate, name))
    own["label"] = benchmark.label or benchmark.name
    own["subset"] = benchmark.subset or evaluate.subset
    source = {} if benchmark.path or benchmark.dataset else SOURCES[benchmark.name]
    known = {"split": "test", **KNOWN.get(benchmark.name, {}), **source}
    return BenchmarkSpec.model_validate({**known, **own, "development": evaluate.development})


def load_benchmark(entry: BenchmarkSpec, seed: int = 0, notes: Notes | None = None) -> list[Problem]:
    """The problems of a benchmark, with answers in the bare form that is compared and options after the questions.

    Args:
        entry: the benchmark.
        seed: of the order of the options.
        notes: takes what is worth saying about how the set was read.

    Raises:
        ProblemsError: the set cannot be read, a problem has no answer, or the subset is empty.
        OfflineError: a Hub dataset is not on this machine and cannot be downloaded.
    """
    notes = Notes() if notes is None else notes
    try:
        everything = list(stream_problems(entry, builtin=entry.builtin, notes=notes))
    except ProblemsError as error:
        if isinstance(error, ColumnError) and entry.path:
            own = f"[{{name: {entry.label}, path: {one_line(entry.path)}, {error.column}: {error.likely}}}]"
            in_entry = f"--set 'evaluate.benchmarks={own}' instead of --benchmark"
            error.remedy = f"name the {error.column} column in its entry: {in_entry}"
        if not entry.private:
            raise
        error.found = ""  # an excerpt of its text
        raise error from None
    notes.first = "(withheld)" if entry.private and notes.first else notes.first
    problems = _subset(entry, _part(entry, everything))[: entry.limit]
    missing = [problem.id for problem in problems if problem.answer is None]
    if missing:
        raise ProblemsError(
            f"benchmark {entry.label}: {many(len(missing), 'problem has', 'problems have')} no answer "
            f"(first: {missing[0]})",
            "name the answer's column with `answer`",
        )
    if entry.grader == "choice":
        return [_with_options(entry, problem, seed) for problem in problems]
    return [replace(p, answer=normalize_gold(str(p.answer)), wrong_answers=()) for p in problems]


def _part(entry: BenchmarkSpec, problems: Sequence[Problem]) -> Sequence[Problem]:
    """The problems of the development part, or the others; equal questions are in the same part.

    The questions' own hashes decide, so that neither a seed nor the order of a file moves one.
    """
    if entry.part is None:
        return problems
    hashed = {p.question: hashlib.sha256(p.question.encode("utf-8", "replace")).hexdigest() for p in problems}
    order = sorted(hashed, key=lambda question: hashed[question])
    development = set(order[: round(entry.development * len(order))])
    chosen = [p for p in problems if (p.question in development) == (entry.part == "development")]
    if not chosen:
        share = f"{entry.development:g} of {many(len(order), 'question')}"
        raise ProblemsError(
            f"benchmark {entry.label}: {share} leaves the {entry.part} part empty",
            "use more problems, or another evaluate.development",
        )
    return chosen


def _subset(entry: BenchmarkSpec, problems: Sequence[Problem]) -> list[Problem]:
    """The problems with the wanted levels and subjects."""
    everything = problems
    for field, wanted in sorted(entry.subset.items()):
        values = {str(value) for problem in everything if (value := getattr(problem, field)) is not None}
        names = {value.casefold().removeprefix("level ") for value in wanted}
        if unknown := names - {value.casefold() for value in values}:
            there = f"it has {', '.join(sorted(values))}" if values else f"its problems have no {field}"
            raise ProblemsError(f"benchmark {entry.label}: subset {field}={sorted(unknown)[0]}: {there}")
        problems = [p for p in problems if str(getattr(p, field)).casefold() in names]
    if not problems:
        raise ProblemsError(
            f"benchmark {entry.label}: no problem is in the subset {dict(sorted(entry.subset.items()))}",
            "remove a condition",
        )
    return list(problems)


def _with_options(entry: BenchmarkSpec, problem: Problem, seed: int) -> Problem:
    """A multiple choice: options after the question, and a letter as the answer; a problem that has a letter stays.

    The order depends on the seed and the problem alone, so that a limit or a subset changes none.
    """
    right = str(problem.answer).strip()
    if not problem.wrong_answers:
        letter = letter_in(right)
        if letter is None:
            raise ProblemsError(
                f"benchmark {entry.label}: problem {problem.id}: grader choice needs wrong answers (name their columns "
                "with `wrong_answers`), or a letter as the answer"
            )
        return replace(problem, answer=letter)
    options = [right, *(answer.strip() for answer in problem.wrong_answers)][: len(LETTERS)]
    order = list(range(len(options)))
    random.Random(f"{seed}/{problem.id}").shuffle(order)
    question = with_options(problem.question, [options[place] for place in order])
    return replace(problem, question=question, answer=LETTERS[order.index(0)], wrong_answers=())
