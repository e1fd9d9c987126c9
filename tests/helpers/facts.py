"""Facts of runs that nobody made: a test states what it is about, the rest is filled in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from upft_mlx.evaluation.benchmark_result import BenchmarkResult, Measured, load_results
from upft_mlx.results.economy import Economy
from upft_mlx.results.facts import CutSolutions, RunReport, StageFacts, TrainingFacts
from upft_mlx.results.fidelity import Fused
from upft_mlx.training.moved import Movement
from upft_mlx.training.row_loss import RowLoss

MEASURED = {
    "n": 100,
    "samples": 1,
    "temperature": 0.0,
    "accuracy": 0.5,
    "ci95": (0.4, 0.6),
    "mean_tokens": 30.0,
    "truncated": 0.0,
}
PAIRED = {"delta": 0.0, "ci95": (-0.1, 0.1), "p_value": 1.0}
BEGINNINGS = {"stop": 0.0, "openings": [], "distinct": 1}
MOVEMENT = {
    "prompts": 4,
    "kl": 0.1,
    "kl_by_position": [],
    "same_first_token": 1.0,
    "within": 24,
    "base": BEGINNINGS,
    "tuned": BEGINNINGS,
    "openings_kept": 1,
    "source": "evaluation prompts",
}
VIEW: dict[str, Any] = {"loss": 1.0, "eos": None, "share": {}, "most": None}
KIND = {"rows": 1, "measured": 1, "nats_per_token": 1.0, "first_token": 1.0, "by_position": []}
STAGE = {"tokens_sampled": 0, "tokens_trained": 0, "peak_memory_bytes": 0, "detail": "", "adopted": False}


def result(found: Mapping[str, Any]) -> BenchmarkResult:
    """A benchmark as in summary.json, of which base, tuned and paired may have some fields only."""
    filled = {"base": MEASURED, "tuned": MEASURED, "paired": PAIRED}
    return load_results({"x": {name: {**filled.get(name, {}), **of} for name, of in found.items()}})["x"]


def results(found: Mapping[str, Any]) -> dict[str, BenchmarkResult]:
    """Benchmarks by label; what is a result already stays one."""
    return {name: of if isinstance(of, BenchmarkResult) else result(of) for name, of in found.items()}


def measured(**fields: Any) -> Measured:
    """What base or tuned scored."""
    return Measured(**{**MEASURED, **fields})


def run_report(found: Mapping[str, Any]) -> RunReport:
    """The facts of a run from those that its JSON has."""
    training = found.get("training") or TrainingFacts()
    if not isinstance(training, TrainingFacts):
        cut = training.get("cut_solutions")
        view, movement = training.get("base_view"), training.get("movement")
        training = TrainingFacts(
            base_view=RowLoss.load({**VIEW, **view, "kinds": {k: {**KIND, **of} for k, of in view["kinds"].items()}})
            if view
            else None,
            losses=training.get("losses", []),
            movement=Movement.load({**MOVEMENT, **movement}) if movement else None,
            cut_solutions=CutSolutions(**cut) if cut else None,
        )
    economy = found.get("economy")
    assert economy is None or isinstance(economy, Economy)
    return RunReport(
        name=found.get("name", "n"),
        model=found.get("model", "m"),
        method=found.get("method", "upft"),
        stages=[StageFacts(**{**STAGE, **stage}) for stage in found.get("stages", ())],
        benchmarks=results(found.get("benchmarks", {})),
        fidelity=Fused.load(found["fidelity"]) if found.get("fidelity") else None,
        training=training,
        verdict=list(found.get("verdict", ())),
        remarks=list(found.get("remarks", ())),
        files=dict(found.get("files", {})),
        economy=economy,
    )
