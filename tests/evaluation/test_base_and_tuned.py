"""Base and tuned on one loaded model: the adapter on and off, rows that survive kills, a look at less at no cost."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import MODEL
from helpers.base_and_tuned import write_adapter
from helpers.kill import kill_again_and_again, lines_in

from upft_mlx import pipeline
from upft_mlx.cli.main import cli
from upft_mlx.errors import ModelError
from upft_mlx.evaluation import evaluate as stage_evaluate
from upft_mlx.events import EvaluationStarted, Event, Graded, Note, Progress
from upft_mlx.grade import workers
from upft_mlx.grade.correct import VERSION, is_correct
from upft_mlx.grade.graders import Task, Verdict
from upft_mlx.models.adapters import AdapterSwitch, load_adapter
from upft_mlx.models.load import Loaded, load, load_for
from upft_mlx.recipe.load import load_recipe
from upft_mlx.recipe.override import with_benchmarks
from upft_mlx.recipe.schema import Quantize, Recipe
from upft_mlx.rows import EvaluationRow, read_rows
from upft_mlx.rundir import RunDir

MakeRecipe = Callable[..., Recipe]


def logits(loaded: Loaded) -> Any:
    import mlx.core as mx

    ids = loaded.tokenizer.encode("Mia has 4 apples and buys 3 more.")
    found = loaded.model(mx.array([ids]))
    mx.eval(found)
    return found


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapter"))


@pytest.mark.parametrize("quantize", [None, Quantize(bits=8, group_size=32)])
def test_off_is_the_base_bit_for_bit_and_on_the_adapter(tmp_path: Path, quantize: Quantize | None) -> None:
    import mlx.core as mx

    folder = write_adapter(tmp_path, quantize)
    loaded, tuned = load(MODEL, quantize=quantize), load(MODEL, quantize=quantize)
    base = logits(loaded)
    load_adapter(tuned, folder)
    expected = logits(tuned)
    assert not mx.array_equal(base, expected)
    switch = AdapterSwitch(loaded, folder)
    assert mx.array_equal(logits(loaded), expected)
    for variant, wanted in (("base", base), ("base", base), ("tuned", expected), ("base", base)):
        switch(variant)  # type: ignore[arg-type]
        assert mx.array_equal(logits(loaded), wanted)


def evaluated(
    recipe: Recipe, folder: Path, adapter: Path | None = None
) -> tuple[dict[str, dict[str, bytes]], list[Event]]:
    """The bytes of all rows and of the summary, and the events."""
    events: list[Event] = []
    pipeline.run_stage(recipe, folder, "evaluate", events.append, adapter)
    return outcome(folder), events


def outcome(folder: Path) -> dict[str, dict[str, bytes]]:
    looks = list(folder.glob("looks/*/evaluation"))
    evaluation = looks[0] if looks else RunDir(folder).evaluation
    rows = {str(path.relative_to(evaluation)): path.read_bytes() for path in sorted(evaluation.glob("[!.]*/*.jsonl"))}
    return {"rows": rows, "summary": {"": (evaluation / "summary.json").read_bytes()}}


BENCHMARKS = [
    {"name": "arithmetic", "limit": 9},
    {"name": "arithmetic", "label": "sampled", "limit": 5, "samples": 3, "temperature": 0.7},
]


@pytest.fixture
def recipe(make_recipe: MakeRecipe) -> Recipe:
    return make_recipe(evaluate={"benchmarks": BENCHMARKS, "batch_size": 2, "max_tokens": 20})


def test_an_adapter_from_elsewhere_is_compared_and_the_model_is_loaded_once(
    recipe: Recipe, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Path] = []

    def counting(recipe: Recipe, path: Path) -> Loaded:
        loads.append(path)
        return load_for(recipe, path)

    monkeypatch.setattr("upft_mlx.job.load_for", counting)
    _, events = evaluated(recipe, tmp_path / "run", adapter)
    assert len(loads) == 1
    summary = json.loads((tmp_path / "run/evaluation/summary.json").read_text())["benchmarks"]
    assert summary["arithmetic"].keys() == {"base", "tuned", "paired", "rounding"}
    variants = [event.variant for event in events if isinstance(event, Graded) and event.benchmark == "arithmetic"]
    changes = sum(a != b for a, b in itertools.pairwise(variants))
    assert changes == 9, "9 completions in chunks of 2: the variants take turns, chunk by chunk"
    base = [r.completion for r in read_rows(tmp_path / "run/evaluation/arithmetic/base.jsonl", EvaluationRow)]
    tuned = [r.completion for r in read_rows(tmp_path / "run/evaluation/arithmetic/tuned.jsonl", EvaluationRow)]
    assert base != tuned
    paths = (tmp_path / "run/evaluation").glob("[!.]*/*.jsonl")
    entry = RunDir(tmp_path / "run").entry("evaluate")
    assert entry is not None
    assert entry.tokens_sampled == sum(row.tokens for path in paths for row in read_rows(path, EvaluationRow))


@pytest.mark.parametrize("prompt", [None, "Ben has 3 pens and gets 4 more. Ben gives 2 to Eva. " * 4 + "{question}"])
def test_neither_variant_depends_on_whether_the_other_is_measured_with_it(
    make_recipe: MakeRecipe, tmp_path: Path, prompt: str | None
) -> None:
    """Also where prompts share much: what they share has other keys and values with the adapter on."""
    few: list[dict[str, Any]] = [{"limit": 5}, {"limit": 3, "samples": 2, "temperature": 1.5}]
    benchmarks = [{**benchmark, "prompt": prompt, **less} for benchmark, less in zip(BENCHMARKS, few, strict=True)]
    recipe = make_recipe(evaluate={"benchmarks": benchmarks, "batch_size": 2, "max_tokens": 16})
    adapter = write_adapter(tmp_path / "adapter", size=0.3)
    runs = [tmp_path / folder / "run" for folder in ("alone", "both")]  # side by side they would share base's answers
    alone, _ = evaluated(recipe, runs[0])
    both, _ = evaluated(recipe, runs[1], adapter)
    assert alone["rows"]["arithmetic/base.jsonl"] == both["rows"]["arithmetic/base.jsonl"]
    assert alone["rows"]["sampled/base.jsonl"] == both["rows"]["sampled/base.jsonl"]
    later, events = evaluated(recipe, runs[0], adapter)
    assert {(event.variant, event.resumed) for event in events if isinstance(event, Graded)} == {
        ("base", True),
        ("tuned", False),
    }
    assert later == both


def test_another_adapter_measures_tuned_again_and_keeps_base(recipe: Recipe, adapter: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first, _ = evaluated(recipe, run, adapter)
    other = write_adapter(tmp_path / "other", size=0.08)
    second, events = evaluated(recipe, run, other)
    resumed = {(e.variant, e.resumed) for e in events if isinstance(e, Graded)}
    assert resumed == {("base", True), ("tuned", False)}
    assert first["rows"]["sampled/tuned.jsonl"] != second["rows"]["sampled/tuned.jsonl"]
    back, events = evaluated(recipe, run, adapter)
    assert back == first
    assert not [event for event in events if isinstance(event, Graded)], "the whole version came back"


def test_a_look_at_less_does_not_cost_the_whole(recipe: Recipe, tmp_path: Path) -> None:
    run = tmp_path / "run"
    whole, _ = evaluated(recipe, run)
    few = with_benchmarks(recipe, limit=3)
    less, _ = evaluated(few, run)
    assert json.loads(less["summary"][""])["benchmarks"]["arithmetic"]["base"]["n"] == 3
    again, events = evaluated(recipe, run)
    assert again == whole
    assert not [event for event in events if isinstance(event, Graded)], "the whole version came back"


def measured(make_recipe: MakeRecipe, folder: Path, benchmarks: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """The base's rows by benchmark, three completions in a chunk; hot where a benchmark does not say otherwise."""
    evaluate = {"benchmarks": benchmarks, "temperature": 1.5, "batch_size": 3, "max_tokens": 30}
    evaluated(make_recipe(evaluate=evaluate, **changes), folder)
    labels = [benchmark["label"] for benchmark in benchmarks]
    return {label: [*read_rows(RunDir(folder).rows_of(label, "base"), EvaluationRow)] for label in labels}


