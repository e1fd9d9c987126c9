"""The facts of a run that report.md, report.html, the screen and the model card show. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from upft_mlx.evaluation.benchmark_result import BenchmarkResult, dump_results
from upft_mlx.results.economy import Economy
from upft_mlx.results.fidelity import Fused
from upft_mlx.rows import EvaluationRow
from upft_mlx.training.moved import Movement
from upft_mlx.training.row_loss import RowLoss


@dataclass(frozen=True)
class StageFacts:
    """What a finished stage took."""

    stage: str
    seconds: float
    tokens_sampled: int
    tokens_trained: int
    peak_memory_bytes: int
    detail: str
    """Its result in words."""
    adopted: bool
    """Whether its files were changed by hand afterwards."""


@dataclass(frozen=True)
class CutSolutions:
    """Full solutions that were cut; see `dataset.build.Cut`."""

    full: int
    cut: int
    mean_kept: float
    mean_all: float
    text: str
    """The same in words."""


@dataclass(frozen=True)
class TrainingFacts:
    """What training looked like; None or empty where there is nothing to say."""

    base_view: RowLoss | None = None
    """What the base thought of the rows, likelihood.json."""
    losses: list[dict[str, float]] = field(default_factory=list)
    """What was measured at which `step`: the loss on the fixed rows by kind (`fixed_loss`, ...), `valid_loss` and
    `development_accuracy`."""
    movement: Movement | None = None
    """How far the model moved, movement.json."""
    cut_solutions: CutSolutions | None = None


@dataclass(frozen=True)
class Seen:
    """One problem and sample as both variants answered it; None where a variant has no such row."""

    benchmark: str
    problem_id: str
    sample: int
    question: str | None
    """None if the problems are no longer available."""
    level: str | None
    subject: str | None
    gold: str
    base: EvaluationRow | None
    tuned: EvaluationRow | None

    def dump(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class RunFacts:
    """What a run did and whether it helped."""

    name: str
    model: str
    method: str
    stages: list[StageFacts]
    """Those that are current, in their order."""
    benchmarks: dict[str, BenchmarkResult]
    """By label."""
    fidelity: Fused | None
    """How much of the adapter's effect the fused model keeps."""
    training: TrainingFacts
    verdict: list[str]
    """What the numbers allow to say, a line per benchmark, and warnings."""
    remarks: list[str]
    """Those of these lines that no number says."""
    files: dict[str, str]
    """Paths by what they are: `adapter`, `fused`, `report`, `page`."""

    def dump(self) -> dict[str, Any]:
        """For JSON: what the commands print with `--json`."""
        return {**asdict(self), "benchmarks": dump_results(self.benchmarks)}


@dataclass(frozen=True)
class RunReport(RunFacts):
    """The facts of a run whose problems are at hand."""

    economy: Economy | None
    """What it cost beside full solutions; None before it has trained."""

    def dump(self) -> dict[str, Any]:
        """See `RunFacts`."""
        return {**super().dump(), "economy": None if self.economy is None else self.economy.dump()}
