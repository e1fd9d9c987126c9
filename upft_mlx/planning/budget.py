"""Does a recipe fit in memory? Peak memory by stage, the values of `auto`, and what would fit instead."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from upft_mlx.dataset.prefix import most_sampled, most_supervised
from upft_mlx.errors import MemoryLimitError
from upft_mlx.machine.device import attends_in_blocks, memory_bytes, on_gpu, working_set_bytes
from upft_mlx.models.architecture import Architecture
from upft_mlx.planning.lengths import Prompts, Solutions, first
from upft_mlx.planning.memory import Device, SamplingLoad, TrainingPass, fusing_peak, sampling_peak, training_peak
from upft_mlx.quantities import memory
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
SIZES = ("generate.batch_size", "evaluate.batch_size", "train.batch_size", "train.micro_batch_size")
"""Fields that may be `auto`."""


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
    total, working_set = memory_bytes(), working_set_bytes()
    device = Device(on_gpu(), total, working_set is not None and attends_in_blocks())
    if told := os.environ.get("UPFT_MEMORY_GB"):
        try:
            wanted = float(told)
        except ValueError:
            wanted = math.nan
        if not 0 < wanted < math.inf:
            what = f"{told!r}: should be a number of GB above 0, for example 12"
            raise MemoryLimitError(what, field="UPFT_MEMORY_GB")
        return Budget(int(wanted * 1e9), "UPFT_MEMORY_GB", device, told=True)
    if working_set is not None:
        return Budget(working_set, "this Mac's working set", device)
    return Budget(total * 3 // 4, "three quarters of this machine's memory", device)


def another_mac(gigabytes: float) -> Budget:
    """A Mac with this much memory: macOS lets the GPU take about 2/3 of up to 36 GB, and 3/4 of more."""
    total, share = int(gigabytes * 2**30), 2 / 3 if gigabytes <= 36 else 3 / 4
    what = f"about what a Mac with {gigabytes:g} GB gives the GPU"
    return Budget(int(total * share), what, Device(True, total, attends_in_blocks()))


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
        evaluates, fuses = self.questions is not None, recipe.publish.fuse != "adapter"
        stages = ("generate", "train", *["evaluate"] * evaluates, *["fuse"] * fuses)
        return {stage: self.peak(stage, recipe) for stage in stages}

    def peak(self, stage: str, recipe: Recipe) -> float:
        """Peak bytes of a stage: of its largest chunk, of the step with the longest rows, or of fusing."""
        model, lora, device = self.model, recipe.lora, self.budget.device
        if stage == "fuse":
            sixteen = recipe.publish.fuse in ("auto", "bf16", "fp16") or not self._is_quantized(recipe)
            return fusing_peak(model, lora, device, self.prompts.longest[0], all_float32=sixteen)
        if stage == "train":
            none = TrainingPass(0, 0, 0, 0, accumulates=False)  # where every solution was cut, nothing is trained
            checkpoint, passes = recipe.train.grad_checkpoint, (none, *self._passes(recipe))
            return max(training_peak(model, lora, one, device, checkpoint=checkpoint) for one in passes)
        loads = self._answers(recipe) if stage == "evaluate" else self._solutions(recipe)
        adapter = model.adapter_numbers(lora) if stage == "evaluate" else 0
        return max((sampling_peak(model, load, device, adapter) for load in loads), default=0.0)

    def _is_quantized(self, recipe: Recipe) -> bool:
        """Whether a layer with an adapter is quantized; if not, fusing is possible only in 16 bits."""
        return any(matrix.stored for matrix in self.model.adapted(recipe.lora))

    def _solutions(self, recipe: Recipe) -> Iterator[SamplingLoad]:
        """A chunk of full solutions, and one of prefixes."""
        batch, samples = recipe.generate.batch_size, recipe.generate.samples
        full, prefix = self.kinds(recipe)
        own, shared = self.prompts.longest[0] - self.prompts.shared, self.prompts.shared
        if full:
            each = samples if recipe.samples_full else 1
            chunk = min(full, generated_together("full", batch, each))
            limit = min(most_sampled(recipe, "full"), max(1, self.solutions.longest))
            yield SamplingLoad(batch, chunk, each, own, shared, limit)
        if prefix:
            chunk, limit = min(prefix, generated_together("prefix", batch, samples)), most_sampled(recipe, "prefix")
            yield SamplingLoad(batch, chunk, samples, own, shared, limit, end_together=True)

    def _answers(self, recipe: Recipe) -> Iterator[SamplingLoad]:
        """A chunk of the benchmarks."""
        if (asked := self.questions) is not None:
            batch, samples = recipe.evaluate.batch_size, recipe.evaluate.samples
            chunk = min(asked.count, evaluated_together(asked.count, batch, samples))
            own = asked.longest[0] - asked.shared
            yield SamplingLoad(batch, chunk, samples, own, asked.shared, recipe.evaluate.max_tokens)

    def kinds(self, recipe: Recipe) -> tuple[int, int]:
        """The number of problems sampled as full solutions, and as prefixes."""
        count = self.prompts.count
        if recipe.samples_full:
            return count, 0
        full = round(recipe.prefix.structure_ratio * count)
        return full, 0 if recipe.method == "structure_only" else count - full

    def _passes(self, recipe: Recipe) -> Iterator[TrainingPass]:
        """The rows of the batch with the longest rows, and of a batch of the longest prefix rows."""
        settings = recipe.train
        shared = 0 if unshared_because(recipe.lora.dropout, settings.grad_checkpoint) else self.trained.shared
        long, short = self._longest_rows(recipe)
        for rows in ([*long, *short][: settings.batch_size], short[: settings.batch_size]):
            parts = split(rows, settings.micro_batch_size, shared) if rows else []
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

        def row(prompt: int, completion: int) -> Example:
            length = min(limit, prompt + completion)
            return Example("", list(range(length)), min(prompt, length - 1))

        count = min(batch, round(full * self.solutions.finished))
        asked, written = self.prompts.mean, self.solutions.mean
        longs = []
        for prompt, tokens in zip(self.prompts.first(count), first(self.solutions.trained, count), strict=True):
            length = round(asked + written + math.hypot(prompt - asked, tokens + 1 - written))
            longs.append(row(prompt, max(1, length - prompt)))
        length = most_supervised(recipe.prefix)
        return longs, [row(prompt, length) for prompt in self.trained.first(min(batch, prefix))]

    # What `auto` is.

    def settle(self, recipe: Recipe) -> Recipe:
        """The recipe with numbers instead of `auto`: the largest with which the stage fits, 1 where none does.

        `train.batch_size` changes what is trained, so it does not follow the memory: the paper's where there are
        enough rows for `MIN_STEPS` steps in an epoch.
        """
        if recipe.train.batch_size == AUTO:
            rows = self.prompts.count * (1 - recipe.train.valid_ratio)
            rows *= recipe.prefix.structure_ratio if recipe.method == "structure_only" else 1
            steps = max(1, int(rows) // MIN_STEPS)
            recipe = changed(recipe, {"train.batch_size": int(min(PAPER_BATCH, 2 ** int(math.log2(steps))))})
        for name in SIZES:
            if field(recipe, name) == AUTO:
                stage = name.partition(".")[0]
                most = recipe.train.batch_size if stage == "train" else MAX_DECODED
                tries = [changed(recipe, {name: size}) for size in _halves(most)]
                fitting = (tried for tried in tries if self.peak(stage, tried) <= MARGIN * self.budget.bytes)
                recipe = next(fitting, tries[-1])
        return recipe

    # What does not fit.

    def too_large(self, recipe: Recipe, stages: Collection[str] | None = None) -> dict[str, str]:
        """For each stage (of these) that does not fit a message, with the first usual remedy that would."""
        lines = {}
        for stage, peak in self.peaks(recipe).items():
            if peak <= self.budget.bytes or (stages is not None and stage not in stages):
                continue
            advice = "no batch size, checkpointing or length fits: use a smaller or more quantized model"
            if stage == "fuse":
                advice = "--set publish.fuse=adapter skips fusing and makes the adapter the result"
            for fields in self._remedies(stage, recipe):
                less = self.peak(stage, changed(recipe, fields))
                if less <= self.budget.bytes:
                    values = {name: str(v).lower() if isinstance(v, bool) else v for name, v in fields.items()}
                    sets = " ".join(f"--set {name}={value}" for name, value in values.items())
                    advice = f"it would take {memory(less)} with {sets}"
                    break
            what = f"{self.budget.what} is {memory(self.budget.bytes)}"
            lines[stage] = f"{stage} needs about {memory(peak)}, but {what}; {advice}"
        return lines

    def is_hopeless(self, stage: str, recipe: Recipe) -> bool:
        """Whether a stage exceeds the machine's memory by half or more even at the smallest settings."""
        tries = ({}, *self._remedies(stage, recipe))
        return min(self.peak(stage, changed(recipe, fields)) for fields in tries) >= EXCESS * self.budget.machine

    def _remedies(self, stage: str, recipe: Recipe) -> Iterator[dict[str, Any]]:
        """Changes that save memory, the cheapest first; those of training change no step but the last ones."""
        if stage in ("generate", "evaluate"):
            settings = getattr(recipe, stage)
            yield from ({f"{stage}.batch_size": size} for size in _halves(settings.batch_size)[1:])
            one = {f"{stage}.batch_size": 1}
            yield from ({**one, f"{stage}.max_tokens": size} for size in _halves(settings.max_tokens)[1:4])
        if stage == "train":
            yield from ({"train.micro_batch_size": size} for size in _halves(recipe.train.batch_size)[1:])
            one = {"train.micro_batch_size": 1, "train.grad_checkpoint": True}
            yield one
            yield from ({**one, "train.max_length": size} for size in _halves(recipe.train.max_length)[1:4])
            yield {**one, "lora.num_layers": 8, "train.grad_checkpoint": False}
        if stage == "fuse" and self._is_quantized(recipe):
            yield from ({"publish.fuse": way} for way in ("mixed", "base"))


def has_auto(recipe: Recipe) -> bool:
    """Whether a field is `auto`."""
    return any(field(recipe, name) == AUTO for name in SIZES)


def field(recipe: Recipe, name: str) -> Any:
    """The value of a `section.field`."""
    section, _, last = name.partition(".")
    return getattr(getattr(recipe, section), last)


def changed(recipe: Recipe, fields: dict[str, Any]) -> Recipe:
    """The recipe with other values of some `section.field`."""
    for name, value in fields.items():
        section, _, last = name.partition(".")
        recipe = recipe.model_copy(update={section: getattr(recipe, section).model_copy(update={last: value})})
    return recipe


def _halves(size: int) -> list[int]:
    """The size, half of it, ... 1."""
    return [size >> power for power in range(size.bit_length())]
