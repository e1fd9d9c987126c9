"""Several processes, on one or more Macs, that work on one recipe: `mlx.launch -n 2 -- upft train RECIPE`.

MLX's distributed engine calls each process a rank. All ranks run the same command. Rank 0 leads: it alone writes to
the run directory and to the screen. The others follow in a replica of that directory, which is made equal before each
stage, so that all take the same decisions from the same files. What they make (rows, gradients) is exchanged.

A rank that dies would leave the others waiting inside MLX, where no Python code runs. So each follower keeps a
connection of its own to rank 0, a lifeline, and a thread that ends the process with a message when it breaks.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from upft_mlx.digests import digest
from upft_mlx.distributed.lifeline import SILENCE_SECONDS, Lifeline, followers, greeting
from upft_mlx.errors import RankError
from upft_mlx.rows import write_atomically
from upft_mlx.rundir import changes

if TYPE_CHECKING:
    import mlx.core as mx

Tree = TypeVar("Tree")
Item = TypeVar("Item")

_SLICE = 1 << 26
"""Bytes per message when files are sent."""
_NOT_MIRRORED = (".lock", "fused", "export", "report.svg")


class Ranks:
    """All processes of a job as one of them sees them. This one is alone and does nothing; see `_Team`."""

    rank = 0
    """This process's number."""
    size = 1
    """Processes of the job."""

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def sum(self, tree: Tree) -> Tree:
        """The sum over all ranks of each array in a tree of float32 arrays; the same bits on every rank."""
        return tree

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return flag

    def gather(self, value: Item) -> list[Item]:
        """The values, made of what JSON has, of all ranks, in their order."""
        return [value]

    def agree(self, what: dict[str, Any]) -> None:
        """Refuse to work on different things.

        Raises:
            RankError: names what differs, and where.
        """

    def workplace(self, root: Path) -> Path:
        """Where this rank keeps the run directory `root`: the leader there, followers in a replica."""
        return root

    def mirror(self, root: Path) -> None:
        """Make the followers' replicas equal to the leader's run directory."""

    def leave(self, trouble: str | None = None) -> None:
        """Take leave of the other ranks; with `trouble`, they end too and say so."""


@cache
def ranks() -> Ranks:
    """The job that this process belongs to; joins it at the first call.

    Raises:
        RankError: the other ranks cannot be reached.
    """
    if not _launched():
        return Ranks()
    import mlx.core as mx

    try:
        group = mx.distributed.init(strict=True)
        return _Team(group) if group.size() > 1 else Ranks()
    except (RuntimeError, OSError) as error:
        number = os.environ["MLX_RANK"]
        raise RankError(
            f"rank {number}: cannot reach the other ranks: {error}", "check that all were started, and their addresses"
        ) from None


def joined() -> Ranks | None:
    """The job, if this process has joined one of several ranks already."""
    team = ranks() if ranks.cache_info().currsize else None
    return team if team is not None and team.size > 1 else None


def _launched() -> bool:
    """Whether mlx.launch (or somebody in its place) started this process as one of several."""
    if "MLX_RANK" not in os.environ:
        return False
    hostfile = os.environ.get("MLX_HOSTFILE")
    alone = hostfile is not None and len(_hosts(hostfile)) < 2
    return not alone and (hostfile is not None or "MLX_JACCL_COORDINATOR" in os.environ)


def _hosts(path: str) -> list[list[str]]:
    """Rank by rank the "address:port" of its connections; empty where there is a single one."""
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
        hosts: list[list[str]] = json.loads(text) if text else []
        return [[str(connection) for connection in rank] for rank in hosts]
    except (OSError, ValueError, TypeError) as error:
        raise RankError(f"{path}: not a list of each rank's addresses: {error}", field="MLX_HOSTFILE") from None


