"""The fused model behind mlx-lm's own server, over loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
from conftest import MODEL
from helpers.adapter import Q4, run, write_adapter
from mlx_lm.generate import generate
from mlx_lm.utils import load as mlx_lm_load

from upft_mlx.fusing.fuse import fuse
from upft_mlx.models.load import load
from upft_mlx.recipe.schema import Recipe
from upft_mlx.rundir import RunDir

__all__ = ["run"]

MESSAGES = [{"role": "user", "content": "Ann has 12 apples and buys 7 more. How many apples are there?"}]


@contextmanager
def serving(model: Path, log: Path) -> Iterator[str]:
    """`mlx_lm server` on a free port; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "mlx_lm",
        "server",
        "--model",
        str(model),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with log.open("w") as stream:
        server = subprocess.Popen(command, stdout=stream, stderr=stream, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        yield f"http://127.0.0.1:{port}/v1/chat/completions"
    finally:
        server.kill()
        server.wait()


def ask(address: str, body: dict[str, Any], log: Path) -> dict[str, Any]:
    request = Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    for _ in range(600):
        try:
            with urlopen(request, timeout=60) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except URLError as error:
            if not isinstance(error.reason, ConnectionRefusedError):  # it is there, and fails
                raise
            time.sleep(0.1)
    pytest.fail(log.read_text())


def test_mlx_lms_server_answers_with_the_fused_model(
    make_recipe: Callable[..., Recipe], run: RunDir, tmp_path: Path
) -> None:
    write_adapter(run, 0.02, Q4)
    fuse(make_recipe(publish={"fuse": "fp16"}), load(MODEL, quantize=Q4), run)
    model, tokenizer, *_ = mlx_lm_load(str(run.fused))
    expected = generate(
        model, tokenizer, tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True), max_tokens=24
    )
    log = tmp_path / "log"
    with serving(run.fused, log) as address:
        answer = ask(address, {"messages": MESSAGES, "temperature": 0, "max_tokens": 24}, log)
    assert expected.strip()
    assert answer["choices"][0]["message"]["content"] == expected
