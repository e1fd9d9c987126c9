"""Problems on the disk are the same sequence as in memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upft_mlx.data.on_disk import DiskProblems
from upft_mlx.data.problems import Problem, chosen

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(st.lists(st.builds(Problem, TEXT, TEXT, st.none() | TEXT), max_size=8))
def test_what_was_put_in_comes_out(problems: list[Problem]) -> None:
    spool = DiskProblems(iter(problems))
    assert len(spool) == len(problems)
    assert list(spool) == problems
    assert [spool[number] for number in reversed(range(len(problems)))] == problems[::-1]
    assert spool[1:3] == problems[1:3]


@pytest.mark.parametrize(("limit", "shuffle"), [(None, None), (3, None), (None, 7), (3, 7), (99, 7)])
def test_limit_and_shuffle_are_those_of_problems_in_memory(limit: int | None, shuffle: int | None) -> None:
    problems = [Problem(str(i), f"{i}?") for i in range(9)]
    spool = DiskProblems(problems)
    spool.take(limit, shuffle)
    assert list(spool) == [problems[number] for number in chosen(9, limit, shuffle)]


def test_two_readers_do_not_disturb_each_other() -> None:
    spool = DiskProblems([Problem(str(i), "?") for i in range(5)])
    assert [(a.id, b.id) for a, b in zip(spool, reversed(spool), strict=True)] == [
        (str(i), str(4 - i)) for i in range(5)
    ]
