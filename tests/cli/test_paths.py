"""Paths on the command line that cannot be written to a run's files."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.input import upft


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "quickstart", "--run-dir", "bad\udcff"),
        ("new", "builtin:arithmetic", "questions.csv", "--output", "bad\udcff.yaml"),
        ("new", "builtin:arithmetic", "bad\udcff/questions.csv"),
        ("new", "bad\udcff", "questions.csv"),
        ("export", "quickstart", "--format", "peft", "--to", "bad\udcff"),
        ("runs", "bad\udcff"),
        ("ask", "quickstart", "hi", "--adapter", "bad\udcff"),
        ("fuse", "quickstart", "--adapter", "bad\udcff=0.5"),
    ],
)
def test_a_path_that_is_not_utf_8_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = upft(*arguments)
    assert result.exit_code == 2
    assert "\\xff" in result.stderr or "\\udcff" in result.stderr
    assert "is not UTF-8" in " ".join(result.stderr.split())
    assert not [*tmp_path.iterdir()]
