"""Base and tuned on one benchmark: rows streamed to disk in chunks, chunk by chunk for both variants.

Each random number is keyed by seed, problem, sample and position, so that base and tuned draw with the same ones and
the paired difference is free of what they share. They take turns on one loaded model, with the adapter off and on, and
base's answers are drafts of tuned's (drafts.py).

A share of the problems is put to base once more at another batch size: what differs is rounding alone.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import replace
from functools import partial
from pathlib import Path

from upft_mlx.data.benchmarks import QUESTION, BenchmarkSet, BenchmarkSpec
from upft_mlx.data.problems import Problem
from upft_mlx.dataset.instruction import user_turn
from upft_mlx.distributed.seam import made_by_all, rounds
from upft_mlx.evaluation.drafts import Drafts
from upft_mlx.evaluation.sequential import is_known
from upft_mlx.evaluation.summary import AGAIN, VARIANTS, by_problem, difference, rounding, rounding_summary
from upft_mlx.events import Graded, Note, Observer, Progress, Variant, ignore
from upft_mlx.grade.correct import VERSION, normalize_answer
from upft_mlx.grade.graders import Task, Verdict, grade_all
from upft_mlx.grade.workers import SECONDS
from upft_mlx.machine.device import on_gpu
from upft_mlx.models.chat import Renderer
from upft_mlx.models.load import Loaded
from upft_mlx.quantities import many
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import EvaluationRow, append_chunk, read_rows, resume, write_rows
from upft_mlx.rundir import RunDir
from upft_mlx.sampling.chunks import evaluated_together
from upft_mlx.sampling.decoding import Completion, OnStep, Request
from upft_mlx.sampling.sampler import Sampler, chunks, sampling_for, summing

WITHHELD = "(withheld)"
"""What stands for a private benchmark's texts."""

AGAIN_SHARE, AGAIN_MOST = 1 / 10, 64
"""The share of the problems, and their largest number, that are put to base at another batch size."""
Switch = Callable[[Variant], None]
"""Puts the adapter on for `tuned`, off for `base`."""


