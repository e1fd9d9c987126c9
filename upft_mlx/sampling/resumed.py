"""Rows that are sampled chunk by chunk into a file that can be continued."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from upft_mlx.events import Observer, Progress
from upft_mlx.rows import Row, append_chunk, resume
from upft_mlx.sampling.decoding import Completion, Request
from upft_mlx.sampling.sampler import Sampler, summing

BATCHES = 4
"""Per chunk."""


def sample_rows(
    path: Path,
    sampler: Sampler,
    requests: Sequence[Request],
    seed: int,
    row: Callable[[int, int, Completion], Row],
    stage: str,
    notify: Observer,
) -> None:
    """Append a row for each completion, from where the file ends; the bytes are those of an uninterrupted run.

    Args:
        path: the file.
        sampler: of one model.
        requests: in the order of the rows.
        seed: the run's.
        row: makes a row of the request's number, the sample's number and the completion.
        stage: what progress is reported for; the part is the file's name.
        notify: receives progress events.
    """
    plan, sizes = list[list[int]](), list[int]()  # indices of requests, and the completions of each chunk
    for index, request in enumerate(requests):
        if not sizes or sizes[-1] >= BATCHES * sampler.sampling.batch_size:
            plan.append([])
            sizes.append(0)
        plan[-1].append(index)
        sizes[-1] += request.samples
    first = resume(path, sizes)
    start, total = sum(sizes[:first]), sum(sizes)
    on_step = summing(
        lambda tokens, finished: notify(Progress(stage, start + finished, total, "completions", tokens, part=path.stem))
    )
    for chunk in plan[first:]:
        completions = iter(sampler.sample([requests[index] for index in chunk], seed, on_step))
        pairs = [(index, sample) for index in chunk for sample in range(requests[index].samples)]
        append_chunk(path, [row(*pair, next(completions)) for pair in pairs])
