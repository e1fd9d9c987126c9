"""A connection from each rank to the leader, which ends a process with a message when the other side dies."""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from upft_mlx.machine.terminal import give_back

BEAT_SECONDS = 2.0
SILENCE_SECONDS = 20.0
"""A rank that was not heard for so long is taken for dead: its machine is off, or the cable out."""


def greeting(token: str, rank: int) -> bytes:
    """The first bytes that a follower sends."""
    return f"{token}{rank:08d}".encode()


def followers(listener: socket.socket, token: str, count: int) -> dict[int, socket.socket]:
    """The connections of `count` ranks that greet with the job's token; others are closed and delay no rank.

    Raises:
        TimeoutError: no other rank has greeted for `SILENCE_SECONDS`.
    """
    wanted = {greeting(token, rank): rank for rank in range(1, count + 1)}
    size = len(greeting(token, 0))
    peers, waiting = dict[int, socket.socket](), dict[socket.socket, bytes]()
    listener.setblocking(False)
    until = time.monotonic() + SILENCE_SECONDS
    try:
        while wanted:
            ready = select.select([listener, *waiting], [], [], max(0.0, until - time.monotonic()))[0]
            if not ready or time.monotonic() >= until:
                raise TimeoutError("timed out")
            for peer in ready:
                if peer is listener:
                    with suppress(OSError):  # whoever asked is gone
                        waiting[listener.accept()[0]] = b""
                    continue
                said, more = waiting.pop(peer), b""
                with suppress(OSError):
                    more = peer.recv(size - len(said))  # not more: the first beat may follow at once
                said += more
                if said in wanted:
                    peers[wanted.pop(said)] = peer
                    peer.settimeout(SILENCE_SECONDS)
                    until = time.monotonic() + SILENCE_SECONDS
                elif more and len(said) < size:
                    waiting[peer] = said
                else:
                    peer.close()
    finally:
        for peer in waiting:
            peer.close()
    return peers


class Lifeline(threading.Thread):
    """The connections to other ranks: a beat now and then, a word in leaving. Silence or an end without it is death."""

    def __init__(self, peers: dict[int, socket.socket], clean_up: Callable[[], None] = lambda: None) -> None:
        """`clean_up` is called before this ends the process: nothing else is then, not even `atexit`."""
        super().__init__(name="lifeline", daemon=True)
        self._peers, self._clean_up = dict(peers), clean_up
        self._stopped = threading.Event()

    def run(self) -> None:
        """Listen until all have taken leave."""
        heard = dict.fromkeys(self._peers, time.monotonic())
        buffers = dict.fromkeys(self._peers, "")
        beat = time.monotonic()
        while self._peers and not self._stopped.is_set():
            if time.monotonic() >= beat:  # not after each word heard: each beat would be answered by one
                self.say("beat")
                beat = time.monotonic() + BEAT_SECONDS
            sockets = {peer: number for number, peer in self._peers.items()}
            for peer in select.select(list(sockets), [], [], max(0.0, beat - time.monotonic()))[0]:
                number = sockets[peer]
                heard[number] = time.monotonic()
                try:
                    data = peer.recv(4096).decode(errors="replace")
                except OSError:
                    data = ""  # the other side is gone
                if self._stopped.is_set():
                    return
                if not data:
                    self._end(f"rank {number} is gone")
                *lines, buffers[number] = (buffers[number] + data).split("\n")
                for line in lines:
                    word, _, rest = line.partition(" ")
                    if word == "bye":
                        self._peers.pop(number).close()
                    elif word == "trouble":
                        who, _, what = rest.partition(" ")
                        self._end(f"rank {who} stopped: {what}")
            for number in self._peers:
                if time.monotonic() - heard[number] > SILENCE_SECONDS:
                    self._end(f"rank {number} is gone (no sign of life for {SILENCE_SECONDS:.0f} s)")

    def _end(self, why: str) -> None:
        """Tell the others, say it, and end the process: its main thread may wait for the dead rank inside MLX."""
        self.say(f"trouble {why.split()[1]} {why.partition('stopped: ')[2] or 'it is gone'}")
        give_back()
        sys.stderr.write(f"Error: {why}; run the same command to continue\n")
        sys.stderr.flush()
        self._clean_up()
        os._exit(1)

    def say(self, line: str) -> None:
        """A line to all that are connected."""
        for peer in list(self._peers.values()):
            with suppress(OSError):
                peer.sendall(f"{' '.join(line.split())}\n".encode())

    def stop(self) -> None:
        """Listen no longer."""
        self._stopped.set()
