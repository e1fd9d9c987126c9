"""How work is shared among ranks: all that sampling, evaluation, training and studies know of them.

Each function does with one rank what a program without ranks would do: all of the work is this process's, and what
all have made together is what it has made. The run directory and the screen are the business of the pipeline and of
the command line, which use `ranks.py` themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from upft_mlx.distributed.ranks import Item, Tree, ranks

Row = TypeVar("Row")


def rounds(items: Sequence[Item]) -> list[Sequence[Item]]:
    """The items in order, as many at a time as there are ranks."""
    return [items[start : start + ranks().size] for start in range(0, len(items), ranks().size)]


def mine(items: Sequence[Item]) -> Item | None:
    """This rank's of a round's items; None where they are fewer than the ranks."""
    number = ranks().rank
    return items[number] if number < len(items) else None


def made_by_all(round_: Sequence[Item], make: Callable[[Item], Sequence[Any]], row: type[Row]) -> Iterator[list[Row]]:
    """The rows, dataclasses of the kind `row`, of each item of a round in order; each rank makes those of its own."""
    own = mine(round_)
    rows = [] if own is None else make(own)
    for made in ranks().gather([asdict(item) for item in rows]):
        yield [row(**fields) for fields in made]


def shared_out(items: Sequence[Item]) -> list[tuple[Sequence[Item], bool]]:
    """Each rank's part of the items, and whether it is this rank's.

    Every rank knows all items, so that nobody needs to be told. Each takes every size-th: of items in order of length
    all have about the same to do. With fewer items than ranks some parts are empty.
    """
    return [(items[rank :: ranks().size], rank == ranks().rank) for rank in range(ranks().size)]


def summed(tree: Tree) -> Tree:
    """The sum over all ranks of each array in a tree of float32 arrays; the same bits on every rank."""
    return ranks().sum(tree)


def own_seed(seed: int) -> int:
    """A seed for noise that differs from rank to rank."""
    return seed + ranks().rank


def alone() -> bool:
    """Whether this process works alone, for what cannot be shared."""
    return ranks().size == 1


def leads() -> bool:
    """Whether this process does what only one may do, such as sending metrics to a service."""
    return ranks().leads


def led(root: Path, work: Callable[[], None]) -> None:
    """Let rank 0 do something in the run directory alone; the others get the files that it has made."""
    if ranks().leads:
        work()
    ranks().mirror(root)
