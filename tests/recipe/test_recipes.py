"""Every shipped recipe: its header, the sources it names, and its data path on rows of the columns that it names."""

from __future__ import annotations

import json
import random
import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest
from conftest import MODEL, ROOT
from helpers.input import assert_fails, upft

from upft_mlx.data.benchmarks import SOURCES, load_benchmark, resolve
from upft_mlx.data.problems import Problem, load_problems
from upft_mlx.dataset.build import build
from upft_mlx.dataset.instruction import instructed, user_turn
from upft_mlx.dataset.prefix import check_problems, structure_numbers, wanted
from upft_mlx.errors import ProblemsError
from upft_mlx.models.chat import Renderer
from upft_mlx.models.find import BUILTIN
from upft_mlx.models.load import load_tokenizer
from upft_mlx.pipeline import plan_recipe
from upft_mlx.planning.budget import MARGIN, MemoryPlan, another_mac, changed
from upft_mlx.planning.lengths import Prompts, Solutions
from upft_mlx.recipe.catalogue import KEYS, catalogue, read_comment
from upft_mlx.recipe.fields import AUTO
from upft_mlx.recipe.find import shipped_recipes
from upft_mlx.recipe.load import load_recipe
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import Solution, TrainingRow, read_rows, rows_writer
from upft_mlx.rundir import RunDir
from upft_mlx.training.batches import total_steps

EMBEDDED = ("demo", "quickstart")
NAMES = sorted(shipped_recipes())
ROWS = 60
"""Of each stand-in for a dataset."""

COLUMNS: dict[str, dict[str, str]] = {
    "openai/gsm8k": {"question": "How many? {n}", "answer": "{n} and 1 <<{n}+1>>.\n#### {n}"},
    "rasbt/math_full_minus_math500": {
        "problem": "Find $x$: {n}",
        "level": "Level 3",
        "type": "Algebra",
        "solution": "\\boxed{{{n}}}",
        "answer": "{n}",
        "unique_id": "{n}",
    },
    "GAIR/LIMO": {"question": "Prove that {n}", "solution": "Wait ... \\boxed{{{n}}}", "answer": "{n}"},
    "HuggingFaceH4/MATH-500": {
        "problem": "What is {n}?",
        "solution": "\\boxed{{{n}}}",
        "answer": "{n}",
        "subject": "Algebra",
        "level": "3",
        "unique_id": "test/{n}.json",
    },
    "HuggingFaceH4/aime_2024": {"id": "{n}", "problem": "Let {n}", "solution": "{n}", "answer": "{n}", "url": "-"},
    "Idavidrein/gpqa": {
        "Question": "Which? {n}",
        "Correct Answer": "right {n}",
        "Incorrect Answer 1": "a {n}",
        "Incorrect Answer 2": "b {n}",
        "Incorrect Answer 3": "c {n}",
        "Record ID": "r{n}",
        "High-level domain": "Physics",
    },
}
"""The columns of the datasets, as the recipes' headers say where they were seen; the texts are made up."""

SIZES = {"openai/gsm8k": 7473, "rasbt/math_full_minus_math500": 12000, "GAIR/LIMO": 817, "arithmetic": 10**9}
TESTS = {"gsm8k": 1319, "math500": 500, "aime2024": 30, "gpqa-freeform": 198, "arithmetic": 256}


