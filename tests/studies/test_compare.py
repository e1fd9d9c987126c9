"""Methods side by side: what each cell runs, what cells share, and the numbers by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from upft_mlx.errors import RecipeError
from upft_mlx.evaluation.stats import paired_difference, wilson_interval
from upft_mlx.models import load
from upft_mlx.recipe.cells import recipe_for_cell
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rundir import RunDir
from upft_mlx.studies.compare import compare, keep_aside, seconds_left
from upft_mlx.studies.method_table import Cell, Difference, figure, markdown, summarize
from upft_mlx.studies.two_way import two_way_mean

MakeRecipe = Callable[..., Recipe]


def cell(method: str, seed: int, scores: list[float], tokens: int = 0) -> Cell:
    by_problem = {str(number): score for number, score in enumerate(scores)}
    return Cell(method, seed, {"set": by_problem}, tokens, 2 * tokens, 1.5, 10**6)


CELLS = [
    cell("base", 0, [0.0, 1.0, 0.0, 1.0]),
    cell("upft", 0, [1.0, 1.0, 0.0, 1.0], 10),
    cell("base", 1, [0.0, 0.0, 0.0, 1.0]),
    cell("upft", 1, [1.0, 0.0, 0.0, 1.0], 30),
]


def test_the_difference_is_paired_by_problem_and_seed() -> None:
    found = summarize(CELLS)
    base, upft = found.methods["base"], found.methods["upft"]
    assert base.benchmarks["set"].accuracy == 3 / 8
    assert base.benchmarks["set"].difference is None
    difference = upft.benchmarks["set"].difference
    assert difference
    assert difference.delta == 0.25
    assert (upft.tokens_sampled, upft.tokens_trained) == (20, 40)
    assert [c.accuracy["set"] for c in found.cells] == [0.5, 0.75, 0.25, 0.5]


def test_no_difference_on_a_few_problems_is_no_proof_of_none() -> None:
    cells = [cell(method, seed, [1.0] * 10) for method in ("base", "upft") for seed in (0, 1)]
    result = summarize(cells).methods["upft"].benchmarks["set"]
    unseen = wilson_interval(0, 10)[1]
    assert result.difference == Difference(0.0, (-unseen, unseen))
    assert result.ci95 == (1 - unseen, 1.0)


def test_one_seed_has_the_intervals_of_an_evaluation() -> None:
    """The same rows had Student's intervals here, and Wilson's and Tango's in `upft evaluate`."""
    before, after = [0.0] * 6 + [1.0] * 6, [0.0] * 2 + [1.0] * 10
    result = summarize([cell("base", 0, before), cell("upft", 0, after)]).methods["upft"].benchmarks["set"]
    assert result.ci95 == wilson_interval(10, 12)
    told = paired_difference(before, after)
    assert result.difference == Difference(told.delta, told.ci95)
    assert told.ci95[0] <= 0, "four of twelve are no claim"


@pytest.mark.parametrize("seeds", [1, 2])
def test_no_difference_within_what_rounding_changes_is_claimed(seeds: int) -> None:
    before, after = [0.0] * 9 + [1.0] * 31, [1.0] * 40
    cells = [cell(name, seed, s) for seed in range(seeds) for name, s in (("base", before), ("upft", after))]
    for floor, claimed in ((None, True), (0.22, True), (0.225, False)):
        found = summarize(cells, {"set": floor})
        difference = found.methods["upft"].benchmarks["set"].difference
        assert difference
        assert difference.delta == pytest.approx(9 / 40)
        assert (difference.ci95[0] > 0) is claimed, "nine grades of forty"
        told = markdown(found, {"set": floor})
        assert ("set: rounding alone changes" in told) is (floor is not None)


@pytest.mark.parametrize("seeds", [1, 2])
def test_the_differences_of_a_comparison_are_claimed_together(seeds: int) -> None:
    """Nine problems of forty gained are a claim alone and among ten, but not among 150."""
    before, after = [0.0] * 40, [1.0] * 9 + [0.0] * 31
    names = ["base", "upft", "sft"]
    cells = [cell(name, seed, before if name == "base" else after) for seed in range(seeds) for name in names]
    spans = []
    for comparisons in (1, 10, 150):
        found = summarize(cells, comparisons=comparisons)
        difference = found.methods["upft"].benchmarks["set"].difference
        assert difference
        spans.append(difference.ci95)
        assert (f"for {comparisons} comparisons (Bonferroni)" in markdown(found)) is (comparisons > 1)
        assert ("intervals that hold together" in figure(found, "set")) is (comparisons > 1)
    assert spans[0][0] > spans[1][0] > 0 >= spans[2][0]
    assert spans[0][1] < spans[1][1] < spans[2][1]
    assert summarize(cells).comparisons == 2, "two methods on one benchmark"


