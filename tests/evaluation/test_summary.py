"""summary.json: every field against the rows it was made from, counted another way."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.facts import measured as measured_as
from helpers.facts import results, run_report
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from upft_mlx.data.benchmarks import BenchmarkSet, resolve
from upft_mlx.data.problems import Problem
from upft_mlx.errors import RowsError
from upft_mlx.evaluation.benchmark_result import load_results
from upft_mlx.evaluation.stats import drift, wilson_interval
from upft_mlx.evaluation.summary import VARIANTS, flips, summarize, variant_summary
from upft_mlx.events import Variant
from upft_mlx.recipe.evaluate import Evaluate
from upft_mlx.results.report import markdown, verdict
from upft_mlx.rows import EvaluationRow, write_rows
from upft_mlx.rundir import RunDir

Answer = tuple[str | None, bool, int, bool]
"""Answer, whether right, tokens, whether cut."""


def row(problem: int, sample: int, given: Answer) -> EvaluationRow:
    answer, correct, tokens, cut = given
    reason: Any = "length" if cut else "stop"
    return EvaluationRow(f"p{problem}", sample, "text", answer, "7", correct and answer is not None, tokens, reason)


def a_set(problems: int, samples: int, **tags: list[str]) -> BenchmarkSet:
    spec = {"name": "x", "path": "x.jsonl", "samples": samples, "temperature": 1.0}
    (entry,) = resolve(Evaluate.model_validate({"benchmarks": [spec]}))
    known: list[dict[str, Any]] = [{name: values[n] for name, values in tags.items()} for n in range(problems)]
    return BenchmarkSet(entry, [Problem(f"p{n}", "?", "7", **known[n]) for n in range(problems)])


answers = st.tuples(st.sampled_from(["7", "8", "9", None]), st.booleans(), st.integers(0, 99), st.booleans())
sizes = st.tuples(st.integers(1, 5), st.integers(1, 4))
tables = sizes.flatmap(
    lambda size: st.tuples(
        *[st.lists(st.lists(answers, min_size=size[1], max_size=size[1]), min_size=size[0], max_size=size[0])] * 2
    )
)


def rows_of(table: list[list[Answer]]) -> list[list[EvaluationRow]]:
    return [[row(p, s, given) for s, given in enumerate(samples)] for p, samples in enumerate(table)]


@given(tables)
def test_a_variants_numbers_are_those_of_its_rows(both: tuple[list[list[Answer]], list[list[Answer]]]) -> None:
    problems = rows_of(both[0])
    samples, flat = len(problems[0]), [r for rows in problems for r in rows]
    found = variant_summary(a_set(len(problems), samples).entry, problems)
    assert (found.n, found.samples) == (len(problems), samples)
    assert found.accuracy == pytest.approx(sum(r.correct for r in flat) / len(flat))
    assert found.avg_at_k == {str(samples): found.accuracy}
    assert found.mean_tokens == pytest.approx(sum(r.tokens for r in flat) / len(flat))
    assert found.truncated == pytest.approx(sum(r.finish_reason == "length" for r in flat) / len(flat))
    assert found.answer_found == pytest.approx(sum(r.answer is not None for r in flat) / len(flat))
    for k in map(int, found.pass_at_k):
        chosen = [[any(r.correct for r in c) for c in itertools.combinations(rows, k)] for rows in problems]
        expected = math.fsum(sum(c) / len(c) for c in chosen) / len(problems)
        assert found.pass_at_k[str(k)] == pytest.approx(expected)
        votes = [[_vote(list(c), rows) for c in itertools.combinations(rows, k)] for rows in problems]
        expected = math.fsum(sum(c) / len(c) for c in votes) / len(problems)
        assert found.maj_at_k[str(k)] == pytest.approx(expected)
    if samples == 1:
        assert found.ci95 == wilson_interval(sum(r.correct for r in flat), len(flat))


def _vote(chosen: list[EvaluationRow], rows: list[EvaluationRow]) -> float:
    """The majority's credit: equal answers that were graded differently count with their mean over all samples."""
    counts = Counter(r.answer for r in chosen if r.answer is not None)
    leaders = [answer for answer in counts if counts[answer] == max(counts.values())]
    credit = {a: [r.correct for r in rows if r.answer == a] for a in leaders}
    return sum(sum(marks) / len(marks) for marks in credit.values()) / len(leaders) if leaders else 0.0