def rows_of(dataset: str) -> list[dict[str, str]]:
    return [{column: text.format(n=n) for column, text in COLUMNS[dataset].items()} for n in range(ROWS)]


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Instead of the Hub, a table: it has these datasets, with the configs, splits and revisions that were seen."""
    known = {
        ("openai/gsm8k", "main", "train", SOURCES["gsm8k"]["revision"]),
        ("rasbt/math_full_minus_math500", None, "train", None),
        ("GAIR/LIMO", None, "train", None),
        *((s["dataset"], s.get("config"), s["split"], s["revision"]) for s in SOURCES.values() if "dataset" in s),
    }
    asked: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: str | None, *, split: str, revision: str | None) -> datasets.Dataset:
        asked.append((name, config, split, revision))
        assert asked[-1] in known, f"nobody has seen {asked[-1]}"
        return datasets.Dataset.from_list(rows_of(name))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


# The header.


@pytest.mark.parametrize("name", NAMES)
def test_a_header_says_the_command_the_costs_and_the_sources(name: str) -> None:
    header = read_comment(shipped_recipes()[name].read_text(encoding="utf-8"))
    assert len(header.title) > 20
    assert tuple(header.entries) == KEYS
    assert f"upft run {name}" in re.split(r"[ ()]{2,}|[),]", header.entries["command"].replace("or: ", "  "))
    assert re.fullmatch(r"any|\d+ GB", header.short("Mac"))
    assert re.search(r"\d+ (MB|GB)", header.entries["disk"])
    assert len(header.short("time")) <= 32


@pytest.mark.parametrize("name", [name for name in NAMES if name not in EMBEDDED])
def test_what_was_not_measured_says_so_and_what_was_looked_up_says_when_and_where(name: str) -> None:
    recipe, entries = load_recipe(name), read_comment(shipped_recipes()[name].read_text(encoding="utf-8")).entries
    assert "not measured" in entries["Mac"]
    assert entries["time"].startswith("not measured; ")
    assert re.search(r"[Ll]ooked up 20\d\d-\d\d-\d\d", entries["sources"])
    assert recipe.model.partition("/")[2] in entries["sources"] or "unverified" in entries["sources"]
    assert str(recipe.problems.dataset) in entries["sources"]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in EMBEDDED])
def test_the_header_counts_problems_steps_and_test_questions_as_the_code_does(name: str) -> None:
    recipe, entries = load_recipe(name), read_comment(shipped_recipes()[name].read_text(encoding="utf-8")).entries
    counts = r"not measured; ([\d,]+) problems, at most ([\d,]+) steps, ([\d,]+) test questions for base and tuned"
    found = re.fullmatch(counts, entries["time"])
    assert found is not None, entries["time"]
    problems = min(recipe.problems.limit or 10**9, SIZES[str(recipe.problems.dataset)])
    trained = problems - round(recipe.train.valid_ratio * problems)
    tests = sum(min(entry.limit or 10**9, TESTS[entry.label]) for entry in resolve(recipe.evaluate))
    assert [int(number.replace(",", "")) for number in found.groups()] == [
        problems,
        total_steps(recipe.train, trained),
        tests,
    ]


@pytest.mark.parametrize(
    ("name", "length", "ratio", "epochs"),
    [
        ("qwen2.5-math-7b-math12k", 32, 0.1, 2),
        ("qwen2.5-math-7b-limo", 32, 0.3, 3),
        ("llama-3.1-8b-math12k", 8, 0.1, 2),
        ("llama-3.1-8b-limo", 8, 0.3, 3),
        ("r1-distill-qwen-7b-math12k", 128, 0.1, 2),
        ("r1-distill-qwen-7b-limo", 128, 0.3, 3),
        ("paper-faithful", 32, 0.1, 2),
    ],
)
def test_the_papers_settings_are_the_papers(name: str, length: int, ratio: float, epochs: int) -> None:
    recipe = load_recipe(name)
    assert (recipe.prefix.length, recipe.prefix.structure_ratio, recipe.train.epochs) == (length, ratio, epochs)
    assert (recipe.train.batch_size, recipe.prefix.template, recipe.generate.temperature) == (64, "paper", 0.6)


@pytest.mark.parametrize("name", NAMES)
def test_a_full_solution_fits_into_a_row_with_its_prompt(name: str) -> None:
    recipe = load_recipe(name)
    room = recipe.train.max_length - recipe.generate.max_tokens
    assert room >= 256 or recipe.generate.max_tokens <= 2048


# The memory.

MEMORY = runpy.run_path(str(ROOT / "tools" / "make_memory_tables.py"))
MACS = (8, 16, 24, 32, 36, 48, 64, 96, 128)
MODELS = {
    "Qwen2.5-0.5B-Instruct-4bit": "Qwen2.5 0.5B",
    "Qwen2.5-Math-1.5B-Instruct-4bit": "Qwen2.5 1.5B",
    "Qwen2.5-Math-7B-Instruct-4bit": "Qwen2.5 7B",
    "Qwen2.5-Math-7B-Instruct": "Qwen2.5 7B",
    "DeepSeek-R1-Distill-Qwen-7B-4bit": "Qwen2.5 7B",
    "Meta-Llama-3.1-8B-Instruct-4bit": "Llama 3.1 8B",
    "Qwen3-4B-Instruct-2507-4bit": "Qwen3 4B",
    "Qwen3-4B-Thinking-2507-4bit": "Qwen3 4B",
    "Qwen3.5-4B-MLX-4bit": "Qwen3.5 4B",
    "Qwen3-8B-4bit": "Qwen3 8B",
}
LENGTHS = {
    "openai/gsm8k": (100, (250, 200)),
    "rasbt/math_full_minus_math500": (130, (700, 600, 500, 400)),
    "GAIR/LIMO": (180, (500, 450, 400)),
}
"""Assumed, since no dataset is here: tokens of a rendered question on average, and of the longest."""
SHARED, TEMPLATE = 25, 25
"""Assumed: tokens that all prompts begin with, and of the paper's template."""
LARGE = [name for name in NAMES if name not in (*EMBEDDED, "qwen2.5-0.5b-gsm8k")]


