"""Checkpoints of a training run: adapter, optimizer and position in one folder, written atomically."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from upft_mlx.digests import digest
from upft_mlx.errors import TrainingError
from upft_mlx.rows import read_error, read_json, replacing, write_error, write_json
from upft_mlx.training.batches import StepCounts

if TYPE_CHECKING:
    import mlx.core as mx

_PARTS = ("adapters.safetensors", "optimizer.safetensors", "position.json")
_LATER = {"accuracy_before", "best_accuracy", "accuracy_step", "even"}
"""Fields of a position that those of earlier versions do not have."""
_DIGESTS = "digests.json"
"""The digests of the parts; checkpoints of earlier versions have none."""


@dataclass
class Position:
    """Where a run stands; with the arrays beside it, everything that the next step depends on."""

    step: int = 0
    """Steps done."""
    best_step: int = 0
    best_loss: float | None = None
    """The least validation loss so far, in nats per token."""
    window: dict[str, float] = field(default_factory=dict)
    """Sums since the last report."""
    trained_tokens: int = 0
    """Supervised tokens so far."""
    processed_tokens: int = 0
    """Tokens passed through the model so far, padding included."""
    padding_tokens: int = 0
    """The processed tokens that were padding."""
    accuracy_before: float | None = None
    """On validation problems, 0 to 1, before the first step; None where it is not measured."""
    best_accuracy: float | None = None
    """The highest after a step."""
    accuracy_step: int = 0
    even: bool = True
    """Whether steps share out an epoch's rows evenly (`batches.epoch_order`); earlier versions filled all but one."""

    def add(self, counts: StepCounts) -> None:
        """Count a step's tokens."""
        self.trained_tokens += counts.supervised_tokens
        self.processed_tokens += counts.processed_tokens
        self.padding_tokens += counts.padding_tokens

    def kept(self, save: str) -> int:
        """The step whose weights go to adapter/, by the recipe's `train.save`."""
        if save == "accuracy":
            return self.accuracy_step
        return self.best_step if save == "best" and self.best_loss is not None else self.step

    @property
    def padding(self) -> float:
        """The share of the processed tokens that was padding, 0 to 1."""
        return self.padding_tokens / max(1, self.processed_tokens)


def save_safetensors(path: Path, arrays: dict[str, mx.array]) -> None:
    """Write a safetensors file atomically.

    Raises:
        OSError: it cannot be written.
    """
    import mlx.core as mx

    with replacing(path) as temporary:
        try:
            mx.save_safetensors(str(temporary), arrays, {"format": "mlx"})
        except RuntimeError as error:
            raise write_error(error, path, sum(array.nbytes for array in arrays.values())) from None


def load_safetensors(path: Path) -> dict[str, mx.array]:
    """The arrays of a file that `save_safetensors` wrote.

    Raises:
        OSError: it cannot be read.
    """
    import mlx.core as mx

    try:
        return mx.load(str(path))  # type: ignore[return-value]  # other kinds of files hold one array
    except RuntimeError as error:
        raise read_error(error, path) from None


def save(
    folder: Path, position: Position, adapter: dict[str, mx.array], optimizer: dict[str, mx.array], keep: int
) -> None:
    """Write a checkpoint and remove all but the last `keep`."""
    final = folder / f"step-{position.step:07d}"
    temporary = folder / ".writing"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_safetensors(temporary / _PARTS[0], adapter)
    save_safetensors(temporary / _PARTS[1], optimizer)
    write_json(temporary / _PARTS[2], asdict(position))
    write_json(temporary / _DIGESTS, {name: digest(temporary / name) for name in _PARTS})
    before = folder / ".before"
    shutil.rmtree(before, ignore_errors=True)
    if final.exists():
        final.rename(before)
    temporary.rename(final)
    for old in (*_all(folder)[:-keep], before):
        shutil.rmtree(old, ignore_errors=True)


def latest(folder: Path) -> tuple[Position, dict[str, mx.array], dict[str, mx.array]] | None:
    """The last checkpoint: position, adapter arrays, optimizer arrays; None where there is none.

    Raises:
        TrainingError: it is incomplete; says what is missing.
    """
    import mlx.core as mx

    if not (found := _all(folder)):
        return None
    path, remedy = found[-1], "move this folder away to continue from the one before it, or from the start"
    if missing := [name for name in _PARTS if not (path / name).is_file()]:
        raise TrainingError(f"incomplete checkpoint, {', '.join(missing)} missing", remedy, path=path)
    known = read_json(path / _DIGESTS) or {}
    if damaged := [name for name, was in known.items() if digest(path / name) != was]:
        raise TrainingError(f"{damaged[0]} was changed after it was written", remedy, path=path)
    data = read_json(path / _PARTS[2])
    names = {f.name for f in fields(Position)}
    if not isinstance(data, dict) or not names - _LATER <= set(data) <= names:
        raise TrainingError("not a checkpoint's position", f"move {path} away", path=path / _PARTS[2])
    try:
        adapter, optimizer = (mx.load(str(path / name)) for name in _PARTS[:2])
        return Position(**{"even": False, **data}), adapter, optimizer  # type: ignore[return-value]  # as above
    except RuntimeError as error:
        raise TrainingError(f"damaged checkpoint: {error}", remedy, path=path) from None


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))
