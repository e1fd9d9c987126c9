"""Recipes: every error is named with its place and what to do, and what is right survives unchanged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.input import MINIMAL, write
from pydantic import ValidationError

from upft_mlx import load_recipe
from upft_mlx.errors import RecipeError
from upft_mlx.recipe.find import shipped_recipes
from upft_mlx.recipe.schema import Recipe


def load(folder: Path, text: str, *overrides: str) -> Recipe:
    return load_recipe(write(folder / "r.yaml", text), overrides)


def message(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(folder, text, *overrides)
    return str(caught.value)


# What is right.


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_loads_and_is_named_after_its_file(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    header = shipped_recipes()[name].read_text().splitlines()[:10]
    assert any(line.startswith("#") and f"upft run {name}" in line for line in header)


def test_there_are_shipped_recipes() -> None:
    assert "quickstart" in shipped_recipes()


def test_a_recipe_states_only_what_differs(tmp_path: Path) -> None:
    recipe = load(tmp_path, MINIMAL)
    assert recipe.name == "r"
    assert recipe.prefix.length == 16
    assert recipe.prefix.eos is False
    assert recipe.prefix.eos_weight == 1.0
    assert recipe.prefix.template_text == ""
    assert recipe.train.learning_rate == 3e-5
    assert recipe.prefix.structure_ratio == 0.1
    assert recipe.generate.temperature == 0.6
    assert (recipe.lora.rank, recipe.lora.scale, recipe.lora.num_layers) == (16, 2.0, -1)
    assert (recipe.train.valid_ratio, recipe.train.report_every, recipe.train.save) == (0.05, 10, "best")


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-5", 1e-5),
        ("1E-5", 1e-5),
        ("1.5e-5", 1.5e-5),
        ("1e+0", 1.0),
        ("5E2", 500.0),
        (".5", 0.5),
        ("2", 2.0),
    ],
)
def test_a_number_is_a_number_in_the_file_and_in_set(tmp_path: Path, written: str, value: float) -> None:
    in_file = load(tmp_path, MINIMAL + f"train: {{learning_rate: {written}}}\n")
    in_set = load(tmp_path, MINIMAL, f"train.learning_rate={written}")
    assert in_file.train.learning_rate == in_set.train.learning_rate == value


def test_numbers_stay_numbers_after_mlx_lm_has_changed_the_shared_yaml_loader(tmp_path: Path) -> None:
    import yaml

    resolvers = yaml.SafeLoader.yaml_implicit_resolvers
    saved = {key: list(value) for key, value in resolvers.items()}
    try:
        yaml.SafeLoader.yaml_implicit_resolvers = {}
        assert load(tmp_path, MINIMAL + "seed: 7\ntrain: {learning_rate: 1e-5}\n").train.learning_rate == 1e-5
    finally:
        yaml.SafeLoader.yaml_implicit_resolvers = saved


@pytest.mark.parametrize("text", ["2024-13-45", "2024-01-01"])
def test_a_name_that_looks_like_a_date_is_a_text(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, MINIMAL + f"name: {text}\n").name == text
    assert load(tmp_path, MINIMAL, f"name={text}").name == text


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    text = "\ufeff" + MINIMAL.replace("\n", "\r\n")
    assert load(tmp_path, text).model == "builtin:arithmetic"


FULL = """
name: full
model: some/model
quantize: {bits: 8, group_size: 32}
method: rft
problems: {dataset: some/data, config: main, question: q, answer: a, limit: 5, shuffle: true}
prompt: {system: "Be brief.", chat_template_args: {enable_thinking: false, depth: 2, style: "x"}}
generate: {temperature: 1, top_p: 0.9, top_k: 5, samples: 4}
prefix: {template: none, eos: false}
lora: {keys: [self_attn.q_proj, mlp.up_proj]}
train: {epochs: 2, betas: [0.8, 0.99], clip_norm: null}
evaluate:
  benchmarks: [gsm8k, {name: gsm8k, label: sampled, samples: 4, temperature: 0.6}]
