"""What somebody put into a run's folder is theirs: no command writes over it, and none removes it."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.input import write
from helpers.runs import RECIPE, files, shown


@pytest.mark.parametrize(
    "name", ["report.md", "report.html", "report.svg", "recipe.json", "dataset/train.jsonl", "fused/a"]
)
def test_a_folder_of_the_users_is_no_run_directory(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "r.yaml", RECIPE)
    write(tmp_path / "adapter/.DS_Store", "an empty folder, as the Finder leaves it")
    write(tmp_path / name, '{"mine": 1}')
    before = files(tmp_path)
    said = shown("generate", "r.yaml", "--plain", "--run-dir", ".", status=1)
    assert f"holds {name.partition('/')[0]}, which no run has made" in said
    assert files(tmp_path) == before
    (tmp_path / name).unlink()
    shown("generate", "r.yaml", "--plain", "--run-dir", ".")
    (tmp_path / "ledger.json").unlink()  # what a message advises where it is damaged
    shown("generate", "r.yaml", "--plain", "--run-dir", ".")