def planned(recipe: Recipe, gigabytes: float) -> tuple[MemoryPlan, Recipe]:
    """What `upft plan --mac` knows before a run, where solutions are as long as they may be; `auto` in numbers."""
    data = str(recipe.problems.dataset)
    mean, longest = LENGTHS[data]
    count = min(SIZES[data], recipe.problems.limit or SIZES[data])
    asked = Prompts(count, mean, longest, SHARED)
    trained = Prompts(count, mean + TEMPLATE, [tokens + TEMPLATE for tokens in longest], SHARED)
    limit = recipe.generate.max_tokens
    solutions = Solutions(limit / 2, limit, [limit], limit / 2, 1.0, "assumed")
    model = MEMORY["architecture"](MODELS[recipe.model.partition("/")[2]], 4 if recipe.model.endswith("4bit") else 16)
    tests = Prompts(1000, 130, [700], SHARED)  # MATH-500 has the longest of the benchmarks but GPQA
    memory = MemoryPlan(model, asked, trained, solutions, {(None, None): tests}, another_mac(gigabytes))
    return memory, memory.settle(recipe)


def fits(recipe: Recipe, gigabytes: float) -> bool:
    """Whether every stage fits, also if the formulas are wrong by as much as they are elsewhere."""
    memory, settled = planned(recipe, gigabytes)
    return all(peak <= MARGIN * memory.machine.bytes for peak in memory.peaks(settled).values())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in EMBEDDED])
def test_the_mac_is_the_smallest_on_which_every_stage_fits(name: str) -> None:
    recipe, header = load_recipe(name), read_comment(shipped_recipes()[name].read_text(encoding="utf-8"))
    sizes = [size for size in MACS if fits(recipe, size)]
    assert header.short("Mac") == f"{sizes[0]} GB"


@pytest.mark.parametrize("name", [name for name in NAMES if name not in EMBEDDED])
def test_what_a_header_advises_for_a_smaller_mac_is_enough_and_needed(name: str) -> None:
    said = read_comment(shipped_recipes()[name].read_text(encoding="utf-8")).entries["Mac"]
    for size, advice in re.findall(r"On (\d+) GB: ((?:--set \S+ ?)+)", said):
        sets = [text.rstrip(".") for text in re.findall(r"--set (\S+)", advice)]
        assert fits(load_recipe(name, sets), int(size))
        assert not fits(load_recipe(name), int(size))
    assert "On 16 GB" in said or "24 GB" not in said


