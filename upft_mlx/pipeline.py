"""The stages of a recipe in order. `run` reads like a script; `Pipeline` knows what each stage depends on.

A stage's fingerprint covers the recipe fields, the model and the data it reads, and the fingerprint of the stage
before it: what changed makes that stage and those after it run again, what did not change is not repeated.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from upft_mlx import __version__
from upft_mlx.benchmarks import load_benchmark, resolve
from upft_mlx.build import build
from upft_mlx.errors import RunDirError
from upft_mlx.evaluate import Set, announce, evaluate_side, replay, summarize
from upft_mlx.events import Note, Observer, Side, StageDone, StageSkipped, StageStarted, ignore
from upft_mlx.generate import generate
from upft_mlx.models import Loaded, find_model, load, load_adapter, load_tokenizer, model_hash
from upft_mlx.prefix import wanted
from upft_mlx.problems import Problem, load_problems
from upft_mlx.recipe import Recipe
from upft_mlx.report import STAGES, collect, markdown
from upft_mlx.rows import EvaluationRow, read_rows, write_atomically, write_json
from upft_mlx.rundir import Entry, RunDir, changes, fingerprint, remove


def run(recipe: Recipe, run_dir: str | Path, notify: Observer = ignore) -> dict[str, Any]:
    """All stages: problems to a fused, measured model. Repeats nothing that is done, continues what was interrupted.

    Returns:
        The facts of the run, as in report.md.

    Raises:
        UpftError: one of its kinds; the run directory keeps what was done.
    """
    pipeline = Pipeline(recipe, run_dir, notify)
    with pipeline.opened():
        pipeline.generate()
        pipeline.build()
        pipeline.train()
        pipeline.evaluate()
        pipeline.fuse()
        return pipeline.report()


def run_stage(recipe: Recipe, run_dir: str | Path, stage: str, notify: Observer = ignore) -> dict[str, Any]:
    """One stage; the ones it depends on must be done.

    Raises:
        RunDirError: a stage before it is not done, or was done with another recipe.
        UpftError: one of its kinds.
    """
    pipeline = Pipeline(recipe, run_dir, notify)
    with pipeline.opened():
        pipeline.require(stage)
        getattr(pipeline, stage)()
        return pipeline.report()


@dataclass(frozen=True)
class Outcome:
    """What a stage gives the ledger."""

    detail: str
    tokens_sampled: int = 0
    tokens_trained: int = 0


class Pipeline:
    """The stages of one recipe in one run directory."""

    def __init__(self, recipe: Recipe, run_dir: str | Path, notify: Observer = ignore) -> None:
        """Find and read everything that the recipe names, so that what is wrong is refused before any work.

        Raises:
            UpftError: one of its kinds.
        """
        self.recipe, self.run, self.notify = recipe, RunDir(run_dir), notify
        entries = resolve(recipe.evaluate)
        self.model_path = find_model(recipe)
        self.problems = _load_problems(recipe)
        self.wanted = wanted(recipe, self.problems)
        self.sets = [Set(entry, load_benchmark(entry)) for entry in entries]

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The run directory, locked, with recipe.json in it."""
        with self.run.locked():
            write_json(self.run.recipe, self._description())
            yield

    def _description(self) -> dict[str, Any]:
        packages = ("mlx", "mlx-lm", "transformers", "datasets", "math-verify")
        versions = {name: metadata.version(name) for name in packages}
        return {
            **self.recipe.dump(),
            "versions": {"upft-mlx": __version__, "python": platform.python_version(), **versions},
            "hashes": {"model": self._model_hash, "problems": self._problems_hash},
        }

    @cached_property
    def _model_hash(self) -> str:
        return model_hash(self.model_path)

    @cached_property
    def _problems_hash(self) -> str:
        return _hash(self.problems)

    # What each stage depends on.

    def _inputs(self, stage: str) -> dict[str, Any]:
        return {
            "generate": self._generate_inputs,
            "build": self._build_inputs,
            "train": self._train_inputs,
            "evaluate": self._evaluate_inputs,
            "fuse": self._fuse_inputs,
        }[stage]()

    def _base_inputs(self) -> dict[str, Any]:
        """What every completion of the base model depends on."""
        dump = self.recipe.dump()
        return {"model": self._model_hash, **{k: dump[k] for k in ("quantize", "seed", "prompt")}}

    def _generate_inputs(self) -> dict[str, Any]:
        dump = self.recipe.dump()
        return {
            **self._base_inputs(),
            "problems": self._problems_hash,
            "method": dump["method"],
            "generate": _without(dump["generate"], "keep"),
            "prefix": {k: dump["prefix"][k] for k in ("length", "structure_ratio")},
        }

    def _build_inputs(self) -> dict[str, Any]:
        dump = self.recipe.dump()
        return {
            "generate stage": fingerprint(self._generate_inputs()),
            "prefix": dump["prefix"],
            "generate": {"keep": dump["generate"]["keep"]},
            "train": {"valid_ratio": dump["train"]["valid_ratio"]},
        }

    def _train_inputs(self) -> dict[str, Any]:
        dump = self.recipe.dump()
        return {
            "build stage": fingerprint(self._build_inputs()),
            "lora": dump["lora"],
            "train": _without(dump["train"], "valid_ratio"),
        }

    def _side_inputs(self, index: int, side: Side) -> dict[str, Any]:
        part = self.sets[index]
        inputs = {
            **self._base_inputs(),
            "benchmark": asdict(part.entry),
            "problems": _hash(part.problems),
            "evaluate": {"batch_size": self.recipe.evaluate.batch_size},
        }
        if side == "tuned":
            inputs["train stage"] = fingerprint(self._train_inputs())
        return inputs

    def _evaluate_inputs(self) -> dict[str, Any]:
        sides: tuple[Side, ...] = ("base", "tuned") if self.is_current("train") else ("base",)
        return {
            f"{part.entry.label} {side}": self._side_print(index, side)
            for index, part in enumerate(self.sets)
            for side in sides
        }

    def _fuse_inputs(self) -> dict[str, Any]:
        return {"train stage": fingerprint(self._train_inputs()), "publish": self.recipe.dump()["publish"]}

    def _outputs(self, stage: str) -> list[Path]:
        run = self.run
        return {
            "generate": [run.solutions],
            "build": [run.train, run.valid],
            "train": [run.adapter, run.metrics],
            "evaluate": [run.summary],
            "fuse": [run.fused, run.fidelity],
        }[stage]

    def is_current(self, stage: str) -> bool:
        """Whether a stage is done with the recipe, model and data as they are now."""
        done = self.run.is_current(stage, fingerprint(self._inputs(stage)))
        return done and all(path.exists() for path in self._outputs(stage))

    def require(self, stage: str) -> None:
        """Refuse a stage whose predecessors are not current.

        Raises:
            RunDirError: names the first one that is missing and the command for it.
        """
        needs = {
            "build": ("generate",),
            "train": ("generate", "build"),
            "fuse": ("generate", "build", "train"),
        }
        for before in needs.get(stage, ()):
            if not self.is_current(before):
                why = "was done with other settings" if self.run.entry(before) else "is not done"
                raise RunDirError(
                    f"{self.run.root}: {stage} needs the stage {before}, which {why}; run `upft {before}` first, "
                    "or `upft run` for all stages"
                )

    # The stages.

    def generate(self) -> None:
        """Problems to solutions.jsonl."""

        def work() -> Outcome:
            tokens = generate(self.recipe, self._load(), self.wanted, self.run, self.notify)
            full = sum(item.kind == "full" for item in self.wanted)
            detail = f"{len(self.wanted)} solutions ({full} full), {tokens} tokens"
            return Outcome(detail, tokens_sampled=tokens)

        self._stage("generate", f"{len(self.wanted)} solutions of {self.recipe.model}", work)

    def build(self) -> None:
        """solutions.jsonl to dataset/."""

        def work() -> Outcome:
            tokenizer = load_tokenizer(self.model_path, trust_remote_code=self.recipe.trust_remote_code)
            return Outcome(str(build(self.recipe, tokenizer, self.problems, self.run, self.notify)))

        self._stage("build", "the training rows", work)

    def train(self) -> None:
        """dataset/ to adapter/."""
        from upft_mlx.train import train

        def work() -> Outcome:
            position = train(self.recipe, self._load(), self.run, self.notify)
            kept = position.best_step if self._saves_best(position.best_loss) else position.step
            detail = f"{position.step} steps, {position.trained_tokens} supervised tokens, adapter of step {kept}"
            return Outcome(detail, tokens_trained=position.trained_tokens)

        self._stage("train", "a LoRA adapter", work)

    def _saves_best(self, best_loss: float | None) -> bool:
        return self.recipe.train.save == "best" and best_loss is not None

    def evaluate(self) -> None:
        """Base and, if there is an adapter, tuned on every benchmark; evaluation/summary.json."""

        def work() -> Outcome:
            announce(self.sets, self.notify)
            tokens = self._evaluate_sides()
            write_json(self.run.summary, summarize(self.sets, self.run))
            completions = sum(part.completions for part in self.sets)
            return Outcome(f"{completions} completions per side", tokens_sampled=tokens)

        if not self.sets:
            self.notify(StageSkipped("evaluate", "evaluate.benchmarks is empty"))
            return
        self._stage("evaluate", ", ".join(part.entry.label for part in self.sets), work)

    def _evaluate_sides(self) -> int:
        """All base sides, then all tuned sides on the same model with its adapter on.

        Returns:
            Tokens in the rows of all sides.
        """
        tuned = self.is_current("train")
        if not tuned:
            self.notify(Note("no current adapter: only the base model is evaluated"))
            for index in range(len(self.sets)):
                self._forget_stale_side(index, "tuned")
        loaded: Loaded | None = None
        sides: tuple[Side, ...] = ("base", "tuned") if tuned else ("base",)
        for side in sides:
            adapted = False
            for index in range(len(self.sets)):
                if self._side_is_current(index, side):
                    replay(self.sets[index], side, self.run, self.notify)
                    continue
                loaded = loaded or self._load()
                if side == "tuned" and not adapted:
                    load_adapter(loaded, self.run.adapter)
                    adapted = True
                self._evaluate_side(loaded, index, side)
        paths = [self.run.rows_of(part.entry.label, side) for part in self.sets for side in sides]
        return sum(_tokens(path) for path in paths)

    def _evaluate_side(self, loaded: Loaded, index: int, side: Side) -> None:
        name, current = self._side_name(index, side), self._side_print(index, side)
        self._forget_stale_side(index, side)
        self.run.record(name, Entry(current))
        evaluate_side(self.recipe, loaded, self.sets[index], side, self.run, self.notify)
        self.run.record(name, Entry(current, done=True))

    def _side_is_current(self, index: int, side: Side) -> bool:
        done = self.run.is_current(self._side_name(index, side), self._side_print(index, side))
        return done and self.run.rows_of(self.sets[index].entry.label, side).exists()

    def _side_name(self, index: int, side: Side) -> str:
        return f"evaluate/{self.sets[index].entry.label}/{side}"

    def _side_print(self, index: int, side: Side) -> str:
        return fingerprint(self._side_inputs(index, side))

    def _forget_stale_side(self, index: int, side: Side) -> None:
        """Rows of another model, recipe or adapter are not continued."""
        name = self._side_name(index, side)
        entry = self.run.entry(name)
        if entry is None or entry.fingerprint != self._side_print(index, side):
            remove(self.run.rows_of(self.sets[index].entry.label, side))
            self.run.record(name, None)

    def fuse(self) -> None:
        """adapter/ into fused/."""
        from upft_mlx.fuse import fuse

        def work() -> Outcome:
            kept = fuse(self.recipe, self._load(), self.run, self.notify)
            detail = f"{kept.fuse}, {kept.bytes / 1e6:.1f} MB, keeps {kept.retained:.1%} of the adapter's effect"
            return Outcome(detail)

        self._stage("fuse", "the adapter into the weights", work)

    def report(self) -> dict[str, Any]:
        """Write report.md and return what it says."""
        facts = collect(self.recipe, self.run)
        write_atomically(self.run.report, markdown(facts))
        return facts

    def _load(self) -> Loaded:
        return load(self.model_path, quantize=self.recipe.quantize, trust_remote_code=self.recipe.trust_remote_code)

    def _stage(self, stage: str, what: str, work: Callable[[], Outcome]) -> None:
        """Do a stage unless it is current; the ledger learns of it whatever happens."""
        inputs = self._inputs(stage)
        if self.is_current(stage):
            entry = self.run.entry(stage)
            self.notify(StageSkipped(stage, f"current: {entry.detail}" if entry else "current"))
            return
        entry = self._prepare(stage, inputs)
        self.notify(StageStarted(stage, what))
        import mlx.core as mx

        mx.clear_cache()
        mx.reset_peak_memory()
        start = time.perf_counter()
        outcome = None
        try:
            outcome = work()
        finally:
            seconds = time.perf_counter() - start
            peak = max(entry.peak_memory_bytes, mx.get_peak_memory())
            entry = replace(entry, seconds=entry.seconds + seconds, peak_memory_bytes=peak)
            if outcome is not None:
                entry = replace(entry, done=True, **asdict(outcome))
            self.run.record(stage, entry)
        self.notify(StageDone(stage, outcome.detail, seconds))

    def _prepare(self, stage: str, inputs: dict[str, Any]) -> Entry:
        """Keep what an interrupted stage has, remove what was made with other inputs, and say which."""
        current = fingerprint(inputs)
        entry = self.run.entry(stage)
        if entry is not None and entry.fingerprint == current and not entry.done:
            self.notify(Note(f"{stage}: continues"))
            return entry
        if entry is not None and entry.fingerprint != current:
            self.notify(Note(f"{stage}: runs again, changed: {', '.join(changes(entry.inputs, inputs))}"))
        remove(*self._outputs(stage))
        fresh = Entry(current, inputs=inputs)
        self.run.record(stage, fresh)
        return fresh


def _load_problems(recipe: Recipe) -> list[Problem]:
    section = recipe.problems
    builtin = "train" if section.builtin else None
    seed = recipe.seed if section.shuffle else None
    return load_problems(section, builtin=builtin, limit=section.limit, shuffle=seed)


def _hash(problems: list[Problem]) -> str:
    return fingerprint({"problems": [[p.id, p.question, p.answer] for p in problems]})


def _without(section: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in section.items() if name not in names}


def _tokens(path: Path) -> int:
    return sum(row.tokens for row in read_rows(path, EvaluationRow))


__all__ = ["STAGES", "Pipeline", "run", "run_stage"]
