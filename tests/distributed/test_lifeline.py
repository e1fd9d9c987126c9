"""The connections between ranks, over loopback in one process: who is let in, and what keeps them alive."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack

import pytest

from upft_mlx.distributed import lifeline


def test_waiting_ranks_beat_at_intervals_and_not_in_answer_to_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two ranks that answered each other used half a core each."""
    said: list[str] = []

    class Heard(lifeline.Lifeline):
        def say(self, line: str) -> None:
            said.append(line)
            super().say(line)

    monkeypatch.setattr(lifeline, "BEAT_SECONDS", 0.2)
    ends = socket.socketpair()
    team = [Heard({1 - number: end}) for number, end in enumerate(ends)]
    for one in team:
        one.start()
    time.sleep(0.9)
    for one in team:
        one.stop()
    for one, end in zip(team, ends, strict=True):
        one.join(5)
        end.close()
    assert set(said) == {"beat"}
    assert 4 <= len(said) <= 12, len(said)  # five of each, on a machine that is not busy


def test_strangers_delay_no_rank_and_are_closed() -> None:
    """A silent one blocked the leader for 20 s, and one with another job's token stayed open."""
    token, start = "0123456789abcdef", time.monotonic()
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        silent, stranger, torn, second, first = [
            stack.enter_context(socket.create_connection(listener.getsockname(), timeout=5)) for _ in range(5)
        ]
        stranger.sendall(lifeline.greeting("f" * 16, 1))
        torn.sendall(b"GET /")
        torn.shutdown(socket.SHUT_WR)
        first.sendall(lifeline.greeting(token, 1) + b"beat\n")
        second.sendall(lifeline.greeting(token, 2)[:9])
        threading.Timer(0.2, second.sendall, [lifeline.greeting(token, 2)[9:]]).start()
        peers = lifeline.followers(listener, token, 2)
        for peer in peers.values():
            stack.enter_context(peer)
        assert {number: peer.getpeername() for number, peer in peers.items()} == {
            1: first.getsockname(),
            2: second.getsockname(),
        }
        assert peers[1].recv(100) == b"beat\n", "what follows a greeting is left to the lifeline"
        assert [end.recv(1) for end in (silent, stranger, torn)] == [b"", b"", b""]
    assert time.monotonic() - start < 4


def test_the_leader_waits_no_longer_than_a_silence_for_missing_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifeline, "SILENCE_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as silent:
        with pytest.raises(TimeoutError, match="timed out"):
            lifeline.followers(listener, "0123456789abcdef", 1)
        assert silent.recv(1) == b""
