"""The evaluation sets: where they are, their columns, and what the recipe says about them."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from upft_mlx.errors import ProblemsError, RecipeError
from upft_mlx.grade import normalize_gold
from upft_mlx.problems import Problem, load_problems
from upft_mlx.recipe import Benchmark, Evaluate

KNOWN: dict[str, dict[str, Any]] = {
    "arithmetic": {"builtin": "test"},
    "gsm8k": {"dataset": "openai/gsm8k", "config": "main", "split": "test"},
    "math500": {"dataset": "HuggingFaceH4/MATH-500", "split": "test", "answer": "answer"},
    "aime2024": {"dataset": "HuggingFaceH4/aime_2024", "split": "train", "answer": "answer"},
}
"""What is known of each benchmark; a recipe's `path` or `dataset` takes the place of the source."""

PERCENT_AS_UNIT = frozenset({"gsm8k", "math500"})
"""Benchmarks whose golds drop the percent sign (in GSM8K's test about 17 of 1319): there `60%` is `60`."""


@dataclass(frozen=True)
class Entry:
    """One benchmark of a recipe with everything resolved."""

    label: str
    """The name in the results and of the folder."""
    samples: int
    temperature: float
    max_tokens: int
    limit: int | None = None
    builtin: str | None = None
    path: str | None = None
    dataset: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    question: str | None = None
    answer: str | None = None
    percent_as_unit: bool = False


def resolve(evaluate: Evaluate) -> list[Entry]:
    """The recipe's benchmarks with their defaults.

    Raises:
        RecipeError: unknown names, with the nearest known ones; all at once.
    """
    unknown = [_unknown(b) for b in evaluate.benchmarks if b.name not in KNOWN and not (b.path or b.dataset)]
    if unknown:
        raise RecipeError("\n".join(unknown))
    return [_entry(benchmark, evaluate) for benchmark in evaluate.benchmarks]


def _unknown(benchmark: Benchmark) -> str:
    near = difflib.get_close_matches(benchmark.name, KNOWN, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return (
        f"evaluate.benchmarks: {benchmark.name!r}: unknown benchmark; {hint}known: {', '.join(KNOWN)}; "
        "or give your own with `path` (a local file) or `dataset` (a Hub id)"
    )


def _entry(benchmark: Benchmark, evaluate: Evaluate) -> Entry:
    source = {k: getattr(benchmark, k) for k in ("path", "dataset", "config", "split", "revision")}
    known = KNOWN.get(benchmark.name, {}) if not (benchmark.path or benchmark.dataset) else {}
    given = {k: v for k, v in source.items() if v is not None}
    columns = {k: v for k in ("question", "answer") if (v := getattr(benchmark, k)) is not None}
    settings: dict[str, Any] = {"split": "test", **known, **given, **columns}

    def own(name: str) -> Any:
        value = getattr(benchmark, name)
        return getattr(evaluate, name) if value is None else value

    return Entry(
        label=benchmark.label or benchmark.name,
        samples=own("samples"),
        temperature=own("temperature"),
        max_tokens=own("max_tokens"),
        limit=own("limit"),
        percent_as_unit=benchmark.name in PERCENT_AS_UNIT,
        **settings,
    )


def load_benchmark(entry: Entry) -> list[Problem]:
    """The problems of a benchmark; their answers in the bare form that is compared.

    Raises:
        ProblemsError: the set cannot be read, or a problem has no answer.
        OfflineError: a Hub dataset is not on this machine and cannot be downloaded.
    """
    problems = load_problems(entry, builtin=entry.builtin, limit=entry.limit)
    missing = [problem.id for problem in problems if problem.answer is None]
    if missing:
        raise ProblemsError(
            f"benchmark {entry.label}: {len(missing)} problems have no answer (first: {missing[0]}); "
            "name the answer's column with `answer`"
        )
    return [Problem(p.id, p.question, normalize_gold(str(p.answer))) for p in problems]
