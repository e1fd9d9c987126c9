"""Grading in processes of its own: no answer can take longer than its time, and none can crash a run.

A worker reads tasks and writes verdicts, a JSON line each. One that does not answer in time, or dies, is replaced, and
its answer is wrong. Workers are started at the first need and end with this process, by whatever it ends.
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from typing import IO

from upft_mlx import symbolic
from upft_mlx.graders import Task, Verdict, grade

SECONDS = 5.0
"""Time that an answer may take; most take less than a millisecond."""
START_SECONDS = 120.0
"""Time that a worker may take to start, or to load sympy: it is not charged to an answer."""
MEMORY_BYTES = 8 << 30
"""Address space of a worker, where the system limits it."""
CPU_SECONDS = 60
"""Time after which the system ends a worker that works on one answer and whose parent is gone."""

_CODE = "import sys; sys.path[:] = {path!r}; from upft_mlx.grading import serve; serve()"
_GAVE_UP = Verdict(None, correct=False, gave_up=True)


class GraderPool:
    """Worker processes that grade."""

    def __init__(self, workers: int | None = None, seconds: float = SECONDS) -> None:
        self._size = workers or min(4, os.cpu_count() or 1)
        self._seconds = seconds
        self._idle: list[_Worker] = []

    def grade(self, tasks: Sequence[Task]) -> list[Verdict]:
        """The verdicts on the tasks, in their order; where no worker can be started, this process grades."""
        verdicts = [_GAVE_UP] * len(tasks)
        waiting = deque(enumerate(tasks))
        busy: dict[_Worker, int] = {}
        try:
            while waiting or busy:
                while waiting and len(busy) < self._size:
                    index, task = waiting.popleft()
                    worker = self._sent(task)
                    if worker is None:
                        verdicts[index] = grade(task)
                    else:
                        busy[worker] = index
                for worker, verdict in _finished(list(busy)) if busy else ():
                    verdicts[busy.pop(worker)] = verdict
                    if worker.alive:
                        self._idle.append(worker)
        finally:
            for worker in busy:  # interrupted: what they still answer belongs to nobody
                worker.end()
        return verdicts

    def _sent(self, task: Task) -> _Worker | None:
        """The worker that has the task now; one that died while idle is replaced."""
        while self._idle:
            if (worker := self._idle.pop()).send(task):
                return worker
        try:
            worker = _Worker(self._seconds)
        except OSError:
            return None
        return worker if worker.send(task) else None

    def close(self) -> None:
        """End the workers."""
        while self._idle:
            self._idle.pop().end()


@cache
def shared_pool() -> GraderPool:
    """The pool of this process, which ends with it."""
    pool = GraderPool()
    atexit.register(pool.close)
    return pool


def _finished(workers: Sequence[_Worker]) -> list[tuple[_Worker, Verdict]]:
    """Wait for one worker at least that is done, dead or out of time."""
    patience = max(0.0, min(worker.deadline for worker in workers) - time.monotonic())
    heard = select.select(workers, [], [], patience)[0]
    found = [(worker, verdict) for worker in heard if (verdict := worker.receive())]
    late = [worker for worker in workers if worker not in heard and time.monotonic() >= worker.deadline]
    for worker in late:
        worker.end()
    return [*found, *((worker, _GAVE_UP) for worker in late)]


class _Worker:
    """One process and what is known of it."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._buffer = seconds, b""
        command = [sys.executable, "-c", _CODE.format(path=sys.path)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self._started, self.alive = False, True
        self.deadline = time.monotonic() + START_SECONDS

    def fileno(self) -> int:
        """For select."""
        return self._output.fileno()

    def send(self, task: Task) -> bool:
        """Whether the worker takes the task; it ends where it does not."""
        self.deadline = time.monotonic() + (self._seconds if self._started else START_SECONDS)
        try:
            self._input.write(json.dumps(asdict(task)).encode() + b"\n")
            self._input.flush()
        except OSError:
            self.end()
            return False
        return True

    def receive(self) -> Verdict | None:
        """The verdict if it is there by now; a worker that is gone gave up."""
        data = os.read(self.fileno(), 1 << 20)
        if not data:
            self.end()
            return _GAVE_UP
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if isinstance(message, dict):
                return Verdict(**message)
            self._started = True
            self.deadline = time.monotonic() + (START_SECONDS if message == "loading" else self._seconds)
        return None

    def end(self) -> None:
        """Kill the process."""
        self.alive = False
        self._process.kill()
        self._process.wait()
        with suppress(OSError):
            self._input.close()
        self._output.close()


def serve() -> None:
    """What a worker does: a line "ready", then a verdict for each task, until its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not come between
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.RLIM_INFINITY))
    symbolic.on_load = lambda word: _say(answers, word)
    _say(answers, "ready")
    for line in sys.stdin:
        _limit_cpu()
        _say(answers, asdict(_graded(Task(**json.loads(line)))))


def _graded(task: Task) -> Verdict:
    try:
        return grade(task)
    except (Exception, symbolic.Spent):  # of memory, for example
        return _GAVE_UP


def _say(answers: IO[str], message: object) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def _limit_cpu() -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(usage.ru_utime + usage.ru_stime) + CPU_SECONDS
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))
