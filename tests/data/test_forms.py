"""The forms in which people have their questions: each is read as the same problems, or refused with a remedy."""

from __future__ import annotations

import gzip
import json
import math
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from upft_mlx.data.benchmarks import load_benchmark, resolve
from upft_mlx.data.problems import Problem, load_problems, stream_problems
from upft_mlx.data.source import Notes
from upft_mlx.errors import ProblemsError
from upft_mlx.recipe.evaluate import Benchmark, Evaluate
from upft_mlx.recipe.schema import Problems

SIXTY = [(f"Tom has {n} pens, Ann {n % 7}; how many, in all?", str(n + n % 7)) for n in range(60)]
WANTED = [(question, answer) for question, answer in SIXTY]


def read(path: Path, **section: Any) -> tuple[list[Problem], Notes]:
    notes = Notes()
    problems = list(stream_problems(Problems(path=str(path), **section), notes=notes))
    return problems, notes


def refused(path: Path, **section: Any) -> str:
    with pytest.raises(ProblemsError) as caught:
        read(path, **section)
    return str(caught.value)


def rows(question: str = "question", answer: str = "answer") -> list[dict[str, Any]]:
    return [{question: q, answer: a} for q, a in SIXTY]


def lines(values: list[Any]) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def separated(mark: str, header: str = "question,answer") -> str:
    cells = [(f'"{q}"' if mark in q else q, a) for q, a in SIXTY]
    return header.replace(",", mark) + "\n" + "".join(f"{q}{mark}{a}\n" for q, a in cells)


def parquet(path: Path, columns: dict[str, list[Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)
    return path


CHAT = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in SIXTY]
PARTS = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": q}]},
        ],
        "answer": a,
    }
    for q, a in SIXTY
]
SHAREGPT = [
    {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}, {"from": "human", "value": "Why?"}]}
    for q, a in SIXTY
]
ALPACA = [{"instruction": q, "input": "", "output": a} for q, a in SIXTY]
VERL = [
    {"prompt": [{"role": "user", "content": q}], "reward_model": {"style": "rule", "ground_truth": a}} for q, a in SIXTY
]

TEXT_FORMS: dict[str, tuple[str, bytes]] = {
    "JSON lines": ("q.jsonl", lines(rows()).encode()),
    "upper-case ending": ("Q.JSONL", lines(rows()).encode()),
    "ndjson": ("q.ndjson", lines(rows()).encode()),
    "compressed": ("q.jsonl.gz", gzip.compress(lines(rows()).encode())),
    "array on one line": ("q.json", json.dumps(rows()).encode()),
    "indented array": ("q.json", json.dumps(rows(), indent=2).encode()),
    "array in a .jsonl": ("q.jsonl", json.dumps(rows(), indent=1).encode()),
    "pretty-printed objects": ("q.jsonl", "\n".join(json.dumps(row, indent=2) for row in rows()).encode()),
    "lines joined by commas": ("q.jsonl", ",\n".join(json.dumps(row) for row in rows()).encode()),
    "one line joined by commas": ("q.json", ", ".join(json.dumps(row) for row in rows()).encode()),
    "array, a row a line, a comma too many": (
        "q.json",
        ("[\n" + "".join(json.dumps(row) + ",\n" for row in rows()) + "]\n").encode(),
    ),
    "comma": ("q.csv", separated(",").encode()),
    "semicolon": ("q.csv", separated(";").encode()),
    "tab in a .csv": ("q.CSV", separated("\t").encode()),
    "tsv": ("q.tsv", separated("\t").encode()),
    "Excel names the separator": ("q.csv", ("sep=;\r\n" + separated(";").replace("\n", "\r\n")).encode()),
    "UTF-16": ("q.csv", separated("\t").encode("utf-16")),
    "UTF-16 JSON": ("q.jsonl", lines(rows()).encode("utf-16")),
    "compressed CSV": ("q.csv.gz", gzip.compress(separated(";").encode())),
    "header with spaces": ("q.csv", separated(",", " Question , Final Answer ").encode()),
    "empty columns and rows": ("q.csv", (separated(",", "question,answer").replace("\n", ",,\n") + ",,,\n").encode()),
    "messages": ("q.jsonl", lines(CHAT).encode()),
    "messages with content parts": ("q.jsonl", lines(PARTS).encode()),
    "ShareGPT": ("q.json", json.dumps(SHAREGPT).encode()),
    "Alpaca": ("q.json", json.dumps(ALPACA, indent=4).encode()),
    "verl": ("q.jsonl", lines(VERL).encode()),
    "expected_answer": ("q.jsonl", lines(rows("problem", "expected_answer")).encode()),
    "final_answer": ("q.jsonl", lines(rows("problem", "final_answer")).encode()),
    "response": ("q.jsonl", lines(rows("query", "response")).encode()),
    "completion": ("q.jsonl", lines(rows("prompt", "completion")).encode()),
}


