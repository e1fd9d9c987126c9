"""`upft new`: what it finds, what it chooses, what it writes, and that the result runs."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from conftest import MODEL
from helpers.input import assert_fails, fake_hub, process, upft, write
from helpers.new import make, questions

from upft_mlx.data.benchmarks import load_benchmark, resolve
from upft_mlx.data.columns import Columns
from upft_mlx.data.problems import Problem, load_problems
from upft_mlx.new.data_facts import DataFacts
from upft_mlx.new.draft import relative
from upft_mlx.new.new import _benchmark
from upft_mlx.recipe.evaluate import Evaluate
from upft_mlx.recipe.fields import AUTO
from upft_mlx.recipe.load import load_recipe
from upft_mlx.recipe.override import recipe_for_model
from upft_mlx.recipe.schema import Problems


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a model; take back what the command sets in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "0")
    shutil.copytree(MODEL, tmp_path / "my-model")
    return tmp_path


# What is written.


def test_fifty_questions_become_a_recipe_that_runs_to_a_fused_model(folder: Path) -> None:
    write(folder / "my-questions.jsonl", questions())
    made = upft("new", "my-model", "my-questions.jsonl")
    assert made.exit_code == 0, made.stderr
    plan, command = made.stdout.splitlines()[-2:]
    assert plan.split() == ["next", "upft", "plan", "my-questions.yaml"]
    planned = upft(*plan.split()[2:], "--no-calibration", "--mac", "8")
    assert "every stage fits in memory" in planned.stdout, planned.stderr
    assert command.split() == ["upft", "run", "my-questions.yaml"]
    few = ["problems.limit=12", "evaluate.limit=4", "generate.max_tokens=16", "evaluate.max_tokens=16", "train.steps=2"]
    sets = [part for change in [*few, "train.epochs=null"] for part in ("--set", change)]
    done = upft(*command.split()[1:], "--plain", "--offline", *sets)
    assert done.exit_code == 0, done.stderr
    assert (folder / "runs/my-questions/fused/config.json").is_file()
    summary = json.loads((folder / "runs/my-questions/evaluation/summary.json").read_text())
    assert summary["benchmarks"]["my-questions-test"]["tuned"]["n"] == 4


def test_a_fifth_is_held_out_and_no_question_is_in_both_parts(folder: Path) -> None:
    write(folder / "my.jsonl", questions())
    recipe = make()
    [test] = resolve(recipe.evaluate)
    train, tests = load_problems(recipe.problems), load_benchmark(test)
    assert (len(train), len(tests)) == (40, 10)
    everything = load_problems(Problems(path=str(folder / "my.jsonl")))
    assert sorted([*train, *tests], key=lambda p: int(p.id)) == everything
    assert (folder / "my.jsonl").read_text() == questions()


def test_the_recipe_is_the_same_every_time(folder: Path) -> None:
    write(folder / "my.jsonl", questions())
    make()
    files = {path.name: path.read_bytes() for path in folder.glob("my*") if path.is_file()}
    make(force=True)
    assert {path.name: path.read_bytes() for path in folder.glob("my*") if path.is_file()} == files


def test_other_columns_and_formats_are_found(folder: Path) -> None:
    with (folder / "my.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Problem", "Solution", "level", "type", "note"])
        writer.writerows(
            [f"What, exactly, is {n}?", f"so \\boxed{{{n}}}", "Level 2", "Algebra", "x"] for n in range(30)
        )
    recipe = make("my.csv")
    first = load_problems(recipe.problems)[0]
    assert (first.level, first.subject) == ("2", "Algebra")
    assert first.question.startswith("What, exactly, is")
    assert load_benchmark(resolve(recipe.evaluate)[0])[0].answer in {str(n) for n in range(30)}


def test_columns_without_a_usual_name_are_asked_for_and_listed(folder: Path) -> None:
    write(folder / "my.jsonl", json.dumps({"text": "How many?", "gold": "2"}) + "\n")
    failed = upft("new", "my-model", "my.jsonl")
    assert_fails(failed, 1, "my.jsonl:1: no column named question, problem, ", "; it has text, gold; ")
    assert "with --question text" in failed.stderr
    assert not (folder / "my.yaml").exists()
    write(
        folder / "my.jsonl", "".join(json.dumps({"text": f"How many {n}?", "gold": str(n)}) + "\n" for n in range(20))
    )
    recipe = make(question="text", answer="gold")
    assert load_problems(recipe.problems)[0].answer is not None


def test_without_answers_everything_trains_and_gsm8k_measures(folder: Path) -> None:
    write(folder / "my.jsonl", "".join(json.dumps({"prompt": f"Why {n}?"}) + "\n" for n in range(50)))
    made = upft("new", "my-model", "my.jsonl")
    assert "evaluates on 200 questions of GSM8K, not on your data: it has no answers" in made.stdout
    assert "add an `answer` to some rows, 100 or more, and `upft new` sets a fifth of them aside" in made.stdout
    assert "upft fetch my.yaml" in made.stdout
    recipe = load_recipe("my.yaml")
    assert [(entry.label, entry.limit) for entry in resolve(recipe.evaluate)] == [("gsm8k", 200)]
    assert (recipe.problems.path, recipe.problems.question) == (str(folder / "my.jsonl"), "prompt")
    assert not list(folder.glob("*-test.jsonl"))


def test_rows_without_an_answer_train_and_do_not_measure(folder: Path) -> None:
    bare = "".join(json.dumps({"question": f"Why {n}?"}) + "\n" for n in range(10))
    write(folder / "my.jsonl", questions(10) + bare)
    recipe = make()
    [test] = resolve(recipe.evaluate)
    assert len(load_benchmark(test)) == 2
    assert len(load_problems(recipe.problems)) == 18


@pytest.mark.parametrize(("wanted", "test", "train"), [(None, 10, 40), (7, 7, 43), (49, 49, 1), (0, None, 50)])
def test_the_holdout_can_be_said(folder: Path, wanted: int | None, test: int | None, train: int) -> None:
    write(folder / "my.jsonl", questions())
    recipe = make(holdout=wanted)
    assert len(load_problems(recipe.problems)) == train
    [entry] = resolve(recipe.evaluate)
    assert (len(load_benchmark(entry)) if test else entry.label) == (test or "gsm8k")


def test_one_of_each_is_said_in_the_singular_and_no_option_is_blamed_that_was_not_given(folder: Path) -> None:
    write(folder / "one.jsonl", '{"question": "What is 1 + 1?", "answer": "2"}\n')
    said = upft("new", "my-model", "one.jsonl").stdout
    assert "problems  1 row; question" in said
    assert "--holdout 0" not in said
    assert "set aside. To measure on your own, use a file with more answers, 100 or more; or" in said
    assert "leave out --holdout 0" in upft("new", "my-model", "one.jsonl", "--holdout", "0", "--force").stdout
    write(
        folder / "two.jsonl", '{"question": "1 + 1?", "answer": "2"}\n' * 2 + '{"question": "3 + 1?", "answer": "4"}\n'
    )
    said = upft("new", "my-model", "two.jsonl", "--holdout", "1").stdout
    assert "1 test question\n" in said
    assert "1 row repeats a question;" in said


def test_letters_are_graded_as_a_choice(folder: Path) -> None:
    rows = [{"question": f"Which {n}? (A) a (B) b", "answer": "AB"[n % 2]} for n in range(20)]
    write(folder / "my.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    [entry] = resolve(make().evaluate)
    assert entry.grader == "choice"
    assert {problem.answer for problem in load_benchmark(entry)} <= {"A", "B"}


def test_a_hub_datasets_test_split_is_read_and_graded_as_its_training_split() -> None:
    """Ids, bad rows and the grader were left out of the benchmark's entry."""
    source = Problems.model_validate({"dataset": "o/x", "id": "none", "bad_rows": "skip"})
    columns = Columns(question="question", answer="answer", id=None)
    seen = [Problem(str(n), f"Which {n}? (A) a (B) b", "(b)" if n % 2 else "A") for n in range(4)]
    entry, warnings = _benchmark(DataFacts(source, columns, None, seen, ("train", "test")), None, "x")
    assert warnings == []
    found = resolve(Evaluate.model_validate({"benchmarks": [entry]}))[0]
    assert (found.split, found.id, found.bad_rows, found.grader) == ("test", "none", "skip", "choice")
    plain = Problems.model_validate({"dataset": "o/x"})
    entry, _ = _benchmark(DataFacts(plain, columns, None, [Problem("0", "1 + 1?", "2")], ("train", "test")), None, "x")
    assert not {"id", "bad_rows", "grader"} & set(entry)


