"""The forecast: what each rule's picks among the samples of answers/ are worth, at each prefix length.

`Forecaster` does it for some rules and lengths; the stage choose asks it for the rules that `auto` chooses among, the
stage forecast for all, `upft analyze` for those that need no more samples than it has. Only continuations.jsonl is
sampled, of prefixes whose rule has seen how they go on, and of those that greedy decoding takes where no sample begins
so.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from upft_mlx.dataset.prefix import most_sampled, why_dropped, with_end
from upft_mlx.dataset.selection import pick, prefix_key
from upft_mlx.errors import ModelError
from upft_mlx.events import Note, Observer, Progress, StageStarted
from upft_mlx.forecasting.answers import Answers, Known, remove_other_graders
from upft_mlx.forecasting.estimate import FROM_PREFIXES, Forecast, Fresh, advise, greedy_gain, mean_of, weigh
from upft_mlx.forecasting.page import figure, markdown
from upft_mlx.forecasting.probe import Probe, auc, fit, held_out
from upft_mlx.grade.correct import VERSION
from upft_mlx.grade.graders import Task, grade, grader_of
from upft_mlx.job import Job, Outcome
from upft_mlx.models.chat import Renderer
from upft_mlx.models.load import Loaded
from upft_mlx.recipe.schema import Recipe
from upft_mlx.recipe.studies import Selection
from upft_mlx.rows import Continuation, read_rows, write_atomically, write_json
from upft_mlx.rundir import RunDir
from upft_mlx.sampling.decoding import Completion, Request
from upft_mlx.sampling.resumed import sample_rows
from upft_mlx.sampling.sampler import Sampler, sampling_for

GREEDY = -1
"""The number of the solution that greedy decoding gives, beside those of the samples."""
ALL: tuple[Selection, ...] = tuple(name for name in get_args(Selection) if name not in ("rollouts", "auto"))
"""The rules that are forecast. `rollouts` would need continuations of every sample's prefix: more than all else."""
SIGHTED: tuple[Selection, ...] = ("prefix_confidence", "probe")
"""Rules for which the model is read."""

Scores = Mapping[tuple[Selection, int], Sequence[Sequence[float]]]
"""By rule and length, how each problem's samples are rated."""


@dataclass(frozen=True)
class Made:
    """What a forecaster gives."""

    forecast: Forecast
    probes: dict[int, Probe]
    """By length; none where the model cannot be read, or all samples are right, or all wrong."""
    tokens_processed: int


def inputs(job: Job) -> dict[str, Any]:
    """What the stage `forecast` depends on, besides the answers."""
    return {**prefix_inputs(job), **job.inputs.section("forecast", "lengths", "continuations")}


def prefix_inputs(job: Job) -> dict[str, Any]:
    """What every forecast reads of the prefix section: how long a prefix is, and which samples are dropped."""
    return job.inputs.section("prefix", "length", "drop_cjk", "require_boxed")


def announce(job: Job) -> StageStarted:
    """At which lengths."""
    return StageStarted("forecast", f"what rules are worth at t = {', '.join(map(str, _lengths(job.recipe)))}")


def work(job: Job, run: RunDir) -> Outcome:
    """Forecast all rules; write forecast/."""
    made = forecaster_of(job, run, run.forecast, "forecast").make(ALL, _lengths(job.recipe))
    found = made.forecast
    write_json(run.forecast / "forecast.json", found.dump())
    write_atomically(run.forecast / "curves.svg", figure(found))
    write_atomically(run.forecast / "forecast.md", f"# {job.recipe.name}\n\n{markdown(found)}")
    return Outcome(found.advice.text, tokens_sampled=found.tokens_sampled, tokens_processed=made.tokens_processed)


def _lengths(recipe: Recipe) -> list[int]:
    return sorted({*recipe.forecast.lengths, most_sampled(recipe, "prefix")})


def forecaster_of(job: Job, run: RunDir, folder: Path, stage: str) -> Forecaster:
    """A forecaster for the answers of a run; it keeps its continuations in `folder`."""
    known = Answers(job.recipe, job.problems, run).known()
    return Forecaster(job.recipe, job.load(), known, folder / "continuations.jsonl", stage, job.notify)


