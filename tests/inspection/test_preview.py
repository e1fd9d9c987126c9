"""`upft preview`: what it marks is what the trainer supervises, what it shows as a prompt is what the stages pass."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import mlx_lm.utils
import numpy as np
import pytest
from conftest import MODEL
from helpers.input import no_network, write
from helpers.preview import MakeRecipe, folder, previewed, printed
from hypothesis import given
from hypothesis import strategies as st

from upft_mlx import pipeline
from upft_mlx.dataset.prefix import structure_numbers
from upft_mlx.errors import ProblemsError
from upft_mlx.evaluation import evaluate
from upft_mlx.inspection.explain import explanations
from upft_mlx.inspection.preview import Marked, marked
from upft_mlx.models.chat import Renderer
from upft_mlx.models.load import load_tokenizer
from upft_mlx.recipe.schema import PAPER_TEMPLATE, Prompt, Recipe
from upft_mlx.rows import TrainingRow, read_rows
from upft_mlx.sampling import generate
from upft_mlx.sampling.decoding import Request
from upft_mlx.training.batches import Example, make_batch, shared_length, split, to_examples

__all__ = ["folder", "no_network"]

pytestmark = pytest.mark.usefixtures("no_network")


EOS, START = 2, 1


# The marks, against batches worked out by hand.


def test_the_marks_of_the_example_in_the_docstring_of_batches() -> None:
    batch = make_batch([Example("a", [4, 5, 6, 7, 8], 3)], shared=1)
    assert marked(batch) == [
        Marked([4, 5, 6, 7, 8], [False, False, False, True, True], [0.0, 0.0, 0.0, 0.5, 0.5], shared=1, padding=5)
    ]


def test_each_sequence_of_a_batch_has_its_own_marks() -> None:
    # 8 inputs in the longer one, so that it has no padding; 3 in the other, so that it has 5.
    longer, shorter = Example("a", list(range(10, 19)), 8), Example("b", [10, 21, 22, 23], 1)
    first, second = marked(make_batch([longer, shorter], shared=0))
    assert first.ids == [10, 11, 12, 13, 14, 15, 16, 17, 18]
    assert first.supervised == [False] * 8 + [True]
    assert first.padding == 0
    assert second.ids == [10, 21, 22, 23]
    assert second.supervised == [False, True, True, True]
    assert second.padding == 5
    assert np.allclose(first.weights, [0] * 8 + [1 / 2])
    assert np.allclose(second.weights, [0] + [1 / 6] * 3)


@st.composite
def batches_of_examples(draw: st.DrawFn) -> list[Example]:
    opening = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    parts = st.tuples(st.lists(st.integers(0, 9), max_size=12), st.lists(st.integers(0, 9), min_size=1, max_size=12))
    rows = draw(st.lists(parts, min_size=1, max_size=5))
    return [Example(str(i), [*opening, *a, *b], len(opening) + len(a)) for i, (a, b) in enumerate(rows)]


@given(batches_of_examples(), st.sampled_from([None, 1, 2]))
def test_whatever_is_batched_is_marked_as_it_was(examples: list[Example], size: int | None) -> None:
    with patch("upft_mlx.training.batches.LEAST_SAVED", 0):
        batches = split(examples, size, shared_length(examples))
    found = [mark for batch in batches for mark in marked(batch)]
    order = sorted(examples, key=lambda example: len(example.ids))
    assert [mark.ids for mark in found] == [example.ids for example in order]
    assert [mark.supervised.index(True) for mark in found] == [example.start for example in order]
    assert all(mark.supervised == sorted(mark.supervised) for mark in found)
    for mark in found:
        assert sum(mark.weights) == pytest.approx(1 / len(examples))
        assert (len(mark.ids) - 1 - mark.shared + mark.padding) % 8 == 0


def made(recipe: Recipe, run: Path, *stages: str) -> Path:
    for stage in stages:
        pipeline.run_stage(recipe, run, stage)
    return run


def dataset(run: Path) -> dict[str, TrainingRow]:
    return {row.id: row for name in ("train", "valid") for row in read_rows(run / f"dataset/{name}.jsonl", TrainingRow)}


def assert_supervised_as_trained(facts: dict[str, Any], rows: dict[str, TrainingRow]) -> None:
    for shown in facts["rows"]:
        row = rows[shown["id"]]
        assert shown["ids"] == [*row.prompt_ids, *row.completion_ids]
        assert shown["supervised"] == [False] * len(row.prompt_ids) + [True] * len(row.completion_ids)
        (example,) = to_examples([row], 2048)
        batch = make_batch([example], shown["shared"])
        trained = [(id_, weight) for id_, weight in zip(shown["ids"], shown["weights"], strict=True) if weight]
        kept = batch.weights > 0
        assert trained == list(zip(batch.targets[kept].tolist(), batch.weights[kept].tolist(), strict=True))
        assert len(shown["tokens"]) == len(shown["ids"])


# Rows.


def test_the_rows_of_a_run_are_shown_as_the_trainer_supervises_them(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe()
    run = made(recipe, tmp_path / "run", "generate", "build")
    facts, rows = previewed(recipe, run, rows=4), dataset(run)
    assert facts["source"] == "dataset"
    assert [row["kind"] for row in facts["rows"]] == ["prefix", "prefix", "prefix", "structure"]
    assert_supervised_as_trained(facts, rows)
    examples = to_examples(list(rows.values()), recipe.train.max_length)
    assert {row["shared"] for row in facts["rows"]} == {shared_length(examples)} == {3}
    for shown in facts["rows"]:
        assert shown["place"] in ("train.jsonl", "valid.jsonl")
        assert (shown["ids"][-1] == EOS) == (shown["kind"] != "prefix")
        assert EOS in facts["eos_ids"]
        assert ("Please provide the initial step" in shown["prompt"]) == (shown["kind"] == "prefix")


def test_all_rows_can_be_asked_for(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe()
    run = made(recipe, tmp_path / "run", "generate", "build")
    facts, rows = previewed(recipe, run, rows=1000), dataset(run)
    assert sorted(row["id"] for row in facts["rows"]) == sorted(rows)
    assert_supervised_as_trained(facts, rows)


def test_solutions_without_a_current_dataset_become_the_rows_that_building_makes(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    recipe = make_recipe()
    run = made(recipe, tmp_path / "run", "generate")
    facts = previewed(recipe, run, rows=3)
    assert facts["source"] == "solutions"
    assert "upft build" in facts["note"]
    made(recipe, run, "build")
    assert_supervised_as_trained(facts, dataset(run))
    changed = make_recipe(prefix={"template": "Begin."})
    assert previewed(changed, run)["source"] == "solutions"  # the dataset is of another template
    assert previewed(make_recipe(seed=1), run)["source"] == "stand-in"


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_without_a_run_made_up_rows_of_both_kinds_are_shown_and_said_to_be(
    make_recipe: MakeRecipe, tmp_path: Path, count: int
) -> None:
    facts = previewed(make_recipe(), tmp_path / "nothing", rows=count)
    assert facts["note"] == "no solutions with these settings yet: a made-up completion replaces the model's"
    kinds = [row["kind"] for row in facts["rows"]]
    assert len(kinds) == count
    assert set(kinds) == ({"prefix"} if count == 1 else {"prefix", "structure"})
    for row in facts["rows"]:
        assert sum(row["supervised"]) == 6 if row["kind"] == "prefix" else sum(row["supervised"]) > 7
    assert not (tmp_path / "nothing").exists()


def test_made_up_kinds_are_those_that_sampling_will_have(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe()
    drawn = structure_numbers(20, 0.2, recipe.seed)
    problems = [json.loads(line) for line in (MODEL.parent / "train.jsonl").read_text().splitlines()[:20]]
    for number, problem in enumerate(problems):
        (row,) = previewed(recipe, tmp_path, problem=problem["id"])["rows"]
        assert row["kind"] == ("structure" if number in drawn else "prefix")


def test_a_dataset_s_own_solution_stands_in_where_it_is_one(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    worked = "First, we find 2 + 3 = 5. Then we get 5 - 1 = 4. The answer is 4."
    lines = [
        {"id": "long", "question": "How many?", "answer": worked},
        {"id": "bare", "question": "How many?", "answer": "4"},
    ]
    path = write(tmp_path / "own.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    recipe = make_recipe(problems={"path": str(path), "builtin": None}, prefix={"structure_ratio": 1.0})
    (long,) = previewed(recipe, tmp_path, problem="long")["rows"]
    assert long["completion"].startswith(worked)
    (bare,) = previewed(recipe, tmp_path, problem="bare")["rows"]
    assert "\\boxed{4}" in bare["completion"]


@pytest.mark.parametrize("length", [1, 16, 128, 700])
def test_a_made_up_prefix_is_as_long_as_a_prefix_is(make_recipe: MakeRecipe, tmp_path: Path, length: int) -> None:
    facts = previewed(make_recipe(prefix={"length": length, "structure_ratio": 0.0}), tmp_path, rows=1)
    assert sum(facts["rows"][0]["supervised"]) == length


def test_every_method_shows_its_own_kind_of_row(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    kinds = {
        method: {row["kind"] for row in previewed(make_recipe(method=method), tmp_path)["rows"]}
        for method in ("sft", "rft", "structure_only")
    }
    assert kinds == {"sft": {"full"}, "rft": {"full"}, "structure_only": {"structure"}}


def test_rows_that_are_cut_or_have_no_room_say_so(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    (whole,) = previewed(make_recipe(prefix={"structure_ratio": 0.0}), tmp_path, rows=1)["rows"]
    prompt = whole["supervised"].index(True)
    assert (whole["cut"], whole["trains"]) == (0, True)
    cut = previewed(make_recipe(prefix={"structure_ratio": 0.0}, train={"max_length": prompt + 2}), tmp_path, rows=1)
    (row,) = cut["rows"]
    assert (row["ids"], row["cut"], row["trains"]) == (whole["ids"][: prompt + 2], 4, True)
    assert row["supervised"] == [False] * prompt + [True] * 2
    assert "cut by 4 tokens" in printed(cut)
    none = previewed(make_recipe(prefix={"structure_ratio": 0.0}, train={"max_length": prompt}), tmp_path, rows=1)
    (row,) = none["rows"]
    assert (row["trains"], any(row["supervised"])) == (False, False)
    assert "does not train" in printed(none)


@pytest.mark.parametrize("changes", [{"lora": {"dropout": 0.1}}, {"train": {"grad_checkpoint": True}}])
def test_nothing_is_shared_where_the_trainer_shares_nothing(
    make_recipe: MakeRecipe, tmp_path: Path, changes: dict[str, Any]
) -> None:
    facts = previewed(make_recipe(**changes), tmp_path)
    assert {row["shared"] for row in facts["rows"]} == {0}


# Problems by id.


def test_an_unknown_problem_is_refused_with_near_ones(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(ProblemsError, match=r"no problem 'upft-00' among the recipe's 20; there are upft-00"):
        previewed(make_recipe(), tmp_path, problem="upft-00")


def test_a_problem_that_trains_no_row_says_why(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(generate={"max_tokens": 2})
    run = made(recipe, tmp_path / "run", "generate", "build")
    cut = sorted(structure_numbers(20, 0.2, recipe.seed))[0]
    with pytest.raises(ProblemsError, match="trains no row: cut at max_tokens"):
        previewed(recipe, run, problem=f"upft-{cut:04d}")
    other = next(number for number in range(20) if number not in structure_numbers(20, 0.2, recipe.seed))
    with pytest.raises(ProblemsError, match="structure_only trains those that were drawn"):
        previewed(make_recipe(method="structure_only"), tmp_path / "none", problem=f"upft-{other:04d}")


class StoppedError(Exception):
    pass


def passed(monkeypatch: pytest.MonkeyPatch, recipe: Recipe, run: Path, stage: str) -> list[list[int]]:
    """The prompts that a stage gives its sampler first."""
    prompts: list[list[int]] = []

    def sample(self: object, requests: Sequence[Request], *rest: object) -> NoReturn:
        prompts.extend(request.prompt_ids for request in requests)
        raise StoppedError

    module = {"generate": generate, "evaluate": evaluate}[stage]
    monkeypatch.setattr(module.Sampler, "sample", sample)
    with pytest.raises(StoppedError):
        pipeline.run_stage(recipe, run, stage)
    return prompts


# Prompts.


def test_the_prompts_are_those_that_the_stages_pass(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = write(tmp_path / "own.jsonl", '{"id": "q", "question": "Zwei und drei?", "answer": "5"}\n')
    boxed = {"name": "own", "path": str(own), "prompt": "{question}\nPut it in \\boxed{}."}
    recipe = make_recipe(prompt={"system": "Be brief."}, problems={"limit": 1}, evaluate={"benchmarks": [boxed]})
    sampling, evaluation = previewed(recipe, tmp_path / "run")["prompts"]
    assert passed(monkeypatch, recipe, tmp_path / "run", "generate") == [sampling["ids"]]
    assert passed(monkeypatch, recipe, tmp_path / "run", "evaluate") == [evaluation["ids"]]
    assert sampling["text"] == load_tokenizer(MODEL).decode(sampling["ids"])
    assert sampling["text"].startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nBen takes")
    assert PAPER_TEMPLATE not in sampling["text"]
    assert evaluation["user"] == "Zwei und drei?\nPut it in \\boxed{}."
    assert (evaluation["benchmark"], evaluation["problem_id"]) == ("own", "q")
    assert START in previewed(recipe, tmp_path / "run")["special_ids"]


class Pieces:
    """A tokenizer as SentencePiece makes them: one piece alone is decoded without its leading space."""

    chat_template = "x"
    pieces = ("\u2581two", "\u2581", "<0xE2>", "three")

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.pieces[id_] for id_ in ids]

    def decode(self, ids: list[int]) -> str:
        text = "".join(self.pieces[id_] for id_ in ids).replace("<0xE2>", "\ufffd")
        return text.replace("\u2581", " ").removeprefix(" ")


def test_tokens_keep_their_leading_space_whatever_the_tokenizer_makes_of_one_alone() -> None:
    assert Renderer(Pieces(), Prompt()).tokens([0, 1, 2, 3]) == [" two", " ", "\ufffd", "three"]


def test_a_private_benchmark_is_shown_without_its_text(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    own = write(tmp_path / "own.jsonl", '{"question": "A secret of Ulm?", "answer": "5"}\n')
    recipe = make_recipe(evaluate={"benchmarks": [{"name": "own", "path": str(own), "private": True}]})
    facts = previewed(recipe, tmp_path)
    assert "Ulm" not in json.dumps(facts)
    assert "(withheld)" in facts["prompts"][1]["text"]


def test_a_benchmark_that_cannot_be_read_costs_only_its_question(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(evaluate={"benchmarks": [{"name": "own", "path": str(tmp_path / "gone.jsonl")}, "arithmetic"]})
    facts = previewed(recipe, tmp_path)
    assert "no such file" in facts["prompts"][1]["error"]
    assert "{question}" in facts["prompts"][1]["text"]
    assert "error" not in facts["prompts"][2]
    assert "no question to show" in printed(facts)


def test_no_weights_are_loaded_or_even_needed(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> NoReturn:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(mlx_lm.utils, "load_model", refuse)
    folder = Path(shutil.copytree(MODEL, tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    bare = {"instruction": "{question}"}
    found = previewed(make_recipe(model=str(folder), prompt=bare), tmp_path)
    assert found["rows"] == previewed(make_recipe(), tmp_path)["rows"]


def rule(recipe: Recipe, name: str, count: int = 256) -> str:
    found = {item.name: item.text for item in explanations(recipe, count)}
    assert all(text.endswith(".") for text in found.values())
    return found.get(name, "")


# Rules.


@pytest.mark.parametrize(
    ("changes", "name", "parts"),
    [
        ({}, "rows", ["205 of 256 problems give the first 6 tokens", "51 a whole solution", "none is checked"]),
        ({"prefix": {"length": 1}}, "rows", ["first 1 token of"]),
        ({"method": "structure_only"}, "rows", ["51 of 256 problems", "the others are left out"]),
        ({"method": "sft"}, "rows", ["Each of 256 problems"]),
        ({"method": "rft", "generate": {"samples": 4, "keep": 2}}, "rows", ["at most 2 different solutions"]),
        (
            {"prefix": {"selection": "label"}, "generate": {"samples": 4}},
            "rows",
            ["Picked from 4 samples: the first sample whose answer is right."],
        ),
        ({}, "left out", ["Full solutions cut at 40 tokens."]),
        ({"prefix": {"drop_cjk": True, "require_boxed": True}}, "left out", ["Chinese", "without \\boxed"]),
        ({}, "prompt", [PAPER_TEMPLATE, "Prefix rows alone"]),
        ({"prompt": {"date": "2025-03-09"}}, "prompt", ["2025-03-09 for the whole run."]),
        ({}, "loss", ["Only the completion is trained", "the 4 rows of a step"]),
        ({"prefix": {"eos": True, "eos_weight": 0.25}}, "loss", ["counts 0.25 times"]),
    ],
)
def test_the_rules_say_what_applies(
    make_recipe: MakeRecipe, changes: dict[str, Any], name: str, parts: list[str]
) -> None:
    text = rule(make_recipe(**changes), name)
    for part in parts:
        assert part in text


def test_the_rules_are_a_few_sentences(make_recipe: MakeRecipe) -> None:
    for changes in ({}, {"method": "rft", "generate": {"samples": 4}}, {"prefix": {"template": "none"}}):
        found = explanations(make_recipe(**changes), 256)
        assert [item.name for item in found] == ["rows", "left out", "prompt", "loss"]
        assert sum(len(item.text) for item in found) < 1000
    assert "Picked" not in rule(make_recipe(), "rows"), "one sample leaves no choice"
    assert "EOS" not in rule(make_recipe(), "loss")
    assert PAPER_TEMPLATE not in rule(make_recipe(prefix={"template": "none"}), "prompt")
    assert "checked" not in rule(make_recipe(prefix={"selection": "label"}), "rows")


def test_the_rule_s_numbers_are_those_of_the_run(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe()
    run = made(recipe, tmp_path / "run", "generate", "build")
    structure = [row for row in dataset(run).values() if row.kind == "structure"]
    assert f"{20 - len(structure)} of 20 problems" in rule(recipe, "rows", 20)
    assert f"{len(structure)} a whole solution" in rule(recipe, "rows", 20)
