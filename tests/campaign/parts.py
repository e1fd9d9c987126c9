"""The parts of the campaign: each gives cases: a key, what runs it and says what did not hold, a count."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from upft_mlx.dataset.prefix import structure_numbers

from . import mutants
from .faults import Faults, differing
from .world import BAD, Done, Server, arguments, begin, contents, fresh

Cases = Iterator[tuple[str, Callable[[], str], int]]
RUN = ["run", "r.yaml"]


def faults(folder: Path, seed: int) -> Cases:
    """Each call that fails; see faults.py."""
    world = Faults(folder)
    for name, point, number, kind in world.cases(seed):
        yield f"{name} : {number} {point} : {kind}", partial(world.broken, name, point, number, kind), 1


class Whole:
    """A run from its beginning to its end, disturbed and run again; its bytes are those of an undisturbed one."""

    def __init__(self, folder: Path) -> None:
        self.server, self.folder = Server(folder / "server", faults=False), folder
        self.empty = begin(folder / "empty")
        self.server.run(fresh(self.empty, folder / "warm"), RUN)  # compiles MLX's kernels
        shutil.copytree(folder / "warm" / "tmp", self.empty / "tmp", dirs_exist_ok=True)
        self.done, start = fresh(self.empty, folder / "done"), time.monotonic()
        assert self.server.run(self.done, RUN).status == 0
        self.seconds = time.monotonic() - start
        self.expected = contents(self.done)

    def unlike(self, case: Path, done: Done, statuses: Sequence[int | None]) -> str:
        """What is wrong with how a command ended, and with how the same command ends then."""
        if done.status not in statuses or BAD.search(done.said):
            return f"status {done.status}\n{done.said[-800:]}"
        then = self.server.run(case, RUN)
        if then.status != 0 or BAD.search(then.said):
            return f"does not continue: {then.status}\n{then.said[-800:]}"
        wrong = differing(contents(case), self.expected)
        return f"other bytes afterwards: {wrong}" if wrong else ""


def signals(folder: Path, seed: int) -> Cases:
    """Signals at random moments of a whole run, the six kinds in turns."""
    world, rng = Whole(folder), random.Random(seed)
    kinds: dict[str, tuple[list[tuple[float, int]], list[int]]] = {
        "SIGKILL": ([(0, signal.SIGKILL)], [-9]),
        "SIGTERM": ([(0, signal.SIGTERM)], [-15]),
        "SIGHUP": ([(0, signal.SIGHUP)], [-1]),
        "SIGINT": ([(0, signal.SIGINT)], [130, -2]),  # -2: while Python ends, after all is done
        "SIGINT twice": ([(0, signal.SIGINT), (0.05, signal.SIGINT)], [130, -2]),
        "SIGSTOP, SIGCONT": ([(0, signal.SIGSTOP), (0.3, signal.SIGCONT)], []),
    }

    def struck(kind: str, moment: float) -> str:
        case = fresh(world.empty, folder / "case")
        sent, statuses = kinds[kind]
        hit = world.server.run(case, RUN, signals=[(moment + later, number) for later, number in sent])
        return world.unlike(case, hit, [0, *statuses])

    for number in range(200):
        kind, moment = list(kinds)[number % len(kinds)], rng.random() * world.seconds
        yield f"{kind} : {number} at {moment:.2f} s", partial(struck, kind, moment), 1


def damage(folder: Path, seed: int) -> Cases:
    """One damage to each file of a finished run: the bytes come back, or a message names the file; none is pushed."""
    world, rng = Whole(folder), random.Random(seed)
    files = sorted(path.relative_to(world.done) for path in world.done.glob("runs/**/*") if path.is_file())
    commands = {
        "run": RUN,
        "evaluate": arguments("evaluate", world.done),
        "export": arguments("export dequantized", world.done),
        "push --dry-run": arguments("push --dry-run", world.done),
        "show": ["show", "r"],
    }
    kinds = ("flipped", "cut", "empty", "longer", "gone", "a folder", "a link", "noise")

    def damaged(command: str, name: Path, kind: str) -> str:
        case = fresh(world.done, folder / "case")
        data = (case / name).read_bytes()
        _damage(case / name, kind, rng)
        done = world.server.run(case, commands[command])
        if done.status not in (0, 1, 2) or BAD.search(done.said):
            return f"status {done.status}\n{done.said[-800:]}"
        if done.status == 0 and command != "show":
            found = {
                file: text
                for file, text in contents(case).items()
                if not file.startswith(("runs/r/export/", "runs/r/.kept/"))
            }
            unread = "checkpoints" in name.parts or command in ("push --dry-run", "export", "evaluate")
            page = case / "runs/r/report.html"
            if unread and page.is_file() and f"{name.name}: " in page.read_text():  # it says what it leaves out
                found["runs/r/report.html"] = world.expected["runs/r/report.html"]
            wrong = [file for file in differing(found, world.expected) if not (unread and file == str(name))]
            result = name.parts[2] in ("fused",) and name.name not in ("README.md", "LICENSE")
            if wrong or (command == "push --dry-run" and result and (case / name).read_bytes() != data):
                return f"accepted, with {wrong or name}\n{done.said[-800:]}"
        if done.status and name.name not in done.said:
            return f"does not name it\n{done.said[-800:]}"
        return ""

    cases = [(command, name, kind) for command in commands for name in files for kind in kinds]
    random.Random(seed).shuffle(cases)
    for command, name, kind in cases:
        yield f"{command} : {name} : {kind}", partial(damaged, command, name, kind), 1


def _damage(path: Path, kind: str, rng: random.Random) -> None:
    data, middle = path.read_bytes(), path.stat().st_size // 2
    contents = {
        "flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if data else b"x",
        "cut": data[:middle],
        "empty": b"",
        "longer": data + b"\n",
        "noise": rng.randbytes(len(data) or 9),
    }
    if kind in contents:
        path.write_bytes(contents[kind])
        return
    path.unlink()
    if kind == "a folder":
        path.mkdir()
    elif kind == "a link":
        path.symlink_to("/nowhere/at/all")


def hostile(folder: Path, seed: int) -> Cases:
    """The model folders that tests/laws has for them, through the command: a message, in time and memory."""
    tests = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(tests), str(tests / "laws")]
    from helpers.untrusted import change
    from test_untrusted_chat_templates_tokenizers import HOSTILE_FILES, HOSTILE_TEMPLATES

    server = Server(folder / "server", faults=False)
    commands = {
        "plan": ["plan", "h.yaml"],
        "preview": ["preview", "h.yaml"],
        "generate": ["generate", "h.yaml"],
        "new": ["new", "model", "my.jsonl", "--output", "new.yaml"],
    }

    def met(kind: str, command: str) -> str:
        shutil.rmtree(folder / "case", ignore_errors=True)
        case = begin(folder / "case")
        if kind in HOSTILE_FILES:
            HOSTILE_FILES[kind][0](case / "model")
        else:
            change(case / "model" / "tokenizer_config.json", chat_template=HOSTILE_TEMPLATES[kind])
            (case / "model" / "chat_template.jinja").unlink(missing_ok=True)
        (case / "h.yaml").write_text("model: ./model\nproblems: {builtin: arithmetic, limit: 4}\n")
        start = time.monotonic()
        done = server.run(case, commands[command])
        seconds = time.monotonic() - start
        allowed = (1, 2) if command == "generate" else (0, 1, 2)  # the others do not look at everything
        if done.status not in allowed or BAD.search(done.said) or (done.status and "Error" not in done.error):
            return f"status {done.status}\n{done.said[-800:]}"
        return f"took {seconds:.0f} s" if seconds > 60 else ""

    for kind in [*HOSTILE_FILES, *HOSTILE_TEMPLATES]:
        for command in commands:
            yield f"{command} : {kind}", partial(met, kind, command), 1


def full(folder: Path, seed: int) -> Cases:
    """A small file system that fills in the middle of a run, and then grows."""
    place = folder / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        print("full: mounting is not allowed here; skipped", file=sys.stderr)
        return
    subprocess.run(["umount", str(place)], check=True)
    world = Whole(folder)
    needed = sum(path.stat().st_blocks * 512 for path in world.done.rglob("*"))
    before = sum(path.stat().st_blocks * 512 for path in world.empty.rglob("*"))

    def fills(size: int) -> str:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)], check=True)
        try:
            case = place / "case"
            shutil.copytree(world.empty, case)
            done = world.server.run(case, RUN)
            if done.status == 1 and "make room" not in done.error:
                return f"does not say that the disk is full\n{done.said[-800:]}"
            subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
            return world.unlike(case, done, [0, 1])
        finally:
            subprocess.run(["umount", "-l", str(place)], check=True)

    sizes = [before + 65536 + (needed - before) * number // 47 for number in range(50)]
    random.Random(seed).shuffle(sizes)
    for size in sizes:
        yield f"tmpfs : {size} bytes", partial(fills, size), 1


def together(folder: Path, seed: int) -> Cases:
    """Two commands at once on one run: one waits for nobody, and neither spoils the other's work."""
    world, rng = Whole(folder), random.Random(seed)
    other = Server(folder / "other", faults=False)
    pairs = {
        "run, run": RUN,
        "run, train": ["train", "r.yaml"],
        "run, show": ["show", "r"],
        "run, push --dry-run": ["push", "r.yaml", "--dry-run"],
        "run, export": ["export", "r.yaml", "--format", "peft"],
        "run, kept": ["kept", "runs/r"],
    }

    def both(second: list[str], moment: float) -> str:
        case, found = fresh(world.empty, folder / "case"), []

        def later() -> None:
            time.sleep(moment)
            found.append(other.run(case, second))

        thread = threading.Thread(target=later)
        thread.start()
        first = world.server.run(case, RUN)
        thread.join()
        for done in (first, *found):
            if done.status not in (0, 1) or BAD.search(done.said) or (done.status and "Error" not in done.error):
                return f"status {done.status}\n{done.said[-800:]}"
        shutil.rmtree(case / "runs" / "r" / "export", ignore_errors=True)
        return world.unlike(case, first, [0, 1])

    for number in range(10 * len(pairs)):
        name, moment = list(pairs)[number % len(pairs)], rng.random() * world.seconds
        yield f"{name} : {number} at {moment:.2f} s", partial(both, pairs[name], moment), 1


