r"""One prompt for all uses: the user turn around a question, in sampling, training, evaluation, analyze and ask.

`prompt.instruction` is that turn, with `{question}` in it. Where a recipe leaves it unset it is settled here, once,
before anything is rendered: what the grader's kind needs (an answer in `\boxed{}`, or the letter of a choice), unless
the chat template or the system turn asks for a `\boxed{}` answer already, as Qwen2.5-Math's does.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from upft_mlx.data.benchmarks import BOXED, LETTER, QUESTION, BenchmarkSpec, resolve
from upft_mlx.data.problems import Problem
from upft_mlx.errors import RowsError
from upft_mlx.grade.graders import grader_of
from upft_mlx.models.chat import Renderer
from upft_mlx.models.facts import chat_template
from upft_mlx.models.find import BUILTIN
from upft_mlx.models.load import load_tokenizer
from upft_mlx.recipe.schema import Prompt, Recipe
from upft_mlx.rows import read_json
from upft_mlx.rundir import RunDir


def instructed(recipe: Recipe, model_path: Path, problems: Sequence[Problem] = (), run: RunDir | None = None) -> Recipe:
    """The recipe with an instruction; as it is where it sets another one itself.

    A benchmark of the other kind, such as a multiple choice beside problems with numbers for answers, gets the
    instruction of its own kind: the problems' would ask for something that its grader does not look for. So it does
    where the recipe names what it would get anyway, as the recipe.json of a run does; but what the run has asked in
    these words already, it asks in them again.

    Args:
        recipe: the recipe.
        model_path: the model's folder, for its chat template.
        problems: those that are trained on: letters as answers make them multiple choices.
        run: the run, if there is one.

    Raises:
        RecipeError: unknown benchmarks.
        ModelError: the model's tokenizer cannot be loaded, or its template refuses the prompt.
    """
    given = recipe.prompt.instruction
    if given not in (None, QUESTION, BOXED, LETTER):
        return recipe
    plain = recipe.model in BUILTIN
    if not plain and "boxed" in chat_template(model_path, recipe.prompt.chat_template) + (recipe.prompt.system or ""):
        # Does the prompt ask for a boxed answer before the question says anything? Usually no tokenizer is needed.
        renderer = Renderer(load_tokenizer(model_path, trust_remote_code=recipe.trust_remote_code), recipe.prompt)
        plain = "boxed" in renderer.text(renderer.ids("?"))
    of_kind = {False: QUESTION if plain else BOXED, True: LETTER}
    choice = all(p.answer is not None for p in problems) and grader_of(p.answer for p in problems) == "choice"
    if given not in (None, of_kind[choice]):
        return recipe
    asked = set()
    if given is not None and run is not None:
        with suppress(RowsError, KeyError, TypeError, AttributeError):  # none there, or damaged
            made = read_json(run.recipe)
            if made["prompt"]["instruction"] == given:
                asked = {(b["name"], b["label"]) for b in made["evaluate"]["benchmarks"] if b["prompt"] is None}
    data: dict[str, Any] = recipe.model_dump()
    data["prompt"]["instruction"] = of_kind[choice]
    for benchmark, entry in zip(data["evaluate"]["benchmarks"], resolve(recipe.evaluate), strict=True):
        known = (benchmark["name"], benchmark["label"]) in asked
        if entry.prompt is None and (entry.grader == "choice") != choice and not known:
            benchmark["prompt"] = of_kind[not choice]
    return Recipe.model_validate(data)


def as_run(recipe: Recipe, run: RunDir) -> Recipe:
    """The recipe with the run's instruction where it sets none: for those who do not look at the problems."""
    known = run.asked_with("instruction")
    if recipe.prompt.instruction is not None or known is None:
        return recipe
    return recipe.having("prompt", instruction=known)


def user_turn(entry: BenchmarkSpec, prompt: Prompt) -> str:
    """The user turn of a benchmark, with `{question}` in it: its own where it has one, else the recipe's."""
    return entry.prompt or prompt.instruction or QUESTION


def differing(entries: Sequence[BenchmarkSpec], prompt: Prompt) -> list[str]:
    """A line for each benchmark that is asked in other words than the training problems."""
    return [
        f"{entry.label}: asked with a prompt of its own, {entry.prompt!r}; sampling and training use "
        f"{prompt.instruction or QUESTION!r}"
        for entry in entries
        if user_turn(entry, prompt) != (prompt.instruction or QUESTION)
    ]
