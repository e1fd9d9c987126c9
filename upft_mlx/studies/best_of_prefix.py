"""No training: at test time sample several prefixes of a question, and let a rule pick the one that is continued.

What training on picked prefixes would teach, paid for with each answer instead: the fair baseline of `compare`.

    best_of_prefix/BENCHMARK/prefixes.jsonl    `compare.samples` prefixes for each answer
    best_of_prefix/BENCHMARK/answers.jsonl     the picked ones, continued and graded
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from upft_mlx.data.benchmarks import BenchmarkSet
from upft_mlx.dataset.instruction import user_turn
from upft_mlx.dataset.prefix import most_sampled
from upft_mlx.dataset.selection import pick
from upft_mlx.events import Observer
from upft_mlx.forecasting.rated import rated_by_confidence
from upft_mlx.grade.graders import Task, grade
from upft_mlx.models.chat import Renderer
from upft_mlx.models.load import Loaded
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import EvaluationRow, Solution, read_rows
from upft_mlx.sampling.decoding import Completion, Request
from upft_mlx.sampling.resumed import sample_rows
from upft_mlx.sampling.sampler import Sampler, sampling_for


def measure(recipe: Recipe, loaded: Loaded, part: BenchmarkSet, folder: Path, notify: Observer) -> dict[str, float]:
    """Each problem's mean over its answers; what was sampled is continued.

    Prefixes are drawn at `generate.temperature` and picked by `prefix.selection`; the rest of the answer is drawn at
    the benchmark's own temperature.

    Args:
        recipe: with a selection that looks at prefixes alone, `consensus` or `prefix_confidence`.
        loaded: the base model.
        part: the benchmark.
        folder: where its two files are kept.
        notify: receives progress events.
    """
    entry, g = part.entry, recipe.generate
    renderer, turn = Renderer(loaded.tokenizer, recipe.prompt), user_turn(entry, recipe.prompt)
    asked = [(problem, sample) for problem in part.problems for sample in range(entry.samples)]
    prompts = [renderer.ids(turn.replace("{question}", problem.question)) for problem, _ in asked]
    drawing = Sampler(loaded, sampling_for(loaded, g.temperature, g.batch_size, g.top_p, g.top_k, logprobs=True))
    requests = [
        Request(prompt, most_sampled(recipe, "prefix"), recipe.compare.samples, f"{problem.id}/{sample}")
        for (problem, sample), prompt in zip(asked, prompts, strict=True)
    ]

    def prefix(index: int, number: int, made: Completion) -> Solution:
        text = loaded.tokenizer.decode(made.ids)
        name = asked[index][0].id
        return Solution(name, number, "prefix", made.ids, text, made.finish_reason, made.logprob, made.stop_id)

    sample_rows(folder / "prefixes.jsonl", drawing, requests, recipe.seed, prefix, "evaluate", notify)
    rows, size = list(read_rows(folder / "prefixes.jsonl", Solution)), recipe.compare.samples
    picked = [_picked(recipe, rows[start : start + size]) for start in range(0, len(rows), size)]
    going = Sampler(loaded, sampling_for(loaded, entry.temperature, recipe.evaluate.batch_size))
    requests = [
        Request(
            [*prompt, *row.completion_ids], max(1, entry.max_tokens - len(row.completion_ids)), 1, f"{p.id}/{s}/rest"
        )
        for (p, s), prompt, row in zip(asked, prompts, picked, strict=True)
    ]

    def answer(index: int, _: int, made: Completion) -> EvaluationRow:
        (problem, sample), row = asked[index], picked[index]
        ended = row.finish_reason == "stop"  # within the prefix: nothing follows it
        ids = row.completion_ids if ended else [*row.completion_ids, *made.ids]
        text = loaded.tokenizer.decode(ids)
        verdict = grade(Task(text, str(problem.answer), entry.grader, entry.percent_as_unit))
        reason = row.finish_reason if ended else made.finish_reason
        return EvaluationRow(
            problem.id, sample, text, verdict.answer, str(problem.answer), verdict.correct, len(ids), reason
        )

    sample_rows(folder / "answers.jsonl", going, requests, recipe.seed, answer, "evaluate", notify)
    marks: dict[str, list[bool]] = {}
    for made in read_rows(folder / "answers.jsonl", EvaluationRow):
        marks.setdefault(made.problem_id, []).append(made.correct)
    return {problem: sum(values) / len(values) for problem, values in marks.items()}


def _picked(recipe: Recipe, prefixes: Sequence[Solution]) -> Solution:
    """The prefix that the rule picks."""
    scored = [rated_by_confidence(row) for row in prefixes]
    found = pick(recipe.prefix.selection, scored, most_sampled(recipe, "prefix"), None)
    assert found is not None
    return prefixes[found]