def test_answers_in_prose_are_pointed_out(folder: Path) -> None:
    rows = [{"question": f"Why {n}?", "answer": "because the sky is blue"} for n in range(20)]
    write(folder / "my.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    made = upft("new", "my-model", "my.jsonl").stdout
    assert "4 of 4 answers are texts, not numbers or formulas (first: id " in made
    assert "the value goes in \\boxed{...} or after ####, or name a column that has it with --answer" in made
    assert "4 test questions: only large differences will show" in made


def test_every_line_of_the_recipe_has_its_reason_and_the_numbers_are_the_chosen_ones(folder: Path) -> None:
    write(folder / "my.jsonl", questions())
    made = json.loads(upft("new", "my-model", "my.jsonl", "--json").stdout)
    text = (folder / "my.yaml").read_text()
    assert max(map(len, text.splitlines())) <= 120
    recipe = load_recipe("my.yaml")
    assert recipe.model == str(folder / "my-model")
    assert made["chosen"] == {
        "thinks": False,
        "enable_thinking": None,
        "length": recipe.prefix.length,
        "structure_ratio": recipe.prefix.structure_ratio,
        "epochs": recipe.train.epochs,
        "max_tokens": recipe.generate.max_tokens,
        "max_length": None,
        "trained_together": recipe.train.batch_size,
        "grad_checkpoint": recipe.train.grad_checkpoint,
        "step_bytes": made["chosen"]["step_bytes"],
        "fuse": recipe.publish.fuse,
        "fuse_bytes": made["chosen"]["fuse_bytes"],
    }
    assert (recipe.generate.batch_size, recipe.evaluate.batch_size) == (AUTO, AUTO)
    assert made["files"] == {"my-train.jsonl": 40, "my-test.jsonl": 10}
    assert made["problems"]["answered"] == made["problems"]["rows"] == 50
    assert made["next"] == ["upft plan my.yaml", "upft run my.yaml"]


@pytest.mark.parametrize("where", ["recipes/new.yaml", "new", "new.yml"])
def test_the_output_can_be_said(folder: Path, where: str) -> None:
    (folder / "recipes").mkdir()
    write(folder / "data" / "my.jsonl", questions())
    recipe = make("data/my.jsonl", output=Path(where))
    assert recipe.name == "new"
    assert Path(recipe.model) == folder / "my-model"
    assert len(load_problems(recipe.problems)) == 40
    made = folder / (where if "." in where else f"{where}.yaml")
    assert (made.parent / "new-test.jsonl").is_file()
    assert not list((folder / "data").glob("*-t*"))


@pytest.mark.parametrize(
    ("path", "expected"),
    [("a/m", "./m"), ("m", "../m"), ("a/b/m", "./b/m"), ("../m", "../../m"), ("../../../m", None)],
)
def test_paths_are_relative_where_they_are_near(folder: Path, path: str, expected: str | None) -> None:
    assert relative(folder / path, folder / "a") == (expected or str((folder / path).resolve()))


# What is refused; nothing is written then.


@pytest.mark.parametrize(
    ("arguments", "status", "parts"),
    [
        (
            ["my-model", "none.jsonl"],
            1,
            ["none.jsonl: no such file; "],
        ),
        (["my-model", "my-model"], 1, ["my-model: is a folder; name a .jsonl, .json, .csv, .tsv or"]),
        (["my-model", "my-model/config.json"], 1, ["config.json:1: row 1: no column named question"]),
        (["my-model", "empty.jsonl"], 1, ["empty.jsonl: no rows"]),
        (["my-model", "bad.jsonl"], 1, ["bad.jsonl:2: not JSON"]),
        (
            ["my-model", "my.jsonl", "--question", "q"],
            1,
            ["no column 'q'; it has question, answer", "with --question question"],
        ),
        (["my-model", "my.jsonl", "--answer", "a"], 1, ["no column 'a'", "with --answer COLUMN"]),
        (["my-model", "my.jsonl", "--config", "main"], 2, ["--config: my.jsonl is a file"]),
        (["my-model", "my.jsonl", "--split", "test"], 2, ["--split: my.jsonl is a file"]),
        (
            ["my-model", "my.jsonl", "--holdout", "50"],
            1,
            ["--holdout 50: 50 different questions, 50 of them with"],
        ),
        (
            ["my-model", "bare.jsonl", "--holdout", "1"],
            1,
            ["--holdout 1: 1 different question, 0 of them"],
        ),
        (["my-model", "my.jsonl", "--thinking"], 2, ["--thinking: the model's chat template has no `enable_thinking`"]),
        (["my-model", "my.jsonl", "-o", "no/x.yaml"], 2, ["--output no/x.yaml: the folder no does not exist"]),
        (["my-model", "my.jsonl", "-o", "."], 2, ["--output .: is a folder; name the recipe's file in it"]),
        (["my-model", "my.jsonl", "-o", "/"], 2, ["--output /: is a folder"]),
        (["my-model", "my.jsonl", "-o", "my-model"], 2, ["--output my-model: is a folder"]),
        (["my-model", "builtin:arithmetic"], 2, ["dataset builtin:arithmetic: is the demo's model; name a file or"]),
        (["my.jsonl", "builtin:arithmetic"], 2, ["dataset builtin:arithmetic: is the demo's model"]),
        (["my-model", "my.jsonl", "-o", "_x.yaml"], 2, ["--output _x.yaml: the file's name becomes the run's"]),
        (["no-model", "my.jsonl"], 2, ["'no-model': neither a folder nor a Hub id"]),
        (
            ["bare-model", "my.jsonl"],
            1,
            ["bare-model: has no chat template; use an instruct model, or write"],
        ),
        (["no/model", "my.jsonl", "--offline"], 1, ["model no/model: not on this machine", "or name a local one"]),
        (["my-model", "no/data", "--offline"], 1, ["dataset no/data: not on this machine", "or name a local one"]),
    ],
)
def test_what_cannot_be_used_is_said(folder: Path, arguments: list[str], status: int, parts: list[str]) -> None:
    write(folder / "my.jsonl", questions())
    write(folder / "bare.jsonl", '{"question": "Why?"}\n')
    write(folder / "empty.jsonl", "\n")
    write(folder / "bad.jsonl", '{"question": "Why?"}\n{"question"\n')
    shutil.copytree(MODEL, folder / "bare-model")
    config = json.loads((folder / "bare-model/tokenizer_config.json").read_text())
    write(folder / "bare-model/tokenizer_config.json", json.dumps({k: v for k, v in config.items() if "chat" not in k}))
    before = sorted(folder.rglob("*"))
    if "--offline" in arguments:  # the switch must be set before the libraries are imported
        done = process("new", *arguments, cwd=folder, guard=folder.parent / "guard", loopback=False)
        assert done.returncode == status
        assert all(part in done.stderr for part in parts), done.stderr
    else:
        assert_fails(upft("new", *arguments), status, *parts)
    assert sorted(folder.rglob("*")) == before


def test_nothing_is_overwritten_without_force(folder: Path) -> None:
    write(folder / "my.jsonl", questions())
    write(folder / "my-test.jsonl", "mine")
    failed = upft("new", "my-model", "my.jsonl")
    assert_fails(failed, 2, "my-test.jsonl: exists already; choose another --output, or overwrite with --force")
    assert not (folder / "my.yaml").exists()
    assert upft("new", "my-model", "my.jsonl", "--force").exit_code == 0
    assert (folder / "my-test.jsonl").read_text() != "mine"


def test_the_same_command_again_changes_nothing_unless_a_file_is_another_now(folder: Path) -> None:
    write(folder / "my.jsonl", questions())
    made = [folder / name for name in ("my.yaml", "my-train.jsonl", "my-test.jsonl")]
    for _ in range(2):  # it may have been killed when all was written
        assert upft("new", "my-model", "my.jsonl").exit_code == 0
    for path in made:
        before = path.read_text()
        for other in (before + "#", before[:-1]):
            write(path, other)
            assert_fails(upft("new", "my-model", "my.jsonl"), 2, f"Error: {path.name}: exists already; choose")
            assert path.read_text() == other
        write(path, before)


def test_the_dataset_itself_is_never_overwritten(folder: Path) -> None:
    write(folder / "my-train.jsonl", questions())
    arguments = ("new", "my-model", "my-train.jsonl", "--output", "my.yaml", "--force")
    assert_fails(upft(*arguments), 1, "my-train.jsonl: would be overwritten by the output; choose another --output")
    assert (folder / "my-train.jsonl").read_text() == questions()
    (folder / "MY-train.jsonl").hardlink_to(folder / "my-train.jsonl")  # as where case makes no difference
    arguments = ("new", "my-model", "MY-train.jsonl", "--output", "my.yaml", "--force")
    assert_fails(upft(*arguments), 1, "MY-train.jsonl: would be overwritten by the output")


# The Hub.


def test_hub_ids_are_looked_at_without_downloading_weights_or_filling_the_cache(folder: Path) -> None:
    rows = "".join(json.dumps({"problem": f"q {n}", "solution": str(n)}) + "\n" for n in range(150)).encode()
    model = {path.name: path.read_bytes() for path in MODEL.iterdir()}
    repos = {"user/model": model, "datasets/user/data": {"train.jsonl": rows, "test.jsonl": rows}}
    guard = folder.parent / "guard"
    with fake_hub(repos) as hub:
        done = process("new", "user/model", "user/data", cwd=folder, guard=guard, HF_ENDPOINT=hub.endpoint)
        wrong = process(
            "new", "user/model", "user/data", "--split", "x", cwd=folder, guard=guard, HF_ENDPOINT=hub.endpoint
        )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "answers in `solution` (100 of 100 read)" in done.stdout
    assert "next      upft plan data.yaml\n          upft fetch data.yaml\n" in done.stdout
    assert not [line for line in hub.asked if "model.safetensors " in line]
    assert not list(guard.rglob("config.json"))
    recipe = load_recipe("data.yaml")
    assert (recipe.model, recipe.problems.dataset, recipe.problems.question) == ("user/model", "user/data", "problem")
    [entry] = resolve(recipe.evaluate)
    assert (entry.dataset, entry.split, entry.question, entry.answer) == ("user/data", "test", "problem", "solution")
    assert "dataset user/data: no split 'x'; it has train, test" in wrong.stderr


CACHED = """
import sys, time
time.sleep = lambda seconds: None
from upft_mlx.cli.main import cli
cli(["new", "user/model", "user/data", "--force", *sys.argv[1:]])
"""


@pytest.mark.slow
def test_what_is_cached_needs_no_network(folder: Path) -> None:
    guard, data = folder.parent / "guard", {"train.jsonl": questions().encode()}
    model = {path.name: path.read_bytes() for path in MODEL.iterdir()}
    write(folder / "r.yaml", "model: user/model\nproblems: {dataset: user/data}\n")
    with fake_hub({"user/model": model, "datasets/user/data": data}) as hub:
        assert process("fetch", "r.yaml", cwd=folder, guard=guard, HF_ENDPOINT=hub.endpoint).returncode == 0
        endpoint = hub.endpoint
    for options in (["--offline"], []):  # switched off, and out of reach
        done = process(*options, code=CACHED, cwd=folder, guard=guard, HF_ENDPOINT=endpoint)
        assert done.returncode == 0, done.stderr
        assert "50 rows; question in `question`" in done.stdout


@pytest.mark.parametrize(
    ("dataset", "name"),
    [("lücke.jsonl", "lucke"), ("Été 1.jsonl", "Ete-1"), ("数学.jsonl", "recipe"), ("数学-2.jsonl", "2")],
)
def test_a_name_keeps_the_letters_that_have_an_accent(folder: Path, dataset: str, name: str) -> None:
    write(folder / dataset, questions())
    assert make(dataset).name == name
    assert (folder / f"{name}.yaml").exists()


@pytest.mark.parametrize(("model", "name"), [("./modèle v2", "evaluate-modele-v2"), ("./模型", "evaluate-model")])
def test_an_evaluation_is_named_after_its_model_whatever_its_letters(model: str, name: str) -> None:
    assert recipe_for_model(model).name == name
