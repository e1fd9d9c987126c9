"""What the stages tell whoever watches: plain values, so that no stage knows about a terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Variant = Literal["base", "tuned"]


@dataclass(frozen=True)
class StageStarted:
    """A stage begins; `detail` says on what."""

    stage: str
    detail: str = ""


@dataclass(frozen=True)
class Expected:
    """Seconds that stages to come will take, as far as a calibration of this machine tells."""

    seconds: dict[str, float]


@dataclass(frozen=True)
class StageSkipped:
    """A stage is not run: it is done and current, or there is nothing to do; `detail` says why."""

    stage: str
    detail: str = ""
    current: bool = True


@dataclass(frozen=True)
class StageDone:
    """A stage ended; `detail` says with what."""

    stage: str
    detail: str
    seconds: float


@dataclass(frozen=True)
class Note:
    """A line worth keeping, for example why a stage runs again; a `minor` one is for who wants to know everything."""

    text: str
    minor: bool = False


@dataclass(frozen=True)
class Progress:
    """How far a stage is: `done` of `total` units; `tokens` sampled or processed in this process so far."""

    stage: str
    done: int
    total: int
    unit: str
    tokens: int = 0
    peak_memory_bytes: int = 0
    """MLX's peak since the stage began, where it is worth showing."""
    tokens_left: int | None = None
    """Expected to come, where units differ so much in length that their number says little about the time left."""
    part: str = ""
    """Which part of the stage it is, for example a benchmark; its progress is counted on its own."""


@dataclass(frozen=True)
class Trained:
    """A line of metrics.jsonl, with the number of steps planned."""

    metrics: dict[str, float | int]
    total_steps: int


@dataclass(frozen=True)
class EvaluationStarted:
    """The entries to come: (name, completions expected per model)."""

    entries: tuple[tuple[str, int], ...]
    may_stop: bool = False
    """Whether it may stop before all of them, so that intervals must hold at every moment."""


@dataclass(frozen=True)
class Graded:
    """One completion graded. `resumed` ones were graded by an earlier process."""

    benchmark: str
    variant: Variant
    problem_id: str
    sample: int
    question: str
    completion: str
    answer: str | None
    gold: str
    correct: bool
    tokens: int
    resumed: bool = False


@dataclass(frozen=True)
class Reply:
    """What one variant says to a question of `upft ask`, so far or in the end."""

    variant: Variant
    text: str
    tokens: int
    """Without EOS."""
    seconds: float
    """Since the question, including the time to read the prompt."""
    finish_reason: Literal["length", "stop", "interrupted"] | None = None
    """None while it grows."""

    def dump(self) -> dict[str, Any]:
        """For JSON."""
        return {name: value for name, value in asdict(self).items() if name != "variant"}


OnText = Callable[[Reply], None]
"""Called with the answer so far, after each token."""
Event = Expected | StageStarted | StageSkipped | StageDone | Note | Progress | Trained | EvaluationStarted | Graded
Observer = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The observer that looks away."""
