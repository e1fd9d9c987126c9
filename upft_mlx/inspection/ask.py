"""A question to base and tuned: one loaded model, the adapter off and on, answers as the sampler gives them.

Base answers first, then tuned: switching the adapter for each token would change some hundred modules per token, and
break into the decoding that runs ahead. So each answer is, token for token, what an evaluation of the same prompt gets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Literal

from upft_mlx.dataset.instruction import as_run, instructed
from upft_mlx.distributed.interrupt import deferred_interrupt
from upft_mlx.errors import RecipeError
from upft_mlx.escape import half
from upft_mlx.events import Note, Observer, OnText, Reply, Variant, ignore
from upft_mlx.fingerprints import asked_as_trained, dated
from upft_mlx.inspection.browse import earlier_stages, recipe_of, recipe_of_stage, settled_by
from upft_mlx.machine.device import compiles_first, limit_memory
from upft_mlx.models.adapter_files import refuse_missing_adapter
from upft_mlx.models.adapters import AdapterSwitch
from upft_mlx.models.chat import Renderer
from upft_mlx.models.find import find_model
from upft_mlx.models.load import Loaded, load_for
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rundir import RunDir, changed, changes
from upft_mlx.sampling.decoding import Request
from upft_mlx.sampling.sampler import Sampler, sampling_for
from upft_mlx.training.stage import UNREAD

REDRAW = 1 / 12
"""Seconds between two texts of a growing answer: decoding a long one anew for each token costs more than it shows."""


class Asker:
    """A model, and an adapter on it or not, that answer questions."""

    def __init__(
        self,
        recipe: Recipe,
        loaded: Loaded,
        adapter: Path | None = None,
        *,
        temperature: float = 0.0,
        max_tokens: int | None = None,
    ) -> None:
        """Put the adapter on and try out what the sampler can do with each variant.

        Args:
            recipe: its prompt section and seed are used.
            loaded: the model.
            adapter: the folder of an adapter; None: base answers alone.
            temperature: 0 is greedy.
            max_tokens: of an answer; None: `evaluate.max_tokens`.

        Raises:
            ModelError: the adapter does not fit, or the model has no chat template.
        """
        self._renderer = Renderer(loaded.tokenizer, recipe.prompt)
        self._loaded, self._seed, self.adapter = loaded, recipe.seed, adapter
        self.temperature, self.max_tokens = temperature, max_tokens or recipe.evaluate.max_tokens
        self._switch: Callable[[Variant], None] = lambda variant: None
        self.variants: tuple[Variant, ...] = ("base",)
        if adapter is not None:
            self._switch, self.variants = AdapterSwitch(loaded, adapter), ("base", "tuned")
        self._samplers: dict[Variant, Sampler] = {}
        for variant in self.variants:
            self._switch(variant)
            self._samplers[variant] = Sampler(loaded, sampling_for(loaded, temperature, batch_size=1))
        self._asked = 0

    def ask(
        self, conversations: dict[Variant, list[str]], on_text: OnText = lambda answer: None
    ) -> dict[Variant, Reply]:
        """Each variant's answer; the first Ctrl-C ends it where it is, and there is no further one.

        Args:
            conversations: the turns of each variant, the user's and its own alternately, the user's last.
            on_text: receives the answers as they grow.

        Returns:
            The answers of the variants that began.

        Raises:
            ModelError: the chat template refuses the conversation.
            RecipeError: the question is not valid UTF-8.
        """
        for *_, question in conversations.values():
            if problem := half(question):
                raise RecipeError(f"the question cannot be read: {problem}", "write it in UTF-8")
        self._asked += 1
        answers: dict[Variant, Reply] = {}
        with deferred_interrupt() as interrupt:
            for variant in self.variants:
                for answer in self._stream(variant, conversations[variant], lambda: interrupt.asked):
                    answers[variant] = answer
                    on_text(answer)
                if interrupt.asked:
                    break
        return answers

    def _stream(self, variant: Variant, turns: Sequence[str], stop: Callable[[], bool]) -> Iterator[Reply]:
        """The answer after each token, its text some times per second; the last one says how it ended."""
        key = f"{self._asked}/{turns[-1]}"
        first, *others = turns  # the instruction goes around the first question, what follows is a conversation
        prompt = self._renderer.conversation([self._renderer.turn(first), *others])
        request = Request(prompt, self.max_tokens, key=key)
        self._switch(variant)
        start = due = time.perf_counter()
        ids: list[int] = []
        answer = Reply(variant, "", 0, 0.0)
        finished: Literal["length", "stop", "interrupted"] = "interrupted"
        with closing(self._samplers[variant].stream(request, self._seed)) as stream:
            for made in stream:
                ids, now = made.ids, time.perf_counter()
                text = self._renderer.text(ids) if now >= due else answer.text
                due = now + REDRAW if now >= due else due
                answer = Reply(variant, text, len(ids), now - start)
                yield answer
                finished = "interrupted" if stop() else made.finish_reason
                if finished == "interrupted":
                    break
        yield replace(answer, text=self._renderer.text(ids), finish_reason=finished)


def open_asker(
    recipe: Recipe,
    run: RunDir | None,
    adapter: Path | None = None,
    temperature: float = 0.0,
    max_tokens: int | None = None,
    notify: Observer = ignore,
) -> Asker:
    """The loaded model with the adapter on it, asked as the run asks it; see `Asker`.

    Args:
        recipe: the recipe.
        run: whose adapter is used where none is given.
        adapter: the folder of one to use instead.
        temperature: 0 is greedy.
        max_tokens: of an answer; None: `evaluate.max_tokens`.
        notify: receives notes on the answers, such as that the adapter is older than the run's rows.

    Raises:
        UpftError: the model cannot be loaded, or the adapter does not fit.
    """
    if adapter is None and run is not None:
        adapter, note = trained(recipe, run)
        if note:
            notify(Note(note))
    if adapter is not None:
        refuse_missing_adapter(adapter)
    if wait := compiles_first():
        notify(Note(wait))
    path, given = find_model(recipe), recipe.prompt.chat_template
    if adapter is not None:
        recipe = asked_as_trained(recipe, adapter, path)
    recipe = instructed(recipe if run is None else as_run(dated(recipe, path, run), run), path)
    limit_memory()
    asker = Asker(recipe, load_for(recipe, path), adapter, temperature=temperature, max_tokens=max_tokens)
    if recipe.prompt.chat_template != given:
        notify(Note(f"asked with the chat template beside the adapter, {recipe.prompt.chat_template}"))
    return asker


class Conversation:
    """Questions one after the other: each by itself, or each after all before it and the variant's own answers."""

    def __init__(self, asker: Asker, *, keep: bool) -> None:
        self._asker, self._keep = asker, keep
        self._turns: dict[Variant, list[str]] = {variant: [] for variant in asker.variants}

    def ask(self, question: str, on_text: OnText = lambda answer: None) -> dict[Variant, Reply]:
        """See `Asker.ask`. A question that not all variants came to answer is left out of what is kept."""
        turns = {variant: [*before, question] for variant, before in self._turns.items()}
        answers = self._asker.ask(turns, on_text)
        if self._keep and len(answers) == len(turns):
            self._turns = {variant: [*turns[variant], answer.text] for variant, answer in answers.items()}
        return answers


