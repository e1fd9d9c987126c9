"""The evaluation sets: sources and prompts, original formats, subsets, options, and what is kept private."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from upft_mlx import pipeline
from upft_mlx.data.benchmarks import KNOWN, SOURCES, BenchmarkSpec, load_benchmark, resolve
from upft_mlx.data.problems import Problem
from upft_mlx.errors import ProblemsError, RecipeError
from upft_mlx.evaluation.evaluate import WITHHELD
from upft_mlx.events import Event, Graded
from upft_mlx.inspection.browse import seen
from upft_mlx.recipe.evaluate import Evaluate
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rundir import RunDir

MakeRecipe = Callable[..., Recipe]
MATH = [
    {"problem": "1 + 1?", "solution": r"It is $\boxed{2}$.", "level": "Level 1", "type": "Algebra"},
    {"problem": "2 + 2?", "solution": r"It is $\boxed{4}$.", "level": "Level 5", "type": "Algebra"},
    {"problem": "area?", "solution": r"It is $\boxed{\pi}$.", "level": "Level 5", "type": "Geometry"},
]
GPQA = [
    {
        "Record ID": f"rec{n}",
        "Question": f"Which canaryquestion has the number {n}?",
        "Correct Answer": f"canaryright {n}",
        "Incorrect Answer 1": f"canarywrong a{n}",
        "Incorrect Answer 2": f"canarywrong b{n}",
        "Incorrect Answer 3": f"canarywrong c{n}",
        "High-level domain": "Physics" if n % 2 else "Chemistry",
        "Pre-Revision Question": "an older canaryquestion",
    }
    for n in range(6)
]


def entry_of(**fields: Any) -> BenchmarkSpec:
    (entry,) = resolve(Evaluate.model_validate({"benchmarks": [fields]}))
    return entry


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_every_known_benchmark_has_a_source() -> None:
    assert KNOWN.keys() == SOURCES.keys()
    assert {"gsm8k", "math500", "aime2024", "aime2025", "gpqa", "gpqa-freeform", "arithmetic"} == KNOWN.keys()
    for name, source in SOURCES.items():
        if name != "arithmetic":
            assert re.fullmatch("[0-9a-f]{40}", source["revision"]), "a branch would change under the numbers"
    assert {name for name in KNOWN if entry_of(name=name).private} == {"gpqa", "gpqa-freeform"}
    assert {name for name in KNOWN if entry_of(name=name).grader == "integer"} == {"aime2024", "aime2025"}
    assert entry_of(name="gpqa").grader == "choice"


def test_no_known_benchmark_has_a_prompt_of_its_own() -> None:
    """They are asked as the recipe's problems are (test_instruction.py)."""
    assert {entry_of(name=name).prompt for name in KNOWN} == {None}


def test_a_recipe_overrides_prompt_grader_and_privacy() -> None:
    entry = entry_of(name="gpqa", prompt="Q: {question}\nA:", grader="maths", private=False)
    assert (entry.prompt, entry.grader, entry.private) == ("Q: {question}\nA:", "maths", False)
    with pytest.raises(ValueError, match=r"has no \{question\} in it"):
        Evaluate.model_validate({"benchmarks": [{"name": "gsm8k", "prompt": "Solve it."}]})


def test_original_formats_are_read(tmp_path: Path) -> None:
    gsm8k = [{"question": "How many?", "answer": "It is <<9*2=18>>18.\n#### 1,018"}]
    aime = [{"ID": "2024-I-1", "Problem": "Find m + n.", "Solution": "... so 073", "Answer": 73}]
    for name, rows, expected in (
        ("gsm8k", gsm8k, Problem("0", "How many?", "1,018")),
        ("math500", MATH[:1], Problem("0", "1 + 1?", "2", "1", "Algebra")),
        ("aime2024", aime, Problem("2024-I-1", "Find m + n.", "73")),
    ):
        path = write_rows(tmp_path / f"{name}.jsonl", rows)
        assert load_benchmark(entry_of(name=name, path=path)) == [expected]


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "own.jsonl", [{"text": "1 + 1?", "key": "2", "hard": 3, "field": "sums"}])
    columns = {"question": "text", "answer": "key", "level": "hard", "subject": "field"}
    assert load_benchmark(entry_of(name="own", path=path, **columns)) == [Problem("0", "1 + 1?", "2", "3", "sums")]
    with pytest.raises(
        ProblemsError,
        match=r"own.jsonl:1: no column 'difficulty'; it has .*; name the level column in its entry: --set",
    ):
        load_benchmark(entry_of(name="own", path=path, **columns | {"level": "difficulty"}))


