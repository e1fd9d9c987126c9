"""What becomes of the problems under one recipe, in a few plain sentences. Pure.

The numbers come from the functions that the stages use; the sentences only say what these do.
"""

from __future__ import annotations

from dataclasses import dataclass

from upft_mlx.dataset.prefix import most_sampled, structure_numbers
from upft_mlx.dataset.selection import PICKED
from upft_mlx.escape import to_json
from upft_mlx.quantities import many
from upft_mlx.recipe.schema import Recipe


@dataclass(frozen=True)
class Explanation:
    """One rule: its topic, and what it means for this recipe."""

    name: str
    text: str


def explanations(recipe: Recipe, count: int) -> list[Explanation]:
    """What a reader of the rows cannot see in them: what is trained on, what is left out, the prompt, the loss.

    Args:
        recipe: the recipe.
        count: its problems.
    """
    prefix, generate = recipe.prefix, recipe.generate
    drawn = len(structure_numbers(count, prefix.structure_ratio, recipe.seed))
    first = many(most_sampled(recipe, "prefix"), "token")
    each = "The one problem" if count == 1 else f"Each of {many(count, 'problem')}"
    prefixes, whole = (
        f"{some:,} of {many(count, 'problem')} {'gives' if some == 1 else 'give'}" for some in (count - drawn, drawn)
    )
    rows = {
        "upft": f"{prefixes} the first {first} of a solution (prefix rows), "
        f"{drawn:,} a whole solution with its EOS (structure rows).",
        "sft": f"{each} gives one whole solution.",
        "rft": f"{each} gives at most {many(generate.keep, 'different solution')} with the right answer.",
        "annotated": f"{each} gives the dataset's own solution; nothing is sampled.",
        "structure_only": f"{whole} a whole solution, the others are left out.",
    }[recipe.method]
    if recipe.method not in ("rft", "annotated"):
        if generate.samples > 1:
            rows += f" Picked from {many(generate.samples, 'sample')}: {PICKED[prefix.selection]}."
        rows += " No answer is needed, and none is checked." if recipe.checks == "none" else ""
    left_out = [f"full solutions cut at {many(generate.max_tokens, 'token')}"]
    left_out += ["solutions with Chinese, Japanese or Korean characters"] if prefix.drop_cjk else []
    left_out += ["full solutions without \\boxed"] if prefix.require_boxed else []
    whose = "Your own" if recipe.prompt.chat_template else "The model's own"
    prompt = f"{whose} chat template renders all prompts, the same way in sampling, training and evaluation."
    if recipe.method == "upft" and prefix.template_text:
        prompt += f" Prefix rows alone have the task template {to_json(prefix.template_text, indent=None)} after them."
    if recipe.prompt.date is not None:
        prompt += f" The date in it is {recipe.prompt.date} for the whole run."
    loss = (
        "Only the completion is trained, never the prompt or padding. Every row weighs the same: the mean over its "
        f"tokens, then the mean over the {many(recipe.train.batch_size, 'row')} of a step."
    )
    if recipe.method == "upft" and prefix.eos:
        loss += f" An EOS after the prefix counts {prefix.eos_weight:g} times a sampled token: it teaches to stop."
    found = {"rows": rows, "left out": f"{', '.join(left_out)}.", "prompt": prompt, "loss": loss}
    return [Explanation(name, text[0].upper() + text[1:]) for name, text in found.items()]
