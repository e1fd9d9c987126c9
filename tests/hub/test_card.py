"""The model card: valid metadata for the Hub, numbers from the run's own files, nothing of the machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.facts import run_report
from helpers.input import write
from huggingface_hub import ModelCard, ModelCardData

from upft_mlx.events import Event
from upft_mlx.hub.card import Base, base_of, card_data, model_card, write_card
from upft_mlx.recipe.schema import Recipe

MakeRecipe = Callable[..., Recipe]
BASE = Base("org/base-4bit", "org/base-4bit", {"license": "other", "license_name": "qwen", "license_link": "LICENSE"})
SIDE = {"n": 200, "samples": 1, "temperature": 0.0, "accuracy": 0.415, "ci95": [0.349, 0.484], "truncated": 0.02}
RUN: dict[str, Any] = {
    "benchmarks": {
        "gsm8k": {
            "base": {**SIDE, "accuracy": 0.4, "ci95": [0.335, 0.469]},
            "tuned": SIDE,
            "paired": {"delta": 0.015, "ci95": [-0.02, 0.05], "p_value": 0.45},
        }
    },
    "verdict": ["gsm8k: no measurable change"],
    "fidelity": {
        "fuse": "mixed-8",
        "retained": 0.987,
        "kl": 1.3e-5,
        "kl_base": 1e-3,
        "bytes": 10,
        "rows": 16,
        "prompts": 12,
        "top1_agreement": 0.999,
        "greedy_agreement": 0.96875,
        "base": {"kl": 1e-3, "top1_agreement": 0.95, "greedy_agreement": 0.5},
    },
    "stages": [
        *(
            {"stage": name, "detail": f"what {name} did", "seconds": 61.0, "peak_memory_bytes": 2e9} | tokens
            for name, tokens in {
                "generate": {"tokens_sampled": 12345, "tokens_trained": 0},
                "train": {"tokens_sampled": 0, "tokens_trained": 6789},
            }.items()
        ),
    ],
}
FACTS = run_report(RUN)
DESCRIBED = {"versions": {"mlx": "0.32.4", "python": "3.11"}, "hashes": {"problems": "0f0f", "model": "1e1e"}}


@pytest.fixture
def recipe(make_recipe: MakeRecipe) -> Recipe:
    return make_recipe(
        model="org/base-4bit",
        problems={"builtin": None, "dataset": "openai/gsm8k", "config": "main", "revision": "abc"},
        evaluate={"benchmarks": [{"name": "gsm8k", "limit": 200}]},
        publish={"repo": "user/tuned"},
    )


def test_a_void_evaluation_gives_the_hub_no_accuracy(recipe: Recipe) -> None:
    variants = RUN["benchmarks"]["gsm8k"]
    cut = run_report({**RUN, "benchmarks": {"gsm8k": {**variants, "base": {**variants["base"], "truncated": 0.7}}}})
    assert "model-index" not in card_data(recipe, BASE, cut)
    assert "model-index" in card_data(recipe, BASE, FACTS)


@pytest.mark.parametrize(
    ("paired", "truncated", "shown"),
    [
        ({"delta": -0.0001, "ci95": [-0.0004, 0.0], "p_value": 0.04996}, 0.0, "| +0.0 [+0.0, +0.0] | 0.049 |"),
        ({"delta": 0.1, "ci95": [0.05, 0.15], "p_value": 1e-7}, 0.0, "| +10.0 [+5.0, +15.0] | < 0.001 |"),
        ({"delta": 0.1, "ci95": [0.05, 0.15], "p_value": 1e-7}, 0.7, "| +10.0 [+5.0, +15.0] | void |"),
    ],
)
def test_a_difference_is_written_as_screen_and_report_write_it(
    recipe: Recipe, paired: dict[str, Any], truncated: float, shown: str
) -> None:
    """The card had `-0.0`, rounded a p-value of 0.04996 up to 0.05, and gave a void comparison one."""
    base = {**SIDE, "truncated": truncated}
    facts = run_report({**RUN, "benchmarks": {"gsm8k": {"base": base, "tuned": SIDE, "paired": paired}}})
    text = model_card(recipe, BASE, facts, DESCRIBED)
    assert shown in text
    assert "shows no measurable change" not in text, "it may be that one cannot tell yet"


def test_what_was_added_below_a_card_is_kept_beside_the_new_one(tmp_path: Path) -> None:
    """Only what changed above the check's line was seen; notes at the end were lost."""
    card, told = tmp_path / "README.md", list[Event]()
    for text in ("first\n", "second\n"):
        write_card(tmp_path, text, told.append)
        card.write_text(card.read_text() + "\n")  # an editor's last line is no change
    assert told == []
    card.write_text(card.read_text() + "## My notes\n")
    write_card(tmp_path, "third\n", told.append)
    assert "My notes" in (tmp_path / "README-by-hand.md").read_text()
    assert len(told) == 1


