"""Base and tuned on a few held-out prompts right after training: answers, and divergence along base's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import mlx.core as mx

from upft_mlx.data.benchmarks import QUESTION, BenchmarkSet
from upft_mlx.data.problems import Problem
from upft_mlx.dataset.instruction import user_turn
from upft_mlx.events import Note, Observer, ignore
from upft_mlx.models.chat import Renderer
from upft_mlx.models.load import Loaded
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import TrainingRow, read_rows, write_json
from upft_mlx.rundir import RunDir
from upft_mlx.sampling.decoding import Completion, Request, Sampling
from upft_mlx.sampling.sampler import chunks, sample_chunk
from upft_mlx.training.batches import Example, make_batch
from upft_mlx.training.divergence import kl_per_position, log_probabilities
from upft_mlx.training.loss import Modes, gathers_exactly
from upft_mlx.training.moved import Answered, in_words, summarize

PROMPTS = 16
TOKENS = 256
"""Of an answer at most: a few seconds, whatever `evaluate.max_tokens` is."""
POSITIONS = 32
"""Of base's answers at which the divergence is measured."""
_BATCH = 4
"""Sequences whose log-probabilities, vocabulary wide, are in memory together."""


def measure(
    recipe: Recipe,
    loaded: Loaded,
    problems: Sequence[Problem],
    sets: Sequence[BenchmarkSet],
    run: RunDir,
    notify: Observer = ignore,
) -> None:
    """Write movement.json for the run's adapter, and say what is in it; `loaded` is the model that was trained."""
    found = movement(recipe, loaded, run, *held_out(recipe, loaded, problems, sets, run))
    write_json(run.movement, found)
    notify(Note(in_words(found), minor=True))


def held_out(
    recipe: Recipe, loaded: Loaded, problems: Sequence[Problem], sets: Sequence[BenchmarkSet], run: RunDir
) -> tuple[str, list[list[int]]]:
    """What the prompts are, and the prompts: of benchmarks that may be shown, else of validation problems.

    Where nothing is held out they are training problems, and are called so.
    """
    renderer = Renderer(loaded.tokenizer, recipe.prompt)
    turns = [
        user_turn(part.entry, recipe.prompt).replace(QUESTION, problem.question)
        for part in sets
        if not part.entry.private
        for problem in part.problems
    ]
    if turns:
        spread = turns[:: max(1, len(turns) // PROMPTS)][:PROMPTS]
        return "evaluation prompts", [renderer.ids(turn) for turn in spread]
    kept = {row.problem_id for row in read_rows(run.valid, TrainingRow)}
    asked = [problem for problem in problems if problem.id in kept] if kept else problems
    what = "validation prompts" if kept else "training prompts (none is held out)"
    return what, [renderer.asked(problem.question) for problem in islice(asked, PROMPTS)]


def movement(recipe: Recipe, loaded: Loaded, run: RunDir, source: str, prompts: Sequence[list[int]]) -> dict[str, Any]:
    """How far the adapter of a run moves the model, see `moved.summarize`.

    Args:
        recipe: its `evaluate.max_tokens` limits the answers, as `TOKENS` does.
        loaded: the model that was trained, with its LoRA layers; it is left with the weights of adapter/.
        run: whose adapter/ is measured.
        source: what the prompts are.
        prompts: their ids.
    """
    model, limit = loaded.model, min(TOKENS, recipe.evaluate.max_tokens)
    model.load_weights(str(run.adapter / "adapters.safetensors"), strict=False)
    model.eval()
    switch = _switch(model)
    answers: dict[str, list[Completion]] = {}
    for side in ("base", "tuned"):
        switch(side)
        asked = [Request(ids, limit) for ids in prompts]
        answers[side] = sample_chunk(loaded, asked, Sampling(temperature=0, batch_size=PROMPTS), seed=0)
    kl = _divergences(loaded, switch, prompts, [answer.ids for answer in answers["base"]])
    said = {
        side: [
            Answered(answer.ids, loaded.tokenizer.decode(answer.ids), answer.finish_reason == "length")
            for answer in found
        ]
        for side, found in answers.items()
    }
    return {**summarize(said["base"], said["tuned"], kl), "source": source, "max_tokens": limit}


def _switch(model: Any) -> Callable[[str], None]:
    """Takes the adapter off for "base" and puts it on for "tuned": without its product a layer is the base's."""
    scales = [(module, module.scale) for _, module in model.named_modules() if "lora_a" in module]

    def switch(side: str) -> None:
        for module, scale in scales:
            module.scale = 0.0 if side == "base" else scale

    return switch


def _divergences(
    loaded: Loaded, switch: Callable[[str], None], prompts: Sequence[list[int]], answers: Sequence[list[int]]
) -> list[list[float]]:
    """KL(base || tuned) at the first positions of base's answers; none of an empty one."""
    modes = Modes(gather=gathers_exactly(loaded.model), share=False)
    pairs = [(prompt, ids[:POSITIONS]) for prompt, ids in zip(prompts, answers, strict=True) if ids]
    examples = [Example("", [*prompt, *ids], len(prompt)) for prompt, ids in pairs]
    found: list[list[float]] = []
    for part in chunks(examples, _BATCH):
        batch, sizes = make_batch(part), [example.supervised for example in part]
        sides: dict[str, mx.array] = {}
        for side in ("base", "tuned"):
            switch(side)
            sides[side] = log_probabilities(loaded.model, batch, sum(sizes), modes)
        nats: list[float] = kl_per_position(sides["base"], sides["tuned"]).tolist()  # type: ignore[assignment]
        values = iter(nats)
        found += [list(islice(values, size)) for size in sizes]
    return found
