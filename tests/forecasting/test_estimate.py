"""The estimator by hand, without bias in a world whose values are known, and what it advises."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from upft_mlx.dataset.selection import pick
from upft_mlx.forecasting.estimate import (
    Advice,
    Forecast,
    Graded,
    Mean,
    RuleForecast,
    advise,
    chosen_by_auto,
    greedy_gain,
    mean_of,
    points,
    weigh,
)
from upft_mlx.forecasting.page import figure, markdown
from upft_mlx.recipe.studies import Selection
from upft_mlx.rows import Solution


def solution(ids: list[int], sample: int = 0, reason: str = "stop") -> Solution:
    return Solution("p", sample, "full", ids, " ".join(map(str, ids)), reason)  # type: ignore[arg-type]


def graded(*samples: tuple[list[int], bool], name: str = "p") -> Graded:
    solutions = [solution(ids, number) for number, (ids, _) in enumerate(samples)]
    return Graded(name, solutions, [right for _, right in samples])


ITEM = graded(([1, 2, 9], True), ([1, 2, 8], False), ([1, 3, 7], True), ([1], False))


def test_a_prefix_is_worth_what_all_samples_with_it_are() -> None:
    assert ITEM.mean == 0.5
    assert ITEM.worth(0, 2, None) == 0.5
    assert ITEM.worth(2, 2, None) == 1.0
    assert ITEM.worth(3, 1, None) == 0.5, "it ended behind its first token, where others go on: all have that prefix"
    assert ITEM.worth(3, 2, None) == 0.0, "it ended within its prefix, which no other has"
    assert ITEM.alike(ITEM.solutions[1], 2) == [0, 1]


def test_a_rule_that_saw_the_outcome_is_worth_what_fresh_continuations_are() -> None:
    fresh = {("p", 0, 2): [True, False, False, False]}
    assert ITEM.worth(1, 2, fresh) == 0.25, "of the first sample with its prefix"
    assert ITEM.worth(3, 4, fresh) == 0.0, "nothing follows a whole solution"


def test_the_forecast_is_the_picks_worth_minus_the_mean() -> None:
    other = graded(([5, 5], True), ([6, 6], False), name="q")
    found = weigh("probe", 2, [ITEM, other], [2, 1], {}, {"p": 0.25, "q": 0.0}, 12.0)
    assert found.accuracy is not None
    assert found.forecast is not None
    assert found.greedy is not None
    assert found.accuracy.mean == 0.5
    assert found.forecast.mean == 0.0, "(1 - 0.5 + 0 - 0.5) / 2"
    assert found.greedy.mean == 0.375
    assert (found.problems, found.problem_coverage, found.tokens_per_problem) == (2, 1.0, 12.0)
    assert found.prefix_coverage == mean_of([0.25, 0.5], (0.0, 1.0))
    partly = weigh("label", 2, [ITEM, other], [None, 1], {("q", 1, 2): [True]}, {}, 12.0)
    assert (partly.problems, partly.problem_coverage, partly.forecast) == (1, 0.5, None)


# A world whose values are known: a prefix of one token is right with a probability that depends on it.

WORTH = {0: 0.9, 1: 0.5, 2: 0.2}
SHARES = (0.2, 0.3, 0.5)
MEAN = sum(share * worth for share, worth in zip(SHARES, WORTH.values(), strict=True))


def sampled(rng: random.Random, problems: int, samples: int = 4) -> list[Graded]:
    made = []
    for number in range(problems):
        starts = rng.choices(list(WORTH), SHARES, k=samples)
        rows = [([start, *([9] if rng.random() < WORTH[start] else [8])], False) for start in starts]
        made.append(graded(*((ids, ids[1] == 9) for ids, _ in rows), name=str(number)))
    return made


def picked(rule: Selection, item: Graded) -> int | None:
    if rule == "label":
        return next((n for n, right in enumerate(item.right) if right), None)
    return pick(rule, item.solutions, 1, None)


def forecast_of(rule: Selection, items: Sequence[Graded], rng: random.Random) -> Mean:
    picks = [picked(rule, item) for item in items]
    fresh = {
        (item.problem_id, item.alike(item.solutions[found], 1)[0], 1): [
            rng.random() < WORTH[item.solutions[found].completion_ids[0]] for _ in range(2)
        ]
        for item, found in zip(items, picks, strict=True)
        if found is not None
    }
    value = weigh(rule, 1, items, picks, fresh, {}, 0.0).forecast
    assert value is not None
    return value


@pytest.mark.parametrize("rule", ["first", "consensus", "label"])
def test_the_estimator_is_unbiased(rule: Selection) -> None:
    rng = random.Random(rule)
    means = [forecast_of(rule, sampled(rng, 40), rng).mean for _ in range(150)]
    truths = []
    for item in sampled(random.Random(f"truth/{rule}"), 20_000):
        found = picked(rule, item)
        if found is not None:
            truths.append(WORTH[item.solutions[found].completion_ids[0]] - MEAN)
    truth = sum(truths) / len(truths)
    mean = sum(means) / len(means)
    spread = (sum((value - mean) ** 2 for value in means) / len(means)) ** 0.5 / len(means) ** 0.5
    assert abs(mean - truth) < 3 * spread + 0.005
    assert rule != "first" or abs(truth) < 0.01


# What it advises.


def rule(
    name: str, low: float, high: float, length: int = 8, greedy: tuple[float, float] | None = None
) -> RuleForecast:
    value = Mean((low + high) / 2, (low, high))
    compared = None if greedy is None else Mean(sum(greedy) / 2, greedy)
    return RuleForecast(name, length, 64, 1.0, value, value, value, compared, 100.0)


def test_the_advice_is_the_best_lower_bound_without_more_answers() -> None:
    found = advise([rule("label", 0.3, 0.5), rule("consensus", 0.1, 0.2), rule("probe", 0.05, 0.6, 16)], 64)
    assert (found.selection, found.length) == ("consensus", 8)
    assert "+15.0 [+10.0, +20.0]" in found.text
    falls = advise([rule("probe", 0.1, 0.2, greedy=(-0.2, -0.1))], 64)
    assert "greedy accuracy would fall (-15.0 [-20.0, -10.0])" in falls.text


def test_it_says_how_many_answers_would_settle_it() -> None:
    found = advise([rule("consensus", -0.1, 0.2)], 64)
    assert found.selection is None
    assert "about 576 answers" in found.text, "half an interval of 15 points against 5: nine times as many"
    assert "about 65 answers" in advise([rule("consensus", -1e-4, 0.2)], 64).text, "64 have not settled it"
    assert "negative" in advise([rule("consensus", -0.3, -0.1)], 64).text
    assert advise([], 64).selection is None


def test_the_best_of_many_is_advised_by_chance_as_rarely_as_one() -> None:
    """The best of 18 forecasts that are all worth nothing had an interval above zero in a third of the worlds."""
    rng, worlds, names = random.Random(4), 300, ("consensus", "prefix_confidence", "probe", *"abc")
    advised = chosen = 0
    for _ in range(worlds):
        rules = []
        for name in names:
            for length in (4, 8, 16):
                value = mean_of([rng.uniform(-1, 1) for _ in range(64)], (-1.0, 1.0))
                rules.append(RuleForecast(name, length, 64, 1.0, value, value, value, None, 100.0))
        advised += advise(rules, 64).selection is not None
        chosen += chosen_by_auto(rules, 8) is not None
    assert max(advised, chosen) < 0.06 * worlds, "2.5 % are meant to be"
    many = [rule("consensus", 0.01, 0.21), *(rule("probe", -0.3, -0.1, length) for length in range(1, 18))]
    found = advise(many, 64)
    assert found.selection is None
    assert "+11.0 [+1.0, +21.0] points, the best of 18 and so more likely above zero by chance; about 1" in found.text
    assert advise(many[:1], 64).selection == "consensus"


def test_auto_takes_the_best_bound_at_its_length_unless_greedy_decoding_is_better() -> None:
    rules = [
        rule("consensus", 0.1, 0.3, greedy=(-0.1, 0.1)),
        rule("probe", 0.15, 0.3, greedy=(-0.2, -0.01)),
        rule("label", 0.4, 0.5),
        rule("prefix_confidence", 0.3, 0.5, length=16),
    ]
    found = chosen_by_auto(rules, 8)
    assert found is not None
    assert found.selection == "consensus"
    assert chosen_by_auto([rule("consensus", -0.01, 0.3)], 8) is None


def test_what_greedy_decoding_gains_for_nothing_is_said_where_it_is_measured() -> None:
    samples = [Graded(str(n), [], [n % 4 == 0, n % 2 == 0]) for n in range(24)]  # right on 3 of 8
    greedy = [Graded(str(n), [], [n % 8 != 0]) for n in reversed(range(24))]  # on 7 of 8
    found = greedy_gain(samples, greedy, 0.6)
    assert "more often than samples at T = 0.6 (+50.0 [" in found
    assert "try a lower temperature" in found
    assert greedy_gain(samples, [Graded(item.problem_id, [], [item.right[0]]) for item in samples], 0.6) == ""
    assert greedy_gain(samples, [], 0.6) == ""
    value = mean_of([0.1, 0.4], (0.0, 1.0))
    told = Forecast(24, 2, value, value, (), {}, Advice(None, None, "text", found), 5)
    assert f"And {found}.\n" in markdown(told)
    assert "\nAnd " not in markdown(replace(told, advice=Advice(None, None, "text")))


def test_it_comes_back_from_json_as_it_was() -> None:
    value = mean_of([0.1, 0.4], (0.0, 1.0))
    areas = {8: {"mean": 0.7, "ci95": [0.6, 0.8], "problems": 9}, 4: None}
    advice = Advice("consensus", 8, "text", "remark")
    found = Forecast(64, 16, value, value, (rule("consensus", 0.1, 0.3),), areas, advice, 5)
    assert Forecast.load(json.loads(json.dumps(found.dump()))) == found


def test_the_picture_has_a_curve_per_rule_and_shows_what_lies_below_zero() -> None:
    value = mean_of([0.1, 0.4], (0.0, 1.0))
    rules = (
        rule("consensus", 0.1, 0.3),
        rule("probe", -0.3, -0.1, 4),
        rule("probe", 0.0, 0.2),
        rule("label", 0.3, 0.4),
    )
    root = ElementTree.fromstring(figure(Forecast(64, 16, value, value, rules, {}, Advice(None, None, "text"), 5)))
    lines = [node.attrib["points"] for node in root.iter() if node.tag.endswith("polyline")]
    assert len(lines) == 3
    heights = [float(pair.split(",")[1]) for line in lines for pair in line.split()]
    assert all(0 < y < float(root.attrib["height"]) - 50 for y in heights), "within the axes"


def test_a_rounded_zero_has_no_minus() -> None:
    assert points(Mean(-1e-5, (-0.002, -1e-6))) == "+0.0 [-0.2, +0.0]"
