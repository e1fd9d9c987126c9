"""How fast this machine is with a recipe's model: a calibration of about ten seconds, kept for the next time.

It is kept in a file of this machine (`cache_file`), by everything that the speed depends on, and sent nowhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from upft_mlx.data.problems import Problem
from upft_mlx.dataset.prefix import most_sampled
from upft_mlx.errors import RowsError
from upft_mlx.events import Observer, Progress, ignore
from upft_mlx.models.chat import Renderer
from upft_mlx.models.load import Loaded, load
from upft_mlx.planning.lengths import Solutions, of_lengths
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import read_json, write_json
from upft_mlx.rundir import fingerprint

SECONDS = {"full": 4.0, "prefix": 2.0, "train": 3.0}
"""After which sampling is cut, and for how long steps are taken; loading and compiling come on top."""
_KEPT = 50
"""Calibrations in the file."""


@dataclass(frozen=True)
class Speed:
    """What a calibration found."""

    load_seconds: float
    """Loading the model, libraries included."""
    tokens_per_second: float
    """Rate of sampling full solutions in a full batch."""
    seconds_per_prefix: float
    """Time to sample a prefix, its prompt included."""
    seconds_per_trained_token: float
    """Time of a training step per token of its rows that is not shared by all."""
    lengths: tuple[tuple[int, bool], ...]
    """Tokens of each full solution, and whether it ended before max_tokens."""
    was_cut: bool
    """Whether the time was over before the solutions were: their mean length is an estimate then."""

    @property
    def solutions(self) -> Solutions:
        """What full solutions are like."""
        count = len(self.lengths)
        how = (
            f"estimated in a calibration of {count} full solutions"
            if self.was_cut
            else (f"measured on {count} full solutions in a calibration")
        )
        return of_lengths(self.lengths, how)


def cache_file() -> Path:
    """Where this machine's calibrations are: `upft/speed.json` in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "upft" / "speed.json"


def key_of(recipe: Recipe, model_hash: str, problems: int, versions: dict[str, str]) -> str:
    """A fingerprint of everything that the speed depends on."""
    fields = {"generate", "lora", "quantize", "prompt"}
    train = {"batch_size", "micro_batch_size", "grad_checkpoint", "max_length"}
    return fingerprint(
        {
            "model": model_hash,
            "recipe": recipe.model_dump(mode="json", include=fields),
            "train": recipe.train.model_dump(mode="json", include=train),
            "prefix": [most_sampled(recipe, "prefix"), recipe.prefix.template],
            "problems": [recipe.problems.model_dump(mode="json"), problems],
            "versions": {name: versions[name] for name in ("upft-mlx", "mlx", "mlx-lm")},
        }
    )


def known(key: str) -> Speed | None:
    """An earlier calibration of this machine; None where there is none, or the file is damaged."""
    found = _kept().get(key)
    if found is None:
        return None
    try:
        lengths = tuple((int(count), bool(ended)) for count, ended in found["lengths"])
        return Speed(**{**found, "lengths": lengths})
    except (TypeError, ValueError, KeyError):
        return None


def keep(key: str, speed: Speed) -> None:
    """Remember a calibration; where the file cannot be written, the next plan calibrates again."""
    entries = _kept()
    entries.pop(key, None)
    entries = dict([*entries.items()][-_KEPT + 1 :])
    try:
        cache_file().parent.mkdir(parents=True, exist_ok=True)
        write_json(cache_file(), {**entries, key: asdict(speed)})
    except OSError:
        return


def _kept() -> dict[str, Any]:
    try:
        found = read_json(cache_file())
    except (RowsError, OSError):  # damaged, or not to be read: it is only a cache
        return {}
    return found if isinstance(found, dict) else {}


class _TimeIsUpError(Exception):
    pass


PARTS = ("loading the model", "sampling full solutions", "sampling prefixes", "training steps")


