"""What a recipe asks and trains, shown before anything is sampled or trained: prompts, rows, rules.

Only the tokenizer is loaded, unless the model's view of the rows is asked for. What of a row is supervised is read from
the arrays that the trainer gets (`training/batches.py`), not worked out a second time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from upft_mlx.data.benchmarks import QUESTION, load_benchmark, resolve
from upft_mlx.data.on_disk import recipe_problems
from upft_mlx.dataset.instruction import differing, instructed, user_turn
from upft_mlx.dataset.prefix import check_problems
from upft_mlx.errors import RunDirError, UpftError
from upft_mlx.evaluation.evaluate import WITHHELD
from upft_mlx.fingerprints import definite
from upft_mlx.inspection.browse import settled_by
from upft_mlx.inspection.explain import Explanation, explanations
from upft_mlx.inspection.preview_rows import Found, Rows
from upft_mlx.job import Job
from upft_mlx.models.chat import Renderer
from upft_mlx.models.find import find_model
from upft_mlx.models.load import load_tokenizer
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rundir import RunDir
from upft_mlx.training.batches import Batch, make_batch, shared_length, to_examples, unshared_because
from upft_mlx.training.row_loss import RowLoss
from upft_mlx.versions import adopted

EXAMPLES = 3
"""Rows that are shown where nobody says how many."""


@dataclass(frozen=True)
class Marked:
    """One sequence of a batch, and what of it is trained."""

    ids: list[int]
    supervised: list[bool]
    """For each id."""
    weights: list[float]
    """For each id, 0 where it is masked."""
    shared: int
    """The number of first ids that are run through the model once for the whole batch."""
    padding: int
    """Tokens passed beyond the sequence's own."""


@dataclass(frozen=True, kw_only=True)
class ShownRow(Marked):
    """A training row, and what the trainer makes of it."""

    id: str
    problem_id: str
    sample: int
    kind: str
    """`prefix`, `structure` or `full`."""
    prompt: str
    completion: str
    place: str
    """The file that it is in, `train.jsonl` or `valid.jsonl`; empty before there is a dataset."""
    trains: bool
    """False where its prompt leaves no room in `train.max_length`."""
    cut: int
    """Tokens that are cut off at `train.max_length`."""
    tokens: list[str]
    """The text of each id."""


