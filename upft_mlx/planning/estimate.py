"""Estimate what a recipe will cost: tokens, memory, disk and time, before anything is loaded.

Shapes come from config.json and the headers of the weights, lengths from the data. Only the time, and the length of
full solutions, need a calibration (`speed.py`), which loads the model once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from upft_mlx.data.benchmarks import QUESTION, BenchmarkSet, load_benchmark, resolve
from upft_mlx.data.problems import Problem
from upft_mlx.dataset.instruction import differing, instructed, user_turn
from upft_mlx.dataset.prefix import (
    beyond_solutions,
    check_problems,
    labelled,
    most_sampled,
    most_supervised,
    valid_numbers,
)
from upft_mlx.models.adapter_files import started
from upft_mlx.models.architecture import Architecture, read_architecture
from upft_mlx.models.chat import Renderer
from upft_mlx.models.find import find_model
from upft_mlx.models.load import load_tokenizer
from upft_mlx.planning.budget import SIZES, Budget, MemoryPlan, field, this_machine
from upft_mlx.planning.lengths import Solutions, measure_prompts, measure_solutions
from upft_mlx.planning.speed import Speed
from upft_mlx.recipe.schema import Recipe
from upft_mlx.results.economy import KEEP, SAMPLES, Cost
from upft_mlx.results.plan import Plan, PlannedMemory, PlannedTokens, PromptTokens, SolutionTokens
from upft_mlx.rundir import RunDir
from upft_mlx.training.batches import total_steps, unshared_because
from upft_mlx.training.development import MOST, check_development
from upft_mlx.training.moved import OPENING, PROMPTS, looked_at
from upft_mlx.training.row_loss import FIXED, MEASURED, is_reported

_FUSE_ROWS = 128
"""Trained rows that take about as long as fusing: 64 rows pass once, and some are measured in each format."""
_FORWARD = 1 / 3
"""Cost of a token that is only run forward, as a share of a trained one: the backward pass takes about twice that."""
_ROW_BYTES = 12
"""Bytes of a token in a JSONL row, about: its id and its text."""
_CHECKPOINT_COPIES = 3
"""Copies of the adapter in a checkpoint: itself and AdamW's moments."""


