"""A chat template of the user's own: used wherever the model is asked, checked as a model's is, and carried along."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import MODEL
from helpers.templates import FAMILIES, write_tokenizer

from upft_mlx.api import export, push
from upft_mlx.errors import ModelError, RecipeError
from upft_mlx.events import Event, Note
from upft_mlx.fingerprints import StageInputs
from upft_mlx.inspection.ask import open_asker
from upft_mlx.inspection.preview import preview
from upft_mlx.models.chat import Renderer
from upft_mlx.models.facts import chat_template
from upft_mlx.models.files import TEMPLATE
from upft_mlx.models.load import load, load_tokenizer
from upft_mlx.pipeline import run, run_stage
from upft_mlx.recipe.load import load_recipe
from upft_mlx.recipe.schema import Prompt, Recipe
from upft_mlx.rows import EvaluationRow, TrainingRow, read_rows
from upft_mlx.rundir import RunDir

MakeRecipe = Callable[..., Recipe]
OWN = """{%- for m in messages %}<|im_start|>{{ m.role }} (mine)
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
QUESTION = "How many pens has Ann?"
PROMPT = "<|im_start|>user (mine)\nHow many pens has Ann?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jinja"
    path.write_text(OWN)
    return path


def text_of(folder: Path, template: Path, **prompt: Any) -> str:
    made = Renderer(load_tokenizer(folder), Prompt(chat_template=str(template), **prompt))
    return made.text(made.ids(QUESTION))


@pytest.mark.parametrize("name", FAMILIES)
def test_it_takes_the_place_of_the_models(name: str, own: Path, tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "model", FAMILIES[name])
    assert "user (mine)" in text_of(folder, own)
    assert "system (mine)\nBe brief." in text_of(folder, own, system="Be brief.")


def test_it_takes_the_place_of_one_that_mlx_lm_brings(own: Path, tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "model", FAMILIES["Qwen2.5"])
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template_type": "deepseek_v32"}))
    assert load_tokenizer(folder)._chat_template is not None
    assert "user (mine)" in text_of(folder, own)


def test_it_prints_the_date_of_the_run(own: Path) -> None:
    own.write_text("{{ strftime_now('%d %B %Y') }}\n" + OWN)
    assert text_of(MODEL, own, date="2025-03-09").startswith("09 March 2025<|im_start|>user (mine)")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ 'no question here' }}", "mine.jinja: the chat template leaves out the question"),
        ("{% for m in messages %}", "mine.jinja: the chat template refuses the prompt"),
        ("{{ raise_exception('only tools') }}", "mine.jinja: the chat template refuses the prompt: only tools"),
        (
            "{{ messages.__class__.__mro__[1].__subclasses__() }}{{ messages }}",
            "refuses the prompt: access to attribute",
        ),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "mine.jinja: the chat template",
        ),
    ],
    ids=["no question", "no end", "an error of its own", "out of the sandbox", "no end in sight"],
)
def test_it_is_trusted_no_more_than_a_models(
    template: str, message: str, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("upft_mlx.models.rendering.SECONDS", 1)
    own.write_text(template)
    with pytest.raises(ModelError) as error:
        text_of(MODEL, own)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "mine.jinja: "),
        (b"\xff\xfe", "mine.jinja: not a text file (byte 0 is not UTF-8); name a Jinja template"),
        (b" \n", "mine.jinja: is empty; fill it in, or remove the field"),
        (b"x" * (1 << 20) + b"x", "mine.jinja: 1,048,577 bytes"),
    ],
    ids=["missing", "no text", "empty", "too large"],
)
def test_a_file_that_is_no_template_is_refused(content: bytes | None, message: str, own: Path, tmp_path: Path) -> None:
    own.unlink()
    if content is not None:
        own.write_bytes(content)
    (tmp_path / "r.yaml").write_text(
        "model: builtin:arithmetic\nproblems: {builtin: arithmetic}\nprompt: {chat_template: mine.jinja}\n"
    )
    with pytest.raises(RecipeError) as error:
        preview(load_recipe(tmp_path / "r.yaml"), tmp_path / "run")
    assert f"prompt.chat_template: {tmp_path}/{message}" in str(error.value)


