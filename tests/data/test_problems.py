"""Datasets: what is read from each format, and that a fault is named with file, line, column and remedy."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.input import ONE_PROBLEM, write
from huggingface_hub import constants
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from upft_mlx.data.hub import look
from upft_mlx.data.problems import Problem, load_problems
from upft_mlx.errors import ProblemsError
from upft_mlx.recipe.evaluate import Benchmark
from upft_mlx.recipe.schema import Problems


def read(path: Path, *, limit: int | None = None, shuffle: int | None = None, **columns: Any) -> list[Problem]:
    return load_problems(Problems(path=str(path), **columns), limit=limit, shuffle=shuffle)


def jsonl(folder: Path, content: str | bytes, **options: Any) -> list[Problem]:
    return read(write(folder / "q.jsonl", content), **options)


def csv(folder: Path, content: str | bytes, **options: Any) -> list[Problem]:
    return read(write(folder / "q.csv", content), **options)


def parquet(folder: Path, columns: dict[str, list[Any]], **options: Any) -> list[Problem]:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / "q.parquet")
    return read(folder / "q.parquet", **options)


def row(**columns: Any) -> str:
    return json.dumps(columns) + "\n"


# What is read.


def test_a_jsonl_row_is_a_problem(tmp_path: Path) -> None:
    found = jsonl(tmp_path, '{"id": "t-1", "question": "Ann has 3 apples ...", "answer": "5"}\n')
    assert found == [Problem("t-1", "Ann has 3 apples ...", "5")]


def test_the_embedded_problems_are_read() -> None:
    section = Problems(builtin="arithmetic")
    train, test = (load_problems(section, builtin=name) for name in ("train", "test"))
    assert len(train) > 500
    assert len(test) >= 250
    assert all(problem.answer for problem in train + test)
    assert not {p.question for p in train} & {p.question for p in test}


def test_answers_are_not_needed(tmp_path: Path) -> None:
    assert jsonl(tmp_path, row(question="a?")) == [Problem("0", "a?", None)]


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        ("5", "5"),
        (5, "5"),
        (-2.5, "-2.5"),
        ("", None),
        (None, None),
        (math.nan, None),  # as Python's json writes a missing value
        (10**30, "1" + "0" * 30),
        (10**400, "1" + "0" * 400),  # no float holds it
        ("1/2 \\frac{1}{2}", "1/2 \\frac{1}{2}"),
    ],
)
def test_an_answer_is_a_text_whatever_its_type(tmp_path: Path, value: Any, answer: str | None) -> None:
    assert jsonl(tmp_path, row(question="a?", answer=value))[0].answer == answer


@pytest.mark.parametrize("column", ["question", "problem", "query", "prompt"])
def test_the_questions_column_is_found(tmp_path: Path, column: str) -> None:
    assert jsonl(tmp_path, row(other="no", **{column: "a?"}))[0].question == "a?"


@pytest.mark.parametrize("column", ["answer", "solution"])
def test_the_answers_column_is_found(tmp_path: Path, column: str) -> None:
    assert jsonl(tmp_path, row(question="a?", other="no", **{column: "5"}))[0].answer == "5"


@pytest.mark.parametrize("column", ["id", "unique_id", "problem_id"])
def test_the_ids_column_is_found(tmp_path: Path, column: str) -> None:
    assert jsonl(tmp_path, row(question="a?", **{column: "x-7"}))[0].id == "x-7"


def test_a_column_called_none_is_not_what_was_not_found(tmp_path: Path) -> None:
    assert csv(tmp_path, "question,None\nq,red\n") == [Problem("0", "q", None)]


def test_named_columns_come_before_found_ones(tmp_path: Path) -> None:
    content = row(question="no", problem="a?", answer="no", solution="5")
    found = jsonl(tmp_path, content, question="problem", answer="solution")
    assert found == [Problem("0", "a?", "5")]


@pytest.mark.parametrize("ids", [[{}, {}, {}], [{"id": None}, {"id": 1.5}, {"id": ""}]])
def test_rows_without_an_id_are_numbered(tmp_path: Path, ids: list[dict[str, Any]]) -> None:
    content = "".join(row(question=f"{n}?", **more) for n, more in enumerate(ids))
    assert [problem.id for problem in jsonl(tmp_path, content)] == ["0", "1", "2"]


def test_numeric_ids_are_texts(tmp_path: Path) -> None:
    half_filled = parquet(tmp_path, {"id": [7.0, None], "question": ["a?", "b?"]})
    assert [p.id for p in half_filled] == ["7", "1"]
    assert [p.id for p in jsonl(tmp_path, row(id=7, question="a?") + row(id=0, question="b?"))] == ["7", "0"]


def test_blank_lines_are_skipped_and_counted_in_line_numbers(tmp_path: Path) -> None:
    assert len(jsonl(tmp_path, "\n" + ONE_PROBLEM + "\n   \n" + row(question="b?") + "\n\n")) == 2
    with pytest.raises(ProblemsError, match=r"q\.jsonl:4: not JSON"):
        jsonl(tmp_path, "\n" + ONE_PROBLEM + "\n{")


@pytest.mark.parametrize("tail", ["", "\n", "\r\n"])
def test_byte_order_mark_line_ends_and_a_missing_last_one_do_no_harm(tmp_path: Path, tail: str) -> None:
    content = "\ufeff" + ONE_PROBLEM.replace("\n", "\r\n") + row(question="b?").strip() + tail
    assert [problem.question for problem in jsonl(tmp_path, content)] == ["1 + 1?", "b?"]


def test_texts_keep_every_character(tmp_path: Path) -> None:
    question = "  Größe  €\u2028 \U0001f600 \\frac{1}{2}\ntwo lines\t\x00 "
    assert jsonl(tmp_path, row(question=question))[0].question == question
    assert jsonl(tmp_path, json.dumps({"question": question}, ensure_ascii=False))[0].question == question


def test_the_limit_takes_the_first(tmp_path: Path) -> None:
    content = "".join(row(question=f"{n}?") for n in range(9))
    assert [p.question for p in jsonl(tmp_path, content, limit=3)] == ["0?", "1?", "2?"]
    assert len(jsonl(tmp_path, content, limit=99)) == 9


def test_the_shuffle_depends_on_the_seed_alone_and_comes_before_the_limit(tmp_path: Path) -> None:
    content = "".join(row(question=f"{n}?") for n in range(50))
    whole = [p.question for p in jsonl(tmp_path, content, shuffle=3)]
    assert whole == [p.question for p in jsonl(tmp_path, content, shuffle=3)]
    assert whole != [p.question for p in jsonl(tmp_path, content, shuffle=4)]
    assert sorted(whole) == sorted(f"{n}?" for n in range(50))
    assert [p.question for p in jsonl(tmp_path, content, shuffle=3, limit=5)] == whole[:5]
    assert set(whole[:5]) != {f"{n}?" for n in range(5)}


def test_the_shuffle_is_the_same_on_every_machine(tmp_path: Path) -> None:
    """A golden order: runs with one seed must be comparable across versions."""
    content = "".join(row(question=f"{n}") for n in range(8))
    assert "".join(p.question for p in jsonl(tmp_path, content, shuffle=0)) == GOLDEN_ORDER


GOLDEN_ORDER = "41520376"


def test_rows_without_an_id_keep_their_number_in_a_shuffle(tmp_path: Path) -> None:
    content = "".join(row(question=f"{n}") for n in range(9))
    assert all(p.id == p.question for p in jsonl(tmp_path, content, shuffle=1))


def test_csv_fields_may_be_quoted_and_hold_commas_quotes_and_line_breaks(tmp_path: Path) -> None:
    found = csv(tmp_path, 'id,question,answer\r\na,"One, ""two""\nthree?",3\r\n\r\nb,Four?,\r\n')
    assert found == [Problem("a", 'One, "two"\nthree?', "3"), Problem("b", "Four?", None)]


def test_a_csv_field_may_be_as_long_as_a_line_of_json(tmp_path: Path) -> None:
    question = "Is this long? " * 20_000
    assert csv(tmp_path, f'question,answer\n"{question}",yes\n') == [Problem("0", question, "yes")]


def test_csv_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    assert csv(tmp_path, "\ufeffquestion\na?\n") == [Problem("0", "a?", None)]


def test_parquet_is_read_with_numbers_and_nulls(tmp_path: Path) -> None:
    found = parquet(tmp_path, {"problem": ["a?", "b?"], "answer": [3, None]})
    assert found == [Problem("0", "a?", "3"), Problem("1", "b?", None)]


def test_pictures_beside_the_questions_of_a_hub_dataset_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding takes a package that is not here; a dataset with pictures in lists has them deeper."""
    monkeypatch.setattr(datasets.config, "PIL_AVAILABLE", False)
    picture = datasets.Image()
    features = {"question": datasets.Value("string"), "one": picture, "more": datasets.List(picture)}
    stored = {"bytes": b"no picture", "path": None}
    columns = {"question": ["a?", "b?"], "one": [stored, None], "more": [[stored], []]}
    table = pa.table(columns, schema=datasets.Features(features).arrow_schema)
    (tmp_path / "set").mkdir()
    pq.write_table(table, tmp_path / "set" / "train.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    source = Problems(dataset=str(tmp_path / "set"))
    assert load_problems(source) == [Problem("0", "a?"), Problem("1", "b?")]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert [row["question"] for _, row in look(source, 2).rows if isinstance(row, dict)] == ["a?", "b?"]


def test_parquet_of_many_batches_keeps_its_order(tmp_path: Path) -> None:
    found = parquet(tmp_path, {"question": [f"{n}" for n in range(2500)]})
    assert [int(problem.question) for problem in found] == list(range(2500))


def test_a_benchmark_is_a_source_too(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", row(q="a?", a="5"))
    entry = Benchmark(name="mine", path=str(path), question="q", answer="a")
    assert load_problems(entry) == [Problem("0", "a?", "5")]


# What is refused. The fault stands in the middle, on line 2.

FAULTS: dict[str, tuple[str | bytes, str]] = {
    "not JSON": (
        "{oops}\n",
        ":2: not JSON: Expecting property name enclosed in double quotes, found '{oops}'",
    ),
    "cut in the middle": ('{"question": "a\n', ":2: not JSON: Unterminated string"),
    "two objects": (ONE_PROBLEM.strip() + ONE_PROBLEM, ":2: not JSON: Extra data"),
    "long line is shown in part": ('{"question": ' + "x" * 500 + "\n", "x..."),
    "array": ('["1 + 1?", "2"]\n', ':2: expected an object with columns, found \'["1 + 1?", "2"]\''),
    "text": ('"1 + 1?"\n', ":2: expected an object with columns"),
    "null": ("null\n", ":2: expected an object with columns, found 'null'"),
    "not UTF-8": (b'{"question": "caf\xe9"}\n', ":2: not UTF-8 text"),
    "deep nesting": ("[" * 100_000 + "\n", ":2: not JSON: "),
    "number of 5000 digits": (
        f'{{"question": "a", "answer": {"1" * 5000}}}\n',
        ":2: not JSON: Exceeds the limit",
    ),
    "no question": (row(answer="2"), ":2: no column 'question'; it has answer"),
    "nothing": ("{}\n", ":2: no column 'question'; it has none"),
    "empty question": (row(question=""), ":2: question: the question is empty; fix it, or leave"),
    "blank question": (
        row(question=" \n\t"),
        ":2: question: the question is empty; fix it, or leave such rows out with `bad_rows: skip`",
    ),
    "null question": (row(question=None), ":2: question: expected text or a conversation, found null"),
    "numeric question": (row(question=3), ":2: question: expected text or a conversation, found 3"),
    "NaN question": ('{"question": NaN}\n', ":2: question: expected text or a conversation, found null"),
    "chat for a question": (
        row(question=[{"role": "user"}]),
        ':2: question: expected text or a conversation, found [{"role": "user"}]',
    ),
    "boolean answer": (row(question="a", answer=True), ":2: answer: expected text or a number, found true"),
    "list for an answer": (
        row(question="a", answer=["5"]),
        ':2: answer: expected text or a number, found ["5"]',
    ),
    "infinite answer": (
        '{"question": "a", "answer": -Infinity}\n',
        "expected text or a number, found -Infinity",
    ),
    "half a surrogate pair in a question": (
        '{"question": "a\\ud800b"}\n',
        ":2: '\\ud800' is half of a surrogate pair",
    ),
    "half a surrogate pair in an answer": (
        '{"question": "a", "answer": "\\udc00"}\n',
        ":2: '\\udc00' is half of a",
    ),
    "id that is taken": (
        row(id="x", question="a"),
        ":3: the id 'x' is already used (by {file}:2); give each row its own id, or number the rows with `id: none`",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_malformed_line_in_the_middle_is_named(tmp_path: Path, case: str) -> None:
    fault, part = FAULTS[case]
    content = fault if isinstance(fault, bytes) else fault.encode()
    before = row(id="w", question="b?", answer="4").encode()
    with pytest.raises(ProblemsError) as caught:
        jsonl(tmp_path, before + content + row(id="x", question="c?").encode())
    found = str(caught.value)
    assert part.format(file=f"{tmp_path}/q.jsonl") in found if "{file}" in part else part in found
    assert found.startswith(f"{tmp_path}/q.jsonl:")
    assert len(found) - len(str(tmp_path)) < 370
    found.encode()


def test_an_id_that_equals_the_number_of_a_row_without_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProblemsError, match=r"q\.jsonl:2: the id '1' is already used \(by .*q\.jsonl:1\)"):
        jsonl(tmp_path, row(id="1", question="a?") + row(question="b?"))


@pytest.mark.parametrize("name", ["q.jsonl", "q.csv", "q.parquet"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ProblemsError, match=rf"{name}: no such file; set `path` to a \.jsonl, "):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["q.yaml", "q.txt", "q", "q.jsonl.zip", "q.xlsx", "q.parquet.gz"])
def test_another_kind_of_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ProblemsError, match=rf"{name}: not a \.jsonl, \.json, \.csv, \.tsv or \.parquet file; "):
        read(write(tmp_path / name, ONE_PROBLEM))


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").mkdir()
    with pytest.raises(ProblemsError, match=r"is a folder; set `path` to a \.jsonl"):
        read(tmp_path / "q.jsonl")


@pytest.mark.parametrize(
    ("name", "content"),
    [("q.jsonl", ""), ("q.jsonl", "\n  \n"), ("q.csv", ""), ("q.csv", "question,answer\n")],
)
def test_an_empty_file_is_refused(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(ProblemsError, match=f"{name}: no rows; a dataset needs at least one question"):
        read(write(tmp_path / name, content))


def test_an_empty_parquet_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProblemsError, match=r"q\.parquet: no rows"):
        parquet(tmp_path, {"question": []})


def test_without_a_question_column_what_there_is_is_listed(tmp_path: Path) -> None:
    with pytest.raises(ProblemsError) as caught:
        jsonl(tmp_path, row(text="a?", target="5"))
    assert str(caught.value) == (
        f"{tmp_path}/q.jsonl:1: no column named question, problem, query, prompt, instruction, messages, "
        "conversations; it has text, target; name the question column with `question: text`"
    )


@pytest.mark.parametrize(("field", "column"), [("question", "question"), ("answer", "COLUMN")])
def test_a_named_column_that_is_missing_is_refused(tmp_path: Path, field: str, column: str) -> None:
    with pytest.raises(ProblemsError) as caught:
        jsonl(tmp_path, ONE_PROBLEM, **{field: "txt"})
    assert str(caught.value) == (
        f"{tmp_path}/q.jsonl:1: no column 'txt'; it has question, answer; name the {field} column with "
        f"`{field}: {column}`"
    )


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("question,answer\na?,1\nb?\nc?,3\n", ":3: 1 column, but the header has 2"),
        ("question,answer\na?,1\nb?,2,3\nc?,3\n", ":3: 3 columns, but the header has 2"),
        ('question,answer\n"a\n?",1\nb?\n', ":4: 1 column, but the header has 2"),
        ('question,answer\na?,1\n"b?,2\nc?,3\n', ":3: not CSV: unexpected end of data"),
        ('question,answer\na?,1\n"b"x,2\n', ":3: not CSV: ',' expected after '\"'"),
        ("question,answer\na?,1\n,2\n", ":3: question: the question is empty"),
        (b"question,answer\na?,1\ncaf\xe9?,2\n", ":3: not UTF-8 text"),
        ('question\n"' + ("x" * (1 << 20) + "\n") * 17, ":2: not CSV: field larger than field limit"),
    ],
    ids=[
        "short",
        "long",
        "after a line break",
        "open quote",
        "after a quote",
        "empty",
        "latin-1",
        "huge",
    ],
)
def test_a_malformed_csv_row_is_named_by_its_first_line(tmp_path: Path, content: str | bytes, part: str) -> None:
    with pytest.raises(ProblemsError) as caught:
        csv(tmp_path, content)
    assert str(caught.value).startswith(f"{tmp_path}/q.csv{part}")