def test_the_metadata_is_what_the_hub_reads(recipe: Recipe) -> None:
    card = ModelCard(model_card(recipe, BASE, FACTS, DESCRIBED))
    assert isinstance(card.data, ModelCardData)
    data = card.data.to_dict()  # type: ignore[no-untyped-call]
    assert data["base_model"] == "org/base-4bit"
    assert data["base_model_relation"] == "finetune"
    assert data["library_name"] == "mlx"
    assert data["pipeline_tag"] == "text-generation"
    assert data["datasets"] == ["openai/gsm8k"]
    assert {"mlx", "upft_mlx", "upft"} <= set(data["tags"])
    assert (data["license"], data["license_name"], data["license_link"]) == ("other", "qwen", "LICENSE")


def test_the_results_are_in_the_model_index(recipe: Recipe) -> None:
    data = ModelCard(model_card(recipe, BASE, FACTS, DESCRIBED)).data
    assert isinstance(data, ModelCardData)
    assert data.eval_results is not None
    [result] = data.eval_results
    assert result.metric_name is not None
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == ("openai/gsm8k", "main", "test")
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.415)
    assert "0.3490 to 0.4840" in result.metric_name


def test_the_numbers_are_the_runs(recipe: Recipe) -> None:
    text = model_card(recipe, BASE, FACTS, DESCRIBED)
    for part in (
        "| gsm8k | 200 x 1 | 0 | 40.0 [33.5, 46.9] | 41.5 [34.9, 48.4] | +1.5 [-2.0, +5.0] | 0.450 |",
        "gsm8k: no measurable change",
        "12,345 tokens",
        "6,789 supervised tokens (what train did), 1 min 01 s, peak memory 2.0 GB",
        "`0f0f`",
        "mlx 0.32.4",
        "**98.7 % of the adapter's effect**",
        "mixed-8",
        "arXiv:2503.02875",
        "python -m mlx_lm generate --model user/tuned",
        "revision abc",
    ):
        assert part in text, part


@pytest.mark.parametrize(
    ("changes", "said", "limit"),
    [
        (
            {},
            "Method: Unsupervised Prefix Fine-Tuning: {}sampled itself, unverified, and",
            "were not checked: some are wrong",
        ),
        (
            {"prefix": {"selection": "consensus"}, "generate": {"samples": 4}},
            "; of several samples, the first sample with the most frequent prefix trained.",
            "were not checked: some are wrong",
        ),
        (
            {"prefix": {"selection": "label"}, "generate": {"samples": 4}},
            "Method: Prefix Fine-Tuning: {}sampled itself, with the right answer, and",
            "have the right answer; how they get there was not checked",
        ),
        *(
            (
                {"prefix": prefix, "generate": {"samples": 4}, "forecast": {"problems": 48}},
                "Method: Prefix Fine-Tuning: {}sampled itself, with the right answer for the at most 48 problems",
                "Only the solutions of the at most 48 problems whose answers were used were checked",
            )
            for prefix in ({"selection": "probe"}, {"selection": "consensus", "structure": "checked"})
        ),
        (
            {"method": "sft", "prefix": {"selection": "label"}, "generate": {"samples": 4}},
            "per problem that the base model sampled itself, with the right answer;",
            "have the right answer",
        ),
        (
            {"method": "sft"},
            "per problem that the base model sampled itself, unverified.",
            "were not checked: some are wrong",
        ),
        ({"method": "rft", "generate": {"samples": 4}}, "whose answer is right.", "have the right answer"),
        ({"method": "annotated"}, "the dataset's own solutions.", "own solutions as they are; none was checked"),
    ],
)
def test_it_says_which_solutions_were_checked(
    make_recipe: MakeRecipe, changes: dict[str, Any], said: str, limit: str
) -> None:
    text = model_card(make_recipe(**changes), BASE, FACTS, DESCRIBED)
    assert said.format("trained on the first 6 tokens of one solution per problem that the base model ") in text
    assert limit in text
    assert ("some are wrong" in text) == ("some are wrong" in limit)


