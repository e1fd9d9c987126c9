"""The command and the rules on the embedded model: what is sampled, what trains, and that a stop changes no byte."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from xml.etree import ElementTree

import mlx.core as mx
import numpy as np
import pytest
from helpers.preview import previewed

from upft_mlx.data.on_disk import recipe_problems
from upft_mlx.data.problems import Problem
from upft_mlx.dataset.prefix import with_end
from upft_mlx.errors import ProblemsError, TrainingError
from upft_mlx.events import Event, Progress, StageStarted, ignore
from upft_mlx.forecasting.answers import Known, graded
from upft_mlx.forecasting.estimate import Advice, Forecast, Graded, Mean
from upft_mlx.forecasting.forecast import Forecaster, Made
from upft_mlx.forecasting.rated import _Rated
from upft_mlx.forecasting.states import Reader
from upft_mlx.grade.correct import is_correct
from upft_mlx.grade.graders import Verdict
from upft_mlx.inspection.browse import facts_of, settled_by
from upft_mlx.models.chat import Renderer
from upft_mlx.models.load import Loaded
from upft_mlx.pipeline import run_forecast, run_stage
from upft_mlx.recipe.schema import Recipe
from upft_mlx.recipe.studies import Selection
from upft_mlx.rows import Continuation, Solution, TrainingRow, read_rows, write_rows
from upft_mlx.rundir import RunDir
from upft_mlx.training.chunked_loss import nats

MakeRecipe = Callable[..., Recipe]
ROWS = Path(__file__).parents[2] / "upft_mlx" / "demo" / "train.jsonl"


@pytest.fixture
def small(make_recipe: MakeRecipe) -> Callable[..., Recipe]:
    def make(**changes: Any) -> Recipe:
        settings: dict[str, Any] = {
            "problems": {"builtin": "arithmetic", "limit": 24},
            "generate": {"temperature": 1.0, "batch_size": 16, "samples": 4},
            "prefix": {"length": 6, "structure_ratio": 0.25, "selection": "consensus"},
            "forecast": {"problems": 12, "samples": 4, "lengths": [4, 6]},
            "train": {"valid_ratio": 0.0},
        }
        for section, value in changes.items():
            settings[section] = {**settings.get(section, {}), **value}
        return make_recipe(**settings)

    return make


def stopping(part: str, done: int) -> Callable[[Event], None]:
    def watch(event: Event) -> None:
        if isinstance(event, Progress) and event.part == part and event.done >= done:
            raise InterruptedError

    return watch


def solutions(folder: Path) -> dict[str, list[Solution]]:
    found: dict[str, list[Solution]] = {}
    for row in read_rows(folder / "solutions.jsonl", Solution):
        found.setdefault(row.problem_id, []).append(row)
    return found


# What is read of the model.


def test_states_are_those_of_a_plain_pass(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits of 64 prefixes were held at once: ten times what sampling them takes."""
    held = Mock(wraps=nats)
    monkeypatch.setattr("upft_mlx.forecasting.states.nats", held)
    monkeypatch.setattr("upft_mlx.training.loss.chunk_positions", lambda _: 2)
    prompt, prefixes = [5, 6, 7, 8], [[10, 11, 12], [13], [10, 11, 12], []]
    found = Reader(loaded).states(prompt, prefixes, [1, 3])
    assert [len(call.args[0]) for call in held.call_args_list] == [2, 2, 2, 2, 1], "3 prefixes, padded to 3 tokens each"
    for length in (1, 3):
        for number, ids in enumerate(prefixes):
            tokens = mx.array([[*prompt, *ids[:length]]])
            expected = np.array(loaded.model.model(tokens)[0, -1])
            assert np.allclose(found[length].features[number], expected, atol=1e-3)
            logits = loaded.model(tokens)[0]
            likely = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
            steps = [likely[3 + place, token] for place, token in enumerate(ids[:length])]
            assert found[length].logprobs[number] == pytest.approx(np.mean(steps) if steps else 0.0, abs=1e-3)


