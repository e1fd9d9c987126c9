"""Problems to solutions.jsonl: chunk by chunk, resumable, only as many tokens as a row needs.

Chunks hold problems of like length and of one kind, the long ones first, so that little is padding and what does not
fit into memory fails at once. They are appended to solutions.partial.jsonl; when all are there, the rows are put into
the order of the problems.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from upft_mlx.data.problems import Problem
from upft_mlx.dataset.prefix import Wanted, most_sampled
from upft_mlx.distributed.seam import made_by_all, rounds
from upft_mlx.events import Note, Observer, Progress, ignore
from upft_mlx.models.chat import Renderer
from upft_mlx.models.load import Loaded
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import Solution, append_chunk, arrange, read_rows, resume
from upft_mlx.rundir import RunDir
from upft_mlx.sampling.chunks import generated_together
from upft_mlx.sampling.decoding import OnStep, Request
from upft_mlx.sampling.sampler import Sampler, sampling_for, summing


@dataclass(frozen=True)
class Generated:
    """What is in solutions.jsonl, and what it took."""

    solutions: int
    full: int
    """The full solutions among them."""
    tokens_sampled: int
    tokens_processed: int
    """Passed through the model by this process, prompts and padding included."""


class SamplingOrder:
    """The order in which solutions are sampled."""

    def __init__(self, wanted: Sequence[Wanted], lengths: Sequence[int], batch_size: int) -> None:
        """`lengths`: of all problems' questions, in any unit."""
        self._wanted = wanted
        order = sorted(range(len(wanted)), key=lambda i: (wanted[i].kind == "prefix", -lengths[wanted[i].number], i))
        self._order = array("L", order)
        self._ends = array("L")
        """Where each chunk ends in the order."""
        self.sizes: list[int] = []
        """Solutions of each chunk."""
        size = problems = 0
        for position, index in enumerate(self._order):
            item = self._wanted[index]
            size, problems = size + item.samples, problems + 1
            following = self._order[position + 1] if position + 1 < len(self._order) else None
            ends = following is None or self._wanted[following].kind != item.kind
            if ends or problems >= generated_together(item.kind, batch_size, item.samples):
                self._ends.append(position + 1)
                self.sizes.append(size)
                size = problems = 0

    def chunk(self, number: int) -> list[Wanted]:
        """What is sampled together."""
        start = self._ends[number - 1] if number else 0
        return [self._wanted[index] for index in self._order[start : self._ends[number]]]

    def lines(self) -> Iterator[int]:
        """The lines of a file written in this order, as they follow each other in the order of the problems."""
        starts = array("L", bytes(array("L").itemsize * len(self._order)))
        line = 0
        for index in self._order:
            starts[index] = line
            line += self._wanted[index].samples
        for index, item in enumerate(self._wanted):
            yield from range(starts[index], starts[index] + item.samples)


def generate(
    recipe: Recipe,
    loaded: Loaded,
    problems: Sequence[Problem],
    wanted: Sequence[Wanted],
    run: RunDir,
    notify: Observer = ignore,
) -> Generated:
    """Sample what is wanted (`prefix.wanted`) into solutions.jsonl.

    Where the first chunks are there already it is continued, and ends with the bytes of an uninterrupted run.
    """
    generator = _Generator(recipe, loaded, problems, wanted, run, notify)
    if run.partial.exists() or not run.solutions.exists():  # else all that is left to do is to say what is there
        generator.sample()
        arrange(run.partial, run.solutions, generator.order.lines())
        run.partial.unlink()
    solutions = full = tokens = 0
    for row in read_rows(run.solutions, Solution):
        solutions, full, tokens = solutions + 1, full + (row.kind == "full"), tokens + len(row.completion_ids)
    return Generated(solutions, full, tokens, generator.sampler.processed_tokens)


class _Generator:
    """Samples chunk by chunk and tells how far it is."""

    def __init__(
        self,
        recipe: Recipe,
        loaded: Loaded,
        problems: Sequence[Problem],
        wanted: Sequence[Wanted],
        run: RunDir,
        notify: Observer,
    ) -> None:
        self.recipe, self.loaded, self.problems, self.run, self.notify = recipe, loaded, problems, run, notify
        g = recipe.generate
        confidence = recipe.prefix.selection in ("confidence", "prefix_confidence")
        self.sampler = Sampler(
            loaded, sampling_for(loaded, g.temperature, g.batch_size, g.top_p, g.top_k, g.stop, confidence)
        )
        if self.sampler.notice:
            notify(Note(self.sampler.notice))
        self.renderer = Renderer(loaded.tokenizer, recipe.prompt)
        lengths = array("L", (len(problem.question) for problem in problems))
        self.order = SamplingOrder(wanted, lengths, g.batch_size)
        self.done = self.tokens = self.shown = self.first = 0
        self.total = sum(self.order.sizes)
        self.full = sum(item.samples for item in wanted if item.kind == "full")

    def sample(self) -> None:
        """All chunks that are not there yet, as many at a time as there are ranks."""
        first = resume(self.run.partial, self.order.sizes)
        self.done = self.first = sum(self.order.sizes[:first])
        self._progress(0, 0)
        for part in rounds(range(first, len(self.order.sizes))):

            def on_step(tokens: int, finished: int, count: int = len(part)) -> None:
                # The other ranks are taken to be as far as this one; the end of the round says how far they are.
                self._progress(tokens * count, finished * count)

            for made in made_by_all(part, partial(self._rows, summing(on_step)), Solution):
                append_chunk(self.run.partial, made)
                self.done += len(made)
                self.tokens += sum(len(row.completion_ids) for row in made)
            self._progress(0, 0)

    def _progress(self, tokens: int, finished: int) -> None:
        """Say how far it is. Tokens to come: at the mean length so far of full solutions, which come first."""
        self.shown = max(self.shown, self.tokens + tokens)  # a step counts EOS, rows do not
        done = self.done + finished
        full = self.full - done
        prefixes = (self.total - max(self.full, done)) * most_sampled(self.recipe, "prefix")
        left: int | None = prefixes
        if full > 0:
            ended = done - self.first
            in_flight = min(full, self.recipe.generate.batch_size)  # halfway on average
            mean = min(most_sampled(self.recipe, "full"), self.shown / (ended + in_flight / 2))
            left = prefixes + round(max(0.0, mean * (ended + full) - self.shown)) if ended else None  # not known yet
        self.notify(Progress("generate", done, self.total, "solutions", self.shown, tokens_left=left))

    def _rows(self, on_step: OnStep, number: int) -> list[Solution]:
        """A chunk's solutions."""
        asked = [(self.problems[item.number], item) for item in self.order.chunk(number)]
        requests = [  # sampling never has the task template, which is for training only
            Request(
                self.renderer.asked(problem.question), most_sampled(self.recipe, item.kind), item.samples, problem.id
            )
            for problem, item in asked
        ]
        completions = iter(self.sampler.sample(requests, self.recipe.seed, on_step))
        rows = []
        for problem, item in asked:
            for sample in range(item.samples):
                made = next(completions)
                rows.append(
                    Solution(
                        problem_id=problem.id,
                        sample=sample,
                        kind=item.kind,
                        completion_ids=made.ids,
                        completion=self.loaded.tokenizer.decode(made.ids),
                        finish_reason=made.finish_reason,
                        logprob=made.logprob,
                        stop_id=made.stop_id,
                    )
                )
        return rows
