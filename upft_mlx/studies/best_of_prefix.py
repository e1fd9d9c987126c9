"""No training: at test time sample several prefixes of a question, and let a rule pick the one that is continued.

What training on picked prefixes would teach, paid for with each answer instead: the fair baseline of `compare`.

    best_of_prefix/BENCHMARK/FINGERPRINT/prefixes.jsonl    `compare.samples` prefixes for each answer
    best_of_prefix/BENCHMARK/FINGERPRINT/answers.jsonl     the picked ones, continued and graded
    best_of_prefix/BENCHMARK/FINGERPRINT/cost.json         the tokens of all prefixes

The fingerprint is that of all that these rows depend on. Of a private benchmark, the prefixes are removed when they
are continued, those of other fingerprints at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from upft_mlx.data.benchmarks import BenchmarkSet
from upft_mlx.dataset.instruction import user_turn
from upft_mlx.dataset.prefix import most_sampled
from upft_mlx.dataset.selection import pick
from upft_mlx.evaluation.base_and_tuned import variant_inputs
from upft_mlx.evaluation.evaluate import graded_row, scores_of
from upft_mlx.forecasting.rated import rated_by_confidence
from upft_mlx.grade.graders import Task, grade
from upft_mlx.job import Job
from upft_mlx.models.chat import Renderer
from upft_mlx.recipe.schema import Recipe
from upft_mlx.recipe.studies import BEST_OF_PREFIX
from upft_mlx.rows import EvaluationRow, Solution, read_json, read_rows, write_json
from upft_mlx.rundir import fingerprint
from upft_mlx.sampling.decoding import Completion, Request
from upft_mlx.sampling.resumed import sample_rows
from upft_mlx.sampling.sampler import Sampler, sampling_for


def inputs(job: Job, part: BenchmarkSet) -> dict[str, Any]:
    """What the rows depend on."""
    return {
        **variant_inputs(job, part, "base"),
        **job.inputs.section("generate", "temperature", "top_p", "top_k"),
        "batch size of prefixes": job.recipe.generate.batch_size,
        "prefixes": [job.recipe.compare.samples, most_sampled(job.recipe, "prefix"), job.recipe.prefix.selection],
    }


def measure(job: Job, part: BenchmarkSet) -> tuple[dict[str, float], int]:
    """Each problem's mean over its answers, and the tokens of the prefixes; what was sampled is continued.

    Prefixes are drawn at `generate.temperature` and picked by `prefix.selection`, which looks at prefixes alone
    (`consensus` or `prefix_confidence`); the rest of the answer is drawn at the benchmark's own temperature.

    Args:
        job: with the base model.
        part: the benchmark.
    """
    entry, folder = part.entry, job.run.root / BEST_OF_PREFIX / part.entry.label / fingerprint(inputs(job, part))
    answers, prefixes, cost = (folder / name for name in ("answers.jsonl", "prefixes.jsonl", "cost.json"))
    if entry.private:
        for path in folder.parent.glob("*/prefixes.jsonl"):
            if path.parent != folder:  # a kill came before the end, and then other settings
                path.unlink()
    if not answers.exists() or len(list(read_rows(answers, EvaluationRow, growing=True))) < part.completions:
        _sample(job, part, folder)
    if prefixes.exists() and not cost.exists():
        tokens = sum(len(row.completion_ids) for row in read_rows(prefixes, Solution))
        write_json(cost, {"tokens_sampled": tokens})
    if entry.private:
        prefixes.unlink(missing_ok=True)  # also where a kill came between
    return scores_of(entry, answers), read_json(cost)["tokens_sampled"] if cost.exists() else 0


def _sample(job: Job, part: BenchmarkSet, folder: Path) -> None:
    """Both files."""
    recipe, loaded, notify = job.recipe, job.load(), job.notify
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
        whole = replace(made, ids=ids, finish_reason=row.finish_reason if ended else made.finish_reason)
        text = loaded.tokenizer.decode(ids)
        verdict = grade(Task(text, str(problem.answer), entry.grader, entry.percent_as_unit))
        return graded_row(entry, problem, sample, whole, text, verdict)

    sample_rows(folder / "answers.jsonl", going, requests, recipe.seed, answer, "evaluate", notify)


def _picked(recipe: Recipe, prefixes: Sequence[Solution]) -> Solution:
    """The prefix that the rule picks."""
    scored = [rated_by_confidence(row) for row in prefixes]
    found = pick(recipe.prefix.selection, scored, most_sampled(recipe, "prefix"), None)
    assert found is not None
    return prefixes[found]
