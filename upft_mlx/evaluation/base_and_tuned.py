"""Both sides of every benchmark of a run: which rows are there already, and measuring the rest."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from upft_mlx.data.benchmarks import Set
from upft_mlx.digests import digest
from upft_mlx.distributed.ranks import ranks
from upft_mlx.errors import RowsError
from upft_mlx.evaluation.evaluate import Evaluator, Switch, replay
from upft_mlx.events import Note, Observer, Side
from upft_mlx.fingerprints import Inputs
from upft_mlx.models.adapters import AdapterSwitch
from upft_mlx.models.load import Loaded
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rows import EvaluationRow, read_rows, replacing
from upft_mlx.rundir import Entry, RunDir, fingerprint
from upft_mlx.versions import kept, unfinished


class Sides:
    """Base and, where there is an adapter, tuned on the benchmarks of one run."""

    def __init__(
        self,
        recipe: Recipe,
        sets: Sequence[Set],
        inputs: Inputs,
        run: RunDir,
        donors: Sequence[RunDir],
        load: Callable[[], Loaded],
        notify: Observer,
    ) -> None:
        """`donors`: runs, this one among them, whose rows are taken where they were made from the same inputs."""
        self._recipe, self._sets, self._inputs, self._run, self._donors = recipe, sets, inputs, run, donors
        self._load, self._notify = load, notify
        self._loaded: Loaded | None = None
        self.processed_tokens = 0
        """Passed through the model so far, prompts and padding included."""
        self._switch: Switch = _stay

    def measure(self, sides: Sequence[Side], adapter: Path) -> int:
        """Measure what is not there yet, both sides of a benchmark in turns on one loaded model.

        Args:
            sides: "base", or "base" and "tuned".
            adapter: the folder of the adapter, read where "tuned" is to be measured.

        Returns:
            Tokens in the rows of all sides.
        """
        if "tuned" not in sides:
            self._notify(Note("no current adapter: only the base model is evaluated"))
        for part in self._sets if ranks().leads else ():
            for side in sides:
                if not self._run.rows_of(part.entry.label, side).exists():
                    self._take_over(part, side)
        ranks().mirror(self._run.root)
        for part in self._sets:
            missing = [side for side in sides if not self._is_whole(part, side)]
            for side in sides:
                if side not in missing:
                    replay(part, side, self._run, self._notify)
            if missing:
                self._measure(part, missing, adapter)
        paths = [self._run.rows_of(part.entry.label, side) for part in self._sets for side in sides]
        return sum(row.tokens for path in paths for row in read_rows(path, EvaluationRow))

    def _measure(self, part: Set, sides: Sequence[Side], adapter: Path) -> None:
        if self._loaded is None:
            self._loaded = self._load()
        if "tuned" in sides and not isinstance(self._switch, AdapterSwitch):
            self._switch = AdapterSwitch(self._loaded, adapter)
        evaluator = Evaluator(self._recipe, self._loaded, part, self._run, self._notify)
        evaluator.run(sides, self._switch)
        self.processed_tokens += evaluator.processed_tokens

    def _is_whole(self, part: Set, side: Side) -> bool:
        """Whether every problem and sample has its row, in order."""
        path = self._run.rows_of(part.entry.label, side)
        places = [(problem.id, sample) for problem in part.problems for sample in range(part.entry.samples)]
        try:
            return path.exists() and [(r.problem_id, r.sample) for r in read_rows(path, EvaluationRow)] == places
        except RowsError:  # a line that a kill has torn
            return False

    def _take_over(self, part: Set, side: Side) -> None:
        """Copy rows that were made from the same inputs, finished or not, from wherever they are."""
        path = self._run.rows_of(part.entry.label, side)
        for rows in sorted(self._made(part, side), key=lambda rows: -rows.stat().st_size):
            with replacing(path) as temporary:
                shutil.copyfile(rows, temporary)
            if self._is_whole(part, side):
                return

    def _made(self, part: Set, side: Side) -> Iterator[Path]:
        """Files of such rows that are as they were written."""
        wanted, name = fingerprint(self._inputs.side(part, side)), f"evaluation/{part.entry.label}/{side}.jsonl"
        for run in self._donors:
            current = run.entry("evaluate")
            versions = [(v.entry, v.folder) for v in (*kept(run, "evaluate"), *unfinished(run, "evaluate"))]
            for entry, root in [*([(current, run.root)] if current else []), *versions]:
                if (entry.inputs or {}).get(f"{part.entry.label} {side}") == wanted and _is_as_written(
                    entry, root, name
                ):
                    yield root / name
            older = run.evaluation / ".kept" / f"{part.entry.label}-{side}-{wanted}.jsonl"
            if older.is_file():  # put aside by an earlier version
                yield older


def _is_as_written(entry: Entry, root: Path, name: str) -> bool:
    """Whether a file of rows is there, with its digest where the stage was finished."""
    path = root / name
    return path.is_file() and (not entry.done or entry.outputs.get(name, digest(path)) == digest(path))


def _stay(_side: Side) -> None:
    """The switch of a model without an adapter."""
