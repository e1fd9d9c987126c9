"""What full solutions would have cost: by hand on four rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.facts import run_report

from upft_mlx.data.problems import Problem
from upft_mlx.recipe.schema import Recipe
from upft_mlx.results.economy import Cost, economy, expected_kept
from upft_mlx.results.report import markdown
from upft_mlx.rows import Solution, TrainingRow, write_rows
from upft_mlx.rundir import LedgerEntry, RunDir

MakeRecipe = Callable[..., Recipe]
PROBLEMS = [Problem(str(number), "?", "4") for number in range(10)]


def full(number: int, text: str, tokens: int, finish: str = "stop") -> Solution:
    return Solution(str(number), 0, "full", [1] * tokens, text, finish)  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Two full solutions of 20 and 30 tokens, one of them right, and prefixes of 5; trained for two epochs."""
    run = RunDir(tmp_path)
    prefixes = [Solution(str(n), 0, "prefix", [1] * 5, "", "length") for n in range(2, 10)]
    write_rows(run.solutions, [full(0, "\\boxed{4}", 20), full(1, "\\boxed{5}", 30), *prefixes])
    write_rows(run.train, [TrainingRow(str(n), str(n), 0, "prefix", "", "", [1], [1] * 6) for n in range(10)])
    run.record("generate", LedgerEntry("x", done=True, tokens_sampled=90))
    run.record("train", LedgerEntry("x", done=True, tokens_trained=120))
    return run


def test_tokens_of_sft_and_rft_follow_from_the_full_solutions_of_the_run(make_recipe: MakeRecipe, run: RunDir) -> None:
    found = economy(make_recipe(train={"valid_ratio": 0.2}), PROBLEMS, run)
    assert found is not None
    assert found.this == Cost(90, 120, "measured")
    assert found.sft
    assert found.rft
    assert found.sft.tokens_sampled == 10 * 25
    assert found.sft.tokens_trained == 2 * 8 * 26
    assert found.rft.tokens_sampled == 16 * 10 * 25
    assert found.rft.tokens_trained == pytest.approx(2 * 8 * 21 * expected_kept(0.5)), "the right one has 20 tokens"
    assert found.rft.how == "computed from 2 full solutions of this run"
    assert "| SFT (1 full solution) | 250 (this run: 36.0 % of it) | 416 (this run: 28.8 % of it) |" in markdown(
        run_report({"economy": found})
    )


def test_cut_solutions_are_sampled_and_never_trained_on(make_recipe: MakeRecipe, run: RunDir) -> None:
    """They are the longest: counted with the others, they made SFT's and RFT's rows as long as they are."""
    rows = [full(0, "\\boxed{4}", 20), full(1, "\\boxed{5}", 30), full(2, "\\boxed{4} again", 500, "length")]
    write_rows(run.solutions, rows)
    found = economy(make_recipe(train={"valid_ratio": 0.2}), PROBLEMS, run)
    assert found is not None
    assert found.sft
    assert found.rft
    assert found.sft.tokens_sampled == pytest.approx(10 * 550 / 3)
    assert found.sft.tokens_trained == pytest.approx(2 * 8 * (21 + 31) / 3)
    assert found.rft.tokens_trained == pytest.approx(2 * 8 * 21 * expected_kept(1 / 3))


def test_choices_are_graded_by_their_letters(make_recipe: MakeRecipe, run: RunDir) -> None:
    rows = [full(number, "Therefore the correct option is (C).", 20) for number in range(2)]
    write_rows(run.solutions, rows)
    found = economy(make_recipe(train={"valid_ratio": 0.2}), [Problem(p.id, "?", "C") for p in PROBLEMS], run)
    assert found is not None
    assert found.rft
    assert found.rft.tokens_trained == pytest.approx(2 * 8 * 21 * 4), "all are right"


def test_without_answers_rft_is_taken_to_keep_the_most_and_it_says_so(make_recipe: MakeRecipe, run: RunDir) -> None:
    found = economy(make_recipe(train={"valid_ratio": 0.2}), [Problem(p.id, p.question) for p in PROBLEMS], run)
    assert found is not None
    assert found.rft
    assert found.rft.tokens_trained == pytest.approx(2 * 8 * 26 * 4)
    assert found.rft.how.endswith("all correct (no answers)")


def test_without_a_full_solution_nothing_is_made_up(make_recipe: MakeRecipe, run: RunDir) -> None:
    write_rows(run.solutions, [Solution("3", 0, "prefix", [1] * 5, "", "length")])
    found = economy(make_recipe(), PROBLEMS, run)
    assert found is not None
    assert set(found.dump()) == {"this"}
    assert "No full solution was sampled" in markdown(run_report({"economy": found}))


def test_a_run_that_has_not_trained_has_no_economy(make_recipe: MakeRecipe, run: RunDir) -> None:
    run.record("train", None)
    assert economy(make_recipe(), PROBLEMS, run) is None


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.0), (1.0, 4.0)])
def test_rft_keeps_none_of_none_and_at_most_four(share: float, expected: float) -> None:
    assert expected_kept(share) == pytest.approx(expected)


def test_answers_that_a_run_learned_from_are_part_of_what_it_cost(make_recipe: MakeRecipe, run: RunDir) -> None:
    """And all their samples say how many are right; solutions.jsonl has the right ones alone."""
    write_rows(run.solutions, [full(n, "\\boxed{4}", 20) for n in range(8)])
    answers = [
        full(n, text, size) for n in reversed(range(8)) for text, size in (("\\boxed{4}", 20), ("\\boxed{5}", 40))
    ]
    write_rows(run.answers / "samples.jsonl", [*answers, full(9, "\\boxed{4}", 90)])
    run.record("answers", LedgerEntry("x", done=True, tokens_sampled=500))
    run.record("choose", LedgerEntry("x", done=True, tokens_sampled=7))
    found = economy(make_recipe(prefix={"structure": "checked"}, forecast={"problems": 8}), PROBLEMS, run)
    assert found is not None
    assert found.this == Cost(597, 120, "measured")
    assert found.sft
    assert found.rft
    assert found.sft.tokens_sampled == 10 * 30
    assert found.rft.tokens_trained == pytest.approx(found.sft.tokens_trained * 21 / 31 * expected_kept(0.5))
    assert found.rft.how == "computed from 16 full solutions of this run"
    apart = economy(make_recipe(), PROBLEMS, run)
    assert apart is not None
    assert apart.this.tokens_sampled == 90, "answers of a forecast that the recipe does not use"
