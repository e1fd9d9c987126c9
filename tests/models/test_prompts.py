"""What reaches the model: the question, the turn's end, thinking as the template has it, one date for the whole run."""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import MODEL
from helpers.templates import CHATML, FAMILIES, LLAMA32, SMOLVLM, THINKS_WHEN_ASKED, Family, write_tokenizer

from upft_mlx.errors import ModelError, RecipeError
from upft_mlx.events import Event, StageSkipped
from upft_mlx.fingerprints import dated
from upft_mlx.inspection.browse import settled_by
from upft_mlx.inspection.explain import explanations
from upft_mlx.models.chat import Renderer
from upft_mlx.models.load import load_tokenizer
from upft_mlx.pipeline import run_stage
from upft_mlx.recipe.load import load_recipe
from upft_mlx.recipe.schema import Prompt, Recipe
from upft_mlx.rows import TrainingRow, read_rows, write_json
from upft_mlx.rundir import RunDir
from upft_mlx.studies.compare import compare
from upft_mlx.studies.method_table import Cell

MakeRecipe = Callable[..., Recipe]
QUESTION = "Ann has 3 apples and eats 1.\n\nHow many are left? Is 2 < 3 & 1 > 0?"


def renderer(folder: Path, template: str | Family, **prompt: Any) -> Renderer:
    family = replace(FAMILIES["Qwen2.5"], template=template) if isinstance(template, str) else template
    return Renderer(load_tokenizer(write_tokenizer(folder, family)), Prompt(**prompt))


def prompt_of(made: Renderer, question: str = QUESTION) -> str:
    return made.text(made.ids(question))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_end_of_a_turn_is_the_one_that_the_published_template_writes(name: str, tmp_path: Path) -> None:
    """The tokenizer's EOS is another one in half of these, and a model gives that about 1e-9."""
    family = FAMILIES[name]
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, family))
    made = Renderer(tokenizer, Prompt())
    assert made.tokens([made.end_of_turn]) == [family.end]
    assert made.end_of_turn in tokenizer.eos_token_ids, "the model stops there"
    assert QUESTION in prompt_of(made)


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_of_published_templates_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, family))
    content: Any = [{"type": "text", "text": QUESTION}] if name == "SmolVLM" else QUESTION
    expected = tokenizer._tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, return_dict=False
    )
    assert Renderer(tokenizer, Prompt(date=datetime.date.today().isoformat())).ids(QUESTION) == expected


@pytest.mark.parametrize(
    ("template", "why"),
    [
        pytest.param("{% for m in messages %}{{ m['role'] + ': ' }}{% endfor %}", "question", id="no content at all"),
        pytest.param("{{ raise_exception('only tools') }}", "refuses the prompt: only tools", id="an error of its own"),
        pytest.param("{{ messages[0].content.nothing }}", "question", id="a field that is not there"),
    ],
)
def test_a_template_that_leaves_out_the_question_is_refused(template: str, why: str, tmp_path: Path) -> None:
    """The whole run trained and evaluated on empty questions, with exit status 0."""
    with pytest.raises(ModelError, match=why):
        renderer(tmp_path, template).ids(QUESTION)


def test_a_template_that_wants_content_parts_gets_them(tmp_path: Path) -> None:
    made = renderer(tmp_path, FAMILIES["SmolVLM"], system="Be brief.")
    assert prompt_of(made) == (
        f"<|im_start|>System: Be brief.<end_of_utterance>\nUser: {QUESTION}<end_of_utterance>\nAssistant:"
    )
    turns = made.text(made.conversation(["2 + 2?", "4", "And 3 + 3?"]))
    assert turns.endswith(
        "User: 2 + 2?<end_of_utterance>\nAssistant: 4<end_of_utterance>\nUser: And 3 + 3?<end_of_utterance>\nAssistant:"
    )
    assert SMOLVLM.startswith("<|im_start|>")


def test_a_template_that_leaves_out_the_system_turn_is_refused(tmp_path: Path) -> None:
    template = CHATML.replace("(message.role == 'system' and not loop.first)", "false")
    assert prompt_of(renderer(tmp_path, template)).count("<|im_start|>") == 2
    with pytest.raises(ModelError, match=r"leaves out the system turn; unset prompt\.system"):
        renderer(tmp_path, template, system="Be brief.").ids(QUESTION)


@pytest.mark.parametrize(
    ("question", "kept"),
    [
        ("  What is 2 + 2?\n", True),  # trimmed
        ("What is <b>2</b> & 2?", True),  # escaped: longer, not shorter
        ("What is 2 + 2? SECRET of a long question", False),
    ],
)
def test_every_question_must_reach_the_model_and_not_only_the_first(question: str, kept: bool, tmp_path: Path) -> None:
    template = CHATML.replace("message.content", "(message.content.split('SECRET')[-1] | trim | escape | string)")
    made = renderer(tmp_path, template)
    assert "How many" in prompt_of(made, "How many?")
    if kept:
        assert "2" in prompt_of(made, question)
    else:
        with pytest.raises(ModelError, match=r"leaves out the question 'What is 2 \+ 2\? SECRET of a long question'"):
            made.ids(question)


@pytest.mark.parametrize("template", ["", " \n"])
def test_an_empty_chat_template_is_called_empty(template: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"its chat template is empty; use an instruct model"):
        renderer(tmp_path, template)


# Thinking.


