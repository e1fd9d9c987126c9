"""What a view knows of a run, folded from the events: each in constant time, without Rich or clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Literal

from upft_mlx.events import (
    EvaluationStarted,
    Event,
    Expected,
    Graded,
    Note,
    Progress,
    StageDone,
    StageSkipped,
    StageStarted,
    Trained,
)
from upft_mlx.quantities import clock, duration, memory, rate
from upft_mlx.ui.tally import Tally
from upft_mlx.ui.text import Glyphs

_QUICK = ("build",)
"""Stages that take seconds, whatever the recipe: no estimate knows them."""
WINDOW = 5.0
"""Seconds over which the token rate is taken."""
FLIPS = 32
"""Flips that are remembered."""

StageStatus = Literal["pending", "running", "done", "skipped", "current", "stopped"]


class Meter:
    """How fast a stage, or one part of it, goes. Times are monotonic seconds, given from outside."""

    def __init__(self, event: Progress, now: float) -> None:
        self.stage, self.part, self.unit = event.stage, event.part, event.unit
        self.done, self.total = event.done, event.total
        self._first, self._started, self._last = event.done, now, now
        self._tokens, self.peak = event.tokens, event.peak_memory_bytes
        self._first_tokens, self._tokens_left = event.tokens, event.tokens_left
        self._window = deque([(now, event.tokens)])

    def add(self, event: Progress, now: float) -> None:
        """Take the next report of the same stage and part."""
        self.done, self.total, self._last, self.peak = event.done, event.total, now, event.peak_memory_bytes
        self._tokens_left = event.tokens_left
        # A training step reports its own tokens, the samplers a running total.
        self._tokens = self._tokens + event.tokens if self.stage == "train" else event.tokens
        self._window.append((now, self._tokens))
        # Two reports stay even if a step takes longer than the window.
        while len(self._window) > 2 and self._window[0][0] < now - WINDOW:
            self._window.popleft()

    @property
    def name(self) -> str:
        """The stage with its part."""
        return f"{self.stage} {self.part}".rstrip()

    @property
    def tokens_per_second(self) -> float:
        """Over the last seconds; 0 before there are two reports."""
        (start, before), (end, after) = self._window[0], self._window[-1]
        return (after - before) / (end - start) if end > start else 0.0

    def elapsed(self, now: float) -> float:
        """Seconds since the first report, up to the last one when it is complete."""
        return (self._last if self.done >= self.total else now) - self._started

    def left(self, now: float) -> float | None:
        """Seconds to go at the mean pace, None where there is none yet; in tokens where the stage says how many."""
        progressed, to_go = self.done - self._first, self.total - self.done
        if self._tokens_left is not None:
            progressed, to_go = self._tokens - self._first_tokens, self._tokens_left
        if progressed <= 0 or self.done >= self.total:
            return None
        pace = (self._last - self._started) / progressed
        return max(0.0, pace * to_go - (now - self._last))

    def numbers(self, now: float) -> list[str]:
        """Done of total, rate, elapsed and time left."""
        speed, left = self.tokens_per_second, self.left(now)
        return [
            f"{self.done:,}/{self.total:,} {self.unit}",
            *([rate(speed)] if speed else []),
            *([memory(self.peak)] if self.peak else []),
            f"{clock(self.elapsed(now))} elapsed",
            *([] if left is None else [f"{clock(left)} left"]),
        ]


class State:
    """The run as seen so far."""

    def __init__(self, stages: Sequence[str] = ()) -> None:
        self.stages: dict[str, StageStatus] = dict.fromkeys(stages, "pending")
        self.stage, self.detail = "", ""
        self.started = 0.0
        self.meter: Meter | None = None
        self.metrics: dict[str, float | int] = {}
        self.valid: tuple[int, float] | None = None
        """Step and value of the last validation loss."""
        self.accuracy: tuple[int, float] | None = None
        """Step and value of the last accuracy on validation problems."""
        self.total_steps = 0
        self.losses: list[tuple[int, float]] = []
        self.fixed_losses: list[tuple[int, float]] = []
        self.valid_losses: list[tuple[int, float]] = []
        """The losses of the batches, the fixed rows and the validation rows: (step, loss)."""
        self._expected: dict[str, float] = {}
        self._took: dict[str, float] = {}
        self.tallies: dict[str, Tally] = {}
        self.latest: Graded | None = None
        self.flips: deque[Graded] = deque(maxlen=FLIPS)
        """Answers of tuned that differ from base's in being right, the newest last."""

    def apply(self, event: Event, now: float) -> None:
        """Fold one event in."""
        if isinstance(event, StageStarted | StageSkipped):
            self._turn_to(event.stage)
        match event:
            case Expected():
                self._expected = dict(event.seconds)
            case StageStarted():
                self.stages[event.stage] = "running"
                self.stage, self.detail, self.started, self.meter = event.stage, event.detail, now, None
                if event.stage == "train":
                    self.metrics, self.valid, self.accuracy = {}, None, None
                    self.losses, self.fixed_losses, self.valid_losses = [], [], []
            case StageSkipped():
                self.stages[event.stage] = "current" if event.current else "skipped"
            case StageDone():
                self.stages[event.stage] = "done"
                self._took[event.stage] = event.seconds
            case Progress():
                if self.meter is None or (self.meter.stage, self.meter.part) != (event.stage, event.part):
                    self.meter = Meter(event, now)
                else:
                    self.meter.add(event, now)
            case Trained():
                self.metrics, self.total_steps = event.metrics, event.total_steps
                step = int(event.metrics["step"])
                self.losses.append((step, float(event.metrics["loss"])))
                if "fixed_loss" in event.metrics:
                    self.fixed_losses.append((step, float(event.metrics["fixed_loss"])))
                if "valid_loss" in event.metrics:
                    self.valid = (step, float(event.metrics["valid_loss"]))
                    self.valid_losses.append(self.valid)
                if "development_accuracy" in event.metrics:
                    self.accuracy = (step, float(event.metrics["development_accuracy"]))
            case EvaluationStarted():
                self.tallies = {name: Tally(expected, event.may_stop) for name, expected in event.entries}
                self.latest = None
                self.flips.clear()
            case Graded():
                flipped = self.tallies.setdefault(event.benchmark, Tally(0)).add(event)
                if flipped and event.variant == "tuned":
                    self.flips.append(event)
                self.latest = event
            case Note():
                pass

    def _turn_to(self, stage: str) -> None:
        """Let all that come after a stage wait, also where an earlier run of several has done them."""
        if stage not in self.stages:  # only some recipes have it: it comes before those that wait
            waiting = [other for other, status in self.stages.items() if status == "pending"]
            self.stages[stage] = "pending"
            self.stages |= {other: self.stages.pop(other) for other in waiting}
        names = list(self.stages)
        self.stages |= dict.fromkeys(names[names.index(stage) + 1 :], "pending")

    def left(self, now: float) -> float | None:
        """Seconds to go over all stages; None where a stage to come has no estimate.

        The estimate is scaled by what the stages that are done took beside their own.
        """
        running = [stage for stage, status in self.stages.items() if status == "running"]
        waiting = [stage for stage, status in self.stages.items() if status == "pending" and stage not in _QUICK]
        if len(self.stages) < 2 or not running or any(stage not in self._expected for stage in waiting):
            return None
        known = [stage for stage in self._took if stage in self._expected]
        expected = sum(self._expected[stage] for stage in known)
        pace = sum(self._took[stage] for stage in known) / expected if expected else 1.0
        told = self.meter.left(now) if self.meter and self.meter.stage == self.stage else None
        if told is None:
            told = pace * self._expected.get(self.stage, 0.0) - (now - self.started)
            if told < 0 and self.stage not in _QUICK:  # it takes longer than expected, so the time left is unknown
                return None
        return max(0.0, told) + pace * sum(self._expected[stage] for stage in waiting)

    def stop(self) -> bool:
        """The run ends here: what still runs was stopped. Returns whether anything was."""
        running = [stage for stage, status in self.stages.items() if status == "running"]
        self.stages.update(dict.fromkeys(running, "stopped"))
        return bool(running)


def permanent_line(event: Event, glyphs: Glyphs, *, verbose: bool) -> str | None:
    """The line that an event leaves in both views, None where it leaves none; `verbose`: of minor notes too."""
    match event:
        case StageDone():
            detail = f"{glyphs.line(event.detail)} " if event.detail else ""
            return f"{glyphs.done} {glyphs.line(event.stage)}  {detail}({duration(event.seconds)})"
        case StageSkipped():
            reason = glyphs.line(event.detail) or "current"
            return f"{glyphs.pending} {glyphs.line(event.stage)}  skipped: {reason}"
        case Note() if verbose or not event.minor:
            return f"note: {glyphs.line(event.text)}"
    return None


def training_numbers(metrics: dict[str, float | int], *measured: str) -> list[str]:
    """The latest line of metrics.jsonl in words, with what else was `measured`."""
    return [
        f"loss {metrics['loss']:.4f}",
        *filter(None, measured),
        f"learning rate {metrics['learning_rate']:.2e}",
        rate(metrics["tokens_per_second"]),
        f"peak {memory(metrics['peak_memory_bytes'])}",
    ]
