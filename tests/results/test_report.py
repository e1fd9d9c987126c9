"""What the verdict claims, and that each place says the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers.facts import result

from upft_mlx.evaluation.benchmark_result import Rounding
from upft_mlx.results.report import outcome


@pytest.mark.parametrize(
    ("delta", "said"),
    [
        (0.03, "rounding alone changes 6.2 % of grades; no smaller difference is claimed, so more problems would not"),
        (0.01, "about 630 problems would settle a change of 2 points"),
    ],
)
def test_more_problems_are_not_said_to_settle_what_rounding_hides(delta: float, said: str) -> None:
    """It named 630 problems; with any number of them, the interval of a difference of 3 points holds 0 and 3 points."""
    paired = {"delta": delta, "ci95": [0.0, 0.05], "p_value": 1.0}
    found = result({"base": {}, "tuned": {}, "paired": paired})
    rounded = replace(found, rounding=Rounding(completions=64, texts=0.5, answers=0.1, grades=4 / 64))
    kind, why = outcome(rounded)
    assert kind == "can't tell yet"
    assert why.startswith(said)
    assert "about 630 problems" in outcome(found)[1]