@pytest.mark.parametrize("form", TEXT_FORMS)
def test_sixty_questions_are_read_in_each_form(tmp_path: Path, form: str) -> None:
    name, content = TEXT_FORMS[form]
    (tmp_path / name).write_bytes(content)
    problems, _ = read(tmp_path / name)
    assert [(problem.question, problem.answer) for problem in problems] == WANTED
    entry = Benchmark(name="mine", path=str(tmp_path / name))
    assert load_benchmark(resolve(Evaluate(benchmarks=(entry,)))[0]) == problems


def test_parquet_holds_nested_columns_and_decimals(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {
        "prompt": [row["prompt"] for row in VERL],
        "reward_model": [row["reward_model"] for row in VERL],
    }
    problems, _ = read(parquet(tmp_path / "q.parquet", columns))
    assert [(problem.question, problem.answer) for problem in problems] == WANTED
    decimals: dict[str, list[Any]] = {"question": ["a?", "b?"], "answer": [Decimal("2.50"), Decimal("1200000.00")]}
    found, _ = read(parquet(tmp_path / "Q.PARQUET", decimals))
    assert [problem.answer for problem in found] == ["2.50", "1200000.00"]
    large: dict[str, list[Any]] = {"question": ["a?", "b?"], "answer": [1e16, -2.5e20]}
    found, _ = read(parquet(tmp_path / "large.parquet", large))
    assert [problem.answer for problem in found] == ["1" + 16 * "0", "-25" + 19 * "0"], "and no 1e+16"


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("JSON lines", []),
        ("comma", []),
        ("tsv", []),
        ("semicolon", ["q.csv: columns are separated by `;`"]),
        ("tab in a .csv", ["q.CSV: columns are separated by tabs"]),
        ("UTF-16", ["q.csv: read as UTF-16 text", "q.csv: columns are separated by tabs"]),
        ("messages", ["the questions are the user turns in `messages`"]),
        (
            "messages with content parts",
            [
                "system turns of the conversations are left out; `prompt.system` sets one for all questions",
                "the questions are the user turns in `messages`",
            ],
        ),
        (
            "ShareGPT",
            [
                "of conversations with several questions, the first one and its answer are taken",
                "the questions are the user turns in `conversations`",
            ],
        ),
    ],
)
def test_what_is_not_obvious_about_how_a_file_was_read_is_said_once(tmp_path: Path, form: str, said: list[str]) -> None:
    name, content = TEXT_FORMS[form]
    (tmp_path / name).write_bytes(content)
    assert read(tmp_path / name)[1].lines() == said


def test_a_dotted_path_names_a_nested_field(tmp_path: Path) -> None:
    values = [{"input": {"question": q}, "meta": [{"gold": a}], "a.b": "x"} for q, a in SIXTY]
    (tmp_path / "q.jsonl").write_text(lines(values))
    problems, _ = read(tmp_path / "q.jsonl", question="input.question", answer="meta.0.gold")
    assert [(problem.question, problem.answer) for problem in problems] == WANTED
    flat, _ = read(tmp_path / "q.jsonl", question="input.question", answer="a.b")
    assert {problem.answer for problem in flat} == {"x"}  # a column whose name has a dot
    shown = refused(tmp_path / "q.jsonl", question="input.qestion")
    assert "did you mean 'input.question'? it has input.question, meta, a.b" in shown
    assert "name the question column with `question: " in refused(tmp_path / "q.jsonl")


@pytest.mark.parametrize("names", ["instruction input output", "Instruction Input Output", "INSTRUCTION input Output"])
def test_alpacas_input_is_part_of_the_question(tmp_path: Path, names: str) -> None:
    row = dict(zip(names.split(), ["Add.", "1 and 1", "2"], strict=True))
    instruction, _, output = names.split()
    for path, nested in (("A.b.", {"A": {"b": row}}), ("A.", {f"A.{name}": text for name, text in row.items()})):
        (tmp_path / "q.json").write_text(json.dumps([nested]))
        problems, _ = read(tmp_path / "q.json", question=path + instruction, answer=path + output)
        assert problems == [Problem("0", "Add.\n1 and 1", "2")]
    (tmp_path / "q.json").write_text(json.dumps([row]))
    problems, notes = read(tmp_path / "q.json")
    assert problems == [Problem("0", "Add.\n1 and 1", "2")]
    assert notes.lines() == ["the questions are `instruction` and `input`, a line each"]


