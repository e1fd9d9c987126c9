"""What report.html says, read from its text: the verdict, the numbers, what is left out, how large it becomes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.facts import result, results
from helpers.page import facts, four, row

from upft_mlx.evaluation.benchmark_result import BenchmarkResult, Rounding
from upft_mlx.evaluation.summary import Until, difference
from upft_mlx.results import charts
from upft_mlx.results.openings import Branch, tree
from upft_mlx.results.page import Material, page
from upft_mlx.results.report import headline
from upft_mlx.results.templates import FOLDER


def data_of(text: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_verdict_stands_first_and_every_number_below_it() -> None:
    text = page(Material(facts(), four(), limit=(8_120_000_000, "a test's memory"), date="2026-01-02"))
    assert "<h1>Tuned is better than base on arithmetic</h1>" in text
    for part in (
        "<b>+6.6</b> points",
        "[+1.2, +12.1], p 0.017",
        "1 went from wrong to right, 1 from right to wrong",
        "71.5\u00a0% [65.3,\u00a077.0]",  # a narrow screen breaks it before the interval alone
        "78.1\u00a0% [72.7,\u00a082.8]",
        "2026-01-02",
        "12.3 s",
        "10 %",
        "The limit on the machine that made this page: 8.1 GB, a test&#39;s memory.",
    ):
        assert part in text
    assert text.index("<h1>") < text.index("<b>+6.6</b>") < text.index('id="problems"') < text.index('id="cost"')


def test_a_section_without_a_source_is_left_out() -> None:
    text = page(Material(replace(facts(), benchmarks={})))
    ids = re.findall(r'<section id="([a-z-]+)"', text)
    assert ids == ["cost"]
    assert "Nothing is measured yet" in text
    assert re.findall(r'<a href="#([a-z-]+)"', text) == ids
    text = page(Material(replace(facts(), benchmarks={}, stages=[]), limit=(8_120_000_000, "a test's memory")))
    assert "<section" not in text, "no table without a row"
    assert "The limit" not in text


def test_a_run_that_measured_only_the_base_is_shown_without_a_difference() -> None:
    only_base = BenchmarkResult(base=facts().benchmarks["arithmetic"].base)
    text = page(Material(replace(facts(), benchmarks={"arithmetic": only_base})))
    assert "71.5\u00a0% [65.3,\u00a077.0]" in text
    assert "Difference as problems were added" not in text


def test_training_is_shown_from_its_losses_and_movement() -> None:
    training = {
        "losses": [{"step": 0, "fixed_loss": 1.5}, {"step": 8, "fixed_loss": 1.25, "valid_loss": 1.75}],
        "base_view": {"kinds": {"prefix": {"by_position": [0.9, 0.1]}}},
        "movement": {"kl_by_position": [0.5, 0.25], "prompts": 16, "source": "evaluation prompts"},
    }
    text = page(Material(facts(training=training)))
    for tip in (
        "fixed rows: 1.25 (step 8)",
        "validation: 1.75 (step 8)",
        "prefix: 0.9 (token 1)",
        "KL: 0.25 (position after the prompt 2)",
    ):
        assert f"<title>{tip}</title>" in text


@pytest.mark.parametrize(("until", "grades"), [("end", 0.0), ("known", 0.0), ("end", 0.5)])
def test_the_running_difference_ends_with_the_interval_of_the_verdict(
    monkeypatch: pytest.MonkeyPatch, until: Until, grades: float
) -> None:
    """Its band left 0 out where the verdict claimed nothing: 5 of 12 gained, stopping early, a floor by rounding."""
    count = 5 if grades == 0 else 6
    mine = [row(number, number >= count, True) for number in range(12)]
    base, tuned = ([[found] for item in mine if (found := getattr(item, name))] for name in ("base", "tuned"))
    told = difference(base, tuned, grades, until)
    paired = {"delta": told.delta, "ci95": told.ci95, "p_value": told.p_value, "until": until}
    rounding = Rounding(completions=12, texts=grades, answers=grades, grades=grades)
    one = replace(result({"base": {}, "tuned": {}, "paired": paired}), rounding=rounding)
    drawn: dict[str, Sequence[charts.Line]] = {}
    monkeypatch.setattr(charts, "lines", lambda title, curves, *_, **__: drawn.update({title: curves}) or "")
    page(Material(replace(facts(), benchmarks={"arithmetic": one}), mine))
    [line] = drawn["arithmetic: tuned - base over the first problems"]
    assert (line.points[-1], line.band[-1]) == ((12.0, told.delta), told.ci95)
    assert line.band[-1][0] <= 0, "nothing is claimed"


def test_a_private_benchmark_has_its_numbers_and_none_of_its_problems() -> None:
    text = page(Material(facts("secret"), withheld={"secret": 256}))
    assert "secret is private: its 256 problems are not in this file." in text
    both = facts()
    both.benchmarks["secret"] = both.benchmarks["arithmetic"]
    text = page(Material(both, four(), withheld={"secret": 256}))
    assert "secret is private: its 256 problems are not in this file." in text
    assert [line[0] for line in data_of(text)["rows"]] == [0, 0, 0, 0]


def test_rows_reach_the_script_whole() -> None:
    first = data_of(page(Material(facts(), four())))["rows"][1]
    base = [0, "8", 11, 0, "First, we find 1.\nThe answer is seven."]
    tuned = [1, "7", 11, 0, "First, we see 1.\nThe answer is seven."]
    assert first == [0, "p-0001", 0, "How many pens has child 1?", "7", "2", None, base, tuned]


def test_long_texts_share_the_room_and_short_ones_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upft_mlx.results.page.TEXTS", 5_000)
    rows = four()
    long = row(4, True, True)
    assert long.base
    long.base.__dict__["completion"] = "begin " + "word " * 4_000 + "end"
    text = page(Material(facts(), [*rows, long]))
    found = [line[7][4] for line in data_of(text)["rows"]]
    assert found[0] == "First, we find 0.\nThe answer is seven."
    assert found[4].startswith("begin word")
    assert found[4].endswith("word end")
    assert "characters ...]" in found[4]
    assert 4_000 < sum(map(len, found)) < 5_200
    assert "cut in the middle" in text


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([], "Nothing is measured yet"),
        (["base"], "Only base is measured: nothing is compared yet"),
        (["same"], "No measurable change on b0"),
        (["same", "better"], "Tuned is better than base on b1; no measurable change on b0"),
        (["open", "same"], "No measurable change on b1; can't tell yet on b0"),
        (["same"] * 5, "No measurable change on b0, b1 and 3 more"),
        (["worse", "better", "worse"], "Tuned is better than base on b1; tuned is worse than base on b0 and b2"),
    ],
)
def test_the_headline_puts_claims_first(found: list[str], said: str) -> None:
    variant = {"accuracy": 0.5, "truncated": 0.0, "n": 100}
    paired = {
        "same": {"delta": 0.0, "p_value": 0.5, "ci95": [-0.01, 0.01]},
        "open": {"delta": 0.01, "p_value": 0.5, "ci95": [-0.1, 0.12]},
        "better": {"delta": 0.1, "p_value": 0.01, "ci95": [0.05, 0.15]},
        "worse": {"delta": -0.1, "p_value": 0.01, "ci95": [-0.15, -0.05]},
    }
    both = {"base": variant, "tuned": variant}
    benchmarks = [{**both, "paired": paired[kind]} if kind in paired else {"base": variant} for kind in found]
    assert headline(results({f"b{number}": value for number, value in enumerate(benchmarks)})) == said


# How answers begin.


def test_a_tree_joins_what_all_answers_of_a_branch_share() -> None:
    base = [["We", " see", " a"], ["We", " see", " b"], ["So", " 7"], ["So", " 7"]]
    tuned = [["We", " see", " a"]] * 4
    assert tree(base, tuned) == [
        Branch("We see", 0.5, 1.0, [Branch(" a", 0.25, 1.0), Branch(" b", 0.25, 0.0)]),
        Branch("So 7", 0.5, 0.0),
    ]


def test_a_tree_leaves_out_rare_branches_and_ends_with_short_answers() -> None:
    base = [["a"]] * 99 + [["b"]]
    assert tree(base, []) == [Branch("a", 0.99, 0.0)]
    assert tree([["a"], ["a", "b"]], []) == [Branch("a", 1.0, 0.0, [Branch("b", 0.5, 0.0)])]


# Charts.


def test_a_chart_places_its_points_between_its_axes() -> None:
    line = charts.Line("x", "base", [(0.0, 0.0), (5.0, 10.0), (10.0, float("nan"))], [(-1, 1), (9, 11), (0, 0)])
    svg = charts.lines("t", [line], "step", lambda y: f"{y:g}", zero=True)
    xs = [float(x) for x in re.findall(r"<circle [^>]*cx='([0-9.]+)'", svg)]
    ys = [float(y) for y in re.findall(r"<circle [^>]*cy='([0-9.]+)'", svg)]
    assert xs == [charts.LEFT, charts.RIGHT]
    assert charts.BOTTOM >= ys[0] > ys[1] >= charts.TOP
    assert "nan" not in svg
    assert charts.lines("t", [charts.Line("x", "base", [])], "step", str, zero=True) == ""


def test_a_histogram_counts_each_variant_in_shares() -> None:
    svg = charts.histogram("t", [("base", [10.0, 10.0, 11.0, 13.0]), ("tuned", [10.0])], "tokens")
    assert "base: 50 % (tokens 10)" in svg
    assert "base: 25 % (tokens 13)" in svg
    assert "tuned: 100 % (tokens 10)" in svg


def test_an_interval_has_zero_in_its_middle() -> None:
    svg = charts.interval("t", 0.05, -0.05, 0.15, 0.15)
    low, high = (float(x) for x in re.search(r"class='range' x1='([0-9.]+)' x2='([0-9.]+)'", svg).groups())  # type: ignore[union-attr]
    dot = float(re.search(r"class='dot' cx='([0-9.]+)'", svg)[1])  # type: ignore[index]
    middle = charts.WIDTH / 2
    assert high - middle == pytest.approx(3 * (middle - low), abs=0.2)
    assert dot - middle == pytest.approx(middle - low, abs=0.2)


def test_the_assets_ask_for_nothing() -> None:
    for path in Path(FOLDER).iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.search(
            r"https?:|url\(|@import|fetch\(|XMLHttp|innerHTML|insertAdjacentHTML|document\.write|eval\(", text
        )
