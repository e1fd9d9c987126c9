"""The sections of a recipe of `upft analyze`, `forecast` and `compare`, and the methods that there are."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field

from upft_mlx.recipe.fields import Count, FieldError, Section, as_tuple

Method = Literal["upft", "sft", "rft", "structure_only", "annotated"]
Selection = Literal[
    "first",
    "consensus",
    "majority_answer",
    "confidence",
    "longest",
    "label",
    "prefix_confidence",
    "rollouts",
    "probe",
    "auto",
]
SCORED = ("prefix_confidence", "rollouts", "probe")
"""Selections that rate prefixes: the samples of solutions.jsonl say how."""
VARIANTS = ("ssd", "cold")
"""Methods of `compare` that are another one with settings of their own."""
BEST_OF_PREFIX = "best_of_prefix"
"""The method of `compare` that trains nothing, and the rules that it may pick by."""
_PICKS = ("", "consensus", "prefix_confidence")


def _known_methods(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value:
        raise FieldError("is empty; name at least one method to compare with base")
    for name in value:
        method, _, selection = name.partition(":")
        if (method in VARIANTS and not selection) or (method == BEST_OF_PREFIX and selection in _PICKS):
            continue
        if method not in get_args(Method) or (selection and selection not in get_args(Selection)):
            raise FieldError(
                f"{name!r}: expected one of {', '.join((*get_args(Method), *VARIANTS, BEST_OF_PREFIX))}, or one with a "
                f"selection after it: {BEST_OF_PREFIX}:prefix_confidence, "
                f"upft:{', upft:'.join(get_args(Selection)[1:])}"
            )
    if len(set(value)) < len(value):
        raise FieldError("a method is listed twice")
    return value


def _ascending(value: tuple[int, ...]) -> tuple[int, ...]:
    if not value or list(value) != sorted(set(value)):
        raise FieldError("needs lengths in ascending order, without repeats")
    return value


class Analyze(Section):
    """What `upft analyze` samples."""

    problems: Count = 100
    """Maximum number of problems, from the first."""
    samples: Annotated[int, Field(ge=2)] = 64
    """Prefixes per problem for the prefix self-consistency (the paper: 1000)."""
    lengths: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(as_tuple), AfterValidator(_ascending)
    ] = (0, 1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
    """Prefix lengths (tokens)."""
    trajectories: Annotated[int, Field(ge=2)] = 16
    """Full solutions per problem; one right and one wrong solution are used."""
    rollout_problems: Count = 50
    """Maximum number of problems with rollouts, among those with both a right and a wrong solution."""
    rollouts: Count = 8
    """Continuations of each prefix (the paper: 32)."""


class Forecast(Section):
    """What `upft forecast` samples, and `prefix.selection: probe` and `auto` learn from."""

    problems: Annotated[int, Field(ge=8)] = 64
    """Maximum number of problems with answers that are used, from the first."""
    samples: Annotated[int, Field(ge=2)] = 16
    """Full solutions of each of them."""
    lengths: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(as_tuple), AfterValidator(_ascending)
    ] = (4, 8, 16, 32)
    """Prefix lengths (tokens) that are forecast besides `prefix.length`."""
    continuations: Count = 2
    """Fresh continuations of each prefix whose rule has seen how it goes on."""


class Compare(Section):
    """What `upft compare` runs besides the base model."""

    methods: Annotated[tuple[str, ...], BeforeValidator(as_tuple), AfterValidator(_known_methods)] = (
        *("sft", "rft", "upft", "upft:label", "structure_only"),
    )
    """Methods; a selection follows after a colon: `upft:majority_answer`. Besides the recipe's methods: `ssd` (simple
    self-distillation, arXiv 2604.01193: sft on one unchecked solution at T = 1.6, top-p 0.8, top-k 20), `cold`
    (upft on the first sample at `cold_temperature`), and `best_of_prefix` (no training: sample prefixes at test
    time and continue the one that is picked, by consensus or after a colon by prefix_confidence)."""
    seeds: Count = 3
    """Runs of each method; run number k has the recipe's `seed` + k."""
    samples: Annotated[int, Field(ge=2)] = 16
    """Solutions per problem for rft and for selections among several (the paper: 16)."""
    cold_temperature: Annotated[float, Field(gt=0.0, le=5.0)] = 0.3
    """Sampling temperature of `cold`."""
