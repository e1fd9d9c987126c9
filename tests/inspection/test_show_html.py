"""`upft show RUN --html`: the page of a real run, from its files."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.input import upft, write
from helpers.runs import RUN, made, run_stage, there

from upft_mlx.rows import EvaluationRow, TrainingRow, read_rows

__all__ = ["made", "there"]


def shown(*arguments: str) -> str:
    """The page that the command writes."""
    done = upft("show", *arguments, "--html")
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == f"{RUN.root}/report.html: open it in a browser"
    return (RUN.root / "report.html").read_text(encoding="utf-8")


def data_of(text: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_page_has_every_problem_as_both_variants_answered_it(there: Path) -> None:
    found = data_of(shown("r"))
    rows = [list(read_rows(RUN.rows_of("arithmetic", variant), EvaluationRow)) for variant in ("base", "tuned")]
    assert [line[1] for line in found["rows"]] == [row.problem_id for row in rows[0]]
    for line, base, tuned in zip(found["rows"], *rows, strict=True):
        for variant, row in ((line[7], base), (line[8], tuned)):
            assert variant == [
                int(row.correct),
                row.answer,
                row.tokens,
                int(row.finish_reason == "length"),
                row.completion,
            ]
    assert all(line[3].endswith("?") for line in found["rows"])


def test_the_page_shows_training_rows_token_by_token(there: Path) -> None:
    text = shown("r")
    row = next(read_rows(RUN.train, TrainingRow))
    article = text[text.index(f"</b> {row.id} ·") :].partition("</article>")[0]
    supervised = re.findall(r'<span class="t on(?: b)?">(.*?)</span>', article)
    assert len(supervised) == len(row.completion_ids)
    assert "".join(supervised) == row.completion
    for part in (
        "Loss",
        "How far tuned is from base",
        "How answers begin",
        "First tokens of 6 base and 6 tuned answers",
    ):
        assert part in text


def test_the_page_can_be_had_as_json_and_says_where_it_is(there: Path) -> None:
    done = upft("show", "r", "--html", "--json")
    assert json.loads(done.stdout) == {"page": f"{RUN.root}/report.html"}


def test_no_browser_is_opened_from_a_pipe(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr("webbrowser.open", lambda address: pytest.fail(address))
    shown("r")


def test_a_private_benchmark_stays_out_of_the_page(there: Path) -> None:
    question = "A secret child has 3 pens and gets 4 more. How many pens are there?"
    write(there / "secret.jsonl", json.dumps({"question": question, "answer": "7"}) + "\n")
    benchmarks = "evaluate.benchmarks=[{name: arithmetic, limit: 2}, {name: mine, path: secret.jsonl, private: true}]"
    run_stage("evaluate", benchmarks)
    text = shown("r")
    assert "secret child" not in text
    assert "mine is private: its 1 problem is not in this file." in text
    assert {line[0] for line in data_of(text)["rows"]} == {0}


def test_without_the_model_the_page_counts_words_and_has_no_rows(there: Path) -> None:
    recipe = json.loads(RUN.recipe.read_text())
    RUN.recipe.write_text(json.dumps({**recipe, "model": os.fspath(there / "gone")}))
    text = shown("r")
    assert "First words of 6 base and 6 tuned answers" in text
    assert 'id="rows-trained"' not in text
    assert len(data_of(text)["rows"]) == 6


def test_a_run_that_has_not_been_measured_has_a_page(there: Path) -> None:
    for path in (RUN.ledger, RUN.copy):
        ledger = json.loads(path.read_text())
        path.write_text(json.dumps({stage: ledger[stage] for stage in ("generate", "build", "train")}))
    text = shown("r")
    assert "Nothing is measured yet" in text
    assert 'id="problems"' not in text
    assert "Loss" in text


def test_show_names_the_files_that_are_there(there: Path) -> None:
    """It named a report.md that an interrupted run had not written, and never report.html."""
    assert "page" not in json.loads(upft("show", "r", "--json").stdout)["files"]
    shown("r")
    assert upft("show", "r").stdout.splitlines()[-1].split() == ["page", f"{RUN.root}/report.html"]
    os.utime(RUN.report, (RUN.page.stat().st_atime, RUN.page.stat().st_mtime + 1))  # a stage has run since
    assert upft("show", "r").stdout.splitlines()[-1].split() == ["report", f"{RUN.root}/report.md"]
    for path in (RUN.ledger, RUN.copy, RUN.report):
        path.unlink()
    text = upft("show", "r").stdout
    assert "report" not in text
    assert text.splitlines()[-1] == f"no stage is finished; `upft run {RUN.root}` begins or continues"


def test_the_page_never_shows_what_an_earlier_adapter_scored(there: Path) -> None:
    text, page = shown("r"), RUN.root / "report.html"
    settings = ("--plain", "--set", "train.learning_rate=0.1")
    assert upft("train", "r.yaml", *settings).exit_code == 0
    assert page.read_text(encoding="utf-8") == shown("r") != text
    assert "Nothing is measured yet" in page.read_text(encoding="utf-8")
    assert upft("train", "r.yaml", "--plain").exit_code == 0
    assert page.read_text(encoding="utf-8") == shown("r")
    (RUN.root / "evaluation/summary.json").write_text("{}")
    assert upft("train", "r.yaml", *settings).exit_code == 0