@pytest.mark.parametrize(
    ("subset", "ids"),
    [
        ({"level": 5}, ["1", "2"]),
        ({"level": "Level 5"}, ["1", "2"]),
        ({"level": [1, 5]}, ["0", "1", "2"]),
        ({"subject": "algebra"}, ["0", "1"]),
        ({"level": 5, "subject": "Geometry"}, ["2"]),
        ({}, ["0", "1", "2"]),
    ],
)
def test_a_subset_by_level_or_subject(tmp_path: Path, subset: dict[str, Any], ids: list[str]) -> None:
    path = write_rows(tmp_path / "math.jsonl", MATH)
    entry = entry_of(name="math500", path=path, subset=subset)
    assert [problem.id for problem in load_benchmark(entry)] == ids


def test_a_limit_counts_within_the_subset(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "math.jsonl", MATH)
    assert [p.id for p in load_benchmark(entry_of(name="m", path=path, subset={"level": 5}, limit=1))] == ["1"]


def test_a_subset_that_is_not_there_says_what_is(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "math.jsonl", MATH)
    with pytest.raises(ProblemsError, match=r"benchmark m: subset level=7: it has 1, 5"):
        load_benchmark(entry_of(name="m", path=path, subset={"level": 7}))
    with pytest.raises(ProblemsError, match=r"benchmark arithmetic: subset level=5: its problems have no level"):
        load_benchmark(entry_of(name="arithmetic", subset={"level": 5}))
    with pytest.raises(ProblemsError, match="no problem is in the subset"):
        load_benchmark(entry_of(name="m", path=path, subset={"level": 1, "subject": "Geometry"}))


# GPQA, with rows of our own.


@pytest.fixture
def gpqa(tmp_path: Path) -> str:
    """A file with GPQA's columns."""
    return write_csv(tmp_path / "gpqa_diamond.csv", GPQA)


def test_gpqa_becomes_a_multiple_choice_in_a_seeded_order(gpqa: str) -> None:
    entry = entry_of(name="gpqa", path=gpqa)
    problems = load_benchmark(entry, seed=1)
    for n, problem in enumerate(problems):
        question, _, options = problem.question.partition("\n\n")
        assert question == GPQA[n]["Question"]
        lines = dict(re.findall(r"^\(([A-D])\) (.*)$", options, re.M))
        assert sorted(lines) == list("ABCD")
        assert lines[str(problem.answer)] == GPQA[n]["Correct Answer"]
        assert (problem.id, problem.wrong_answers) == (f"rec{n}", ())
    assert load_benchmark(entry, seed=1) == problems
    orders = {"".join(str(p.answer) for p in load_benchmark(entry, seed)) for seed in range(8)}
    assert len(orders) > 4
    limited = load_benchmark(entry_of(name="gpqa", path=gpqa, limit=3), seed=1)
    assert limited == problems[:3], "a limit changes no order"


def test_the_letters_of_many_problems_are_even(tmp_path: Path) -> None:
    rows = [{**GPQA[0], "Record ID": f"r{n}"} for n in range(2000)]
    problems = load_benchmark(entry_of(name="gpqa", path=write_csv(tmp_path / "many.csv", rows)))
    for letter in "ABCD":
        assert 420 < sum(problem.answer == letter for problem in problems) < 580


def test_gpqa_without_its_options(gpqa: str) -> None:
    problem = load_benchmark(entry_of(name="gpqa-freeform", path=gpqa))[2]
    assert (problem.question, problem.answer) == (GPQA[2]["Question"], GPQA[2]["Correct Answer"])


def test_a_choice_with_letters_of_its_own(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "mc.jsonl", [{"question": "Which? (A) 1 (B) 2", "answer": "(b)"}])
    assert load_benchmark(entry_of(name="mc", path=path, grader="choice"))[0].answer == "B"
    path = write_rows(tmp_path / "mc.jsonl", [{"question": "Which?", "answer": "two"}])
    many = write_rows(tmp_path / "many.jsonl", [{"question": "1 + 1?", "options": [*"0123456789X"], "answer": "C"}])
    with pytest.raises(ProblemsError, match="options: expected 2 to 10 options, each a text or a number, found"):
        load_benchmark(entry_of(name="mc", path=many, grader="choice"))
    with pytest.raises(ProblemsError, match="grader choice needs wrong answers"):
        load_benchmark(entry_of(name="mc", path=path, grader="choice"))
    path = write_rows(tmp_path / "mc.jsonl", [{"question": "Which?", "answer": "two", "no": "one", "never": "three"}])
    (problem,) = load_benchmark(entry_of(name="mc", path=path, grader="choice", wrong_answers=["no", "never"]))
    assert problem.question.count("\n(") == 3


