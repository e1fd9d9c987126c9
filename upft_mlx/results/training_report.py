"""What training looked like: the base's view of the rows, the loss on fixed rows, how far the model moved."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from upft_mlx.dataset.build import cut_solutions
from upft_mlx.evaluation.benchmark_result import BenchmarkResult
from upft_mlx.results.facts import CutSolutions, TrainingFacts
from upft_mlx.rows import Solution, read_json, read_rows
from upft_mlx.rundir import RunDir
from upft_mlx.training import moved
from upft_mlx.training.moved import Movement
from upft_mlx.training.row_loss import RowLoss

_BESIDE = ("step", "valid_loss", "development_accuracy")
LINES = 12
"""Lines of the table of losses at most, evenly spaced; the first and the last are always there."""


def training_facts(run: RunDir, current: Sequence[str]) -> TrainingFacts:
    """From the files of the stages that are current; None or empty where there is nothing to say."""
    trained = "train" in current
    cut = cut_solutions(read_rows(run.solutions, Solution)) if "build" in current and run.solutions.exists() else None
    found = read_json(run.likelihood) if trained else None
    before = None if found is None else RowLoss.load(found)  # older versions have no such file
    moved_by = read_json(run.movement) if trained else None
    # On the fixed rows, before and during training, with what else was measured at those steps.
    losses = [] if before is None else [{"step": 0, **(before.fixed or {})}]
    for text in run.metrics.read_text(encoding="utf-8").splitlines() if trained and run.metrics.exists() else ():
        line = json.loads(text, parse_constant=lambda _: None)  # older versions wrote NaN
        names = (name for name in line if name.startswith("fixed_loss") or name in _BESIDE)
        shown = {name: line[name] for name in names if line[name] is not None}
        losses += [shown] if len(shown) > 1 else []
    return TrainingFacts(
        base_view=before,
        losses=losses,
        movement=None if moved_by is None else Movement.load(moved_by),
        cut_solutions=None if cut is None or not cut.cut else CutSolutions(**vars(cut), text=str(cut)),
    )


def warnings(facts: TrainingFacts, benchmarks: Mapping[str, BenchmarkResult], *, better: bool = False) -> list[str]:
    """Lines for the verdict: from training, unless tuned is known to be `better`, and of answers that became shorter.

    A model that moved far is suspicious as long as nothing else is known of it.
    """
    found = moved.warnings(facts.movement) if facts.movement is not None and not better else []
    for name, result in benchmarks.items():
        if result.compared:
            base, tuned, _ = result.compared
            found += moved.shorter(name, base.mean_tokens, tuned.mean_tokens)
    return found


def lines(facts: TrainingFacts) -> list[str]:
    """What the view says at the end of a run."""
    found = [] if facts.movement is None else [moved.in_words(facts.movement)]
    return [*found, *([facts.cut_solutions.text] if facts.cut_solutions else [])]


def losses_table(losses: Sequence[Mapping[str, float]]) -> dict[str, Any] | None:
    """Some of the losses for a table: their `names`, how the table calls these in `heads`, and the `lines`."""
    if not losses:
        return None
    names = [name for name in dict.fromkeys(name for line in losses for name in line) if name != "step"]
    names.sort(key=lambda name: _BESIDE.index(name) if name in _BESIDE else 0)
    heads = [name.removeprefix("fixed_loss").strip("_") or "fixed rows" for name in names]
    called = {"eos": "EOS", "valid_loss": "validation", "development_accuracy": "accuracy"}
    heads = [called.get(head, head) for head in heads]
    step = -(-len(losses) // LINES)
    lines = [line for place, line in enumerate(losses) if place % step == 0 or place == len(losses) - 1]
    return {"names": names, "heads": heads, "lines": lines}