class Forecaster:
    """Rates what is known, and samples continuations."""

    def __init__(
        self, recipe: Recipe, loaded: Loaded, known: Known, file: Path | None, stage: str, notify: Observer
    ) -> None:
        """What it works on.

        Args:
            recipe: says how tokens are drawn, and which samples are dropped.
            loaded: the base model.
            known: problems with their graded samples.
            file: of the continuations; None where there are none, since `known` has no greedy solutions and all rules
                look at prefixes alone.
            stage: that progress is reported for.
            notify: receives progress events.
        """
        self.recipe, self.loaded, self.file, self.stage, self.notify = recipe, loaded, file, stage, notify
        self.problems, self.graded, self.greedy = known.problems, known.samples, known.greedy
        self.grader = grader_of(problem.answer for problem in known.problems)
        g = recipe.generate
        self.sampler = Sampler(loaded, sampling_for(loaded, g.temperature, g.batch_size, g.top_p, g.top_k, g.stop))
        renderer = Renderer(loaded.tokenizer, recipe.prompt)
        self.prompts = [renderer.asked(problem.question) for problem in self.problems]

    def make(self, rules: Sequence[Selection], lengths: Sequence[int]) -> Made:
        """The forecast of these rules at these lengths."""
        scores, areas, probes = self._scores(lengths)
        picks = {
            (rule, length): [self._pick(rule, length, number, scores) for number in range(len(self.graded))]
            for length, rule in itertools.product(lengths, rules)
            if rule not in SIGHTED or (rule, length) in scores
        }
        fresh, tokens = self._continue(picks, lengths)
        whole = sum(len(solution.completion_ids) for item in self.graded for solution in item.solutions)
        samples, weighed = len(self.graded[0].solutions), []
        for (rule, length), chosen in picks.items():
            greedy = {}  # the success of the prefix that greedy decoding takes
            for number, own in enumerate(self.greedy):
                alike = self._alike(number, length)
                if prefix_key(own.solutions[0], length)[1]:
                    greedy[own.problem_id] = own.mean
                elif alike is not None:
                    greedy[own.problem_id] = self.graded[number].worth(alike, length, None)
                else:
                    marks = fresh[own.problem_id, GREEDY, length]
                    greedy[own.problem_id] = sum(marks) / len(marks)
            cost = length * samples if rule in FROM_PREFIXES else whole / len(self.graded)
            cost = length if rule == "first" else cost
            weighed.append(weigh(rule, length, self.graded, chosen, fresh, greedy, cost))
        found = Forecast(
            problems=len(self.graded),
            samples=samples,
            base=mean_of([item.mean for item in self.graded], (0.0, 1.0)),
            greedy_base=mean_of([item.mean for item in self.greedy], (0.0, 1.0)) if self.greedy else None,
            rules=tuple(weighed),
            probe=areas,
            advice=replace(
                advise(weighed, len(self.graded)),
                remark=greedy_gain(self.graded, self.greedy, self.recipe.generate.temperature),
            ),
            tokens_sampled=tokens,
        )
        return Made(found, probes, self.sampler.processed_tokens)

    # What is picked.

    def _pick(self, rule: Selection, length: int, number: int, scores: Scores) -> int | None:
        """The rule's pick among a problem's samples that it may train on: of whole solutions, those that are whole."""
        solutions = self.graded[number].solutions
        usable = [
            sample
            for sample, solution in enumerate(solutions)
            if rule in FROM_PREFIXES or why_dropped(solution, self.recipe.prefix) is None
        ]
        samples = [solutions[sample] for sample in usable]
        if (rule, length) in scores:
            rated = scores[rule, length][number]
            samples = [replace(solutions[sample], score=rated[sample]) for sample in usable]
        found = pick(rule, samples, length, self.problems[number].answer, self.grader)
        return None if found is None else usable[found]

    def _scores(self, lengths: Sequence[int]) -> tuple[Scores, dict[int, dict[str, Any] | None], dict[int, Probe]]:
        """How prefix_confidence and, on problems that it was not fitted on, the probe rate each sample.

        Also, by length, how well the probe tells right from wrong there, and the probe that is fitted on all problems.
        """
        import numpy as np

        right = [item.right for item in self.graded]
        marks = [mark for item in right for mark in item]
        scores: dict[tuple[Selection, int], list[list[float]]] = {}
        areas: dict[int, dict[str, Any] | None] = {}
        probes: dict[int, Probe] = {}
        from upft_mlx.forecasting.states import Reader

        states = []  # what the model makes of each problem's samples; empty where it cannot be read
        try:
            reader = Reader(self.loaded)
        except ModelError as error:
            self.notify(Note(str(error)))
            reader = None
        for number, item in enumerate(self.graded):
            if reader is None:
                break
            ids = [with_end(solution, self.loaded.eos_id) for solution in item.solutions]
            ended = [solution.finish_reason == "stop" for solution in item.solutions]
            states.append(reader.states(self.prompts[number], ids, lengths, ended))
            self.notify(Progress(self.stage, number + 1, len(self.graded), "problems", part="states"))
        for length in lengths if states else ():
            features = [at[length].features for at in states]
            scores["prefix_confidence", length] = [at[length].logprobs for at in states]
            areas[length] = None
            if len(set(marks)) == 2:
                rated = held_out(features, right, length, self.recipe.seed)
                scores["probe", length], areas[length] = rated, auc(rated, right)
                probes[length] = fit(np.concatenate(features), marks, length)
        return scores, areas, probes

    # What is continued.

    def _continue(
        self, picks: Mapping[tuple[Selection, int], Sequence[int | None]], lengths: Sequence[int]
    ) -> tuple[Fresh, int]:
        """Fresh continuations of the prefixes that need them, and the tokens that were sampled for them."""
        if self.file is None:
            return {}, 0
        wanted: list[tuple[int, int, int]] = []  # (problem, sample, length)
        for (rule, length), chosen in picks.items():  # of rules that look at whole solutions
            for number, found in enumerate(chosen) if rule not in FROM_PREFIXES else ():
                if found is not None and not prefix_key(self.graded[number].solutions[found], length)[1]:
                    alike = self.graded[number].alike(self.graded[number].solutions[found], length)
                    wanted.append((number, alike[0], length))
        for length, number in itertools.product(lengths, range(len(self.greedy))):
            if not prefix_key(self.greedy[number].solutions[0], length)[1] and self._alike(number, length) is None:
                wanted.append((number, GREEDY, length))
        wanted = list(dict.fromkeys(wanted))
        starts = []
        for number, of, length in wanted:
            solution = self.greedy[number].solutions[0] if of == GREEDY else self.graded[number].solutions[of]
            starts.append(solution.completion_ids[:length])
        limit, count = self.recipe.generate.max_tokens, self.recipe.forecast.continuations
        names = [problem.id for problem in self.problems]
        requests = [
            Request([*self.prompts[number], *ids], max(1, limit - length), count, f"{names[number]}/{of}/{length}")
            for (number, of, length), ids in zip(wanted, starts, strict=True)
        ]

        def row(index: int, sample: int, made: Completion) -> Continuation:
            number, of, length = wanted[index]
            text = self.loaded.tokenizer.decode([*starts[index], *made.ids])
            verdict = grade(Task(text, str(self.problems[number].answer), self.grader))
            return Continuation(names[number], of, length, sample, verdict.correct, len(made.ids), grader=VERSION)

        remove_other_graders(self.file, Continuation, self.notify)
        sample_rows(self.file, self.sampler, requests, self.recipe.seed, row, self.stage, self.notify)
        fresh: dict[tuple[str, int, int], list[bool]] = {}
        tokens = 0
        for made in read_rows(self.file, Continuation):
            fresh.setdefault((made.problem_id, made.of, made.length), []).append(made.correct)
            tokens += made.tokens
        return fresh, tokens

    def _alike(self, number: int, length: int) -> int | None:
        """A sample that begins as greedy decoding does."""
        return next(iter(self.graded[number].alike(self.greedy[number].solutions[0], length)), None)


def dump_probes(probes: Mapping[int, Probe]) -> dict[str, Any]:
    """By length, ready for JSON."""
    return {str(length): asdict(probe) for length, probe in probes.items()}