def long(folder: Path, seed: int) -> Cases:
    """A training of UPFT_CAMPAIGN_MINUTES (60): memory, descriptors and CPU per step stay what they are."""
    minutes = float(os.environ.get("UPFT_CAMPAIGN_MINUTES", "60"))

    def trains() -> str:
        case = begin(folder / "case")
        settings = ("train.epochs=100000", "train.checkpoint_every=50", "train.validate_every=50", "problems.limit=64")
        sets = [word for setting in settings for word in ("--set", setting)]
        command = [sys.executable, "-m", "upft_mlx"]
        for stage in ("generate", "build"):
            subprocess.run([*command, stage, "r.yaml", *sets], cwd=case, check=True, capture_output=True)
        process = subprocess.Popen(
            [*command, "train", "r.yaml", *sets, "--plain"],
            cwd=case,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )
        samples = []
        end = time.monotonic() + minutes * 60
        while time.monotonic() < end and process.poll() is None:
            time.sleep(2)
            samples.append(_sample(process.pid, case))
        process.kill()
        process.wait()
        return _steady([sample for sample in samples if sample[3] > 0])

    yield f"training : {minutes:g} minutes", trains, 1


def _sample(pid: int, case: Path) -> tuple[int, int, float, int]:
    """Resident memory (KB), descriptors, CPU (s) and steps of a training."""
    status = Path(f"/proc/{pid}/status").read_text()
    memory = int(status.partition("VmRSS:")[2].split()[0])
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    metrics = list(case.glob("runs/r/.work/train-*/metrics.jsonl"))
    steps = json.loads(metrics[0].read_bytes().splitlines()[-1])["step"] if metrics and metrics[0].stat().st_size else 0
    return memory, len(os.listdir(f"/proc/{pid}/fd")), (int(ticks[11]) + int(ticks[12])) / 100, steps  # noqa: PTH208


