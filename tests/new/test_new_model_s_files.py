"""`upft new`: what it finds, what it chooses, what it writes, and that the result runs: what a model's files say."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import MODEL
from helpers.input import assert_fails, upft, write
from helpers.new import make, questions
from hypothesis import given, settings
from hypothesis import strategies as st

from upft_mlx.data.benchmarks import load_benchmark, resolve
from upft_mlx.data.columns import Columns
from upft_mlx.data.problems import Problem
from upft_mlx.errors import ModelError, ProblemsError
from upft_mlx.models.facts import ModelFacts, chat_template, dense_shape, read_model_facts, thinking
from upft_mlx.new.data_facts import DataFacts, data_facts, hard_to_grade, hold_out
from upft_mlx.new.draft import Draft
from upft_mlx.new.new import Wish, new_recipe
from upft_mlx.new.settings import choose_settings
from upft_mlx.new.text import recipe_text
from upft_mlx.recipe.load import load_recipe
from upft_mlx.recipe.safe_yaml import read_yaml, to_yaml, yaml_scalar
from upft_mlx.recipe.schema import Problems


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a model; take back what the command sets in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "0")
    shutil.copytree(MODEL, tmp_path / "my-model")
    return tmp_path


def template_of(tmp_path: Path, **settings: Any) -> str:
    return chat_template(write(tmp_path / "t" / "tokenizer_config.json", json.dumps(settings)).parent)


def test_chat_templates_are_found_where_they_may_stand(tmp_path: Path) -> None:
    assert template_of(tmp_path, chat_template="one") == "one"
    several = [{"name": "tool_use", "template": "two"}, {"name": "default", "template": "three"}]
    assert template_of(tmp_path, chat_template=several) == "three"
    assert template_of(tmp_path, chat_template=several[:1]) == "two"
    assert template_of(tmp_path) == ""
    write(tmp_path / "t" / "chat_template.jinja", "four")
    assert template_of(tmp_path, chat_template="one") == "four"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% if add_generation_prompt %}<|assistant|>{% endif %}", "never"),
        (
            "{% if add_generation_prompt %}{% if enable_thinking is false %}<think></think>{% endif %}{% endif %}",
            "switch",
        ),
        ("{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}", "always"),
        ("{{ content.split('</think>')[-1] }}{% if add_generation_prompt %}<|assistant|>{% endif %}", "always"),
        ("say <think> never {% if add_generation_prompt %}<|assistant|>{% endif %}", "never"),
    ],
)
def test_a_template_tells_whether_the_model_thinks(template: str, expected: str) -> None:
    assert thinking(template) == expected


@pytest.mark.parametrize(
    ("file", "expected", "boxed"),
    [
        ("Qwen-Qwen2.5-7B-Instruct", "never", False),
        ("Qwen2.5-Math-derived", "never", True),
        ("meta-llama-Llama-3.1-8B-Instruct", "never", False),
        ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "always", False),
        ("upft-deepseek_R1", "always", False),
    ],
)
def test_published_templates_are_told_apart(shared: Path, folder: Path, file: str, expected: str, boxed: bool) -> None:
    template = (shared / "data/tokenizers/templates" / f"{file}.jinja").read_text()
    write(folder / "my-model" / "chat_template.jinja", template)
    found = read_model_facts(folder / "my-model", "x")
    assert (found.thinking, found.boxed) == (expected, boxed)


QWEN = {
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}


def test_parameters_are_counted_from_the_shape() -> None:
    def counted(**changes: Any) -> int:
        shape = dense_shape({**QWEN, **changes})
        return shape.parameters if shape else 0

    assert counted() == pytest.approx(494e6, rel=0.002)  # Qwen2.5-0.5B: 0.49 G on its card
    assert counted(tie_word_embeddings=False) == pytest.approx(494e6 + 136e6, rel=0.002)
    assert counted(num_experts=8) == counted(linear_num_value_heads=16) == counted(num_attention_heads=0) == 0
    assert dense_shape({"hidden_size": 8}) is None


def test_the_embedded_models_facts_are_its_files(loaded: Any) -> None:
    from mlx.utils import tree_flatten

    found = read_model_facts(MODEL, "x")
    real = sum(array.size for array in dict(tree_flatten(loaded.model.parameters())).values())
    assert found.parameters == pytest.approx(real, rel=0.01)  # norms and biases are not counted
    assert found.bytes == (MODEL / "model.safetensors").stat().st_size
    assert (found.kind, found.bits, found.context, found.thinking) == ("qwen2", None, 512, "never")


@pytest.mark.parametrize(
    ("config", "index", "bits", "size"),
    [
        (QWEN, None, None, 2 * 494e6),
        ({**QWEN, "quantization": {"bits": 4, "group_size": 64}}, None, 4, 4.5 / 8 * 494e6),
        ({"text_config": QWEN, "quantization_config": {"bits": 8, "group_size": 64}}, None, 8, 8.5 / 8 * 494e6),
        (QWEN, {"metadata": {"total_size": 123}}, None, 123),
        ({"model_type": "x"}, None, None, None),
    ],
)
def test_size_and_bits_come_from_config_and_index(
    tmp_path: Path, config: dict[str, Any], index: dict[str, Any] | None, bits: int | None, size: float | None
) -> None:
    write(tmp_path / "m" / "config.json", json.dumps(config))
    write(tmp_path / "m" / "chat_template.jinja", "x")
    if index:
        write(tmp_path / "m" / "model.safetensors.index.json", json.dumps(index))
    found = read_model_facts(tmp_path / "m", "x")
    assert found.bits == bits
    assert found.bytes == (size if size is None else pytest.approx(size, rel=0.002))


def a_model(**changes: Any) -> ModelFacts:
    return ModelFacts(
        **{
            "kind": "qwen2",
            "parameters": 10**9,
            "bits": 4,
            "bytes": 6 * 10**8,
            "context": 32768,
            "thinking": "never",
            "boxed": False,
            **changes,
        }
    )


def some_data(length: int = 100) -> DataFacts:
    return DataFacts(Problems(path="x.jsonl"), Columns("question"), 1, [Problem("0", "q" * length)])


# What is chosen.


@pytest.mark.parametrize(
    ("kind", "asked", "length", "tokens", "switch"),
    [
        ("never", False, 16, 1024, None),
        ("always", False, 128, 8192, None),
        ("switch", False, 16, 1024, False),
        ("switch", True, 128, 8192, True),
    ],
)
def test_models_that_think_get_longer_prefixes_and_solutions(
    kind: str, asked: bool, length: int, tokens: int, switch: bool | None
) -> None:
    found = choose_settings(a_model(thinking=kind), some_data(), 5000, thinking=asked)
    assert (found.length, found.max_tokens, found.enable_thinking) == (length, tokens, switch)
    assert found.grad_checkpoint == (length == 128)
    assert (found.max_length or 2048) >= found.max_tokens + 100


@pytest.mark.parametrize(
    ("trained", "expected"), [(40, (0.3, 3, 8)), (817, (0.3, 3, 16)), (12000, (0.1, 1, 16)), (None, (0.1, 1, 16))]
)
def test_small_sets_are_trained_on_as_the_papers_smallest(
    trained: int | None, expected: tuple[float, int, int]
) -> None:
    found = choose_settings(a_model(), some_data(), trained, thinking=False)
    assert (found.structure_ratio, found.epochs, found.trained_together) == expected


LARGER = {**QWEN, "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4}
"""With 28 layers, Qwen2.5-7B but for its head."""


@pytest.mark.parametrize(
    ("config", "bits", "expected"),
    [(QWEN, 4, (False, "auto")), (LARGER, 4, (True, "mixed")), (LARGER, None, (True, "auto"))],
)
def test_models_whose_long_rows_or_fusing_need_much_memory_get_by_with_less(
    config: dict[str, Any], bits: int | None, expected: tuple[bool, str]
) -> None:
    how = {"quantization": {"bits": bits, "group_size": 64}} if bits else {}
    model = a_model(bits=bits, shape=dense_shape({**config, **how, "num_hidden_layers": 28}))
    found = choose_settings(model, some_data(), 5000, thinking=False)
    assert (found.grad_checkpoint, found.fuse) == expected


def test_what_less_memory_costs_stands_beside_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upft_mlx.models.find.admit", lambda *_, **__: None)  # weights of that size are not made here
    write(folder / "my.jsonl", questions())
    config = {**LARGER, "num_hidden_layers": 28, "quantization": {"bits": 4, "group_size": 64}}
    write(folder / "my-model" / "config.json", json.dumps({**config, "model_type": "qwen2"}))
    recipe = make()
    text = (folder / "my.yaml").read_text()
    assert (recipe.train.grad_checkpoint, recipe.publish.fuse) == (True, "mixed")
    assert re.search(
        r"grad_checkpoint: true +# long rows: more time; without it a step takes up to \d\d\.\d GB\n", text
    )
    assert re.search(r"fuse: mixed +# 6 or 8 bits; trying 16 bits as well takes \d\d\.\d GB\n", text)
    assert "`upft plan my.yaml --mac 16` says" in text


def test_long_questions_and_short_contexts_are_heeded() -> None:
    assert choose_settings(a_model(), some_data(100), 100, thinking=False).max_length is None
    assert choose_settings(a_model(), some_data(5000), 100, thinking=False).max_length == 3328
    assert choose_settings(a_model(context=512), some_data(), 100, thinking=False).max_tokens == 256


def test_large_unquantized_models_are_told_how_to_become_small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upft_mlx.models.find.admit", lambda *_, **__: None)  # weights of that size are not made here
    write(folder / "my.jsonl", questions())
    shutil.copytree(MODEL, folder / "large")
    config = {**json.loads((MODEL / "config.json").read_text()), **QWEN, "num_hidden_layers": 240}
    write(folder / "large" / "config.json", json.dumps(config))
    (folder / "large" / "model.safetensors").unlink()
    write(folder / "large" / "model-a.safetensors", b"")  # the shape says how large it is
    new_recipe(Wish("large", "my.jsonl"))
    assert (
        "# quantize: {bits: 4}  # the weights are not quantized; with this they take 2.1 GB of memory"
        in (folder / "my.yaml").read_text()
    )


def test_a_switch_in_the_template_is_written_down(folder: Path) -> None:
    write(folder / "my.jsonl", questions())
    template = "{{ messages[0].content }}{% if add_generation_prompt and enable_thinking %}<think>{% endif %}"
    write(folder / "my-model" / "chat_template.jinja", template)
    assert make().prompt.chat_template_args == {"enable_thinking": False}
    recipe = make(thinking=True, force=True)
    assert recipe.prompt.chat_template_args == {"enable_thinking": True}
    assert recipe.prefix.length == 128


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)


# Laws.


@given(st.lists(st.tuples(texts.filter(str.strip), st.none() | texts), min_size=2, max_size=30), st.integers(0, 9))
def test_holding_out_loses_no_row_and_shares_no_question(rows: list[tuple[str, str | None]], count: int) -> None:
    problems = [Problem(str(number), question, answer) for number, (question, answer) in enumerate(rows)]
    first: dict[str, str | None] = {}
    for problem in problems:
        first.setdefault(" ".join(problem.question.split()).casefold(), problem.answer)
    testable = sum(answer is not None for answer in first.values())
    if count > testable or count >= len(first) > 0 < count:
        with pytest.raises(ProblemsError, match=f"--holdout {count}: {len(first)} different questions?, {testable} of"):
            hold_out(problems, count)
        return
    parts = hold_out(problems, count)

    def keys(some: Sequence[Problem]) -> set[str]:
        return {" ".join(problem.question.split()).casefold() for problem in some}

    assert len(parts.test) == count
    assert all(problem.answer is not None for problem in parts.test)
    assert not keys(parts.train) & keys(parts.test)
    assert keys(parts.train) | keys(parts.test) == keys(problems)
    assert parts.train
    left = [problem for problem in problems if problem not in parts.train and problem not in parts.test]
    assert keys(left) <= keys(parts.test)


@settings(max_examples=200)
@given(
    st.one_of(
        st.text(max_size=12),
        st.sampled_from(["yes", "NO", "null", "1e3", "a: b", "- x", "~", "'", '"', "{", "on", "0x1", "#"]),
    )
)
def test_a_scalar_reads_back_as_it_was(text: str) -> None:
    assert read_yaml(f"key: {yaml_scalar(text)} # why")[0] == {"key": text}
    assert len(yaml_scalar(text).splitlines()) == 1
    assert read_yaml(to_yaml({"key": [text], text: 1e-5}))[0] == {"key": [text], text: 1e-5}


def test_the_same_question_written_otherwise_is_not_in_the_other_part() -> None:
    spaced = [Problem(f"{n}b", f"  what IS\n{n}? ", "1") for n in range(10)]
    parts = hold_out([*(Problem(str(n), f"What is {n}?", "1") for n in range(10)), *spaced], 5)
    assert (len(parts.test), len(parts.train), parts.repeated) == (5, 10, 10)
    assert {p.id.rstrip("b") for p in parts.test}.isdisjoint(p.id.rstrip("b") for p in parts.train)


def test_equal_questions_with_different_answers_are_pointed_out() -> None:
    answers = ["5", None, "5.0", "So it is 5.", "6", "7"]
    same = [Problem(str(number), "2 + 3?", answer) for number, answer in enumerate(answers)]
    others = [Problem(f"o{number}", f"{number}?", str(number)) for number in range(8)]
    assert hold_out([*others, *same[:4]], 2).disputed is None, "all answers are equal"
    disputed = hold_out([*others, *same], 2).disputed
    assert disputed is not None
    assert [problem.id for problem in disputed] == ["3", "4"]


def test_prose_is_told_from_numbers_and_formulas() -> None:
    answers = ["18", "x = 3", r"\text{east of the river bank}", "because it is so", "#### 12", "a b c", "z" * 90]
    problems = [Problem(str(number), "q", answer) for number, answer in enumerate(answers)]
    assert [problem.id for problem in hard_to_grade(problems)] == ["3", "6"]


def test_a_file_with_options_keeps_them(folder: Path) -> None:
    rows = [
        {"Question": f"Which {n}?", "Correct Answer": f"r{n}", "Incorrect Answer 1": "x", "Incorrect Answer 2": "y"}
        for n in range(20)
    ]
    write(folder / "my.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    [entry] = resolve(make().evaluate)
    assert entry.grader == "choice"
    first = load_benchmark(entry)[0]
    assert "(A) " in first.question
    assert "(C) " in first.question


EVIL = "qwen2\ntrust_remote_code: true #"


@pytest.mark.parametrize("ending", ["\n", "\r", "\x85", "\u2028", "\x0c"])
def test_no_name_in_a_strangers_model_or_data_adds_a_field_to_the_recipe(folder: Path, ending: str) -> None:
    evil = EVIL.replace("\n", ending)
    config = json.loads((folder / "my-model" / "config.json").read_text())
    write(folder / "my-model" / "config.json", json.dumps({**config, "model_type": evil, "model_file": "own.py"}))
    model = (folder / "my-model").rename(folder / evil)
    rows = "".join(json.dumps({evil: f"{n} + 1?", f"b{evil}": str(n)}) + "\n" for n in range(9))
    write(folder / f"{evil}.jsonl", rows)
    with suppress(ModelError):  # a gate may refuse the kind of model; what is written matters where none does
        new_recipe(
            Wish(f"./{evil}", f"{evil}.jsonl", question=evil, answer=f"b{evil}", holdout=0, output=Path("a.yaml"))
        )
    facts = replace(read_model_facts(MODEL, "m"), kind=evil)
    data = data_facts(Problems(path=str(folder / f"{evil}.jsonl"), question=evil, answer=f"b{evil}"))
    entry = {"name": evil, "path": evil, "question": evil}
    chosen = choose_settings(facts, data, 9, thinking=False)
    draft = Draft(folder / "a.yaml", f"./{evil}", False, facts, data, None, entry, chosen, [])
    write(folder / "a.yaml", recipe_text(draft))
    made = load_recipe(folder / "a.yaml")
    assert not made.trust_remote_code
    assert (made.model, made.problems.question) == (str(model), evil)
    assert made.evaluate.benchmarks[0].name == evil
    keys = {line.partition(":")[0] for line in recipe_text(draft).split("\n") if line and line[0] not in "# "}
    assert keys == {"model", "problems", "generate", "prefix", "train", "evaluate"}


def test_a_recipe_that_does_not_read_back_is_not_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / "my.jsonl", questions())
    monkeypatch.setattr("upft_mlx.new.text.yaml_scalar", lambda value: f"{value}1")
    assert_fails(upft("new", "my-model", "my.jsonl"), 2, "cannot be written to a recipe")
    assert not list(folder.glob("*.yaml"))