def test_an_empty_answer_is_looked_for_in_the_other_columns(tmp_path: Path) -> None:
    values = [
        {"problem": "a?", "answer": "", "solution": "so \\boxed{5}"},
        {"problem": "b?", "answer": "6", "solution": "so \\boxed{7}"},
        {"problem": "c?", "answer": " ", "solution": None},
        {"problem": "d?", "answer": math.nan, "solution": "8"},
    ]
    (tmp_path / "q.jsonl").write_text(lines(values))
    assert [problem.answer for problem in read(tmp_path / "q.jsonl")[0]] == ["so \\boxed{5}", "6", None, "8"]
    named, _ = read(tmp_path / "q.jsonl", answer="answer")
    assert [problem.answer for problem in named] == [None, "6", None, None]


# Options.

QUESTION = "Which is a fruit?"
OPTIONS: dict[str, dict[str, Any]] = {
    "ARC": {"choices": {"text": ["stone", "apple", "shoe"], "label": ["A", "B", "C"]}, "answerKey": "B"},
    "ARC with numbers": {"choices": {"text": ["stone", "apple", "shoe"], "label": ["1", "2", "3"]}, "answerKey": "2"},
    "MMLU": {"choices": ["stone", "apple", "shoe"], "answer": 1},
    "number beside a gap": {"choices": ["stone", "apple", "shoe"], "answer": 1.0},
    "label beside a gap": {"choices": {"text": ["stone", "apple", "shoe"], "label": [*"123"]}, "answer": 2.0},
    "letter": {"options": ["stone", "apple", "shoe"], "answer": "b"},
    "letter in brackets": {"options": ["stone", "apple", "shoe"], "answer": "(B)"},
    "text": {"options": ["stone", "apple", "shoe"], "answer": "apple"},
    "mapping": {"options": {"A": "stone", "B": "apple", "C": "shoe"}, "answer": "B"},
    "list of mappings": {
        "choices": [{"label": "A", "text": "stone"}, {"label": "B", "text": "apple"}, {"label": "C", "text": "shoe"}],
        "answerKey": "B",
    },
    "null in a mapping": {"options": {"A": "stone", "B": None, "C": "apple", "D": "shoe"}, "answer": "C"},
    "null with a label": {"choices": {"text": ["stone", "apple", "shoe", None], "label": [*"ABCD"]}, "answer": "B"},
    "beside other lists": {"options": ["stone", "apple", "shoe"], "answer": "B", "output": ["a", "b"], "solution": {}},
}  # fmt: skip


@pytest.mark.parametrize("form", OPTIONS)
def test_options_stand_below_the_question_and_the_answer_is_a_letter(tmp_path: Path, form: str) -> None:
    (tmp_path / "q.jsonl").write_text(lines([{"question": QUESTION, **OPTIONS[form]}]))
    shown = f"{QUESTION}\n\n(A) stone\n(B) apple\n(C) shoe"
    assert read(tmp_path / "q.jsonl")[0] == [Problem("0", shown, "B")]


def test_options_that_the_question_lists_already_are_not_repeated(tmp_path: Path) -> None:
    question = "Which is a fruit? A. stone B. apple C. shoe"
    (tmp_path / "q.jsonl").write_text(lines([{"question": question, **OPTIONS["ARC"]}]))
    assert read(tmp_path / "q.jsonl")[0][0].question == question


