"""Files survive interruptions: whole or not at all, and appended ones are cut back to whole chunks."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from helpers.facts import KIND, MOVEMENT, VIEW
from hypothesis import given
from hypothesis import strategies as st

from upft_mlx.errors import RowsError
from upft_mlx.forecasting.estimate import Forecast
from upft_mlx.results.fidelity import Fused
from upft_mlx.rows import (
    Solution,
    append_chunk,
    read_json,
    read_rows,
    replacing,
    resume,
    to_line,
    write_atomically,
    write_rows,
)
from upft_mlx.studies.prefix_statistics import Analysis
from upft_mlx.training.moved import Movement
from upft_mlx.training.row_loss import RowLoss


def solution(index: int) -> Solution:
    return Solution(str(index), 0, "prefix", [index, 2], "text\u2028 with\nnewlines", "length")


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "solutions.jsonl"
    write_rows(path, map(solution, range(3)))
    assert list(read_rows(path, Solution)) == [solution(i) for i in range(3)]
    assert path.read_bytes().count(b"\n") == 3


class Ids(list[int]):
    """Ids that count how often they, or copies of them, are iterated."""

    times = 0

    def __iter__(self) -> Iterator[int]:
        Ids.times += 1
        return super().__iter__()


def test_a_row_is_written_without_a_copy_of_its_ids() -> None:
    """Copying each id took a fifth of the CPU time of `upft build`."""
    line = to_line(Solution("0", 0, "prefix", Ids(range(3)), "text", "length"))
    assert Ids.times == 1, "by the writer of JSON"
    assert json.loads(line) == {
        "problem_id": "0",
        "sample": 0,
        "kind": "prefix",
        "completion_ids": [0, 1, 2],
        "completion": "text",
        "finish_reason": "length",
    }


LIKELY = {**VIEW, "kinds": {"prefix": KIND}}
CLOSE = {"kl": 0.1, "top1_agreement": 1.0, "greedy_agreement": 1.0}
FORM = {**CLOSE, "fuse": "base", "retained": 0.9, "kl_base": 1.0, "bytes": 9}
MEAN = {"mean": 0.5, "ci95": [0.4, 0.6]}
RULE = {
    "selection": "first",
    "length": 8,
    "problems": 9,
    "problem_coverage": 1.0,
    "tokens_per_problem": 8.0,
    "prefix_coverage": MEAN,
    "accuracy": MEAN,
    "forecast": MEAN,
    "greedy": None,
}
FORECAST = {
    "problems": 9,
    "samples": 2,
    "base": MEAN,
    "greedy_base": MEAN,
    "rules": [RULE],
    "probe": {"8": None},
    "advice": {"selection": None, "length": None, "text": "t"},
    "tokens_sampled": 5,
}
SHORT = {"reason": "r", "length": None}
ANALYSIS = {
    "samples": 2,
    "rollouts": 1,
    "self_consistency": [],
    "accuracy": [],
    "recommended": SHORT,
    "forecast": FORECAST,
}


def of_a_later_version(value: Any, kind: str = "") -> Any:
    """JSON with one more field in each object but those whose keys are data."""
    if isinstance(value, dict):
        more = {} if kind in ("kinds", "share", "probe") else {"later": 1}
        return {**{name: of_a_later_version(of, name) for name, of in value.items()}, **more}
    return [of_a_later_version(of) for of in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        (Fused, {**FORM, "rows": 1, "prompts": 1, "base": CLOSE, "candidates": [FORM]}),
        (RowLoss, LIKELY),
        (Movement, MOVEMENT),
        (Forecast, FORECAST),
        (Analysis, ANALYSIS),
    ],
)
def test_fields_of_later_versions_are_left_out_and_what_is_missing_is_named(kind: Any, found: dict[str, Any]) -> None:
    read = kind.load(found)
    assert kind.load(of_a_later_version(found)) == read
    assert kind.load(json.loads(json.dumps(read.dump()))) == read
    first = next(iter(found))
    with pytest.raises(RowsError, match=rf"\.json: {first}: Field required; move it away and run"):
        kind.load({name: value for name, value in found.items() if name != first})


@given(cut=st.integers(0, 400))
def test_resume_keeps_whole_chunks_wherever_a_file_was_cut(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("rows") / "solutions.jsonl"
    sizes = [2, 2, 1]
    whole = "".join(to_line(solution(i)) for i in range(5)).encode()
    ends = [len("".join(to_line(solution(i)) for i in range(n)).encode()) for n in (0, 2, 4, 5)]
    path.write_bytes(whole[:cut])
    chunks = resume(path, sizes)
    assert chunks == max(n for n, end in enumerate(ends) if end <= min(cut, len(whole)))
    assert path.read_bytes() == whole[: ends[chunks]]


def test_resume_drops_lines_beyond_the_last_chunk(tmp_path: Path) -> None:
    path = tmp_path / "solutions.jsonl"
    append_chunk(path, [solution(i) for i in range(5)])
    assert resume(path, [2, 2]) == 2
    assert len(list(read_rows(path, Solution))) == 4


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "expected the fields problem_id"),
        ('{"problem_id": "1"}', "expected the fields problem_id"),
        (to_line(solution(1)).replace('"prefix"', '"other"'), "kind: 'other' is not"),
        (to_line(solution(1)).replace("[1, 2]", '["1"]'), "completion_ids"),
        (to_line(solution(1)).replace('"sample": 0', '"sample": true'), "sample: True is not"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "solutions.jsonl"
    path.write_text(to_line(solution(0)) + line.rstrip("\n") + "\n")
    with pytest.raises(RowsError, match=rf"solutions\.jsonl:2: .*{message}"):
        list(read_rows(path, Solution))


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.json"
    write_atomically(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_in_its_place_is_no_failure_and_the_first_error_is_the_one_that_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, unlink, removed = tmp_path / "my.yaml", Path.unlink, Mock()

    def once(self: Path, missing_ok: bool = False) -> None:
        removed(self)
        if removed.call_count > 1:  # the first removes what an earlier process left
            raise PermissionError(13, "Permission denied", str(self))
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", once)
    write_atomically(path, "new")
    assert path.read_text() == "new"
    removed.reset_mock()

    def fails() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        fails()
    assert removed.call_count == 2, "it was tried"
    assert path.read_text() == "new"


def test_a_generator_that_fails_half_way_leaves_no_half_file(tmp_path: Path) -> None:
    def failing() -> Any:
        yield solution(0)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_rows(tmp_path / "train.jsonl", failing())
    assert list(tmp_path.iterdir()) == []


def test_broken_json_says_which_file_to_delete(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    path.write_text(json.dumps({"a": 1})[:-1])
    with pytest.raises(RowsError, match=r"ledger\.json: not JSON; move it away"):
        read_json(path)