@dataclass(frozen=True, kw_only=True)
class ShownPrompt:
    """What the model is asked, with its chat template."""

    use: str
    """`sampling` or `evaluation`."""
    benchmark: str | None = None
    """The label of the benchmark that is asked so."""
    problem_id: str | None
    """None where the benchmark cannot be read; then the text has the place of the question in it."""
    error: str | None = None
    """Why it cannot be read."""
    user: str
    """The user turn."""
    text: str
    """The whole prompt."""
    ids: list[int]
    tokens: list[str]
    """The text of each id."""

    def dump(self) -> dict[str, Any]:
        """Plain values; without the benchmark and the error where there is none."""
        return {name: value for name, value in vars(self).items() if value is not None or name == "problem_id"}


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a recipe asks and trains on."""

    name: str
    model: str
    run_dir: str
    source: str
    """Where the rows are from: `dataset`, `solutions`, or `stand-in`, which is made up."""
    note: str
    """The same in words."""
    eos_ids: list[int]
    """Ids that end a completion."""
    special_ids: list[int]
    prompts: list[ShownPrompt]
    """That of sampling, then one for each benchmark."""
    prompts_differ: list[str]
    """A line for each benchmark that is asked in other words than the training problems."""
    rows: list[ShownRow]
    base_view: RowLoss | None
    """What the model thinks of the rows; None where it was not asked."""
    rules: list[Explanation]

    def dump(self) -> dict[str, Any]:
        """Plain values for JSON."""
        view = None if self.base_view is None else self.base_view.dump()
        return {**asdict(self), "prompts": [prompt.dump() for prompt in self.prompts], "base_view": view}


def marked(batch: Batch) -> list[Marked]:
    """The sequences of a batch, from its arrays alone; each must end with a supervised id."""
    size, shared = batch.tokens.shape[1], batch.shared.tolist()
    trained: list[dict[int, tuple[int, float]]] = [{} for _ in batch.tokens]
    for row, target, weight in zip(
        batch.positions.tolist(), batch.targets.tolist(), batch.weights.tolist(), strict=True
    ):
        if weight > 0:  # the logits at `row` predict the id one further on
            trained[row // size][len(shared) + row % size + 1] = (target, weight)
    found = []
    for own, places in zip(batch.tokens.tolist(), trained, strict=True):
        inputs, length = [*shared, *own], max(places) + 1
        found.append(
            Marked(
                ids=[places[place][0] if place in places else inputs[place] for place in range(length)],
                supervised=[place in places for place in range(length)],
                weights=[places[place][1] if place in places else 0.0 for place in range(length)],
                shared=len(shared),
                padding=len(inputs) - (length - 1),  # the last id is no input
            )
        )
    return found


def preview(
    recipe: Recipe, run_dir: str | Path, *, rows: int = EXAMPLES, problem: str | None = None, model: bool = False
) -> Preview:
    """The prompts, some training rows and the rules of a recipe; nothing is written.

    Args:
        recipe: the recipe.
        run_dir: its rows are shown if they are current, else its solutions, else made-up completions.
        rows: the largest number of rows shown, of both kinds where there are two.
        problem: the id of the one to show.
        model: load the model as well, and say what it thinks of the rows.

    Raises:
        RunDirError: `model`, and the run has no solutions of this recipe yet.
        ProblemsError: there is no such problem, or it trains no row.
        UpftError: one of its kinds, as the stages raise them.
    """
    recipe = settled_by(recipe, RunDir(run_dir))
    looked_at = _Preview(recipe, RunDir(run_dir))
    found = looked_at.rows.of(problem) if problem is not None else looked_at.rows.some(rows)
    return Preview(
        name=recipe.name,
        model=recipe.model,
        run_dir=str(run_dir),
        source=found.source,
        note=found.note,
        eos_ids=looked_at.eos_ids,
        special_ids=looked_at.special,
        prompts=list(looked_at.prompts(problem)),
        prompts_differ=differing(looked_at.entries, looked_at.recipe.prompt),
        rows=looked_at.shown(found),
        base_view=looked_at.base_view() if model else None,
        rules=explanations(looked_at.recipe, len(looked_at.problems)),
    )


class _Preview:
    """What a preview reads."""

    def __init__(self, recipe: Recipe, run: RunDir) -> None:
        path = find_model(recipe, weights=False)
        resolve(recipe.evaluate)  # names that are wrong are refused before anything is read
        self.problems = recipe_problems(recipe)
        check_problems(recipe, self.problems)
        self.recipe = recipe = instructed(definite(recipe, path, run), path, self.problems, run)
        self.entries, self._run = resolve(recipe.evaluate), run
        tokenizer = load_tokenizer(path, trust_remote_code=recipe.trust_remote_code)
        self._renderer = Renderer(tokenizer, recipe.prompt)
        self.eos_ids = sorted({*tokenizer.eos_token_ids, self._renderer.end_of_turn})
        self.special = sorted({*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()})
        job = Job(recipe, path, self.problems, (), run)
        job.adopted = adopted(run)
        current = {stage: job.is_current(stage) for stage in ("generate", "build")}
        self.rows = Rows(recipe, tokenizer, self._renderer, self.problems, run, current)

    def prompts(self, problem: str | None) -> Iterator[ShownPrompt]:
        """The sampling prompt of one problem, and for each benchmark that of one of its own.

        That of a benchmark that cannot be read has the place of the question in it.
        """
        asked = self.problems[self.rows.number_of(problem) if problem is not None else 0]
        yield self._rendered(self._renderer.turn(asked.question), use="sampling", problem_id=asked.id)
        for entry in self.entries:
            about: dict[str, Any] = {"use": "evaluation", "benchmark": entry.label}
            turn = user_turn(entry, self.recipe.prompt)
            try:
                problems = load_benchmark(entry, self.recipe.seed)
            except UpftError as error:
                yield self._rendered(turn, problem_id=None, error=str(error), **about)
                continue
            asked = next((p for p in problems if p.id == problem), problems[0])
            question = WITHHELD if entry.private else asked.question
            yield self._rendered(turn.replace(QUESTION, question), problem_id=asked.id, **about)

    def base_view(self) -> RowLoss:
        """What the model thinks of the rows that will train."""
        from upft_mlx.training.base_view import base_view

        rows, recipe = list(self.rows.training()), self.recipe
        if not rows:
            raise RunDirError(
                "no solutions of this recipe yet, and made-up rows would say nothing",
                "run `upft generate` first",
                path=self._run.root,
            )
        return base_view(recipe, to_examples(rows, recipe.train.max_length, recipe.prefix))

    def _rendered(self, user: str, **about: Any) -> ShownPrompt:
        ids = self._renderer.ids(user)
        tokens = self._renderer.tokens(ids)
        return ShownPrompt(user=user, text=self._renderer.text(ids), ids=ids, tokens=tokens, **about)

    def shown(self, found: Found) -> list[ShownRow]:
        """The rows with what the trainer makes of each, in a batch of its own."""
        shares = unshared_because(self.recipe.lora.dropout, self.recipe.train.grad_checkpoint) is None
        prefix, limit = self.recipe.prefix, self.recipe.train.max_length
        outline = [*found.outline, *to_examples([row for row, _ in found.rows], limit)]
        shared = shared_length(outline) if shares and outline else 0
        shown = []
        for row, place in found.rows:
            examples = to_examples([row], limit, prefix)
            ids = row.prompt_ids[:limit]
            marks = Marked(ids, [False] * len(ids), [0.0] * len(ids), 0, 0)  # of a row without room for a completion
            if examples:
                (marks,) = marked(make_batch(examples, shared))
            about = {n: getattr(row, n) for n in ("id", "problem_id", "sample", "kind", "prompt", "completion")}
            cut = max(0, len(row.prompt_ids) + len(row.completion_ids) - limit)
            tokens = self._renderer.tokens(marks.ids)
            shown.append(ShownRow(**about, **vars(marks), place=place, trains=bool(examples), cut=cut, tokens=tokens))
        return shown