def trained(recipe: Recipe, run: RunDir) -> tuple[Path | None, str | None]:
    """The run's adapter, if it has been trained, and what the user should know about it.

    What has changed since it was trained is said as far as the ledger and recipe.json say it: fingerprints would say it
    exactly, but they need the problems, and a question should not wait for these.

    Raises:
        RunDirError: the ledger is none, or recipe.json is damaged.
    """
    entry = run.entry("train")
    if entry is None or not entry.done or not (run.adapter / "adapters.safetensors").is_file():
        return None, f"no adapter in {run.root}: base answers alone; `upft run` trains one"
    if names := changed(entry, run.root):
        return run.adapter, f"{run.root / names[0]} was changed after `upft train` wrote it"
    recipe, known = as_run(settled_by(recipe, run), run), entry.inputs or {}
    made, last = recipe_of_stage(run, "train").dump(), recipe_of(run).dump()  # recipe.json is of the last stage
    old = {name: made[name] for name in _TRAINED_WITH}
    old |= {name: {**old[name], **known[name]} for name in ("lora", "train") if name in known}
    new = {name: recipe.dump()[name] for name in _TRAINED_WITH}
    new["lora"] = {**old["lora"], **new["lora"]}  # what an adapter to start from decides, as the run has found it
    ignored = {f"train.{name}" for name in ("valid_ratio", *UNREAD)}
    moved = set(_PLACES) - set(changes({name: last[name] for name in _TRAINED_WITH}, new))
    warnings = []
    if differing := [name for name in changes(old, new) if name not in ignored | moved]:
        warnings += [f"was trained with other settings ({', '.join(differing)})"]
    if "train" in earlier_stages(run):
        warnings += ["is older than the run's rows"]
    told = f"the adapter in {run.root} {' and '.join(warnings)}; `upft run` trains it again"
    return run.adapter, told if warnings else None


_PLACES = ("model", "revision", "problems.path", "prompt.chat_template", "lora.start_from")
"""Fields with the place of something that may move: they count only if they differ from the last stage's, too."""


_TRAINED_WITH = (
    *("model", "revision", "quantize", "seed", "method", "problems", "prompt", "generate", "prefix", "lora", "train"),
)
"""The fields that an adapter depends on."""
