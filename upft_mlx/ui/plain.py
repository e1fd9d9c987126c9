"""The view for logs and pipes: whole lines, no control codes, at most one progress line in five seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from upft_mlx.events import EvaluationStarted, Event, Graded, Progress, StageStarted, Trained
from upft_mlx.quantities import clock, percent
from upft_mlx.ui.state import State, permanent_line, training_numbers
from upft_mlx.ui.text import glyphs_for

INTERVAL = 5.0
"""Seconds between two lines about the same thing."""


class PlainView:
    """An observer that writes lines to a file."""

    def __init__(
        self,
        file: IO[str],
        stages: Sequence[str] = (),
        now: Callable[[], float] = time.monotonic,
        *,
        verbose: bool = False,
    ) -> None:
        self._file, self._now, self._verbose = file, now, verbose
        self._state = State(stages)
        self._glyphs = glyphs_for(getattr(file, "encoding", None))
        self._spoke: dict[tuple[str, ...], float] = {}
        """When a line about this was last written."""
        self._completed: set[tuple[str, ...]] = set()
        self._written = now()
        """When the last line of any kind was written."""
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Take an event, perhaps write a line."""
        with self._lock:
            now, before = self._now(), self._state.meter
            self._state.apply(event, now)
            if isinstance(event, StageStarted | EvaluationStarted):  # of the next run of several, too
                self._spoke.clear()
            elif (meter := self._state.meter) is not None and meter is not before:
                self._spoke.pop(("progress", meter.name), None)
            self._write(self._line(event, now), now)

    def beat(self) -> None:
        """Say what is still going on where nothing was written for a while: a step may take minutes."""
        with self._lock:
            now, state = self._now(), self._state
            if now - self._written < INTERVAL or state.stages.get(state.stage) != "running":
                return
            name = self._glyphs.line(state.meter.name if state.meter else state.stage)
            numbers = state.meter.numbers(now) if state.meter else [f"{clock(now - state.started)} elapsed"]
            self._write(f"{name}: {'  '.join(numbers)}", now)
            self._spoke["progress", state.meter.name if state.meter else state.stage] = now

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Beat once a second from a thread of its own; MLX computes without holding up Python."""
        stopped = threading.Event()

        def run() -> None:
            while not stopped.wait(1.0):
                self.beat()

        thread = threading.Thread(target=run, name="plain-view", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()

    def _write(self, line: str | None, now: float) -> None:
        if line:
            print(line, file=self._file, flush=True)
            self._written = now

    def _line(self, event: Event, now: float) -> str | None:
        line, meter = self._glyphs.line, self._state.meter
        match event:
            case StageStarted():
                return f"{self._glyphs.running} {line(event.stage)}  {line(event.detail)}".rstrip()
            case Trained():
                metrics = event.metrics
                fixed = f"fixed rows {metrics['fixed_loss']:.4f}" if "fixed_loss" in metrics else ""
                valid = f"valid loss {metrics['valid_loss']:.4f}" if "valid_loss" in metrics else ""
                accuracy = metrics.get("development_accuracy")
                right = "" if accuracy is None else f"accuracy {percent(accuracy)}"
                numbers = "  ".join(training_numbers(metrics, fixed, valid, right))
                return f"train: step {metrics['step']:,}/{event.total_steps:,}  {numbers}"
            case Progress() if meter is not None:
                # An evaluation's variants end with their accuracy instead.
                complete = meter.done >= meter.total and meter.stage != "evaluate"
                due = self._due(("progress", meter.name), now, complete=complete)
                return f"{line(meter.name)}: {'  '.join(meter.numbers(now))}" if due else None
            case Graded():
                tally = self._state.tallies[event.benchmark]
                done = tally.done(event.variant)
                if not self._due(("graded", event.benchmark, event.variant), now, complete=done == tally.expected):
                    return None
                where = f"{line(event.benchmark)} {event.variant} {done:,}/{tally.expected:,}"
                return f"evaluate: {where}  accuracy {tally.accuracy(event.variant)}"
        return permanent_line(event, self._glyphs, verbose=self._verbose)

    def _due(self, topic: tuple[str, ...], now: float, *, complete: bool) -> bool:
        """Whether to write: once when complete, and until then not before the interval is over."""
        if complete:
            due = topic not in self._completed
            self._completed.add(topic)
            return due
        self._completed.discard(topic)
        if now - self._spoke.setdefault(topic, now) < INTERVAL:
            return False
        self._spoke[topic] = now
        return True
