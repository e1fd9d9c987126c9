"""Both sides of every benchmark of a run: which rows are current, which are put away, and measuring the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from upft_mlx.adapters import AdapterSwitch
from upft_mlx.benchmarks import Set
from upft_mlx.events import Note, Observer, Side
from upft_mlx.inputs import Inputs
from upft_mlx.models import Loaded
from upft_mlx.recipe import Recipe
from upft_mlx.rows import EvaluationRow, read_rows
from upft_mlx.rundir import Entry, RunDir, fingerprint
from upft_mlx.stage_evaluate import Evaluator, Switch, replay

KEPT = 16
"""Files of rows that were put away: the newest so many stay."""


class Sides:
    """Base and, where there is an adapter, tuned on the benchmarks of one run."""

    def __init__(
        self,
        recipe: Recipe,
        sets: Sequence[Set],
        inputs: Inputs,
        run: RunDir,
        load: Callable[[], Loaded],
        notify: Observer,
    ) -> None:
        self._recipe, self._sets, self._inputs, self._run = recipe, sets, inputs, run
        self._load, self._notify = load, notify
        self._loaded: Loaded | None = None
        self.processed_tokens = 0
        """Passed through the model so far, prompts and padding included."""
        self._switch: Switch = _stay

    def measure(self, sides: Sequence[Side], adapter: Path) -> int:
        """Measure what is not current, both sides of a benchmark in turns on one loaded model.

        Args:
            sides: "base", or "base" and "tuned".
            adapter: the folder of the adapter, read where "tuned" is to be measured.

        Returns:
            Tokens in the rows of all sides.
        """
        if "tuned" not in sides:
            self._notify(Note("no current adapter: only the base model is evaluated"))
        for part in self._sets:
            if "tuned" not in sides:
                self._put_away(part, "tuned")
            missing = [side for side in sides if not self._is_current(part, side)]
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
        for side in sides:
            self._begin(part, side)
        evaluator = Evaluator(self._recipe, self._loaded, part, self._run, self._notify)
        evaluator.run(sides, self._switch)
        self.processed_tokens += evaluator.processed_tokens
        for side in sides:
            self._run.record(side_name(part, side), Entry(self._fingerprint(part, side), done=True))

    def _begin(self, part: Set, side: Side) -> None:
        """Rows of another model, recipe or adapter are not continued; those that were put away come back."""
        self._put_away(part, side)
        path, kept = self._run.rows_of(part.entry.label, side), self._kept(part, side, self._fingerprint(part, side))
        if kept.exists() and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            kept.replace(path)
        self._run.record(side_name(part, side), Entry(self._fingerprint(part, side)))

    def _is_current(self, part: Set, side: Side) -> bool:
        done = self._run.is_current(side_name(part, side), self._fingerprint(part, side))
        return done and self._run.rows_of(part.entry.label, side).exists()

    def _fingerprint(self, part: Set, side: Side) -> str:
        return fingerprint(self._inputs.side(part, side))

    def _put_away(self, part: Set, side: Side) -> None:
        """Move rows that were made with other inputs aside: a look at a subset must not cost a night's evaluation."""
        entry, path = self._run.entry(side_name(part, side)), self._run.rows_of(part.entry.label, side)
        if entry is not None and entry.fingerprint == self._fingerprint(part, side):
            return
        if entry is not None and path.exists():
            kept = self._kept(part, side, entry.fingerprint)
            kept.parent.mkdir(parents=True, exist_ok=True)
            path.replace(kept)
            for old in sorted(kept.parent.iterdir(), key=lambda file: file.stat().st_mtime)[:-KEPT]:
                old.unlink()
        path.unlink(missing_ok=True)
        self._run.record(side_name(part, side), None)

    def _kept(self, part: Set, side: Side, of: str) -> Path:
        return self._run.evaluation / ".kept" / f"{part.entry.label}-{side}-{of}.jsonl"


def _stay(_side: Side) -> None:
    """The switch of a model without an adapter."""


def side_name(part: Set, side: Side) -> str:
    """The ledger's name of one side's rows."""
    return f"evaluate/{part.entry.label}/{side}"