def _steady(samples: list[tuple[int, int, float, int]]) -> str:
    """What grew between the second quarter and the last one."""
    quarter = len(samples) // 4
    parts = [samples[quarter : 2 * quarter], samples[3 * quarter :]]
    memory = [max(sample[0] for sample in part) for part in parts]
    descriptors = [min(sample[1] for sample in part) for part in parts]  # always held, not just while writing
    cost = [(part[-1][2] - part[0][2]) / (part[-1][3] - part[0][3]) for part in parts]
    facts = f"memory {memory} KB, descriptors {descriptors}, CPU per step {cost[0]:.5f} and {cost[1]:.5f} s, "
    facts += f"{samples[-1][3]} steps"
    print(facts, file=sys.stderr)
    steady = memory[1] < 1.03 * memory[0] and descriptors[1] <= descriptors[0] and cost[1] < 1.03 * cost[0]
    return "" if steady else facts


BUILD = """
import sys
from upft_mlx import load_recipe
from upft_mlx.data.on_disk import recipe_problems
from upft_mlx.dataset.build import build
from upft_mlx.models.load import load_tokenizer
from upft_mlx.rundir import RunDir
from pathlib import Path
recipe = load_recipe("big.yaml")
print(build(recipe, load_tokenizer(Path("model")), recipe_problems(recipe), RunDir("runs/big")))
"""


