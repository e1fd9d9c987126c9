"""The graders of the benchmarks, and the processes that bound what an answer can cost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from helpers_hostile import GOLD, hostile

from upft_mlx import grading
from upft_mlx.grade import is_correct
from upft_mlx.graders import Task, Verdict, chosen_letter, grade
from upft_mlx.grading import GraderPool, shared_pool

CHOICES = [
    (r"so it is $\boxed{C}$.", "C"), (r"\boxed{\text{(B)}}", "B"), (r"\boxed{\textbf{(D)}\ 42}", "D"),
    (r"\boxed{c}", "C"),
    (r"\boxed{A) 42 m/s}", "A"), (r"\boxed{\mathrm{B}. 5}", "B"), ("The correct answer is (C).", "C"),
    ("Answer: D", "D"),
    ("**Answer: B**", "B"), ("The answer is A because 2 > 1.", "A"), ("The answer is C, the heavier one.", "C"),
    ("Hence the correct option is B", "B"), ("Option (D) is correct, not A.", "D"), ("I choose option A.", "A"),
    ("A) no\nB) yes\n\n**C) 42 m/s**", "C"), ("Let me see.\n\nB", "B"), ("<think>A?</think>\n\\boxed{D}", "D"),
    ("The answer is B.\n\nQuestion: what next?\nAnswer: D", "B"), (r"\boxed{E}", "E"), ("Final answer: (B) 42", "B"),
    ("The answer is A mass of 5 kg", None), (r"\boxed{42}", None), ("I do not know.", None), ("", None),
    (r"\boxed{C", None),
    ("A long sentence begins with a letter", None), ("\x00", None),
]  # fmt: skip

INTEGERS = [
    (r"\boxed{073}", "73", True), (r"\boxed{73}", "073", True), (r"\boxed{m + n = 73}", "73", True),
    ("It is 73.", "73", True),
    (r"\boxed{73^\circ}", "73", True), (r"\boxed{73.0}", "73", True), (r"\boxed{\text{73}}", "73", True),
    (r"\boxed{0}", "000", True),
    (r"\boxed{74}", "73", False), (r"\boxed{73.5}", "73", False), (r"\boxed{\frac{146}{2}}", "73", False),
    (r"\boxed{-73}", "73", False), (r"\boxed{73\%}", "73", False), (r"\boxed{0.73}", "73", False),
    (r"\boxed{7, 3}", "73", False),
    (r"\boxed{73", "73", False), (r"\boxed{x}", "73", False), ("", "73", False),
    (r"\boxed{" + "9" * 10**5 + "}", "73", False),
]  # fmt: skip


@pytest.mark.parametrize(("completion", "letter"), CHOICES)
def test_which_letter_a_completion_chooses(completion: str, letter: str | None) -> None:
    assert chosen_letter(completion) == letter
    assert grade(Task(completion, "b", "choice")) == Verdict(letter, letter == "B")


@pytest.mark.parametrize(("completion", "gold", "right"), INTEGERS)
def test_aime_takes_integers_only(completion: str, gold: str, right: bool) -> None:
    assert grade(Task(completion, gold, "integer")).correct is right


def test_maths_is_graded_as_by_is_correct() -> None:
    assert grade(Task(r"\boxed{60\%}", "60")) == Verdict(r"60\%", correct=False)
    assert grade(Task(r"\boxed{60\%}", "60", percent_as_unit=True)) == Verdict(r"60\%", correct=True)


@pytest.mark.slow
def test_500_hostile_answers_are_wrong_and_cost_seconds_at_most() -> None:
    worst = 0.0
    for number, text in enumerate(hostile(500)):
        start = time.process_time()
        assert not is_correct(text, GOLD), text[:200]
        worst = max(worst, time.process_time() - start)
        if number % 4 == 0:  # of every kind: there are nine, in turn
            assert not grade(Task(text, GOLD, "integer")).correct
            assert grade(Task(text, "C", "choice")).answer != "C"
    assert worst < 5


# The pool.

# A worker that sleeps, dies, or takes memory when told to; else it grades.
SABOTAGED = """
import os, sys, time
sys.path[:] = {path!r}
from upft_mlx import grading
def grade(task, real=grading.grade):
    if task.completion == "hang": time.sleep(600)
    if task.completion == "spin": sum(iter(int, 1))
    if task.completion == "die": os.kill(os.getpid(), 9)
    if task.completion == "raise": raise MemoryError
    if task.completion.startswith("load"):
        grading.symbolic.on_load("loading"); time.sleep(1.5); grading.symbolic.on_load("loaded")
    if task.completion == "print": print("this must not come between", flush=True)
    return real(task)
