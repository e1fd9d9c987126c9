"""What the documentation says is what the code does."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import re
import runpy
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
import yaml
from conftest import ROOT
from helpers.docs import block_faults, command_faults, field_faults, link_faults
from mlx.utils import tree_flatten
from mlx_lm.models import llama, qwen2, qwen3, qwen3_5
from mlx_lm.tuner.utils import linear_to_lora_layers

from upft_mlx.data.benchmarks import KNOWN, SOURCES
from upft_mlx.data.columns import ANSWER_COLUMNS, ID_COLUMNS, LEVEL_COLUMNS, QUESTION_COLUMNS, SUBJECT_COLUMNS
from upft_mlx.data.problems import load_problems
from upft_mlx.evaluation.stats import wilson_interval
from upft_mlx.grade.correct import is_correct
from upft_mlx.recipe.find import shipped_recipes
from upft_mlx.recipe.schema import Lora, Prefix, Problems, Recipe, Train

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
CHECKS = (link_faults, block_faults, command_faults, field_faults)
MEMORY = runpy.run_path(str(ROOT / "tools" / "make_memory_tables.py"))

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@each_page
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_links_code_commands_and_fields_are_right(page: Path, check: Any) -> None:
    assert check(page) == []


# Each check finds a planted mistake, and takes the right thing beside it.

PLANTED: list[tuple[Any, str, str, str]] = [
    (link_faults, "a file", "[x](there.md)", "[x](their.md)"),
    (link_faults, "an anchor", "[x](there.md#one-heading)", "[x](there.md#another-heading)"),
    (link_faults, "an anchor on the page", "# A b\n\n[x](#a-b)", "# A b\n\n[x](#a_b)"),
    (link_faults, "a second heading of the same name", "# A\n\n# A\n\n[x](#a-1)", "# A\n\n[x](#a-1)"),
    (link_faults, "a picture", "![x](there.md)", "![x](their.svg)"),
    (link_faults, "a reference", "[x][1]\n\n[1]: there.md", "[x][1]\n\n[1]: their.md"),
    (link_faults, "html", '<img src="there.md">', '<img src="their.svg">'),
    (block_faults, "sh", "```sh\nif true; then ls; fi\n```", "```sh\nif true; then ls\n```"),
    (block_faults, "python", "```python\nx = 1\n```", "```python\nx = \n```"),
    (block_faults, "json", '```json\n{"a": 1}\n```', "```json\n{a: 1}\n```"),
    (block_faults, "a language", "```text\nx\n```", "```\nx\n```"),
    (block_faults, "a recipe's field", "```yaml\nprefix: {length: 8}\n```", "```yaml\nprefix: {lenght: 8}\n```"),
    (block_faults, "a recipe's value", "```yaml\nseed: 1\n```", "```yaml\nseed: one\n```"),
    (block_faults, "another file", "<!-- not a recipe -->\n```yaml\nx: 1\n```", "```yaml\nx: 1\n```"),
    (
        block_faults,
        "a benchmark",
        "```yaml\nevaluate: {benchmarks: [gsm8k]}\n```",
        "```yaml\nevaluate: {benchmarks: [gsm9k]}\n```",
    ),
    (command_faults, "a command", "```sh\nupft train my-recipe.yaml\n```", "```sh\nupft tran my-recipe.yaml\n```"),
    (command_faults, "an option", "```sh\nupft run quickstart --plain\n```", "```sh\nupft run quickstart --plane\n```"),
    (command_faults, "an argument", "```sh\nupft run quickstart\n```", "```sh\nupft run\n```"),
    (
        command_faults,
        "an option's value",
        "```sh\nupft export quickstart --format peft\n```",
        "```sh\nupft export quickstart --format pefd\n```",
    ),
    (command_faults, "a recipe", "```sh\nupft run quickstart  # x\n```", "```sh\nupft run quickstrat  # x\n```"),
    (
        command_faults,
        "a command on a second line",
        "```sh\ncd x && .venv/bin/upft run \\\n  quickstart --set seed=1 | cat\n```",
        "```sh\ncd x && .venv/bin/upft run \\\n  quickstart --set sed=1 | cat\n```",
    ),
    (
        command_faults,
        "a command behind a launcher",
        '```sh\nmlx.launch -n 2 -- "$(which upft)" train my-x.yaml\n```',
        '```sh\nmlx.launch -n 2 -- "$(which upft)" trian my-x.yaml\n```',
    ),
    (command_faults, "an inline command", "Use `upft fetch RECIPE`.", "Use `upft fetsh RECIPE`."),
    (command_faults, "an inline option", "Use `upft show RUN --problem ID`.", "Use `upft show RUN --id ID`."),
    (command_faults, "an inline option that has a value", "`upft evaluate --adapter`", "`upft evaluate --adaptor`"),
    (command_faults, "an inline field", "`upft demo --set prefix.length=4`", "`upft demo --set prefix.size=4`"),
    (field_faults, "a field", "Set `prefix.length`, not `train.jsonl`.", "Set `prefix.size`."),
    (field_faults, "a field with a value", "Set `lora.num_layers: 16`.", "Set `lora.layers: 16`."),
]


@pytest.mark.parametrize(("check", "what", "right", "wrong"), PLANTED, ids=[what for _, what, _, _ in PLANTED])
def test_a_planted_mistake_is_found(check: Any, what: str, right: str, wrong: str, tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# Title\n\n## One `heading`\n", encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(right + "\n", encoding="utf-8")
    assert check(page) == []
    page.write_text(wrong + "\n", encoding="utf-8")
    assert len(check(page)) == 1


# Pages that are written from the code.


@pytest.mark.parametrize("name", ["recipe", "commands", "families"])
def test_a_generated_page_is_current(name: str) -> None:
    page = runpy.run_path(str(ROOT / "tools" / f"make_{name}_page.py"))["page"]
    assert (DOCS / "reference" / f"{name}.md").read_text(encoding="utf-8") == page()


def test_the_commands_page_is_the_same_on_every_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    page = runpy.run_path(str(ROOT / "tools" / "make_commands_page.py"))["page"]
    first = page()
    monkeypatch.setenv("COLUMNS", "40")
    assert page() == first


def test_the_page_of_shipped_recipes_is_written_from_their_headers() -> None:
    page = runpy.run_path(str(ROOT / "tools" / "make_recipes_page.py"))["page"]
    text = (ROOT / "docs" / "use" / "recipes.md").read_text(encoding="utf-8")
    assert text == page()
    assert set(re.findall(r"^## (.+)$", text, re.MULTILINE)) == set(shipped_recipes())
    anchors = {heading.replace(".", "") for heading in shipped_recipes()}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) == anchors


def test_every_environment_variable_that_is_read_or_set_is_documented() -> None:
    found: set[str] = set()
    for path in (ROOT / "upft_mlx").rglob("*.py"):
        lines = path.read_text(encoding="utf-8").splitlines()
        for before, line in itertools.pairwise(["", *lines]):  # a loop over names stands on the line before
            if "environ" in line and "**os.environ" not in line:  # which is for a program of the system
                found |= set(re.findall(r"\b[A-Z]+_[A-Z_]+\b", before + line))
    assert {"UPFT_BLAS", "HF_DATASETS_OFFLINE", "MLX_JACCL_COORDINATOR", "WAYLAND_DISPLAY", "HF_TOKEN"} <= found
    page = (DOCS / "reference" / "environment.md").read_text(encoding="utf-8")
    assert sorted(name for name in found if f"`{name}`" not in page) == []


def test_every_recipe_field_is_documented() -> None:
    missing = [name for name, field in Recipe.model_fields.items() if not field.description]
    assert missing == []


def test_the_evaluation_page_has_every_benchmark_as_it_is_read() -> None:
    rows = {}
    section = (DOCS / "use" / "evaluation.md").read_text(encoding="utf-8").split("## Benchmarks")[1].split("\n## ")[0]
    for line in section.splitlines():
        if line.startswith("| `"):
            name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            rows[name.strip("`")] = " ".join(cells)
    assert rows.keys() == SOURCES.keys()
    for name, source in SOURCES.items():
        grader = KNOWN[name].get("grader", "maths")
        assert grader in rows[name]
        for field in ("dataset", "revision", "config", "split"):
            assert name == "gpqa-freeform" or source.get(field, "") in rows[name]


def texts_of_the_program() -> str:
    """All texts in its source, with those of an f-string and those that stand beside one another joined."""
    found = []
    modules = sorted((ROOT / "upft_mlx").rglob("*.py"))
    assert len(modules) > 100
    for path in modules:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_the_troubleshooting_page_quotes_messages_as_the_program_writes_them() -> None:
    page = (DOCS / "start" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    quoted += ["fusing as ... keeps ... of the adapter's effect", "runs again, changed: ..."]
    assert len(quoted) > 8
    texts = texts_of_the_program()
    assert [m for m in quoted if not all(part in texts for part in re.split(r" ?\.\.\.%? ?", m))] == []


# Memory on each class of Mac.


def test_the_memory_tables_are_current() -> None:
    page = (DOCS / "start" / "macs.md").read_text(encoding="utf-8")
    assert MEMORY["with_tables"](page) == page


def as_mlx_lm_builds_it(name: str) -> nn.Module:
    """Its arrays are never computed, so that a model of any size costs nothing."""
    kinds = {"Qwen2.5": qwen2.Model, "Llama": llama.Model, "Qwen3": qwen3.Model, "Qwen3.5": qwen3_5.TextModel}
    kind = kinds[name.partition(" ")[0]]
    kept = {"model_type": "any", "rms_norm_eps": 1e-6, "max_position_embeddings": 4096, "rope_theta": 1e6}
    arguments = inspect.getmodule(kind).__dict__["TextModelArgs" if kind is qwen3_5.TextModel else "ModelArgs"]
    value_heads = {"linear_num_value_heads": 32, "linear_key_head_dim": 128} if kind is qwen3_5.TextModel else {}
    model: nn.Module = kind(arguments.from_dict({**kept, **value_heads, **MEMORY["CONFIGS"][name]}))
    return model


def bytes_of(tree: Any) -> int:
    return sum(array.nbytes for array in dict(tree_flatten(tree)).values())


@pytest.mark.parametrize("name", MEMORY["CONFIGS"])
def test_weights_and_adapter_have_the_bytes_of_mlx_lms_model(name: str) -> None:
    model, told = as_mlx_lm_builds_it(name), MEMORY["architecture"]
    near = 0.13 if name.startswith("Qwen3.5") else 0.002  # layers with linear attention count as plain ones
    model.set_dtype(mx.bfloat16)
    assert bytes_of(model.parameters()) == pytest.approx(2 * told(name).parameters, rel=near)
    nn.quantize(model, group_size=64, bits=4)
    assert bytes_of(model.parameters()) == pytest.approx(told(name, 4).weight_bytes(2), rel=near)
    model.freeze()
    linear_to_lora_layers(model, -1, {"rank": 16, "scale": 2.0, "dropout": 0.0})
    adapter = 4 * told(name).adapter_numbers(Lora())
    assert bytes_of(model.trainable_parameters()) == pytest.approx(adapter, rel=2 * near)


# The README.


def test_the_readmes_recipe_is_valid() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    assert Recipe.model_validate(yaml.safe_load(blocks[0])).prefix.length == 16


def test_the_readme_has_at_most_100_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 100


def test_ci_runs_the_readmes_test_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    command = re.search(r"<!-- test-command -->\n```sh\n(.*?)\n```", text)
    assert command is not None
    assert command[1].endswith("-m pytest -n auto")
    assert "test-command" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_examples_and_tables_of_the_page_on_own_data_are_what_the_code_does(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "use" / "own-data.md").read_text(encoding="utf-8")
    [rows] = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    (tmp_path / "x.jsonl").write_text(rows, encoding="utf-8")
    problems = load_problems(Problems(path=str(tmp_path / "x.jsonl")))
    assert [(p.id, p.answer) for p in problems] == [("0", "42"), ("algebra-1", "5"), ("2", None)]
    for recipe in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL):
        Recipe.model_validate({"model": "x", **yaml.safe_load(recipe)})
    names = {cells[0].strip(): cells[1] for line in text.splitlines() if len(cells := line.strip("|").split("|")) == 3}
    for column, found in (
        ("question", QUESTION_COLUMNS),
        ("answer", ANSWER_COLUMNS),
        ("id", ID_COLUMNS),
        ("level", LEVEL_COLUMNS),
        ("subject", SUBJECT_COLUMNS),
    ):
        assert tuple(re.findall(r"`([^`]+)`", names[column])) == found
    for count, half in re.findall(r"^\| (\d+) \| ([\d.]+) points \|$", text, re.MULTILINE):
        low, high = wilson_interval(int(count) // 2, int(count))
        assert float(half) == pytest.approx(50 * (high - low), abs=0.05)


def test_the_answers_that_the_page_on_own_data_names_are_graded_right() -> None:
    text = (ROOT / "docs" / "use" / "own-data.md").read_text(encoding="utf-8")
    [sentence] = re.findall(r"The grader compares values, not words: (.*?)\.\s+The", text, re.DOTALL)
    answers = re.findall(r"`([^`]+)`", sentence)
    assert len(answers) > 6
    for answer in answers:
        assert is_correct(f"So the answer is \\boxed{{{answer}}}.", answer), answer
        assert not is_correct("So the answer is \\boxed{17}.", answer), answer


def test_the_defaults_are_those_that_were_measured_and_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    tool = runpy.run_path(str(ROOT / "tools" / "make_defaults_table.py"))
    runs = json.loads((ROOT / "docs" / "assets" / "defaults.json").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "use" / "choosing.md").read_text(encoding="utf-8")
    assert tool["put"](text, runs) == text
    best = runpy.run_path(str(ROOT / "tools" / "choose_defaults.py"))["chosen"](runs)
    prefix = Prefix()
    assert best == {
        "template": bool(prefix.template_text),
        "eos": prefix.eos,
        "same": True,
        "rate": Train().learning_rate,
        "ratio": prefix.structure_ratio,
        "cut": "",
    }


def test_the_evidence_page_is_written_from_its_data() -> None:
    page = runpy.run_path(str(ROOT / "tools" / "make_evidence.py"))["page"]
    found = json.loads((ROOT / "docs" / "assets" / "evidence.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs" / "measured" / "evidence.md").read_text(encoding="utf-8") == page(found)


def test_the_forecast_page_is_written_from_its_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tool ended in an error since a mean with its interval had become one class."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    published = runpy.run_path(str(ROOT / "tools" / "forecast_cells.py"))["published"]
    text, picture = runpy.run_path(str(ROOT / "tools" / "forecast_page.py"))["page"](published())
    assert text == (ROOT / "docs" / "measured" / "forecast.md").read_text(encoding="utf-8")
    assert picture == (ROOT / "docs" / "assets" / "forecast.svg").read_text(encoding="utf-8")
