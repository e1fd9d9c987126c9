"""How fast this machine is with a recipe's model: a calibration of about ten seconds, kept for the next time.

Each is a file of this machine (`cache_file`), named by everything that the speed depends on, and sent nowhere.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from upft_mlx.data.problems import Problem
from upft_mlx.dataset.prefix import most_sampled
from upft_mlx.errors import RowsError
from upft_mlx.events import Progress
from upft_mlx.job import Job
from upft_mlx.machine.cache import cache_folder
from upft_mlx.models.chat import Renderer
from upft_mlx.models.find import model_hash
from upft_mlx.models.load import Loaded
from upft_mlx.planning.lengths import Solutions, of_lengths
from upft_mlx.quantities import many
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import from_plain, read_json, write_json
from upft_mlx.rundir import fingerprint, versions
from upft_mlx.training.batches import Example, shared_length

SECONDS = {"full": 4.0, "prefix": 2.0, "train": 1.5}
"""After which sampling is cut, and for how long steps are taken; loading and compiling come on top."""
FIELDS: Any = {
    **dict.fromkeys(("problems", "generate", "lora", "quantize", "prompt"), True),
    "prefix": {"length", "template"},
    "train": {"batch_size", "micro_batch_size", "grad_checkpoint", "max_length"},
}
"""What of a recipe the speed depends on."""


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
    solutions: Solutions
    """Those that were sampled; of a trial whose time was over before, an estimate."""


def cache_file(job: Job) -> Path:
    """Where the calibration is: in `speed/` in the cache."""
    used = {name: version for name, version in versions().items() if name in ("upft-mlx", "mlx", "mlx-lm")}
    model, fields = model_hash(job.model_path), job.recipe.model_dump(mode="json", include=FIELDS)
    key = fingerprint({"model": model, "count": len(job.problems), "versions": used, "recipe": fields})
    return cache_folder("speed") / f"{key}.json"


def known(job: Job) -> Speed | None:
    """An earlier calibration of this machine; None where there is none, or the file is damaged."""
    try:
        return from_plain(Speed, read_json(cache_file(job)), "a calibration")
    except (RowsError, OSError):
        return None


def calibrate(job: Job) -> Speed:
    """Load a job's model, sample some solutions and prefixes, take some steps; keep the result.

    This takes about ten seconds, whatever the size of model and batches: a slow machine gets fewer sequences.

    Raises:
        UpftError: the model cannot be loaded or does not take the prompts.
    """
    from upft_mlx.sampling.decoding import Request
    from upft_mlx.sampling.sampler import Sampler, sampling_for, summing

    def done(parts: int) -> float:
        job.notify(Progress("trial", parts, 4, "parts"))
        return time.perf_counter()

    def sample(problems: Sequence[Problem], limit: int, most: float) -> tuple[float, int, list[tuple[int, bool]]]:
        """Seconds, tokens, and the solutions' lengths with whether they ended: an estimate where the time was over."""
        requests = [Request(renderer.asked(problem.question), limit) for problem in problems]
        begin, sums = time.perf_counter(), (0, 0)

        def look(tokens: int, finished: int) -> None:
            nonlocal sums
            sums = tokens, max(1, finished)
            if time.perf_counter() - begin > most:
                raise TimeoutError

        try:
            made = sampler.sample(requests, 0, summing(look))
            lengths = [(len(one.ids), one.finish_reason == "stop") for one in made]
        except TimeoutError:
            mean = min(limit, sums[0] // sums[1])
            lengths = [(mean, mean < limit)] * sums[1]
        return time.perf_counter() - begin, sums[0], lengths

    recipe, g, begin = job.recipe, job.recipe.generate, done(0)
    loaded = job.load()
    load_seconds, renderer = done(1) - begin, Renderer(loaded.tokenizer, recipe.prompt)
    sampler = Sampler(loaded, sampling_for(loaded, g.temperature, g.batch_size, g.top_p, g.top_k, g.stop))
    chosen = job.problems[:: max(1, len(job.problems) // g.batch_size)][: g.batch_size]
    sample(chosen[:2], 2, SECONDS["full"])  # what compiles does so before
    each = sample(chosen[:2], 2, SECONDS["full"])[0] / len(chosen[:2])
    chosen = chosen[: max(2, int(SECONDS["full"] / 4 / each))]
    limit, length = most_sampled(recipe, "full"), most_sampled(recipe, "prefix")
    seconds, tokens, lengths = sample(chosen, limit, SECONDS["full"])
    known_by = "measured on" if seconds <= SECONDS["full"] else "estimated from"
    solutions = of_lengths(lengths, f"{known_by} {many(len(lengths), 'full solution')} in a calibration")
    rate = tokens / seconds
    done(2)
    seconds, tokens, _ = sample(chosen, length, SECONDS["prefix"])
    done(3)
    rows = []
    for problem in chosen:
        prompt = renderer.asked(problem.question + recipe.prefix.template_text)
        ids = [*prompt, *(prompt * length)[:length], loaded.eos_id][: recipe.train.max_length]
        rows.append(Example("", ids, min(len(prompt), len(ids) - 1)))
    per_token = _train(recipe, loaded, rows)
    done(4)
    speed = Speed(load_seconds, rate, seconds * length / max(1, tokens), per_token, solutions)
    file = cache_file(job)
    with suppress(OSError):  # then the next plan calibrates again
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, asdict(speed))
    return speed


def _train(recipe: Recipe, loaded: Loaded, rows: Sequence[Example]) -> float:
    """Seconds per token that is not shared; of a small batch where a step of a whole one takes too long."""
    from upft_mlx.models.adapters import add_lora
    from upft_mlx.training.step import Stepper

    shared = shared_length(rows)
    add_lora(loaded, recipe.lora, 0)
    loaded.model.train()
    stepper = Stepper(loaded.model, recipe.train, shared=shared, dropout=recipe.lora.dropout > 0)
    batch = [rows[number % len(rows)] for number in range(recipe.train.batch_size)]

    def timed(batch: Sequence[Example], most: float) -> float:
        steps, begin = 0, time.perf_counter()
        while not steps or time.perf_counter() - begin < most:
            stepper.step(batch, 1e-6, 0)
            steps += 1
        return (time.perf_counter() - begin) / steps

    timed(batch[:2], 0)  # what compiles does so before
    if timed(batch[:2], 0) * len(batch) / 2 > 2 * SECONDS["train"]:
        batch = batch[:2]
    return timed(batch, SECONDS["train"]) / sum(len(example.ids) - shared for example in batch)
