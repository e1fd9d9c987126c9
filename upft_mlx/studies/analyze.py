"""How long a prefix may be on the user's own model: prefix self-consistency and prefix accuracy.

Prefix self-consistency (the paper's coverage side): n samples per question; for each length t, n divided by the number
of distinct length-t prefixes, averaged over questions. Prefix accuracy: per question one correct and one incorrect
trajectory; from each of their prefixes several rollouts; how often these are right, per arm. Where the arms are alike,
a prefix of an unchecked sample is as good as one of a right sample, which is what training on it without labels needs.

Where enough problems have answers, the trajectories also say what the rules that look at prefixes alone are worth: the
forecast of `upft forecast`, at analyze's lengths, without a further sample.

Three files are sampled in chunks and can be continued: prefixes.jsonl, trajectories.jsonl, rollouts.jsonl.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from upft_mlx.data.problems import Problem
from upft_mlx.dataset.prefix import LEAST_ANSWERS, sampled_prefix
from upft_mlx.distributed.seam import led
from upft_mlx.events import Note, Observer, StageStarted, ignore
from upft_mlx.forecasting.answers import Known, graded, remove_other_graders
from upft_mlx.forecasting.estimate import FROM_PREFIXES, Forecast
from upft_mlx.forecasting.forecast import Forecaster
from upft_mlx.grade.correct import VERSION
from upft_mlx.grade.graders import Task, grade, grader_of
from upft_mlx.job import Job, Outcome
from upft_mlx.models.chat import Renderer
from upft_mlx.models.load import Loaded
from upft_mlx.pipeline import do, opened, prepare
from upft_mlx.quantities import many
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import Rollout, Row, Solution, read_json, read_rows, write_atomically, write_json
from upft_mlx.rundir import RunDir
from upft_mlx.sampling.decoding import Completion, Request
from upft_mlx.sampling.resumed import sample_rows
from upft_mlx.sampling.sampler import Sampler, sampling_for
from upft_mlx.studies.prefix_statistics import LONGEST, Analysis, RolloutStart, figure, markdown, summarize


def run_analysis(recipe: Recipe, run_dir: str | Path, notify: Observer = ignore) -> Analysis:
    """The prefix statistics of the recipe's model and problems.

    Raises:
        UpftError: one of its kinds; what was sampled is kept.
    """
    job = prepare(recipe, run_dir, notify)
    job.remade = "analyze"
    with opened(job):
        led(job.run.root, lambda: do(job, "analyze"))
    return Analysis.load(read_json(job.run.analysis / "analysis.json"))


def inputs(job: Job) -> dict[str, Any]:
    """What the stage `analyze` depends on: the base model, the problems, and how tokens are drawn."""
    return {
        **job.inputs.base(),
        "problems": job.inputs.hashes["problems"],
        **job.inputs.section_without("generate", "keep", "samples"),
        **job.inputs.fields("analyze"),
    }


def announce(job: Job) -> StageStarted:
    """Say which model."""
    return StageStarted("analyze", f"prefixes of {job.recipe.model}")


def work(job: Job, run: RunDir) -> Outcome:
    """Sample, and write analysis/."""
    found, processed = analyze(job.recipe, job.load(), job.problems, run, job.notify)
    write_json(run.analysis / "analysis.json", found.dump())
    write_atomically(run.analysis / "curves.svg", figure(found))
    write_atomically(run.analysis / "analysis.md", f"# {job.recipe.name}\n\n{markdown(found)}")
    length = found.recommended.length
    detail = "no prefix.length recommended" if length is None else f"recommended prefix.length {length}"
    return Outcome(detail, tokens_sampled=found.tokens_sampled, tokens_processed=processed)


def analyze(
    recipe: Recipe, loaded: Loaded, problems: Sequence[Problem], run: RunDir, notify: Observer = ignore
) -> tuple[Analysis, int]:
    """Sample what is missing and summarise; of problems without an answer, prefix self-consistency alone.

    Returns:
        The statistics, and the tokens that this process passed through the model.
    """
    analyzer = _Analyzer(recipe, loaded, problems[: recipe.analyze.problems], run, notify)
    analyzer.prefixes()
    scored: list[RolloutStart] = []
    forecast: Forecast | None = None
    without = len(analyzer.problems) - len(analyzer.labelled)
    if not analyzer.labelled:
        notify(Note("the problems have no answers: only prefix self-consistency is measured"))
    elif without:
        told = f"{many(without, 'problem')} of {len(analyzer.problems):,} without an answer: only prefix "
        notify(Note(f"{told}self-consistency is measured on {'it' if without == 1 else 'them'}"))
    if analyzer.labelled:
        analyzer.trajectories()
        starts = analyzer.starts()
        analyzer.rollouts(starts)
        scored = analyzer.counted(starts)
        forecast = analyzer.forecast()
    found = summarize(recipe.analyze, analyzer.prefix_ids(), scored)
    found = replace(found, forecast=forecast, tokens_sampled=analyzer.tokens_sampled())
    return found, analyzer.sampler.processed_tokens


class _Analyzer:
    """Samples the three files."""

    def __init__(
        self, recipe: Recipe, loaded: Loaded, problems: Sequence[Problem], run: RunDir, notify: Observer
    ) -> None:
        self.recipe, self.loaded, self.problems, self.run, self.notify = recipe, loaded, problems, run, notify
        self.settings = recipe.analyze
        self.decode: Callable[[list[int]], str] = loaded.tokenizer.decode
        g = recipe.generate
        self.sampler = Sampler(loaded, sampling_for(loaded, g.temperature, g.batch_size, g.top_p, g.top_k, g.stop))
        renderer = Renderer(loaded.tokenizer, recipe.prompt)
        self.prompts = [renderer.asked(problem.question) for problem in problems]
        self.labelled = [number for number, problem in enumerate(problems) if problem.answer is not None]
        self.grader = grader_of(problem.answer for problem in problems)
        self.by_id = {problem.id: number for number, problem in enumerate(problems)}

    def prefixes(self) -> None:
        """`samples` prefixes per question, as long as the longest length."""
        limit = max(self.settings.lengths)
        self._solutions(
            self.run.analysis / "prefixes.jsonl", "prefix", self.settings.samples, limit, range(len(self.problems))
        )

    def trajectories(self) -> None:
        """`trajectories` full solutions per question with an answer."""
        limit = self.recipe.generate.max_tokens
        self._solutions(
            self.run.analysis / "trajectories.jsonl", "full", self.settings.trajectories, limit, self.labelled
        )

    def _solutions(
        self, path: Path, kind: Literal["prefix", "full"], samples: int, limit: int, numbers: Sequence[int]
    ) -> None:
        order = sorted(numbers, key=lambda number: -len(self.prompts[number]))
        requests = [Request(self.prompts[n], limit, samples, self.problems[n].id) for n in order]

        def row(index: int, sample: int, completion: Completion) -> Solution:
            problem, ids = self.problems[order[index]], completion.ids
            return Solution(problem.id, sample, kind, ids, self.decode(ids), completion.finish_reason)

        self._sample(path, requests, row)

    def rollouts(self, starts: Sequence[RolloutStart]) -> None:
        """`rollouts` continuations of each start's prefix, graded together with it."""
        order = sorted(starts, key=lambda start: -len(self._start(start)))
        limit = self.recipe.generate.max_tokens
        requests = [
            Request(
                self._start(t), max(1, limit - t.length), self.settings.rollouts, f"{t.problem_id}/{t.arm}/{t.length}"
            )
            for t in order
        ]

        def row(index: int, sample: int, completion: Completion) -> Rollout:
            start = order[index]
            text = self.decode([*start.ids, *completion.ids])
            answer = str(self.problems[self.by_id[start.problem_id]].answer)
            correct = grade(Task(text, answer, self.grader)).correct
            tokens = len(completion.ids)
            return Rollout(start.problem_id, start.arm, start.length, sample, correct, tokens, VERSION)

        path = self.run.analysis / "rollouts.jsonl"
        remove_other_graders(path, Rollout, self.notify)
        self._sample(path, requests, row)

    def _start(self, start: RolloutStart) -> list[int]:
        return [*self.prompts[self.by_id[start.problem_id]], *start.ids]

    def _sample(self, path: Path, requests: Sequence[Request], row: Callable[[int, int, Completion], Row]) -> None:
        sample_rows(path, self.sampler, requests, self.recipe.seed, row, "analyze", self.notify)

    def tokens_sampled(self) -> int:
        """In the rows of all files that are there."""
        paths = [self.run.analysis / f"{name}.jsonl" for name in ("prefixes", "trajectories")]
        total = sum(len(row.completion_ids) for path in paths if path.exists() for row in read_rows(path, Solution))
        rollouts = self.run.analysis / "rollouts.jsonl"
        return total + (sum(row.tokens for row in read_rows(rollouts, Rollout)) if rollouts.exists() else 0)

    def prefix_ids(self) -> Iterator[tuple[str, list[int]]]:
        """(problem, sampled ids) of each sample; a solution that ended early ends with -1."""
        longest = max(self.settings.lengths)
        for solution in read_rows(self.run.analysis / "prefixes.jsonl", Solution):
            ids, ended = sampled_prefix(solution, longest)
            yield solution.problem_id, [*ids, *([-1] if ended else [])]

    def starts(self) -> list[RolloutStart]:
        """Each question's first correct and first incorrect trajectory at each length; both, or the question is out.

        At length 0 the arms are one. A prefix that is the whole solution is not rolled out.
        """
        found: dict[str, dict[Literal["correct", "incorrect"], list[int]]] = {}
        for solution in read_rows(self.run.analysis / "trajectories.jsonl", Solution):
            if solution.finish_reason == "stop":
                answer = str(self.problems[self.by_id[solution.problem_id]].answer)
                arm: Literal["correct", "incorrect"] = (
                    "correct" if grade(Task(solution.completion, answer, self.grader)).correct else "incorrect"
                )
                found.setdefault(solution.problem_id, {}).setdefault(arm, solution.completion_ids)
        both = [(name, arms) for name, arms in found.items() if len(arms) == 2][: self.settings.rollout_problems]
        lengths = [length for length in self.settings.lengths if length > 0]
        starts = [RolloutStart(name, "both", 0, []) for name, _ in both]
        return starts + [
            RolloutStart(name, arm, length, ids[:length])
            for name, arms in both
            for arm, ids in arms.items()
            for length in lengths
            if length < len(ids)
        ]

    def counted(self, starts: Sequence[RolloutStart]) -> list[RolloutStart]:
        """The starts with how many of their rollouts were right."""
        right: dict[tuple[str, str, int], int] = {}
        for row in read_rows(self.run.analysis / "rollouts.jsonl", Rollout):
            key = (row.problem_id, row.arm, row.length)
            right[key] = right.get(key, 0) + row.correct
        share = self.settings.rollouts
        return [replace(t, score=right[t.problem_id, t.arm, t.length] / share) for t in starts]

    def forecast(self) -> Forecast | None:
        """What the rules that look at prefixes alone are worth, by the trajectories; None with too few problems."""
        lengths = [length for length in self.settings.lengths if 0 < length <= LONGEST]
        if len(self.labelled) < LEAST_ANSWERS or not lengths:
            return None
        problems = [self.problems[number] for number in self.labelled]
        known = Known(problems, graded(problems, self.run.analysis / "trajectories.jsonl"))
        forecaster = Forecaster(self.recipe, self.loaded, known, None, "analyze", self.notify)
        return forecaster.make(FROM_PREFIXES, lengths).forecast
