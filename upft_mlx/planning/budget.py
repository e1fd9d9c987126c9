"""Does a recipe fit in memory? Peak memory by stage, the values of `auto`, and what would fit instead."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter, itemgetter

from upft_mlx.dataset.prefix import RowKind, most_sampled, most_supervised, row_kind, valid_numbers
from upft_mlx.errors import MemoryLimitError
from upft_mlx.forecasting.generation import is_rated
from upft_mlx.machine import device
from upft_mlx.models.architecture import Architecture
from upft_mlx.planning.lengths import Prompts, Solutions
from upft_mlx.planning.memory import (
    OPTIMIZER_COPIES,
    Machine,
    SamplingLoad,
    TrainingPass,
    fusing_peak,
    sampling_peak,
    training_peak,
)
from upft_mlx.quantities import memory
from upft_mlx.recipe.fields import AUTO, SIZES
from upft_mlx.recipe.grid import Settings
from upft_mlx.recipe.schema import Recipe
from upft_mlx.recipe.studies import SCORED
from upft_mlx.sampling.chunks import evaluated_together, generated_together
from upft_mlx.sampling.resumed import BATCHES
from upft_mlx.stages import STAGES
from upft_mlx.training.batches import Example, split, unshared_because
from upft_mlx.training.development import MOST
from upft_mlx.training.moved import PROMPTS, looked_at

MARGIN = 0.85
"""Share of the budget that `auto` fills: the formulas are right to about 15 %."""
EXCESS = 1.5
"""What exceeds the machine's memory this many times, whatever the settings, is refused; the rest gets a warning."""
MAX_DECODED, PAPER_BATCH, MIN_STEPS = 64, 64, 20
"""The most that `auto` decodes together, its largest `train.batch_size`, and the minimum of steps in an epoch."""
PLANNED = tuple(name for name, stage in STAGES.items() if stage.planned)


def this_machine() -> Machine:
    """Metal's working set, an NVIDIA GPU's memory, or three quarters of the machine's; UPFT_MEMORY_GB overrides all.

    Raises:
        MemoryLimitError: UPFT_MEMORY_GB is not a number above 0.
    """
    machine, metal, nvidia = device.memory_bytes(), device.working_set_bytes(), device.nvidia_memory_bytes()
    if told := os.environ.get("UPFT_MEMORY_GB"):
        try:
            size = int(float(told) * 1e9)
        except (ValueError, OverflowError):
            size = 0
        if size <= 0:
            problem = f"{told!r}: should be a number of GB above 0, for example 12"
            raise MemoryLimitError(problem, field="UPFT_MEMORY_GB")
        whole, what = size, "UPFT_MEMORY_GB"
    elif metal is not None:
        whole, size, what = machine, metal, "this Mac's working set"
    elif nvidia is not None:
        whole, size, what = nvidia, nvidia, "this GPU's memory"
    else:
        whole, size, what = machine, machine * 3 // 4, "three quarters of this machine's memory"
    dense = 0 if device.on_gpu() else device.dense_bytes_limit(machine)
    return Machine(device.on_gpu(), size, what, whole, dense, metal is not None and device.attends_in_blocks())


def another_mac(gigabytes: float) -> Machine:
    """A Mac with this much memory: macOS lets the GPU take about 2/3 of up to 36 GB, and 3/4 of more."""
    whole, share = int(gigabytes * 2**30), 2 / 3 if gigabytes <= 36 else 3 / 4
    what = f"about what a Mac with {gigabytes:g} GB gives the GPU"
    return Machine(True, int(whole * share), what, whole, attends_in_blocks=device.attends_in_blocks())


@dataclass(frozen=True)
class Work:
    """What is sampled, and what an epoch trains on, for one kind of row: as many as are expected."""

    kind: RowKind
    problems: int
    """Problems that are sampled, each `samples` times; 0 times for `annotated`."""
    samples: int
    tokens: float
    """Tokens of a sample on average, and the most."""
    most: int
    rows: float
    """Rows, each with a prompt of `prompts`."""
    prompts: Prompts
    supervised: float
    """Tokens of a row that are trained on, on average, and of the longest rows, in descending order; EOS included."""
    longest: Sequence[int]


