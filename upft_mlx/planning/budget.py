"""Does a recipe fit in memory? Peak memory by stage, the values of `auto`, and what would fit instead."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from upft_mlx.dataset.prefix import most_sampled, most_supervised
from upft_mlx.errors import MemoryLimitError
from upft_mlx.machine.device import attends_in_blocks, memory_bytes, on_gpu, working_set_bytes
from upft_mlx.models.architecture import Architecture
from upft_mlx.planning.lengths import Prompts, Solutions, first
from upft_mlx.planning.memory import Device, SamplingLoad, TrainingPass, fusing_peak, sampling_peak, training_peak
from upft_mlx.recipe.fields import AUTO
from upft_mlx.recipe.schema import Recipe
from upft_mlx.sampling.chunks import evaluated_together, generated_together
from upft_mlx.training.batches import Example, split, unshared_because

MARGIN = 0.85
"""Share of the budget that `auto` fills: the formulas are right to about 15 %."""
EXCESS = 1.5
"""What exceeds the machine's memory this many times, whatever the settings, is refused; the rest gets a warning."""
MAX_DECODED = 64
"""Maximum number of sequences that `auto` decodes together."""
PAPER_BATCH, MIN_STEPS = 64, 20
"""The largest `train.batch_size: auto`, and the minimum number of steps in an epoch."""


@dataclass(frozen=True)
class Budget:
    """The memory that a run may take."""

    bytes: int
    what: str
    device: Device
    told: bool = False
    """Whether UPFT_MEMORY_GB says it: nothing beyond it counts as the machine's memory then."""

    @property
    def machine(self) -> int:
        """Bytes of all of the machine's memory."""
        return self.bytes if self.told else max(self.bytes, self.device.memory_bytes)


