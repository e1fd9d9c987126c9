"""Workers: processes that compare what takes sympy; no answer takes more than its time and its memory.

A worker says "ready", then reads questions and writes verdicts, a JSON line each. One that does not answer in time, or
dies, is replaced. Workers start at the first need. They end with this process, however it ends: a thread of theirs
watches the pipe, and the system ends one that is too busy to notice.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from functools import cache

from upft_mlx.grade import symbolic
from upft_mlx.grade.equal import Rules, correct

SECONDS = 5.0
"""Time that an answer may take, the start of a worker that replaces another included; most take a millisecond."""
WAIT_SECONDS = 4.0
"""Time after which a worker that has not answered is killed, its start included."""
LEAST_SECONDS = 2.5
"""Time that remains for the answer if the start was slow."""
START_SECONDS = 120.0
"""Time after which a worker that has not started is given up: sympy takes a second to load, on a busy machine more."""
MEMORY_BYTES = 512 << 20
"""Memory of a worker."""
POLL_SECONDS = 0.2
"""macOS does not limit a process's memory, so this process looks at it so often."""
_WATCHED = sys.platform == "darwin"

_CODE = "import sys; sys.path[:] = {path!r}; from upft_mlx.grade.workers import serve; serve()"


class GaveUpError(Exception):
    """A comparison took too much time or memory."""


def ask(completion: str, gold: str, rules: Rules) -> bool:
    """A worker's verdict on whether the completion's answer is right; where none can start, this process decides.

    Raises:
        GaveUpError: there is none within the bounds.
    """
    idle, worker = _idle(os.getpid()), None
    try:
        while worker is None:
            try:
                worker = idle.pop()
            except IndexError:  # other threads take workers as well
                worker = _Worker()
                break
            if worker.process.poll() is not None:  # it has died meanwhile
                worker.end()
                worker = None
    except OSError:
        symbolic.here = True
        return correct(completion, gold, rules)
    verdict = worker.verdict([completion, gold, asdict(rules)])
    if verdict is None:
        idle.append(_Worker())  # loads sympy until it is needed
        raise GaveUpError
    idle.append(worker)
    return verdict


@cache
def _idle(process: int) -> list[_Worker]:
    """The workers of this process that have nothing to do; a fork has its own."""
    workers: list[_Worker] = []

    def close() -> None:
        while os.getpid() == process and workers:
            workers.pop().end()

    atexit.register(close)
    return workers


class _Worker:
    """One process and the pipes to it."""

    def __init__(self) -> None:
        command, pipe = [sys.executable, "-c", _CODE.format(path=sys.path)], subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._input, self._output = self.process.stdin, self.process.stdout
        self._ready = False

    def verdict(self, question: object) -> bool | None:
        """The answer to a question; None, and the worker ends, where it has none within the bounds."""
        answer, deadline = None, time.monotonic() + WAIT_SECONDS
        try:
            self._ready = self._ready or self._heard(START_SECONDS) == "ready"
            if self._ready:
                self._input.write(json.dumps(question).encode() + b"\n")
                self._input.flush()
                answer = self._heard(max(LEAST_SECONDS, deadline - time.monotonic()))
        except OSError:
            pass
        finally:
            if not isinstance(answer, bool):  # an interruption too: what it still answers belongs to nobody
                self.end()
        return answer if isinstance(answer, bool) else None

    def _heard(self, seconds: float) -> object:
        """The next line, None where there is none in that time or the memory is exceeded."""
        deadline, line = time.monotonic() + seconds, b""
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or (_WATCHED and _resident(self.process.pid) > MEMORY_BYTES):
                return None
            if select.select([self._output], [], [], min(left, POLL_SECONDS) if _WATCHED else left)[0]:
                data = os.read(self._output.fileno(), 4096)
                if not data:
                    return None
                line += data
        return json.loads(line)

    def end(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self._input, self._output):
            with suppress(OSError):
                pipe.close()


def _resident(process: int) -> int:
    """Bytes of memory that a process holds, 0 where that cannot be told."""
    done = subprocess.run(["ps", "-o", "rss=", "-p", str(process)], capture_output=True, text=True, check=False)
    return 1024 * int(done.stdout.strip() or 0)


def serve() -> None:
    """What a worker does until its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not come between
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.RLIM_INFINITY))
    symbolic.here = True
    symbolic.load()
    questions: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(questions,), daemon=True).start()
    answer: object = "ready"
    while True:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        completion, gold, rules = json.loads(questions.get())
        signal.setitimer(signal.ITIMER_REAL, WAIT_SECONDS)  # its signal ends the process, C code or not
        try:
            answer = correct(
                completion,
                gold,
                Rules(**{**rules, "match_types": rules["match_types"] and tuple(rules["match_types"])}),
            )
        except Exception:  # of memory, for example
            answer = None
        signal.setitimer(signal.ITIMER_REAL, 0)


def _listen(questions: queue.SimpleQueue[str]) -> None:
    """Hand on what the parent asks; end the process when the parent is gone, even if a copy of it holds the pipe."""
    parent, rest = os.getppid(), b""
    while os.getppid() == parent:
        if select.select([0], [], [], 1.0)[0]:
            data = os.read(0, 1 << 20)
            if not data:
                break
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                questions.put(line.decode())
    os._exit(0)