@pytest.mark.parametrize(
    ("columns", "part"),
    [
        ({"question": ["a?", ""]}, ": row 2: question: the question is empty"),
        ({"question": ["a?", None]}, ": row 2: question: expected text or a conversation, found null"),
        ({"question": [1, 2]}, ": row 1: question: expected text or a conversation, found 1"),
        ({"q": ["a?"]}, ": row 1: no column named question"),
        ({"question": ["a?"], "answer": [[1]]}, ": row 1: answer: expected text or a number, found [1]"),
        ({"question": ["a?"], "answer": [math.inf]}, ": row 1: answer: expected text or a number, found Infinity"),
        ({"id": [1, 1], "question": ["a?", "b?"]}, ": row 2: the id '1' is already used (by "),
    ],
)
def test_a_malformed_parquet_row_is_named(tmp_path: Path, columns: dict[str, list[Any]], part: str) -> None:
    with pytest.raises(ProblemsError) as caught:
        parquet(tmp_path, columns)
    assert str(caught.value).startswith(f"{tmp_path}/q.parquet{part}")


def test_two_columns_of_one_name_are_refused_in_parquet_as_in_csv(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([["a?"], ["1"], ["2"]], ["question", "answer", "answer"])
    pq.write_table(table, tmp_path / "q.parquet")
    with pytest.raises(ProblemsError, match=r"q\.parquet: two columns are called 'answer'; rename one"):
        read(tmp_path / "q.parquet")


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "head", "middle"])
def test_a_broken_parquet_file_is_refused(tmp_path: Path, damage: str) -> None:
    parquet(tmp_path, {"question": [f"question {n * n}?" for n in range(5000)]})
    whole = (tmp_path / "q.parquet").read_bytes()
    third = len(whole) // 3
    broken = {
        "empty": b"",
        "text": b"question\na?\n",
        "cut": whole[:third],
        "head": b"\xff" * 200 + whole[200:],
        "middle": whole[:third] + b"\xff" * third + whole[2 * third :],
    }[damage]
    with pytest.raises(ProblemsError, match=r"q\.parquet: (after row \d+: )?cannot be read as Parquet: "):
        read(write(tmp_path / "q.parquet", broken))


