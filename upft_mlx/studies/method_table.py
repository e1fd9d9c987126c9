"""The cells of a comparison to its table, figures and JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from upft_mlx import escape
from upft_mlx.results.figures import IntervalRow, intervals
from upft_mlx.studies.two_way import two_way_mean

COSTS = ("tokens_sampled", "tokens_trained", "seconds", "peak_memory_bytes")
Scores = Mapping[str, Mapping[str, float]]
"""Benchmark to problem to the mean over its samples, 0 to 1."""


@dataclass(frozen=True)
class Cell:
    """One method with one seed."""

    method: str
    """`base`, or as the recipe's `compare.methods` has it."""
    seed: int
    scores: Scores
    tokens_sampled: int
    """For training; the evaluation's are not counted."""
    tokens_trained: int
    seconds: float
    """Time of generate, build and train."""
    peak_memory_bytes: int


def summarize(cells: Sequence[Cell]) -> dict[str, Any]:
    """The content of compare.json but for what the run knows: `cells` as they are, `methods` over all seeds."""
    methods = list(dict.fromkeys(cell.method for cell in cells))
    of = {method: sorted((c for c in cells if c.method == method), key=lambda c: c.seed) for method in methods}
    benchmarks = list(cells[0].scores)
    return {
        "benchmarks": benchmarks,
        "cells": [
            {
                "method": cell.method,
                "seed": cell.seed,
                "accuracy": {name: _average(list(scores.values())) for name, scores in cell.scores.items()},
                **{name: getattr(cell, name) for name in COSTS},
            }
            for cell in cells
        ],
        "methods": {
            method: {
                **{name: _average([getattr(cell, name) for cell in mine]) for name in COSTS},
                "benchmarks": {name: _result(name, mine, of["base"]) for name in benchmarks},
            }
            for method, mine in of.items()
        },
    }


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _result(benchmark: str, mine: Sequence[Cell], base: Sequence[Cell]) -> dict[str, Any]:
    """Accuracy, and its paired difference to base, over problems and seeds."""
    seeds = {cell.seed for cell in mine}
    own = _table(benchmark, mine)
    others = _table(benchmark, [cell for cell in base if cell.seed in seeds])
    accuracy = two_way_mean(own, (0.0, 1.0))
    changes = [[t - b for t, b in zip(*rows, strict=True)] for rows in zip(own, others, strict=True)]
    difference = two_way_mean(changes, (-1.0, 1.0))
    return {
        "accuracy": accuracy.value,
        "ci95": list(accuracy.ci95),
        "difference": None if mine[0].method == "base" else {"delta": difference.value, "ci95": list(difference.ci95)},
    }


def _table(benchmark: str, cells: Sequence[Cell]) -> list[list[float]]:
    """Problems x seeds."""
    problems = list(cells[0].scores[benchmark])
    return [[cell.scores[benchmark][problem] for cell in cells] for problem in problems]


def markdown(found: Mapping[str, Any]) -> str:
    """The table; one line per method."""
    names = found["benchmarks"]
    head = ["method", "tokens sampled", "tokens trained", "seconds", "peak memory"]
    head += [text for name in names for text in (f"{escape.markdown(name)}: accuracy", "difference to base (points)")]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for method, row in found["methods"].items():
        cells = [method, *(f"{row[name]:,.0f}" if row[name] else "" for name in ("tokens_sampled", "tokens_trained"))]
        cells.append(f"{row['seconds']:.1f}" if row["seconds"] else "")
        cells.append(f"{row['peak_memory_bytes'] / 1e6:.0f} MB" if row["peak_memory_bytes"] else "")
        for name in names:
            result = row["benchmarks"][name]
            (low, high), difference = result["ci95"], result["difference"]
            cells.append(f"{result['accuracy']:.1%} [{low:.1%}, {high:.1%}]")
            if difference is None:
                cells.append("")
                continue
            low, high = difference["ci95"]
            cells.append(f"{100 * difference['delta']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def figure(found: Mapping[str, Any], benchmark: str) -> str:
    """The differences to base on one benchmark as SVG, with what each method cost."""
    rows = []
    for method, row in found["methods"].items():
        difference = row["benchmarks"][benchmark]["difference"]
        if difference is not None:
            cost = f"{row['tokens_sampled']:,.0f} sampled, {row['tokens_trained']:,.0f} trained"
            low, high = difference["ci95"]
            rows.append(IntervalRow(method, difference["delta"], low, high, cost))
    return intervals(f"{benchmark}: difference to base", rows, "points of accuracy, 95 % interval; tokens on the right")