@dataclass(frozen=True)
class Further:
    """What is sampled besides `Work`: solutions of problems whose answers are used, or continuations of prefixes."""

    stage: str
    prompts: int
    begun: int
    """Tokens of the prefix after each prompt."""
    samples: int
    tokens: float
    """Tokens of a sample on average, and the most."""
    most: int


@dataclass(frozen=True)
class MemoryPlan:
    """What a recipe samples and trains on, and the memory that this takes."""

    model: Architecture
    prompts: Prompts
    """The prompts of the problems."""
    trained: Prompts
    """The same with the task template."""
    solutions: Solutions
    questions: Mapping[tuple[int | None, int | None], Prompts]
    """The prompts of the benchmarks, together where their entries set the same samples and max_tokens (None: unset)."""
    machine: Machine
    written: Solutions | None = None
    """The dataset's own, where `annotated` trains on them."""
    answers: int = 0
    """Problems that have one."""

    def trained_solutions(self, recipe: Recipe) -> Solutions:
        """The full solutions that a recipe trains on."""
        return (self.written if recipe.method == "annotated" else None) or self.solutions

    def work(self, recipe: Recipe) -> tuple[Work, Work]:
        """The work on whole solutions, and on prefixes."""
        count, samples, kind = self.prompts.count, recipe.generate.samples, row_kind(recipe, structure=True)
        whole = count if kind == "full" else round(recipe.prefix.structure_ratio * count)
        prefixes = count - whole if recipe.method == "upft" else 0
        asked, each, begun = (count, samples, 0) if recipe.samples_full else (whole, 1, prefixes)
        if _rates(recipe):  # without those in `further`; rules that rate prefixes sample them for structure rows, too
            known = self._known(recipe)
            asked = max(0, whole - known)
            begun = count - known - (0 if recipe.prefix.selection in SCORED else asked)
        solutions, length = self.trained_solutions(recipe), most_sampled(recipe, "prefix")
        most = min(most_sampled(recipe, "full"), solutions.longest)
        kept = min(recipe.generate.keep if recipe.method == "rft" else 1, each * solutions.finished)
        share = 1 - self.held(recipe) / count
        each = 0 if recipe.method == "annotated" else each  # its solutions are there
        rows = share * whole * kept, share * prefixes * (kept if recipe.samples_full else 1)
        begins, end = min(length, solutions.mean), most_supervised(recipe.prefix)  # a short solution is all prefix
        room = [max(0.0, recipe.train.max_length - prompts.mean) for prompts in (self.prompts, self.trained)]
        trained = min(room[0], solutions.ended + 1), min(room[1], begins + end - length)
        longest = [tokens + 1 for tokens in solutions.trained]
        return (
            Work(kind, asked, each, solutions.mean, most, rows[0], self.prompts, trained[0], longest),
            Work("prefix", begun, samples, begins, length, rows[1], self.trained, trained[1], [end]),
        )

    def held(self, recipe: Recipe) -> int:
        """Problems that are held out for validation."""
        return len(valid_numbers(range(self.prompts.count), recipe.train.valid_ratio, recipe.seed))

    def further(self, recipe: Recipe) -> Iterator[Further]:
        """What a rule that rates prefixes, or learns from a few answers, samples besides `work`.

        Left out: the stage choose also continues the few greedy prefixes that none of a problem's samples begins with.
        """
        mean, length, most = self.solutions.mean, most_sampled(recipe, "prefix"), most_sampled(recipe, "full")
        if known := self._known(recipe):
            yield Further("answers", known, 0, recipe.forecast.samples + 1, mean, most)  # one is greedy
        if _rates(recipe) and recipe.prefix.selection == "rollouts":
            prefixes = self.work(recipe)[1]
            left = max(0.0, mean - length), max(1, most - length)
            yield Further("generate", prefixes.problems * prefixes.samples, length, recipe.prefix.rollouts, *left)

    def _known(self, recipe: Recipe) -> int:
        """Problems whose answers are used (`dataset.prefix.labelled`)."""
        return min(self.answers, recipe.forecast.problems) if _rates(recipe) and recipe.uses_answers else 0

    def shared(self, recipe: Recipe) -> int:
        """Tokens that all rows begin with and that a pass runs through the model once.

        Each row has at least two more: the last one of its prompt, and one that it is trained on.
        """
        room = max(0, min(self.trained.shared, recipe.train.max_length - 2))
        return 0 if unshared_because(recipe.lora.dropout, recipe.train.grad_checkpoint) else room

    def peaks(self, recipe: Recipe) -> dict[str, float]:
        """Peak bytes of each stage that the recipe has."""
        return {stage: peak for stage in PLANNED if (peak := self.peak(stage, recipe))}

    def peak(self, stage: str, recipe: Recipe) -> float:
        """Peak bytes of a stage: of its largest chunk, of the step with the longest rows, or of fusing; else 0."""
        model, machine, lora, fuse = self.model, self.machine, recipe.lora, recipe.publish.fuse
        if stage == "fuse":
            sixteen, longest = fuse in ("auto", "bf16", "fp16"), self.prompts.longest[0]
            return 0.0 if fuse == "adapter" else fusing_peak(model, lora, machine, longest, all_float32=sixteen)
        adapter = {"generate": 0, "train": OPTIMIZER_COPIES, "evaluate": 1}[stage] * model.adapter_numbers(lora)
        peaks = [sampling_peak(model, one, machine, adapter) for one in self.loads(stage, recipe)]
        if stage == "train":
            checkpoint, passes = recipe.train.grad_checkpoint, set(self.passes(recipe))
            peaks += [training_peak(model, lora, one, machine, checkpoint=checkpoint) for one in passes]
        return max(peaks, default=0.0)

    def loads(self, stage: str, recipe: Recipe) -> Iterator[SamplingLoad]:
        """Chunks of what a stage samples: solutions, prefixes, their continuations, or answers to benchmarks."""
        batch, settings, asked = getattr(recipe, stage).batch_size, recipe.evaluate, self.prompts
        if stage == "train":  # starts of answers after training, with base's caches, and whole answers for accuracies
            start = looked_at(most_sampled(recipe, "prefix"))
            yield SamplingLoad(PROMPTS, 2 * PROMPTS, 1, asked.longest[0], asked.shared, start)
            if recipe.train.evaluate_every is not None:
                count, most = min(recipe.train.evaluate_limit or MOST, self.held(recipe)), most_sampled(recipe, "full")
                yield SamplingLoad(recipe.generate.batch_size, count, 1, asked.longest[0], asked.shared, most)
        elif stage == "generate":
            for part in self.work(recipe):
                is_prefix, samples = part.kind == "prefix", part.samples
                if part.problems and samples:
                    chunk = min(part.problems, generated_together("prefix" if is_prefix else "full", batch, samples))
                    yield SamplingLoad(batch, chunk, samples, asked.longest[0], asked.shared, part.most, is_prefix)
            for more in self.further(recipe):
                chunk = min(more.prompts, math.ceil(BATCHES * batch / more.samples))
                yield SamplingLoad(batch, chunk, more.samples, asked.longest[0] + more.begun, asked.shared, more.most)
        else:
            for (own, limit), asked in self.questions.items():
                samples, most = own or settings.samples, limit or settings.max_tokens
                chunk = min(asked.count, evaluated_together(asked.count, batch, samples))
                yield SamplingLoad(batch, chunk, samples, asked.longest[0], asked.shared, most)

    def passes(self, recipe: Recipe) -> Iterator[TrainingPass]:
        """The passes of the batch with the longest rows, and of a batch of the longest prefix rows.

        Prompts and solutions are taken to be long independently of each other.
        """
        settings, longest = recipe.train, []
        for part in self.work(recipe):
            mean, rows = part.prompts.mean, []
            for n in range(min(settings.batch_size, round(part.rows))):  # beyond the known ones, all are like the last
                prompt, tokens = (known[min(n, len(known) - 1)] for known in (part.prompts.longest, part.longest))
                length = round(mean + part.supervised + math.hypot(prompt - mean, tokens - part.supervised))
                length = min(settings.max_length, length)
                rows.append(Example("", list(range(length)), min(prompt, length - 1)))
            longest.append(rows)
        for batch in ([*longest[0], *longest[1]][: settings.batch_size], longest[1]):
            parts = split(batch, settings.micro_batch_size, self.shared(recipe)) if batch else []
            for one in parts:
                count, tokens = one.tokens.shape
                yield TrainingPass(count, tokens, one.shared.size, one.positions.size, len(parts) > 1)

    def settle(self, recipe: Recipe) -> Recipe:
        """The recipe with numbers instead of `auto`: the largest with which the stage fits, 1 where none does."""
        if recipe.train.batch_size == AUTO:  # changes what is trained, so it does not follow the memory
            share = recipe.prefix.structure_ratio if recipe.method == "structure_only" else 1
            rows = int(round(share * self.prompts.count) * (1 - recipe.train.valid_ratio))
            size = min(PAPER_BATCH, 1 << max(1, rows // MIN_STEPS).bit_length() - 1)
            recipe = changed(recipe, {"train.batch_size": size})
        for name in [name for name, value in sizes(recipe).items() if value == AUTO]:
            stage = name.partition(".")[0]
            tries = ({name: size} for size in _halves(recipe.train.batch_size if stage == "train" else MAX_DECODED))
            recipe = changed(recipe, self.first_fit(stage, recipe, tries, MARGIN)[0])
        return recipe

    def first_fit(
        self, stage: str, recipe: Recipe, tries: Iterable[Settings], share: float = 1
    ) -> tuple[Settings, float]:
        """The first change that makes a stage fit a share of the budget, else that of the lowest peak; and its peak."""
        found: list[tuple[Settings, float]] = []
        for fields in tries:
            found.append((fields, self.peak(stage, changed(recipe, fields))))
            if found[-1][1] <= share * self.machine.bytes:
                break
        return min(found, key=itemgetter(1))

    def too_large(self, recipe: Recipe, stages: Collection[str] = PLANNED) -> list[tuple[str, bool]]:
        """For each of the stages that does not fit: a message with the first usual remedy that would, and whether none
        brings it below one and a half times the machine's memory.
        """
        found = []
        for stage, peak in self.peaks(recipe).items():
            if peak <= self.machine.bytes or stage not in stages:
                continue
            fields, less = self.first_fit(stage, recipe, _smaller(stage, recipe))
            sets = " ".join(f"--set {name}={str(value).lower()}" for name, value in fields.items())
            advice = f"it would take {memory(less) if less else 'no memory'} with {sets}"
            if less > self.machine.bytes:
                advice = "no batch size, checkpointing or length fits: use a smaller or more quantized model"
                if stage == "evaluate" and any(most for _, most in self.questions):
                    advice += ", or lower the max_tokens in a benchmark's own entry"
            budget = f"{self.machine.what} is {memory(self.machine.bytes)}"
            line = f"{stage} needs about {memory(peak)}, but {budget}; {advice}"
            found.append((line, less >= EXCESS * self.machine.whole))
        return found


def _rates(recipe: Recipe) -> bool:
    """Whether prefixes are rated, or a few answers used; SFT and RFT, which a plan compares with, have no rule."""
    return recipe.method == "upft" and is_rated(recipe)


def _smaller(stage: str, recipe: Recipe) -> Iterator[Settings]:
    """Changes that save ever more memory, the cheapest first; those of training change no step but the last ones."""
    if stage == "fuse":
        yield from ({"publish.fuse": way} for way in ("mixed", "base", "adapter"))
        return
    trains, settings = stage == "train", getattr(recipe, stage)
    size, length = ("micro_batch_size", "max_length") if trains else ("batch_size", "max_tokens")
    yield from ({f"{stage}.{size}": fewer} for fewer in _halves(settings.batch_size)[1:])
    asks = {"train.evaluate_limit": 1} if trains and settings.evaluate_every is not None else {}
    yield from ({name: fewer} for name in asks for fewer in _halves(settings.evaluate_limit or MOST)[1:])
    least = {f"{stage}.{size}": 1, **({"train.grad_checkpoint": True} if trains else {}), **asks}
    yield least
    yield from ({**least, f"{stage}.{length}": shorter} for shorter in _halves(getattr(settings, length))[1:4])


def sizes(recipe: Recipe) -> dict[str, int | None]:
    """The fields that may be `auto`, with their values."""
    return {name: attrgetter(name)(recipe) for name in SIZES}


def changed(recipe: Recipe, fields: Settings) -> Recipe:
    """The recipe with other values of some `section.field`, or of a field without a section."""
    for name, value in fields.items():
        section, _, last = name.partition(".")
        value = getattr(recipe, section).model_copy(update={last: value}) if last else value
        recipe = recipe.model_copy(update={section: value})
    return recipe


def _halves(size: int) -> list[int]:
    """The size, half of it, ... 1."""
    return [size >> power for power in range(size.bit_length())]