def test_a_problem_whose_samples_are_all_empty_is_read(loaded: Loaded) -> None:
    """The model may end each of them at once."""
    samples: list[list[list[int]]] = [[[], []], [[], [3, 4]]]
    alone, beside = (Reader(loaded).states([5, 6, 7], ids, [4])[4] for ids in samples)
    assert np.allclose(alone.features, np.stack([beside.features[0]] * 2), atol=1e-3)
    assert alone.logprobs == [0.0, 0.0]


def test_what_ended_a_sample_counts_in_its_confidence_as_where_prefixes_are_sampled(
    small: MakeRecipe, loaded: Loaded
) -> None:
    """Without it, a sample that ended at once was rated 0, the highest there is, and always picked."""
    recipe, problem = small(), Problem("p", "2 + 2?", "4")
    prompt = Renderer(loaded.tokenizer, recipe.prompt).asked(problem.question)
    logits = loaded.model(mx.array([[*prompt, 10, 11]]))[0]
    likely = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))[len(prompt) - 1 :]
    end = loaded.eos_id
    samples = [
        Solution("p", 0, "full", [], "", "stop", None, end),
        Solution("p", 1, "full", [10, 11], "x", "stop"),
        Solution("p", 2, "full", [10, 11], "x", "length"),
    ]
    known = Known([problem], [Graded("p", samples, [False, True, True])])
    forecaster = Forecaster(recipe, loaded, known, None, "analyze", ignore)
    scores, _, _ = forecaster._scores([1, 2, 8])
    begin = [likely[0, 10], likely[1, 11]]
    both, closed = np.mean(begin), np.mean([*begin, likely[2, end]])
    for length, expected in {1: [begin[0]] * 2, 2: [both, both], 8: [closed, both]}.items():
        (rated,) = scores["prefix_confidence", length]
        assert rated == pytest.approx([likely[0, end], *expected], abs=1e-3)
    apart = Reader(loaded).states(prompt, [[end], [10, 11, end]], [8], [True, True])[8].features
    assert np.allclose(apart, Reader(loaded).states(prompt, [[], [10, 11]], [8])[8].features, atol=1e-3)


# The forecast.


def test_the_command_writes_what_it_returns(small: MakeRecipe, tmp_path: Path) -> None:
    found = run_forecast(small(), tmp_path)
    assert Forecast.load(json.loads((tmp_path / "forecast" / "forecast.json").read_text())) == found
    assert {rule.length for rule in found.rules} == {4, 6}
    names = {rule.selection for rule in found.rules}
    assert names >= {"first", "consensus", "majority_answer", "confidence", "longest", "label", "prefix_confidence"}
    assert (found.problems, found.samples) == (12, 4)
    ElementTree.fromstring((tmp_path / "forecast" / "curves.svg").read_text())
    text = (tmp_path / "forecast" / "forecast.md").read_text()
    assert found.advice.text in text
    assert "| consensus | 6 |" in text
    run = RunDir(tmp_path)
    samples = list(read_rows(run.answers / "samples.jsonl", Solution))
    greedy = list(read_rows(run.answers / "greedy.jsonl", Solution))
    assert (len(samples), len(greedy)) == (48, 12)
    continued = list(read_rows(run.forecast / "continuations.jsonl", Continuation))
    entries = run.entries()
    assert entries["answers"].tokens_sampled == sum(len(row.completion_ids) for row in (*samples, *greedy))
    assert entries["forecast"].tokens_sampled == found.tokens_sampled == sum(row.tokens for row in continued)


def test_it_uses_the_problems_with_answers_alone(small: MakeRecipe, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in ROWS.read_text().splitlines()[:20]]
    for number, line in enumerate(lines):
        if number % 2:
            del line["answer"]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    own = {"builtin": None, "limit": None, "path": str(tmp_path / "q.jsonl")}
    assert run_forecast(small(problems=own), tmp_path / "run").problems == 10
    with pytest.raises(ProblemsError, match="at least 8 problems with answers, found 7 of 14"):
        run_forecast(small(problems={**own, "limit": 14}), tmp_path / "few")


def test_a_stop_changes_no_byte(small: MakeRecipe, tmp_path: Path) -> None:
    run_forecast(small(), tmp_path / "whole")
    for part, done in (("samples", 20), ("greedy", 3), ("continuations", 5)):
        with pytest.raises(InterruptedError):
            run_forecast(small(), tmp_path / "cut", stopping(part, done))
    run_forecast(small(), tmp_path / "cut")
    for name in ("answers", "forecast"):
        for path in (tmp_path / "whole" / name).iterdir():
            assert path.read_bytes() == (tmp_path / "cut" / name / path.name).read_bytes(), path.name