def test_parquet_text_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    bad = pa.Array.from_buffers(pa.utf8(), 1, pa.array([b"caf\xe9"]).buffers())
    pq.write_table(pa.table({"question": bad}), tmp_path / "q.parquet")
    with pytest.raises(ProblemsError, match=r"q\.parquet: cannot be read as Parquet: .*utf-8"):
        read(tmp_path / "q.parquet")


# Arbitrary content.

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(["question", "answer", "id", "problem", "prompt", "solution", "x"])
LINES = st.one_of(
    st.binary(max_size=40),
    st.dictionaries(NAMES, VALUES, max_size=4).map(lambda columns: json.dumps(columns).encode()),
    st.just(ONE_PROBLEM.strip().encode()),
)
ARBITRARY = settings(
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    database=None,
)


WHOLE = (": no rows", ": not UTF-8 text", ": is a zip", ": is compressed")
"""What is said of a file, not of a line."""


def assert_problems_or_an_error_with_its_place(path: Path) -> None:
    problems, message = read_or_message(path)
    if message is None:
        assert problems
        assert all(problem.question.strip() for problem in problems)
        assert len({problem.id for problem in problems}) == len(problems)
    else:
        place = message.removeprefix(str(path))
        assert place.startswith(WHOLE) or place.split(":")[1].isdigit(), message


