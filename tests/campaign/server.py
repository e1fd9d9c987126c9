"""Commands in forks of one process that has imported everything: half a second each instead of four.

Reads a job as JSON on each line of its standard input and answers with one line: the exit status, or, of a job with
`seconds` null, the number of the process, whose exit status `{"ended": NUMBER}` then asks for: null while it runs.
`python server.py [FAULTS.SO]`.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import signal
import sys
import time
from pathlib import Path
from typing import Any


def work(job: dict[str, Any], library: ctypes.CDLL | None) -> None:
    """In the fork: the command, with the fault armed."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background processes ignore
    os.chdir(job["cwd"])
    folder = Path(job["out"])
    for descriptor, name in ((0, os.devnull), (1, folder / "stdout"), (2, folder / "stderr")):
        flags = os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(name, flags, 0o666), descriptor)
    os.environ.update(job["env"])
    sys.argv = ["upft", *job["args"]]
    if job.get("code"):
        exec(job["code"], {"__name__": "__main__"})
        return
    log = os.open(folder / "points", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    if library is not None:
        library.fault_arm(job["cwd"].encode(), ctypes.c_long(job["at"]), job["errno"], job["how"], log)
    from upft_mlx.__main__ import main

    main()


def waited(pid: int, seconds: float, signals: list[tuple[float, int]]) -> int | None:
    """The exit status of a process, minus the signal that ended it; None where it took too long and was ended."""
    start = time.monotonic()
    while time.monotonic() < start + seconds:
        while signals and time.monotonic() > start + signals[0][0]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signals.pop(0)[1])
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.003)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def serve() -> None:
    """Answer jobs until the input ends."""
    import upft_mlx

    for module in pkgutil.walk_packages(upft_mlx.__path__, "upft_mlx."):
        if ".demo." not in module.name and "__main__" not in module.name:
            importlib.import_module(module.name)
    for name in ("mlx_lm", "mlx_lm.tokenizer_utils", "transformers.models.auto", "pyarrow.json", "scipy.stats"):
        importlib.import_module(name)
    library = ctypes.CDLL(sys.argv[1]) if len(sys.argv) > 1 else None
    answers = os.fdopen(os.dup(1), "w")
    gc.freeze()  # or each fork copies what its collector touches
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        if "ended" in job:
            found, status = os.waitpid(job["ended"], os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if found else None), file=answers, flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            return work(job, library)
        if job["seconds"] is None:
            print(pid, file=answers, flush=True)
            continue
        print(json.dumps(waited(pid, job["seconds"], job["signals"])), file=answers, flush=True)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)  # what it left behind
    return None


if __name__ == "__main__":
    serve()
