"""The problems whose answers are used: full solutions of each, and the one that greedy decoding gives.

    answers/samples.jsonl    `forecast.samples` full solutions per problem
    answers/greedy.jsonl     one per problem

Both are sampled in chunks and can be continued.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from upft_mlx.data.problems import Problem
from upft_mlx.dataset.prefix import labelled
from upft_mlx.events import Note, Observer, StageStarted, ignore
from upft_mlx.forecasting.estimate import Graded
from upft_mlx.grade.correct import VERSION
from upft_mlx.grade.graders import Task, grade_all, grader_of
from upft_mlx.job import Job, Outcome
from upft_mlx.models.chat import Renderer
from upft_mlx.models.load import Loaded
from upft_mlx.quantities import many
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import Continuation, Rollout, Solution, read_rows
from upft_mlx.rundir import RunDir
from upft_mlx.sampling.decoding import Completion, Request
from upft_mlx.sampling.resumed import sample_rows
from upft_mlx.sampling.sampler import Sampler, sampling_for

Judged = TypeVar("Judged", Rollout, Continuation)


def inputs(job: Job) -> dict[str, Any]:
    """What the stage `answers` depends on: the base model, the problems, and how tokens are drawn."""
    return {
        **job.inputs.base(),
        "problems": job.inputs.hashes["problems"],
        **job.inputs.section_without("generate", "keep", "samples"),
        **job.inputs.section("forecast", "problems", "samples"),
    }


def announce(job: Job) -> StageStarted:
    """Say how many problems."""
    count = len(labelled(job.recipe, job.problems))
    solutions = many(job.recipe.forecast.samples, "full solution")
    return StageStarted("answers", f"{solutions} of {many(count, 'problem')} with answers")


def work(job: Job, run: RunDir) -> Outcome:
    """Sample both files."""
    made = Answers(job.recipe, job.problems, run)
    tokens, processed = made.sample(job.recipe, job.load(), job.notify)
    solutions = many(job.recipe.forecast.samples, "solution")
    detail = f"{many(len(made.problems), 'problem')}, {solutions} each, {many(tokens, 'token')}"
    return Outcome(detail, tokens_sampled=tokens, tokens_processed=processed)


@dataclass(frozen=True)
class Known:
    """Problems with answers, and what the model made of each."""

    problems: Sequence[Problem]
    samples: Sequence[Graded]
    """Each problem with its samples, equally many."""
    greedy: Sequence[Graded] = ()
    """Each problem with the solution that greedy decoding gives; empty where it was not asked."""


def graded(problems: Sequence[Problem], path: Path) -> list[Graded]:
    """Each problem with its solutions in a file, in the order of the file."""
    numbers = {problem.id: number for number, problem in enumerate(problems)}
    rows = list(read_rows(path, Solution))
    grader = grader_of(problem.answer for problem in problems)
    verdicts = grade_all([Task(row.completion, str(problems[numbers[row.problem_id]].answer), grader) for row in rows])
    found: list[list[tuple[Solution, bool]]] = [[] for _ in problems]
    for row, verdict in zip(rows, verdicts, strict=True):
        found[numbers[row.problem_id]].append((row, verdict.correct))
    return [Graded(problem.id, *zip(*pairs, strict=True)) for problem, pairs in zip(problems, found, strict=True)]


def remove_other_graders(path: Path, kind: type[Judged], notify: Observer, follows: Path | None = None) -> None:
    """Remove a file that another version has graded rows of: which prefixes are continued follows from grades, too.

    Args:
        path: the file; its rows hold no text that could be graded again.
        kind: of its rows.
        notify: receives a note where it does.
        follows: a file that was made from it, and goes with it.
    """
    if path.exists() and any(row.grader != VERSION for row in read_rows(path, kind, growing=True)):
        if follows is not None:
            follows.unlink(missing_ok=True)
        path.unlink()
        notify(Note(f"{path.name} is sampled again: another version graded it"))


class Answers:
    """The problems whose answers are used, with their samples once these are there."""

    def __init__(self, recipe: Recipe, problems: Sequence[Problem], run: RunDir) -> None:
        """Raises:
        ProblemsError: too few problems have answers.
        """
        self.problems = [problems[number] for number in labelled(recipe, problems)]
        self._samples, self._greedy = (run.answers / f"{name}.jsonl" for name in ("samples", "greedy"))

    def sample(self, recipe: Recipe, loaded: Loaded, notify: Observer = ignore) -> tuple[int, int]:
        """Sample what is missing of both files.

        Returns:
            The tokens in the files, and those that this process passed through the model.
        """
        g = recipe.generate
        own = (g.batch_size, g.top_p, g.top_k, g.stop)
        samplers = [
            Sampler(loaded, sampling_for(loaded, g.temperature, *own, logprobs=True)),
            Sampler(loaded, sampling_for(loaded, 0.0, *own)),
        ]
        files = (self._samples, self._greedy)
        renderer, limit = Renderer(loaded.tokenizer, recipe.prompt), g.max_tokens
        prompts = [renderer.asked(problem.question) for problem in self.problems]
        order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))

        def row(index: int, sample: int, made: Completion) -> Solution:
            text, name = loaded.tokenizer.decode(made.ids), self.problems[order[index]].id
            return Solution(name, sample, "full", made.ids, text, made.finish_reason, made.logprob, made.stop_id)

        for path, sampler, samples in zip(files, samplers, (recipe.forecast.samples, 1), strict=True):
            requests = [Request(prompts[n], limit, samples, self.problems[n].id) for n in order]
            sample_rows(path, sampler, requests, recipe.seed, row, "answers", notify)
        tokens = sum(len(row.completion_ids) for path in files for row in read_rows(path, Solution))
        return tokens, sum(sampler.processed_tokens for sampler in samplers)

    def graded(self) -> list[Graded]:
        """Each problem with its samples."""
        return graded(self.problems, self._samples)

    def known(self) -> Known:
        """The samples, and what greedy decoding gives."""
        return Known(self.problems, self.graded(), graded(self.problems, self._greedy))
