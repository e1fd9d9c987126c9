"""Both variants of every benchmark of a run: which rows are there already, and measuring the rest."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from upft_mlx.data.benchmarks import BenchmarkSet
from upft_mlx.distributed.seam import led
from upft_mlx.errors import RowsError
from upft_mlx.evaluation.beside import as_written, measured_beside
from upft_mlx.evaluation.evaluate import Evaluator, Switch, graded_again, replay
from upft_mlx.evaluation.summary import AGAIN
from upft_mlx.events import Note, Variant
from upft_mlx.grade.correct import VERSION
from upft_mlx.job import Job
from upft_mlx.models.adapters import AdapterSwitch
from upft_mlx.models.find import model_hash
from upft_mlx.models.load import Loaded
from upft_mlx.rows import EvaluationRow, read_rows, replacing, write_rows
from upft_mlx.rundir import LedgerEntry, RunDir, fingerprint
from upft_mlx.versions import kept, unfinished


class BaseAndTuned:
    """Base and, where there is an adapter, tuned on the benchmarks of one run."""

    def __init__(self, job: Job, run: RunDir) -> None:
        self._job, self._run, self._sets, self._notify = job, run, job.sets, job.notify
        self._loaded: Loaded | None = None
        self.processed_tokens = 0
        """Passed through the model so far, prompts and padding included."""
        self.drafted = self.accepted = 0
        """Tokens of tuned's answers that had a draft, and those of them that were the draft's."""
        self._switch: Switch = _stay

    def measure(self, variants: Sequence[Variant]) -> int:
        """Measure what is not there yet, both variants of a benchmark in turns on one loaded model.

        Args:
            variants: "base", or "base" and "tuned".

        Returns:
            Tokens in the rows of all variants, and of base at another batch size.
        """
        if "tuned" not in variants:
            self._notify(Note("no current adapter: only the base model is evaluated"))
        led(self._run.root, partial(self._take_over, variants))
        for part in self._sets:
            missing = [variant for variant in variants if not self._is_whole(part, variant)]
            ask = bool(missing) or not self._run.rows_of(part.entry.label, AGAIN).exists()
            measured = variants if ask and self._job.recipe.evaluate.until == "known" else missing
            for variant in variants:
                if variant not in measured:  # what is measured replays its own
                    replay(part, variant, self._run, self._notify)
            if ask:
                self._measure(part, measured)
        paths = [self._run.rows_of(part.entry.label, name) for part in self._sets for name in (*variants, AGAIN)]
        return sum(row.tokens for path in paths for row in read_rows(path, EvaluationRow))

    def _measure(self, part: BenchmarkSet, variants: Sequence[Variant]) -> None:
        if self._loaded is None:
            self._loaded = self._job.load()
        if "tuned" in variants and not isinstance(self._switch, AdapterSwitch):
            self._switch = AdapterSwitch(self._loaded, self._job.adapter or self._job.run.adapter)
            from upft_mlx.models.cpu_layers import add_updates_in_products

            add_updates_in_products(self._loaded.model)
        evaluator = Evaluator(self._job.recipe, self._loaded, part, self._run, self._notify)
        evaluator.run(variants, self._switch)
        self.processed_tokens += evaluator.processed_tokens
        self.drafted += evaluator.drafts.drafted
        self.accepted += evaluator.drafts.accepted

    def _is_whole(self, part: BenchmarkSet, variant: Variant) -> bool:
        """Whether every problem and sample has its row, in order."""
        path = self._run.rows_of(part.entry.label, variant)
        places = [(problem.id, sample) for problem in part.problems for sample in range(part.entry.samples)]
        try:
            return path.exists() and [(r.problem_id, r.sample) for r in read_rows(path, EvaluationRow)] == places
        except RowsError:  # a line that a kill has torn
            return False

    def _take_over(self, variants: Sequence[Variant]) -> None:
        """Copy rows that were made from the same inputs, finished or not, from wherever they are.

        Those that another version graded are graded again, so that both variants are measured with one grader.
        """
        for part, variant in itertools.product(self._sets, variants):
            path = self._run.rows_of(part.entry.label, variant)
            if path.exists():
                continue
            for rows, again in sorted(self._made(part, variant), key=lambda found: found[0].stat().st_size):
                if part.entry.private and not _graders(rows) <= {VERSION}:
                    continue  # without the texts they cannot be graded again
                _copy(rows, path)
                if variant == "base" and again:
                    _copy(again, self._run.rows_of(part.entry.label, AGAIN))
                if self._is_whole(part, variant):
                    break
        for part, name in itertools.product(self._sets, (*variants, AGAIN)):
            path = self._run.rows_of(part.entry.label, name)
            if not path.exists() or _graders(path) <= {VERSION}:
                continue
            if part.entry.private:
                path.unlink()
                self._notify(Note(f"{part.entry.label}: {name} is asked again, another version graded its answers"))
            else:
                write_rows(path, graded_again(part.entry, [*read_rows(path, EvaluationRow, growing=True)]))

    def _made(self, part: BenchmarkSet, variant: Variant) -> Iterator[tuple[Path, Path | None]]:
        """Files of such rows that are as they were written, with base's answers at another batch size, if they are.

        Greedy answers of base are the same with every seed, where the questions are (their hash is in the inputs).
        """
        inputs, folder = variant_inputs(self._job, part, variant), f"evaluation/{part.entry.label}"
        name, again = f"{folder}/{variant}.jsonl", f"{folder}/{AGAIN}.jsonl"
        any_seed = variant == "base" and part.entry.temperature == 0
        for run in dict.fromkeys((self._job.measured, self._job.run, *self._job.donors)):
            current = run.entry("evaluate")
            versions = [(v.entry, v.folder) for v in (*kept(run, "evaluate"), *unfinished(run, "evaluate"))]
            for entry, root in [*([(current, run.root)] if current else []), *versions]:
                seed = (entry.recipe or inputs).get("seed") if any_seed else inputs["seed"]
                wanted = [fingerprint({**of, "seed": seed}) for of in (inputs, _with_place(inputs, part, entry))]
                found = (entry.inputs or {}).get(f"{part.entry.label} {variant}")
                if found in wanted and (rows := as_written(entry, root, name)):
                    yield rows, as_written(entry, root, again)
            older = run.evaluation / ".kept" / f"{part.entry.label}-{variant}-{fingerprint(inputs)}.jsonl"
            if older.is_file():  # put aside by an earlier version
                yield older, None
        if variant == "base":
            for entry, root in measured_beside(self._job.run, part.entry.label, fingerprint(inputs)):
                yield root / name, as_written(entry, root, again)


_READ = ("id", "bad_rows", "part", "development")
"""Fields of a benchmark that matter for its problems only, which have a hash of their own."""


def _with_place(inputs: dict[str, Any], part: BenchmarkSet, entry: LedgerEntry) -> dict[str, Any]:
    """The inputs as earlier versions wrote them: with the path that the benchmark's file had at an entry's time."""
    benchmarks = ((entry.recipe or {}).get("evaluate") or {}).get("benchmarks") or []
    paths = {found.get("label") or found.get("name"): found.get("path") for found in benchmarks}
    return {**inputs, "benchmark": {**inputs["benchmark"], "path": paths.get(part.entry.label)}}


def variant_inputs(job: Job, part: BenchmarkSet, variant: Variant) -> dict[str, Any]:
    """What the rows of one variant of one benchmark depend on: a local file's problems, but not its path."""
    entry = part.entry.plain()
    unread = _READ if entry["path"] is None else (*_READ, "path")
    found = {
        **job.inputs.base(),
        "benchmark": {name: value for name, value in entry.items() if name not in unread},
        "problems": job.inputs.hashes["benchmarks"][part.entry.label],
        **job.inputs.section("evaluate", "batch_size"),
    }
    if job.recipe.evaluate.until == "known":
        found["until"] = {"effect": job.recipe.evaluate.effect}
    if variant == "base":
        return found
    if job.adapter is not None:
        return {**found, "adapter": model_hash(job.adapter)}
    return {**found, "train stage": job.fingerprint("train")}


def _graders(path: Path) -> set[int]:
    """The versions that graded these rows."""
    return {row.grader for row in read_rows(path, EvaluationRow, growing=True)}


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def _stay(_variant: Variant) -> None:
    """The switch of a model without an adapter."""
