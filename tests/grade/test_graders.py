"""The graders of the benchmarks, and the processes that bound what an answer can cost."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from helpers.hostile import GOLD, hostile, hostile_pairs

from upft_mlx.grade import symbolic, workers
from upft_mlx.grade.correct import is_correct
from upft_mlx.grade.equal import Rules
from upft_mlx.grade.graders import Task, Verdict, chosen_letter, grade, grade_all, grader_of
from upft_mlx.grade.workers import GaveUpError, ask

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
    (r"\boxed{A, B, C, D}", None), (r"\boxed{\text{A, B and D}}", None), (r"\boxed{A}, \boxed{B}", None),
    ("The answer is A and B.", None), ("The answer is A or C", None), ("I choose A and B", None), ("A, C", None),
    ("The answer is A, I think.", "A"), ("The answer is B, and that is all", "B"), ("The answer is not A.", None),
    ("A long sentence begins with a letter", None), ("\x00", None),
    ("<think>A?</think><answer>B</answer>", "B"), ("<answer>(C) 42 m/s</answer>", "C"), ("[ANSWER]D[/ANSWER]", "D"),
    ("The answer is option (B) 5 m/s.", "B"), ("The answer is option B: 5 apples", "B"),
    ("The answer must be B.", "B"), ("The answer should be (C).", "C"), ("The answer is therefore D.", "D"),
    ("So B is correct.", "B"), ("A is too small. (B) is the right answer.", "B"), ("Thus, **C** is the answer.", "C"),
    ("The answer must be a multiple of B.", None), ("If A is correct, then 5.", None), ("So B is not correct", None),
    ("So neither A nor B is correct.", None), ("A is correct and B is correct.", None),
    ("Hence the best answer I found is B?", None),
    ("Then A is correct for small n, but D holds.\nD", "D"), ("Then A is correct.\n\n**(D)**\n", "D"),
    ("The answer is A. No, it is less.\nD.", "D"), ("\\boxed{A}\nD", "A"), ("Then A is correct.\nD = 5", "A"),
    ("The answer is B.\nA) is too small\nC)", "B"), ("A) is too small\nC)", "C"), ("The answer is B. Or:\n(C)", "C"),
]  # fmt: skip

INTEGERS = [
    (r"\boxed{073}", "73", True), (r"\boxed{73}", "073", True), (r"\boxed{m + n = 73}", "73", True),
    ("It is 73.", "73", True),
    (r"\boxed{73^\circ}", "73", True), (r"\boxed{73.0}", "73", True), (r"\boxed{\text{73}}", "73", True),
    (r"\boxed{0}", "000", True), (r"\boxed{\boxed{73}}", "73", True), (r"\boxed{m + n = \boxed{73}}", "73", True),
    (r"\boxed{\{73\}}", "73", False), (r"\boxed{7^{73}}", "73", False),
    (r"\boxed{74}", "73", False), (r"\boxed{73.5}", "73", False), (r"\boxed{\frac{146}{2}}", "73", False),
    (r"\boxed{-73}", "73", False), (r"\boxed{73\%}", "73", False), (r"\boxed{0.73}", "73", False),
    (r"\boxed{7, 3}", "73", False), (r"\boxed{\binom{73}{1}}", "73", False), (r"\boxed{72 + 1}", "73", False),
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
        start = time.perf_counter()
        assert not is_correct(text, GOLD), text[:200]
        worst = max(worst, time.perf_counter() - start)
        if number % 4 == 0:  # of every kind: there are nine, in turn
            assert not grade(Task(text, GOLD, "integer")).correct
            assert grade(Task(text, "C", "choice")).answer != "C"
    assert worst < 2 * workers.SECONDS


def grade_hostile_pairs() -> tuple[list[str], float, int]:
    """The pairs called equal, the CPU seconds of all, and the peak of this process and its workers in bytes."""
    equal = [f"{text[:200]!r} {gold[:200]!r}" for text, gold in hostile_pairs(500)[:110] if is_correct(text, gold)]
    while idle := workers._idle(os.getpid()):  # children count once they have ended
        idle.pop().end()
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    seconds = sum(usage.ru_utime + usage.ru_stime for usage in (own, children))
    if sys.platform == "darwin":
        return equal, seconds, max(own.ru_maxrss, children.ru_maxrss)
    # Linux starts a program's ru_maxrss at the peak of the process that started it: here of all tests before this one.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return equal, seconds, 1024 * max(int(peak), children.ru_maxrss)


@pytest.mark.slow
def test_hostile_pairs_are_answered_in_time_and_memory() -> None:
    # In a process of its own: this one's peak, and that of its children, comes from whatever ran before.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        equal, seconds, peak = pool.submit(grade_hostile_pairs).result()
    assert not equal
    assert seconds < 60  # 25 at most so far; several pairs are given up, and would take minutes
    assert peak < workers.MEMORY_BYTES


def test_what_ran_for_minutes_is_answered_at_once() -> None:
    start = time.perf_counter()
    assert not is_correct(r"\boxed{\log_3 x}", "2^{1000}")
    assert not is_correct(r"\boxed{\log_3 x = y}", "2^{1000}")
    assert time.perf_counter() - start < 2 * workers.SECONDS  # the tests may share their machine


# The workers.

# One that sleeps, dies, takes memory or stays in C code when told to; else it compares, without the two seconds that
# sympy takes to load.
SABOTAGED = """
import os, sys, time
sys.path[:] = {path!r}
from upft_mlx.grade import workers
workers.symbolic.load = lambda: None
def correct(completion, gold, rules):
    if completion == "hang": time.sleep(600)
    if completion == "spin": sum(iter(int, 1))
    if completion == "compute": 7 ** (10 ** 9)
    if completion == "die": os.kill(os.getpid(), 9)
    if completion == "hoard": return bytearray(workers.MEMORY_BYTES)[0] == 1
    if completion == "raise": raise ValueError
    if completion == "print": print("this must not come between", flush=True)
    return completion == r"\\boxed{{(z+1)(z+5)}}" and gold == "z^2 + 6z + 5"
