"""How problems become training rows under one recipe, in plain sentences. Pure.

The numbers come from the functions that the stages use; the sentences only say what these do.
"""

from __future__ import annotations

from dataclasses import dataclass

from upft_mlx.dataset.prefix import structure_numbers, valid_numbers
from upft_mlx.escape import to_json
from upft_mlx.recipe.schema import Recipe
from upft_mlx.training.batches import unshared_because


@dataclass(frozen=True)
class Explanation:
    """One rule: the field or the topic, and what it means for this recipe."""

    name: str
    text: str


def explanations(recipe: Recipe, count: int) -> list[Explanation]:
    """The rules in the order in which they apply.

    Args:
        recipe: the recipe.
        count: its problems.
    """
    found = [
        Explanation("prompt", _prompt(recipe)),
        Explanation("sampling", _sampling(recipe)),
        Explanation("method", _method(recipe)),
    ]
    if recipe.method in ("upft", "structure_only"):
        found.append(Explanation("structure_ratio", _structure(recipe, count)))
    if recipe.method == "upft":
        found += [
            Explanation("length", _length(recipe)),
            Explanation("template", _template(recipe)),
            Explanation("eos", _eos(recipe)),
        ]
    return [
        *found,
        Explanation("selection", _selection(recipe)),
        Explanation("filters", _filters(recipe)),
        Explanation("validation", _validation(recipe, count)),
        Explanation("max_length", _max_length(recipe)),
        Explanation("masking", _masking()),
        Explanation("weighting", _weighting(recipe)),
        Explanation("shared", _shared(recipe)),
    ]


def tokens(number: int) -> str:
    """`1 token`, `16 tokens`."""
    return f"{number:,} token{'' if number == 1 else 's'}"


def _prompt(recipe: Recipe) -> str:
    system, extra = recipe.prompt.system, recipe.prompt.chat_template_args
    text = "The model's own chat template renders every prompt, the same way in sampling, training and evaluation; "
    own = "the recipe sets no system turn, so it is the template's own where it has one"
    text += own if system is None else f"the system turn is {_quoted(system)}"
    if recipe.prompt.instruction is not None:
        text += f". The user turn is {_quoted(recipe.prompt.instruction)}"
    if extra:
        text += ", with " + ", ".join(f"{name}: {to_json(value, indent=None)}" for name, value in sorted(extra.items()))
    if recipe.prompt.date is not None:
        text += f". It prints a date: {recipe.prompt.date} for the whole run"
    return text + "."


def _sampling(recipe: Recipe) -> str:
    generate, prefix = recipe.generate, recipe.prefix
    full = f"a full solution to its end, at most {tokens(generate.max_tokens)}"
    if recipe.samples_full or recipe.method == "structure_only":
        what = full
    else:
        what = f"the first {tokens(prefix.length)} of a solution, or for structure rows {full}"
    per = "One sample" if generate.samples == 1 else f"{generate.samples} samples"
    how = "greedy" if generate.temperature == 0 else f"temperature {generate.temperature:g}, {_cuts(recipe)}"
    text = f"The question is asked without the task template. {per} per problem ({how}): {what}."
    if generate.stop:
        text += f" It also ends before {' or '.join(map(_quoted, generate.stop))}."
    return text


def _cuts(recipe: Recipe) -> str:
    """`top-p 0.95, the model's own top-k`."""
    given = (("top-p", recipe.generate.top_p), ("top-k", recipe.generate.top_k))
    return ", ".join(f"the model's own {name}" if value is None else f"{name} {value:g}" for name, value in given)


def _method(recipe: Recipe) -> str:
    return {
        "upft": "upft: most problems train the beginning of one solution (prefix rows), the others a whole one "
        "(structure rows). No answer is needed and none is checked.",
        "sft": "sft: every problem trains one whole solution, unverified.",
        "rft": f"rft: every problem trains at most {recipe.generate.keep} different solutions whose answer is right.",
        "structure_only": "structure_only: the structure rows alone train, the other problems are left out.",
    }[recipe.method]


def _structure(recipe: Recipe, count: int) -> str:
    ratio, drawn = recipe.prefix.structure_ratio, len(structure_numbers(count, recipe.prefix.structure_ratio, 0))
    rest = "are left out" if recipe.method == "structure_only" else "give prefix rows"
    return (
        f"A share of {ratio:g} of {count:,} problems, that is {drawn:,}, gives structure rows: the prompt of "
        f"sampling, the whole solution, its EOS. They are drawn with the seed {recipe.seed}. "
        f"The other {count - drawn:,} {rest}."
    )