def test_an_adapter_says_that_it_is_one(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(model="org/base", publish={"fuse": "adapter", "repo": "user/a"}, evaluate={"benchmarks": []})
    facts = run_report({**RUN, "benchmarks": {}, "verdict": [], "fidelity": {**RUN["fidelity"], "fuse": "adapter"}})
    base = Base("org/base", "org/base", {})
    data = card_data(recipe, base, facts)
    assert data["base_model_relation"] == "adapter"
    assert "lora" in data["tags"]
    text = model_card(recipe, base, facts, DESCRIBED)
    assert "--adapter-path" in text
    assert "Not evaluated." in text


def test_a_base_without_a_known_licence_is_said_to_have_none(recipe: Recipe) -> None:
    text = model_card(recipe, Base("org/base", "org/base", {}), FACTS, DESCRIBED)
    assert "license" not in yaml.safe_load(text.split("---")[1])
    assert "Not known to upft_mlx" in text


def test_no_path_of_the_machine_is_in_it(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    recipe = make_recipe(
        model=str(folder),
        problems={"builtin": None, "path": str(tmp_path / "mine.jsonl")},
        evaluate={"benchmarks": [{"name": "gsm8k", "path": str(tmp_path / "test.jsonl")}]},
    )
    text = model_card(recipe, base_of(recipe, folder), FACTS, DESCRIBED)
    assert str(tmp_path) not in text
    assert "my-model" in text
    assert "the file `mine.jsonl`" in text
    assert "base_model" not in yaml.safe_load(text.split("---")[1])


@pytest.mark.parametrize(("model", "name"), [("../client/model", "model"), ("client/model", "model"), (".", "here")])
def test_of_a_relative_model_path_the_name_alone_is_in_it(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, name: str
) -> None:
    (tmp_path / "here/client/model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    recipe = make_recipe(model=model)
    text = model_card(recipe, base_of(recipe, Path(model)), FACTS, DESCRIBED)
    assert "client" not in text
    assert yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])["model"] == name


@pytest.mark.parametrize(
    ("card", "hub_id", "licence"),
    [
        ("---\nlicense: apache-2.0\nbase_model: Qwen/Q\n---\n", "Qwen/Q", {"license": "apache-2.0"}),
        ("---\nlicense: mit\nbase_model: [Qwen/Q, x/y]\n---\n", "Qwen/Q", {"license": "mit"}),
        ("---\nbase_model: ../nonsense\n---\n", None, {}),
        ("---\n: : not yaml [\n---\n", None, {}),
        ("no metadata", None, {}),
        (None, None, {}),
    ],
)
def test_a_local_folders_card_says_what_it_derives_from(
    make_recipe: MakeRecipe, tmp_path: Path, card: str | None, hub_id: str | None, licence: dict[str, str]
) -> None:
    if card is not None:
        write(tmp_path / "README.md", card)
    base = base_of(make_recipe(model=str(tmp_path)), tmp_path)
    assert (base.hub_id, base.license) == (hub_id, licence)


def test_the_recipe_in_it_can_be_run_again(recipe: Recipe) -> None:
    block = model_card(recipe, BASE, FACTS, DESCRIBED).split("```yaml\n")[1].split("```")[0]
    assert Recipe.model_validate(yaml.safe_load(block)) == recipe
    assert json.dumps(recipe.dump())
