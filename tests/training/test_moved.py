"""How far a model moved: by hand, on a model, in the report and its verdict."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import MODEL
from helpers.facts import MEASURED, results, run_report
from helpers.families import write_family

from upft_mlx import pipeline
from upft_mlx.data.benchmarks import BenchmarkSet, load_benchmark, resolve
from upft_mlx.data.on_disk import recipe_problems
from upft_mlx.data.problems import Problem
from upft_mlx.dataset.instruction import instructed
from upft_mlx.events import Note
from upft_mlx.models.adapters import add_lora, load_adapter
from upft_mlx.models.chat import Renderer
from upft_mlx.models.load import Loaded, load
from upft_mlx.recipe.schema import Recipe
from upft_mlx.results import training_report
from upft_mlx.results.facts import TrainingFacts
from upft_mlx.results.report import collect, markdown
from upft_mlx.rows import TrainingRow, write_json, write_rows
from upft_mlx.rundir import RunDir
from upft_mlx.sampling.decoding import Request
from upft_mlx.sampling.draw import Sampling
from upft_mlx.sampling.same_logits import scalar
from upft_mlx.sampling.sampler import sample_chunk
from upft_mlx.training import train
from upft_mlx.training.moved import Answered, Movement, Place, in_words, looked_at, opening, summarize, warnings
from upft_mlx.training.movement import held_out, movement

MakeRecipe = Callable[..., Recipe]
LENGTH = 10


def answered(text: str, first: int = 1) -> Answered:
    return Answered([first] * 10, text)


BASE = [answered("To solve this problem"), answered("To solve this, we"), answered("Ann has 3")]


def found(tuned: Sequence[Answered], along: Sequence[Sequence[Place]] = ()) -> Movement:
    return summarize(BASE, tuned, along, "evaluation prompts")


def test_answers_are_compared_by_opening_first_token_and_chance_to_stop() -> None:
    tuned = [answered("To solve this now"), answered("3 + 4 = 7", first=2), answered("3 + 4 is")]
    along = [[Place(0.5, (0.0, 0.5)), Place(0.1, (0.1, 0.5))], [Place(0.1, (0.0, 0.0))], []]
    moved = found(tuned, along)
    assert moved.base.stop == pytest.approx(0.1 / 3)
    assert moved.base.openings == [(text, 1 / 3) for text in ("To solve this", "To solve this,", "Ann has 3")]
    assert moved.base.distinct == 3
    assert moved.tuned.stop == pytest.approx(0.75 / 3)
    assert moved.same_first_token == pytest.approx(2 / 3)
    assert moved.kl == pytest.approx(0.7 / 3)
    assert moved.kl_by_position == pytest.approx([0.3, 0.1])
    assert moved.openings_kept == 1
    assert in_words(moved) == (
        "moved on 3 evaluation prompts (greedy): KL 0.233 nats per position, first token the same in 67 %, chance to "
        "stop within 2 tokens 3 % to 25 %, 1 of 3 openings kept"
    )


def test_the_five_most_frequent_openings_are_kept_with_their_shares() -> None:
    texts = [word for number, word in enumerate("abcdefg") for _ in range(number + 1)]
    variant = summarize([answered(t) for t in texts], [answered(t) for t in texts], [], "prompts").base
    assert variant.openings == [(word, count / 28) for word, count in zip("gfedc", range(7, 2, -1), strict=True)]
    assert variant.distinct == 7


@pytest.mark.parametrize(
    ("stop", "texts", "expected"),
    [
        pytest.param(0.29, ("To solve this",) * 3, [], id="9 points more"),
        pytest.param(0.31, ("To solve this",) * 3, ["end 31 % of base's answers within 1 tokens, base 20"], id="over"),
        pytest.param(0.0, ("To solve this",) * 3, [], id="less"),
        pytest.param(0.2, ("x", "To solve", "Ann has 4"), ["no tuned answer begins"], id="no opening"),
        pytest.param(0.2, ("x", "y", "Ann has 3"), [], id="one opening survives"),
        pytest.param(0.9, ("x", "y", "z"), ["end 90 %", "no tuned answer begins"], id="both"),
    ],
)
def test_the_verdict_warns_of_early_stops_and_of_lost_openings(
    stop: float, texts: Sequence[str], expected: list[str]
) -> None:
    lines = warnings(found([answered(text) for text in texts], [[Place(0.1, (0.2, stop))]] * 3))
    assert len(lines) == len(expected)
    for line, part in zip(lines, expected, strict=True):
        assert part in line
        assert line.startswith("warning: ")
        assert "3 evaluation prompts" in line


def test_the_verdict_warns_of_benchmarks_whose_answers_became_over_a_tenth_shorter() -> None:
    def variants(tuned: float) -> dict[str, Any]:
        return {"base": {"mean_tokens": 200.0}, "tuned": {"mean_tokens": tuned}, "paired": {}}

    benchmarks = {
        "a": variants(180.0),
        "b": variants(179.0),
        "c": variants(260.0),
        "d": {"base": {"mean_tokens": 200.0}},
    }
    (line,) = training_report.warnings(TrainingFacts(), results(benchmarks))
    assert line == ("warning: b: tuned answers are 10 % shorter (200 to 179 tokens): it may have learned to stop early")


@pytest.mark.parametrize(
    ("changes", "warned"),
    [((0.1,), False), ((0.1, 0.0), False), ((0.0,), True), ((-0.1,), True), ((0.1, -0.1), True), ((), True)],
)
def test_only_a_model_known_to_be_better_and_nowhere_worse_may_have_moved_far(
    changes: Sequence[float], warned: bool, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    run = RunDir(tmp_path)
    variant = {**MEASURED, "answer_found": 1.0}
    benchmarks = {
        str(number): {
            "base": variant,
            "tuned": variant,
            "paired": {"delta": delta, "p_value": 0.01 if delta else 1.0, "ci95": [delta - 0.01, delta + 0.01]},
        }
        for number, delta in enumerate(changes)
    }
    write_json(run.summary, {"benchmarks": benchmarks})
    write_json(run.movement, found([answered("x")] * 3, [[Place(0.1, (0.2, 0.9))]] * 3).dump())
    lines = collect(make_recipe(), run, ["train", "evaluate"]).remarks
    assert any("no tuned answer begins" in line for line in lines) is warned


def test_an_opening_can_leave_neither_its_cell_nor_its_line() -> None:
    hostile = "a`b|c\x1b[31m\u202e\n| # Title\n"
    assert opening(hostile) == "a`b|c [31m |"
    moved = summarize([answered(hostile)], [answered("")], [[]], "prompts")
    text = markdown(run_report({"training": TrainingFacts(movement=moved)}))
    row = next(line for line in text.splitlines() if "a`b" in line)
    assert row == "| ``a`b/c [31m /`` | 100 % | `  ` | 100 % |"
    assert "\x1b" not in text


# On a model.


def prepared(recipe: Recipe, tmp_path: Path, size: float, model: Path = MODEL) -> tuple[Loaded, RunDir]:
    """A model with LoRA layers as training leaves it, and a run whose adapter/ has other weights of this size."""
    loaded, run = load(model), RunDir(tmp_path / "run")
    config = add_lora(loaded, recipe.lora, 0)
    mx.random.seed(3)
    arrays = {
        name: mx.random.normal(module.lora_b.shape) * size if which == "lora_b" else module.lora_a
        for path, module in loaded.model.named_modules()
        if "lora_a" in module
        for which in ("lora_a", "lora_b")
        for name in (f"{path}.{which}",)
    }
    run.adapter.mkdir(parents=True)
    mx.save_safetensors(str(run.adapter / "adapters.safetensors"), arrays)
    (run.adapter / "adapter_config.json").write_text(json.dumps(config))
    loaded.model.train()
    return loaded, run


def prompts_of(recipe: Recipe, loaded: Loaded) -> list[list[int]]:
    renderer = Renderer(loaded.tokenizer, recipe.prompt)
    return [renderer.asked(problem.question) for problem in recipe_problems(recipe)[:5]]


def test_an_adapter_without_effect_moves_nothing(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    loaded, run = prepared(make_recipe(), tmp_path, 0.0)
    moved = movement(make_recipe(), loaded, run, "prompts", prompts_of(make_recipe(), loaded))
    assert moved.kl == pytest.approx(0.0, abs=1e-9)
    assert (moved.same_first_token, moved.base) == (1.0, moved.tuned)
    assert warnings(moved) == []


@pytest.mark.parametrize("family", [None, "gemma2"])
def test_the_numbers_are_those_of_base_and_of_the_saved_adapter(
    family: str | None, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """Gemma 2 is sampled one at a time: mlx-lm's batches give it other logits, or with 4 heads of keys an error."""
    changes = {"num_attention_heads": 8, "num_key_value_heads": 4} if family == "gemma2" else {}
    model = MODEL if family is None else write_family(family, tmp_path / "model", **changes)
    recipe = make_recipe(prefix={"length": LENGTH})
    loaded, run = prepared(recipe, tmp_path, 0.05, model)
    prompts = prompts_of(make_recipe(), loaded)
    moved = movement(recipe, loaded, run, "prompts", prompts)
    base, tuned = load(model), load(model)
    load_adapter(tuned, run.adapter)
    said: dict[str, list[list[int]]] = {}
    for name, variant, size in (("base", base, LENGTH + 8), ("tuned", tuned, 12)):
        made = sample_chunk(variant, [Request(ids, size) for ids in prompts], Sampling(0.0), seed=0)
        said[name] = [answer.ids for answer in made]
        texts = {opening(base.tokenizer.decode(ids[:12])) for ids in said[name]}
        assert {text for text, _ in getattr(moved, name).openings} == texts
    divergences: list[list[float]] = []
    stops = {"base": 0.0, "tuned": 0.0}
    for prompt, ids in zip(prompts, said["base"], strict=True):
        p, q = (_log_probabilities(variant, [*prompt, *ids])[len(prompt) - 1 : -1] for variant in (base, tuned))
        divergences.append((mx.exp(p) * (p - q)).sum(axis=-1).tolist())  # type: ignore[arg-type]
        for name, logs in (("base", p), ("tuned", q)):
            ends = mx.stack([mx.exp(logs[:, number]) for number in base.eos_ids]).sum(axis=0)
            stops[name] += (1 - scalar((1 - ends).prod())) / 5
    flat = [value for row in divergences for value in row]
    assert moved.kl == pytest.approx(sum(flat) / len(flat), rel=1e-3)
    assert moved.kl > 0.01
    first = sum(row[0] for row in divergences) / 5
    assert moved.kl_by_position[0] == pytest.approx(first, rel=1e-3)
    for name, chance in stops.items():
        assert getattr(moved, name).stop == pytest.approx(chance, abs=1e-4)
    assert moved.within == LENGTH + 8


