"""What rules that rate prefixes, or learn from a few answers, sample beside their prefixes is in the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from upft_mlx.pipeline import plan_recipe, run_stage
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rundir import RunDir

RULES: dict[str, dict[str, Any]] = {
    "continuations of all prefixes": {"selection": "rollouts", "rollouts": 2},
    "prefixes of structure rows as well": {"selection": "prefix_confidence", "structure_ratio": 0.5},
    "solutions of problems whose answers are used": {"selection": "prefix_confidence", "structure": "checked"},
}


def recipe(**prefix: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "rated",
            "model": "builtin:arithmetic",
            "problems": {"builtin": "arithmetic", "limit": 48},
            "generate": {"max_tokens": 64, "batch_size": 16, "samples": 4},
            "prefix": {"length": 8, **prefix},
            "forecast": {"problems": 16, "samples": 4},
            "evaluate": {"benchmarks": []},
        }
    )


@pytest.mark.parametrize("name", RULES)
def test_planned_tokens_are_those_of_the_ledger(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The continuations of 16 samples were left out: most of what such a rule costs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    given = recipe(**RULES[name])
    planned = plan_recipe(given, tmp_path / "none")
    run_stage(given, tmp_path / "run", "generate")
    entries = {stage: RunDir(tmp_path / "run").entry(stage) for stage in ("answers", "generate")}
    sampled = {stage: entry.tokens_sampled for stage, entry in entries.items() if entry is not None}
    assert planned.tokens.this.tokens_sampled == pytest.approx(sum(sampled.values()), rel=0.1), sampled
    assert planned.tokens.this.how != "prefixes alone"
    assert planned.seconds is not None
    assert ("answers" in planned.seconds) is ("answers" in sampled)


@pytest.mark.parametrize("prefix", [RULES["continuations of all prefixes"], {"selection": "auto"}])
def test_memory_is_planned_for_the_longest_that_is_sampled(prefix: dict[str, Any], tmp_path: Path) -> None:
    """Without structure rows only prefixes seemed to be sampled, and a full batch of solutions came unplanned."""

    def peak(**prefix: Any) -> int:
        given = recipe(structure_ratio=0.0, **prefix).having("generate", max_tokens=1024, batch_size=64)
        return plan_recipe(given, tmp_path, mac=16).memory.peak_bytes["generate"]

    solutions, prefixes = peak(selection="majority_answer"), peak(selection="consensus")
    assert peak(**prefix) == pytest.approx(solutions, rel=0.05)
    assert solutions > 2 * prefixes


@pytest.mark.parametrize("name", RULES)
def test_auto_batches_do_not_depend_on_what_is_sampled(name: str, tmp_path: Path) -> None:
    """Problems whose answers are used were not counted, and structure rows twice, though each problem is a row."""
    sizes = [
        plan_recipe(recipe(**prefix).having("train", batch_size="auto"), tmp_path, mac=16).settings["train.batch_size"]
        for prefix in ({"selection": "consensus"}, RULES[name])
    ]
    assert sizes[0] == sizes[1] == 2