@dataclass
class Estimate:
    """A recipe with its data, its model's shapes and the machine; `recipe` has numbers instead of `auto`."""

    recipe: Recipe
    model_path: Path
    problems: Sequence[Problem]
    sets: Sequence[BenchmarkSet]
    budget: Budget
    run: RunDir | None = None
    speed: Speed | None = None

    @classmethod
    def of(
        cls, recipe: Recipe, problems: Sequence[Problem], budget: Budget | None = None, run: RunDir | None = None
    ) -> Estimate:
        """Find what a plan needs; the model's weights need not be on this machine.

        Raises:
            UpftError: one of its kinds, as a run would raise it.
        """
        check_problems(recipe, problems)
        path = find_model(recipe, weights=False)
        recipe = instructed(started(recipe, path), path, problems)
        sets = [BenchmarkSet(entry, load_benchmark(entry, recipe.seed)) for entry in resolve(recipe.evaluate)]
        check_development(recipe, problems, sets)
        return cls(recipe, path, problems, sets, budget or this_machine(), run).settled()

    def settled(self) -> Estimate:
        """The same with numbers instead of `auto`."""
        self.recipe = self.memory_plan.settle(self.recipe)
        return self

    def with_speed(self, speed: Speed) -> Estimate:
        """The same with the speed of this machine and the length of full solutions."""
        return Estimate(self.recipe, self.model_path, self.problems, self.sets, self.budget, self.run, speed)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's."""
        return load_tokenizer(self.model_path, trust_remote_code=self.recipe.trust_remote_code)

    @cached_property
    def model(self) -> Architecture:
        """The model's shapes."""
        return read_architecture(self.model_path, self.recipe.quantize)

    @cached_property
    def solutions(self) -> Solutions:
        """The lengths of full solutions."""
        sampled = self.speed.solutions if self.speed else None
        return measure_solutions(self.recipe, self.problems, self.tokenizer, self.run, sampled)

    @cached_property
    def memory_plan(self) -> MemoryPlan:
        """Everything that memory depends on."""
        renderer = Renderer(self.tokenizer, self.recipe.prompt)
        count, template = len(self.problems), self.recipe.prefix.template_text
        plain = measure_prompts(count, lambda n: renderer.turn(self.problems[n].question), renderer)
        trained = measure_prompts(count, lambda n: renderer.turn(self.problems[n].question + template), renderer)
        turns = []  # of all benchmarks together
        for part in self.sets:
            turn = user_turn(part.entry, self.recipe.prompt)
            turns += [turn.replace(QUESTION, problem.question) for problem in part.problems]
        asked = measure_prompts(len(turns), turns.__getitem__, renderer) if turns else None
        return MemoryPlan(self.model, plain, trained, self.solutions, asked, self.budget)

    # Tokens.

    @property
    def counts(self) -> ExpectedCounts:
        """Solutions to sample and rows to train."""
        return count(self.recipe, len(self.problems), self.memory_plan, self.solutions)

    def tokens(self) -> PlannedTokens:
        """The tokens of this recipe, and of SFT and RFT with 16 samples on the same problems."""
        mine, many = self.counts, len(self.problems)
        sampled = mine.prefixes * most_sampled(self.recipe, "prefix") + mine.full * self.solutions.mean
        if self.recipe.uses_answers:  # of each problem whose answer is used, those samples and the greedy solution
            known = len(labelled(self.recipe, self.problems))
            sampled += known * (self.recipe.forecast.samples + 1) * self.solutions.mean
        assumed = self.solutions.how if mine.full else "prefixes alone"
        held = len(valid_numbers(range(many), self.recipe.train.valid_ratio, self.recipe.seed))  # do not train
        each = self._passes * (many - held) * (self.solutions.mean + 1)
        kept = min(KEEP, self.recipe.generate.keep)
        return PlannedTokens(
            this=Cost(sampled, mine.trained_tokens * self._passes, assumed),
            sft=Cost(many * self.solutions.mean, each * self.solutions.finished, self.solutions.how),
            rft=Cost(SAMPLES * many * self.solutions.mean, each * kept, f"{self.solutions.how}, all correct"),
        )

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return total_steps(self.recipe.train, max(1, round(self.counts.rows)))

    @property
    def _passes(self) -> float:
        """How often each row is trained on."""
        settings = self.recipe.train
        if settings.steps is None:
            return settings.epochs or 1
        return settings.steps * settings.batch_size / max(1.0, self.counts.rows)

    @property
    def _trained_tokens(self) -> float:
        """Tokens of rows that a training runs through the model, those without a gradient by what they cost."""
        mine, settings = self.counts, self.recipe.train
        held = len(valid_numbers(range(len(self.problems)), settings.valid_ratio, self.recipe.seed))
        reports = sum(is_reported(settings, step, held > 0) for step in range(1, self.steps)) + 1
        validations = len(range(settings.validate_every, self.steps, settings.validate_every)) + 1
        measured, fixed = (sum(min(most[kind], n) for kind, n in mine.kinds.items()) for most in (MEASURED, FIXED))
        looks = measured + reports * fixed + validations * held
        return self._passes * mine.row_tokens + _FORWARD * looks * mine.row_tokens / max(1.0, mine.rows)

    @property
    def _development_tokens(self) -> float:
        """Tokens of answers to validation problems while training."""
        settings, count = self.recipe.train, len(self.problems)
        if settings.evaluate_every is None:
            return 0.0
        held = len(valid_numbers(range(count), settings.valid_ratio, self.recipe.seed))
        times = len(range(settings.evaluate_every, self.steps, settings.evaluate_every)) + 2  # before and at the end
        return times * min(settings.evaluate_limit or MOST, held) * self.solutions.mean

    # Disk.

    def disk(self) -> dict[str, float]:
        """Bytes that a run writes, and bytes to download first."""
        adapter = 4 * self.model.adapter_numbers(self.recipe.lora)
        tokens = self.tokens().this
        kept = 2 + _CHECKPOINT_COPIES * (self.recipe.train.keep + 1)  # adapter/, the best, checkpoints and the next one
        answers = 2 * sum(part.completions for part in self.sets) * self.solutions.mean
        fuse, fused = self.recipe.publish.fuse, 0.0
        if fuse in ("auto", "bf16", "fp16"):  # the most that `auto` may choose
            fused = 2.0 * self.model.parameters
        elif fuse != "adapter":
            fused = 1.5 * self.model.weight_bytes(2)
        return {
            "rows": _ROW_BYTES * (tokens.tokens_sampled + 2 * tokens.tokens_trained / self._passes + answers),
            "adapter and checkpoints": kept * adapter,
            "fused model": fused,
            "model to download": 0.0 if self.is_here else self.model.weight_bytes(self.model.float_bytes),
        }

    @property
    def is_here(self) -> bool:
        """Whether the weights are on this machine."""
        return any(self.model_path.glob("model*.safetensors"))

    # Time.

    def seconds(self) -> dict[str, float] | None:
        """Seconds of the stages that compute; None without a calibration."""
        if self.speed is None:
            return None
        speed, mine = self.speed, self.counts
        full = mine.full * self.solutions.mean / speed.tokens_per_second
        # How far the model moved: a step of few prompts takes at most as long as one of a full batch.
        decoded = looked_at(most_sampled(self.recipe, "prefix")) + OPENING
        moved = decoded * max(PROMPTS, self.recipe.generate.batch_size) / speed.tokens_per_second
        found = {
            "generate": speed.load_seconds + full + mine.prefixes * speed.seconds_per_prefix,
            "train": speed.load_seconds
            + self._trained_tokens * speed.seconds_per_trained_token
            + self._development_tokens / speed.tokens_per_second
            + moved,
        }
        if self.sets:
            answers = 2 * sum(part.completions * min(self.solutions.mean, part.entry.max_tokens) for part in self.sets)
            found["evaluate"] = speed.load_seconds + answers / speed.tokens_per_second
        if self.recipe.publish.fuse != "adapter":
            row = mine.row_tokens / max(1.0, mine.rows)
            found["fuse"] = speed.load_seconds + _FUSE_ROWS * row * speed.seconds_per_trained_token
        return found

    def other_seconds(self) -> dict[str, float] | None:
        """Seconds of `upft export` and `upft compare`, which are no part of a run; None without a calibration."""
        if self.speed is None:
            return None
        speed, compare, many = self.speed, self.recipe.compare, len(self.problems)
        full = many * self.solutions.mean / speed.tokens_per_second
        row = self.counts.row_tokens / max(1.0, self.counts.rows)
        step = self._passes * many * speed.seconds_per_trained_token
        answers = sum(part.completions * min(self.solutions.mean, part.entry.max_tokens) for part in self.sets)
        answer = answers / speed.tokens_per_second
        chooses = any(method == "rft" or ":" in method for method in compare.methods)
        sampled = (
            full * (compare.samples if chooses else 1) + many * speed.seconds_per_prefix
        )  # methods share solutions
        whole = (row + self.solutions.mean) * step
        trained = sum(whole if method.partition(":")[0] in ("sft", "rft") else row * step for method in compare.methods)
        each = sampled + trained + len(compare.methods) * (answer + 2 * speed.load_seconds)
        return {"export": 2 * speed.load_seconds, "compare": answer + compare.seeds * each}

    # All of it.

    def plan(self) -> Plan:
        """What the recipe will cost."""
        peaks = self.memory_plan.peaks(self.recipe)
        return Plan(
            recipe=self.recipe.name,
            model=self.recipe.model,
            parameters=self.model.parameters,
            model_is_here=self.is_here,
            problems=len(self.problems),
            steps=self.steps,
            settings={name: field(self.recipe, name) for name in SIZES},
            prompt_tokens=PromptTokens(self.memory_plan.prompts.mean, self.memory_plan.prompts.longest[0]),
            solution_tokens=SolutionTokens(self.solutions.mean, self.solutions.how),
            tokens=self.tokens(),
            memory=PlannedMemory(
                budget_bytes=self.budget.bytes,
                budget=self.budget.what,
                peak_bytes={stage: round(peak) for stage, peak in peaks.items()},
                too_large=[*self.memory_plan.too_large(self.recipe).values()],
                not_measured_for=self.model.unmeasured,
            ),
            disk_bytes={name: round(size) for name, size in self.disk().items()},
            seconds=self.seconds(),
            other_seconds=self.other_seconds(),
            notes=[note for note in (beyond_solutions(self.recipe),) if note],
            prompts_differ=differing([part.entry for part in self.sets], self.recipe.prompt),
        )


