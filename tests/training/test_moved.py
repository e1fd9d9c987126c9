"""How far a model moved: by hand, on a model, in the report and its verdict."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import MODEL

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
from upft_mlx.results.report import markdown
from upft_mlx.rows import TrainingRow, write_rows
from upft_mlx.rundir import RunDir
from upft_mlx.sampling.decoding import Request, Sampling
from upft_mlx.sampling.sampler import sample_chunk
from upft_mlx.training import train
from upft_mlx.training.moved import Answered, in_words, opening, summarize, warnings
from upft_mlx.training.movement import held_out, movement

MakeRecipe = Callable[..., Recipe]


def answered(text: str, tokens: int = 10, first: int = 1, *, cut: bool = False) -> Answered:
    return Answered([first] * tokens, text, cut)


BASE = [answered("To solve this problem", 20), answered("To solve this, we", 30, cut=True), answered("Ann has 3")]


def found(tuned: Sequence[Answered], kl: Sequence[Sequence[float]] = ()) -> dict[str, Any]:
    return {**summarize(BASE, tuned, kl), "source": "evaluation prompts", "max_tokens": 30}


def test_answers_are_compared_by_length_opening_and_first_token() -> None:
    tuned = [answered("To solve this now", 18), answered("3 + 4 = 7", 4, first=2), answered("3 + 4 is", 8)]
    moved = found(tuned, [[0.5, 0.1], [0.1], []])
    assert moved["base"] == {
        "mean_tokens": 20.0,
        "truncated": pytest.approx(1 / 3),
        "openings": [[text, pytest.approx(1 / 3)] for text in ("To solve this", "To solve this,", "Ann has 3")],
        "distinct": 3,
    }
    assert (moved["tuned"]["mean_tokens"], moved["tuned"]["truncated"]) == (10.0, 0.0)
    assert moved["same_first_token"] == pytest.approx(2 / 3)
    assert moved["kl"] == pytest.approx(0.7 / 3)
    assert moved["kl_by_position"] == pytest.approx([0.3, 0.1])
    assert moved["openings_kept"] == 1
    assert in_words(moved) == (
        "moved on 3 evaluation prompts (greedy, at most 30 tokens): KL 0.233 nats per position, first token the same "
        "in 67%, length 20 to 10 tokens, cut 33% to 0%, 1 of 3 openings kept"
    )


def test_the_five_most_frequent_openings_are_kept_with_their_shares() -> None:
    texts = [word for number, word in enumerate("abcdefg") for _ in range(number + 1)]
    side = summarize([answered(t) for t in texts], [answered(t) for t in texts], [])["base"]
    assert side["openings"] == [
        [word, pytest.approx(count / 28)] for word, count in zip("gfedc", range(7, 2, -1), strict=True)
    ]
    assert side["distinct"] == 7


@pytest.mark.parametrize(
    ("lengths", "texts", "expected"),
    [
        pytest.param((18, 18, 18), ("To solve this",) * 3, [], id="10 % shorter is not over 10 %"),
        pytest.param((18, 18, 17), ("To solve this",) * 3, ["12% shorter"], id="over 10 %"),
        pytest.param((90, 90, 90), ("To solve this",) * 3, [], id="longer"),
        pytest.param((20, 20, 20), ("x", "To solve", "Ann has 4"), ["no tuned answer begins"], id="no opening"),
        pytest.param((20, 20, 20), ("x", "y", "Ann has 3"), [], id="one opening survives"),
        pytest.param((2, 2, 2), ("x", "y", "z"), ["90% shorter", "no tuned answer begins"], id="both"),
    ],
)
def test_the_verdict_warns_of_short_answers_and_of_lost_openings(
    lengths: Sequence[int], texts: Sequence[str], expected: list[str]
) -> None:
    lines = warnings(found([answered(text, size) for text, size in zip(texts, lengths, strict=True)]))
    assert len(lines) == len(expected)
    for line, part in zip(lines, expected, strict=True):
        assert part in line
        assert line.startswith("warning: ")
        assert "3 evaluation prompts" in line


def test_an_opening_can_leave_neither_its_cell_nor_its_line() -> None:
    hostile = "a`b|c\x1b[31m\u202e\n| # Title\n"
    assert opening(hostile) == "a`b|c [31m |"
    moved = {**summarize([answered(hostile)], [answered("")], [[0.0]]), "source": "prompts", "max_tokens": 1}
    training: dict[str, Any] = {"base_view": None, "cut_solutions": None, "losses": [], "movement": moved}
    run: dict[str, Any] = {"name": "n", "model": "m", "method": "upft", "stages": [], "fidelity": None, "verdict": []}
    text = markdown({**run, "benchmarks": {}, "training": training})
    row = next(line for line in text.splitlines() if "a`b" in line)
    assert row == "| ``a`b/c [31m /`` | 100% | ` ` | 100% |"
    assert "\x1b" not in text


# On a model.


def prepared(recipe: Recipe, tmp_path: Path, size: float) -> tuple[Loaded, RunDir]:
    """A model with LoRA layers as training leaves it, and a run whose adapter/ has other weights of this size."""
    loaded, run = load(MODEL), RunDir(tmp_path / "run")
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
    assert moved["kl"] == pytest.approx(0.0, abs=1e-9)
    assert (moved["same_first_token"], moved["base"]) == (1.0, moved["tuned"])
    assert warnings(moved) == []


def test_the_numbers_are_those_of_base_and_of_the_saved_adapter(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe()
    loaded, run = prepared(recipe, tmp_path, 0.05)
    prompts = prompts_of(make_recipe(), loaded)
    moved = movement(recipe, loaded, run, "prompts", prompts)
    base, tuned = load(MODEL), load(MODEL)
    load_adapter(tuned, run.adapter)
    answers = [
        sample_chunk(side, [Request(ids, 40) for ids in prompts], Sampling(0.0), seed=0) for side in (base, tuned)
    ]
    for name, side in zip(("base", "tuned"), answers, strict=True):
        assert moved[name]["mean_tokens"] == sum(len(answer.ids) for answer in side) / 5
        assert moved[name]["truncated"] == sum(answer.finish_reason == "length" for answer in side) / 5
        texts = {opening(base.tokenizer.decode(answer.ids)) for answer in side}
        assert {text for text, _ in moved[name]["openings"]} == texts
    divergences: list[list[float]] = []
    for prompt, answer in zip(prompts, answers[0], strict=True):
        ids = answer.ids[:32]
        p, q = (_log_probabilities(side, [*prompt, *ids])[len(prompt) - 1 : -1] for side in (base, tuned))
        divergences.append((mx.exp(p) * (p - q)).sum(axis=-1).tolist())  # type: ignore[arg-type]
    flat = [value for row in divergences for value in row]
    assert moved["kl"] == pytest.approx(sum(flat) / len(flat), rel=1e-3)
    assert moved["kl"] > 0.01
    first = sum(row[0] for row in divergences) / 5
    assert moved["kl_by_position"][0] == pytest.approx(first, rel=1e-3)
    assert moved["max_tokens"] == 40, "evaluate.max_tokens, where that is less"


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
    assert (source, len(prompts)) == ("evaluation prompts", 16)
    assert all(problem.question in text for problem, text in zip(sets[0].problems[::2], prompts, strict=False))
    source, prompts = asked([BenchmarkSet(replace(part.entry, private=True), part.problems) for part in sets])
    assert source == "validation prompts"
    assert [text.split("\n")[1].removesuffix("<|im_end|>") for text in prompts] == ["What is 4?", "What is 7?"]
    write_rows(run.valid, [])
    source, prompts = asked([])
    assert (source, len(prompts)) == ("training prompts (none is held out)", 16)


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
        )
    moved = json.loads(RunDir(tmp_path).movement.read_text())
    assert facts["training"]["movement"] == moved
    assert moved["source"] == "evaluation prompts"
    assert in_words(moved) in notes
    assert warnings(moved)
    assert facts["verdict"] == warnings(moved)
    report = RunDir(tmp_path).report.read_text()
    assert "## How far the model moved" in report
    for line in warnings(moved):
        assert f"- {line}" in report
    again = make_recipe(prefix={"eos": True, "structure_ratio": 0.0}, train={"learning_rate": 1e-6})
    assert pipeline.report(pipeline.prepare(again, tmp_path))["training"]["movement"] is None, (
        "it was another adapter's"
    )
    monkeypatch.setattr(train, "train", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pipeline.run_stage(again, tmp_path, "train")
    assert json.loads(RunDir(tmp_path).movement.read_text()) == moved, "the one before is whole"
