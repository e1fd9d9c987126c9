"""Estimate what a recipe will cost: tokens, memory, disk and time, before anything is loaded.

Shapes come from config.json and the headers of the weights, lengths from the data. Only the time, and the length of
full solutions, need a calibration (`speed.py`), which loads the model once.
"""

from __future__ import annotations

import math
from collections import defaultdict
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from upft_mlx.data.benchmarks import QUESTION
from upft_mlx.dataset.instruction import differing, user_turn
from upft_mlx.dataset.prefix import beyond_solutions
from upft_mlx.errors import RecipeError
from upft_mlx.job import Job
from upft_mlx.models.architecture import STATE_SPACE, read_architecture
from upft_mlx.models.chat import Renderer
from upft_mlx.planning.budget import MemoryPlan, changed, sizes
from upft_mlx.planning.lengths import Prompts, Solutions, measure_prompts, measure_solutions
from upft_mlx.planning.memory import OPTIMIZER_COPIES, Machine
from upft_mlx.planning.speed import Speed
from upft_mlx.recipe.cells import recipe_for_cell
from upft_mlx.recipe.schema import Recipe
from upft_mlx.recipe.studies import BEST_OF_PREFIX
from upft_mlx.results.economy import KEEP, SAMPLES, Cost
from upft_mlx.results.plan import Plan, PlannedMemory, PlannedTokens, PromptTokens, SolutionTokens
from upft_mlx.rundir import RunDir
from upft_mlx.training.batches import MOST_VALIDATED, steps_per_epoch, total_steps
from upft_mlx.training.development import MOST
from upft_mlx.training.row_loss import FIXED, MEASURED, measured_again

_FUSE_ROWS = 128
"""Trained rows that take about as long as fusing: 64 rows pass once, and some are measured in each format."""
_FORWARD = 1 / 3
"""Cost of a token that is only run forward, as a share of a trained one: the backward pass takes about twice that."""
_ROW_BYTES = 12
"""Bytes of a token in a JSONL row, about: its id and its text."""


def memory_plan(job: Job, machine: Machine, run: RunDir | None = None, speed: Speed | None = None) -> MemoryPlan:
    """What a job samples and trains on; how long solutions are is known from `run` or from a calibration."""
    recipe, problems = job.recipe, job.problems
    model = read_architecture(job.model_path, recipe.quantize)
    tokenizer = job.tokenizer()
    renderer = Renderer(tokenizer, recipe.prompt)
    solutions = measure_solutions(recipe, problems, tokenizer, run, speed.solutions if speed else None)

    def prompts(behind: str) -> Prompts:
        return measure_prompts(len(problems), lambda n: renderer.turn(problems[n].question + behind), renderer.ids)

    turns = defaultdict[tuple[int | None, int | None], list[str]](list)
    for own, part in zip(recipe.evaluate.benchmarks, job.sets, strict=True):
        turn = user_turn(part.entry, recipe.prompt)
        turns[own.samples, own.max_tokens] += [turn.replace(QUESTION, problem.question) for problem in part.problems]
    questions = {own: measure_prompts(len(asked), asked.__getitem__, renderer.ids) for own, asked in turns.items()}
    plain, written = prompts(""), None
    trained = prompts(recipe.prefix.template_text) if recipe.prefix.template_text else plain
    if "annotated" in (recipe.method, *recipe.compare.methods):
        encode = partial(tokenizer.encode, add_special_tokens=False)
        found = measure_prompts(len(problems), lambda n: str(problems[n].answer), encode)
        written = Solutions(found.mean, found.longest[0], found.longest, found.mean, 1.0, "the dataset's own solutions")
    answers = sum(problem.answer is not None for problem in problems)
    return MemoryPlan(model, plain, trained, solutions, questions, machine, written, answers)