def read_or_message(path: Path) -> tuple[list[Problem], str | None]:
    try:
        return read(path), None
    except ProblemsError as error:
        return [], str(error)


@ARBITRARY
@given(lines=st.lists(LINES, max_size=4))
@example(lines=[b"\xef\xbb\xbf", b"{}"])
@example(lines=[b'{"question": "\\ud800"}'])
@example(lines=[b"PK\x03\x04"])
@example(lines=[b"\x1f\x8b"])
@example(lines=[b"\0"])
def test_any_jsonl_gives_problems_or_names_the_line(tmp_path: Path, lines: list[bytes]) -> None:
    assert_problems_or_an_error_with_its_place(write(tmp_path / "q.jsonl", b"\n".join(lines)))


@ARBITRARY
@given(content=st.binary(max_size=60) | st.text('aq",\r\n\0', max_size=40).map(str.encode))
def test_any_csv_gives_problems_or_names_the_line(tmp_path: Path, content: bytes) -> None:
    assert_problems_or_an_error_with_its_place(write(tmp_path / "q.csv", b"question,a\n" + content))


def test_optional_columns_need_not_stand_in_the_first_row(tmp_path: Path) -> None:
    rows = '{"question": "a"}\n{"question": "b", "answer": "2", "id": "x", "level": 3}\n{"question": "c", "id": "y"}\n'
    path = tmp_path / "x.jsonl"
    path.write_text(rows)
    found = [(p.id, p.answer, p.level) for p in load_problems(Problems(path=str(path)))]
    assert found == [("0", None, None), ("x", "2", "3"), ("y", None, None)]
    named = load_problems(Problems(path=str(path), answer="answer"))
    assert [p.answer for p in named] == [None, "2", None]