def large(folder: Path, seed: int) -> Cases:
    """`new` with 300,000 questions, `build` with 1,000,000 problems: little memory for each one more."""

    def memory(command: Sequence[str], case: Path) -> int:
        process = subprocess.Popen(command, cwd=case, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0
        return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    def questions(case: Path, count: int) -> None:
        with (case / "big.jsonl").open("w") as file:
            for n in range(count):
                question = f"Tom has {n} apples and buys {n % 97} more. How many apples does he have in the end?"
                file.write(json.dumps({"question": question, "answer": str(n + n % 97)}) + "\n")

    def new(count: int) -> int:
        case = begin(folder / f"new-{count}")
        questions(case, count)
        command = [sys.executable, "-m", "upft_mlx", "new", "model", "big.jsonl", "--output", "new.yaml"]
        return memory(command, case)

    def build(count: int) -> int:
        case = begin(folder / f"build-{count}")
        questions(case, count)
        (case / "big.yaml").write_text("model: ./model\nproblems: {path: big.jsonl}\n")
        (case / "runs" / "big").mkdir(parents=True)
        full = structure_numbers(count, 0.1, 0)
        with (case / "runs" / "big" / "solutions.jsonl").open("w") as file:
            for n in range(count):
                ends = {"kind": "full", "finish_reason": "stop", "stop_id": 0} if n in full else {"kind": "prefix"}
                row = {"problem_id": str(n), "sample": 0, "completion_ids": [5 + n % 40] * 16, "completion": "so"}
                file.write(json.dumps({**row, "finish_reason": "length", **ends}) + "\n")
        (case / "runs" / "big" / "dataset").mkdir()
        return memory([sys.executable, "-c", BUILD], case)

    def grows(measured: Callable[[int], int], few: int, many: int, most: int) -> str:
        small, big = measured(few), measured(many)
        print(f"{measured.__name__}: {small:,} and {big:,} bytes", file=sys.stderr)
        return "" if big - small < most * (many - few) else f"{small:,} bytes for {few:,}, {big:,} for {many:,}"

    yield "new : 30,000 and 300,000 questions", partial(grows, new, 30_000, 300_000, 200), 1
    yield "build : 100,000 and 1,000,000 problems", partial(grows, build, 100_000, 1_000_000, 100), 1


PARTS: dict[str, Callable[[Path, int], Cases]] = {
    "faults": faults,
    "signals": signals,
    "damage": damage,
    "recipes": mutants.recipes,
    "data": mutants.data,
    "hostile": hostile,
    "full": full,
    "together": together,
    "large": large,
    "long": long,
}
