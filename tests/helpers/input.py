"""What the tests of input share: files, the command in this process and in its own, and no network."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote_plus

import pytest
from click.testing import CliRunner, Result

from upft_mlx.cli.main import cli

ONE_PROBLEM = '{"question": "1 + 1?", "answer": "2"}\n'
MINIMAL = "model: builtin:arithmetic\nproblems: {builtin: arithmetic, limit: 4}\n"
"""A recipe without faults; three lines, so that what is appended begins on line 3."""

_GUARD = """
import os, sys

def refuse(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto"):
        host = arguments[1][0] if isinstance(arguments[1], tuple) else "127.0.0.1"
    else:
        return
    if host == "datasets-server.127.0.0.1":  # what `datasets` makes of the address of a stand-in for the Hub
        raise OSError("no such host")
    if host not in ALLOWED:
        os.write(2, f"NETWORK {event} {host!r}\\n".encode())
        os._exit(99)

sys.addaudithook(refuse)
"""
"""A `sitecustomize` that ends the process with status 99 when it reaches for a host that is not in ALLOWED."""

LOOPBACK = ("127.0.0.1", "::1", "localhost", None)


def write(path: Path, content: str | bytes) -> Path:
    """Write a file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def upft(*arguments: str | Path) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def assert_fails(result: Result, status: int, *parts: str) -> None:
    """One message on stderr that holds all of `parts`, this status, no traceback."""
    shown = result.stderr
    assert isinstance(result.exception, SystemExit), (result.exception, shown)
    assert result.exit_code == status, shown
    assert "Traceback" not in shown
    assert "unexpected" not in shown
    for part in parts:
        assert part in shown, (part, shown)


def process(
    *arguments: str | Path,
    cwd: Path,
    guard: Path,
    code: str | None = None,
    module: str = "upft_mlx",
    loopback: bool = True,
    prefix: tuple[str, ...] = (),
    seconds: float = 120,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run the command, or `code`, in a process of its own that dies when it reaches for the network.

    Without `loopback` it dies on any connection at all; `prefix` is put before the command, for example `unshare -n`.
    """
    allowed = LOOPBACK if loopback else ()
    write(guard / "sitecustomize.py", f"ALLOWED = {allowed!r}\n{_GUARD}")
    head = ["-c", code] if code is not None else ["-m", module]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_", "COLUMNS"))}
    paths = [str(guard), *filter(None, [kept.get("PYTHONPATH")])]  # the code under test may be found through it
    return subprocess.run(
        [*prefix, sys.executable, *head, *map(str, arguments)],
        cwd=cwd,
        env={**kept, "PYTHONPATH": os.pathsep.join(paths), "HF_HOME": str(guard / "hf"), **environment},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail the test if anything in this process reaches for the network, even if the code swallows it."""
    attempts: list[Any] = []
    connect, resolve = socket.socket.connect, socket.getaddrinfo

    def refuse(target: object) -> NoReturn:
        attempts.append(target)
        raise OSError(f"no network in tests: {target}")

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in LOOPBACK:
            refuse(address)
        connect(self, address)

    def guarded_resolve(host: Any, *arguments: Any, **options: Any) -> Any:
        return resolve(host, *arguments, **options) if host in LOOPBACK else refuse(host)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_resolve)
    yield
    assert not attempts


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """A Hugging Face Hub on the loopback device, with what its client asks for: info, tree and files."""

    def __init__(self, repos: dict[str, dict[str, bytes]], handler: type[BaseHTTPRequestHandler] | None = None) -> None:
        """`repos` maps `user/name` or `datasets/user/name` to files by name."""
        super().__init__(("127.0.0.1", 0), handler or HubHandler)
        self.repos = repos
        self.asked: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class HubHandler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        self._answer(self.rfile.read(length).decode())

    def log_message(self, format: str, *args: Any) -> None:
        self.server.asked.append(format % args)

    def _answer(self, body: str = "") -> None:
        path = self.path.partition("?")[0].strip("/")
        api = path.startswith("api/")
        path = path.removeprefix("api/").removeprefix("models/")
        repo = next((name for name in self.server.repos if f"{path}/".startswith(f"{name}/")), None)
        if repo is None:
            return self._send(404, b"{}", error="RepoNotFound")
        files, (verb, _, rest) = self.server.repos[repo], path[len(repo) + 1 :].partition("/")
        if verb == "resolve":
            content = files.get(rest.partition("/")[2])
            return self._send(404, b"", error="EntryNotFound") if content is None else self._send(200, content)
        if not api or verb not in ("", "revision", "tree", "paths-info"):
            return self._send(404, b"{}", error="EntryNotFound")
        if verb == "revision" and rest not in ("main", COMMIT):
            return self._send(404, b"{}", error="RevisionNotFound")
        entries = [
            {"type": "file", "path": name, "size": len(content), "oid": _sha(content)}
            for name, content in files.items()
            if verb != "paths-info" or quote_plus(name) in body or name in body
        ]
        siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
        info = {"id": repo, "sha": COMMIT, "siblings": siblings, **self._about(repo)}
        return self._send(200, json.dumps(entries if verb in ("tree", "paths-info") else info).encode())

    def _about(self, repo: str) -> dict[str, Any]:
        return {"tags": []}

    def _send(self, status: int, content: bytes, error: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{_sha(content)}"')
        if error:
            self.send_header("X-Error-Code", error)
            self.send_header("X-Error-Message", error)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _sha(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[None]:
    """The server answers in a thread while the block runs."""
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


@contextmanager
def fake_hub(repos: dict[str, dict[str, bytes]]) -> Iterator[FakeHub]:
    """A running stand-in for the Hub."""
    with FakeHub(repos) as hub, serving(hub):
        yield hub
