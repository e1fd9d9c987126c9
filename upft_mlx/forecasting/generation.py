"""The stage `generate`: problems to solutions.jsonl, with whichever rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from upft_mlx.data.problems import Problem
from upft_mlx.dataset.prefix import beyond_solutions, wanted
from upft_mlx.events import Note, StageStarted
from upft_mlx.forecasting.rated import generate_rated, unchecked
from upft_mlx.job import Job, Outcome
from upft_mlx.quantities import many
from upft_mlx.recipe.schema import Recipe
from upft_mlx.recipe.studies import SCORED
from upft_mlx.rows import Solution, write_rows
from upft_mlx.rundir import RunDir
from upft_mlx.sampling.generate import generate


def inputs(job: Job) -> dict[str, Any]:
    """The base model, the problems, how tokens are drawn, and which solutions.

    Methods and selections that need the same solutions share them.
    """
    recipe = job.recipe
    found = {
        **job.inputs.base(),
        "problems": job.inputs.hashes["problems"],
        **job.inputs.section_without("generate", "keep"),
    }
    if recipe.method == "annotated":  # build and train learn seed, prompt and quantization from this stage alone
        return {**job.inputs.base(), "problems": job.inputs.hashes["problems"], "solutions": "annotated"}
    if recipe.samples_full:
        return {**found, "solutions": {"all_full": True, "logprobs": recipe.prefix.selection == "confidence"}}
    if is_rated(recipe):
        learnt = {"choose stage": job.fingerprint("choose")} if recipe.uses_answers else {}
        continued = ("rollouts",) if recipe.prefix.selection == "rollouts" else ()
        return {**found, **job.inputs.section("prefix", "selection", "length", "structure_ratio", *continued), **learnt}
    only = recipe.method == "structure_only"
    return {**found, "solutions": {"structure_only": only}, **job.inputs.section("prefix", "length", "structure_ratio")}


def announce(job: Job) -> StageStarted:
    """How many solutions, of which model."""
    recipe, problems = job.recipe, job.problems
    asked = unchecked(recipe, problems) if is_rated(recipe) else wanted(recipe, len(problems))
    return StageStarted("generate", f"{many(sum(item.samples for item in asked), 'solution')} of {job.recipe.model}")


def work(job: Job, run: RunDir) -> Outcome:
    """Sample them; the dataset's own solutions are taken as they are."""
    if job.recipe.method == "annotated":
        write_rows(run.solutions, _annotated(job.problems, job.tokenizer()))
        return Outcome(f"{many(len(job.problems), 'solution')} of the dataset, none sampled")
    if said := beyond_solutions(job.recipe):
        job.notify(Note(said))
    if is_rated(job.recipe):
        made = generate_rated(job.recipe, job.load(), job.problems, run, job.notify)
    else:
        asked = wanted(job.recipe, len(job.problems))
        made = generate(job.recipe, job.load(), job.problems, asked, run, job.notify)
    detail = f"{many(made.solutions, 'solution')} ({made.full:,} full), {many(made.tokens_sampled, 'token')}"
    return Outcome(detail, tokens_sampled=made.tokens_sampled, tokens_processed=made.tokens_processed)


def _annotated(problems: Sequence[Problem], tokenizer: Any) -> Iterator[Solution]:
    """The dataset's own solutions as if the model had written them."""
    for problem in problems:
        text = str(problem.answer)
        ids = [int(token) for token in tokenizer.encode(text, add_special_tokens=False)]
        yield Solution(problem.id, 0, "full", ids, text, "stop")


def is_rated(recipe: Recipe) -> bool:
    """Whether the rule rates prefixes or uses a few answers (`forecasting/rated.py`)."""
    return recipe.uses_answers or recipe.prefix.selection in SCORED