"""


def test_what_recipe_json_holds_is_the_recipe(tmp_path: Path) -> None:
    recipe = load(tmp_path, FULL)
    held = json.loads(json.dumps(recipe.dump()))
    assert held["train"]["betas"] == [0.8, 0.99]
    assert held["evaluate"]["benchmarks"][0]["name"] == "gsm8k"
    assert Recipe.model_validate(held) == recipe


def test_the_dump_of_the_defaults_is_the_recipe_too(tmp_path: Path) -> None:
    recipe = load(tmp_path, MINIMAL)
    assert Recipe.model_validate(json.loads(json.dumps(recipe.dump()))) == recipe


@pytest.mark.parametrize(("section", "field"), [("", "model"), ("train", "steps"), ("prefix", "length")])
def test_a_loaded_recipe_cannot_be_changed(tmp_path: Path, section: str, field: str) -> None:
    recipe = load(tmp_path, MINIMAL)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(getattr(recipe, section) if section else recipe, field, 3)


def test_every_field_has_one_line_that_says_what_it_is() -> None:
    def undocumented(kind: Any, path: str) -> list[str]:
        found = [f"{path}{name}" for name, info in kind.model_fields.items() if not info.description]
        for name, info in kind.model_fields.items():
            if hasattr(info.annotation, "model_fields"):
                found += undocumented(info.annotation, f"{path}{name}.")
        return found

    assert undocumented(Recipe, "") == []


# Where paths begin.


@pytest.mark.parametrize("one", ["[{name: b, path: b.csv}]", "{name: b, path: b.csv}"])
def test_paths_in_the_file_begin_at_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    text = f"model: ./m\nproblems: {{path: ../q.jsonl}}\nevaluate: {{benchmarks: {one}}}\n"
    recipe = load(tmp_path / "deep", text)
    assert recipe.model == str(tmp_path / "deep" / "m")
    assert recipe.problems.path == str(tmp_path / "q.jsonl")
    assert recipe.evaluate.benchmarks[0].path == str(tmp_path / "deep" / "b.csv")


def test_paths_in_set_begin_at_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    recipe = load(
        tmp_path / "deep",
        MINIMAL,
        "model=./m",
        "problems.path=q.jsonl",
        "evaluate.benchmarks=[{name: b, path: b.csv}]",
    )
    assert recipe.model == str(tmp_path / "here" / "m")
    assert recipe.problems.path == str(tmp_path / "here" / "q.jsonl")
    assert recipe.evaluate.benchmarks[0].path == str(tmp_path / "here" / "b.csv")


def test_absolute_paths_stay(tmp_path: Path) -> None:
    assert load(tmp_path, "model: /m\nproblems: {path: /q.jsonl}\n").problems.path == "/q.jsonl"


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load(tmp_path / "deep", "model: ~/m\nproblems: {builtin: arithmetic}\n").model == str(tmp_path / "m")


def test_user_slash_name_is_a_folder_where_there_is_one_and_a_hub_id_elsewhere(tmp_path: Path) -> None:
    text = "model: user/name\nproblems: {builtin: arithmetic}\n"
    assert load(tmp_path, text).model == "user/name"
    (tmp_path / "user" / "name").mkdir(parents=True)
    assert load(tmp_path, text).model == str(tmp_path / "user" / "name")


# Overrides.


@pytest.mark.parametrize(
    ("override", "section", "field", "value"),
    [
        ("prefix.length=8", "prefix", "length", 8),
        ("train={steps: 3, batch_size: 2}", "train", "steps", 3),
        (" train.steps = 3", "train", "steps", 3),
        ("train.clip_norm=null", "train", "clip_norm", None),
        ("lora.keys=[a, b]", "lora", "keys", ("a", "b")),
        ("prefix.template=Begin = now", "prefix", "template", "Begin = now"),
        ("prompt.system='a: b'", "prompt", "system", "a: b"),
    ],
)
def test_set_changes_one_field(tmp_path: Path, override: str, section: str, field: str, value: Any) -> None:
    assert getattr(getattr(load(tmp_path, MINIMAL, override), section), field) == value


def test_the_last_of_two_overrides_counts(tmp_path: Path) -> None:
    assert load(tmp_path, MINIMAL, "train.steps=3", "train.steps=4").train.steps == 4


def test_an_override_keeps_the_other_fields_of_its_section(tmp_path: Path) -> None:
    recipe = load(tmp_path, MINIMAL + "train: {steps: 3, batch_size: 2}\n", "train.steps=9")
    assert (recipe.train.steps, recipe.train.batch_size) == (9, 2)


@pytest.mark.parametrize("override", ["problems.dataset=some/data", "problems={dataset: some/data}"])
def test_an_override_of_the_source_replaces_the_recipes_own(tmp_path: Path, override: str) -> None:
    problems = load(tmp_path, MINIMAL, override).problems
    assert (problems.builtin, problems.dataset, problems.limit) == (None, "some/data", 4)


@pytest.mark.parametrize("override", ["train.steps", "=3", "train.=3", ".steps=3", "train..steps=3", ""])
def test_a_malformed_override_is_refused_with_an_example(tmp_path: Path, override: str) -> None:
    assert message(tmp_path, MINIMAL, override) == (
        f"--set {override}: expected section.field=value, for example train.learning_rate=1e-5"
    )


@pytest.mark.parametrize("value", ["[1", "{a: b", "'x", "!!int x", "[" * 600])
def test_an_override_whose_value_is_not_yaml_is_refused(tmp_path: Path, value: str) -> None:
    found = message(tmp_path, MINIMAL, f"prompt.system={value}")
    assert found.startswith(f"--set prompt.system={value[:150]}")
    assert "is not a valid value; quote it" in found
    assert len(found) < 600


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("train.learning_rate=fast", ("--set: train.learning_rate: 'fast': should be a valid number",)),
        ("train.learning_rate=", ("--set: train.learning_rate: None: should be a valid number",)),
        ("train.learning_rat=1", ("--set: train.learning_rat: unknown field", "'learning_rate'")),
        ("lora={rnk: 3}", ("--set: lora.rnk: unknown field", "'rank'")),
        ("lora.rank.x=3", ("--set: lora.rank: ",)),
        ("prefix={template: none, eos: true}", ("--set: prefix.eos: true with template: none", "set eos: false")),
        ("problems.path=~nobody-here/x.jsonl", ("--set: problems.path: '~nobody-here/x.jsonl'",)),
    ],
)
def test_an_error_that_an_override_brings_says_set(tmp_path: Path, override: str, parts: tuple[str, ...]) -> None:
    found = message(tmp_path, MINIMAL, override)
    for part in parts:
        assert part in found
    assert "r.yaml" not in found


def test_an_error_in_the_file_is_not_blamed_on_an_override_of_another_field(tmp_path: Path) -> None:
    found = message(tmp_path, MINIMAL + "train: {epochs: 0}\n", "train.batch_size=2")
    assert found == f"{tmp_path}/r.yaml:3: train.epochs: 0: should be greater than or equal to 1"


# What is wrong in the file. Everything is appended to two good lines: the fault is on line 3.

WRONG = {
    # unknown fields
    "unknown section": ("trian: {}", "3: trian: unknown field; did you mean 'train'?"),
    "unknown field": (
        "train: {learn_rate: 1}",
        "3: train.learn_rate: unknown field; did you mean 'learning_rate'",
    ),
    "unknown field, all are listed": ("lora: {zzz: 1}", "valid here: rank, scale, dropout, num_layers, keys"),
    "field of a section": (
        "learning_rate: 1e-4",
        "3: learning_rate: unknown field; did you mean 'train.learning",
    ),
    "field of another section": (
        "lora: {epochs: 1}",
        "3: lora.epochs: unknown field; did you mean 'train.epochs'",
    ),
    "unknown field of a benchmark": (
        "evaluate: {benchmarks: [{name: gsm8k, limt: 3}]}",
        "3: evaluate.benchmarks.0.limt: unknown field; did you mean 'limit'?",
    ),
    "key that is no text": ("1: 2", ": 1: unknown field; valid here: name, model"),
    "value with a typo": ("prefix: {selection: majority}", "or 'auto'; did you mean 'majority_answer'?"),
    # wrong types
    "text for a number": (
        "train: {learning_rate: fast}",
        "3: train.learning_rate: 'fast': should be a valid number",
    ),
    "quoted number": ("train: {steps: '3'}", "3: train.steps: '3': should be a valid integer"),
    "fraction for a count": ("train: {steps: 1.5}", "3: train.steps: 1.5: should be a valid integer"),
    "float for a count": ("train: {steps: 1e3}", "3: train.steps: 1000.0: should be a valid integer"),
    "true for a number": ("seed: true", "3: seed: True: should be a valid integer"),
    "number for true": ("prefix: {eos: 1}", "3: prefix.eos: 1: should be true or false"),
    "number for a text": ("prompt: {system: 3}", "3: prompt.system: 3: should be a text"),
    "list for a section": ("train: [1]", "3: train: [1]: should be a mapping of fields to values"),
    "null for a section": ("train:", "3: train: None: should be a mapping of fields to values"),
    "text for a list": ("lora: {keys: q_proj}", "3: lora.keys: 'q_proj': should be a list in brackets, as [a, b]"),
    "number in a list of texts": ("lora: {keys: [1]}", "3: lora.keys.0: 1: should be a text"),
    "text for benchmarks": (
        "evaluate: {benchmarks: 7}",
        "3: evaluate.benchmarks: 7: should be a list",
    ),
    "number for a benchmark": (
        "evaluate: {benchmarks: [3]}",
        "3: evaluate.benchmarks.0: 3: should be a mapping",
    ),
    "list for a template argument": (
        "prompt: {chat_template_args: {x: [1]}}",
        "3: prompt.chat_template_args.x: [1]: should be true, false, an integer or a text",
    ),
    "wrong word": (
        "method: grpo",
        "3: method: 'grpo': should be 'upft', 'sft', 'rft', 'structure_only' or 'annotated'",
    ),
    # out of range
    "zero": ("prefix: {length: 0}", "3: prefix.length: 0: should be greater than or equal to 1"),
    "negative": ("train: {learning_rate: -1e-5}", "3: train.learning_rate: -1e-05: should be greater than 0"),
    "share above one": (
        "prefix: {structure_ratio: 1.5}",
        "3: prefix.structure_ratio: 1.5: should be less than or",
    ),
    "all held out": ("train: {valid_ratio: 1.0}", "3: train.valid_ratio: 1.0: should be less than 1"),
    "seed below zero": ("seed: -1", "3: seed: -1: should be greater than or equal to 0"),
    "seed of 33 bits": ("seed: 4294967296", "3: seed: 4294967296: should be less than 4294967296"),
    "not a number": (
        "train: {learning_rate: .nan}",
        "3: train.learning_rate: nan: should be a finite number",
    ),
    "infinite": ("lora: {scale: .inf}", "3: lora.scale: inf: should be a finite number"),
    "bits that do not exist": ("quantize: {bits: 7}", "3: quantize.bits: 7: should be 2, 3, 4, 5, 6 or 8"),
    "one beta": ("train: {betas: [0.9]}", "3: train.betas.1: missing"),
    "name that is no file name": ("name: a/b", "3: name: 'a/b': should be letters, digits"),
    # combinations
    "epochs and steps": ("train: {epochs: 1, steps: 2}", "3: train: epochs: 1 and steps: 2; give one of them, and set"),
    "eos without a template": ("prefix: {template: none, eos: true}", "3: prefix.eos: true with template: none"),
    "eos without a template, what to do": ("prefix: {template: none, eos: true}", "set eos: false, or a template"),
    "eos with an empty template": ("prefix: {template: '', eos: true}", "set eos: false, or a template"),
    "no layers": ("lora: {num_layers: 0}", "3: lora.num_layers: 0 would train nothing; use -1"),
    "no modules": ("lora: {keys: []}", "3: lora.keys: [] would train nothing; leave keys out"),
    "samples without rft": (
        "generate: {samples: 2}",
        "3: generate.samples: 2 with method upft, which trains on one sample per problem; set gen",
    ),
    "greedy samples of a benchmark": (
        "evaluate: {samples: 2, benchmarks: [gsm8k]}",
        "3: evaluate: benchmark 'gsm8k': 2 samples at temperature 0 are all equal; set temperature above 0",
    ),
    "the same benchmark twice": (
        "evaluate: {benchmarks: [gsm8k, gsm8k]}",
        "are called 'gsm8k'; give one of them",
    ),
    "labels that a Mac takes for one folder": (
        "evaluate: {benchmarks: [{name: gsm8k, label: A}, {name: gsm8k, label: a}]}",
        "two benchmarks are called 'A'; give one of them a `label`",
    ),
    "label that is no folder": (
        "evaluate: {benchmarks: [{name: gsm8k, label: ../x}]}",
        "'../x' cannot name a folder",
    ),
    "benchmark from two places": (
        "evaluate: {benchmarks: [{name: x, path: a.csv, dataset: b/c}]}",
        "3: evaluate.benchmarks.0: give path or dataset, not both",
    ),
    # YAML
    "not YAML": ("train: [", "4: not valid YAML: "),
    "tab": ("\ttrain: {}", "3: not valid YAML: found character '\\t'"),
    "NUL": ("name: \0", "3: not valid YAML: character 0x00"),
    "half a surrogate pair": ('name: "\\ud800"', "3: not valid YAML: '\\ud800' is half of a surrogate pair"),
    "two documents": ("---\nname: x", "not valid YAML: but found another document"),
    "tag that runs code": (
        "name: !!python/object/apply:os.getcwd []",
        "3: not valid YAML: could not determine a co",
    ),
    "tag that does not fit": ("seed: !!int x", "not valid YAML: invalid literal for int()"),
    "key given twice": ("seed: 1\nseed: 2", "4: seed is given twice (first on line 3)"),
    "key of a section given twice": (
        "lora:\n  rank: 1\n  rank: 2",
        "5: rank is given twice (first on line 4)",
    ),
    "key of a benchmark given twice": (
        "evaluate:\n  benchmarks:\n    - name: a\n      name: b",
        "6: name is given twice (first on line 5)",
    ),
    "nested too deeply": ("name: " + "[" * 600, "r.yaml: not a recipe: nested too deeply"),
    "alias that contains itself": (
        "name: &a [*a]",
        "r.yaml: not a recipe: nested too deeply, or an alias (*)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_with_file_line_field_value_and_remedy(tmp_path: Path, case: str) -> None:
    fault, part = WRONG[case]
    found = message(tmp_path, MINIMAL + fault + "\n")
    assert part in found
    assert all(line.startswith(f"{tmp_path}/r.yaml") for line in found.splitlines())
    assert "pydantic" not in found


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "r.yaml: a recipe is a mapping of fields to values, found nothing"),
        ("# only a comment\n", "found nothing"),
        ("- a\n", "found a list"),
        ("text\n", "found a str"),
        ("problems: {builtin: arithmetic}\n", "r.yaml: model: missing, a recipe needs it"),
        ("model: a/b\n", "r.yaml: problems: missing, a recipe needs it"),
        (
            "model: a/b\nproblems: {}\n",
            "2: problems: needs exactly one of path, dataset and builtin, found none",
        ),
        ("model: a/b\nproblems: {path: a, builtin: arithmetic}\n", "found path and builtin"),
        ("model: a/b\nproblems: {path: a, dataset: b/c}\n", "found path and dataset"),
        (
            "model: a/b\nproblems: {builtin: algebra}\n",
            "2: problems.builtin: 'algebra': should be 'arithmetic'",
        ),
        ("model: ''\nproblems: {path: a}\n", "1: model: '': should have at least 1 character"),
        ("model: ~nobody-here/x\nproblems: {path: a}\n", "r.yaml: model: '~nobody-here/x': cannot be a path"),
        (
            'model: a/b\nproblems: {path: "a\\0"}\n',
            "r.yaml: problems.path: 'a\\x00': cannot be a path: embedded nul",
        ),
        (f"model: a/b\nproblems: {{path: {'x' * 300}}}\n", "cannot be a path: File name too long"),
    ],
)
def test_a_recipe_that_lacks_the_needful_is_refused(tmp_path: Path, text: str, part: str) -> None:
    assert part in message(tmp_path, text)


def test_all_errors_are_reported_at_once_each_with_its_line(tmp_path: Path) -> None:
    found = message(
        tmp_path,
        "model: a/b\nproblems: {}\nsede: 1\nlora:\n  rank: 0\n  scale: x\ntrain: {epochs: 1, steps: 1}\n",
        "prefix.length=0",
    )
    file = f"{tmp_path}/r.yaml"
    places = sorted(line.split(": ")[:2] for line in found.splitlines())
    assert places == [
        ["--set", "prefix.length"],
        [f"{file}:2", "problems"],
        [f"{file}:3", "sede"],
        [f"{file}:5", "lora.rank"],
        [f"{file}:6", "lora.scale"],
        [f"{file}:7", "train"],
    ]


# Finding the file.


def test_a_missing_recipe_says_where_recipes_come_from(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nowhere\.yaml: no such recipe file, .*`upft recipes` .*`upft new`"):
        load_recipe(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("name", ["questions", "question.yaml", "qestions.yml"])
def test_a_missing_recipe_suggests_the_nearest_file_beside_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "questions.yaml").write_text("model: m\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"did you mean '.*questions\.yaml'\?"):
        load_recipe(tmp_path / name)


@pytest.mark.parametrize("name", ["quikstart", "quickstart.yml", "some/folder/quickstar.yaml"])
def test_a_misspelt_recipe_suggests_the_nearest(name: str) -> None:
    with pytest.raises(RecipeError, match="did you mean the shipped recipe 'quickstart'"):
        load_recipe(name)


def test_a_folder_is_not_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"is a folder, not a recipe; name a \.yaml file"):
        load_recipe(tmp_path)


def test_a_name_that_no_file_can_have_is_refused() -> None:
    with pytest.raises(RecipeError, match="cannot be read: File name too long"):
        load_recipe("x" * 300)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", b"model: \xff\xfe")
    with pytest.raises(RecipeError, match=r"r\.yaml: not a text file \(byte 7 is not UTF-8\)"):
        load_recipe(path)


def test_a_file_of_the_working_directory_comes_before_a_shipped_recipe_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "quickstart", MINIMAL + "seed: 7\n")
    monkeypatch.chdir(tmp_path)
    assert load_recipe("quickstart").seed == 7
