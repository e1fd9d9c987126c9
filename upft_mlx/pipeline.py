"""The stages of a recipe in order: prepare a job, open its run directory, do what is not current, report.

Called `pipeline`, not `run`, because `upft_mlx.run` is the public function.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from upft_mlx.data.benchmarks import BenchmarkSet, load_benchmark, resolve
from upft_mlx.data.on_disk import recipe_problems
from upft_mlx.data.source import Notes
from upft_mlx.dataset.instruction import instructed
from upft_mlx.dataset.prefix import check_problems
from upft_mlx.distributed.ranks import ranks
from upft_mlx.errors import RowsError, RunDirError
from upft_mlx.events import Expected, Note, Observer, StageDone, StageSkipped, ignore
from upft_mlx.fingerprints import asked_as_trained, definite
from upft_mlx.forecasting.choice import no_choice, take_choice
from upft_mlx.forecasting.estimate import Forecast
from upft_mlx.hub.card import base_of, model_card, write_card
from upft_mlx.job import Job, Outcome, differences
from upft_mlx.machine import blas
from upft_mlx.machine.device import awake, compiles_first, limit_memory
from upft_mlx.models.adapter_files import refuse_missing_adapter
from upft_mlx.models.find import find_model
from upft_mlx.models.gate import terms
from upft_mlx.models.gguf.model import conversion_notes
from upft_mlx.planning.budget import another_mac, sizes, this_machine
from upft_mlx.planning.memory import Machine
from upft_mlx.planning.plan import Estimate, memory_plan
from upft_mlx.planning.preflight import refuse_early
from upft_mlx.planning.speed import calibrate, known
from upft_mlx.recipe.fields import AUTO
from upft_mlx.recipe.schema import Recipe
from upft_mlx.results.economy import economy
from upft_mlx.results.facts import RunReport
from upft_mlx.results.plan import Plan
from upft_mlx.results.report import collect, markdown
from upft_mlx.rows import read_json, write_atomically, write_json
from upft_mlx.rundir import LedgerEntry, RunDir, versions
from upft_mlx.stages import LEARNING, STAGES, before, in_run
from upft_mlx.training.development import check_development
from upft_mlx.versions import adopted, begun, bring_back, finish, kept, pause, settle


def run(recipe: Recipe, run_dir: str | Path, notify: Observer = ignore) -> RunReport:
    """All stages: problems to a fused, measured model. Repeats nothing that is done, continues what was interrupted.

    Returns:
        The facts of the run, as in report.md.

    Raises:
        UpftError: one of its kinds; the run directory keeps what was done.
    """
    job = prepare(recipe, run_dir, notify)
    with opened(job):
        refuse_changed(job)
        check_memory(job, *in_run())
        tell_expected(job)
        learn(job)
        for stage in in_run():
            do(job, stage)
            if STAGES[stage].measures:
                report(job)  # what was measured stands, whatever fusing refuses
        return report(job)


def run_stage(
    recipe: Recipe,
    run_dir: str | Path,
    stage: str,
    notify: Observer = ignore,
    adapter: Path | None = None,
    look: str | None = None,
    **options: Any,
) -> RunReport:
    """One stage; the ones it depends on must be done.

    `adapter` is one to evaluate instead of the run's own; an evaluation with a `look` is kept under that name, apart
    from the run's own. `options` are those of the stage's `work`.

    Raises:
        RunDirError: a stage before it is not done, or was done with another recipe.
        UpftError: one of its kinds.
    """
    job = prepare(recipe, run_dir, notify, adapter, look)
    job.remade = stage
    with opened(job):
        job.require(stage)
        check_memory(job, stage)
        if stage == "generate":
            learn(job)
        do(job, stage, **options)
        return report(job)


def prepare(
    recipe: Recipe,
    run_dir: str | Path,
    notify: Observer = ignore,
    adapter: Path | None = None,
    look: str | None = None,
    *,
    weights: bool = True,
    machine: Machine | None = None,
) -> Job:
    """Find and read everything that the recipe names, so that what is wrong is refused before any work.

    Args:
        recipe: the recipe.
        run_dir: where the run is kept.
        notify: receives progress events.
        adapter: the folder of an adapter to evaluate instead of the run's own.
        look: the name of an evaluation that is not the run's own; it is kept in looks/NAME.
        weights: whether the model's weights are needed.
        machine: where it will run; None: on this one.

    Raises:
        UpftError: one of its kinds.
    """
    run = RunDir(ranks().workplace(Path(run_dir)))
    resolve(recipe.evaluate)  # names that are wrong are refused before anything is read
    model_path = find_model(recipe, weights=weights)
    if adapter is not None:
        refuse_missing_adapter(adapter)
        given, recipe = recipe.prompt.chat_template, asked_as_trained(recipe, adapter, model_path)
        if (beside := recipe.prompt.chat_template) != given:
            notify(Note(f"base and tuned are asked with the chat template beside the adapter, {beside}"))
    problems, notes = recipe_problems(recipe), Notes()
    check_problems(recipe, problems)
    recipe = instructed(definite(recipe, model_path, run), model_path, problems, run)
    sets = [BenchmarkSet(entry, load_benchmark(entry, recipe.seed, notes)) for entry in resolve(recipe.evaluate)]
    check_development(recipe, problems, sets)
    measured = None if look is None else RunDir(run.looks / look)
    notify = notify if ranks().leads else ignore
    job = Job(recipe, model_path, problems, sets, run, notify, measured=measured, adapter=adapter)
    if AUTO in sizes(recipe).values():  # the same numbers on every call, whatever the run has done already
        job.use(memory_plan(job, machine or this_machine()).settle(recipe))
    job.read = (*conversion_notes(model_path), *problems.notes.lines(), *notes.lines())
    take_choice(job)
    return job


def run_forecast(recipe: Recipe, run_dir: str | Path, notify: Observer = ignore) -> Forecast:
    """What each rule that picks prefixes would change: the stages answers and forecast.

    Raises:
        ProblemsError: too few problems have an answer.
        UpftError: another of its kinds; what was sampled is kept.
    """
    job = prepare(recipe, run_dir, notify)
    job.remade = "forecast"
    with opened(job):
        do(job, "answers")
        do(job, "forecast")
        ranks().mirror(job.run.root)  # rank 0 has made it alone
    return Forecast.load(read_json(job.run.forecast / "forecast.json"))


def learn(job: Job) -> None:
    """Before anything is sampled to train on: what the recipe's selection learns from a few problems with answers.

    Raises:
        TrainingError: `prefix.selection: auto` finds no rule that is worth training with.
    """
    if job.recipe.uses_answers:
        for stage in LEARNING:
            for donor in job.donors:
                take_over(job, donor, stage)
            do(job, stage)
        ranks().mirror(job.run.root)  # rank 0 has made it alone
        take_choice(job)
        if job.recipe.prefix.selection == "auto":
            raise no_choice(job.run)


@contextmanager
def opened(job: Job) -> Iterator[None]:
    """The run directory, locked, on a machine that stays awake and within its memory."""
    with _together(), job.run.locked(writes=job.measured is job.run), _begun(job), awake(job.notify):
        for run in dict.fromkeys((job.run, job.measured)):
            for text in settle(run):
                job.notify(Note(text))
        job.adopted = adopted(job.run)
        for text in () if job.is_current("generate") else job.read:
            job.notify(Note(text))
        with suppress(RowsError, AttributeError, KeyError, TypeError):  # damaged: it is written again
            threads = str(read_json(job.measured.recipe)["versions"].get("blas_threads", ""))
            if threads.isdigit():  # as many as the run began with
                blas.use_threads(int(threads))
        if limits := limit_memory():
            job.notify(Note(limits, minor=True))
        if wait := compiles_first():
            job.notify(Note(wait))
        ranks().agree({**job.inputs.everything(), "versions": versions()})
        ranks().mirror(job.run.root)
        yield


@contextmanager
def _begun(job: Job) -> Iterator[None]:
    """recipe.json of a new run or look; a command that is refused, or has made nothing else, takes it back."""
    run = job.measured
    new = not run.recipe.exists()
    if new:
        write_json(run.recipe, described(job))
    try:
        yield
    except BaseException:
        if new:
            run.take_back()
        raise


@contextmanager
def _together() -> Iterator[None]:
    """What ends one rank ends the others."""
    try:
        yield
    except BaseException as error:
        ranks().leave("interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__)
        raise


def described(job: Job) -> dict[str, Any]:
    """recipe.json: the resolved recipe, versions, hashes of model and data."""
    known = {**versions(), "python": platform.python_version()}
    return {**job.recipe.dump(), "versions": known, "hashes": job.inputs.hashes}


def check_memory(job: Job, *stages: str) -> None:
    """Refuse stages that are still to be done and cannot end well, or cannot fit into this machine's memory.

    Raises:
        MemoryLimitError: what is needed, what there is, and what would fit.
        UpftError: another of its kinds.
    """
    due = tuple(stage for stage in stages if STAGES[stage].planned and not job.is_current(stage))
    if due:
        refuse_early(job, this_machine(), due)


def tell_expected(job: Job) -> None:
    """Tell how long the stages to come will take, where `upft plan` has timed this model on this machine."""
    speed = known(job)
    if speed is None:
        return
    memory = memory_plan(job, this_machine(), job.run, speed)
    seconds = Estimate(job, memory).seconds(job.recipe, speed)
    job.notify(Expected({stage: took for stage, took in seconds.items() if not job.is_current(stage)}))


def plan_recipe(
    recipe: Recipe, run_dir: str | Path, notify: Observer = ignore, *, mac: float | None = None, calibrates: bool = True
) -> Plan:
    """What a recipe will cost, prepared as a run is; see `upft_mlx.plan`."""
    machine = this_machine() if mac is None else another_mac(mac)
    job = prepare(recipe, run_dir, notify, weights=False, machine=machine)
    is_timed = mac is None and job.has_weights
    speed = known(job) if is_timed else None
    memory = memory_plan(job, machine, job.run, speed)
    if is_timed and speed is None and calibrates and not memory.too_large(job.recipe):
        notify(Note("timing a short trial, about ten seconds if the machine is idle; --no-calibration skips it"))
        speed = calibrate(job)
        memory = memory_plan(job, machine, job.run, speed)
    return Estimate(job, memory).plan(speed)


def refuse_changed(job: Job) -> None:
    """Refuse files that were changed since they were written, or measurements that are missing, before any work.

    Raises:
        RunDirError: names the first one, with what to do.
    """
    for stage in in_run():
        if not job.is_current(stage) and STAGES[stage].measures:
            job.refuse_missing(stage)  # what is not published but speaks on the card


def do(job: Job, name: str, **options: Any) -> None:
    """Do a stage unless it is current; what it makes takes its place when it is whole, whatever happens."""
    stage = STAGES[name]
    if not (stage.shared or ranks().leads):
        return
    announced = stage.code.announce(job)
    if isinstance(announced, StageSkipped):
        job.notify(announced)
        return
    if stage.shared:
        ranks().mirror(job.run.root)
    run = job.place(name)
    if job.is_current(name):
        there = run.entry(name)
        job.notify(StageSkipped(name, f"current: {there.detail}" if there else "current"))
        return
    job.adopted.pop(name, None)  # what was changed by hand is about to be made anew
    entry = begun(run, name, job.inputs_of(name))
    back = _comes_back(job, run, name, entry)
    if ranks().any(back) if stage.shared else back:  # the others have no earlier versions
        return
    if (run.work / f"{name}-{entry.fingerprint}").exists():
        job.notify(Note(f"{name}: continues"))
    there = run.entry(name)
    if there is not None and there.fingerprint != entry.fingerprint:
        different = ", ".join(differences(there.inputs, entry.inputs or {}))
        job.notify(Note(f"{name}: runs again, changed: {different}; the version before will be in .kept"))
    job.notify(announced)
    job.power.look()  # heat comes with the hours
    import mlx.core as mx

    mx.clear_cache()
    mx.reset_peak_memory()
    start = time.perf_counter()
    outcome: Outcome | None = None
    try:
        outcome = stage.code.work(job, run.working(name, entry.fingerprint), **options)
    finally:
        seconds = time.perf_counter() - start
        peak = max(entry.peak_memory_bytes, mx.get_peak_memory())
        entry = replace(entry, seconds=entry.seconds + seconds, peak_memory_bytes=peak)
        if outcome is None:
            pause(run, name, entry)
    finish(run, name, replace(entry, recipe=described(job), **asdict(outcome)))
    _describe(job, name)
    job.notify(StageDone(name, outcome.detail, seconds))


def _describe(job: Job, name: str) -> None:
    """Write recipe.json if it is that of this stage."""
    if job.run.is_described_by(name, learns=job.recipe.uses_answers):
        write_json(job.measured.recipe, described(job))


def _comes_back(job: Job, run: RunDir, stage: str, entry: LedgerEntry) -> bool:
    """Whether an earlier version was made from the same inputs; then it takes its place again."""
    for version in kept(run, stage):
        if version.entry.fingerprint == entry.fingerprint and version.is_whole:
            bring_back(run, version)
            _describe(job, stage)
            back = f"an earlier version comes back: {version.entry.detail}"
            job.notify(StageSkipped(stage, back, current=False))
            return True
    return False


def take_over(job: Job, donor: RunDir, stage: str = "generate") -> None:
    """Take over what a stage made in another run from the same inputs, such as solutions, with what it cost."""
    entry, current = donor.entry(stage), job.fingerprint(stage)
    if entry is not None and entry.fingerprint == current and entry.is_whole(donor.root) and not job.is_current(stage):
        working = job.run.working(stage, current)
        for name in entry.outputs:
            first, *rest = Path(name).parts
            write_atomically(working.place(first).joinpath(*rest), (donor.root / name).read_bytes())
        finish(job.run, stage, replace(entry, recipe=described(job)))


def report(job: Job) -> RunReport:
    """Write report.md and, once there is a result, its model card; return what the report says."""
    _describe(job, job.remade or in_run()[0])  # without a stage that was asked for, it is of the run
    if job.measured is not job.run:
        measuring = [name for name in in_run() if STAGES[name].measures]
        facts = RunReport(**vars(collect(job.recipe, job.measured, measuring)), economy=None)
        write_atomically(job.measured.report, markdown(facts))
        return facts
    current = []
    for stage in in_run(learns=job.recipe.uses_answers):
        try:
            current += [stage] if job.is_current(stage) else []
        except RunDirError as error:  # changed by hand: left out of the report, and said to be
            job.notify(Note(str(error)))
    known = {*before("train"), "train"} <= set(current)  # their files may be gone, or changed by hand
    cost = economy(job.recipe, job.problems, job.run) if known else None
    facts = RunReport(**vars(collect(job.recipe, job.run, current)), economy=cost)
    write_atomically(job.run.report, markdown(facts))
    if facts.fidelity is not None:
        card = model_card(job.recipe, base_of(job.recipe, job.model_path), facts, read_json(job.run.recipe))
        write_card(result(job), card, job.notify)
        for file in terms(job.model_path):  # of the base: they go with what is made of it
            write_atomically(result(job) / file.name, file.read_bytes())
    return facts


def result(job: Job) -> Path:
    """The folder that is published."""
    return job.run.adapter if job.recipe.publish.fuse == "adapter" else job.run.fused


def known_files(job: Job) -> set[str]:
    """The names of the files in `result` that this run has made."""
    entry = job.run.entry("train" if job.recipe.publish.fuse == "adapter" else "fuse")
    names = {Path(name) for name in entry.outputs} if entry is not None else set()
    copied = {path.name for path in terms(job.model_path)}
    return {"README.md", *copied, *(name.name for name in names if name.parent.name == result(job).name)}