@pytest.mark.parametrize("name", LARGE)
def test_what_a_recipe_says_of_other_settings_is_what_the_plan_computes(name: str) -> None:
    text, recipe = shipped_recipes()[name].read_text(encoding="utf-8"), load_recipe(name)
    memory, settled = planned(recipe, 64)
    [told] = re.findall(r"  grad_checkpoint: true +# .*without it a step takes up to (\d+) GB\n", text)
    peak = memory.peak("train", changed(settled, {"train.grad_checkpoint": False}))
    assert int(told) == pytest.approx(peak / 1e9, rel=0.05, abs=0.5)
    if recipe.publish.fuse == "mixed":
        [told] = re.findall(r"  fuse: mixed +# .*16 as well takes (\d+) GB\n", text)
        sixteen = memory.peak("fuse", changed(settled, {"publish.fuse": "auto"}))
        assert int(told) == pytest.approx(sixteen / 1e9, rel=0.05, abs=0.5)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in EMBEDDED])
def test_as_many_sequences_are_sampled_as_fit(name: str) -> None:
    recipe = load_recipe(name)
    assert (recipe.generate.batch_size, recipe.evaluate.batch_size) == (AUTO, AUTO)
    said = int(read_comment(shipped_recipes()[name].read_text(encoding="utf-8")).short("Mac").split()[0])
    sizes = [planned(recipe, size)[1].generate.batch_size for size in (said, 128)]
    assert 2 <= sizes[0] <= sizes[1]


# The data path.


@pytest.mark.parametrize("name", NAMES)
def test_upft_plan_plans_it(name: str, tmp_path: Path) -> None:
    """From the model's config.json (quickstart: the model) and rows of the right columns, without weights."""
    recipe = load_recipe(name)
    if recipe.model not in BUILTIN:
        bits = {"quantization": {"bits": 4, "group_size": 64}} if recipe.model.endswith("4bit") else {}
        config = {**MEMORY["CONFIGS"][MODELS[recipe.model.partition("/")[2]]], "model_type": "qwen2", **bits}
        for file in MODEL.glob("*"):
            if file.name != "config.json" and file.suffix != ".safetensors":
                shutil.copy(file, tmp_path)
        (tmp_path / "config.json").write_text(json.dumps(config))
        recipe = recipe.model_copy(update={"model": str(tmp_path)})
    facts = plan_recipe(recipe, tmp_path / "run", calibrates=False).dump()
    assert json.loads(json.dumps(facts)) == facts
    assert all(isinstance(size, int) and size > 0 for size in facts["settings"].values() if size is not None)
    full = "rft" if recipe.uses_answers else "sft"  # a few answers are sampled as often as for RFT
    assert facts["tokens"]["this"]["tokens_sampled"] < facts["tokens"][full]["tokens_sampled"]
    assert facts["tokens"]["rft"]["tokens_sampled"] == 16 * facts["tokens"]["sft"]["tokens_sampled"]
    assert facts["disk_bytes"]["model to download"] > 1e8 or recipe.model in BUILTIN
    assert set(facts["memory"]["peak_bytes"]) >= {"generate", "train", "evaluate"}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "demo"])  # its rule is known after its forecast
def test_problems_load_and_rows_are_built_as_the_recipe_says(name: str, tmp_path: Path) -> None:
    assert_data_path(load_recipe(name), tmp_path)


def assert_data_path(recipe: Recipe, folder: Path) -> None:
    """Problems load from rows of the right columns, prompts render, and solutions become the expected rows."""
    builtin = "train" if recipe.problems.builtin else None
    limit = recipe.problems.limit
    problems = load_problems(recipe.problems, builtin=builtin, limit=min(limit or ROWS, ROWS))
    check_problems(recipe, problems)
    assert len(problems) == ROWS
    assert len({problem.question for problem in problems}) == ROWS
    assert all(problem.answer for problem in problems)
    run = RunDir(folder / "run")
    run.root.mkdir()
    made = write_solutions(recipe, problems, run)
    built = build(recipe, load_tokenizer(MODEL), problems, run)
    rows = [row for path in (run.train, run.valid) for row in read_rows(path, TrainingRow)]
    assert_rows(recipe, rows, made)
    assert built.train + built.valid == len(rows)
    assert built.valid == (max(1, round(recipe.train.valid_ratio * len(rows))) if recipe.train.valid_ratio else 0)