def test_pairing_makes_the_interval_narrower_than_that_of_the_accuracy() -> None:
    scores = [[0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0]]
    cells = [cell(method, seed, s) for seed in (0, 1) for method, s in zip(("base", "upft"), scores, strict=True)]
    result = summarize(cells).methods["upft"].benchmarks["set"]
    assert result.difference
    paired, plain = result.difference.ci95, result.ci95
    assert paired[1] - paired[0] < plain[1] - plain[0]


def test_the_table_and_the_figure_have_a_line_per_method() -> None:
    found = summarize(CELLS)
    lines = markdown(found).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| base", "| upft"]
    assert "+25.0 [" in lines[3]
    ElementTree.fromstring(figure(found, "set"))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("upft", ("upft", "first", 1)),
        ("sft", ("sft", "first", 1)),
        ("rft", ("rft", "first", 16)),
        ("upft:label", ("upft", "label", 16)),
        ("sft:majority_answer", ("sft", "majority_answer", 16)),
        ("base", ("upft", "first", 1)),
    ],
)
def test_a_cell_is_the_recipe_with_method_selection_samples_and_seed(
    make_recipe: MakeRecipe, method: str, expected: tuple[str, str, int]
) -> None:
    recipe = make_recipe(train={"learning_rate": 3e-4})
    made = recipe_for_cell(recipe, method, 7)
    assert (made.method, made.prefix.selection, made.generate.samples) == expected
    assert (made.seed, made.train, made.evaluate) == (7, recipe.train, recipe.evaluate)


def test_all_cells_are_measured_to_the_end(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(evaluate={"until": "known", "effect": 1.0})
    assert (recipe_for_cell(recipe, "upft", 0).evaluate.until, recipe_for_cell(recipe, "base", 0).evaluate.effect) == (
        "end",
        1.0,
    )


@pytest.mark.parametrize(
    ("methods", "message"),
    [(["dpo"], "'dpo': expected one of upft"), (["upft", "upft"], "is listed twice"), ([], "is empty; name")],
)
def test_unknown_methods_are_refused_with_those_that_are_known(
    make_recipe: MakeRecipe, methods: list[str], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        make_recipe(compare={"methods": methods})


def test_a_comparison_without_benchmarks_is_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"evaluate\.benchmarks: empty"):
        compare(make_recipe(evaluate={"benchmarks": []}), tmp_path)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path, dict[str, Any]]:
    recipe = Recipe.model_validate(
        {
            "name": "small",
            "model": "builtin:arithmetic",
            "problems": {"builtin": "arithmetic", "limit": 10},
            "generate": {"max_tokens": 40, "batch_size": 16},
            "prefix": {"length": 6, "structure_ratio": 0.2},
            "train": {"batch_size": 4, "steps": 2},
            "evaluate": {"max_tokens": 40, "benchmarks": [{"name": "arithmetic", "limit": 6}]},
            "compare": {"methods": ["upft", "rft", "upft:label"], "seeds": 2, "samples": 3},
        }
    )
    root = tmp_path_factory.mktemp("compare")
    return recipe, root, json.loads(json.dumps(compare(recipe, root).dump()))


def test_every_cell_is_there_with_its_cost(compared: tuple[Recipe, Path, dict[str, Any]]) -> None:
    _, root, found = compared
    assert json.loads((root / "compare" / "compare.json").read_text()) == found
    cells = [(c["method"], c["seed"]) for c in found["cells"]]
    assert cells == [(m, s) for s in (0, 1) for m in ("base", "upft", "rft", "upft:label")]
    by_method = {c["method"]: c for c in found["cells"] if c["seed"] == 0}
    assert by_method["base"]["tokens_sampled"] == 0
    assert 0 < by_method["upft"]["tokens_sampled"] < by_method["rft"]["tokens_sampled"]
    assert by_method["upft"]["tokens_trained"] > 0
    assert 0 <= found["rounding"]["arithmetic"] <= 1, "what base answered again at another batch size"


def test_what_cells_need_alike_is_made_once_and_counted_in_each(
    compared: tuple[Recipe, Path, dict[str, Any]],
) -> None:
    _, root, found = compared
    rft, label = (RunDir(root / "compare" / name / "seed-0") for name in ("rft", "upft-label"))
    assert rft.solutions.read_bytes() == label.solutions.read_bytes()
    made, copied, built = rft.entry("generate"), label.entry("generate"), label.entry("build")
    assert made is not None
    assert copied is not None
    assert built is not None
    assert replace(copied, recipe=made.recipe) == made, "seconds included: it was copied"
    assert copied.recipe == built.recipe != made.recipe, (
        "the cell's own recipe, which a restored version puts into recipe.json"
    )
    costs = {c["method"]: c["tokens_sampled"] for c in found["cells"] if c["seed"] == 0}
    assert costs["rft"] == costs["upft:label"] > 0
    base = RunDir(root / "compare" / "base" / "seed-0")
    assert base.rows_of("arithmetic", "base").read_bytes() == rft.rows_of("arithmetic", "base").read_bytes()


