"""Sixty questions in eight forms of file, as people have them: each goes from the file to a fused model."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import MODEL
from helpers.input import upft

SIXTY = [(f"Tom has {n} pens and buys {n % 7}; how many, in all?", str(n + n % 7)) for n in range(60)]


def xlsx_csv(path: Path) -> None:
    """What Excel writes where the comma is the decimal sign: `;`, CRLF and a byte order mark."""
    rows = "".join(f'"{question}";{answer}\r\n' for question, answer in SIXTY)
    path.write_bytes(f"\ufeffQuestion;Final Answer\r\n{rows}".encode())


def unicode_text(path: Path) -> None:
    """Excel's Unicode text: tabs and UTF-16."""
    path.write_bytes(("Problem\tSolution\n" + "".join(f"{q}\t{a}\n" for q, a in SIXTY)).encode("utf-16"))


def parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    prompts = [[{"role": "user", "content": question}] for question, _ in SIXTY]
    models = [{"style": "rule", "ground_truth": answer} for _, answer in SIXTY]
    pq.write_table(pa.table({"prompt": prompts, "reward_model": models}), path)


def chat(path: Path) -> None:
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in SIXTY]
    path.write_text("".join(json.dumps({"messages": both}) + "\n" for both in turns))


def alpaca(path: Path) -> None:
    path.write_text(json.dumps([{"instruction": q, "input": "", "output": a} for q, a in SIXTY], indent=2))


def share_gpt(path: Path) -> None:
    turns = [[{"from": "human", "value": q}, {"from": "gpt", "value": a}] for q, a in SIXTY]
    path.write_text(json.dumps([{"conversations": both} for both in turns]))


def packed(path: Path) -> None:
    rows = "".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in SIXTY)
    path.write_bytes(gzip.compress(rows.encode()))


def options(path: Path) -> None:
    labels = ["A", "B", "C"]
    rows = [
        {"question": q, "choices": {"text": [str(int(a) + n) for n in range(3)], "label": labels}, "answerKey": "A"}
        for q, a in SIXTY
    ]
    path.write_text("\n".join(json.dumps(row, indent=1) for row in rows))


FORMS: dict[str, Callable[[Path], None]] = {
    "my questions.csv": xlsx_csv,
    "unicode.TXT.csv": unicode_text,
    "verl.parquet": parquet,
    "chat.ndjson": chat,
    "alpaca.json": alpaca,
    "share.JSON": share_gpt,
    "packed.jsonl.gz": packed,
    "options.jsonl": options,
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "0")
    shutil.copytree(MODEL, tmp_path / "my-model")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMS)
def test_sixty_questions_go_from_the_file_to_a_fused_model(folder: Path, name: str) -> None:
    FORMS[name](folder / name)
    made = upft("new", "my-model", name, "--json")
    assert made.exit_code == 0, made.stderr
    facts = json.loads(made.stdout)
    assert facts["problems"]["rows"] == facts["problems"]["answered"] == 60
    assert sorted(facts["files"].values()) == [12, 48]
    assert facts["benchmark"].get("grader") == ("choice" if name == "options.jsonl" else None)
    few = ["problems.limit=8", "evaluate.limit=2", "generate.max_tokens=8", "evaluate.max_tokens=8", "train.steps=1"]
    sets = [part for change in [*few, "train.epochs=null"] for part in ("--set", change)]
    done = upft("run", facts["recipe"], "--plain", "--offline", *sets)
    assert done.exit_code == 0, done.stderr
    assert list(folder.glob("runs/*/fused/config.json"))


def test_the_demo_s_model_is_said_to_know_its_own_kind_of_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    packed(tmp_path / "q.jsonl.gz")
    assert "the demo's kind of question alone" in upft("new", "builtin:arithmetic", "q.jsonl.gz").stdout
    shutil.copytree(MODEL, tmp_path / "mine")
    assert "the demo's kind" not in upft("new", "mine", "q.jsonl.gz", "-o", "other.yaml").stdout


def test_a_question_with_different_answers_is_pointed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"What is {number} + 1?,{number + 1}\n" for number in range(12))
    (tmp_path / "q.csv").write_text(f"question,answer\n{rows}What is 3 + 1?,5\n")
    said = " ".join(upft("new", "builtin:arithmetic", "q.csv").stdout.split())
    assert (
        "a question has different answers: '4' and '5' (rows with the ids '3' and '12'); a test uses the first one"
        in said
    )
