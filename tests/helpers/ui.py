"""What the tests of ui share."""

from __future__ import annotations

import io
import re
from typing import Any

from rich.console import Console

from helpers.facts import run_report
from upft_mlx.events import (
    Graded,
    Trained,
    Variant,
)
from upft_mlx.results.facts import RunReport

STAGES = ("generate", "build", "train", "evaluate", "fuse")

HOSTILE = "[red]x[/red]\x1b[31m\x1b]0;title\x07\r\n\x00\u202ey[/]"

HARMLESS = "[red]x[/red] y[/]"

ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time

    def tick(self, seconds: float) -> None:
        self.time += seconds


def graded(variant: Variant, problem: int, correct: bool, *, benchmark: str = "arithmetic", **changes: Any) -> Graded:
    values: dict[str, Any] = {
        "benchmark": benchmark,
        "variant": variant,
        "problem_id": f"p-{problem}",
        "sample": 0,
        "question": "How many?",
        "completion": "So 7.",
        "answer": "7",
        "gold": "7" if correct else "8",
        "correct": correct,
        "tokens": 3,
    }
    return Graded(**{**values, **changes})


def trained(step: int, loss: float = 1.5, **changes: float) -> Trained:
    metrics: dict[str, float | int] = {
        "step": step,
        "epoch": 1,
        "loss": loss,
        "learning_rate": 1e-5,
        "examples": 8,
        "supervised_tokens": 128,
        "processed_tokens": 900,
        "seconds": 0.5,
        "tokens_per_second": 256.0,
        "peak_memory_bytes": 3_200_000_000,
    }
    return Trained({**metrics, **changes}, 100)


def console(width: int = 80, height: int = 24, **changes: Any) -> Console:
    values: dict[str, Any] = {
        "file": io.StringIO(),
        "force_terminal": True,
        "width": width,
        "height": height,
        "legacy_windows": False,
        "_environ": {"TERM": "xterm-256color"},
    }
    return Console(**{**values, **changes})


def written(target: Console) -> str:
    assert isinstance(target.file, io.StringIO)
    return target.file.getvalue()


def variant_value(accuracy: float, low: float, high: float, **changes: Any) -> dict[str, Any]:
    values = {
        "n": 256,
        "samples": 1,
        "temperature": 0.0,
        "accuracy": accuracy,
        "ci95": [low, high],
        "mean_tokens": 211.7,
        "truncated": 0.031,
        "pass_at_k": {"1": accuracy},
        "maj_at_k": {"1": accuracy},
    }
    return {**values, **changes}


def a_report(**changes: Any) -> RunReport:
    """A run's facts; `changes` as in their JSON."""
    values: dict[str, Any] = {
        "name": "demo",
        "model": "models/qwen",
        "method": "upft",
        "stages": [
            {
                "stage": "generate",
                "seconds": 12.34,
                "tokens_sampled": 4096,
                "tokens_trained": 0,
                "peak_memory_bytes": 812_000_000,
                "detail": "256 solutions",
            }
        ],
        "benchmarks": {
            "arithmetic": {
                "base": variant_value(0.715, 0.653, 0.77),
                "tuned": variant_value(0.781, 0.727, 0.828, truncated=0.0),
                "paired": {"delta": 0.066, "ci95": [0.012, 0.121], "p_value": 0.0173},
            },
            "gsm8k": {
                "base": variant_value(0.345, 0.32, 0.371),
                "tuned": variant_value(0.351, 0.326, 0.377),
                "paired": {"delta": 0.006, "ci95": [-0.014, 0.025], "p_value": 0.612},
            },
        },
        "verdict": ["gsm8k: no measurable change"],
        "files": {"adapter": "runs/demo/adapter", "report": "runs/demo/report.md"},
    }
    return run_report({**values, **changes})