def test_each_benchmark_has_its_own_temperature_and_limit_and_all_the_recipes_seed(
    make_recipe: MakeRecipe, loaded: Loaded, tmp_path: Path
) -> None:
    few: dict[str, Any] = {"name": "arithmetic", "limit": 6}
    benchmarks = [
        {**few, "label": "greedy", "temperature": 0.0},
        {**few, "label": "short", "temperature": 0.0, "max_tokens": 5},
        {**few, "label": "hot"},
    ]
    rows, other = (measured(make_recipe, tmp_path / str(seed), benchmarks, seed=seed) for seed in (0, 1))
    texts = {label: [row.completion for row in found] for label, found in rows.items()}
    assert [row.completion for row in other["greedy"]] == texts["greedy"]
    assert [row.completion for row in other["hot"]] != texts["hot"] != texts["greedy"]
    assert [(row.tokens, row.finish_reason) for row in rows["short"]] == [(5, "length")] * 6
    assert all(whole.startswith(short) for whole, short in zip(texts["greedy"], texts["short"], strict=True))
    ended = [row for row in rows["greedy"] if row.finish_reason == "stop"]
    assert ended
    assert [len(loaded.tokenizer.encode(row.completion)) for row in ended] == [row.tokens for row in ended], "no EOS"
    entry = RunDir(tmp_path / "0").entry("evaluate")
    assert entry is not None
    again = [[*read_rows(RunDir(tmp_path / "0").rows_of(label, "again"), EvaluationRow)] for label in rows]
    assert entry.tokens_sampled == sum(row.tokens for found in (*rows.values(), *again) for row in found)