@dataclass
class Estimate:
    """A job and the plan of its memory."""

    job: Job
    memory: MemoryPlan

    def steps(self, recipe: Recipe) -> tuple[int, float]:
        """Optimizer steps, and how often each row is trained on."""
        rows = max(1, round(sum(part.rows for part in self.memory.work(recipe))))
        steps = total_steps(recipe.train, rows)
        return steps, steps / steps_per_epoch(rows, recipe.train.batch_size)

    def tokens(self) -> PlannedTokens:
        """The tokens of this recipe, and of SFT and RFT with 16 samples on the same problems."""
        recipe, plan, solutions = self.job.recipe, self.memory, self.memory.solutions
        passes = self.steps(recipe)[1]

        def cost(how: str, fields: dict[str, Any]) -> Cost:
            work = plan.work(changed(recipe, fields))
            sampled = sum(part.problems * part.samples * part.tokens for part in work)
            sampled += sum(more.prompts * more.samples * more.tokens for more in plan.further(changed(recipe, fields)))
            return Cost(sampled, passes * sum(part.rows * part.supervised for part in work), how)

        right = ", all correct" if recipe.method == "rft" or recipe.prefix.selection == "label" else ""
        whole = plan.work(recipe)[0].problems or any(plan.further(recipe))
        this = cost(plan.trained_solutions(recipe).how + right if whole else "prefixes alone", {})
        kept = {"generate.samples": SAMPLES, "generate.keep": min(KEEP, recipe.generate.keep)}
        rft = cost(f"{solutions.how}, all correct", {"method": "rft", **kept})
        return PlannedTokens(this, cost(solutions.how, {"method": "sft", "generate.samples": 1}), rft)

    def disk(self) -> dict[str, float]:
        """Bytes that a run writes, and bytes to download first."""
        model, recipe, settings = self.memory.model, self.job.recipe, self.job.recipe.train
        tokens = self.tokens().this.tokens_sampled  # of solutions, answers, and rows with their prompts
        tokens += 2 * sum(part.completions for part in self.job.sets) * self.memory.solutions.mean
        copies = 2 if recipe.method == "annotated" else 1  # its solutions.jsonl holds what no model sampled
        for part in self.memory.work(recipe):
            rows = part.rows / (1 - self.memory.held(recipe) / len(self.job.problems))  # with those for validation
            tokens += rows * (part.prompts.mean + copies * part.supervised)
        checkpoints = min(settings.keep + 1, math.ceil(self.steps(recipe)[0] / settings.checkpoint_every))
        kept = 2 + OPTIMIZER_COPIES * checkpoints  # adapter/, the best, checkpoints and the next one
        eights = sum(replace(m, bits=8).bytes(2) - m.bytes(2) for m in model.adapted(recipe.lora) if m.bits)
        fused = {"adapter": 0.0, "base": model.weight_bytes(2), "mixed": model.weight_bytes(2) + eights}
        whole = model if recipe.quantize is None else read_architecture(self.job.model_path)  # it is quantized here
        return {
            "rows": _ROW_BYTES * tokens,
            "adapter and checkpoints": kept * 4 * model.adapter_numbers(recipe.lora),
            "fused model": fused.get(recipe.publish.fuse, 2.0 * model.parameters),  # `auto` may choose 16 bits
            "model to download": 0.0 if self.job.has_weights else whole.weight_bytes(whole.float_bytes),
        }

    def seconds(self, recipe: Recipe, speed: Speed) -> dict[str, float]:
        """Seconds of the stages that compute, loading included."""
        work, settings, rate = self.memory.work(recipe), recipe.train, speed.tokens_per_second
        (steps, passes), held = self.steps(recipe), self.memory.held(recipe)
        answer, shared = self.memory.solutions.mean / rate, self.memory.shared(recipe)
        tokens = sum(part.rows * (part.prompts.mean - shared + part.supervised) for part in work)
        rows, each = max(1.0, sum(part.rows for part in work)), (answer, speed.seconds_per_prefix)
        row = speed.seconds_per_trained_token * tokens / rows
        # Rows that only run forward: for what base thinks, some of them again while training, and for each validation.
        known, fixed = (sum(min(most[part.kind], part.rows) for part in work) for most in (MEASURED, FIXED))
        forward = min(MOST_VALIDATED, rows * held / (len(self.job.problems) - held))
        forward *= 1 + len(range(settings.validate_every, steps, settings.validate_every))
        forward += known + fixed * len(measured_again(settings, steps, round(fixed), held > 0))
        every, asked = settings.evaluate_every, min(settings.evaluate_limit or MOST, held)
        answered = 0 if every is None else (2 + len(range(every, steps, every))) * asked  # while training
        made = {"answers": 0.0, "generate": sum(of.problems * of.samples * s for of, s in zip(work, each, strict=True))}
        for more in self.memory.further(recipe):
            made[more.stage] += more.prompts * more.samples * more.tokens / rate
        found = {
            **made,
            "train": (passes * rows + _FORWARD * forward) * row + answered * answer,
            "evaluate": sum(2 * part.completions * min(answer, part.entry.max_tokens / rate) for part in self.job.sets),
            "fuse": 0.0 if recipe.publish.fuse == "adapter" else _FUSE_ROWS * row,
        }
        return {stage: speed.load_seconds + seconds for stage, seconds in found.items() if seconds}

    def other_seconds(self, speed: Speed) -> dict[str, float]:
        """Seconds of `upft export` and `upft compare`, which are no part of a run; of what refuses the recipe, none."""
        recipe, settings, export = self.job.recipe, self.job.recipe.compare, {"export": 2 * speed.load_seconds}
        try:
            cells = {method: recipe_for_cell(recipe, method, recipe.seed) for method in settings.methods}
        except RecipeError:  # a method that the recipe's other fields rule out
            return export
        found = {method: self.seconds(cell, speed) for method, cell in cells.items()}
        job, made = copy(self.job), dict[str, float]()
        for method in (name for name in found if not name.startswith(BEST_OF_PREFIX)):  # it trains nothing
            job.use(cells[method])  # what has the same inputs is made once
            own = (item for item in found[method].items() if item[0] in ("answers", "generate", "train"))
            made.update((job.fingerprint(stage), took) for stage, took in own)
        each = sum(made.values()) + sum(took.get("evaluate", 0.0) / 2 for took in found.values())
        greedy = all(part.entry.temperature == 0 for part in self.job.sets)  # then base answers once for all seeds
        base = self.seconds(recipe, speed).get("evaluate", 0.0) / 2 * (1 if greedy else settings.seeds)
        return {**export, "compare": settings.seeds * each + base}

    def plan(self, speed: Speed | None) -> Plan:
        """What the recipe will cost; in time only where this machine's speed is known."""
        recipe, memory = self.job.recipe, self.memory
        solutions = memory.trained_solutions(recipe)
        return Plan(
            recipe=recipe.name,
            model=recipe.model,
            parameters=memory.model.parameters,
            model_is_here=self.job.has_weights,
            problems=len(self.job.problems),
            steps=self.steps(recipe)[0],
            settings=sizes(recipe),
            prompt_tokens=PromptTokens(memory.prompts.mean, memory.prompts.longest[0]),
            solution_tokens=SolutionTokens(solutions.mean, solutions.how),
            tokens=self.tokens(),
            memory=PlannedMemory(
                budget_bytes=memory.machine.bytes,
                budget=memory.machine.what,
                peak_bytes={stage: round(peak) for stage, peak in memory.peaks(recipe).items()},
                too_large=[line for line, _ in memory.too_large(recipe)],
                not_measured_for=[kind for kind in memory.model.unusual if kind == STATE_SPACE],
            ),
            disk_bytes={name: round(size) for name, size in self.disk().items()},
            seconds=self.seconds(recipe, speed) if speed else None,
            other_seconds=self.other_seconds(speed) if speed else None,
            notes=[note for note in (beyond_solutions(recipe),) if note],
            prompts_differ=differing([part.entry for part in self.job.sets], recipe.prompt),
        )
