"""The stages of a recipe in order. `run` reads like a script; `Pipeline` knows what each stage depends on.

Called `pipeline`, not `run`, because `upft_mlx.run` is the public function.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from upft_mlx import __version__, blas
from upft_mlx.benchmarks import Set, load_benchmark, resolve
from upft_mlx.card import base_of, model_card
from upft_mlx.device import PowerWatch, awake, limit_memory
from upft_mlx.economy import economy
from upft_mlx.errors import ModelError, RunDirError
from upft_mlx.events import Note, Observer, Side, StageDone, StageSkipped, StageStarted, ignore
from upft_mlx.inputs import Inputs, dated
from upft_mlx.instruction import differing, instructed
from upft_mlx.models import Loaded, find_model, load, load_tokenizer
from upft_mlx.parallel import ranks
from upft_mlx.planner import Planner
from upft_mlx.prefix import check_problems, wanted
from upft_mlx.recipe import Recipe
from upft_mlx.report import STAGES, collect, markdown
from upft_mlx.rooms import has_auto, this_machine
from upft_mlx.row_loss import cut_solutions
from upft_mlx.rows import Solution, read_json, read_rows, write_atomically, write_json
from upft_mlx.rundir import Entry, RunDir, changes, fingerprint, remove
from upft_mlx.sides import Sides, side_name
from upft_mlx.spool import problems_of
from upft_mlx.stage_build import build
from upft_mlx.stage_evaluate import announce
from upft_mlx.stage_generate import generate
from upft_mlx.summary import summarize

_PLANNED = ("generate", "train", "evaluate", "fuse")
"""Stages whose memory can be planned."""


def run(recipe: Recipe, run_dir: str | Path, notify: Observer = ignore) -> dict[str, Any]:
    """All stages: problems to a fused, measured model. Repeats nothing that is done, continues what was interrupted.

    Returns:
        The facts of the run, as in report.md.

    Raises:
        UpftError: one of its kinds; the run directory keeps what was done.
    """
    pipeline = Pipeline(recipe, run_dir, notify)
    with pipeline.opened():
        pipeline.check_memory("generate", "train", "evaluate", "fuse")
        pipeline.describe()
        pipeline.generate()
        pipeline.build()
        pipeline.train()
        pipeline.evaluate()
        pipeline.report()  # what was measured stands, whatever fusing refuses
        pipeline.fuse()
        return pipeline.report()


def run_stage(
    recipe: Recipe,
    run_dir: str | Path,
    stage: str,
    notify: Observer = ignore,
    adapter: Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """One stage; the ones it depends on must be done.

    `adapter` is one to evaluate instead of the run's own, `options` are those of the stage's method.

    Raises:
        RunDirError: a stage before it is not done, or was done with another recipe.
        UpftError: one of its kinds.
    """
    pipeline = Pipeline(recipe, run_dir, notify, adapter)
    with pipeline.opened():
        pipeline.require(stage)
        pipeline.check_memory(stage)
        pipeline.describe()
        getattr(pipeline, stage)(**options)
        return pipeline.report()


def run_analysis(recipe: Recipe, run_dir: str | Path, notify: Observer = ignore) -> dict[str, Any]:
    """The prefix statistics of the recipe's model and problems.

    Returns:
        The content of analysis/analysis.json.

    Raises:
        UpftError: one of its kinds; what was sampled is kept.
    """
    pipeline = Pipeline(recipe, run_dir, notify)
    with pipeline.opened():
        pipeline.analyze()
    found: dict[str, Any] = read_json(pipeline.run.analysis / "analysis.json")
    return found


@dataclass(frozen=True)
class Outcome:
    """What a stage gives the ledger."""

    detail: str
    tokens_sampled: int = 0
    tokens_trained: int = 0
    tokens_processed: int = 0
    """By this process."""


class Pipeline:
    """The stages of one recipe in one run directory."""

    def __init__(
        self, recipe: Recipe, run_dir: str | Path, notify: Observer = ignore, adapter: Path | None = None
    ) -> None:
        """Find and read everything that the recipe names, so that what is wrong is refused before any work.

        Args:
            recipe: the recipe.
            run_dir: where the run is kept.
            notify: who watches.
            adapter: the folder of an adapter to evaluate instead of the run's own.

        Raises:
            UpftError: one of its kinds.
        """
        self.run, self.adapter = RunDir(ranks().workplace(Path(run_dir))), adapter
        self.notify = notify if ranks().leads else ignore
        self.power = PowerWatch(self.notify)
        resolve(recipe.evaluate)  # names that are wrong are refused before anything is read
        self.model_path = find_model(recipe)
        self.problems = problems_of(recipe)
        check_problems(recipe, self.problems)
        recipe = instructed(dated(recipe, self.model_path, self.run), self.model_path, self.problems)
        self.sets = [Set(entry, load_benchmark(entry, recipe.seed)) for entry in resolve(recipe.evaluate)]
        self.recipe = self._settled(recipe)
        self.inputs = Inputs(self.recipe, self.model_path, self.problems, self.sets, adapter)

    def _settled(self, recipe: Recipe) -> Recipe:
        """With numbers in place of `auto`: the same on every call, whatever the run has done already."""
        if not has_auto(recipe):
            return recipe
        return Planner(recipe, self.model_path, self.problems, self.sets, this_machine()).settled().recipe

    def check_memory(self, *stages: str) -> None:
        """Refuse stages that are still to be done and cannot fit into this machine's memory.

        Raises:
            RoomError: what is needed, what there is, and what would fit.
        """
        due = tuple(stage for stage in stages if stage in _PLANNED and not self.is_current(stage))
        if not due:
            return
        planner = Planner(self.recipe, self.model_path, self.problems, self.sets, this_machine(), self.run)
        try:
            rooms = planner.rooms
        except ModelError as error:  # a kind of model that has no plan may run all the same
            self.notify(Note(f"memory is not planned: {error}"))
            return
        rooms.refuse_too_large(self.recipe, tuple(stage for stage in due if stage != "fuse"))
        peaks = rooms.peaks(self.recipe)
        for line in rooms.too_large(self.recipe, {stage: peaks[stage] for stage in due if stage in peaks}):
            self.notify(Note(f"memory may not be enough: {line}"))

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The run directory, locked, on a machine that stays awake and within its memory."""
        with _together(), self.run.locked(), awake(self.notify):
            if limits := limit_memory():
                self.notify(Note(limits))
            ranks().agree({**self.inputs.everything(), "versions": versions()})
            ranks().mirror(self.run.root)
            yield

    def describe(self) -> None:
        """Write recipe.json: the resolved recipe, versions, hashes of model and data."""
        known = {**versions(), "python": platform.python_version()}
        write_json(self.run.recipe, {**self.recipe.dump(), "versions": known, "hashes": self.inputs.hashes})

    def _inputs(self, stage: str) -> dict[str, Any]:
        if stage == "evaluate":
            return self.inputs.evaluate(self._sides())
        inputs: dict[str, Any] = getattr(self.inputs, stage)()
        return inputs

    def _sides(self) -> tuple[Side, ...]:
        """Tuned is measured where there is an adapter: one that was given, or the run's own, if it is current."""
        return ("base", "tuned") if self.adapter or self.is_current("train") else ("base",)

    def _outputs(self, stage: str) -> list[Path]:
        run = self.run
        return {
            "generate": [run.solutions],
            "build": [run.train, run.valid],
            "train": [run.adapter, run.metrics],
            "evaluate": [run.summary],
            "fuse": [run.fused, run.fidelity] if self._fuses else [run.fidelity],
            "analyze": [run.analysis],
        }[stage]

    @property
    def _fuses(self) -> bool:
        return self.recipe.publish.fuse != "adapter"

    def is_current(self, stage: str) -> bool:
        """Whether a stage is done with the recipe, model and data as they are now."""
        done = self.run.is_current(stage, fingerprint(self._inputs(stage)))
        return done and all(path.exists() for path in self._needed(stage))

    def _needed(self, stage: str) -> list[Path]:
        """The files that the stages after it read: a folder without them is not the stage's output."""
        run = self.run
        inside = {
            "train": [run.adapter / "adapters.safetensors", run.adapter / "adapter_config.json"],
            "analyze": [run.analysis / "analysis.json"],
        }
        if self._fuses:
            inside["fuse"] = [run.fused / "config.json", run.fused / "model.safetensors.index.json"]
        return [*self._outputs(stage), *inside.get(stage, [])]

    def require(self, stage: str) -> None:
        """Refuse a stage whose predecessors are not current.

        Raises:
            RunDirError: names the first one that is missing and the command for it.
        """
        needs = {
            "build": ("generate",),
            "train": ("generate", "build"),
            "fuse": ("generate", "build", "train"),
            "export": ("generate", "build", "train"),
            "push": ("generate", "build", "train", "fuse"),
        }
        for before in needs.get(stage, ()):
            if not self.is_current(before):
                entry = self.run.entry(before)
                why = "was done with other settings" if entry and entry.done else "is not done"
                raise RunDirError(
                    f"{self.run.root}: {stage} needs the stage {before}, which {why}; run `upft {before}` first, "
                    "or `upft run` for all stages"
                )

    # The stages.

    def generate(self) -> None:
        """Problems to solutions.jsonl."""

        def work() -> Outcome:
            made = generate(self.recipe, self._load(), self.problems, asked, self.run, self.notify)
            detail = f"{made.solutions:,} solutions ({made.full:,} full), {made.tokens_sampled:,} tokens"
            return Outcome(detail, tokens_sampled=made.tokens_sampled, tokens_processed=made.tokens_processed)

        asked = wanted(self.recipe, len(self.problems))
        solutions = sum(item.samples for item in asked)
        self._stage("generate", f"{solutions} solutions of {self.recipe.model}", work)

    def build(self) -> None:
        """solutions.jsonl to dataset/."""

        def work() -> Outcome:
            tokenizer = load_tokenizer(self.model_path, trust_remote_code=self.recipe.trust_remote_code)
            built = build(self.recipe, tokenizer, self.problems, self.run, self.notify)
            if (cut := cut_solutions(read_rows(self.run.solutions, Solution))).cut:
                self.notify(Note(str(cut)))
            return Outcome(str(built))

        self._stage("build", "the training rows", work)

    def train(self) -> None:
        """dataset/ to adapter/."""
        from upft_mlx.movement import measure
        from upft_mlx.stage_train import train

        def work() -> Outcome:
            loaded = self._load()
            position = train(self.recipe, loaded, self.run, self.notify)
            if ranks().leads:
                measure(self.recipe, loaded, self.problems, self.sets, self.run, self.notify)
            kept = position.best_step if self._saves_best(position.best_loss) else position.step
            detail = f"{position.step:,} steps, {position.trained_tokens:,} supervised tokens, "
            detail += f"{position.padding:.1%} padding, step {kept:,} kept"
            processed = position.processed_tokens
            return Outcome(detail, tokens_trained=position.trained_tokens, tokens_processed=processed)

        self._stage("train", "a LoRA adapter", work)

    def _saves_best(self, best_loss: float | None) -> bool:
        return self.recipe.train.save == "best" and best_loss is not None

    def evaluate(self) -> None:
        """Base and, if there is an adapter, tuned on every benchmark; evaluation/summary.json."""

        def work() -> Outcome:
            announce(self.sets, self.notify)
            for line in differing([part.entry for part in self.sets], self.recipe.prompt):
                self.notify(Note(line))
            sides = Sides(self.recipe, self.sets, self.inputs, self.run, self._load, self.notify)
            tokens = sides.measure(self._sides(), self.adapter or self.run.adapter)
            write_json(self.run.summary, summarize(self.sets, self.run))
            completions = sum(part.completions for part in self.sets)
            processed = sides.processed_tokens
            return Outcome(f"{completions} completions per side", tokens_sampled=tokens, tokens_processed=processed)

        if not self.sets:
            self.notify(StageSkipped("evaluate", "evaluate.benchmarks is empty"))
            return
        self._stage("evaluate", ", ".join(part.entry.label for part in self.sets), work)

    def fuse(self, *, force: bool = False) -> None:
        """adapter/ into fused/; `force`: even if too little is kept."""
        from upft_mlx.stage_fuse import fuse

        def work() -> Outcome:
            kept = fuse(self.recipe, self._load(), self.run, self.notify, questions=self.questions, force=force)
            detail = f"{kept.fuse}, {kept.bytes / 1e6:.1f} MB, keeps {kept.retained:.1%} of the adapter's effect"
            return Outcome(detail)

        if ranks().leads:  # there is nothing in it to share
            self._stage("fuse", "the adapter into the weights", work)

    def analyze(self) -> None:
        """Prefix statistics of the base model into analysis/."""
        from upft_mlx.analysis import figure, markdown
        from upft_mlx.analyze import analyze

        def work() -> Outcome:
            found, processed = analyze(self.recipe, self._load(), self.problems, self.run, self.notify)
            write_json(self.run.analysis / "analysis.json", found)
            write_atomically(self.run.analysis / "curves.svg", figure(found))
            write_atomically(self.run.analysis / "analysis.md", f"# {self.recipe.name}\n\n{markdown(found)}")
            length = found["recommended"]["length"]
            detail = "no prefix.length recommended" if length is None else f"recommended prefix.length {length}"
            return Outcome(detail, tokens_sampled=found["tokens_sampled"], tokens_processed=processed)

        if ranks().leads:
            self._stage("analyze", f"prefixes of {self.recipe.model}", work)

    def adopt(self, donor: RunDir) -> None:
        """Take over what another run made from the same inputs: solutions, and the base model's answers."""
        for name, inputs, path, theirs in self._adoptable(donor):
            current = fingerprint(inputs)
            entry = donor.entry(name)
            if self.run.is_current(name, current) or entry is None or not theirs.exists():
                continue
            if entry.done and entry.fingerprint == current:
                write_atomically(path, theirs.read_bytes())
                self.run.record(name, entry)

    def _adoptable(self, donor: RunDir) -> Iterator[tuple[str, dict[str, Any], Path, Path]]:
        """Ledger name, inputs, own file and the donor's file."""
        yield "generate", self.inputs.generate(), self.run.solutions, donor.solutions
        for part in self.sets:
            own, theirs = (run.rows_of(part.entry.label, "base") for run in (self.run, donor))
            yield side_name(part, "base"), self.inputs.side(part, "base"), own, theirs

    @property
    def questions(self) -> list[str]:
        """All questions of the evaluation."""
        return [problem.question for part in self.sets for problem in part.problems]

    @property
    def result(self) -> Path:
        """The folder that is published."""
        return self.run.fused if self._fuses else self.run.adapter

    def report(self) -> dict[str, Any]:
        """Write report.md and, once there is a result, its model card; return what the report says."""
        facts = collect(self.recipe, self.run, [stage for stage in STAGES if self.is_current(stage)])
        facts["economy"] = economy(self.recipe, self.problems, self.run) if self.is_current("train") else None
        write_atomically(self.run.report, markdown(facts))
        if facts["fidelity"] is not None:
            base = base_of(self.recipe, self.model_path)
            card = model_card(self.recipe, base, facts, read_json(self.run.recipe))
            write_atomically(self.result / "README.md", card)
            for terms in self.model_path.glob("LICENSE*"):  # of the base: they go with what is made of it
                write_atomically(self.result / terms.name, terms.read_bytes())
        return facts

    def _load(self) -> Loaded:
        return load(self.model_path, quantize=self.recipe.quantize, trust_remote_code=self.recipe.trust_remote_code)

    def _stage(self, stage: str, what: str, work: Callable[[], Outcome]) -> None:
        """Do a stage unless it is current; the ledger learns of it whatever happens."""
        if stage not in ("fuse", "analyze"):
            ranks().mirror(self.run.root)
        inputs = self._inputs(stage)
        if self.is_current(stage):
            entry = self.run.entry(stage)
            self.notify(StageSkipped(stage, f"current: {entry.detail}" if entry else "current"))
            return
        entry = self._prepare(stage, inputs)
        self.notify(StageStarted(stage, what))
        self.power.look()  # heat comes with the hours
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
        beside = {"generate": [self.run.partial], "train": [self.run.likelihood, self.run.movement]}
        remove(*self._outputs(stage), *beside.get(stage, []))
        fresh = Entry(current, inputs=inputs)
        self.run.record(stage, fresh)
        return fresh


def versions() -> dict[str, str]:
    """Of this package and those that a run's numbers depend on."""
    packages = ("mlx", "mlx-lm", "transformers", "datasets", "math-verify")
    return {"upft-mlx": __version__, **{name: metadata.version(name) for name in packages}, "blas": str(blas.used())}


@contextmanager
def _together() -> Iterator[None]:
    """What ends one rank ends the others."""
    try:
        yield
    except BaseException as error:
        ranks().leave("interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__)
        raise


__all__ = ["STAGES", "Pipeline", "run", "run_analysis", "run_stage", "versions"]