@dataclass(frozen=True)
class ExpectedCounts:
    """Expected numbers; they can be fractions because they include shares of problems."""

    prefixes: float
    """Prefixes to sample."""
    full: float
    """Full solutions to sample."""
    kinds: dict[str, float]
    """Rows to train on in an epoch, by kind."""
    trained_tokens: float
    """Supervised tokens in an epoch."""
    row_tokens: float
    """Tokens of the rows in an epoch, without the shared ones."""

    @property
    def rows(self) -> float:
        """Rows to train on in an epoch."""
        return sum(self.kinds.values())


def count(recipe: Recipe, problems: int, memory: MemoryPlan, solutions: Solutions) -> ExpectedCounts:
    """What a recipe samples and trains on, for this number of problems."""
    full, prefix = memory.kinds(recipe)
    samples = recipe.generate.samples
    held = len(valid_numbers(range(problems), recipe.train.valid_ratio, recipe.seed)) / problems
    prefix_rows, full_rows = float(prefix), full * solutions.finished
    if recipe.method == "upft" and recipe.samples_full:
        prefix_rows, full_rows = full * (1 - recipe.prefix.structure_ratio), full * recipe.prefix.structure_ratio
    if recipe.method == "rft":
        full_rows = full * min(recipe.generate.keep, samples) * solutions.finished
    prefix_rows, full_rows = prefix_rows * (1 - held), full_rows * (1 - held)
    t = most_supervised(recipe.prefix)
    shared = 0 if unshared_because(recipe.lora.dropout, recipe.train.grad_checkpoint) else memory.trained.shared
    asked, trained = memory.prompts.mean - shared, memory.trained.mean - shared
    return ExpectedCounts(
        prefixes=prefix * samples,
        full=full * (samples if recipe.samples_full else 1),
        kinds={"prefix": prefix_rows, "structure" if recipe.method == "upft" else "full": full_rows},
        trained_tokens=prefix_rows * t + full_rows * (solutions.mean + 1),
        row_tokens=prefix_rows * (trained + t) + full_rows * (asked + solutions.mean + 1),
    )
