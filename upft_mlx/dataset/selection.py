"""Which samples of a problem to train on. Pure: nothing is read, written or run.

The paper trains on the first sample. The rules here choose among several, some with labels (rejection sampling, the
paper's label filter), some without.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from upft_mlx.data.problems import Problem
from upft_mlx.dataset.prefix import most_sampled, sampled_prefix, why_dropped
from upft_mlx.grade.correct import extract_answer, normalize_answer
from upft_mlx.grade.graders import Grader, Task, chosen_letter, grade
from upft_mlx.recipe.schema import Recipe
from upft_mlx.recipe.studies import SCORED, Selection
from upft_mlx.rows import Solution

PICKED: Mapping[Selection, str] = {
    "first": "the first sample of each",
    "consensus": "the first sample with the most frequent prefix",
    "majority_answer": "the first sample with the most frequent answer",
    "confidence": "the sample with the highest mean log-probability",
    "longest": "the longest sample",
    "prefix_confidence": "the sample with the likeliest prefix",
    "rollouts": "the sample from whose prefix most continuations are right or, without an answer, agree",
    "probe": "the sample whose prefix a classifier of hidden states rates highest",
    "auto": "the one that the best rule of `upft forecast` picks",
    "label": "the first sample whose answer is right",
}
"""What each rule picks, in words."""


@dataclass(frozen=True)
class Chosen:
    """Positions of the samples to train on, and how many others were left out, by reason."""

    kept: list[int]
    dropped: Counter[str] = field(default_factory=Counter)


def choose(recipe: Recipe, problem: Problem, solutions: Sequence[Solution], grader: Grader) -> Chosen:
    """Choose among the samples of one problem: first the filters, then the method's or the selection's rule.

    Args:
        recipe: says which filters and which rule.
        problem: the problem.
        solutions: its samples.
        grader: of the problem and all that it is trained with (`grade.graders.grader_of`).
    """
    reasons = [why_dropped(solution, recipe.prefix) for solution in solutions]
    dropped = Counter(reason for reason in reasons if reason is not None)
    usable = [position for position, reason in enumerate(reasons) if reason is None]
    samples = [solutions[position] for position in usable]
    if recipe.method == "rft":
        kept = _rejection(samples, problem, grader, recipe.generate.keep, dropped)
    else:
        selection = recipe.prefix.selection
        found = pick(selection, samples, most_sampled(recipe, "prefix"), problem.answer, grader)
        kept = [] if found is None else [found]
        if found is None and samples:
            dropped["no answer" if selection == "majority_answer" else "wrong"] += len(samples)
        elif len(samples) > 1:
            dropped["not selected"] += len(samples) - 1
    return Chosen([usable[index] for index in kept], dropped)


def _rejection(
    samples: Sequence[Solution], problem: Problem, grader: Grader, keep: int, dropped: Counter[str]
) -> list[int]:
    """Rejection sampling: correct, not seen before, at most `keep`."""
    kept: list[int] = []
    seen: set[str] = set()
    for index, sample in enumerate(samples):
        if len(kept) >= keep:
            reason = "beyond generate.keep"
        elif sample.completion in seen:
            reason = "duplicates"
        elif not grade(Task(sample.completion, problem.answer or "", grader)).correct:
            reason = "wrong"
        else:
            kept.append(index)
            seen.add(sample.completion)
            continue
        dropped[reason] += 1
    return kept


def pick(
    selection: Selection, samples: Sequence[Solution], length: int, answer: str | None, grader: Grader = "maths"
) -> int | None:
    """The position of the sample that a rule picks, if there is one.

    Args:
        selection: the rule; not `auto`, which is one of the others by the time that samples are there.
        samples: of one problem; with a `score` for the rules that rate prefixes.
        length: of the prefixes, in tokens.
        answer: the right one, for `label`.
        grader: which answer a sample gives, and whether it is right; for the rules that look at answers.
    """
    gold = answer or ""
    rules: dict[str, Callable[[], int | None]] = {
        "first": lambda: 0 if samples else None,
        "consensus": lambda: _commonest([prefix_key(sample, length) for sample in samples]),
        "majority_answer": lambda: _commonest([said(sample.completion, grader) for sample in samples]),
        "confidence": lambda: _highest([mean_logprob(sample) for sample in samples]),
        "longest": lambda: _highest([float(len(sample.completion_ids)) for sample in samples]),
        "label": lambda: next(
            (i for i, one in enumerate(samples) if grade(Task(one.completion, gold, grader)).correct), None
        ),
        **dict.fromkeys(SCORED, lambda: _highest([sample.score for sample in samples])),
    }
    return rules[selection]()


def _commonest(keys: Sequence[Hashable | None]) -> int | None:
    """The first position of the most frequent key that is not None; of equally frequent ones the earliest."""
    counts = Counter(key for key in keys if key is not None)
    return keys.index(counts.most_common(1)[0][0]) if counts else None


def _highest(values: Sequence[float | None]) -> int | None:
    """The position of the highest value that is known; of equally high ones the earliest."""
    known = [(value, -index) for index, value in enumerate(values) if value is not None]
    return -max(known)[1] if known else None


def prefix_key(sample: Solution, length: int) -> tuple[tuple[int, ...], bool]:
    """What makes two prefixes the same: their ids, and whether the solution ended there."""
    ids, ended = sampled_prefix(sample, length)
    return tuple(ids), ended


def said(text: str, grader: Grader = "maths") -> str | None:
    """The answer that a text gives, in the form in which answers are equal."""
    answer = chosen_letter(text) if grader == "choice" else extract_answer(text)
    return None if answer is None else normalize_answer(answer)


def mean_logprob(sample: Solution) -> float:
    """Nats per token, EOS included."""
    assert sample.logprob is not None
    return sample.logprob / max(1, len(sample.completion_ids) + (sample.finish_reason == "stop"))