def this_machine() -> Budget:
    """Metal's working set, elsewhere three quarters of the memory; UPFT_MEMORY_GB overrides both.

    Raises:
        MemoryLimitError: UPFT_MEMORY_GB is not a number above 0.
    """
    total = memory_bytes()
    if told := os.environ.get("UPFT_MEMORY_GB"):
        try:
            wanted = float(told)
        except ValueError:
            wanted = math.nan
        if not 0 < wanted < math.inf:
            raise MemoryLimitError(
                f"{told!r}: should be a number of GB above 0, for example 12", field="UPFT_MEMORY_GB"
            )
        device = Device(on_gpu(), total, working_set_bytes() is not None and attends_in_blocks())
        return Budget(int(wanted * 1e9), "UPFT_MEMORY_GB", device, told=True)
    size = working_set_bytes()
    if size is not None:
        return Budget(size, "this Mac's working set", Device(True, total, attends_in_blocks()))
    return Budget(total * 3 // 4, "three quarters of this machine's memory", Device(on_gpu(), total))


def another_mac(gigabytes: float) -> Budget:
    """A Mac with this much memory: macOS lets the GPU take about 2/3 of up to 36 GB, and 3/4 of more."""
    total = int(gigabytes * 2**30)
    share = 2 / 3 if gigabytes <= 36 else 3 / 4
    return Budget(
        int(total * share),
        f"about what a Mac with {gigabytes:g} GB gives the GPU",
        Device(True, total, attends_in_blocks()),
    )


@dataclass(frozen=True)
class MemoryPlan:
    """Everything that the peaks of one recipe depend on."""

    model: Architecture
    prompts: Prompts
    """The prompts of the problems."""
    trained: Prompts
    """The same with the task template."""
    solutions: Solutions
    questions: Prompts | None
    """The prompts of all benchmarks."""
    budget: Budget

    # Peaks.

    def peaks(self, recipe: Recipe) -> dict[str, float]:
        """Peak bytes of each stage."""
        found = {"generate": self._generate(recipe), "train": self.train(recipe)}
        if self.questions is not None:
            found["evaluate"] = self._evaluate(recipe)
        if recipe.publish.fuse != "adapter":
            sixteen = recipe.publish.fuse in ("auto", "bf16", "fp16") or not self._is_quantized(recipe)
            found["fuse"] = fusing_peak(self.model, recipe.lora, self.budget.device, all_float32=sixteen)
        return found

    def _is_quantized(self, recipe: Recipe) -> bool:
        """Whether a layer with an adapter is quantized; if not, fusing is possible only in 16 bits."""
        return any(matrix.stored for matrix in self.model.adapted(recipe.lora))

    def _generate(self, recipe: Recipe) -> float:
        """Peak bytes of sampling full solutions or prefixes, whichever is larger."""
        batch, samples = recipe.generate.batch_size, recipe.generate.samples
        full, prefix = self.kinds(recipe)
        loads = []
        if full:
            each = samples if recipe.samples_full else 1
            chunk = min(full, generated_together("full", batch, each))
            limit = min(most_sampled(recipe, "full"), max(1, self.solutions.longest))
            loads.append(self._load(self.prompts, batch, chunk, each, limit))
        if prefix:
            chunk = min(prefix, generated_together("prefix", batch, samples))
            loads.append(self._load(self.prompts, batch, chunk, samples, most_sampled(recipe, "prefix")))
        return max(sampling_peak(self.model, load, self.budget.device) for load in loads)

    def kinds(self, recipe: Recipe) -> tuple[int, int]:
        """The number of problems sampled as full solutions, and as prefixes."""
        count = self.prompts.count
        if recipe.samples_full:
            return count, 0
        full = round(recipe.prefix.structure_ratio * count)
        return full, 0 if recipe.method == "structure_only" else count - full

    def _evaluate(self, recipe: Recipe) -> float:
        assert self.questions is not None
        batch, samples = recipe.evaluate.batch_size, recipe.evaluate.samples
        prompts = min(self.questions.count, evaluated_together(self.questions.count, batch, samples))
        load = self._load(self.questions, batch, prompts, samples, recipe.evaluate.max_tokens)
        adapter = self.model.adapter_numbers(recipe.lora)
        return sampling_peak(self.model, load, self.budget.device, adapter)

    def _load(self, asked: Prompts, batch: int, prompts: int, samples: int, limit: int) -> SamplingLoad:
        own = asked.longest[0] - asked.shared
        return SamplingLoad(batch, prompts, samples, own, asked.shared, limit)

    def train(self, recipe: Recipe) -> float:
        """Peak bytes of the step with the longest rows."""
        checkpoint = recipe.train.grad_checkpoint
        none = TrainingPass(0, 0, 0, 0, accumulates=False)  # where every solution was cut, nothing is trained
        return max(
            training_peak(self.model, recipe.lora, one, self.budget.device, checkpoint=checkpoint)
            for one in (none, *self._passes(recipe))
        )

    def _passes(self, recipe: Recipe) -> Iterator[TrainingPass]:
        """The rows of the batch with the longest rows, and of a batch of the longest prefix rows."""
        settings = recipe.train
        shared = 0 if unshared_because(recipe.lora.dropout, settings.grad_checkpoint) else self.trained.shared
        long, short = self._longest_rows(recipe)
        for rows in ([*long, *short][: settings.batch_size], short[: settings.batch_size]):
            if rows:
                parts = split(rows, settings.micro_batch_size, shared)
                for part in parts:
                    count, tokens = part.tokens.shape
                    yield TrainingPass(count, tokens, part.shared.size, part.positions.size, len(parts) > 1)

    def _longest_rows(self, recipe: Recipe) -> tuple[list[Example], list[Example]]:
        """As many of the longest full and prefix rows as a batch can hold.

        Prompts and solutions are taken to be long independently of each other.
        """
        batch, limit = recipe.train.batch_size, recipe.train.max_length
        full, prefix = self.kinds(recipe)
        if recipe.samples_full and recipe.method == "upft":
            full, prefix = 0, full
        if recipe.method == "rft":
            full *= recipe.generate.keep
        count = min(batch, round(full * self.solutions.finished))
        mean = self.prompts.mean + self.solutions.mean
        longs = []
        for prompt, tokens in zip(self.prompts.first(count), first(self.solutions.trained, count), strict=True):
            apart = math.hypot(prompt - self.prompts.mean, tokens + 1 - self.solutions.mean)
            longs.append(_row(prompt, max(1, round(mean + apart) - prompt), limit))
        length = most_supervised(recipe.prefix)
        return longs, [_row(prompt, length, limit) for prompt in self.trained.first(min(batch, prefix))]

    # What `auto` is.

    def settle(self, recipe: Recipe) -> Recipe:
        """The recipe with numbers instead of `auto`: the largest with which the stage fits, 1 where none does.

        `train.batch_size` changes what is trained, so it does not follow the memory: the paper's where there are
        enough rows for `MIN_STEPS` steps in an epoch.
        """
        peak: dict[str, Callable[[Recipe], float]] = {
            "generate": self._generate,
            "evaluate": lambda tried: 0.0 if self.questions is None else self._evaluate(tried),
            "train": self.train,
        }
        if recipe.train.batch_size == AUTO:
            rows = self.prompts.count * (1 - recipe.train.valid_ratio)
            rows *= recipe.prefix.structure_ratio if recipe.method == "structure_only" else 1
            steps = max(1, int(rows) // MIN_STEPS)
            recipe = changed(recipe, {"train.batch_size": int(min(PAPER_BATCH, 2 ** int(math.log2(steps))))})
        for section, field, most in (
            ("generate", "batch_size", MAX_DECODED),
            ("evaluate", "batch_size", MAX_DECODED),
            ("train", "micro_batch_size", recipe.train.batch_size),
        ):
            if getattr(getattr(recipe, section), field) == AUTO:
                tries = [changed(recipe, {f"{section}.{field}": size}) for size in _halves(most)]
                fitting = (tried for tried in tries if peak[section](tried) <= MARGIN * self.budget.bytes)
                recipe = next(fitting, tries[-1])
        return recipe

    # What does not fit.

    def too_large(self, recipe: Recipe, peaks: dict[str, float] | None = None) -> list[str]:
        """A message for each stage that does not fit, with the first usual remedy that would."""
        lines = []
        for stage, peak in (peaks or self.peaks(recipe)).items():
            if peak <= self.budget.bytes:
                continue
            advice = "no batch size, checkpointing or length fits: use a smaller or more quantized model"
            if stage == "fuse":
                advice = "--set publish.fuse=adapter skips fusing and makes the adapter the result"
            for fields in _remedies(stage, recipe, quantized=self._is_quantized(recipe)):
                less = self.peaks(changed(recipe, fields))[stage]
                if less <= self.budget.bytes:
                    values = {name: str(v).lower() if isinstance(v, bool) else v for name, v in fields.items()}
                    sets = " ".join(f"--set {name}={value}" for name, value in values.items())
                    advice = f"it would take {gigabytes(less)} with {sets}"
                    break
            what = f"{self.budget.what} is {gigabytes(self.budget.bytes)}"
            lines.append(f"{stage} needs about {gigabytes(peak)}, but {what}; {advice}")
        return lines

    def refuse_too_large(self, recipe: Recipe, stages: tuple[str, ...]) -> None:
        """Refuse what exceeds the machine's memory by half or more even at the smallest settings.

        Raises:
            MemoryLimitError: the stages, the memory they need at least, and the limit.
        """
        limit, over = EXCESS * self.budget.machine, dict[str, float]()
        for stage, peak in self.peaks(recipe).items():
            if stage in stages and peak >= limit:
                tries = _remedies(stage, recipe, quantized=self._is_quantized(recipe))
                least = min([peak, *(self.peaks(changed(recipe, fields))[stage] for fields in tries)])
                over |= {stage: peak} if least >= limit else {}
        if over:
            lines = self.too_large(recipe, over)
            raise MemoryLimitError(
                "\n".join([*lines, "if you know that it fits: UPFT_MEMORY_GB=N sets the memory limit to N GB"])
            )


def _remedies(stage: str, recipe: Recipe, *, quantized: bool) -> Iterator[dict[str, Any]]:
    """Changes that save memory, the cheapest first; those of training change no step but the last ones."""
    if stage in ("generate", "evaluate"):
        batch = getattr(recipe, stage).batch_size
        yield from ({f"{stage}.batch_size": size} for size in _halves(batch)[1:])
        limit = getattr(recipe, stage).max_tokens
        yield from ({f"{stage}.batch_size": 1, f"{stage}.max_tokens": size} for size in _halves(limit)[1:4])
    if stage == "train":
        yield from ({"train.micro_batch_size": size} for size in _halves(recipe.train.batch_size)[1:])
        one = {"train.micro_batch_size": 1, "train.grad_checkpoint": True}
        yield one
        yield from ({**one, "train.max_length": size} for size in _halves(recipe.train.max_length)[1:4])
        yield {**one, "lora.num_layers": 8, "train.grad_checkpoint": False}
    if stage == "fuse" and quantized:
        yield {"publish.fuse": "mixed"}
        yield {"publish.fuse": "base"}


def changed(recipe: Recipe, fields: dict[str, Any]) -> Recipe:
    """The recipe with other values of some `section.field`."""
    for name, value in fields.items():
        section, _, field = name.partition(".")
        part = getattr(recipe, section).model_copy(update={field: value})
        recipe = recipe.model_copy(update={section: part})
    return recipe


def has_auto(recipe: Recipe) -> bool:
    """Whether a field is `auto`."""
    sizes = (recipe.generate.batch_size, recipe.evaluate.batch_size, recipe.train.batch_size)
    return AUTO in (*sizes, recipe.train.micro_batch_size)


def _row(prompt: int, completion: int, limit: int) -> Example:
    length = min(limit, prompt + completion)
    return Example("", list(range(length)), min(prompt, length - 1))


def _halves(size: int) -> list[int]:
    """The size, half of it, ... 1."""
    found = [size]
    while found[-1] > 1:
        found.append(found[-1] // 2)
    return found


def gigabytes(size: float) -> str:
    """`12.3 GB` (10^9 bytes), or MB below 1 GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