workers.correct = correct
workers.serve()
"""
SYMBOLIC = (r"\boxed{(z+1)(z+5)}", "z^2 + 6z + 5")
FAILURES = ("hang", "spin", "compute", "die", "hoard", "raise")


@pytest.fixture
def sabotaged(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[workers._Worker]]:
    """Workers that can be told to fail; those that are idle."""
    monkeypatch.setattr(workers, "_CODE", SABOTAGED)
    idle: list[workers._Worker] = []
    monkeypatch.setattr(workers, "_idle", lambda process: idle)
    yield idle
    for worker in idle:
        worker.end()


@pytest.mark.parametrize("failure", FAILURES)
def test_a_worker_that_fails_costs_its_answer_and_is_replaced(
    sabotaged: list[workers._Worker], failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(*SYMBOLIC, Rules())
    first = sabotaged[0].process
    start = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(workers, "WAIT_SECONDS", 1.0)
        patch.setattr(workers, "LEAST_SECONDS", 1.0)
        with pytest.raises(GaveUpError):
            ask(failure, "1", Rules())
    assert time.monotonic() - start < workers.SECONDS
    assert first.returncode is not None
    assert len(sabotaged) == 1, "the next one is being started"
    assert ask(*SYMBOLIC, Rules())
    assert not ask(SYMBOLIC[0], "z^2 + 6z + 4", Rules())
    assert len(sabotaged) == 1


def test_a_grader_says_that_it_gave_up_and_the_plain_function_says_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(*_: object) -> bool:
        raise GaveUpError

    monkeypatch.setattr("upft_mlx.grade.correct.ask", give_up)
    assert grade(Task(*SYMBOLIC)) == Verdict("(z+1)(z+5)", correct=False, gave_up=True)
    assert not is_correct(*SYMBOLIC)


def test_what_a_library_prints_and_odd_texts_do_not_come_between(sabotaged: list[workers._Worker]) -> None:
    for text in ("print", "\ud800\x00\n\r\u2028"):
        assert not ask(text, "5", Rules())
    assert ask(*SYMBOLIC, Rules(precision=5, match_types=("latex",)))
    assert len(sabotaged) == 1


def test_a_worker_that_died_while_idle_is_replaced(sabotaged: list[workers._Worker]) -> None:
    assert ask(*SYMBOLIC, Rules())
    sabotaged[0].process.kill()
    sabotaged[0].process.wait()
    assert ask(*SYMBOLIC, Rules())


def test_memory_is_bounded_where_the_system_does_not_limit_it(
    sabotaged: list[workers._Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_WATCHED", True)
    assert ask(*SYMBOLIC, Rules())
    assert 2**24 < workers._resident(sabotaged[0].process.pid) < workers.MEMORY_BYTES
    monkeypatch.setattr(workers, "MEMORY_BYTES", 2**24)
    with pytest.raises(GaveUpError):
        ask(*SYMBOLIC, Rules())


def test_an_interruption_leaves_no_answer_behind_for_the_next_question(
    sabotaged: list[workers._Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> object:
        raise KeyboardInterrupt

    assert ask(*SYMBOLIC, Rules())
    process = sabotaged[0].process
    with monkeypatch.context() as patch:
        patch.setattr(workers._Worker, "_heard", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ask(*SYMBOLIC, Rules())
    assert process.returncode is not None
    assert not ask(SYMBOLIC[0], "z^2 + 6z + 4", Rules())


def test_where_no_worker_can_be_started_this_process_compares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setattr(workers, "_idle", lambda process: [])
    monkeypatch.setattr(symbolic, "here", False)
    assert is_correct(*SYMBOLIC)


@pytest.mark.parametrize(
    ("end", "busy"),
    [(signal.SIGKILL, "idle"), (signal.SIGTERM, "idle"), (signal.SIGTERM, "hang"), (signal.SIGTERM, "spin")],
)
def test_workers_end_with_their_parent_however_it_ends(end: signal.Signals, busy: str) -> None:
    code = (
        "from upft_mlx.grade import workers; from upft_mlx.grade.equal import Rules; import os\n"
        f"workers._CODE = {SABOTAGED!r}\n"
        f"workers.ask({SYMBOLIC[0]!r}, {SYMBOLIC[1]!r}, Rules())\n"
        "print(workers._idle(os.getpid())[0].process.pid, flush=True)\n"
        f"input() if {busy == 'idle'} else workers.ask({busy!r}, '1', Rules())\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        time.sleep(0.3)
        parent.send_signal(end)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the worker outlives its parent")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_has_workers_of_its_own() -> None:
    code = (
        "import os; from upft_mlx.grade import workers; from upft_mlx.grade.equal import Rules\n"
        f"pair = {SYMBOLIC!r}; assert workers.ask(*pair, Rules())\n"
        "first = workers._idle(os.getpid())[0].process.pid; child = os.fork()\n"
        "assert workers.ask(*pair, Rules()) and not workers.ask(pair[0], 'z', Rules())\n"
        "assert (workers._idle(os.getpid())[0].process.pid == first) == (child != 0)\n"
        "assert child == 0 or os.waitpid(child, 0)[1] == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)


def test_verdicts_come_in_the_order_of_the_tasks() -> None:
    tasks = [Task(f"#### {n}", str(n - n % 2)) for n in range(40)] + [
        Task(rf"\boxed{{x({n}+x)}}", "x^2+3x") for n in range(6)
    ]
    assert [verdict.correct for verdict in grade_all(tasks)] == [n % 2 == 0 for n in range(40)] + [
        n == 3 for n in range(6)
    ]
    assert grade_all([]) == []


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["A", "(b)", "C."], "choice"),
        (["A", None, "J"], "choice"),
        (["A", "12"], "maths"),
        (["K"], "maths"),
        ([None], "maths"),
        ([], "maths"),
    ],
)
def test_problems_whose_answers_are_all_letters_are_choices(answers: list[str | None], expected: str) -> None:
    assert grader_of(answers) == expected


def test_a_choice_is_right_however_its_letter_is_written() -> None:
    assert [grade(Task("The answer is C", gold, "choice")).correct for gold in ("C", "(C)", " c. ", "D")] == [
        *(True, True, True, False)
    ]
