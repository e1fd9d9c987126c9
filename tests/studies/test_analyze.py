"""Prefix statistics by hand, what they recommend, and the command on the embedded model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from upft_mlx.data.problems import Problem
from upft_mlx.evaluation.stats import PairedDifference
from upft_mlx.events import Event, Note, Progress, ignore
from upft_mlx.forecasting.estimate import Forecast, Mean
from upft_mlx.grade import correct
from upft_mlx.grade.graders import Task, Verdict, grade
from upft_mlx.models.load import Loaded
from upft_mlx.recipe.schema import Recipe
from upft_mlx.recipe.studies import Analyze
from upft_mlx.results.figures import Panel, Point, Series, curves
from upft_mlx.rows import Rollout, Solution, read_rows, write_rows
from upft_mlx.rundir import RunDir
from upft_mlx.studies import analyze as analyze_module
from upft_mlx.studies.analyze import _Analyzer, run_analysis
from upft_mlx.studies.prefix_statistics import (
    PrefixAccuracy,
    RolloutStart,
    figure,
    markdown,
    prefix_accuracy,
    recommend,
    self_consistency,
    summarize,
)

MakeRecipe = Callable[..., Recipe]
ROWS = Path(__file__).parents[2] / "upft_mlx" / "demo" / "train.jsonl"


def test_self_consistency_is_samples_per_distinct_prefix_averaged_over_questions() -> None:
    prefixes = [("a", [1, 2]), ("a", [1, 3]), ("a", [1, 2]), ("a", [1, 4]), ("b", [5, 6]), ("b", [7, 6])]
    first, second = self_consistency([0, 1, 2], prefixes, 4)
    assert (first.length, first.mean) == (1, (4 / 1 + 2 / 2) / 2)
    assert second.length == 2
    assert second.mean == pytest.approx((4 / 3 + 2 / 2) / 2)
    assert first.ci95[0] < first.mean < first.ci95[1]


def test_a_solution_that_ended_is_another_prefix_than_one_that_went_on() -> None:
    (row,) = self_consistency([2], [("a", [1, -1]), ("a", [1, 2])], 2)
    assert row.mean == 1.0


def starts(scores: dict[int, list[tuple[float, float]]]) -> list[RolloutStart]:
    """For each length the (correct, incorrect) scores of questions 0, 1, ..."""
    made = []
    for length, pairs in scores.items():
        for number, pair in enumerate(pairs):
            arms = ("both",) if length == 0 else ("correct", "incorrect")
            made += [RolloutStart(str(number), arm, length, [], score) for arm, score in zip(arms, pair, strict=False)]  # type: ignore[arg-type]
    return made


def test_accuracy_is_per_arm_and_the_arms_are_one_at_length_0() -> None:
    start, later = prefix_accuracy([0, 4], starts({0: [(0.5, 0.5), (1.0, 1.0)], 4: [(1.0, 0.25), (0.5, 0.25)]}))
    assert start.correct == start.incorrect
    assert start.difference.delta == 0
    assert (later.correct.mean, later.incorrect.mean, later.problems) == (0.75, 0.25, 2)
    assert later.difference.delta == 0.5


def test_a_question_counts_only_where_both_trajectories_go_on() -> None:
    made = [*starts({4: [(1.0, 0.0), (1.0, 1.0), (0.5, 0.5)]}), RolloutStart("9", "correct", 4, [], 0.0)]
    (row,) = prefix_accuracy([4], made)
    assert row.problems == 3
    assert row.correct.mean == pytest.approx(2.5 / 3)


def difference(length: int, low: float) -> PrefixAccuracy:
    half = Mean(0.5, (0.4, 0.6))
    return PrefixAccuracy(length, 9, half, half, PairedDifference(low + 0.1, (low, low + 0.2), 0.5))


@pytest.mark.parametrize(
    ("lows", "length", "part"),
    [
        ({0: -0.1, 4: -0.1, 8: -0.05, 12: 0.01, 16: -0.1}, 8, "up to 8 tokens, .*; at 12 they differ"),
        (
            {4: -0.1, 8: -0.1},
            8,
            r"no difference .* \(\+0.0 points \[-10.0, \+10.0\] at 8, 9 questions\); longer ones cost",
        ),
        ({4: -0.1, 32: -0.1, 64: -0.1}, 32, "up to 32 tokens"),
        ({4: 0.1, 8: -0.1}, None, "already at t = 4, .* let `prefix.selection` choose"),
        ({64: -0.1}, 64, "up to 64 tokens"),
        ({}, None, "cannot be compared: that takes 6 questions"),
    ],
)
def test_the_longest_prefix_up_to_which_the_arms_are_alike_is_recommended(
    lows: dict[int, float], length: int | None, part: str
) -> None:
    found = recommend([difference(*pair) for pair in lows.items()])
    assert found.length == length
    assert re.search(part, found.reason)


@pytest.mark.parametrize(("questions", "said"), [(1, "were fewer"), (5, "were fewer"), (6, "already at t = 4")])
def test_no_length_is_recommended_from_so_few_questions_that_none_could_differ(questions: int, said: str) -> None:
    """Of five, all with 100 points between the arms, `no difference is measurable` recommended that length."""
    found = recommend(prefix_accuracy((0, 4), starts({4: [(1.0, 0.0)] * questions})))
    assert found.length is None
    assert said in found.reason


FOUND = summarize(
    Analyze(lengths=(0, 1, 4)),
    [("a", [1, 2]), ("a", [1, 3]), ("b", [1, 2])],
    starts({0: [(0.5, 0.5), (1.0, 1.0)], 4: [(1.0, 0.25), (0.5, 0.25)]}),
)


def test_the_curves_are_well_formed_and_lie_within_the_picture() -> None:
    root = ElementTree.fromstring(figure(FOUND))
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    lines = [node for node in root.iter() if node.tag.endswith("polyline")]
    assert len(lines) == 3, "one for self-consistency, one per arm"
    for line in lines:
        for pair in line.attrib["points"].split():
            x, y = map(float, pair.split(","))
            assert 0 < x < width
            assert 0 < y < height


def test_a_panel_whose_values_are_all_0_is_drawn() -> None:
    nothing = [Point(length, 0.0, 0.0, 0.0) for length in (4, 8)]
    root = ElementTree.fromstring(curves([Panel("always right", "points", [Series("first", nothing)])], "t"))
    (line,) = (node for node in root.iter() if node.tag.endswith("polyline"))
    assert len({pair.split(",")[1] for pair in line.attrib["points"].split()}) == 1


def test_the_table_says_what_was_found() -> None:
    text = markdown(FOUND)
    assert "| 4 | 2 | 75.0 %" in text
    assert re.search(r"^\| 0 \| 2 \| 75.0 % .*\|  \|$", text, re.MULTILINE), "no difference: the arms are one"
    assert text.startswith("Recommended `prefix.length`: **")


@pytest.fixture
def recipe(make_recipe: MakeRecipe) -> Recipe:
    return make_recipe(
        analyze={
            "problems": 12,
            "samples": 6,
            "lengths": [0, 2, 8],
            "trajectories": 6,
            "rollout_problems": 4,
            "rollouts": 3,
        },
        generate={"temperature": 1.0, "batch_size": 16},
    )


def test_the_command_writes_tables_curves_and_rows_that_add_up(recipe: Recipe, tmp_path: Path) -> None:
    found = run_analysis(recipe, tmp_path)
    folder = tmp_path / "analysis"
    assert json.loads((folder / "analysis.json").read_text()) == found.dump()
    assert len(list(read_rows(folder / "prefixes.jsonl", Solution))) == 12 * 6
    rollouts = list(read_rows(folder / "rollouts.jsonl", Rollout))
    questions = {row.problem_id for row in rollouts}
    assert 2 <= len(questions) <= 4
    assert {row.length for row in rollouts} == {0, 2, 8}
    assert [row.length for row in found.accuracy][:2] == [0, 2]
    for row in found.accuracy:
        at = [r for r in rollouts if r.length == row.length]
        arms = {arm: {r.problem_id for r in at if r.arm in ("both", arm)} for arm in ("correct", "incorrect")}
        both = arms["correct"] & arms["incorrect"]
        assert row.problems == len(both) >= 2
        for arm in arms:
            right = [r.correct for r in at if r.problem_id in both and r.arm in ("both", arm)]
            assert getattr(row, arm).mean == pytest.approx(sum(right) / len(right))
    ElementTree.fromstring((folder / "curves.svg").read_text())
    solutions = [row for name in ("prefixes", "trajectories") for row in read_rows(folder / f"{name}.jsonl", Solution)]
    tokens = sum(len(row.completion_ids) for row in solutions) + sum(row.tokens for row in rollouts)
    entry = RunDir(tmp_path).entry("analyze")
    assert entry is not None
    assert entry.tokens_sampled == found.tokens_sampled == tokens
    assert entry.tokens_processed > tokens


def test_its_forecast_is_that_of_its_own_trajectories(recipe: Recipe, tmp_path: Path) -> None:
    found = run_analysis(recipe, tmp_path).forecast
    assert found == Forecast.load(json.loads((tmp_path / "analysis/analysis.json").read_text())["forecast"])
    assert (found.problems, found.samples, found.tokens_sampled, found.greedy_base) == (12, 6, 0, None)
    assert {(rule.selection, rule.length) for rule in found.rules} == {
        (name, length) for name in ("first", "consensus", "prefix_confidence", "probe") for length in (2, 8)
    }
    golds = {row["id"]: row["answer"] for row in map(json.loads, ROWS.read_text().splitlines()[:12])}
    samples: dict[str, list[Solution]] = {}
    for row in read_rows(tmp_path / "analysis" / "trajectories.jsonl", Solution):
        samples.setdefault(row.problem_id, []).append(row)
    right = {name: [correct.is_correct(s.completion, golds[name]) for s in rows] for name, rows in samples.items()}
    base = sum(sum(marks) / 6 for marks in right.values()) / 12
    assert found.base.mean == pytest.approx(base)
    for rule in found.rules:
        if rule.selection == "first":  # the success of all samples that begin as the first one does
            alike = {
                name: [mark for s, mark in zip(rows, right[name], strict=True) if starts_as(s, rows[0], rule.length)]
                for name, rows in samples.items()
            }
            worth = sum(sum(marks) / len(marks) for marks in alike.values()) / 12
            assert rule.forecast is not None
            assert rule.forecast.mean == pytest.approx(worth - base)
    text = (tmp_path / "analysis" / "analysis.md").read_text()
    assert found.advice.text in text
    assert "| consensus | 8 |" in text
    assert "greedy" not in text
    assert "Forecast of each rule" in (tmp_path / "analysis" / "curves.svg").read_text()


def starts_as(one: Solution, other: Solution, length: int) -> bool:
    """Whether both begin with the same tokens; one that ended before is another prefix than one that went on."""
    return (one.completion_ids[:length], len(one.completion_ids) < length) == (
        other.completion_ids[:length],
        len(other.completion_ids) < length,
    )


def test_a_few_problems_are_too_few_for_a_forecast(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(
        analyze={"problems": 7, "samples": 2, "lengths": [4], "trajectories": 2, "rollouts": 1},
        generate={"batch_size": 16},
    )
    assert run_analysis(recipe, tmp_path).forecast is None
    assert "Advice" not in (tmp_path / "analysis" / "analysis.md").read_text()


def test_stopped_anywhere_it_continues_to_the_same_bytes(recipe: Recipe, tmp_path: Path) -> None:
    class Stop(BaseException):
        pass

    def stopper(part: str, done: int) -> Callable[[Event], None]:
        def watch(event: Event) -> None:
            if isinstance(event, Progress) and event.part == part and event.done >= done:
                raise Stop

        return watch

    run_analysis(recipe, tmp_path / "whole")
    for part, done in (("prefixes", 3), ("prefixes", 66), ("trajectories", 70), ("rollouts", 5)):
        with pytest.raises(Stop):
            run_analysis(recipe, tmp_path / "stopped", stopper(part, done))
    run_analysis(recipe, tmp_path / "stopped")
    for path in (tmp_path / "whole" / "analysis").iterdir():
        assert path.read_bytes() == (tmp_path / "stopped" / "analysis" / path.name).read_bytes(), path.name


def test_rollouts_that_an_earlier_version_graded_are_sampled_again(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(event: Event) -> None:
        files = tmp_path.glob("run/.work/analyze-*/analysis/rollouts.jsonl")
        if isinstance(event, Progress) and any(file.stat().st_size for file in files):
            raise InterruptedError

    with monkeypatch.context() as before:
        before.setattr("upft_mlx.studies.analyze.VERSION", 1)
        before.setattr(
            "upft_mlx.studies.analyze.grade", lambda task: Verdict(None, correct=len(task.completion) % 2 == 0)
        )
        with pytest.raises(InterruptedError):
            run_analysis(recipe, tmp_path / "run", stop)
    (cut,) = tmp_path.glob("run/.work/analyze-*/analysis/rollouts.jsonl")
    assert {row.grader for row in read_rows(cut, Rollout)} == {1}
    notes: list[Event] = []
    run_analysis(recipe, tmp_path / "run", notes.append)
    assert Note("rollouts.jsonl is sampled again: another version graded it") in notes
    run_analysis(recipe, tmp_path / "whole")
    for name in ("rollouts.jsonl", "analysis.json"):
        first, second = (tmp_path / run / "analysis" / name for run in ("whole", "run"))
        assert first.read_bytes() == second.read_bytes()


QUESTION = "Ann has 3 pens and buys 4 more. How many pens does Ann have?"


def prefixes(make_recipe: MakeRecipe, folder: Path, seed: int = 0, **settings: Any) -> list[list[list[int]]]:
    """Six sampled prefixes of each of six equal questions, two questions in a chunk."""
    rows = [json.dumps({"id": str(number), "question": QUESTION}) + "\n" for number in range(6)]
    folder.mkdir()
    (folder / "q.jsonl").write_text("".join(rows))
    recipe = make_recipe(
        seed=seed,
        problems={"builtin": None, "path": str(folder / "q.jsonl")},
        analyze={"samples": 6, "lengths": [8]},
        generate={"temperature": 1.5, "batch_size": 3, **settings},
    )
    run_analysis(recipe, folder)
    found = [row.completion_ids for row in read_rows(folder / "analysis" / "prefixes.jsonl", Solution)]
    return [found[start : start + 6] for start in range(0, 36, 6)]


def test_the_seed_and_the_question_decide_what_is_sampled(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    first, other = prefixes(make_recipe, tmp_path / "a"), prefixes(make_recipe, tmp_path / "b", seed=1)
    assert first != other
    chunks = [first[start : start + 2] for start in (0, 2, 4)]
    assert chunks[0] != chunks[1] != chunks[2] != chunks[0]
    assert len({tuple(ids) for group in first for ids in group}) > 2


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-6}])
def test_its_sampling_is_the_recipes(make_recipe: MakeRecipe, tmp_path: Path, settings: dict[str, Any]) -> None:
    found = prefixes(make_recipe, tmp_path / "run", **settings)
    assert len({tuple(ids) for group in found for ids in group}) == 1, "greedy"


def test_its_solutions_end_at_the_recipes_stop_texts(make_recipe: MakeRecipe, loaded: Loaded, tmp_path: Path) -> None:
    (whole, *_), *_ = prefixes(make_recipe, tmp_path / "whole", temperature=0.0)
    assert " " in loaded.tokenizer.decode(whole)
    (cut, *_), *_ = prefixes(make_recipe, tmp_path / "cut", temperature=0.0, stop=[" "])
    assert " " not in loaded.tokenizer.decode(cut)


def test_the_tokens_of_its_progress_never_fall(recipe: Recipe, tmp_path: Path) -> None:
    seen: dict[str, list[int]] = {}

    def watch(event: Event) -> None:
        if isinstance(event, Progress) and event.done < event.total:
            seen.setdefault(event.part, []).append(event.tokens)

    run_analysis(recipe, tmp_path, watch)
    assert set(seen) == {"prefixes", "trajectories", "rollouts", "states"}
    assert all(tokens == sorted(tokens) for tokens in seen.values())


def test_without_answers_only_self_consistency_is_measured_and_it_says_so(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": "Ann has 3 pens and buys 4 more. How many?"}\n' * 1)
    recipe = make_recipe(problems={"builtin": None, "path": str(tmp_path / "q.jsonl")}, analyze={"samples": 4})
    told: list[Event] = []
    found = run_analysis(recipe, tmp_path / "run", told.append)
    assert found.accuracy == ()
    assert found.forecast is None
    assert found.recommended.length is None
    assert any(isinstance(e, Note) and "no answer" in e.text for e in told)
    assert not (tmp_path / "run" / "analysis" / "rollouts.jsonl").exists()


def test_of_a_file_with_some_answers_those_problems_are_analyzed(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in ROWS.read_text().splitlines()[:20]]
    for number, line in enumerate(lines):
        if number % 2:
            del line["answer"]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = make_recipe(
        problems={"builtin": None, "path": str(tmp_path / "q.jsonl")},
        analyze={"samples": 2, "lengths": [4], "trajectories": 4, "rollout_problems": 4, "rollouts": 1},
        generate={"temperature": 1.0, "batch_size": 16},
    )
    told: list[Event] = []
    found = run_analysis(recipe, tmp_path / "run", told.append)
    assert any(isinstance(e, Note) and e.text.startswith("10 problems of 20 without an answer") for e in told)
    folder = tmp_path / "run" / "analysis"
    names = [
        {row.problem_id for row in read_rows(folder / f"{f}.jsonl", Solution)} for f in ("prefixes", "trajectories")
    ]
    assert names[0] == {line["id"] for line in lines}
    assert names[1] == {line["id"] for line in lines if "answer" in line}
    assert found.forecast
    assert found.forecast.problems == 10
    assert found.accuracy, "rollouts of questions with a right and a wrong solution"


def test_rollouts_continue_the_prefix_and_are_graded_with_it(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graded: list[str] = []

    def noting(task: Task) -> Verdict:
        graded.append(task.completion)
        return grade(task)

    monkeypatch.setattr(analyze_module, "grade", noting)
    run_analysis(recipe, tmp_path)
    rollouts = list(read_rows(tmp_path / "analysis" / "rollouts.jsonl", Rollout))
    texts = graded[-len(rollouts) :]
    trajectories = {s.completion for s in read_rows(tmp_path / "analysis" / "trajectories.jsonl", Solution)}
    long = [text for row, text in zip(rollouts, texts, strict=True) if row.length == 8]
    assert long
    assert all(any(text[:12] == whole[:12] for whole in trajectories) for text in long)


def test_trajectories_to_choices_are_told_apart_by_their_letter(
    make_recipe: MakeRecipe, loaded: Loaded, tmp_path: Path
) -> None:
    recipe, run = make_recipe(analyze={"lengths": [1]}), RunDir(tmp_path)
    problems = [Problem("p", "Which? (A) 1 (B) 2", "B"), Problem("q", "Which? (A) 3 (B) 4", "A")]
    texts = ("The correct option is (A).", "Therefore the correct option is (B).")
    made = [Solution(p.id, n, "full", [5 + n, 9], text, "stop") for p in problems for n, text in enumerate(texts)]
    write_rows(run.analysis / "trajectories.jsonl", made)
    starts = _Analyzer(recipe, loaded, problems, run, ignore).starts()
    right = {start.problem_id: start.ids for start in starts if start.arm == "correct"}
    assert right == {"p": [6], "q": [5]}
