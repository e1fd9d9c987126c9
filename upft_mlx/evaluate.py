"""Base and tuned on the recipe's benchmarks: rows streamed to disk in chunks, then summary.json.

Both sides use the same chunks, seeds and prompts, so that the paired difference is free of what they share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from upft_mlx.benchmarks import Entry
from upft_mlx.events import EvaluationStarted, Graded, Observer, Progress, Side, ignore
from upft_mlx.grade import extract_answer, is_correct, normalize_answer
from upft_mlx.models import Loaded
from upft_mlx.parallel import mine, ranks, rounds
from upft_mlx.problems import Problem
from upft_mlx.prompts import Renderer
from upft_mlx.recipe import Recipe
from upft_mlx.rows import EvaluationRow, append_chunk, read_rows, resume
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
from upft_mlx.stats import accuracy_interval, maj_at_k, paired_difference, pass_at_k


@dataclass(frozen=True)
class Set:
    """A benchmark entry and its problems."""

    entry: Entry
    problems: list[Problem]

    @property
    def completions(self) -> int:
        """Completions per side."""
        return len(self.problems) * self.entry.samples


def announce(sets: Sequence[Set], notify: Observer) -> None:
    """Tell the view what will come."""
    notify(EvaluationStarted(tuple((s.entry.label, s.completions) for s in sets)))


def evaluate_side(
    recipe: Recipe, loaded: Loaded, part: Set, side: Side, run: RunDir, notify: Observer = ignore
) -> None:
    """Sample and grade one side of one benchmark; continues a file that holds the first chunks already."""
    entry, path = part.entry, run.rows_of(part.entry.label, side)
    sampling = sampling_for(loaded, entry.temperature, recipe.evaluate.batch_size)
    renderer = Renderer(loaded.tokenizer, recipe.prompt)
    plan = chunks([(p, k) for p in part.problems for k in range(entry.samples)], sampling.chunk_size)
    first = resume(path, [len(chunk) for chunk in plan])
    replay(part, side, run, notify)
    by_id = {problem.id: problem for problem in part.problems}
    done, tokens = sum(map(len, plan[:first])), 0
    stage = f"evaluate {entry.label} {side}"

    def on_step(new_tokens: int, finished: int) -> None:
        # The other ranks are taken to be as far as this one; the end of the round says how far they are.
        count = done + finished * len(round_)
        notify(Progress(stage, count, part.completions, "completions", tokens + new_tokens * len(round_)))

    for round_ in rounds(list(enumerate(plan))[first:]):
        rows = _sample(recipe, loaded, renderer, sampling, entry, mine(round_), summing(on_step))
        for made in ranks().gather([asdict(row) for row in rows]):
            graded = [EvaluationRow(**row) for row in made]
            append_chunk(path, graded)
            done, tokens = done + len(made), tokens + sum(row.tokens for row in graded)
            for row in graded:
                notify(_graded(entry.label, side, by_id[row.problem_id], row))
        notify(Progress(stage, done, part.completions, "completions", tokens))


def _sample(
    recipe: Recipe,
    loaded: Loaded,
    renderer: Renderer,
    sampling: Sampling,
    entry: Entry,
    numbered: tuple[int, Sequence[tuple[Problem, int]]] | None,
    on_step: OnStep,
) -> list[EvaluationRow]:
    """This rank's chunk of a round, graded, with the seed of its number: the same whoever samples it."""
    if numbered is None:
        return []
    index, chunk = numbered
    requests = [Request(renderer.ids(problem.question), entry.max_tokens) for problem, _ in chunk]
    seed = derive_seed("evaluate", recipe.seed, entry.label, index)
    completions = sample_chunk(loaded, requests, sampling, seed, on_step)
    return [_row(loaded, entry, *item, c) for item, c in zip(chunk, completions, strict=True)]


def replay(part: Set, side: Side, run: RunDir, notify: Observer) -> None:
    """Tell the view what the rows on the disk say already."""
    by_id = {problem.id: problem for problem in part.problems}
    for row in read_rows(run.rows_of(part.entry.label, side), EvaluationRow):
        notify(_graded(part.entry.label, side, by_id[row.problem_id], row, resumed=True))


def _row(loaded: Loaded, entry: Entry, problem: Problem, sample: int, completion: Completion) -> EvaluationRow:
    text = loaded.tokenizer.decode(completion.ids)
    gold = str(problem.answer)
    return EvaluationRow(
        problem_id=problem.id,
        sample=sample,
        completion=text,
        answer=extract_answer(text),
        gold=gold,
        correct=is_correct(text, gold, percent_as_unit=entry.percent_as_unit),
        tokens=len(completion.ids),
        finish_reason=completion.finish_reason,
    )


def _graded(benchmark: str, side: Side, problem: Problem, row: EvaluationRow, *, resumed: bool = False) -> Graded:
    return Graded(
        benchmark=benchmark,
        side=side,
        problem_id=row.problem_id,
        sample=row.sample,
        question=problem.question,
        completion=row.completion,
        answer=row.answer,
        gold=row.gold,
        correct=row.correct,
        tokens=row.tokens,
        resumed=resumed,
    )


def summarize(sets: Sequence[Set], run: RunDir) -> dict[str, Any]:
    """The content of summary.json from the rows on the disk; `tuned` and `paired` where there are such rows."""
    return {"benchmarks": {s.entry.label: _summarize(s.entry, run) for s in sets}}


def _summarize(entry: Entry, run: RunDir) -> dict[str, Any]:
    result: dict[str, Any] = {}
    scores: dict[str, list[list[bool]]] = {}
    for side in ("base", "tuned"):
        path = run.rows_of(entry.label, side)
        if path.exists():
            by_problem: dict[str, list[EvaluationRow]] = {}
            for row in read_rows(path, EvaluationRow):
                by_problem.setdefault(row.problem_id, []).append(row)
            scores[side] = [[row.correct for row in rows] for rows in by_problem.values()]
            result[side] = side_summary(entry, list(by_problem.values()), scores[side])
    if len(scores) == 2:
        means = {side: [sum(s) / len(s) for s in values] for side, values in scores.items()}
        paired = asdict(paired_difference(means["base"], means["tuned"]))
        result["paired"] = {**paired, "ci95": list(paired["ci95"])}
    return result


def side_summary(
    entry: Entry, problems: Sequence[Sequence[EvaluationRow]], scores: Sequence[Sequence[bool]]
) -> dict[str, Any]:
    """One side of summary.json (design.md, "Rows")."""
    rows = [row for problem in problems for row in problem]
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k <= entry.samples]
    ks += [entry.samples] if entry.samples not in ks else []
    return {
        "n": len(problems),
        "samples": entry.samples,
        "temperature": entry.temperature,
        "accuracy": _mean([sum(s) / len(s) for s in scores]),
        "ci95": list(accuracy_interval(scores)),
        "pass_at_k": {str(k): _mean([pass_at_k(len(s), sum(s), k) for s in scores]) for k in ks},
        "maj_at_k": {str(k): _mean([_majority(problem, k) for problem in problems]) for k in ks},
        "mean_tokens": _mean([row.tokens for row in rows]),
        "truncated": _mean([row.finish_reason == "length" for row in rows]),
    }


def _majority(rows: Sequence[EvaluationRow], k: int) -> float:
    answers = [None if row.answer is None else normalize_answer(row.answer) for row in rows]
    return maj_at_k(answers, [row.correct for row in rows], k)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