def write_solutions(recipe: Recipe, problems: list[Problem], run: RunDir) -> dict[str, Solution]:
    """One solution per problem, of the kind that is wanted; the first full one has no box, the second is cut."""
    tokenizer = load_tokenizer(MODEL)
    chance, made, full = random.Random(0), {}, 0
    with rows_writer(run.solutions) as write:
        for item in wanted(recipe, len(problems)):
            count = 3 * recipe.prefix.length if item.kind == "full" else recipe.prefix.length
            ids = [chance.randrange(300, 500) for _ in range(count)]
            text = tokenizer.decode(ids)
            full += item.kind == "full"
            text += r" \boxed{1}" if item.kind == "full" and full > 1 else ""
            text += " 因此" if item.number == no_structure(recipe, len(problems)) else ""
            cut = item.kind == "prefix" or full == 2
            solution = Solution(problems[item.number].id, 0, item.kind, ids, text, "length" if cut else "stop")
            made[solution.problem_id] = solution
            write(solution)
    return made


def no_structure(recipe: Recipe, count: int) -> int:
    """The first problem that trains on a prefix."""
    structure = structure_numbers(count, recipe.prefix.structure_ratio, recipe.seed)
    return next(number for number in range(count) if number not in structure)


def assert_rows(recipe: Recipe, rows: list[TrainingRow], made: dict[str, Solution]) -> None:
    p = recipe.prefix
    kinds = [row.kind for row in rows]
    share = round(p.structure_ratio * ROWS)
    assert kinds.count("structure") == share - 1 - p.require_boxed  # one was cut; one has no box
    assert kinds.count("prefix") == ROWS - share - p.drop_cjk
    for row in rows:
        solution = made[row.problem_id]
        if p.template_text:
            assert row.prompt.endswith(p.template_text) == (row.kind == "prefix")
        assert len(row.prompt_ids) > 5
        sampled = solution.completion_ids[: p.length] if row.kind == "prefix" else solution.completion_ids
        assert row.completion_ids[: len(sampled)] == sampled
        assert len(row.completion_ids) == len(sampled) + (p.eos or row.kind == "structure")


@pytest.mark.parametrize("name", NAMES)
def test_its_benchmarks_load_and_its_prompts_render(name: str) -> None:
    recipe = load_recipe(name)
    recipe = instructed(recipe, MODEL)
    renderer = Renderer(load_tokenizer(MODEL), recipe.prompt)
    entries = resolve(recipe.evaluate)
    assert entries
    for entry in entries:
        problems = load_benchmark(entry, recipe.seed)
        assert len(problems) == min(entry.limit or ROWS, ROWS) or entry.builtin
        assert renderer.ids(user_turn(entry, recipe.prompt).replace("{question}", problems[0].question))


def test_the_questions_and_answers_are_read_from_the_columns_that_hold_them() -> None:
    for name, question, answer in (
        ("qwen2.5-0.5b-gsm8k", "How many? 7", "7 and 1 <<7+1>>.\n#### 7"),
        ("qwen2.5-math-7b-math12k", "Find $x$: 7", "7"),
        ("qwen2.5-math-7b-limo", "Prove that 7", "7"),
    ):
        seventh = load_problems(load_recipe(name).problems)[7]
        assert (seventh.question, seventh.answer) == (question, answer)


@pytest.mark.parametrize("change", ["question=problems", "answer=answers"])
def test_a_misspelt_column_is_seen(tmp_path: Path, change: str) -> None:
    recipe = load_recipe("qwen2.5-math-7b-math12k", [f"problems.{change}"])
    with pytest.raises(ProblemsError, match="no column"):
        assert_data_path(recipe, tmp_path)


