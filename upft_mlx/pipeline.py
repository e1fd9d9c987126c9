"""The stages of a recipe in order. `run` reads like a script; `Pipeline` knows what each stage depends on.

Called `pipeline`, not `run`, because `upft_mlx.run` is the public function.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from upft_mlx.data.benchmarks import Set, load_benchmark, resolve
from upft_mlx.data.on_disk import problems_of
from upft_mlx.dataset.build import build
from upft_mlx.dataset.instruction import differing, instructed
from upft_mlx.dataset.prefix import check_problems, wanted
from upft_mlx.distributed.ranks import ranks
from upft_mlx.errors import RowsError, RunDirError
from upft_mlx.evaluation.base_and_tuned import Sides
from upft_mlx.evaluation.evaluate import announce
from upft_mlx.evaluation.summary import summarize
from upft_mlx.events import Note, Observer, StageDone, StageSkipped, StageStarted, ignore
from upft_mlx.fingerprints import Inputs, dated
from upft_mlx.hub.card import base_of, model_card
from upft_mlx.machine import blas
from upft_mlx.machine.device import PowerWatch, awake, limit_memory
from upft_mlx.models.find import find_model
from upft_mlx.models.gate import terms
from upft_mlx.models.load import Loaded, load, load_tokenizer
from upft_mlx.planning.budget import has_auto, this_machine
from upft_mlx.planning.estimate import Planner
from upft_mlx.planning.preflight import refuse_early
from upft_mlx.recipe.schema import Recipe
from upft_mlx.results.economy import economy
from upft_mlx.results.report import STAGES, collect, markdown
from upft_mlx.rows import Solution, read_json, read_rows, write_atomically, write_json
from upft_mlx.rundir import Entry, RunDir, fingerprint, versions
from upft_mlx.sampling.generate import generate
from upft_mlx.standing import Standing, differences
from upft_mlx.training.row_loss import cut_solutions
from upft_mlx.versions import adopted, begun, bring_back, finish, kept, pause, settle

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
        pipeline.refuse_changed()
        pipeline.check_memory("generate", "train", "evaluate", "fuse")
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
    look: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """One stage; the ones it depends on must be done.

    `adapter` is one to evaluate instead of the run's own; an evaluation with a `look` is kept under that name, apart
    from the run's own. `options` are those of the stage's method.

    Raises:
        RunDirError: a stage before it is not done, or was done with another recipe.
        UpftError: one of its kinds.
    """
    pipeline = Pipeline(recipe, run_dir, notify, adapter, look)
    pipeline.standing.remade = stage
    with pipeline.opened():
        pipeline.require(stage)
        pipeline.check_memory(stage)
        getattr(pipeline, stage)(**options)
        return pipeline.report()


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
        self,
        recipe: Recipe,
        run_dir: str | Path,
        notify: Observer = ignore,
        adapter: Path | None = None,
        look: str | None = None,
    ) -> None:
        """Find and read everything that the recipe names, so that what is wrong is refused before any work.

        Args:
            recipe: the recipe.
            run_dir: where the run is kept.
            notify: who watches.
            adapter: the folder of an adapter to evaluate instead of the run's own.
            look: the name of an evaluation that is not the run's own; it is kept in looks/NAME.

        Raises:
            UpftError: one of its kinds.
        """
        self.run, self.adapter = RunDir(ranks().workplace(Path(run_dir))), adapter
        self.measured = self.run if look is None else RunDir(self.run.looks / look)
        self.notify = notify if ranks().leads else ignore
        self.power = PowerWatch(self.notify)
        self.donors: Sequence[RunDir] = ()
        """Other runs whose answers are taken over where they were made from the same inputs."""
        resolve(recipe.evaluate)  # names that are wrong are refused before anything is read
        self.model_path = find_model(recipe)
        self.problems = problems_of(recipe)
        check_problems(recipe, self.problems)
        recipe = instructed(dated(recipe, self.model_path, self.run), self.model_path, self.problems)
        self.sets = [Set(entry, load_benchmark(entry, recipe.seed)) for entry in resolve(recipe.evaluate)]
        self.recipe = self._settled(recipe)
        self.inputs = Inputs(self.recipe, self.model_path, self.problems, self.sets, adapter)
        self.standing = Standing(self.run, self.measured, self.inputs, foreign=adapter is not None)

    def _settled(self, recipe: Recipe) -> Recipe:
        """With numbers in place of `auto`: the same on every call, whatever the run has done already."""
        if not has_auto(recipe):
            return recipe
        return Planner(recipe, self.model_path, self.problems, self.sets, this_machine()).settled().recipe

    def check_memory(self, *stages: str) -> None:
        """Refuse stages that are still to be done and cannot end well, or cannot fit into this machine's memory.

        Raises:
            RoomError: what is needed, what there is, and what would fit.
            UpftError: another of its kinds.
        """
        due = tuple(stage for stage in stages if stage in _PLANNED and not self.is_current(stage))
        if not due:
            return
        planner = Planner(self.recipe, self.model_path, self.problems, self.sets, this_machine(), self.run)
        refuse_early(planner, self.run, due, self.notify)

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The run directory, locked, on a machine that stays awake and within its memory."""
        with _together(), self.run.locked(), awake(self.notify):
            for run in dict.fromkeys((self.run, self.measured)):
                for text in settle(run):
                    self.notify(Note(text))
            self.inputs.adopted = adopted(self.run)
            if not self.measured.recipe.exists():
                self.describe()
            self._use_threads()
            if limits := limit_memory():
                self.notify(Note(limits))
            ranks().agree({**self.inputs.everything(), "versions": versions()})
            ranks().mirror(self.run.root)
            yield

    def _use_threads(self) -> None:
        """Compute with as many threads as the run began with, where its recipe.json says so."""
        with suppress(RowsError, AttributeError, KeyError, TypeError):  # damaged: it is written again
            threads = str(read_json(self.measured.recipe)["versions"].get("blas_threads", ""))
            if threads.isdigit():
                blas.use_threads(int(threads))

    def describe(self) -> None:
        """Write recipe.json, the recipe of what is in the directory."""
        write_json(self.measured.recipe, self.described())

    def described(self) -> dict[str, Any]:
        """The resolved recipe, versions, hashes of model and data."""
        known = {**versions(), "python": platform.python_version()}
        return {**self.recipe.dump(), "versions": known, "hashes": self.inputs.hashes}

    def is_current(self, stage: str) -> bool:
        """See `Standing`."""
        return self.standing.is_current(stage)

    def require(self, stage: str) -> None:
        """See `Standing`."""
        self.standing.require(stage)

    def refuse_changed(self) -> None:
        """Refuse files that were changed since they were written, or are missing, before any work.

        Raises:
            RunDirError: names the first one, with what to do.
        """
        for stage in STAGES:
            if not self.is_current(stage) and stage == "evaluate":
                self.standing.refuse_missing(stage)  # what is not published but speaks on the card

    @property
    def _fuses(self) -> bool:
        return self.recipe.publish.fuse != "adapter"

    # The stages.

    def generate(self) -> None:
        """Problems to solutions.jsonl."""

        def work(run: RunDir) -> Outcome:
            made = generate(self.recipe, self.load(), self.problems, asked, run, self.notify)
            detail = f"{made.solutions:,} solutions ({made.full:,} full), {made.tokens_sampled:,} tokens"
            return Outcome(detail, tokens_sampled=made.tokens_sampled, tokens_processed=made.tokens_processed)

        asked = wanted(self.recipe, len(self.problems))
        solutions = sum(item.samples for item in asked)
        self.stage("generate", f"{solutions} solutions of {self.recipe.model}", work)

    def build(self) -> None:
        """solutions.jsonl to dataset/."""

        def work(run: RunDir) -> Outcome:
            tokenizer = load_tokenizer(self.model_path, trust_remote_code=self.recipe.trust_remote_code)
            built = build(self.recipe, tokenizer, self.problems, run, self.notify)
            if (cut := cut_solutions(read_rows(self.run.solutions, Solution))).cut:
                self.notify(Note(str(cut)))
            return Outcome(str(built))

        self.stage("build", "the training rows", work)

    def train(self) -> None:
        """dataset/ to adapter/."""
        from upft_mlx.training.movement import measure
        from upft_mlx.training.train import train

        def work(run: RunDir) -> Outcome:
            loaded = self.load()
            position = train(self.recipe, loaded, run, self.notify)
            if ranks().leads:
                measure(self.recipe, loaded, self.problems, self.sets, run, self.notify)
            kept = position.best_step if self._saves_best(position.best_loss) else position.step
            detail = f"{position.step:,} steps, {position.trained_tokens:,} supervised tokens, "
            detail += f"{position.padding:.1%} padding, step {kept:,} kept"
            processed = position.processed_tokens
            return Outcome(detail, tokens_trained=position.trained_tokens, tokens_processed=processed)

        self.stage("train", "a LoRA adapter", work)

    def _saves_best(self, best_loss: float | None) -> bool:
        return self.recipe.train.save == "best" and best_loss is not None

    def evaluate(self) -> None:
        """Base and, if there is an adapter, tuned on every benchmark; evaluation/summary.json."""

        def work(run: RunDir) -> Outcome:
            announce(self.sets, self.notify)
            for line in differing([part.entry for part in self.sets], self.recipe.prompt):
                self.notify(Note(line))
            donors = [*dict.fromkeys((self.measured, self.run)), *self.donors]
            sides = Sides(self.recipe, self.sets, self.inputs, run, donors, self.load, self.notify)
            tokens = sides.measure(self.standing.sides(), self.adapter or self.run.adapter)
            write_json(run.summary, summarize(self.sets, run))
            completions = sum(part.completions for part in self.sets)
            processed = sides.processed_tokens
            return Outcome(f"{completions} completions per side", tokens_sampled=tokens, tokens_processed=processed)

        if not self.sets:
            self.notify(StageSkipped("evaluate", "evaluate.benchmarks is empty"))
            return
        self.stage("evaluate", ", ".join(part.entry.label for part in self.sets), work)

    def fuse(self, *, force: bool = False) -> None:
        """adapter/ into fused/; `force`: even if too little is kept."""
        from upft_mlx.fusing.fuse import fuse

        def work(run: RunDir) -> Outcome:
            kept = fuse(self.recipe, self.load(), run, self.notify, questions=self.questions, force=force)
            detail = f"{kept.fuse}, {kept.bytes / 1e6:.1f} MB, keeps {kept.retained:.1%} of the adapter's effect"
            return Outcome(detail)

        if ranks().leads:  # there is nothing in it to share
            self.stage("fuse", "the adapter into the weights", work)

    def take_over(self, donor: RunDir) -> None:
        """Take over another run's solutions where they were made from the same inputs, with what they cost."""
        entry, current = donor.entry("generate"), fingerprint(self.inputs.generate())
        if entry is not None and donor.is_current("generate", current) and not self.is_current("generate"):
            write_atomically(self.run.working("generate", current).solutions, donor.solutions.read_bytes())
            finish(self.run, "generate", entry)

    @property
    def questions(self) -> list[str]:
        """All questions of the evaluation."""
        return [problem.question for part in self.sets for problem in part.problems]

    @property
    def result(self) -> Path:
        """The folder that is published."""
        return self.run.fused if self._fuses else self.run.adapter

    def known_files(self) -> set[str]:
        """The names of the files in `result` that this run has made."""
        entry = self.run.entry("fuse" if self._fuses else "train")
        names = {Path(name) for name in entry.outputs} if entry is not None else set()
        terms = {path.name for path in self.model_path.glob("LICENSE*")}
        return {"README.md", *terms, *(name.name for name in names if name.parent.name == self.result.name)}

    def report(self) -> dict[str, Any]:
        """Write report.md and, once there is a result, its model card; return what the report says."""
        self.describe()
        if self.measured is not self.run:
            facts = {**collect(self.recipe, self.measured, ["evaluate"]), "economy": None}
            write_atomically(self.measured.report, markdown(facts))
            return facts
        facts = collect(self.recipe, self.run, [stage for stage in STAGES if self._is_unchanged(stage)])
        facts["economy"] = economy(self.recipe, self.problems, self.run) if self.is_current("train") else None
        write_atomically(self.run.report, markdown(facts))
        if facts["fidelity"] is not None:
            base = base_of(self.recipe, self.model_path)
            card = model_card(self.recipe, base, facts, read_json(self.run.recipe))
            write_atomically(self.result / "README.md", card)
            for file in terms(self.model_path):  # of the base: they go with what is made of it
                write_atomically(self.result / file.name, file.read_bytes())
        return facts

    def _is_unchanged(self, stage: str) -> bool:
        """Whether a stage is current; one that was changed by hand is left out of the report, and said to be."""
        try:
            return self.is_current(stage)
        except RunDirError as error:
            self.notify(Note(str(error)))
            return False

    def load(self) -> Loaded:
        """The recipe's model."""
        return load(self.model_path, quantize=self.recipe.quantize, trust_remote_code=self.recipe.trust_remote_code)

    def stage(self, stage: str, what: str, work: Callable[[RunDir], Outcome]) -> None:
        """Do a stage unless it is current; what it makes takes its place when it is whole, whatever happens."""
        shared = stage not in ("fuse", "analyze")
        if shared:
            ranks().mirror(self.run.root)
        run = self.standing.place(stage)
        if self.is_current(stage):
            entry = run.entry(stage)
            self.notify(StageSkipped(stage, f"current: {entry.detail}" if entry else "current"))
            return
        self.inputs.adopted.pop(stage, None)  # what was changed by hand is about to be made anew
        entry = begun(run, stage, self.standing.inputs(stage))
        back = self._comes_back(run, stage, entry)
        if ranks().any(back) if shared else back:  # the others have no earlier versions
            return
        self._announce(run, stage, entry)
        self.notify(StageStarted(stage, what))
        self.power.look()  # heat comes with the hours
        import mlx.core as mx

        mx.clear_cache()
        mx.reset_peak_memory()
        start = time.perf_counter()
        outcome = None
        try:
            outcome = work(run.working(stage, entry.fingerprint))
        finally:
            seconds = time.perf_counter() - start
            peak = max(entry.peak_memory_bytes, mx.get_peak_memory())
            entry = replace(entry, seconds=entry.seconds + seconds, peak_memory_bytes=peak)
            if outcome is None:
                pause(run, stage, entry)
        finish(run, stage, replace(entry, recipe=self.described(), **asdict(outcome)))
        self.describe()
        self.notify(StageDone(stage, outcome.detail, seconds))

    def _comes_back(self, run: RunDir, stage: str, entry: Entry) -> bool:
        """Whether an earlier version was made from the same inputs; then it takes its place again."""
        for version in kept(run, stage):
            if version.entry.fingerprint == entry.fingerprint and version.is_whole:
                bring_back(run, version)
                self.describe()
                self.notify(StageSkipped(stage, f"an earlier version comes back: {version.entry.detail}"))
                return True
        return False

    def _announce(self, run: RunDir, stage: str, entry: Entry) -> None:
        """Say that a stage continues, or why it runs again and what becomes of what is there."""
        if (run.work / f"{stage}-{entry.fingerprint}").exists():
            self.notify(Note(f"{stage}: continues"))
        there = run.entry(stage)
        if there is not None and there.fingerprint != entry.fingerprint:
            different = ", ".join(differences(there.inputs, entry.inputs or {}))
            self.notify(Note(f"{stage}: runs again, changed: {different}; the version before will be in .kept"))


@contextmanager
def _together() -> Iterator[None]:
    """What ends one rank ends the others."""
    try:
        yield
    except BaseException as error:
        ranks().leave("interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__)
        raise


__all__ = ["STAGES", "Outcome", "Pipeline", "run", "run_stage"]