class SamplingOrder:
    """The order in which problems are sampled: chunks of like length, the long ones first, so that little is padding.

    Or chunks of a batch each in random order, after each of which one may stop. A chunk holds whole problems, so that
    the samples of one share its prompt.
    """

    def __init__(self, problems: Sequence[Problem], samples: int, batch_size: int, shuffled: str | None = None) -> None:
        """`shuffled`: the seed of the random order, where it is to be one."""
        order = sorted(range(len(problems)), key=lambda i: (-len(problems[i].question), i))
        per_chunk = evaluated_together(len(problems), batch_size, samples)
        if shuffled is not None:
            random.Random(shuffled).shuffle(order)
            per_chunk = max(1, batch_size // samples)
        self.chunks = [[problems[i] for i in part] for part in chunks(order, per_chunk)]
        self._samples = samples

    def places(self, number: int) -> list[tuple[str, int]]:
        """The problems and samples of a chunk."""
        return [(problem.id, sample) for problem in self.chunks[number] for sample in range(self._samples)]


class Evaluator:
    """One model on one benchmark, one variant or both in turns."""

    def __init__(
        self, recipe: Recipe, loaded: Loaded, part: BenchmarkSet, run: RunDir, notify: Observer = ignore
    ) -> None:
        self._recipe, self._loaded, self._part, self._run, self._notify = recipe, loaded, part, run, notify
        self._sampling = sampling_for(loaded, part.entry.temperature, recipe.evaluate.batch_size)
        self._renderer = Renderer(loaded.tokenizer, recipe.prompt)
        self._prompt = user_turn(part.entry, recipe.prompt)
        self._may_stop = recipe.evaluate.until == "known"
        shuffled = f"{recipe.seed}/{part.entry.label}" if self._may_stop else None
        self._order = SamplingOrder(part.problems, part.entry.samples, recipe.evaluate.batch_size, shuffled)
        self._samplers: dict[Variant, Sampler] = {}
        """One of each variant: what prompts share has other keys and values with the adapter on."""
        self._done: dict[Variant, int] = {}
        self._tokens = self._processed = 0
        base = self._path("base")
        self.drafts = Drafts(loaded, read_rows(base, EvaluationRow, growing=True) if base.exists() else (), WITHHELD)

    def run(self, variants: Sequence[Variant], switch: Switch) -> None:
        """Sample and grade what is missing; files that hold whole chunks already are continued."""
        numbers = rounds(range(len(self._order.chunks)))
        done = {variant: self._resume(variant, numbers) for variant in variants}
        for place, round_ in enumerate(numbers):
            for variant in variants:
                if place not in done[variant]:
                    switch(variant)
                    self._round(variant, round_)
            if self._may_stop and len(variants) > 1 and self._is_known(numbers[: place + 1], switch):
                numbers = numbers[: place + 1]
                break
        # The rows as the problems follow each other, without those of problems after which it stopped.
        kept = {place for round_ in numbers for number in round_ for place in self._order.places(number)}
        places = {problem.id: place for place, problem in enumerate(self._part.problems)}
        for variant in variants:
            rows = [row for row in self._rows_of(variant) if (row.problem_id, row.sample) in kept]
            write_rows(self._path(variant), sorted(rows, key=lambda row: (places[row.problem_id], row.sample)))
        if self._may_stop or not self._path(AGAIN).exists():
            again = self._ask_again({problem_id for problem_id, _ in kept}, switch)
            write_rows(self._path(AGAIN), again)  # without those that no longer count
            found = rounding_summary([*by_problem(self._rows_of("base")).values()], again)
            self._notify(Note(f"{self._part.entry.label}: {rounding(found)}"))

    def _is_known(self, numbers: Sequence[Sequence[int]], switch: Switch) -> bool:
        """Whether the answers of these rounds settle the difference; says so where they do and there are more.

        Rounding is measured before, so that the verdict on the same answers has the same floor.
        """
        places = {place for round_ in numbers for number in round_ for place in self._order.places(number)}
        rows = {variant: {(r.problem_id, r.sample): r for r in self._rows_of(variant)} for variant in VARIANTS}
        base, tuned = ([*by_problem(rows[variant][place] for place in sorted(places)).values()] for variant in VARIANTS)
        effect, floor = self._recipe.evaluate.effect / 100, 0.0
        if is_known(difference(base, tuned, floor, "known"), effect):
            floor = rounding_summary(base, self._ask_again({problem_id for problem_id, _ in places}, switch)).grades
        if not is_known(difference(base, tuned, floor, "known"), effect):
            return False
        total = len(self._part.problems)
        if len(base) < total:
            self._notify(Note(f"{self._part.entry.label}: known after {len(base):,} of {many(total, 'problem')}"))
        return True

    def _ask_again(self, answered: Set[str], switch: Switch) -> list[EvaluationRow]:
        """Base's answers at another batch size to a share of the problems with these ids; asks what is not there yet.

        In random order the first ones, so that those of fewer problems are among those of more.
        """
        entry, size, path = self._part.entry, self._sampling.batch_size, self._path(AGAIN)
        problems = itertools.chain(*self._order.chunks) if self._may_stop else self._part.problems
        asked = [problem for problem in problems if problem.id in answered]
        count, size = min(AGAIN_MOST, math.ceil(AGAIN_SHARE * len(asked))), max(1, size // 2) if size > 1 else 2
        asked = asked[:count] if self._may_stop else asked[:: math.ceil(len(asked) / count)]
        there = by_problem(read_rows(path, EvaluationRow)) if path.exists() else {}
        missing = [problem for problem in asked if problem.id not in there]

        def sample(_number: int) -> list[EvaluationRow]:
            sampler = Sampler(self._loaded, replace(self._sampling, batch_size=size))
            completions = sampler.sample([self._request(problem) for problem in missing], self._recipe.seed)
            self._processed += sampler.processed_tokens
            return self._rows([(problem, k) for problem in missing for k in range(entry.samples)], completions)

        if missing:
            switch("base")
            there |= by_problem(itertools.chain(*made_by_all([0], sample, EvaluationRow)))  # one rank makes all
            write_rows(path, itertools.chain(*there.values()))
        return [row for problem in asked for row in there[problem.id]]

    @property
    def processed_tokens(self) -> int:
        """Tokens that this process passed through the model, prompts and padding included."""
        return self._processed + sum(sampler.processed_tokens for sampler in self._samplers.values())

    def _path(self, variant: str) -> Path:
        return self._run.rows_of(self._part.entry.label, variant)

    def _rows_of(self, variant: Variant) -> Iterator[EvaluationRow]:
        return read_rows(self._path(variant), EvaluationRow)

    def _resume(self, variant: Variant, numbers: Sequence[Sequence[int]]) -> set[int]:
        """Keep the rows of rounds that are there as a whole, in whatever order, and tell the view of them.

        Returns:
            The places of those rounds.
        """
        path = self._path(variant)
        resume(path, [1] * self._part.completions)  # cuts off a torn line
        rows = {(row.problem_id, row.sample): row for row in read_rows(path, EvaluationRow)}
        wanted = [[place for number in round_ for place in self._order.places(number)] for round_ in numbers]
        whole = {index for index, places in enumerate(wanted) if all(place in rows for place in places)}
        kept = {place for index in whole for place in wanted[index]}
        if len(kept) < len(rows):
            write_rows(path, [row for place, row in rows.items() if place in kept])
        replay(self._part, variant, self._run, self._notify)
        self._done[variant] = len(kept)
        return whole

    def _round(self, variant: Variant, round_: Sequence[int]) -> None:
        entry = self._part.entry
        questions = {p.id: p for number in round_ for p in self._order.chunks[number]}
        on_step = summing(partial(self._on_step, variant, len(round_)))
        for graded in made_by_all(round_, partial(self._sample, variant, on_step), EvaluationRow):
            append_chunk(self._path(variant), graded)
            self._done[variant] += len(graded)
            self._tokens += sum(row.tokens for row in graded)
            for row in graded:
                self._notify(_graded(entry, variant, questions[row.problem_id], row))
        self._progress(variant, self._done[variant], self._tokens)

    def _on_step(self, variant: Variant, parts: int, tokens: int, finished: int) -> None:
        # The other ranks are taken to be as far as this one; the end of the round says how far they are.
        self._progress(variant, self._done[variant] + finished * parts, self._tokens + tokens * parts)

    def _progress(self, variant: Variant, done: int, tokens: int) -> None:
        """Both variants are one bar: they take turns."""
        import mlx.core as mx

        others = sum(count for other, count in self._done.items() if other != variant)
        total = len(self._done) * self._part.completions
        label, peak = self._part.entry.label, mx.get_peak_memory()
        self._notify(Progress("evaluate", done + others, total, "completions", tokens, peak, part=label))

    def _sample(self, variant: Variant, on_step: OnStep, number: int) -> list[EvaluationRow]:
        """A chunk, graded."""
        chunk, places = self._order.chunks[number], self._order.places(number)
        if variant not in self._samplers:  # made while the variant is on
            self._samplers[variant] = Sampler(self._loaded, self._sampling)
            if (notice := self._samplers[variant].notice) and len(self._samplers) == 1:
                self._notify(Note(notice))
        sampler = self._samplers[variant]
        requests = [self._request(problem) for problem in chunk]
        drafted = variant == "tuned" and sampler.drafts and self.drafts.pay
        if drafted:
            samples = range(self._part.entry.samples)
            drafts = [tuple(self.drafts.of((problem.id, k)) for k in samples) for problem in chunk]
            requests = [replace(request, drafts=found) for request, found in zip(requests, drafts, strict=True)]
        clock = time.perf_counter if on_gpu() else time.process_time  # other work may run on the CPU
        begin = clock()
        completions = sampler.sample(requests, self._recipe.seed, on_step)
        seconds = clock() - begin
        if variant == "base":
            self.drafts.learn(places, completions)
        self.drafts.measured(completions, seconds, drafted=drafted)
        return self._rows([(problem, k) for problem in chunk for k in range(self._part.entry.samples)], completions)

    def _request(self, problem: Problem) -> Request:
        turn = self._prompt.replace(QUESTION, problem.question)
        return Request(self._renderer.ids(turn), self._part.entry.max_tokens, self._part.entry.samples, problem.id)

    def _rows(self, asked: Sequence[tuple[Problem, int]], completions: Sequence[Completion]) -> list[EvaluationRow]:
        """The rows of these problems and samples; all are graded at once."""
        entry = self._part.entry
        texts = [self._loaded.tokenizer.decode(completion.ids) for completion in completions]
        pairs = zip(texts, asked, strict=True)
        tasks = [Task(text, str(p.answer), entry.grader, entry.percent_as_unit) for text, (p, _) in pairs]
        verdicts = grade_all(tasks)
        if given_up := sum(verdict.gave_up for verdict in verdicts):
            late, count = many(given_up, "answer"), "counts" if given_up == 1 else "count"
            self._notify(Note(f"{entry.label}: {late} took too long to grade ({SECONDS:g} s) and {count} as wrong"))
        parts = zip(asked, completions, texts, verdicts, strict=True)
        return [graded_row(entry, problem, sample, *rest) for (problem, sample), *rest in parts]


def graded_again(entry: BenchmarkSpec, rows: Sequence[EvaluationRow]) -> list[EvaluationRow]:
    """The rows as this version's grader grades them; of a benchmark that is not private, whose texts are stored."""
    verdicts = grade_all([Task(row.completion, row.gold, entry.grader, entry.percent_as_unit) for row in rows])
    pairs = zip(rows, verdicts, strict=True)
    return [replace(row, answer=now.answer, correct=now.correct, grader=VERSION) for row, now in pairs]


def scores_of(entry: BenchmarkSpec, path: Path) -> dict[str, float]:
    """Each problem's mean over its samples, from a file of evaluation rows, as this version's grader grades them.

    Those of a private benchmark, whose texts are not stored, count as they were graded.
    """
    rows = [*read_rows(path, EvaluationRow)]
    if not entry.private and any(row.grader != VERSION for row in rows):
        rows = graded_again(entry, rows)
    return {name: sum(row.correct for row in its) / len(its) for name, its in by_problem(rows).items()}


def replay(part: BenchmarkSet, variant: Variant, run: RunDir, notify: Observer) -> None:
    """Tell the view what the rows on the disk say already."""
    by_id = {problem.id: problem for problem in part.problems}
    for row in read_rows(run.rows_of(part.entry.label, variant), EvaluationRow):
        notify(_graded(part.entry, variant, by_id[row.problem_id], row, resumed=True))


def graded_row(
    entry: BenchmarkSpec, problem: Problem, sample: int, completion: Completion, text: str, verdict: Verdict
) -> EvaluationRow:
    """The row of a graded completion; of a private benchmark without any text that tells the question or answer."""
    answer, gold = verdict.answer, str(problem.answer)
    if entry.private:
        text = WITHHELD
        if entry.grader != "choice":  # a letter says nothing; of a text, only whether it is the same counts
            gold = WITHHELD
            if answer is not None:  # the majority vote needs the same for equal answers
                code = hashlib.sha256(normalize_answer(answer).encode("utf-8", "replace")).hexdigest()
                answer = f"sha256:{code[:16]}"
    return EvaluationRow(
        problem_id=problem.id,
        sample=sample,
        completion=text,
        answer=answer,
        gold=gold,
        correct=verdict.correct,
        tokens=len(completion.ids),
        finish_reason=completion.finish_reason,
        grader=VERSION,
    )


def _graded(
    entry: BenchmarkSpec, variant: Variant, problem: Problem, row: EvaluationRow, *, resumed: bool = False
) -> Graded:
    return Graded(
        benchmark=entry.label,
        variant=variant,
        problem_id=row.problem_id,
        sample=row.sample,
        question=WITHHELD if entry.private else problem.question,
        completion=row.completion,
        answer=row.answer,
        gold=row.gold,
        correct=row.correct,
        tokens=row.tokens,
        resumed=resumed,
    )
