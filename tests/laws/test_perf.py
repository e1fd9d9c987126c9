"""What perf/ counts is what it says."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def script() -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "perf")
        yield runpy.run_path(str(ROOT / "perf" / "least_work.py"))


@pytest.mark.parametrize("name", ["paired", "against"])
def test_an_unknown_part_is_a_usage_error(name: str) -> None:
    command = [sys.executable, str(ROOT / "perf" / f"{name}.py"), "darfts"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "invalid choice: 'darfts'" in done.stderr


@pytest.mark.parametrize("names", ["mlx-lm", "ours,mlx"])
def test_a_race_without_ours_or_with_an_unknown_name_is_a_usage_error(names: str) -> None:
    """It was a traceback at the end of the race, all of whose numbers were lost."""
    command = [sys.executable, str(ROOT / "perf" / "train_step.py"), "--contestants", names, "--steps", "5"]
    done = subprocess.run(command, env={"UPFT_SHARED": "none"}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"--contestants {names}: ours and some of ours whole, " in done.stderr


CONFIG = {
    "hidden_size": 4,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 10,
}


def test_the_operations_of_a_small_step_are_those_counted_by_hand(script: dict[str, Any]) -> None:
    """Two sequences of three tokens, five supervised positions, rank 16, one layer, nothing shared."""
    needed = script["products"](CONFIG, 2, 3, 0, 5)
    forward = 16 + 8 + 8 + 16 + 32 + 32 + 32  # q, k, v, o, gate, up, down
    backward = 16 + 32 + 32 + 32  # not to the inputs of q, k and v, which need no gradient in the first layer
    into, out, into_backward = 32, 32, 20
    lora = 16 * (into + out + out + out + into + into_backward)  # xA, (xA)B, to xA, to B, to A, to x
    attention = 4 * 6 * 3 * 3 * 2  # copies x heads, two products forward and four backward
    head = 2 * 5 * 4 * 10
    assert sum(script["flop"](key) * count for key, count in needed.items()) == 2 * (
        6 * (forward + backward + lora) + attention + head
    )


def test_shared_tokens_are_counted_once_and_end_in_the_last_layers_keys_and_values(script: dict[str, Any]) -> None:
    config = {**CONFIG, "num_hidden_layers": 2}
    needed = script["products"](config, 2, 3, 7, 5)
    assert needed["forward", 6, 8, 4] == 2  # down, own tokens, both layers
    assert needed["forward", 7, 8, 4] == 1  # down, shared tokens, not in the last layer
    assert needed["forward", 7, 4, 2] == 4  # k and v, both layers
    assert needed["attention", 4, 3, 2, 10] == 4  # scores and their gradient's product, over shared and own keys
    assert needed["attention", 2, 7, 2, 7] == 2  # the shared tokens among themselves, first layer only


def test_own_tokens_are_counted_whole_where_there_are_as_many_as_shared_ones(script: dict[str, Any]) -> None:
    """They were taken for the shared ones, and their last layer was left out."""
    needed = script["products"](CONFIG, 2, 3, 6, 5)
    assert needed["forward", 6, 8, 4] == 1  # down, own tokens
    assert needed["forward", 6, 4, 2] == 4  # k and v, own and shared tokens
    needed = script["products"](CONFIG, 1, 7, 7, 5)
    assert needed["attention", 2, 7, 2, 14] == 2  # the one layer's own tokens over shared and own keys


def test_the_timed_product_is_the_one_that_was_asked_for(script: dict[str, Any]) -> None:
    quantized = [("forward", 8, 64, 32), ("head", 8, 64, 32), ("backward", 8, 32, 64)]
    for key in (*quantized, ("dense", 4, 5, 6), ("attention", 2, 4, 5, 6)):
        assert script["timed"](key) > 0


def on_gpu(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "perf" / "on_gpu.py"), "--small", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_table_for_a_gpu_has_the_device_and_a_row_per_number(tmp_path: Path) -> None:
    done = on_gpu("--only", "memory", "--seconds", "9000", "--out", str(tmp_path / "table.md"))
    assert done.returncode == 0, done.stdout + done.stderr
    first, *rows = [line for line in done.stdout.splitlines() if line]
    assert f"mlx {metadata.version('mlx')}" in first
    assert len(rows) == 2 + 3  # head and rule, three peaks
    assert all(re.fullmatch(r"\| peak of .* \| [\d.]+, [\d.]+ \([+-]\d+%\) \|", row) for row in rows[2:])
    assert (tmp_path / "table.md").read_text(encoding="utf-8").strip() == done.stdout.strip()


def test_a_part_that_takes_too_long_is_a_row_and_no_success() -> None:
    done = on_gpu("--only", "memory", "--seconds", "0")
    assert done.returncode == 1
    assert "| memory | failed (ended after 0 s): " in done.stdout


def test_a_part_that_is_ended_leaves_nothing_running_beside_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "perf")
    script = runpy.run_path(str(ROOT / "perf" / "on_gpu.py"))
    with script["started"]("demo", "small", subprocess.DEVNULL, subprocess.DEVNULL) as process:

        def group() -> int:
            told = subprocess.run(["ps", "-A", "-o", "pgid="], capture_output=True, text=True, check=True)
            return told.stdout.split().count(str(process.pid))

        deadline = time.monotonic() + 60
        while group() < 2:  # the part, and `upft demo`
            assert time.monotonic() < deadline
            time.sleep(0.1)
    deadline = time.monotonic() + 10
    while group():
        assert time.monotonic() < deadline, "the demo runs on"
        time.sleep(0.1)


def test_parts_that_run_at_once_are_told_apart_by_who_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "perf")
    script = runpy.run_path(str(ROOT / "perf" / "on_gpu.py"))
    monkeypatch.setitem(script["compile_all"].__globals__, "started", lambda part, *_: sleeping(part))
    _, found = script["compile_all"](["0", "30"], "small", 2)
    assert re.fullmatch(r"[23] s; not done: 30", found)


@contextmanager
def sleeping(seconds: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", seconds]) as process:
        yield process
        process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="threads have CPU times in /proc on Linux only")
def test_the_time_of_python_and_of_mlx_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    import mlx.core as mx

    monkeypatch.syspath_prepend(ROOT / "perf")
    script = runpy.run_path(str(ROOT / "perf" / "turns.py"))
    eval_ = mx.eval
    with script["InMlx"]() as inside:

        def spent_in(work: Callable[[], object]) -> dict[str, float]:
            before = script["spent"](inside)
            work()
            return {name: seconds - before[name] for name, seconds in script["spent"](inside).items()}

        def count() -> None:
            end = time.thread_time() + 0.2
            while time.thread_time() < end:
                pass

        matrix = mx.random.normal((1024, 1024))
        mx.eval(matrix)
        python, mlx = spent_in(count), spent_in(lambda: mx.eval([matrix @ (matrix + n) for n in range(6)]))
    assert mx.eval is eval_
    assert python["Python"] > 0.15
    assert python["MLX"] + python["eval"] < 0.05
    assert mlx["MLX"] > 0.05
    assert mlx["Python"] < mlx["MLX"] / 4
