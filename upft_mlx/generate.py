"""Problems to solutions.jsonl: chunk by chunk, resumable, only as many tokens as a row needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from upft_mlx.events import Observer, Progress, ignore
from upft_mlx.models import Loaded
from upft_mlx.parallel import mine, ranks, rounds
from upft_mlx.prefix import Wanted
from upft_mlx.prompts import Renderer
from upft_mlx.recipe import Recipe
from upft_mlx.rows import Solution, append_chunk, read_rows, resume
from upft_mlx.rundir import RunDir
from upft_mlx.sampler import (
    Completion,
    OnStep,
    Request,
    Sampling,
    chunks,
    derive_seed,
    sample_chunk,
    sampling_for,
    summing,
)


def generate(recipe: Recipe, loaded: Loaded, wanted: Sequence[Wanted], run: RunDir, notify: Observer = ignore) -> int:
    """Sample what is wanted (`prefix.wanted`) and append it to solutions.jsonl.

    A file that holds the first chunks already is continued and ends with the bytes of an uninterrupted run.

    Returns:
        Tokens in the file, those of earlier processes included.
    """
    g = recipe.generate
    sampling = sampling_for(loaded, g.temperature, g.batch_size, g.top_p, g.top_k)
    renderer = Renderer(loaded.tokenizer, recipe.prompt)
    plan = chunks(wanted, sampling.chunk_size)
    total = sum(map(len, plan))
    first = resume(run.solutions, [len(chunk) for chunk in plan])
    done = sum(map(len, plan[:first]))
    tokens = 0

    def on_step(new_tokens: int, finished: int) -> None:
        # The other ranks are taken to be as far as this one; the end of the round says how far they are.
        notify(Progress("generate", done + finished * len(part), total, "solutions", tokens + new_tokens * len(part)))

    notify(Progress("generate", done, total, "solutions", tokens))
    for part in rounds(list(enumerate(plan))[first:]):
        rows = _sample(recipe, loaded, renderer, sampling, mine(part), summing(on_step))
        for made in ranks().gather([asdict(row) for row in rows]):
            append_chunk(run.solutions, [Solution(**row) for row in made])
            done, tokens = done + len(made), tokens + sum(len(row["completion_ids"]) for row in made)
        notify(Progress("generate", done, total, "solutions", tokens))
    return sum(len(row.completion_ids) for row in read_rows(run.solutions, Solution))


def _sample(
    recipe: Recipe,
    loaded: Loaded,
    renderer: Renderer,
    sampling: Sampling,
    numbered: tuple[int, Sequence[Wanted]] | None,
    on_step: OnStep,
) -> list[Solution]:
    """This rank's chunk of a round, with the seed of its number: the same whoever samples it."""
    if numbered is None:
        return []
    index, chunk = numbered
    requests = [_request(recipe, renderer, item) for item in chunk]
    seed = derive_seed("generate", recipe.seed, index)
    completions = sample_chunk(loaded, requests, sampling, seed, on_step)
    return [_solution(loaded, *pair) for pair in zip(chunk, completions, strict=True)]


def _request(recipe: Recipe, renderer: Renderer, item: Wanted) -> Request:
    """Sampling always uses the plain question: the task template is for training only."""
    limit = recipe.prefix.length if item.kind == "prefix" else recipe.generate.max_tokens
    return Request(renderer.ids(item.problem.question), limit)


def _solution(loaded: Loaded, item: Wanted, completion: Completion) -> Solution:
    return Solution(
        problem_id=item.problem.id,
        sample=item.sample,
        kind=item.kind,
        completion_ids=completion.ids,
        completion=loaded.tokenizer.decode(completion.ids),
        finish_reason=completion.finish_reason,
    )