def _length(recipe: Recipe) -> str:
    return (
        f"A prefix row trains the first {tokens(recipe.prefix.length)} as the model sampled them: ids, never text that "
        "is tokenized again. A solution that ended before keeps its own EOS."
    )


def _template(recipe: Recipe) -> str:
    text = recipe.prefix.template_text
    if not text:
        return "No task template: prefix rows have the prompt of sampling."
    return (
        f"On prefix rows the question is followed by the task template {_quoted(text)}. It is used in training only: "
        "neither sampling nor evaluation sees it, and structure rows have the prompt of sampling."
    )


def _eos(recipe: Recipe) -> str:
    if recipe.prefix.eos:
        weight = f"counts {recipe.prefix.eos_weight:g} times as much as a sampled token"
        return (
            f"An EOS after the prefix is trained, though the model sampled none there: it teaches to stop. It {weight}."
        )
    return "No EOS is trained after a prefix, unless the solution itself ended within it."


def _selection(recipe: Recipe) -> str:
    if recipe.method == "rft":
        return "Wrong solutions, repeated ones and those beyond generate.keep do not train."
    return {
        "first": "The first sample of a problem trains.",
        "consensus": "Of a problem's samples the first with the most frequent prefix trains.",
        "majority_answer": "Of a problem's samples the first with the most frequent answer trains.",
        "confidence": "Of a problem's samples the one with the highest mean log-probability trains.",
        "longest": "Of a problem's samples the longest one trains.",
        "prefix_confidence": "Of a problem's samples the one with the likeliest prefix trains.",
        "rollouts": "Of a problem's samples the one trains from whose prefix most continuations are right or, "
        "without an answer, agree with the majority.",
        "probe": "Of a problem's samples the one trains whose prefix a classifier of hidden states rates highest; of "
        f"the first {recipe.forecast.problems} problems with answers, among the right samples alone.",
        "auto": "The rule that `upft forecast` finds best chooses among a problem's samples.",
        "label": "Of a problem's samples the first whose answer is right trains; problems without one are left out.",
    }[recipe.prefix.selection]


def _filters(recipe: Recipe) -> str:
    prefix = recipe.prefix
    left_out = [f"full solutions cut at {tokens(recipe.generate.max_tokens)}"]
    left_out += ["solutions with Chinese, Japanese or Korean characters"] if prefix.drop_cjk else []
    left_out += ["full solutions without \\boxed"] if prefix.require_boxed else []
    return f"Left out: {', '.join(left_out)}."


def _validation(recipe: Recipe, count: int) -> str:
    ratio = recipe.train.valid_ratio
    if ratio == 0:
        return "No row is held out for a validation loss."
    if recipe.method == "structure_only":
        count = len(structure_numbers(count, recipe.prefix.structure_ratio, 0))
    held = len(valid_numbers(range(count), ratio, 0))
    share = f"A share of {ratio:g} of the problems that have rows is held out for the validation loss"
    return f"{share} ({held:,} if all of them have)."


def _max_length(recipe: Recipe) -> str:
    return (
        f"Prompt and completion together are cut at {tokens(recipe.train.max_length)}, at the end; a row whose prompt "
        "leaves no room for a completion is left out."
    )


def _masking() -> str:
    return (
        "The loss sees the completion alone. Masked are the system turn, the question, the template, the chat "
        "template's own tokens and all padding, which fills a batch's rows to a multiple of 8 tokens."
    )


def _weighting(recipe: Recipe) -> str:
    return (
        "Every row weighs the same: the mean over its supervised tokens, then the mean over the "
        f"{recipe.train.batch_size} rows of a step."
    )


def _shared(recipe: Recipe) -> str:
    if why := unshared_because(recipe.lora.dropout, recipe.train.grad_checkpoint):
        return f"With {why}, the whole prompt of every row runs through the model."
    return (
        "The start that all prompts share is computed once per batch, if a trial before training shows that this is "
        "exact for the model; the loss is the same."
    )


def _quoted(text: str) -> str:
    return to_json(text, indent=None)
