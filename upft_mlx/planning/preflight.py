"""What can be known to fail is refused before the first token is sampled, not hours later."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from upft_mlx.errors import MemoryLimitError, ModelError, RunDirError, TrainingError
from upft_mlx.escape import quoted
from upft_mlx.events import Note, Observer
from upft_mlx.models.adapters import refuse_missing_layers
from upft_mlx.models.architecture import Architecture
from upft_mlx.models.chat import Renderer
from upft_mlx.planning.plan import Estimate
from upft_mlx.recipe.schema import Lora
from upft_mlx.rundir import RunDir
from upft_mlx.stages import STAGES
from upft_mlx.training.tracking import refuse_missing_tracker

_RENDERED = 64
"""The shortest questions that are rendered to see whether any row fits."""


def refuse_early(estimate: Estimate, run: RunDir, due: Sequence[str], notify: Observer) -> None:
    """Refuse the stages that are due in a run if they cannot end well, or cannot fit into this machine's memory.

    Raises:
        MemoryLimitError: what is needed, what there is, and what would fit.
        UpftError: another of its kinds.
    """
    recipe, trains = estimate.recipe, "train" in due
    for place in (run.root / name for stage in due for name in STAGES[stage].outputs):
        if place.is_symlink() and not place.exists():
            problem = f"is a link to {place.readlink()}, which does not exist"
            raise RunDirError(problem, "connect that disk, create the folder, or remove the link", path=place)
    if trains:
        refuse_missing_tracker(recipe)
    if trains or "generate" in due:
        refuse_prompts(estimate, trains=trains)
    try:
        memory = estimate.memory_plan
    except ModelError as error:  # a kind of model that has no plan may run all the same
        notify(Note(f"memory is not planned: {error}"))
        return
    if trains:
        refuse_adapter(recipe.lora, memory.model)
    found = memory.too_large(recipe, due)
    if hopeless := [line for line, is_hopeless in found.values() if is_hopeless]:
        remedy = "if you know that it fits: UPFT_MEMORY_GB=N sets the memory limit to N GB"
        raise MemoryLimitError("\n".join([*hopeless, remedy]))
    for line, _ in found.values():
        notify(Note(f"memory may not be enough: {line}"))


def refuse_adapter(lora: Lora, model: Architecture) -> None:
    """Refuse an adapter for layers or modules that the model does not have, or for a grid that they do not have.

    Raises:
        ModelError: says what it has.
    """
    told = {matrix.place[1] for matrix in model.matrices} - {""}
    refuse_missing_layers(lora, model.layers, lora.keys or () if model.unusual else told)
    plain = next((matrix.name for matrix in model.adapted(lora) if not matrix.bits), None)
    if lora.grid is not None and plain is not None and not model.unusual:
        remedy = "leave it out, set quantize, or choose quantized modules with lora.keys"
        raise ModelError(f"base, but {quoted(plain)} is not quantized", remedy, field="lora.grid")


def refuse_prompts(estimate: Estimate, *, trains: bool) -> None:
    """Refuse prompts that the chat template does not take, or that leave no room for a completion.

    Raises:
        ModelError: the template refuses a prompt.
        TrainingError: none fits into `train.max_length`.
    """
    room, template = estimate.recipe.train.max_length, estimate.recipe.prefix.template_text
    renderer = Renderer(estimate.tokenizer, estimate.recipe.prompt)
    shortest = heapq.nsmallest(_RENDERED, (problem.question for problem in estimate.problems), key=len)
    if not any(len(renderer.ids(question + template)) < room for question in shortest) and trains:
        raise TrainingError(f"{room} tokens leave no room behind the prompts", "raise it", field="train.max_length")