def test_the_greedy_base_is_evaluated_once_for_all_seeds(compared: tuple[Recipe, Path, dict[str, Any]]) -> None:
    _, root, _ = compared
    entries = [RunDir(root / "compare" / "base" / f"seed-{seed}").entry("evaluate") for seed in (0, 1)]
    assert [entry.tokens_processed > 0 for entry in entries if entry] == [True, False]
    files = [[RunDir(root / "compare" / "base" / f"seed-{seed}").rows_of("arithmetic", name).read_bytes()
              for name in ("base", "again")] for seed in (0, 1)]  # fmt: skip
    assert files[0] == files[1]


def test_base_is_evaluated_for_each_seed_where_it_is_sampled(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    benchmark = {"name": "arithmetic", "limit": 4, "temperature": 1.5, "samples": 2}
    recipe = make_recipe(
        train={"steps": 1}, evaluate={"benchmarks": [benchmark]}, compare={"methods": ["upft"], "seeds": 2}
    )
    compare(recipe, tmp_path)
    rows = [RunDir(tmp_path / f"compare/base/seed-{seed}").rows_of("arithmetic", "base") for seed in (0, 1)]
    assert rows[0].read_bytes() != rows[1].read_bytes()


@pytest.mark.parametrize(
    ("spent", "left"),
    [
        ({}, None),
        ({"base": [5.0]}, None),
        ({"base": [5.0], "upft": [10.0]}, 10 + 10 + 5),
        ({"base": [5.0, 0.0], "upft": [0.0, 10.0], "sft": [30.0]}, 30 + 10 + 5),
    ],
)
def test_the_time_left_is_that_of_the_cells_that_ran(spent: dict[str, list[float]], left: float | None) -> None:
    assert seconds_left(spent, ["sft", "upft", "base"]) == left


@given(st.integers(1, 6).flatmap(lambda n: st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=n, max_size=n),
                                                    min_size=1, max_size=12)))  # fmt: skip
def test_no_interval_has_zero_width(scores: list[list[float]]) -> None:
    low, high = two_way_mean(scores, (0.0, 1.0)).ci95
    assert high - low > 1e-3


def test_a_second_call_runs_nothing_again_and_a_missing_cell_only(
    compared: tuple[Recipe, Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, root, found = compared
    loads: list[Any] = []

    def count(*arguments: Any, **options: Any) -> Any:
        loads.append(arguments)
        return load.load_for(*arguments, **options)

    monkeypatch.setattr("upft_mlx.job.load_for", count)
    assert json.loads(json.dumps(compare(recipe, root).dump())) == found
    assert loads == []
    ledger = root / "compare" / "upft" / "seed-1" / "ledger.json"
    entries = json.loads(ledger.read_text())
    del entries["train"]
    ledger.write_text(json.dumps(entries))
    again = compare(recipe, root).dump()
    assert len(loads) == 1, "training alone: the same adapter comes out, whose answers are there"
    strip = ("seconds", "peak_memory_bytes")
    for old, new in zip(found["cells"], again["cells"], strict=True):
        assert {k: v for k, v in old.items() if k not in strip} == {k: v for k, v in new.items() if k not in strip}


def test_the_results_of_another_comparison_are_kept(compared: tuple[Recipe, Path, dict[str, Any]]) -> None:
    recipe, root, _ = compared
    before = {path.name: path.read_bytes() for path in (root / "compare").glob("*.*") if path.is_file()}
    assert before.keys() == {"compare.json", "compare.md", "arithmetic.svg"}
    compare(recipe.model_copy(update={"compare": recipe.compare.model_copy(update={"methods": ("upft",)})}), root)
    (kept,) = (root / "compare" / ".kept").iterdir()
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before
    assert list(compare(recipe, root).dump()["cells"]) == json.loads(before["compare.json"])["cells"]


@pytest.mark.parametrize("content", [None, "{}", "[1]", "3", "my notes"])
def test_files_that_are_no_comparison_are_kept_as_well(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "compare.md").write_text("mine")
    if content is not None:
        (tmp_path / "compare.json").write_text(content)
    keep_aside(tmp_path, "compare", "recipe", {"name": "r"})
    (kept,) = tmp_path.glob(".kept/*/compare.md")
    assert kept.read_text() == "mine"
    assert [path.read_text() for path in tmp_path.glob(".kept/*/compare.json")] == [content] * (content is not None)