def test_continuations_that_an_earlier_version_graded_are_sampled_again(
    small: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_forecast(small(), tmp_path / "whole")
    with monkeypatch.context() as before:
        before.setattr("upft_mlx.forecasting.forecast.VERSION", 1)
        before.setattr("upft_mlx.forecasting.forecast.grade", lambda _: Verdict("old", correct=True))
        with pytest.raises(InterruptedError):
            run_forecast(small(), tmp_path / "cut", stopping("continuations", 70))
    (cut,) = (tmp_path / "cut").glob(".work/forecast-*/forecast/continuations.jsonl")
    assert {row.grader for row in read_rows(cut, Continuation)} == {1}
    run_forecast(small(), tmp_path / "cut")
    for path in (tmp_path / "whole" / "forecast").iterdir():
        assert path.read_bytes() == (tmp_path / "cut" / "forecast" / path.name).read_bytes(), path.name


# The rules.


@pytest.mark.parametrize(
    ("selection", "parts"),
    [
        ("prefix_confidence", ("", "continued")),
        ("rollouts", ("", "continuations", "continued")),
        ("probe", ("", "ratings")),
    ],
)
def test_a_rule_that_rates_prefixes_continues_with_the_same_bytes(
    small: MakeRecipe, tmp_path: Path, selection: str, parts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    trusting(monkeypatch)
    recipe = small(prefix={"selection": selection, "length": 6, "structure_ratio": 0.25, "rollouts": 2})
    run_stage(recipe, tmp_path / "whole", "generate")
    for part in parts:
        with pytest.raises(InterruptedError):
            run_stage(recipe, tmp_path / "cut", "generate", stopping(part, 1))
    run_stage(recipe, tmp_path / "cut", "generate")
    assert (tmp_path / "whole" / "solutions.jsonl").read_bytes() == (tmp_path / "cut" / "solutions.jsonl").read_bytes()
    left = [path.name for path in (tmp_path / "whole").rglob("*.jsonl") if "work" in str(path)]
    assert left == []


def test_rollouts_that_an_earlier_version_graded_are_sampled_again_with_what_follows(
    small: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small(prefix={"selection": "rollouts", "length": 6, "structure_ratio": 0.25, "rollouts": 2})
    run_stage(recipe, tmp_path / "whole", "generate")
    with monkeypatch.context() as before:
        before.setattr("upft_mlx.forecasting.rated.VERSION", 1)
        before.setattr(
            "upft_mlx.forecasting.rated.grade", lambda task: Verdict(None, correct=len(task.completion) % 2 == 0)
        )
        with pytest.raises(InterruptedError):
            run_stage(recipe, tmp_path / "cut", "generate", stopping("continued", 1))
    run_stage(recipe, tmp_path / "cut", "generate")
    assert (tmp_path / "whole" / "solutions.jsonl").read_bytes() == (tmp_path / "cut" / "solutions.jsonl").read_bytes()


def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a probe that was fitted on a dozen problems pass: whether it is any good is another test's question."""
    monkeypatch.setattr("upft_mlx.forecasting.choice.CHANCE", -1.0)


def test_prefix_confidence_decodes_prefixes_and_picks_the_likeliest(small: MakeRecipe, tmp_path: Path) -> None:
    recipe = small(prefix={"selection": "prefix_confidence", "length": 6, "structure_ratio": 0.25})
    run_stage(recipe, tmp_path, "generate")
    run_stage(recipe, tmp_path, "build")
    found = solutions(tmp_path)
    assert len(found) == 24
    whole = {name for name, rows in found.items() if rows[0].kind == "full"}
    assert len(whole) == 6
    assert all(len(found[name]) == 1 for name in whole), "of a structure row the picked sample alone"
    prefixes = [row for name, rows in found.items() if name not in whole for row in rows]
    assert len(prefixes) == 18 * 4
    assert all(row.kind == "prefix" and len(row.completion_ids) <= 6 for row in prefixes)
    entry = RunDir(tmp_path).entry("generate")
    assert entry is not None
    assert 24 * 4 * 5 < entry.tokens_sampled <= 24 * 4 * 6 + 6 * 40
    for row in read_rows(tmp_path / "dataset" / "train.jsonl", TrainingRow):
        rows = found[row.problem_id]
        best = max(rows, key=lambda sample: sample.score or -99.0)
        assert row.sample == best.sample


def test_prefix_confidence_rates_whole_samples_of_the_answers_by_their_prefixes(
    small: MakeRecipe, loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the forecast does: not by what comes behind the prefix; and not with the logits of all positions at once."""
    held = Mock(wraps=nats)
    monkeypatch.setattr("upft_mlx.training.loss.nats", held)
    monkeypatch.setattr("upft_mlx.training.chunked_loss.nats", held)
    monkeypatch.setattr("upft_mlx.training.loss.chunk_positions", lambda _: 2)
    settings = {"selection": "prefix_confidence", "structure": "checked", "length": 6, "structure_ratio": 0.25}
    recipe = small(prefix=settings)
    run_stage(recipe, tmp_path, "generate")
    assert {len(call.args[0]) for call in held.call_args_list} == {2}
    problems, reader, compared = recipe_problems(recipe)[:12], Reader(loaded), 0
    renderer, found = Renderer(loaded.tokenizer, recipe.prompt), solutions(tmp_path)
    for problem in problems:
        rows = found.get(problem.id, [])
        assert all(row.kind == "full" for row in rows)
        if ids := [with_end(row, loaded.eos_id) for row in rows]:
            expected = reader.states(renderer.asked(problem.question), ids, [6])[6].logprobs
            assert [row.score for row in rows] == pytest.approx(expected, rel=1e-3, abs=1e-5)
            compared += len(rows)
    assert compared > 12


def test_rollouts_are_judged_by_answers_or_by_votes(small: MakeRecipe, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in ROWS.read_text().splitlines()[:8]]
    for line in lines[4:]:
        del line["answer"]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    own = {"builtin": None, "limit": None, "path": str(tmp_path / "q.jsonl")}
    recipe = small(problems=own, prefix={"selection": "rollouts", "length": 6, "structure_ratio": 0.0, "rollouts": 2})
    run_stage(recipe, tmp_path / "run", "generate")
    scores = [row.score for rows in solutions(tmp_path / "run").values() for row in rows]
    assert set(scores) <= {0.0, 0.5, 1.0}
    assert len(set(scores)) > 1


def test_the_probe_samples_no_problem_twice_and_trains_on_right_samples(
    small: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusting(monkeypatch)
    recipe = small(prefix={"selection": "probe", "length": 6, "structure_ratio": 0.25})
    run_stage(recipe, tmp_path, "generate")
    run_stage(recipe, tmp_path, "build")
    answers = {line["id"]: line["answer"] for line in map(json.loads, ROWS.read_text().splitlines()[:24])}
    known = list(answers)[:12]
    found = solutions(tmp_path)
    for name, rows in found.items():
        if name in known:
            assert all(row.kind == "full" and is_correct(row.completion, answers[name]) for row in rows)
        else:
            assert [row.kind for row in rows] == ["prefix"] * 4
    trained = read_rows(tmp_path / "dataset" / "train.jsonl", TrainingRow)
    structure = [row for row in trained if row.kind == "structure"]
    assert 1 <= len(structure) <= 6
    assert {row.problem_id for row in structure} <= set(known)
    entry = RunDir(tmp_path).entry("generate")
    assert entry is not None
    assert entry.tokens_sampled <= 12 * 4 * 6, "the answers' samples are in the ledger under answers"


def test_choices_are_graded_by_their_letters(make_recipe: MakeRecipe, loaded: Loaded, tmp_path: Path) -> None:
    problems, run = [Problem(str(i), "Which?", "ABC"[i]) for i in range(3)], RunDir(tmp_path)
    rows = [Solution(p.id, 0, "full", [1], "Therefore the correct option is (C).", "stop") for p in problems]
    write_rows(run.solutions, rows)
    assert [item.right for item in graded(problems, run.solutions)] == [(False,), (False,), (True,)]
    recipe = make_recipe(generate={"temperature": 1.0, "samples": 2}, prefix={"length": 6, "selection": "rollouts"})
    rated = _Rated(recipe, loaded, problems, run, ignore)._by_rollouts({row.problem_id: [row] for row in rows})
    assert [row.score for group in rated.values() for row in group] == [0, 0, 1]


def test_a_probe_that_tells_nothing_apart_refuses_itself(small: MakeRecipe, tmp_path: Path) -> None:
    recipe = small(prefix={"selection": "probe", "length": 1, "structure_ratio": 0.25})
    with pytest.raises(TrainingError, match=r"prefix\.selection: probe: at t = 1 it .*more answers"):
        run_stage(recipe, tmp_path, "generate")


def test_auto_takes_the_rule_of_the_forecast_and_later_commands_know_it(
    small: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small(prefix={"selection": "auto", "length": 6, "structure_ratio": 0.25})
    monkeypatch.setattr("upft_mlx.forecasting.choice.chosen_by_auto", lambda rules, length: rules[1])
    events: list[Event] = []
    run_stage(recipe, tmp_path, "generate", events.append)
    [said] = [event.detail for event in events if isinstance(event, StageStarted) and event.stage == "generate"]
    totals = {event.total for event in events if isinstance(event, Progress) and event.stage == "generate"}
    assert totals == {int(said.split()[0])}, "what is announced is what is sampled"
    monkeypatch.undo()
    assert json.loads((tmp_path / "recipe.json").read_text())["prefix"]["selection"] == "consensus"
    made = run_stage(recipe, tmp_path, "build")
    assert any(row.kind == "structure" for row in read_rows(tmp_path / "dataset" / "train.jsonl", TrainingRow))
    assert previewed(recipe, tmp_path)["source"] == "dataset", "a preview knows it as well"
    settled = settled_by(recipe, RunDir(tmp_path))
    assert (settled.prefix.selection, settled.prefix.structure) == ("consensus", "checked")
    took = {stage.stage: stage.tokens_sampled for stage in facts_of(RunDir(tmp_path)).stages}
    assert list(took) == ["answers", "choose", "generate", "build"]
    assert {stage.stage: stage.tokens_sampled for stage in made.stages} == took
    assert "| answers | 12 problems" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(("trusts", "lower"), [(False, False), (True, True)])
def test_auto_takes_no_probe_that_training_would_refuse_and_says_why_nothing_is_left(
    small: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusts: bool, lower: bool
) -> None:
    """It chose the probe, and the stage after it refused that on each call."""
    worth = Mean(0.3, (0.2, 0.4))
    greedy = Mean(-0.2, (-0.3, -0.1)) if lower else None

    def forecast(self: Forecaster, asked: Sequence[Selection], lengths: Sequence[int]) -> Made:
        found = make(self, asked, lengths)
        rated = [
            replace(r, forecast=worth if r.selection == "probe" else None, greedy=greedy) for r in found.forecast.rules
        ]
        area: dict[int, dict[str, Any] | None] = {
            6: {"mean": 0.55, "ci95": [0.51 if trusts else 0.45, 0.6], "problems": 12}
        }
        said = replace(found.forecast, rules=tuple(rated), probe=area, advice=Advice("probe", 6, "train with probe"))
        return replace(found, forecast=said)

    make = Forecaster.make
    monkeypatch.setattr(Forecaster, "make", forecast)
    recipe = small(prefix={"selection": "auto", "length": 6, "structure_ratio": 0.25})
    reason = "what greedy decoding takes is better" if lower else "the probe is not measurably better than chance"
    with pytest.raises(TrainingError, match=f"no rule is worth training with: {reason}"):
        run_stage(recipe, tmp_path, "generate")


def test_auto_refuses_to_train_where_no_forecast_is_above_zero(
    small: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("upft_mlx.forecasting.choice.chosen_by_auto", lambda rules, length: None)
    recipe = small(prefix={"selection": "auto", "length": 6, "structure_ratio": 0.25})
    with pytest.raises(TrainingError, match=r"no rule is worth training with: .*upft forecast"):
        run_stage(recipe, tmp_path, "generate")
    assert not (tmp_path / "solutions.jsonl").exists()
    assert run_forecast(recipe, tmp_path).problems == 12, "the forecast itself can still be made"