def test_what_is_in_the_file_counts_and_not_where_it_is(own: Path, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    def inputs(**prompt: Any) -> dict[str, Any]:
        return StageInputs(make_recipe(prompt=prompt), MODEL, [], []).base()

    copy = tmp_path / "copy.jinja"
    copy.write_text(OWN)
    first = inputs(chat_template=str(own))
    assert inputs(chat_template=str(copy)) == first
    copy.write_text(OWN + "\n")
    assert inputs(chat_template=str(copy)) != first
    assert "chat_template" not in inputs()["prompt"], "runs of earlier versions had no such field"
    own.write_text("{# enable_thinking #}" + OWN)
    assert inputs(chat_template=str(own))["enable_thinking"] == "the template's own"


def test_an_override_is_relative_to_the_working_directory(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("quickstart", ["prompt.chat_template=mine.jinja"])
    assert recipe.prompt.chat_template == str(own)


def test_a_run_asks_trains_and_is_saved_with_it(own: Path, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(
        prompt={"chat_template": str(own)},
        problems={"limit": 8},
        train={"steps": 1, "learning_rate": 1e-6, "valid_ratio": 0.25, "save": "last"},
        evaluate={"benchmarks": [{"name": "arithmetic", "limit": 2}]},
        publish={"min_retained": 0.0},
    )
    made = RunDir(tmp_path / "run")
    run(recipe, made.root)
    loaded = load(MODEL, chat_template=str(own))
    for row in read_rows(made.train, TrainingRow):
        assert loaded.tokenizer.decode(row.prompt_ids).startswith("<|im_start|>user (mine)\n")
    assert all(row.tokens for row in read_rows(made.rows_of("arithmetic", "base"), EvaluationRow))
    assert (made.fused / "chat_template.jinja").read_text() == OWN
    fused = load_tokenizer(made.fused)
    messages = [{"role": "user", "content": QUESTION}]
    assert fused.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == PROMPT
    card = (made.fused / "README.md").read_text()
    assert "chat_template: mine.jinja" in card
    assert str(tmp_path) not in card


def test_an_adapter_is_published_and_exported_with_it(own: Path, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(
        prompt={"chat_template": str(own)},
        problems={"limit": 8},
        train={"steps": 1, "valid_ratio": 0.25, "save": "last"},
        evaluate={"benchmarks": []},
        publish={"fuse": "adapter", "repo": "user/a"},
    )
    run(recipe, tmp_path / "run")
    files = {file["path"] for file in push(recipe, tmp_path / "run", dry_run=True)["files"]}
    assert files == {"README.md", "adapter_config.json", "adapters.safetensors", "chat_template.jinja"}
    assert (tmp_path / "run/adapter/chat_template.jinja").read_text() == OWN
    export(recipe, tmp_path / "run", "peft", tmp_path / "peft")
    assert (tmp_path / "peft/chat_template.jinja").read_text() == OWN


def test_an_adapter_is_asked_with_the_template_that_lies_beside_it(
    own: Path, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    limits = {
        "problems": {"limit": 8},
        "evaluate": {"max_tokens": 8, "benchmarks": [{"name": "arithmetic", "limit": 2}]},
    }
    trained, plain = RunDir(tmp_path / "trained"), make_recipe(**limits)
    run(make_recipe(**limits, prompt={"chat_template": str(own)}, train={"steps": 1}), trained.root)
    assert (trained.adapter / "chat_template.jinja").read_text() == OWN
    told: list[Event] = []

    def prompt_of(recipe: Recipe, look: str) -> Any:
        told.clear()
        run_stage(recipe, tmp_path / "plain", "evaluate", told.append, adapter=trained.adapter, look=look)
        return json.loads((tmp_path / "plain" / "looks" / look / "recipe.json").read_text())["prompt"]["chat_template"]

    assert prompt_of(plain, "beside") == str(trained.adapter / "chat_template.jinja")
    [note] = [event.text for event in told if isinstance(event, Note) and "chat template" in event.text]
    assert note == f"base and tuned are asked with the chat template beside the adapter, {trained.adapter}/{TEMPLATE}"
    ids = Renderer(load_tokenizer(MODEL), Prompt(chat_template=str(own))).ids(QUESTION)
    assert open_asker(plain, None, trained.adapter)._renderer.ids(QUESTION) == ids

    other = tmp_path / "other.jinja"
    other.write_text("{# another #}" + OWN)
    chosen = make_recipe(**limits, prompt={"chat_template": str(other)})
    assert prompt_of(chosen, "chosen") == str(other), "the recipe's own wins"
    (trained.adapter / "chat_template.jinja").write_text(chat_template(MODEL))
    assert prompt_of(plain, "same") is None, "the model's own needs no word"