def _log_probabilities(loaded: Loaded, ids: list[int]) -> mx.array:
    logits = loaded.model(mx.array([ids]))[0].astype(mx.float32)
    found: mx.array = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return found


def test_prompts_are_held_out_where_something_is(make_recipe: MakeRecipe, loaded: Loaded, tmp_path: Path) -> None:
    recipe = instructed(make_recipe(evaluate={"benchmarks": [{"name": "arithmetic", "limit": 40}]}), MODEL)
    sets = [BenchmarkSet(entry, load_benchmark(entry)) for entry in resolve(recipe.evaluate)]
    problems, run = [Problem(str(n), f"What is {n}?", None) for n in range(30)], RunDir(tmp_path)
    decode = loaded.tokenizer.decode

    def asked(parts: Sequence[BenchmarkSet]) -> tuple[str, list[str]]:
        source, prompts = held_out(recipe, loaded, problems, parts, run)
        return source, [decode(prompt) for prompt in prompts]

    rows = [TrainingRow(f"{n}/0", str(n), 0, "prefix", "a template", "", [1], [2]) for n in (4, 7)]
    write_rows(run.valid, rows)
    source, prompts = asked(sets)
    assert (source, len(prompts)) == ("evaluation prompts", 8)
    assert all(problem.question in text for problem, text in zip(sets[0].problems[::5], prompts, strict=False))
    source, prompts = asked(
        [BenchmarkSet(part.entry.model_copy(update={"private": True}), part.problems) for part in sets]
    )
    assert source == "validation prompts"
    assert [text.split("\n")[1].removesuffix("<|im_end|>") for text in prompts] == ["What is 4?", "What is 7?"]
    write_rows(run.valid, [])
    source, prompts = asked([])
    assert (source, len(prompts)) == ("training prompts (none is held out)", 8)


