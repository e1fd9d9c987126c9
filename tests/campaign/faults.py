"""Every call that opens, writes, synchronises, renames, cuts, makes or removes a file fails once, in every command.

The points are counted in an undisturbed run; then each fails in turn. What must hold: no result that was there is
gone, no traceback, success only with the right bytes, and the same command afterwards ends with the bytes of an
undisturbed run.
"""

from __future__ import annotations

import errno
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from .world import BAD, COMMANDS, Done, Server, arguments, begin, contents, everything, fresh, leftovers

ONCE, ON, TORN, KILL_BEFORE, KILL_AFTER, KILL_TORN = range(6)
HOW: dict[str, tuple[int, int]] = {
    "EIO": (errno.EIO, ONCE),
    "EACCES": (errno.EACCES, ONCE),
    "EMFILE": (errno.EMFILE, ONCE),
    "ENOSPC": (errno.ENOSPC, ONCE),
    "disk full from here": (errno.ENOSPC, ON),
    "torn": (errno.ENOSPC, TORN),
    "killed before": (0, KILL_BEFORE),
    "killed after": (0, KILL_AFTER),
    "killed in the middle": (0, KILL_TORN),
}
KINDS = {
    "read": ("EIO", "EACCES", "EMFILE"),
    "open": ("disk full from here", "EIO", "EACCES", "EMFILE", "killed after"),
    "write": ("disk full from here", "EIO", "torn", "killed in the middle"),
    "fsync": ("disk full from here", "EIO", "killed before"),
    "rename": ("ENOSPC", "EIO", "EACCES", "killed before", "killed after"),
    "unlink": ("EIO", "EACCES", "killed before"),
    "mkdir": ("disk full from here", "EIO", "EACCES", "killed after"),
    "truncate": ("EIO", "killed after"),
}
"""What happens to each kind of call; `read` opens a file for reading."""


class Faults:
    """States before each command, and what an undisturbed run of it leaves."""

    def __init__(self, folder: Path, names: Iterable[str] = tuple(COMMANDS)) -> None:
        """Run the commands of these names once, one after the other."""
        self.folder = folder
        self.server = Server(folder / "server")
        self.before: dict[str, Path] = {}
        self.expected: dict[str, dict[str, bytes]] = {}
        self.points: dict[str, list[str]] = {}
        state = begin(folder / "state")
        for name in names:
            self.before[name] = fresh(state, folder / "before" / name)
            case = fresh(state, folder / "case")
            counted = self.server.run(case, arguments(name, case), at=0)
            assert counted.status == 0, (name, counted.said)
            self.points[name] = counted.points
            self.expected[name] = contents(case)
            state = fresh(case, folder / "state")

    def cases(self, seed: int, *, every_write: bool = False) -> Iterator[tuple[str, str, int, str]]:
        """Command, point, its number and what happens to it, in an order drawn with the seed.

        Hundreds of writes go into one file of weights: of those to the same file the first two, one in the middle
        and the last are taken, unless all are asked for.
        """
        found = []
        for name, points in self.points.items():
            same = defaultdict(list)
            for number, point in enumerate(points, start=1):
                same[point].append(number)
            for number, point in enumerate(points, start=1):
                alike = same[point]
                some = {alike[0], alike[min(1, len(alike) - 1)], alike[len(alike) // 2], alike[-1]}
                if every_write or not point.startswith("write") or number in some:
                    found += [(name, point, number, kind) for kind in KINDS[point.split()[0]]]
        random.Random(seed).shuffle(found)
        yield from found

    def broken(self, name: str, point: str, number: int, kind: str) -> str:
        """What did not hold, in words; nothing where all did."""
        case = fresh(self.before[name], self.folder / "case")
        words, (number_of_error, how) = arguments(name, case), HOW[kind]
        had = contents(case)
        hit = self.server.run(case, words, at=number, errno=number_of_error, how=how)
        said = f"\n{hit.said[-600:]}"
        if hit.status is None:
            return "hangs" + said
        if BAD.search(hit.said):
            return "says what it should not" + said
        if hit.status not in ((-9, 0) if kind.startswith("killed") else (0, 1, 2)):
            return f"status {hit.status}" + said
        if hit.status and "Error" not in hit.error and hit.status > 0:
            return f"no message, status {hit.status}" + said
        full = kind in ("disk full from here", "torn", "ENOSPC") and not point.endswith(".safetensors")
        if full and hit.status == 1 and "make room" not in hit.error:  # MLX does not say why, and the disk is not full
            return "does not say that the disk is full" + said
        if hit.status == 0 and (wrong := differing(contents(case), self.expected[name])):
            return f"succeeds with other bytes: {wrong}" + said
        if name != "kept remove" and (lost := missing(had, case)):
            return f"lost: {lost}" + said
        return self._again(name, case, words, hit)

    def _again(self, name: str, case: Path, words: list[str], hit: Done) -> str:
        """The same command once more, undisturbed."""
        then = self.server.run(case, words)
        said = f"\nfirst: {hit.said[-400:]}\nthen: {then.said[-600:]}"
        done = name.startswith("kept") and "no kept version" in then.error
        if then.status != 0 and not done:
            return f"does not continue, status {then.status}" + said
        if BAD.search(then.said):
            return "says what it should not, afterwards" + said
        if wrong := differing(contents(case), self.expected[name]):
            return f"other bytes afterwards: {wrong}" + said
        if left := [path for path in leftovers(case) if ".tmp" in path]:
            return f"left behind: {left}" + said
        return ""


def differing(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    """The files that are not as expected."""
    return [name for name in sorted(found.keys() | expected.keys()) if found.get(name) != expected.get(name)]


def missing(had: dict[str, bytes], folder: Path) -> list[str]:
    """The results that are nowhere any more; cards, pages and recipe.json are written anew by many commands."""
    there, anew = everything(folder), ("README.md", "recipe.json", "report.html")
    results = {name: data for name, data in had.items() if not name.endswith(anew)}
    return [name for name, data in results.items() if data not in there]
