"""Problems to solutions.jsonl: chunk by chunk, resumable, only as many tokens as a row needs."""

from __future__ import annotations

from collections.abc import Sequence

from upft_mlx.events import Observer, Progress, ignore
from upft_mlx.models import Loaded
from upft_mlx.prefix import Wanted
from upft_mlx.prompts import Renderer
from upft_mlx.recipe import Recipe
from upft_mlx.rows import Solution, append_chunk, read_rows, resume
from upft_mlx.rundir import RunDir
from upft_mlx.sampler import Completion, Request, chunks, derive_seed, sample_chunk, sampling_for


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
        nonlocal tokens, done
        tokens, done = tokens + new_tokens, done + finished
        notify(Progress("generate", done, total, "solutions", tokens))

    notify(Progress("generate", done, total, "solutions", tokens))
    for index, chunk in enumerate(plan[first:], start=first):
        requests = [_request(recipe, renderer, item) for item in chunk]
        seed = derive_seed("generate", recipe.seed, index)
        completions = sample_chunk(loaded, requests, sampling, seed, on_step)
        append_chunk(
            run.solutions,
            [_solution(loaded, *pair) for pair in zip(chunk, completions, strict=True)],
        )
    return sum(len(row.completion_ids) for row in read_rows(run.solutions, Solution))


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