def test_report_view_and_verdict_say_how_far_it_moved(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At this learning rate nothing is left of how the model answered."""
    recipe = make_recipe(
        prefix={"eos": True, "structure_ratio": 0.0}, train={"learning_rate": 0.05, "steps": 12, "save": "last"}
    )
    notes: list[str] = []
    facts: dict[str, Any] = {}
    for stage in ("generate", "build", "train"):
        facts = pipeline.run_stage(
            recipe, tmp_path, stage, lambda event: notes.append(event.text) if isinstance(event, Note) else None
        ).dump()
    written = json.loads(RunDir(tmp_path).movement.read_text())
    moved = Movement.load(written)
    assert json.loads(json.dumps(facts["training"]["movement"])) == written == json.loads(json.dumps(moved.dump()))
    assert moved.source == "evaluation prompts"
    assert in_words(moved) in notes
    assert warnings(moved)
    assert facts["verdict"] == warnings(moved)
    report = RunDir(tmp_path).report.read_text()
    assert "## How far the model moved" in report
    for line in warnings(moved):
        assert f"- {line}" in report
    again = make_recipe(prefix={"eos": True, "structure_ratio": 0.0}, train={"learning_rate": 1e-6})
    assert pipeline.report(pipeline.prepare(again, tmp_path)).training.movement is None, "it was another adapter's"
    monkeypatch.setattr(train, "train", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pipeline.run_stage(again, tmp_path, "train")
    assert json.loads(RunDir(tmp_path).movement.read_text()) == written, "the one before is whole"


@pytest.mark.parametrize(("prefix", "tokens"), [(1, 12), (4, 12), (8, 16), (32, 40), (128, 40)])
def test_an_answer_is_looked_at_a_little_beyond_the_prefix_but_never_long(prefix: int, tokens: int) -> None:
    assert looked_at(prefix) == tokens
