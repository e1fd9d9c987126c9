"""What a recipe will cost, as `upft plan` shows it. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from upft_mlx.results.economy import Cost


@dataclass(frozen=True)
class PromptTokens:
    """The lengths of the rendered questions, in tokens."""

    mean: float
    longest: int


@dataclass(frozen=True)
class SolutionTokens:
    """The expected length of a full solution, in tokens."""

    mean: float
    how: str
    """How it is known."""


@dataclass(frozen=True)
class PlannedTokens:
    """Tokens of this recipe, and of other methods on the same problems."""

    this: Cost
    sft: Cost
    """One full solution per problem."""
    rft: Cost
    """Rejection sampling with 16 full solutions per problem."""


@dataclass(frozen=True)
class PlannedMemory:
    """Peaks beside the limit, in bytes."""

    budget_bytes: int
    """The limit."""
    budget: str
    """The limit in words."""
    peak_bytes: dict[str, int]
    """By stage."""
    too_large: list[str]
    """A message for each stage that does not fit, with a remedy."""
    not_measured_for: list[str]
    """Parts of the model for which the formulas were not measured."""


@dataclass(frozen=True)
class Plan:
    """What a recipe will cost on this machine or another Mac."""

    recipe: str
    model: str
    parameters: int
    model_is_here: bool
    """Whether its weights are on this machine."""
    problems: int
    steps: int
    """Optimizer steps."""
    settings: dict[str, int | None]
    """By field the sizes that the run will have, with numbers instead of `auto`."""
    prompt_tokens: PromptTokens
    solution_tokens: SolutionTokens
    tokens: PlannedTokens
    memory: PlannedMemory
    disk_bytes: dict[str, int]
    """By what is written or downloaded."""
    seconds: dict[str, float] | None
    """By stage; None without a calibration."""
    other_seconds: dict[str, float] | None
    """Those of `export` and `compare`, which are no part of a run; None without a calibration."""
    notes: list[str]
    prompts_differ: list[str]
    """Benchmarks that are asked with another instruction than the problems, in words."""

    def dump(self) -> dict[str, Any]:
        """For JSON: what `upft plan --json` prints."""
        return asdict(self)