def test_equal_questions_of_a_benchmark_get_answers_of_their_own(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """One question asked nine times, in three chunks: with the same random numbers all would be the same."""
    row = {"question": "Ann has 3 pens and buys 4 more. How many pens does Ann have?", "answer": "7"}
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({**row, "id": str(i)}) + "\n" for i in range(9)))
    same = {"name": "same", "label": "same", "path": str(tmp_path / "q.jsonl"), "answer": "answer"}
    texts = [row.completion for row in measured(make_recipe, tmp_path / "run", [same])["same"]]
    assert texts[:3] != texts[3:6] != texts[6:] != texts[:3]


def test_progress_counts_both_variants(recipe: Recipe, adapter: Path, tmp_path: Path) -> None:
    _, events = evaluated(recipe, tmp_path / "run", adapter)
    assert EvaluationStarted((("arithmetic", 9), ("sampled", 15))) in events
    bars = [event for event in events if isinstance(event, Progress) and event.part == "arithmetic"]
    assert {event.total for event in bars} == {18}
    assert bars[-1].done == 18
    assert [event.done for event in bars] == sorted(event.done for event in bars)
    assert bars[-1].peak_memory_bytes > 0


def test_a_missing_adapter_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        evaluated(recipe, tmp_path / "run", tmp_path / "nowhere")