@settings(max_examples=50)
@given(tables)
def test_the_pairs_numbers_are_those_of_both(both: tuple[list[list[Answer]], list[list[Answer]]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        run, variants = RunDir(folder), [rows_of(table) for table in both]
        part = a_set(len(variants[0]), len(variants[0][0]))
        for variant, problems in zip(VARIANTS, variants, strict=True):
            write_rows(run.rows_of("x", variant), [r for rows in problems for r in rows])
        found = summarize([part], run, Evaluate())["x"].dump()
        flat = [[r for rows in problems for r in rows] for problems in variants]
        changes = [b.correct - a.correct for a, b in zip(*flat, strict=True)]
        assert found["paired"]["gained"] == changes.count(1)
        assert found["paired"]["lost"] == changes.count(-1)
        assert found["paired"]["delta"] == pytest.approx(sum(changes) / len(changes))
        if len(variants[0][0]) == 1:
            ups, downs = changes.count(1), changes.count(-1)
            expected = scipy_stats.binomtest(ups, ups + downs).pvalue if ups + downs else 1.0
            assert found["paired"]["p_value"] == pytest.approx(expected)
            assert (expected < 0.05) == (not found["paired"]["ci95"][0] <= 0 <= found["paired"]["ci95"][1])
        assert found["paired"]["tokens"]["ci95"][0] < found["paired"]["tokens"]["ci95"][1]
        longer = found["tuned"]["mean_tokens"] - found["base"]["mean_tokens"]
        assert found["paired"]["tokens"]["delta"] == pytest.approx(longer)
        assert len(flips("x", run)) == changes.count(1) + changes.count(-1)
        assert [tuned.correct for _, tuned in flips("x", run)] == [change > 0 for change in changes if change]


def measured(tmp_path: Path, variants: dict[Variant, list[Answer]], **tags: list[str]) -> dict[str, Any]:
    run, part = RunDir(tmp_path), a_set(len(next(iter(variants.values()))), 1, **tags)
    for variant, table in variants.items():
        write_rows(run.rows_of("x", variant), [row(n, 0, answer) for n, answer in enumerate(table)])
    return summarize([part], run, Evaluate())["x"].dump()


RIGHT: Answer = ("7", True, 30, False)
WRONG: Answer = ("8", False, 30, False)


def test_accuracy_by_level_and_subject(tmp_path: Path) -> None:
    tags = {"level": ["1", "5", "5", "5"], "subject": ["Algebra"] * 4}
    found = measured(tmp_path, {"base": [RIGHT, WRONG, RIGHT, RIGHT], "tuned": [RIGHT] * 4}, **tags)
    assert found["base"]["by_level"] == {
        "1": {"n": 1, "accuracy": 1.0, "ci95": list(wilson_interval(1, 1))},
        "5": {"n": 3, "accuracy": pytest.approx(2 / 3), "ci95": list(wilson_interval(2, 3))},
    }
    assert "by_subject" not in found["base"], "one subject is no breakdown"
    text = markdown(run_report({"benchmarks": {"x": found}}))
    assert "| x, level | n | base | tuned |\n|---|---|---|---|\n| 1 | 1 | 100.0 %" in text
    assert "| 5 | 3 | 66.7 % [20.8, 93.9] | 100.0 % [43.9, 100.0] |" in text


def test_without_tuned_there_is_no_pair(tmp_path: Path) -> None:
    assert measured(tmp_path, {"base": [RIGHT, WRONG]}).keys() == {"base"}


@pytest.mark.parametrize(
    ("tuned", "names"),
    [
        ([RIGHT] * 20, []),
        ([("7", True, 23, False)] * 20, ["length"]),
        ([("7", True, 38, False)] * 20, ["length"]),
        ([("7", True, 37, False)] * 20, []),
        ([RIGHT] * 18 + [("7", True, 30, True)] * 2, ["truncated"]),
        ([RIGHT] * 18 + [(None, False, 30, False)] * 2, ["answer_found"]),
        ([RIGHT] * 18 + [(None, False, 200, True)] * 2, ["length", "truncated", "answer_found"]),
    ],
)
def test_what_changed_suspiciously_is_flagged_and_said(tmp_path: Path, tuned: list[Answer], names: list[str]) -> None:
    found = measured(tmp_path, {"base": [RIGHT] * 20, "tuned": tuned})
    assert found["paired"]["drift"] == names
    assert len(verdict(results({"x": found}))) == 1 + len(names)


def test_drift_looks_both_ways_and_survives_silence() -> None:
    base = measured_as(mean_tokens=100.0, truncated=0.2, answer_found=1.0)
    silent = replace(base, mean_tokens=0.0)
    assert drift(base, silent) == ("length",)
    assert drift(silent, silent) == ()
    assert drift(base, replace(base, truncated=0.1)) == ("truncated",)
    assert drift(replace(base, answer_found=None), replace(base, answer_found=0.5)) == (), "not known of one"


def test_a_summary_of_another_layout_is_refused_with_the_place() -> None:
    """The benchmark's label was left out of it, which says where in a file with several."""
    with pytest.raises(RowsError, match=r"summary\.json: dev\.base\.n: Field required"):
        load_results({"dev": {"base": {}}})
