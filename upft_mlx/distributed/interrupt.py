"""Ctrl-C that lets the step in hand finish, on all ranks the same one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from upft_mlx.distributed.ranks import ranks


class Interrupt:
    """Whether Ctrl-C was pressed."""

    asked = False
    """In this process."""

    def anywhere(self) -> bool:
        """Whether it was pressed in any rank; all ranks must ask at the same point."""
        return ranks().any(self.asked)

    def leave(self) -> None:
        """Take leave of the other ranks, which have stopped at the same point; none takes it for trouble."""
        ranks().any(True)  # all have come so far
        ranks().leave()


@contextmanager
def deferred_interrupt() -> Iterator[Interrupt]:
    """Within the block the first Ctrl-C only sets `asked`; a second one raises KeyboardInterrupt as usual.

    Signals reach the main thread alone; in others nothing changes.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    previous = signal.getsignal(signal.SIGINT)

    def handler(number: int, frame: FrameType | None) -> None:
        if interrupt.asked:
            raise KeyboardInterrupt
        interrupt.asked = True

    signal.signal(signal.SIGINT, handler)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, previous)