@pytest.mark.parametrize("name", ["gpqa", "gpqa-freeform"])
def test_no_text_of_gpqa_reaches_a_file_or_the_screen(
    name: str, gpqa: str, tmp_path: Path, make_recipe: MakeRecipe, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = make_recipe(evaluate={"benchmarks": [{"name": name, "path": gpqa}], "max_tokens": 8})
    events: list[Event] = []
    run = tmp_path / "run"
    facts = pipeline.run_stage(recipe, run, "evaluate", events.append)
    graded = [event for event in events if isinstance(event, Graded)]
    assert len(graded) == len(GPQA)
    assert {event.question for event in graded} == {WITHHELD}
    shown = [item.dump() for item in seen(RunDir(run))]
    assert {item["question"] for item in shown} == {WITHHELD}
    files = [path for path in run.rglob("*") if path.is_file()]
    assert [path for path in files if path.name == "base.jsonl"]
    texts = [path.read_text(encoding="utf-8") for path in files]
    for text in (*texts, repr(graded), repr(shown), repr(facts), "".join(capfd.readouterr())):
        assert "canary" not in text


def test_what_is_wrong_in_a_private_file_is_said_without_its_text(tmp_path: Path) -> None:
    for line in ("canary is no JSON", '{"question": ["canary"], "answer": "x"}', '["canary"]'):
        path = tmp_path / "gpqa.jsonl"
        path.write_text(line + "\n")
        with pytest.raises(ProblemsError, match=r"gpqa.jsonl:1: ") as failure:
            load_benchmark(entry_of(name="gpqa", path=str(path)))
        assert "canary" not in str(failure.value)
        with pytest.raises(ProblemsError, match="canary"):
            load_benchmark(entry_of(name="mine", path=str(path)))


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "arithmetic"])
def test_the_hub_is_asked_for_the_pinned_revision(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    source, row = SOURCES[name], {"question": "1 + 1?", "answer": "2", **GPQA[0]}
    asked: list[tuple[Any, ...]] = []

    def load_dataset(dataset: str, config: str | None, *, split: str, revision: str) -> datasets.Dataset:
        asked.append((dataset, config, split, revision))
        datasets.Dataset.from_list([row]).save_to_disk(tmp_path / revision)
        return datasets.load_from_disk(tmp_path / revision)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load_benchmark(entry_of(name=name))) == 1
    assert asked == [(source["dataset"], source.get("config"), source["split"], source["revision"])]


def test_equal_withheld_answers_stay_equal_for_the_majority() -> None:
    from upft_mlx.evaluation.evaluate import graded_row
    from upft_mlx.grade.graders import Verdict
    from upft_mlx.sampling.decoding import Completion

    entry, problem = entry_of(name="gpqa-freeform"), Problem("p", "canary?", "canary gold")
    rows = [
        graded_row(entry, problem, 0, Completion([1], "stop"), "canary text", Verdict(answer, correct=False))
        for answer in ("0.5", r"\frac{1}{2}", "0.7", None)
    ]
    assert rows[0].answer == rows[1].answer != rows[2].answer
    assert rows[3].answer is None
    assert "canary" not in repr(rows)
    assert "0.5" not in repr(rows)


def test_unknown_benchmarks_are_named_together_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"'gsm8': unknown benchmark; did you mean 'gsm8k'\?"):
        entry_of(name="gsm8")


def test_the_shipped_golds_are_graded_right_by_their_own_grader(shared: Path) -> None:
    from upft_mlx.grade.graders import Task, grade

    aime = load_benchmark(entry_of(name="aime2024", path=str(shared / "data/benchmarks/aime2024.jsonl")))
    assert len(aime) == 30
    for problem in aime:
        assert grade(Task(f"It is \\boxed{{{problem.answer}}}.", str(problem.answer), "integer")).correct
        assert not grade(Task(f"It is \\boxed{{{problem.answer}.5}}.", str(problem.answer), "integer")).correct
    levels = load_benchmark(
        entry_of(name="math500", path=str(shared / "data/benchmarks/math500.jsonl"), subset={"level": 5})
    )
    assert len(levels) == 134


def test_the_parts_of_a_benchmark_share_no_question_whatever_the_order_seed_and_limit(tmp_path: Path) -> None:
    rows = [{"question": f"{n // 2} + 1?", "answer": str(n // 2 + 1)} for n in range(40)]  # each question twice
    found = {}
    for name, lines in (("a", rows), ("b", rows[::-1])):
        path = write_rows(tmp_path / f"{name}.jsonl", lines)
        for part in ("development", "rest"):
            for seed in (0, 1):
                problems = load_benchmark(entry_of(name="own", path=path, part=part), seed)
                assert len(problems) == 20
                found[name, part, seed] = {problem.question for problem in problems}
    development, rest = found["a", "development", 0], found["a", "rest", 0]
    assert len(development) == len(rest) == 10
    assert not development & rest
    assert all(questions == found["a", part, 0] for (_, part, _), questions in found.items())
    few = load_benchmark(entry_of(name="own", path=path, part="development", limit=5))
    assert {problem.question for problem in few} < development


def test_a_part_without_a_problem_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "one.jsonl", [{"question": "1 + 1?", "answer": "2"}])
    with pytest.raises(ProblemsError, match="of 1 question leaves the development part empty"):
        load_benchmark(entry_of(name="own", path=path, part="development"))
