"""What the tests of staleness share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from upft_mlx.data.problems import Problem

STAGES = ("generate", "build", "train", "base", "tuned", "summary", "fuse", "analyze")

TRAINING = "train tuned summary fuse"

ROWS = f"build {TRAINING}"

SAMPLING = f"generate {ROWS}"

VARIANTS = "base tuned summary"

ANSWERS = f"{VARIANTS} fuse"  # fuse is judged on the benchmarks' questions

EVERYTHING = " ".join(STAGES)

UPFT: dict[str, Any] = {
    "model": "builtin:arithmetic",
    "problems": {"path": "train.jsonl"},
    "prefix": {"template": "paper"},
    "evaluate": {"benchmarks": [{"name": "own", "path": "test.jsonl"}]},
}

TABLE: list[tuple[str, Any, str]] = [
    ("name", "other", ""),
    ("model", "other", ""),  # the folder counts, not what it is called
    ("revision", "other", ""),
    ("quantize.bits", 8, EVERYTHING),
    ("quantize.group_size", 32, EVERYTHING),
    ("seed", 1, EVERYTHING),
    ("method", "sft", SAMPLING),
    ("trust_remote_code", True, ""),
    *(
        (f"problems.{name}", "other", "")
        for name in ("path", "config", "split", "revision", "question", "answer", "id")
    ),
    *((f"{section}.bad_rows", "skip", "") for section in ("problems", "evaluate.benchmarks")),
    ("evaluate.benchmarks.id", "other", ""),  # the problems have a hash of their own
    ("evaluate.benchmarks.part", "rest", ""),
    ("evaluate.benchmarks.path", "other.jsonl", ""),
    ("evaluate.development", 0.4, ""),
    ("evaluate.until", "known", VARIANTS),
    ("evaluate.effect", 3.0, "summary"),
    ("compare.cold_temperature", 0.1, ""),
    *((f"forecast.{name}", 9, "") for name in ("problems", "samples", "continuations")),  # see FORECASTING
    ("forecast.lengths", [4], ""),
    *((f"problems.{name}", value, "") for name, value in (("limit", 2), ("shuffle", True))),  # the problems count
    ("prompt.system", "Be brief.", EVERYTHING),
    ("prompt.instruction", "{question}!", EVERYTHING),
    ("prompt.chat_template_args", {"enable_thinking": True}, EVERYTHING),
    ("prompt.date", "2025-03-09", EVERYTHING),
    ("prompt.chat_template", str(Path(__file__).with_name("own_chat.jinja")), EVERYTHING),
    ("generate.temperature", 0.5, f"{SAMPLING} analyze"),
    ("generate.top_p", 0.5, f"{SAMPLING} analyze"),
    ("generate.top_k", 5, f"{SAMPLING} analyze"),
    ("generate.max_tokens", 9, f"{SAMPLING} analyze"),
    ("generate.stop", ["x"], f"{SAMPLING} analyze"),
    ("generate.batch_size", 9, f"{SAMPLING} analyze"),
    ("generate.samples", 5, SAMPLING),
    ("generate.keep", 2, ROWS),
    ("prefix.length", 9, SAMPLING),
    ("prefix.structure_ratio", 0.5, SAMPLING),
    ("prefix.template", "none", ROWS),
    ("prefix.eos", True, ROWS),
    ("prefix.eos_weight", 0.5, ROWS),
    ("prefix.selection", "confidence", SAMPLING),
    ("prefix.rollouts", 9, SAMPLING),
    ("prefix.structure", "checked", SAMPLING),
    ("prefix.drop_cjk", True, ROWS),
    ("prefix.require_boxed", True, ROWS),
    *(
        (f"lora.{name}", value, TRAINING)
        for name, value in {"rank": 3, "scale": 3.0, "dropout": 0.1, "num_layers": 1, "keys": ["mlp.up_proj"]}.items()
    ),
    ("lora.start_from", "other", TRAINING),
    ("lora.grid", "base", TRAINING),
    ("train.valid_ratio", 0.5, ROWS),
    *(
        (f"train.{name}", value, TRAINING)
        for name, value in {
            "epochs": 2,
            "steps": 7,
            "batch_size": 3,
            "micro_batch_size": 2,
            "grad_checkpoint": True,
            "learning_rate": 1e-3,
            "schedule": "cosine",
            "warmup_ratio": 0.2,
            "weight_decay": 0.1,
            "betas": [0.8, 0.9],
            "clip_norm": None,
            "max_length": 99,
            "report_every": 3,
            "validate_every": 3,
            "patience": 3,
            "evaluate_every": 3,
            "save": "last",
        }.items()
    ),
    ("train.evaluate_limit", 3, ""),  # without evaluate_every
    *((f"train.{name}", value, "") for name, value in (("keep", 3), ("checkpoint_every", 3), ("report_to", "wandb"))),
    ("evaluate.samples", 2, VARIANTS),
    ("evaluate.temperature", 0.5, VARIANTS),
    ("evaluate.max_tokens", 9, VARIANTS),
    ("evaluate.batch_size", 9, VARIANTS),
    ("evaluate.limit", 2, VARIANTS),
    ("evaluate.subset", {"level": [5]}, VARIANTS),
    ("evaluate.benchmarks.label", "other", ANSWERS),
    *(
        (f"evaluate.benchmarks.{name}", value, VARIANTS)
        for name, value in {
            "config": "x",
            "split": "x",
            "revision": "x",
            "question": "x",
            "answer": "x",
            "level": "x",
            "subject": "x",
            "wrong_answers": ["x"],
            "grader": "integer",
            "prompt": "{question}!",
            "private": True,
            "subset": {"level": [5]},
            "limit": 2,
            "samples": 2,
            "temperature": 0.5,
            "max_tokens": 9,
        }.items()
    ),
    *(
        (f"analyze.{name}", value, "analyze")
        for name, value in {
            "problems": 9,
            "samples": 9,
            "lengths": [3],
            "trajectories": 9,
            "rollout_problems": 9,
            "rollouts": 9,
        }.items()
    ),
    *((f"compare.{name}", value, "") for name, value in {"methods": ["upft"], "seeds": 1, "samples": 9}.items()),
    ("publish.fuse", "fp16", "fuse"),
    ("publish.min_retained", 0.5, "fuse"),
    ("publish.repo", "a/b", ""),
    ("publish.private", False, ""),
]
"""A field, another value for it, and the stages that run again."""

PROBLEMS = [Problem(str(n), f"What is {n} + {n}?", str(2 * n), level=str(n), subject="sums") for n in range(3)]


FORECASTING: list[tuple[str, Any, str]] = [
    ("forecast.problems", 9, f"answers choose forecast {SAMPLING}"),
    ("forecast.samples", 9, f"answers choose forecast {SAMPLING}"),
    ("forecast.continuations", 9, f"choose forecast {SAMPLING}"),
    ("forecast.lengths", [4], "forecast"),
    ("generate.temperature", 0.3, f"answers choose forecast {SAMPLING} analyze"),
    ("prefix.length", 9, f"choose forecast {SAMPLING}"),
    ("prefix.drop_cjk", True, f"choose forecast {SAMPLING}"),
    ("train.learning_rate", 0.5, TRAINING),
    ("seed", 1, f"answers choose forecast {EVERYTHING}"),
]
"""What else runs again where a probe chooses the prefixes: it is fitted on the answers' samples."""