class _Team(Ranks):
    """Two ranks or more."""

    def __init__(self, group: mx.distributed.Group) -> None:
        self.rank, self.size = group.rank(), group.size()
        self._replica: Path | None = None
        self._left = False
        if self.leads:
            self._lifeline = self._lead()
        else:
            port, token = self._share(None)
            hostfile = os.environ.get("MLX_HOSTFILE")
            leader = _hosts(hostfile)[0][0] if hostfile else os.environ["MLX_JACCL_COORDINATOR"]
            peer = socket.create_connection((leader.rpartition(":")[0], port), timeout=SILENCE_SECONDS)
            peer.sendall(greeting(token, self.rank))
            self._lifeline = Lifeline({0: peer}, self._remove_replica)
        self._lifeline.start()
        atexit.register(self.leave)

    def _lead(self) -> Lifeline:
        listener = socket.create_server(("", 0))
        token = secrets.token_hex(8)
        self._share([listener.getsockname()[1], token])
        with listener:
            return Lifeline(followers(listener, token, self.size - 1))

    def sum(self, tree: Tree) -> Tree:
        """As one message: many small ones would each wait for the network."""
        import mlx.core as mx
        from mlx.utils import tree_flatten, tree_unflatten

        if isinstance(tree, mx.array):
            return self._all_sum(tree)  # type: ignore[return-value]
        names, arrays = zip(*tree_flatten(tree), strict=True)
        total = self._all_sum(mx.concatenate([array.reshape(-1) for array in arrays]))
        ends = [0]
        for array in arrays:
            ends.append(ends[-1] + array.size)
        parts = [total[a:b].reshape(array.shape) for a, b, array in zip(ends, ends[1:], arrays, strict=False)]
        found = tree_unflatten(list(zip(names, parts, strict=True)))
        return tuple(found) if isinstance(tree, tuple) else found  # type: ignore[return-value]

    def _all_sum(self, array: mx.array) -> mx.array:
        import mlx.core as mx

        total = mx.distributed.all_sum(array)
        mx.eval(total)
        return total

    def any(self, flag: bool) -> bool:
        """See `Ranks`."""
        import mlx.core as mx

        return bool(self._all_sum(mx.array(int(flag))).item())

    def gather(self, value: Item) -> list[Item]:
        """See `Ranks`."""
        import mlx.core as mx
        import numpy as np

        data = json.dumps(value).encode()
        sizes = [0] * self.size
        sizes[self.rank] = len(data)
        sizes = [int(size) for size in np.array(self._all_sum(mx.array(sizes)))]
        padded = np.zeros(max(sizes), np.uint8)
        padded[: len(data)] = np.frombuffer(data, np.uint8)
        everything = mx.distributed.all_gather(mx.array(padded[None]))
        mx.eval(everything)
        rows = np.array(everything)
        return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]

    def _share(self, value: Any) -> Any:
        """The leader's value on all ranks."""
        return self.gather(value if self.leads else None)[0]

    def agree(self, what: dict[str, Any]) -> None:
        """See `Ranks`."""
        views = self.gather(what)
        for number, view in enumerate(views):
            if different := changes(views[0], view):
                raise RankError(
                    f"rank {number} has another {', '.join(different)} than rank 0",
                    "all ranks need the same recipe, model and data, and the same versions of the packages",
                )

    def workplace(self, root: Path) -> Path:
        """See `Ranks`."""
        if self.leads:
            return root
        if self._replica is None:
            self._replica = Path(tempfile.mkdtemp(prefix="upft-rank-"))
        return self._replica / root.name

    def mirror(self, root: Path) -> None:
        """See `Ranks`; only files that differ are sent."""
        mine = _listing(root)
        wanted = self._share(mine)
        if not self.leads:
            for name in mine.keys() - wanted.keys():
                (root / name).unlink()
        missing = [name for name in wanted if mine.get(name) != wanted[name]]
        needed = sorted({name for names in self.gather(missing) for name in names})
        for name in needed:
            data = b"".join(self._slices(root / name))
            if not self.leads:
                write_atomically(root / name, data)

    def _slices(self, path: Path) -> Iterator[bytes]:
        """The leader's file, a message at a time."""
        import mlx.core as mx
        import numpy as np

        data = path.read_bytes() if self.leads else b""
        size: int = self._share(len(data))
        for start in range(0, size, _SLICE):
            part = np.zeros(min(_SLICE, size - start), np.uint8)
            if self.leads:
                part[:] = np.frombuffer(data[start : start + _SLICE], np.uint8)
            yield np.array(self._all_sum(mx.array(part))).tobytes()

    def leave(self, trouble: str | None = None) -> None:
        """See `Ranks`."""
        self._remove_replica()
        if not self._left:
            self._left = True
            self._lifeline.stop()
            self._lifeline.say("bye" if trouble is None else f"trouble {self.rank} {trouble}")

    def _remove_replica(self) -> None:
        if self._replica is not None:
            shutil.rmtree(self._replica, ignore_errors=True)


def _listing(root: Path) -> dict[str, str]:
    """Relative path to hash of each file that followers need, not of what only the leader makes or needs."""
    found = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        name = path.relative_to(root)
        alone = any(part == ".kept" or part.startswith(("fuse-", "export-")) for part in name.parts)
        if not alone and name.parts[0] not in _NOT_MIRRORED and not name.name.startswith("."):
            found[str(name)] = digest(path)
    return found