@pytest.mark.parametrize(
    ("args", "ending"),
    [
        ({}, "<think>\n\n</think>\n\n"),
        ({"enable_thinking": False}, "<think>\n\n</think>\n\n"),
        ({"enable_thinking": True}, "<think>\n"),
    ],
)
def test_thinking_that_the_recipe_leaves_unset_is_as_the_template_has_it(
    args: dict[str, Any], ending: str, tmp_path: Path
) -> None:
    """mlx-lm switches it on wherever the vocabulary has <think>."""
    family = replace(FAMILIES["Qwen3"], template=THINKS_WHEN_ASKED)
    found = prompt_of(renderer(tmp_path, family, chat_template_args=args))
    assert found.endswith(f"assistant\n{ending}")


# The date.


def test_a_template_that_prints_the_date_prints_the_runs(tmp_path: Path) -> None:
    """Half a run that went over midnight was sampled with another prompt."""
    found = prompt_of(renderer(tmp_path, LLAMA32, date="2025-03-09"))
    assert "Today Date: 09 Mar 2025\n" in found
    template = LLAMA32.replace('strftime_now("%d %b %Y")', "strftime_now('%Y-%m-%d, ' + form)")
    args = {"form": "%B %-d (%A) %H:%M"}
    found = prompt_of(renderer(tmp_path, template, date="2025-03-09", chat_template_args=args))
    assert "Today Date: 2025-03-09, March 9 (Sunday) 00:00\n" in found


@pytest.fixture
def printing(tmp_path: Path) -> Path:
    """A model that prints the date."""
    return write_tokenizer(tmp_path / "model", FAMILIES["Llama 3.2"])


def test_the_day_is_recorded_and_stays_that_of_the_run(printing: Path, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    begun = dated(make_recipe(), printing, run)
    assert begun.prompt.date == datetime.date.today().isoformat()
    write_json(run.recipe, {**begun.dump(), "prompt": {**begun.dump()["prompt"], "date": "2025-03-09"}})
    assert dated(make_recipe(), printing, run).prompt.date == "2025-03-09"
    assert settled_by(make_recipe(), run).prompt.date == "2025-03-09"
    assert dated(make_recipe(prompt={"date": "2024-01-01"}), printing, run).prompt.date == "2024-01-01"
    assert dated(make_recipe(), MODEL, run).prompt.date is None, "the embedded model's template prints none"


def test_a_run_that_goes_over_midnight_keeps_its_day(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(MODEL, tmp_path / "model")
    settings = json.loads((MODEL / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{{ strftime_now('%d.%m.%Y') }}" + settings["chat_template"]
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
    recipe = make_recipe(model=str(tmp_path / "model"), problems={"limit": 6}, evaluate={"benchmarks": []})
    events: list[Event] = []
    for day, stage in ((9, "generate"), (10, "generate"), (10, "build")):
        today = type("Day", (datetime.date,), {"today": classmethod(lambda cls, day=day: cls(2025, 3, day))})
        monkeypatch.setattr("upft_mlx.fingerprints.date", today)
        run_stage(recipe, tmp_path / "run", stage, events.append)
    assert [event.stage for event in events if isinstance(event, StageSkipped)] == ["generate"]
    run = RunDir(tmp_path / "run")
    assert json.loads(run.recipe.read_text())["prompt"]["date"] == "2025-03-09"
    tokenizer = load_tokenizer(tmp_path / "model")
    prompts = [tokenizer.decode(row.prompt_ids) for row in read_rows(run.train, TrainingRow)]
    assert prompts
    assert all(text.startswith("09.03.2025<|im_start|>user\n") for text in prompts)


def test_all_cells_of_a_comparison_have_one_day(
    make_recipe: MakeRecipe, printing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = []

    def run_cell(recipe: Recipe, method: str, folder: Path, *rest: object) -> Cell:
        days.append(recipe.prompt.date)
        write_json(folder / "recipe.json", {**recipe.dump(), "prompt": {"date": "2025-03-09"}})
        return Cell(method, recipe.seed, {"own": {"a": 1.0, "b": 0.0}}, 0, 0, 0.0, 0)

    monkeypatch.setattr("upft_mlx.studies.compare.run_cell", run_cell)
    monkeypatch.setattr("upft_mlx.studies.compare.find_model", lambda recipe: printing)
    recipe = make_recipe(compare={"seeds": 1, "methods": ["upft", "sft"]})
    for _ in range(2):
        compare(recipe, tmp_path / "run")
    assert days == [datetime.date.today().isoformat()] * 3 + ["2025-03-09"] * 3


@pytest.mark.parametrize("content", ["[]", '{"prompt": 3}', '{"prompt": {}}'])
def test_a_run_that_knows_no_day_gets_todays(
    content: str, printing: Path, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    (tmp_path / "recipe.json").write_text(content)
    assert dated(make_recipe(), printing, RunDir(tmp_path)).prompt.date == datetime.date.today().isoformat()


def test_the_preview_says_which_day_is_printed(make_recipe: MakeRecipe) -> None:
    text = {rule.name: rule.text for rule in explanations(make_recipe(prompt={"date": "2025-03-09"}), 3)}["prompt"]
    assert text.endswith("The date in it is 2025-03-09 for the whole run.")


def test_a_day_may_be_written_as_yaml_likes_it_and_must_be_one(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("model: m\nproblems: {builtin: arithmetic}\nprompt: {date: 2025-03-09}\n")
    assert load_recipe(str(file)).prompt.date == "2025-03-09"
    assert json.loads(json.dumps(load_recipe(str(file)).dump()))["prompt"]["date"] == "2025-03-09"
    with pytest.raises(RecipeError, match=r"'9 March' is not a day; write it as 2026-01-31"):
        load_recipe(str(file), ["prompt.date='9 March'"])