def calibrate(recipe: Recipe, path: Path, problems: Sequence[Problem], notify: Observer = ignore) -> Speed:
    """Load the model, sample some solutions and prefixes, take some steps; about ten seconds, whatever their size.

    Args:
        recipe: with numbers, not `auto`.
        path: the model's folder.
        problems: some are taken, evenly spaced.
        notify: receives how many parts are done.

    Raises:
        UpftError: the model cannot be loaded or does not take the prompts.
    """

    def done(parts: int) -> None:
        notify(Progress("trial", parts, len(PARTS), "parts"))

    done(0)
    begin = time.perf_counter()
    loaded = load(
        path,
        quantize=recipe.quantize,
        trust_remote_code=recipe.trust_remote_code,
        chat_template=recipe.prompt.chat_template,
    )
    load_seconds = time.perf_counter() - begin
    done(1)
    step = max(1, len(problems) // recipe.generate.batch_size)
    chosen = [problems[number] for number in range(0, len(problems), step)][: recipe.generate.batch_size]
    chosen = chosen[: _few_enough(recipe, loaded, chosen)]
    rate, lengths, was_cut = _full(recipe, loaded, chosen)
    done(2)
    per_prefix = _prefixes(recipe, loaded, chosen)
    done(3)
    per_token = _train(recipe, loaded, chosen)
    done(4)
    return Speed(load_seconds, rate, per_prefix, per_token, lengths, was_cut)


def _requests(recipe: Recipe, loaded: Loaded, problems: Sequence[Problem], limit: int) -> list[Any]:
    from upft_mlx.sampling.decoding import Request

    renderer = Renderer(loaded.tokenizer, recipe.prompt)
    return [Request(renderer.asked(problem.question), limit) for problem in problems]


def _sampler(recipe: Recipe, loaded: Loaded) -> Any:
    from upft_mlx.sampling.sampler import Sampler, sampling_for

    g = recipe.generate
    return Sampler(loaded, sampling_for(loaded, g.temperature, g.batch_size, g.top_p, g.top_k, g.stop))


def _few_enough(recipe: Recipe, loaded: Loaded, problems: Sequence[Problem]) -> int:
    """How many problems a trial takes: fewer than a batch where a machine passes their prompts too slowly."""
    sampler, two = _sampler(recipe, loaded), problems[:2]
    sampler.sample(_requests(recipe, loaded, two, 2), 0)  # what compiles does so before
    begin = time.perf_counter()
    sampler.sample(_requests(recipe, loaded, two, 2), 0)
    each = (time.perf_counter() - begin) / len(two)
    return max(2, min(len(problems), int(SECONDS["full"] / 4 / each)))


def _full(
    recipe: Recipe, loaded: Loaded, problems: Sequence[Problem]
) -> tuple[float, tuple[tuple[int, bool], ...], bool]:
    """Tokens per second, lengths of the solutions, and whether these are estimates."""
    sampler, limit = _sampler(recipe, loaded), most_sampled(recipe, "full")
    tokens = finished = 0
    begin = time.perf_counter()

    def on_step(new: int, ended: int) -> None:
        nonlocal tokens, finished
        tokens, finished = tokens + new, finished + ended
        if time.perf_counter() - begin > SECONDS["full"]:
            raise _TimeIsUpError

    try:
        made = sampler.sample(_requests(recipe, loaded, problems, limit), 0, on_step)
    except _TimeIsUpError:
        mean = min(limit, tokens // max(1, finished))
        rate = tokens / (time.perf_counter() - begin)
        return rate, ((mean, mean < limit),) * max(1, finished), True
    rate = tokens / (time.perf_counter() - begin)
    return rate, tuple((len(one.ids), one.finish_reason == "stop") for one in made), False


def _prefixes(recipe: Recipe, loaded: Loaded, problems: Sequence[Problem]) -> float:
    """Seconds per prefix; of a trial that was cut, as many as its tokens would be."""
    sampler, length = _sampler(recipe, loaded), most_sampled(recipe, "prefix")
    begin, tokens = time.perf_counter(), 0

    def on_step(new: int, ended: int) -> None:
        nonlocal tokens
        tokens += new
        if time.perf_counter() - begin > SECONDS["prefix"]:
            raise _TimeIsUpError

    try:
        sampler.sample(_requests(recipe, loaded, problems, length), 0, on_step)
    except _TimeIsUpError:
        return (time.perf_counter() - begin) * length / max(1, tokens)
    return (time.perf_counter() - begin) / len(problems)


def _train(recipe: Recipe, loaded: Loaded, problems: Sequence[Problem]) -> float:
    """Seconds per token that is not shared; of a small batch where a step of a whole one takes too long."""
    from upft_mlx.models.adapters import add_lora
    from upft_mlx.training.batches import Example, shared_length
    from upft_mlx.training.step import Stepper

    renderer, settings = Renderer(loaded.tokenizer, recipe.prompt), recipe.train
    examples = []
    for problem in problems:
        prompt = renderer.asked(problem.question + recipe.prefix.template_text)
        size = most_sampled(recipe, "prefix")
        ids = (prompt * size)[:size]  # only their number matters
        row = [*prompt, *ids, loaded.eos_id][: settings.max_length]
        examples.append(Example(problem.id, row, min(len(prompt), len(row) - 1)))
    shared = shared_length(examples)
    add_lora(loaded, recipe.lora, 0)
    loaded.model.train()
    stepper = Stepper(loaded.model, settings, shared=shared, dropout=recipe.lora.dropout > 0)
    batch = [examples[number % len(examples)] for number in range(settings.batch_size)]
    stepper.step(batch[:2], 1e-6, 0)  # what compiles does so before
    begin = time.perf_counter()
    stepper.step(batch[:2], 1e-6, 0)
    if (time.perf_counter() - begin) * len(batch) / 2 > SECONDS["train"]:
        batch = batch[:2]
    steps, begin = 0, time.perf_counter()
    while not steps or time.perf_counter() - begin < SECONDS["train"] / 2:
        stepper.step(batch, 1e-6, 0)
        steps += 1
    own = sum(len(example.ids) - shared for example in batch)
    return (time.perf_counter() - begin) / steps / own
