"""Where the campaign works: a small recipe, folders in each state of a run, commands, and what may differ."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent.parent / "upft_mlx" / "demo" / "model"
RECIPE = """\
model: builtin:arithmetic
problems: {builtin: arithmetic, limit: 8}
generate: {max_tokens: 24, batch_size: 4}
prefix: {length: 6, structure_ratio: 0.25}
lora: {rank: 2}
train: {batch_size: 4, learning_rate: 1.0e-3, checkpoint_every: 1, validate_every: 1}
evaluate: {max_tokens: 24, batch_size: 4, benchmarks: [{name: arithmetic, limit: 4}]}
publish: {fuse: fp16, min_retained: 0, repo: someone/something}
"""
COMMANDS: dict[str, list[str]] = {
    "generate": ["generate", "r.yaml"],
    "build": ["build", "r.yaml"],
    "train": ["train", "r.yaml"],
    "evaluate": ["evaluate", "r.yaml"],
    "fuse": ["fuse", "r.yaml"],
    "run": ["run", "r.yaml"],
    "export peft": ["export", "r.yaml", "--format", "peft"],
    "export dequantized": ["export", "r.yaml", "--format", "dequantized"],
    "push --dry-run": ["push", "r.yaml", "--dry-run"],
    "show": ["show", "r"],
    "train again": ["train", "r.yaml", "--set", "train.learning_rate=2e-3"],
    "kept restore": ["kept", "runs/r", "--restore", "KEPT"],
    "kept remove": ["kept", "runs/r", "--remove", "KEPT"],
    "new": ["new", "model", "my.jsonl", "--output", "my.yaml"],
    "preview": ["preview", "r.yaml"],
    "plan": ["plan", "r.yaml"],
}
"""In the order in which a run is made; each works on what those before it left."""
QUESTIONS = "".join(json.dumps({"question": f"{n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(9))
BAD = re.compile(r"Traceback|unexpected |Exception ignored|Segmentation|core dumped|terminate called")
CLOCK = re.compile(
    rb'"(seconds|tokens_per_second|peak_memory_bytes|check|created|when|time|saved)": [^,}\n]+'
    rb"|[\d.,]+ (s|min|h|GB|MB|tokens/s)\b"
    rb'|<tr><th scope="row">(generate|build|train|evaluate|fuse)</th>[^\n]*'  # what a stage cost, in report.html
)
VOLATILE = {"ledger.json", ".ledger.json", "install.json", "entry.json", ".lock", "report.md", "report.svg"}
"""Files that contain times or digests of times, so their bytes differ between two runs of one command."""


@dataclass
class Done:
    """A command that has ended."""

    status: int | None
    out: str
    error: str
    points: list[str]

    @property
    def said(self) -> str:
        """All that it printed."""
        return self.out + self.error


class Server:
    """Runs commands in forks of a warm process, faults included."""

    def __init__(self, folder: Path, *, faults: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.out = folder
        command, environment = [sys.executable, str(HERE / "server.py")], {**os.environ, "PYTHONUNBUFFERED": "1"}
        environment.pop(
            "MLX_DISABLE_COMPILE", None
        )  # the suite's; that a kernel cannot be compiled is one of the faults
        if faults:
            library = compile_faults(folder)
            command.append(str(library))
            environment["LD_PRELOAD"] = f"{library} {os.environ.get('LD_PRELOAD', '')}".strip()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def run(
        self,
        cwd: Path,
        arguments: list[str],
        *,
        at: int = -1,
        errno: int = 0,
        how: int = 0,
        signals: Sequence[tuple[float, int]] = (),
        code: str = "",
    ) -> Done:
        """One command; `at` 0 counts the points, -1 does nothing, and another number fails that point.

        `signals` are sent to it: seconds after its start, and the number. `code` runs in place of the command, with its
        arguments.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        home = cwd / "home"
        environment = {
            "HOME": str(home),
            "HF_HOME": str(home / "hf"),
            "XDG_CACHE_HOME": str(home / "cache"),
            "TMPDIR": str(cwd / "tmp"),
            "COLUMNS": "200",
            "NO_COLOR": "1",
        }
        job: dict[str, Any] = {
            "cwd": str(cwd),
            "out": str(self.out),
            "args": [*arguments, *(["--plain"] if arguments[0] in PLAIN else [])],
            "env": environment,
            "at": at,
            "errno": errno,
            "how": how,
            "seconds": 120,
            "signals": list(signals),
            "code": code,
        }
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        status = json.loads(self.process.stdout.readline())
        texts = [(self.out / name).read_text(errors="replace") for name in ("stdout", "stderr", "points")]
        return Done(status, texts[0], texts[1], texts[2].splitlines() if at == 0 else [])

    def close(self) -> None:
        """End it."""
        self.process.communicate()


PLAIN = {"generate", "build", "train", "evaluate", "fuse", "run", "export", "push"}


def compile_faults(folder: Path) -> Path:
    """The library that makes calls fail; raises where there is no compiler."""
    target = folder / "faults.so"
    if not target.exists():
        command = ["cc", "-shared", "-fPIC", "-O1", "-w", "-o", str(target), str(HERE / "faults.c"), "-ldl"]
        subprocess.run(command, check=True)
    return target


def begin(folder: Path) -> Path:
    """A working directory with the recipe and a file of questions."""
    for name in ("home", "tmp"):
        (folder / name).mkdir(parents=True)
    (folder / "r.yaml").write_text(RECIPE)
    (folder / "my.jsonl").write_text(QUESTIONS)
    shutil.copytree(MODEL, folder / "model")
    return folder


def fresh(source: Path, target: Path) -> Path:
    """A copy of a state, in place of what is there."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)
    return target


def arguments(name: str, folder: Path) -> list[str]:
    """A command's arguments; KEPT is the version that is kept in that folder."""
    kept = sorted(path.name for path in folder.glob("runs/r/.kept/*"))
    return [kept[0] if word == "KEPT" and kept else word for word in COMMANDS[name]]


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a working directory that a user sees and that repeat byte by byte, what clocks say left out."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if not path.is_file() or inside.parts[0] in ("home", "tmp") or path.name in VOLATILE:
            continue
        if any(part.startswith(".") for part in inside.parts) and ".kept" not in inside.parts:
            continue
        found[inside.as_posix()] = comparable(path)
    return found


def comparable(path: Path) -> bytes:
    """The bytes of a file without what clocks say."""
    data = path.read_bytes()
    return data if path.suffix in (".safetensors", ".so") else CLOCK.sub(b"", data)


def leftovers(folder: Path) -> list[str]:
    """Hidden files that a finished command leaves and should not."""
    known = {".lock", ".ledger.json", ".kept"}
    hidden = [path for path in folder.rglob("*") if path.name.startswith(".") and path.name not in known]
    return [str(path.relative_to(folder)) for path in hidden]


def everything(folder: Path) -> set[bytes]:
    """The contents of all files, wherever they are, as they would compare."""
    return {comparable(path) for path in folder.rglob("*") if path.is_file()}