@pytest.mark.parametrize("change", ["dataset=GAIR/LIMA", "split=test", "config=main", f"revision={'b' * 40}"])
def test_a_source_that_nobody_has_seen_is_seen(tmp_path: Path, change: str) -> None:
    recipe = load_recipe("qwen2.5-math-7b-limo", [f"problems.{change}"])
    with pytest.raises(AssertionError, match="nobody has seen"):
        assert_data_path(recipe, tmp_path)


# What is shown.


def test_the_list_has_every_recipe_with_its_mac_model_problems_and_time() -> None:
    shown = upft("recipes").output.splitlines()
    for item in catalogue():
        [line] = [line for line in shown if line.startswith(f"{item.name} ")]
        parts = (item.comment.short("Mac"), item.comment.short("time"), f"t = {item.recipe.prefix.length}")
        assert all(part in line for part in (*parts, item.recipe.model.rpartition("/")[2]))
    assert "upft recipes NAME > my-recipe.yaml" in shown[-1]


def test_small_macs_come_first() -> None:
    sizes = [item.comment.short("Mac") for item in catalogue()]
    embedded = len(EMBEDDED)
    assert sizes[:embedded] == ["any"] * embedded
    assert sizes[embedded:] == sorted(sizes[embedded:], key=lambda size: int(size.split()[0]))


def test_the_list_as_json_has_all_of_the_header() -> None:
    rows = json.loads(upft("recipes", "--json").stdout)
    assert {row["name"] for row in rows} == set(NAMES)
    for row in rows:
        assert {"title", "model", "method", "problems", "path", *(key.lower() for key in KEYS)} <= set(row)
        assert Path(row["path"]).is_file()


def test_a_recipe_is_printed_byte_for_byte_so_that_it_can_be_copied(tmp_path: Path) -> None:
    for name in NAMES:
        shown = upft("recipes", name)
        assert shown.stdout_bytes == shipped_recipes()[name].read_bytes()
    copy = tmp_path / "my-recipe.yaml"
    copy.write_bytes(upft("recipes", "paper-faithful").stdout_bytes)
    assert load_recipe(copy).dump() == {**load_recipe("paper-faithful").dump(), "name": "my-recipe"}


def test_a_recipe_as_json_is_resolved() -> None:
    assert json.loads(upft("recipes", "quickstart", "--json").stdout) == load_recipe("quickstart").dump()


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    assert_fails(
        upft("recipes", "quikstart"), 2, "quikstart: no shipped recipe of that name; did you mean", "quickstart"
    )


@pytest.mark.parametrize(("columns", "lines"), [(80, 2), (160, 1)])
def test_the_list_fits_the_terminal(columns: int, lines: int) -> None:
    import io

    from rich.console import Console

    from upft_mlx.ui.tables import print_recipes

    rows = [item.facts() for item in catalogue()]
    console = Console(file=io.StringIO(), width=columns, force_terminal=True, color_system=None)
    print_recipes(rows, console=console)
    shown = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, shown)) <= columns
    assert len(shown) == lines * len(rows) + {2: 3, 1: 5}[lines]


# The reader of headers.


@pytest.mark.parametrize(
    ("text", "title", "entries"),
    [
        ("model: x\n", "", {}),
        ("# Only a title.\nmodel: x\n", "Only a title", {}),
        (
            "# T\n#\n#   Mac:   8 GB; a\n#          b\n#\n#   not: mine\nmodel: x\n",
            "T",
            {"Mac": "8 GB; a b", "not": "mine"},
        ),
        ("# T\n#\n#   Mac:   8 GB\n#\n#          after a blank line\n", "T", {"Mac": "8 GB"}),
    ],
)
def test_headers_are_read(text: str, title: str, entries: dict[str, str]) -> None:
    header = read_comment(text)
    assert (header.title, header.entries) == (title, entries)
    assert header.short("Mac") == entries.get("Mac", "").partition(";")[0]
