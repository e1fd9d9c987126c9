"""The accuracy on held-out problems while training: answers of validation problems, which no benchmark has."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from upft_mlx.data.benchmarks import BenchmarkSet
from upft_mlx.data.problems import Problem
from upft_mlx.distributed.seam import made_by_all, shared_out
from upft_mlx.errors import ProblemsError
from upft_mlx.grade.graders import Task, grade_all, grader_of
from upft_mlx.models.chat import Renderer
from upft_mlx.models.load import Loaded
from upft_mlx.quantities import many, percent
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import TrainingRow, read_rows
from upft_mlx.rundir import RunDir
from upft_mlx.sampling.decoding import Request
from upft_mlx.sampling.sampler import sample_chunk, sampling_for


def check_development(recipe: Recipe, problems: Sequence[Problem], sets: Sequence[BenchmarkSet]) -> None:
    """Refuse problems that cannot tell how training goes, or on which the result is to be reported.

    Raises:
        ProblemsError: `train.evaluate_every` is set, and no problem has an answer, or a benchmark has one of them.
    """
    if recipe.train.evaluate_every is None:
        return
    asked = {problem.question.strip(): problem.id for problem in problems if problem.answer is not None}
    if not asked:
        raise ProblemsError(
            "none of the problems has an answer to compare with",
            "name the answer's column with problems.answer, or leave train.evaluate_every out",
            field="train.evaluate_every",
        )
    for part in sets:
        shared = [name for p in part.problems if (name := asked.get(p.question.strip())) is not None]
        if shared:
            first = "" if part.entry.private else f" (such as {shared[0]})"
            raise ProblemsError(
                f"{len(shared)} of the problems are in the benchmark {part.entry.label}{first}: a step chosen by its "
                "answers to them cannot be reported on them",
                "train on other problems, or leave train.evaluate_every out",
                field="train.evaluate_every",
            )


MOST = 64
"""Problems, where the recipe does not say."""


@dataclass(frozen=True)
class _Graded:
    """What the ranks tell each other of an answer."""

    correct: bool


class Development:
    """Validation problems with answers, asked greedily as solutions are sampled."""

    def __init__(self, recipe: Recipe, loaded: Loaded, problems: Sequence[Problem], run: RunDir) -> None:
        """Take at most `train.evaluate_limit` problems of the dataset's validation rows.

        Raises:
            ProblemsError: none of them has an answer.
        """
        held_out = {row.problem_id for row in read_rows(run.valid, TrainingRow)}
        there = (p for p in problems if p.id in held_out and p.answer is not None)
        self.problems = list(itertools.islice(there, recipe.train.evaluate_limit or MOST))
        if not self.problems:
            raise ProblemsError(
                "no validation problem has an answer to compare with",
                "raise train.valid_ratio, or leave train.evaluate_every out",
                field="train.evaluate_every",
            )
        self._grader = grader_of(problem.answer for problem in problems)
        self._seed, self._loaded, settings = recipe.seed, loaded, recipe.generate
        self._sampling = sampling_for(loaded, 0.0, settings.batch_size, settings.top_p, settings.top_k, settings.stop)
        renderer = Renderer(loaded.tokenizer, recipe.prompt)
        self._requests = [Request(renderer.asked(p.question), settings.max_tokens, key=p.id) for p in self.problems]

    def accuracy(self) -> float:
        """The share of right answers of the model as it is now, 0 to 1; the ranks share the problems."""
        model = self._loaded.model
        model.eval()
        parts = [part for part, _ in shared_out(range(len(self.problems)))]
        found = [*itertools.chain(*made_by_all(parts, self._answered, _Graded))]
        model.train()
        return sum(graded.correct for graded in found) / len(found)

    def _answered(self, numbers: Sequence[int]) -> list[_Graded]:
        """The answers to some of the problems."""
        if not numbers:
            return []
        made = sample_chunk(self._loaded, [self._requests[n] for n in numbers], self._sampling, self._seed)
        texts = [self._loaded.tokenizer.decode(completion.ids) for completion in made]
        tasks = [Task(text, str(self.problems[n].answer), self._grader) for n, text in zip(numbers, texts, strict=True)]
        return [_Graded(verdict.correct) for verdict in grade_all(tasks)]

    def in_words(self, accuracy: float) -> str:
        """The accuracy with what it is of."""
        count = len(self.problems)
        right = f"{round(accuracy * count):,} of {many(count, 'validation problem')}"
        return f"{right} are answered right ({percent(accuracy)})"
