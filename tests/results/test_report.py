"""What the verdict claims, and that each place says the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from helpers.facts import result, run_report
from helpers.ui import console, written

from upft_mlx.evaluation.benchmark_result import Rounding
from upft_mlx.results.page import Material, page
from upft_mlx.results.report import markdown, outcome, remarks, verdict
from upft_mlx.ui.summary import summary
from upft_mlx.ui.text import Glyphs


@pytest.mark.parametrize(
    ("delta", "said"),
    [
        (0.03, "rounding alone changes 6.2 % of grades; no smaller difference is claimed, so more problems would not"),
        (4 / 64 + 1e-12, "rounding alone changes 6.2 % of grades"),
        (0.01, "about 630 problems would settle a change of 2 points"),
    ],
)
def test_more_problems_are_not_said_to_settle_what_rounding_hides(delta: float, said: str) -> None:
    """It named 630 problems; with any number of them, the interval of a difference of 3 points holds 0 and 3 points."""
    paired = {"delta": delta, "ci95": [0.0, 0.05], "p_value": 1.0}
    found = result({"base": {}, "tuned": {}, "paired": paired})
    rounded = replace(found, rounding=Rounding(completions=64, texts=0.5, answers=0.1, grades=4 / 64))
    one = verdict({"few": replace(found, rounding=Rounding(completions=1, texts=0.0, answers=0.0, grades=0.0))})[-1]
    assert "of 1 answer of base, asked again at another batch size, changes by rounding" in one
    kind, why = outcome(rounded)
    assert kind == "can't tell yet"
    assert why.startswith(said)
    assert "about 630 problems" in outcome(found)[1]


def test_a_claim_that_may_be_chance_among_several_benchmarks_gets_a_warning_everywhere() -> None:
    """Of ten benchmarks without any change, one was called better or worse in up to four of ten runs."""
    claimed = {"delta": 0.1, "ci95": [0.01, 0.19], "p_value": 0.03}
    sure = {"delta": 0.2, "ci95": [0.1, 0.3], "p_value": 0.0001}
    same = {"delta": 0.0, "ci95": [-0.01, 0.01], "p_value": 1.0}

    def told(*paired: dict[str, Any]) -> list[str]:
        found = {f"b{n}": result({"base": {}, "tuned": {}, "paired": of}) for n, of in enumerate(paired)}
        lines = [line for line in verdict(found) if "Bonferroni" in line]
        assert lines == remarks(found)
        facts = run_report({"benchmarks": found, "verdict": verdict(found), "remarks": remarks(found)})
        screen = console(width=200)
        for part in summary(facts, Glyphs(), 200):
            screen.print(part)
        for text in (written(screen), markdown(facts), page(Material(facts))):
            assert text.count("Bonferroni") == len(lines)
        return lines

    chance = "b0: of 2 benchmarks, one may well differ by chance; tested together (Bonferroni), this one has p 0.060"
    assert told(claimed, same) == [f"{chance} and the claim does not hold"]
    assert told(claimed, sure) == [f"{chance} and the claim does not hold"]
    assert told(claimed) == told(sure, same, same) == told(same, same) == []