def test_answers_that_cannot_be_graded_in_time_are_wrong_and_said_to_be(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(tasks: list[Task]) -> list[Verdict]:
        return [Verdict(None, correct=False, gave_up=True) for _ in tasks]

    monkeypatch.setattr(stage_evaluate, "grade_all", slow)
    recipe = make_recipe(evaluate={"benchmarks": [{"name": "arithmetic", "limit": 4}]})
    _, events = evaluated(recipe, tmp_path / "run")
    notes = [event.text for event in events if isinstance(event, Note)]
    assert f"arithmetic: 4 answers took too long to grade ({workers.SECONDS:g} s) and count as wrong" in notes


# Kills.


@pytest.mark.slow
def test_evaluation_killed_again_and_again_has_the_same_rows_and_summary(tmp_path: Path) -> None:
    """The embedded model at 8 bits, both benchmarks of the quickstart, both variants."""
    settings = ("evaluate.batch_size=4", "evaluate.max_tokens=24")
    recipe = with_benchmarks(load_recipe("quickstart", settings), limit=10)
    adapter = write_adapter(tmp_path / "adapter", recipe.quantize)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    pipeline.run_stage(recipe, whole, "evaluate", adapter=adapter)
    command = ["evaluate", "quickstart", "--limit", "10", "--adapter", str(adapter), "--run-dir", str(killed)]
    command += [f"--set={setting}" for setting in settings]
    total = lines_in(*whole.glob("evaluation/*/*.jsonl"))
    assert total == 2 * (10 + 4 * 10) + 1 + 4, "and a tenth of the problems at another batch size"
    rows = "looks/*/.work/*/evaluation/*/*.jsonl"
    kill_again_and_again(command, lambda: lines_in(*killed.glob(rows)), total, 3, seed=7)
    assert outcome(killed) == outcome(whole)


def test_runs_in_one_folder_share_bases_answers_while_these_are_as_written(
    make_recipe: MakeRecipe, tmp_path: Path, adapter: Path
) -> None:
    recipe = make_recipe(evaluate={"benchmarks": [{"name": "arithmetic", "limit": 4}], "max_tokens": 12})

    def asked(name: str, recipe: Recipe = recipe) -> set[str]:
        _, events = evaluated(recipe, tmp_path / name, adapter)
        return {event.variant for event in events if isinstance(event, Graded) and not event.resumed}

    assert asked("first") == {"base", "tuned"}
    assert asked("second") == {"tuned"}, "an adapter's answers are a run's own"
    rows = [RunDir(tmp_path / name).rows_of("arithmetic", "base") for name in ("first", "second")]
    assert rows[0].read_bytes() == rows[1].read_bytes()
    other = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"max_tokens": 10})})
    assert asked("third", other) == {"base", "tuned"}
    for path in rows:
        path.write_text(path.read_text().replace('"completion": "', '"completion": "changed '))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "ledger.json").write_text("{")
    assert asked("fourth") == {"base", "tuned"}


def test_several_adapters_are_compared_in_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [str(write_adapter(tmp_path / name, size=size)) for name, size in (("a", 0.01), ("b", 0.5))]
    options = ["--adapter", folders[0], "--adapter", folders[1], "--limit", "3", "--set", "evaluate.max_tokens=12"]
    done = CliRunner().invoke(cli, ["evaluate", "--model", "builtin:arithmetic", *options, "--json"])
    assert done.exit_code == 0, done.output
    (table,) = json.loads(done.stdout)["benchmarks"].values()
    assert [model["name"] for model in table["models"]] == ["base", *folders]
    assert [(pair["first"], pair["second"]) for pair in table["pairs"]] == [
        ("base", folders[0]),
        ("base", folders[1]),
        (folders[0], folders[1]),
    ]
    twice = CliRunner().invoke(
        cli, ["evaluate", "--model", "m", "--adapter", folders[0], "--adapter", f"{folders[0]}/"]
    )
    assert twice.exit_code == 2


@pytest.mark.parametrize("private", [False, True])
def test_rows_that_an_earlier_version_graded_are_graded_again_or_not_taken_over(
    make_recipe: MakeRecipe, tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch, private: bool
) -> None:
    row = {"question": "Ann has 3 pens and buys 4 more. How many pens does Ann have?", "answer": "7"}
    (tmp_path / "q.jsonl").write_text("".join(json.dumps({**row, "id": str(i)}) + "\n" for i in range(4)))
    asked = {"name": "own", "label": "own", "path": str(tmp_path / "q.jsonl"), "answer": "answer", "private": private}
    recipe = make_recipe(evaluate={"benchmarks": [asked], "max_tokens": 12})
    with monkeypatch.context() as before:
        before.setattr(stage_evaluate, "VERSION", 1)
        before.setattr(stage_evaluate, "grade_all", lambda tasks: [Verdict("old", correct=True) for _ in tasks])
        evaluated(recipe, tmp_path / "first", adapter)
    _, events = evaluated(recipe, tmp_path / "second", adapter)
    taken_over = {event.variant for event in events if isinstance(event, Graded) and event.resumed}
    assert taken_over == (set() if private else {"base"})
    for name in ("base", "again", "tuned"):
        rows = [*read_rows(RunDir(tmp_path / "second").rows_of("own", name), EvaluationRow)]
        assert {row.grader for row in rows} == {VERSION}
        assert not any(row.answer == "old" for row in rows)
        assert private or [row.correct for row in rows] == [is_correct(row.completion, "7") for row in rows]
