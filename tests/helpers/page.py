"""What the tests of report.html share: rows that nobody sampled, and the page that is made of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from helpers.ui import a_report, variant_value
from upft_mlx.results.facts import RunReport, Seen
from upft_mlx.results.page import Material, page
from upft_mlx.rows import EvaluationRow


def answered(right: bool, text: str, tokens: int, problem_id: str, *, cut: bool = False) -> EvaluationRow:
    answer = "7" if right else "8"
    return EvaluationRow(problem_id, 0, text, answer, "7", right, tokens, "length" if cut else "stop")


def row(number: int, base: bool, tuned: bool, **changes: Any) -> Seen:
    """Problem `number`; its texts differ in one word."""
    name = f"p-{number:04}"
    values: dict[str, Any] = {
        "benchmark": "arithmetic",
        "problem_id": name,
        "sample": 0,
        "question": f"How many pens has child {number}?",
        "gold": "7",
        "level": str(1 + number % 3),
        "subject": None,
        "base": answered(base, f"First, we find {number}.\nThe answer is seven.", 10 + number, name),
        "tuned": answered(tuned, f"First, we see {number}.\nThe answer is seven.", 10 + number, name),
    }
    return Seen(**{**values, **changes})


def four() -> list[Seen]:
    """Right on both, wrong to right, right to wrong, wrong on both."""
    return [row(0, True, True), row(1, False, True), row(2, True, False), row(3, False, False)]


def many(count: int) -> list[Seen]:
    """As many problems, with long answers of which some change."""
    text = "First, we find the number of pens that each child has. " * 30
    return [
        replace(
            row(number, number % 3 == 0, number % 2 == 0),
            base=answered(number % 3 == 0, f"{number} {text}", 300 + number % 97, f"p-{number}"),
            tuned=answered(number % 2 == 0, f"{text} {number}", 300 + number % 89, f"p-{number}"),
        )
        for number in range(count)
    ]


def facts(benchmark: str = "arithmetic", **changes: Any) -> RunReport:
    """Those of a report with one benchmark."""
    paired = {"delta": 0.066, "ci95": [0.012, 0.121], "p_value": 0.0173, "gained": 1, "lost": 1}
    variants = {"base": variant_value(0.715, 0.653, 0.77), "tuned": variant_value(0.781, 0.727, 0.828, truncated=0.0)}
    return a_report(benchmarks={benchmark: {**variants, "paired": paired}}, **{"verdict": [], **changes})


def written(folder: Path, found: Material) -> str:
    """The address of the page in a file."""
    path = folder / "report.html"
    path.write_text(page(found), encoding="utf-8")
    return path.as_uri()
