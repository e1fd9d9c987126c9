"""Base and tuned on a few held-out prompts right after training: how they begin, and both along base's answers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import mlx.core as mx

from upft_mlx.data.benchmarks import QUESTION, BenchmarkSet
from upft_mlx.data.problems import Problem
from upft_mlx.dataset.instruction import user_turn
from upft_mlx.dataset.prefix import most_sampled
from upft_mlx.events import Note, Observer, Variant, ignore
from upft_mlx.models.adapters import AdapterSwitch
from upft_mlx.models.chat import Renderer
from upft_mlx.models.load import Loaded
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import TrainingRow, read_rows, write_json
from upft_mlx.rundir import RunDir
from upft_mlx.sampling.decoding import Request
from upft_mlx.sampling.draw import Sampling
from upft_mlx.sampling.prefill import Cache
from upft_mlx.sampling.sampler import Sampler
from upft_mlx.training.checkpoints import load_safetensors
from upft_mlx.training.divergence import kl_per_position
from upft_mlx.training.moved import OPENING, PROMPTS, Answered, Movement, Place, in_words, looked_at, summarize


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
    write_json(run.movement, found.dump())
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


def movement(recipe: Recipe, loaded: Loaded, run: RunDir, source: str, prompts: Sequence[list[int]]) -> Movement:
    """How far the adapter of a run moves the model.

    Args:
        recipe: its `prefix.length` says how far base's answers are looked at.
        loaded: the model that was trained, with its LoRA layers; it is left with the weights of adapter/.
        run: whose adapter/ is measured.
        source: what the prompts are.
        prompts: their ids.
    """
    model = loaded.model
    model.load_weights(list(load_safetensors(run.adapter / "adapters.safetensors").items()), strict=False)
    model.eval()
    switch = AdapterSwitch(loaded)
    caches: dict[Variant, list[Cache]] = {}
    answers: dict[Variant, list[list[int]]] = {}
    limits: dict[Variant, int] = {"base": looked_at(most_sampled(recipe, "prefix")), "tuned": OPENING}
    for variant, limit in limits.items():
        switch(variant)
        sampler = Sampler(loaded, Sampling(0.0, batch_size=PROMPTS))
        answers[variant] = [made.ids for made in sampler.sample([Request(ids, limit) for ids in prompts], seed=0)]
        caches[variant] = sampler.prefill.caches(prompts)
    said = {
        variant: [Answered(ids, loaded.tokenizer.decode(ids[:OPENING])) for ids in found]
        for variant, found in answers.items()
    }
    along = [
        _along(loaded, switch, [prompt[-1], *ids[:-1]], {"base": base, "tuned": tuned}) if ids else []
        for prompt, ids, base, tuned in zip(prompts, answers["base"], caches["base"], caches["tuned"], strict=True)
    ]
    return summarize(said["base"], said["tuned"], along, source)


def _along(loaded: Loaded, switch: AdapterSwitch, ids: list[int], caches: dict[Variant, Cache]) -> list[Place]:
    """Both variants after each of these ids, which follow on what each variant's cache holds; it is used up."""
    logs: list[mx.array] = []
    for variant, cache in caches.items():
        switch(variant)
        logits = loaded.model(mx.array([ids]), cache=cache)[0].astype(mx.float32)  # (N, V)
        logs.append(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
        mx.eval(logs)
    stops = [mx.exp(log[:, mx.array(loaded.eos_ids)]).sum(axis=-1) for log in logs]
    columns: list[list[float]] = [c.tolist() for c in (kl_per_position(*logs), *stops)]  # type: ignore[misc]
    return [Place(kl, (base, tuned)) for kl, base, tuned in zip(*columns, strict=True)]