grading.grade = grade
grading.serve()
"""


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[GraderPool]:
    """Two workers that can be told to fail, with a second for each answer."""
    monkeypatch.setattr(grading, "_CODE", SABOTAGED)
    made = GraderPool(workers=2, seconds=1.0)
    yield made
    made.close()


def right(answer: str) -> Verdict:
    return Verdict(answer, correct=True)


def test_verdicts_come_in_the_order_of_the_tasks(pool: GraderPool) -> None:
    tasks = [Task(f"#### {n}", str(n - n % 2)) for n in range(60)]
    assert pool.grade(tasks) == [Verdict(str(n), n % 2 == 0) for n in range(60)]
    assert pool.grade([]) == []


@pytest.mark.parametrize("failure", ["hang", "spin", "die", "raise"])
def test_a_worker_that_fails_costs_its_answer_and_is_replaced(pool: GraderPool, failure: str) -> None:
    tasks = [Task("#### 1", "1"), Task(failure, "1"), Task(failure, "1"), Task("#### 2", "2"), Task("#### 3", "3")]
    start = time.monotonic()
    verdicts = pool.grade(tasks)
    assert time.monotonic() - start < 5
    gave_up = Verdict(None, correct=False, gave_up=True)
    assert verdicts == [right("1"), gave_up, gave_up, right("2"), right("3")]
    assert pool.grade(tasks[:1] * 5) == [right("1")] * 5


def test_what_a_library_prints_and_odd_texts_do_not_come_between(pool: GraderPool) -> None:
    odd = "\ud800\x00\n\r\u2028 #### 5"
    assert pool.grade([Task("print", "1"), Task("#### 1", "1"), Task(odd, "5")])[1] == right("1")


def test_loading_sympy_is_not_charged_to_an_answer(pool: GraderPool) -> None:
    assert pool.grade([Task("load: the answer is 5", "5")]) == [right("5")]


def test_a_worker_that_died_while_idle_is_replaced() -> None:
    pool = GraderPool(workers=1)
    try:
        assert pool.grade([Task("#### 1", "1")]) == [right("1")]
        process = pool._idle[0]._process
        process.kill()
        process.wait()
        assert pool.grade([Task("#### 1", "1")]) == [right("1")]
    finally:
        pool.close()


def test_where_no_worker_can_be_started_this_process_grades(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert GraderPool().grade([Task("#### 1", "1")]) == [right("1")]


def test_an_interruption_leaves_no_answer_behind_for_the_next_question(
    pool: GraderPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(workers: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(grading, "_finished", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pool.grade([Task("#### 1", "1"), Task("#### 2", "2")])
    assert pool.grade([Task("#### 3", "4")]) == [Verdict("3", correct=False)]


def test_workers_end_with_their_parent_however_it_ends() -> None:
    code = (
        "from upft_mlx.grading import Task, shared_pool\n"
        "pool = shared_pool(); pool.grade([Task('#### 1', '1')])\n"
        "print(pool._idle[0]._process.pid, flush=True); input()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the worker outlives its parent")


def test_a_process_has_one_pool() -> None:
    assert shared_pool() is shared_pool()