def test_numbers_that_are_options_are_texts_before_they_are_places(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(lines([{"question": "1 + 1?", "choices": ["0", "2", "1"], "answer": "2"}]))
    assert read(tmp_path / "q.jsonl")[0][0].answer == "B"
    (tmp_path / "q.jsonl").write_text(lines([{"question": "1 + 1?", "choices": [1.0, 2.0, 3.0], "answer": 2.0}]))
    assert read(tmp_path / "q.jsonl")[0][0].answer == "B"


def test_an_answer_that_is_no_option_is_refused(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(lines([{"question": QUESTION, **OPTIONS["ARC"], "answerKey": "E"}]))
    shown = refused(tmp_path / "q.jsonl")
    assert "q.jsonl:1: the answer should be one of the options A, B, C, found 'E'; fix it, or leave" in shown


def test_other_columns_called_options_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(lines([{"question": "a?", "options": "none", "answer": "5"}]))
    assert read(tmp_path / "q.jsonl")[0] == [Problem("0", "a?", "5")]


@pytest.mark.parametrize("empty", [None, [], {}, {"A": None, "B": None}, {"text": None, "label": None}])
def test_a_row_without_options_is_a_question_as_it_stands(tmp_path: Path, empty: Any) -> None:
    (tmp_path / "q.jsonl").write_text(lines([{"question": "a?", "options": empty, "answer": "5"}]))
    assert read(tmp_path / "q.jsonl")[0] == [Problem("0", "a?", "5")]


# Bad rows, and ids that repeat.

BAD: dict[str, Callable[[], bytes]] = {
    "infinity": lambda: b'{"question": "b?", "answer": Infinity}\n',
    "list": lambda: b'{"question": "b?", "answer": ["1", "2"]}\n',
    "bool": lambda: b'{"question": "b?", "answer": true}\n',
    "no question": lambda: b'{"question": " ", "answer": "5"}\n',
    "no column": lambda: b'{"answer": "5"}\n',
    "not JSON": lambda: b'{"question": "b?\n',
    "no object": lambda: b'["b?"]\n',
    "half a surrogate pair": lambda: b'{"question": "\\ud800"}\n',
    "half a pair in a wrong answer": lambda: b'{"question": "b?", "answer": "5", "Incorrect Answer 1": "\\ud800"}\n',
    "more options than letters": lambda: lines(
        [{"question": "b?", "options": [*"abcdefghijk"], "answer": "B"}]
    ).encode(),
    "one option": lambda: b'{"question": "b?", "options": {"A": "x", "B": null}, "answer": "A"}\n',
    "a list with a gap": lambda: b'{"question": "b?", "options": ["x", null, "y"], "answer": 2}\n',
    "options of another form": lambda: b'{"question": "b?", "options": [{"key": "A", "value": "x"}], "answer": "A"}\n',
    "conversation without a user": lambda: b'{"question": [{"role": "assistant", "content": "x"}]}\n',
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named_by_its_line_and_can_be_skipped(tmp_path: Path, case: str) -> None:
    good = b'{"question": "a?", "answer": "1"}\n'
    (tmp_path / "q.jsonl").write_bytes(good + BAD[case]() + good)
    shown = refused(tmp_path / "q.jsonl")
    assert shown.startswith(f"{tmp_path}/q.jsonl:2: ")
    assert shown.endswith("leave such rows out with `bad_rows: skip` (`upft new`: --skip-bad-rows)")
    problems, notes = read(tmp_path / "q.jsonl", bad_rows="skip")
    assert [problem.id for problem in problems] == ["0", "2"]
    [said] = notes.lines()
    assert said.startswith(f"left out 1 row that cannot be used; the first: {tmp_path}/q.jsonl:2: ")
    assert "--skip-bad-rows" not in said


WHOLE = '{"question": "a?", "answer": "1"}'


@pytest.mark.parametrize("ends", ["\n", "\r\n", ",\n", "\n\n"])
@pytest.mark.parametrize("first", [*(WHOLE[:end] for end in range(2, len(WHOLE))), WHOLE + "}", "[2026-11-01] begun"])
def test_the_first_line_is_a_bad_row_as_any_other(tmp_path: Path, first: str, ends: str) -> None:
    (tmp_path / "q.jsonl").write_bytes((first + ends + (WHOLE + ends) * 2).encode())
    shown = refused(tmp_path / "q.jsonl")
    assert shown.startswith(f"{tmp_path}/q.jsonl:1: not JSON: ")
    assert shown.endswith("leave such rows out with `bad_rows: skip` (`upft new`: --skip-bad-rows)")
    assert [problem.id for problem in read(tmp_path / "q.jsonl", bad_rows="skip")[0]] == ["1", "2"]


@pytest.mark.parametrize(
    "text",
    [
        '{"meta":\n{"x": 1},\n"question": "a?", "answer": "1"}\n' + WHOLE,
        '{\n"question": "a?",\n"meta":\n{"x": 1},\n"answer": "1"}\n' + WHOLE,
        f"[\n{WHOLE},\n{WHOLE}\n]",
        f"[{WHOLE},\n{WHOLE},\n]",
        f"{WHOLE} {WHOLE.replace(',', ',' + chr(10))}",
        f"{WHOLE},{WHOLE}\n{WHOLE}",
    ],
)
def test_a_whole_object_on_a_line_does_not_make_json_lines(tmp_path: Path, text: str) -> None:
    (tmp_path / "q.json").write_text(text)
    assert {problem.question for problem in read(tmp_path / "q.json")[0]} == {"a?"}


def test_csv_rows_with_too_many_fields_can_be_skipped(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("question,answer\na?,1\nWhat, if any?,2\nb?,3\n")
    assert "q.csv:3: 3 columns, but the header has 2; a field that holds `,` needs quotes; fix it" in refused(
        tmp_path / "q.csv"
    )
    assert len(read(tmp_path / "q.csv", bad_rows="skip")[0]) == 2


def test_a_file_without_a_usable_row_is_refused_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"question": ""}\n' * 3)
    assert "none of its 3 rows can be used; the first: " in refused(tmp_path / "q.jsonl", bad_rows="skip")
    (tmp_path / "q.jsonl").write_text("oops\n")
    assert "q.jsonl:1: not JSON" in refused(tmp_path / "q.jsonl", bad_rows="skip")


def test_a_private_benchmark_says_how_many_rows_it_left_out_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(lines([{"question": "a?", "answer": "1"}, {"question": ["canary"]}]))
    entry = Benchmark(name="mine", path=str(tmp_path / "q.jsonl"), private=True, bad_rows="skip")
    notes = Notes()
    assert len(load_benchmark(resolve(Evaluate(benchmarks=(entry,)))[0], notes=notes)) == 1
    assert notes.lines() == ["left out 1 row that cannot be used; the first: (withheld)"]


def test_repeated_ids_are_refused_and_rows_can_be_numbered(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(lines([{"id": "x", "question": "a?"}, {"id": "x", "question": "b?", "key": "y"}]))
    assert "number the rows with `id: none` (`upft new`: --id none)" in refused(tmp_path / "q.jsonl")
    assert [problem.id for problem in read(tmp_path / "q.jsonl", id="none")[0]] == ["0", "1"]
    assert [problem.id for problem in read(tmp_path / "q.jsonl", id="key")[0]] == ["0", "y"]
    assert "no column 'nr'; it has id, question, key" in refused(tmp_path / "q.jsonl", id="nr")


# What is refused, with the command that converts it: the commands are run.


def converted(folder: Path, message: str) -> None:
    [command] = [part for part in message.split("`")[1::2] if " " in part]
    found = command.replace("python3 -c", f"{sys.executable} -c")
    subprocess.run(found, shell=True, cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize(
    ("name", "content", "then"),
    [
        ("q.csv", separated(",").replace("Ann", "Zoë").encode("latin-1"), "q-utf8.csv"),
        ("q.jsonl", lines(rows()).encode("utf-16-le"), "q-utf8.jsonl"),
        ("q.csv.gz", gzip.compress(separated(",").replace("Ann", "Zoë").encode("latin-1")), "q-utf8.csv"),
        ("my q.json", json.dumps({"n": 60, "it's": rows()}).encode(), "my q-rows.jsonl"),
        ("q.json.gz", gzip.compress(json.dumps({"data": rows()}).encode()), "q-rows.jsonl"),
        ("my q.txt", "".join(f"{question}\n" for question, _ in SIXTY).encode(), "my q.jsonl"),
    ],
)
def test_the_command_that_a_refusal_names_makes_a_file_that_is_read(
    tmp_path: Path, name: str, content: bytes, then: str
) -> None:
    (tmp_path / name).write_bytes(content)
    converted(tmp_path, refused(tmp_path / name))
    found = [problem.question.replace("Zoë", "Ann") for problem in read(tmp_path / then)[0]]
    assert found == [question for question, _ in SIXTY]


def test_a_folder_of_datasets_names_the_command_that_makes_a_file_of_it(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(rows()).save_to_disk(str(tmp_path / "my-data"))
    converted(tmp_path, refused(tmp_path / "my-data"))
    assert [(p.question, p.answer) for p in read(tmp_path / "my-data.jsonl")[0]] == WANTED


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("q.jsonl.zip", b"PK\x03\x04", ["q.jsonl.zip: not a .jsonl,", "unpack it: `unzip "]),
        ("q.csv", b"PK\x03\x04", ["q.csv: is a zip or Excel file; unpack it, or export it as CSV UTF-8"]),
        ("q.xlsx", b"PK\x03\x04", ["export it as CSV (Excel: Save As, CSV UTF-8; Numbers: Export To, CSV)"]),
        ("q.jsonl", gzip.compress(b"{}", mtime=0), ["q.jsonl: is compressed; name it q.jsonl.gz"]),
        ("q.jsonl.gz", gzip.compress(lines(rows()).encode())[:-40], ["cannot be unpacked", "pack it again"]),
        ("q.jsonl.gz", b"{}", ["cannot be unpacked (Not a gzipped file"]),
        ("q.json", b'[\n{"question": "a?"},\n{"question" "b?"}\n]', ["q.json:3: not JSON: Expecting ':' delimiter"]),
        ("q.json", b'[{"question": "a?"}', ["q.json:1: the array has no end (`]`): the file was cut"]),
        ("q.json", b'[{"question": "a?"}, 5]', ["q.json:1: row 2: expected an object with columns, found '5'"]),
        ("q.json", b'[\n{"question": "a?"},\n\n{"question": ""}]', ["q.json:4: row 2: question: the question is"]),
        ("q.json", b'{"a": [{}], "data": [{"q": 1}, {}]}', ["q.json: its rows are inside the field 'data', where"]),
        ("q.json", b'{"turns": [{"role": "user", "content": "a?"}]}', ["q.json:1: no column named question", "turns"]),
        ("q.csv", b"question,answer,answer\na?,1,2\n", ["q.csv:1: two columns are called 'answer'; rename one"]),
    ],
)  # fmt: skip
def test_what_cannot_be_read_says_what_to_do(tmp_path: Path, name: str, content: bytes, parts: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    shown = refused(tmp_path / name)
    assert all(part in shown for part in parts), shown


def test_a_missing_file_suggests_one_beside_it(tmp_path: Path) -> None:
    (tmp_path / "questions.jsonl").write_text(lines(rows()))
    assert "no such file; did you mean 'questions.jsonl'? set `path` to a " in refused(tmp_path / "question.jsonl")


# Large and hostile files.


def peak(path: Path) -> int:
    tracemalloc.start()
    assert sum(1 for _ in stream_problems(Problems(path=str(path)))) > 0
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


@pytest.mark.parametrize("name", ["q.json", "q.jsonl.gz", "q.csv"])
def test_a_large_file_is_read_piece_by_piece(tmp_path: Path, name: str) -> None:
    many = [{"question": f"{n}? " + "x" * 500, "answer": n} for n in range(20_000)]
    content = {
        "q.json": json.dumps(many),
        "q.jsonl.gz": lines(many),
        "q.csv": "question;answer\n" + "".join(f"{row['question']};{row['answer']}\n" for row in many),
    }[name].encode()
    (tmp_path / name).write_bytes(gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
    assert len(content) > 10_000_000
    assert peak(tmp_path / name) < 3_500_000


def test_a_compressed_file_cannot_unpack_to_a_line_without_end(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "q.jsonl.gz", "wb") as file:
        for _ in range(100):
            file.write(b" " * 1_000_000)
    assert "q.jsonl.gz:1: longer than 16,777,216 characters; put each row on its own line" in refused(
        tmp_path / "q.jsonl.gz"
    )


@settings(max_examples=200, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(st.fixed_dictionaries({"question": st.text(min_size=1).filter(lambda t: t.strip())}), min_size=1),
    indent=st.sampled_from([None, 1, 4]),
    layout=st.sampled_from(["array", "commas", "lines"]),
    raw=st.booleans(),
)
def test_json_is_read_the_same_in_every_layout(
    tmp_path: Path,
    values: list[dict[str, str]],
    indent: int | None,
    layout: str,
    raw: bool,
) -> None:
    usable = [v for v in values if not any("\ud800" <= c <= "\udfff" for c in v["question"])]
    if not usable:
        return
    texts = [json.dumps(value, indent=indent, ensure_ascii=not raw) for value in usable]
    joined = (
        json.dumps(usable, indent=indent) if layout == "array" else {"commas": ",", "lines": "\n"}[layout].join(texts)
    )
    path = tmp_path / "q.json"
    path.write_bytes(joined.encode())
    assert [problem.question for problem in load_problems(Problems(path=str(path)))] == [v["question"] for v in usable]
