"""What can be known to fail is refused before the first token is sampled, not hours later."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from upft_mlx.errors import MemoryLimitError, ModelError, RunDirError, TrainingError
from upft_mlx.escape import quoted
from upft_mlx.events import Note
from upft_mlx.job import Job
from upft_mlx.models.adapters import refuse_missing_layers
from upft_mlx.models.architecture import Architecture
from upft_mlx.models.chat import Renderer
from upft_mlx.planning.memory import Machine
from upft_mlx.planning.plan import memory_plan
from upft_mlx.quantities import many
from upft_mlx.recipe.schema import Lora
from upft_mlx.stages import STAGES
from upft_mlx.training.tracking import refuse_missing_tracker

_RENDERED = 64
"""The shortest questions that are rendered to see whether any row fits."""


def refuse_early(job: Job, machine: Machine, due: Sequence[str]) -> None:
    """Refuse the stages of a job that are due if they cannot end well, or cannot fit into the machine's memory.

    Raises:
        MemoryLimitError: what is needed, what there is, and what would fit.
        TrainingError: no row fits into `train.max_length`.
        UpftError: another of its kinds.
    """
    recipe, trains = job.recipe, "train" in due
    for place in (job.run.root / name for stage in due for name in STAGES[stage].outputs):
        if place.is_symlink() and not place.exists():
            problem = f"is a link to {place.readlink()}, which does not exist"
            raise RunDirError(problem, "connect that disk, create the folder, or remove the link", path=place)
    if trains:
        refuse_missing_tracker(recipe)
    if trains or "generate" in due:  # the chat template may refuse a prompt, and prompts may leave no room
        room, renderer = recipe.train.max_length, Renderer(job.tokenizer(), recipe.prompt)
        shortest = heapq.nsmallest(_RENDERED, (problem.question for problem in job.problems), key=len)
        prompts = (renderer.ids(question + recipe.prefix.template_text) for question in shortest)
        if not any(len(prompt) < room for prompt in prompts) and trains:
            raise TrainingError(
                f"{many(room, 'token leaves', 'tokens leave')} no room behind the prompts",
                "raise it",
                field="train.max_length",
            )
    try:
        memory = memory_plan(job, machine, job.run)
    except ModelError as error:  # a kind of model that has no plan may run all the same
        job.notify(Note(f"memory is not planned: {error}"))
        return
    if trains:
        refuse_adapter(recipe.lora, memory.model)
    found = memory.too_large(recipe, due)
    if hopeless := [line for line, is_hopeless in found if is_hopeless]:
        remedy = "if you know that it fits: UPFT_MEMORY_GB=N sets the memory limit to N GB"
        raise MemoryLimitError("\n".join([*hopeless, remedy]))
    for line, _ in found:
        job.notify(Note(f"memory may not be enough: {line}"))


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
