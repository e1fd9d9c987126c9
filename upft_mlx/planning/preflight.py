"""What can be known to fail is refused before the first token is sampled, not hours later."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from typing import Any

from upft_mlx.data.problems import Problem
from upft_mlx.errors import MemoryLimitError, ModelError, RunDirError, TrainingError
from upft_mlx.escape import quoted
from upft_mlx.events import Note, Observer
from upft_mlx.models.architecture import Architecture
from upft_mlx.models.chat import Renderer
from upft_mlx.planning.estimate import Estimate
from upft_mlx.recipe.schema import Lora, Recipe
from upft_mlx.rundir import RunDir
from upft_mlx.stages import STAGES
from upft_mlx.training.tracking import refuse_missing_tracker

_RENDERED = 64
"""The shortest questions that are rendered to see whether any row fits."""


def refuse_early(estimate: Estimate, run: RunDir, due: Sequence[str], notify: Observer) -> None:
    """Refuse stages that cannot end well, or cannot fit into this machine's memory.

    Args:
        estimate: of the recipe.
        run: where the outputs go.
        due: the stages that are to be done.
        notify: receives notes on what may not be enough or is unknown.

    Raises:
        MemoryLimitError: what is needed, what there is, and what would fit.
        UpftError: another of its kinds.
    """
    recipe, trains = estimate.recipe, "train" in due
    refuse_links_to_nothing(run, due)
    if trains:
        refuse_missing_tracker(recipe)
    if trains or "generate" in due:
        refuse_prompts(recipe, estimate.tokenizer, estimate.problems, trains=trains)
    try:
        model, memory = estimate.model, estimate.memory_plan
    except ModelError as error:  # a kind of model that has no plan may run all the same
        notify(Note(f"memory is not planned: {error}"))
        return
    if trains:
        refuse_adapter(recipe.lora, model)
    lines = memory.too_large(recipe, due)
    hopeless = [line for stage, line in lines.items() if stage != "fuse" and memory.is_hopeless(stage, recipe)]
    if hopeless:
        remedy = "if you know that it fits: UPFT_MEMORY_GB=N sets the memory limit to N GB"
        raise MemoryLimitError("\n".join([*hopeless, remedy]))
    for line in lines.values():
        notify(Note(f"memory may not be enough: {line}"))


def refuse_links_to_nothing(run: RunDir, stages: Collection[str]) -> None:
    """Refuse outputs that are links to another disk which is not there.

    Raises:
        RunDirError: names the link and where it leads.
    """
    for stage in stages:
        for place in (run.root / name for name in STAGES[stage].outputs):
            if place.is_symlink() and not place.exists():
                raise RunDirError(
                    f"is a link to {place.readlink()}, which does not exist",
                    "connect that disk, create the folder, or remove the link",
                    path=place,
                )


def refuse_adapter(lora: Lora, model: Architecture) -> None:
    """Refuse an adapter for layers or modules that the model does not have, or for a grid that they do not have.

    Raises:
        ModelError: says what it has.
    """
    if lora.num_layers > model.layers:
        raise ModelError(f"{lora.num_layers}, but the model has {model.layers} layers only", field="lora.num_layers")
    for key in lora.keys or ():
        if key not in model.modules() and not model.unusual:
            raise ModelError(
                f"no linear module {key!r} in the model's layers",
                f"they have {', '.join(model.modules())}",
                field="lora.keys",
            )
    plain = next((matrix.name for matrix in model.adapted(lora) if matrix.stored is None), None)
    if lora.grid is not None and plain is not None and not model.unusual:
        remedy = "leave it out, set quantize, or choose quantized modules with lora.keys"
        raise ModelError(f"base, but {quoted(plain)} is not quantized", remedy, field="lora.grid")


def refuse_prompts(recipe: Recipe, tokenizer: Any, problems: Sequence[Problem], *, trains: bool) -> None:
    """Refuse prompts that the chat template does not take, or that leave no room for a completion.

    Raises:
        ModelError: the template refuses a prompt.
        TrainingError: none fits into `train.max_length`.
    """
    renderer, template = Renderer(tokenizer, recipe.prompt), recipe.prefix.template_text
    shortest = heapq.nsmallest(_RENDERED if trains else 1, problems, key=lambda problem: len(problem.question))
    for problem in shortest:
        if len(renderer.ids(problem.question + template)) < recipe.train.max_length or not trains:
            return
    raise TrainingError(
        f"{recipe.train.max_length} tokens leave no room behind the prompts", "raise it", field="train.max_length"
    )
