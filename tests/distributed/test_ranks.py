"""Two ranks as real processes on loopback: what they exchange, what they make, and how they end."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from conftest import MODEL
from helpers import forks

from upft_mlx import pipeline
from upft_mlx.distributed.ranks import Ranks, _hosts, _launched, joined, ranks
from upft_mlx.distributed.seam import mine, rounds
from upft_mlx.errors import RankError
from upft_mlx.recipe.load import load_recipe

SMALL = (
    "problems.limit=30",
    "generate.batch_size=4",
    "train.batch_size=5",
    "train.epochs=2",
    "train.micro_batch_size=2",
    "train.valid_ratio=0.3",
    "train.evaluate_every=3",
    "evaluate.batch_size=4",
    "evaluate.max_tokens=24",
    "evaluate.benchmarks=[{name: arithmetic, limit: 20}]",
    "publish.min_retained=0",
)
BASE_ROWS = "evaluation/arithmetic/base.jsonl"
COUNTS = ("step", "epoch", "learning_rate", "examples", "supervised_tokens")


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [s.getsockname()[1] for s in sockets]


class Job:
    """Two processes with the environment that mlx.launch gives them; a command that begins with `-c` is Python."""

    def __init__(self, folder: Path, *commands: list[str]) -> None:
        hostfile = folder / "hosts.json"
        hostfile.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(len(commands))]))
        self.processes = [
            begin(command, cwd=folder, MLX_RANK=str(rank), MLX_HOSTFILE=str(hostfile))
            for rank, command in enumerate(commands)
        ]

    def wait(self, seconds: float = 120) -> list[tuple[int, str, str]]:
        """Exit status, output and errors of each rank."""
        results = []
        for process in self.processes:
            output, errors = process.communicate(timeout=seconds)
            results.append((process.returncode, output, errors))
        return results

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    """Starts jobs, and leaves no process behind."""
    jobs: list[Job] = []

    def run(*commands: list[str]) -> Job:
        jobs.append(Job(tmp_path, *commands))
        return jobs[-1]

    yield run
    for job in jobs:
        job.close()


def begin(command: list[str], cwd: Path | None = None, **env: str) -> Any:
    """A process with a command of `upft`, or with `-c CODE ARGUMENTS`."""
    code, arguments = (command[1], command[2:]) if command[0] == "-c" else ("", command)
    return forks.start(arguments, code=code, cwd=cwd, **env)


def upft(verb: str, run_dir: Path, *overrides: str) -> list[str]:
    command = [verb, "quickstart", "--plain", "--run-dir", str(run_dir)]
    for override in (*SMALL, *overrides):
        command += ["--set", override]
    return command


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of one process: this one."""
    folder = tmp_path_factory.mktemp("one") / "run"
    pipeline.run(load_recipe("quickstart", SMALL), folder)
    return folder


@pytest.fixture
def built(one: Path, tmp_path: Path) -> Path:
    """A run directory that is ready to train."""
    run = tmp_path / "run"
    run.mkdir()
    for name in ("recipe.json", "ledger.json", "solutions.jsonl"):
        shutil.copy(one / name, run)
    shutil.copytree(one / "dataset", run / "dataset")
    return run


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# One process.


def test_one_process_is_a_job_of_one_and_shares_nothing() -> None:
    team = Ranks()
    array = mx.array([1.0])
    assert (team.rank, team.size, team.leads) == (0, 1, True)
    assert team.sum(array) is array
    assert team.gather([1]) == [[1]]
    assert team.any(True)
    assert not team.any(False)
    assert team.workplace(Path("runs/x")) == Path("runs/x")
    assert rounds([1, 2, 3]) == [[1], [2], [3]]
    assert mine([7]) == 7
    assert not isinstance(ranks(), type(None))
    assert joined() is None


def test_only_what_started_several_ranks_makes_a_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hostfile = tmp_path / "hosts.json"
    monkeypatch.delenv("MLX_RANK", raising=False)
    monkeypatch.setenv("MLX_HOSTFILE", str(hostfile))
    hostfile.write_text('[["127.0.0.1:1"], ["127.0.0.1:2"]]')
    assert not _launched()
    monkeypatch.setenv("MLX_RANK", "0")
    assert _launched()
    for single in ("", '[["127.0.0.1:1"]]'):
        hostfile.write_text(single)
        assert not _launched()


@pytest.mark.parametrize("content", ["{", "3", '[{"ssh": 1}, 2]'])
def test_a_hostfile_of_another_form_is_refused_by_name(tmp_path: Path, content: str) -> None:
    hostfile = tmp_path / "hosts.json"
    hostfile.write_text(content)
    with pytest.raises(RankError, match=r"MLX_HOSTFILE: .*hosts\.json: not a list of each rank's addresses"):
        _hosts(str(hostfile))


# Two ranks.

EXCHANGE = """
import json, sys
from pathlib import Path
import mlx.core as mx
from upft_mlx.distributed.ranks import ranks
from upft_mlx.distributed.seam import mine, rounds
team = ranks()
tree = {"a": [{}, {"b": mx.array([1.0, 2.0]) * (team.rank + 1)}], "c": mx.full((2, 2), 10.0 ** team.rank)}
total = team.sum((mx.array(0.5), tree))
root = team.workplace(Path("run"))
if not team.leads:
    (root / "old").mkdir(parents=True)
    (root / "old" / "gone.txt").write_text("x")
    (root / "same.txt").write_text("same")
    (root / "changed.txt").write_text("before")
team.mirror(root)
files = {str(p.relative_to(root)): len(p.read_bytes()) for p in sorted(root.rglob("*")) if p.is_file()}
print(json.dumps({
    "sum": [total[0].item(), total[1]["a"][1]["b"].tolist(), total[1]["c"].tolist()],
    "any": [team.any(team.rank == 1), team.any(False)],
    "gather": team.gather({"rank": team.rank, "text": "é" * (3 + 5 * team.rank)}),
    "rounds": [mine(part) for part in rounds([0, 1, 2])],
    "files": files,
    "changed": (root / "changed.txt").read_text(),
}))
team.leave()
"""


def test_sums_values_and_files_reach_every_rank(start: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "deep" / "er").mkdir(parents=True)
    (run / "fused").mkdir()
    files = {"changed.txt": 5, "deep/er/large.bin": 70_000_000, "empty.txt": 0, "same.txt": 4}
    for name, size in {**files, "fused/model.bin": 9, ".lock": 0}.items():
        (run / name).write_bytes(b"same" if name == "same.txt" else b"after"[:size].ljust(size, b"."))
    job = start(*[["-c", EXCHANGE]] * 2)
    found = []
    for status, output, errors in job.wait():
        assert status == 0, errors
        found.append(json.loads(output))
    for rank, seen in enumerate(found):
        assert seen["sum"] == [1.0, [3.0, 6.0], [[11.0, 11.0], [11.0, 11.0]]]
        assert seen["any"] == [True, False]
        assert seen["gather"] == [{"rank": 0, "text": "ééé"}, {"rank": 1, "text": "é" * 8}]
        assert seen["rounds"] == [[0, 2], [1, None]][rank]
        assert seen["changed"] == "after"
    assert found[1]["files"] == files, "the replica has what rank 0 has, but for what followers do not need"


@pytest.mark.slow
def test_two_ranks_make_the_rows_and_the_adapter_of_one(start: Any, one: Path, tmp_path: Path) -> None:
    two = tmp_path / "two"
    (_, output, errors), (status, silent, more) = start(*[upft("run", two)] * 2).wait()
    assert "fused" in output, errors
    assert (status, silent) == (0, ""), more
    for name in ("solutions.jsonl", "dataset/train.jsonl", "dataset/valid.jsonl", "evaluation/arithmetic/base.jsonl"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    expected = mx.load(str(one / "adapter" / "adapters.safetensors"))
    found = mx.load(str(two / "adapter" / "adapters.safetensors"))
    assert isinstance(expected, dict)
    assert isinstance(found, dict)
    for name, array in expected.items():
        assert mx.linalg.norm(found[name] - array) < 1e-4 * mx.linalg.norm(array), name
    for mine_, other in zip(lines(one / "metrics.jsonl"), lines(two / "metrics.jsonl"), strict=True):
        assert other["loss"] == pytest.approx(mine_["loss"], rel=1e-5)
        assert [other[key] for key in COUNTS] == [mine_[key] for key in COUNTS]
        assert other.get("development_accuracy") == mine_.get("development_accuracy")
    assert other["valid_loss"] == pytest.approx(mine_["valid_loss"], rel=1e-5)
    assert (two / "report.md").exists()


STUDIES = {
    "analyze": ("analysis/analysis.json", "analyze.problems=2", "analyze.rollouts=2"),
    "forecast": ("forecast/forecast.json", "forecast.problems=12", "forecast.samples=2"),
    "compare": ("compare/compare.json", "compare.methods=[upft]", "compare.seeds=1", "train.epochs=1"),
    "sweep": ("sweep/sweep.json", "train.epochs=1"),
}


@pytest.mark.slow
@pytest.mark.parametrize("verb", STUDIES)
def test_a_study_is_shown_and_written_by_the_leader_alone(start: Any, tmp_path: Path, verb: str) -> None:
    """Followers read results that only the leader has, or wrote them at the same time, which ended the job."""
    made, *overrides = STUDIES[verb]
    commands = [
        upft(verb, tmp_path / where / "run", "problems.limit=12", "generate.max_tokens=24", *overrides)
        for where in ("leader", "follower")  # as on two Macs, each with its own disk
    ]
    for command in commands if verb == "sweep" else ():
        command.insert(2, "train.learning_rate=1e-4,1e-3")
    (status, output, errors), follower = start(*commands).wait()
    assert status == 0, errors
    assert follower == (0, "", "")
    assert made in output
    assert json.loads((tmp_path / "leader" / "run" / made).read_text())
    assert not (tmp_path / "follower").exists()


@pytest.mark.slow
def test_two_ranks_go_on_with_what_the_leader_alone_has_kept(start: Any, one: Path, tmp_path: Path) -> None:
    """An adapter that comes back, and the base's answers that are taken over: the other rank has neither."""
    run = shutil.copytree(one, tmp_path / "run")
    adapter, rows = ((run / name).read_bytes() for name in ("adapter/adapters.safetensors", BASE_ROWS))
    done = begin(upft("train", run, "lora.rank=3"))
    _, error = done.communicate(timeout=600)
    assert done.returncode == 0, error
    tokens = "evaluate.benchmarks=[{name: arithmetic, limit: 20}, {name: arithmetic, label: more, limit: 4}]"
    (status, output, errors), (other, *_) = start(*[upft("run", run, tokens)] * 2).wait()
    assert (status, other) == (0, 0), errors
    assert "train  skipped: an earlier version comes back" in output
    assert (run / "adapter/adapters.safetensors").read_bytes() == adapter
    assert (run / BASE_ROWS).read_bytes() == rows
    assert (run / "evaluation/more/tuned.jsonl").exists()


@pytest.mark.slow
def test_rows_do_not_depend_on_who_began_them(start: Any, one: Path, tmp_path: Path) -> None:
    """Begun by one process and cut off, continued by two."""
    whole = (one / "solutions.jsonl").read_bytes()
    killed = tmp_path / "two"
    process = begin(upft("generate", killed))
    while not any(path.read_bytes() for path in killed.glob(".work/*/solutions.partial.jsonl")):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.communicate()
    for status, _, errors in start(*[upft("generate", killed)] * 2).wait():
        assert status == 0, errors
    assert (killed / "solutions.jsonl").read_bytes() == whole


STEPS = """
import sys
import mlx.core as mx
from upft_mlx.models.adapters import adapter_weights, add_lora
from upft_mlx.training.batches import Example, shared_length
from upft_mlx.models.load import load
from upft_mlx.distributed.ranks import ranks
from upft_mlx.recipe.schema import Lora, Train
from upft_mlx.training.step import Stepper
from pathlib import Path
def steps(dtype, model, file):
    loaded = load(Path(model))
    loaded.model.set_dtype(getattr(mx, dtype))
    add_lora(loaded, Lora(rank=4), 0)
    rows = [Example(str(i), [3, 4, *((7 * i + j) % 500 + 5 for j in range(6 + i))], 5) for i in range(7)]
    stepper = Stepper(loaded.model, Train(), shared=shared_length(rows))
    for step in range(6):
        loss, _ = stepper.step(rows[:7 if step else 1], 1e-3, step)
        print(loss)
    if ranks().leads:
        mx.save_safetensors(f"{file}-{dtype}.safetensors", adapter_weights(loaded.model))
for dtype in ("float32", "float16"):
    steps(dtype, *sys.argv[1:])
"""


def test_uneven_steps_on_two_ranks_are_those_of_one(start: Any, tmp_path: Path) -> None:
    """Seven rows, and one: a rank without any still takes part."""
    command = ["-c", STEPS, str(MODEL)]
    single = begin([*command, "one"], cwd=tmp_path)
    printed, error = single.communicate(timeout=600)
    assert single.returncode == 0, error
    (status, output, errors), (_, other, _) = start(*[[*command, "two"]] * 2).wait()
    assert status == 0, errors
    assert output == other, "all ranks see the same losses"
    wanted, losses = ([float(line) for line in text.split()] for text in (printed, output))
    # Adam divides a gradient by its own size, so that the rounding of one close to zero moves a weight as a large one.
    for dtype, rounding, tolerance, six in (("float32", 1e-5, 1e-4, slice(6)), ("float16", 1e-2, 1e-2, slice(6, 12))):
        assert losses[six] == pytest.approx(wanted[six], rel=rounding)
        expected, found = (mx.load(str(tmp_path / f"{name}-{dtype}.safetensors")) for name in ("one", "two"))
        assert isinstance(expected, dict)
        assert isinstance(found, dict)
        for name, array in expected.items():
            assert mx.linalg.norm(found[name] - array) < tolerance * mx.linalg.norm(array), (name, dtype)


# How a job ends.


def test_ranks_with_different_recipes_refuse_and_name_the_field(start: Any, tmp_path: Path) -> None:
    job = start(upft("generate", tmp_path / "run"), upft("generate", tmp_path / "run", "generate.temperature=0.9"))
    (status, _, errors), (other, _, more) = job.wait(60)
    assert (status, other) == (1, 1)
    message = "rank 1 has another generate.temperature than rank 0; all ranks need the same recipe, model and data"
    assert message in errors + more
    assert not (tmp_path / "run" / "solutions.jsonl").exists()


def test_an_error_of_one_rank_ends_the_other_with_its_text(start: Any, tmp_path: Path) -> None:
    job = start(upft("generate", tmp_path / "run"), upft("generate", tmp_path / "run", "model=nowhere/at-all.d/x"))
    begin = time.monotonic()
    (status, _, errors), (other, _, more) = job.wait(60)
    assert time.monotonic() - begin < 30
    assert (status, other) == (1, 2)
    assert "rank 1: model: 'nowhere/at-all.d/x': neither a folder nor a Hub id" in more
    assert "rank 1 stopped: " in errors
    assert "neither a folder nor a Hub id" in errors
    assert "Traceback" not in errors + more


def test_a_follower_that_ends_with_the_leader_leaves_no_replica(start: Any, tmp_path: Path) -> None:
    """A copy of the run, its rows among it, stayed in the temporary folder."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "rows.jsonl").write_text("{}")
    code = """
import os, time
from pathlib import Path
from upft_mlx.distributed.ranks import ranks
team = ranks()
root = team.workplace(Path("run"))
team.mirror(root)
print(root.resolve(), (root / "rows.jsonl").is_file(), flush=True)
team.any(False)
if team.leads:
    os._exit(3)
time.sleep(60)
"""
    (status, _, _), (other, output, errors) = start(["-c", code], ["-c", code]).wait(60)
    assert (status, other) == (3, 1), errors
    assert "rank 0 is gone" in errors
    replica, there = output.split()
    assert there == "True"
    assert Path(replica).parent.name.startswith("upft-rank-")
    assert not Path(replica).parent.exists()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("verb", ["generate", "train"])
def test_a_rank_that_is_killed_takes_the_job_down_with_a_message(
    start: Any, built: Path, victim: int, verb: str
) -> None:
    run, long = built, ("train.epochs=500", "train.checkpoint_every=1")
    if verb == "generate":
        run, long = run.with_name("sampling"), ("problems.limit=300", "generate.batch_size=1")
    job = start(*[upft(verb, run, *long)] * 2)
    begun = "adapter/checkpoints/step-0000003" if verb == "train" else "solutions.partial.jsonl"
    deadline = time.monotonic() + 60
    while not list(run.glob(f".work/*/{begun}")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(job.processes[victim].pid, signal.SIGKILL)
    killed = time.monotonic()
    status, _, errors = job.wait(30)[1 - victim]
    assert time.monotonic() - killed < 30
    assert status == 1
    assert f"Error: rank {victim} is gone; run the same command to continue" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
@pytest.mark.parametrize("pressed", [0, 1])
def test_ctrl_c_on_any_rank_ends_all_after_the_same_step_and_saves_it(start: Any, built: Path, pressed: int) -> None:
    run, long = built, ("train.epochs=500", "train.checkpoint_every=10000")
    job = start(*[upft("train", run, *long)] * 2)
    deadline = time.monotonic() + 60
    while not any(path.read_bytes() for path in run.glob(".work/train-*/metrics.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    job.processes[pressed].send_signal(signal.SIGINT)
    (status, output, errors), (other, _, more) = job.wait(30)
    assert (status, other) == (130, 130), errors + more
    saved = re.search(r"interrupted after step (\d+) of \d+, which is saved", output)
    assert saved is not None, output
    assert list(run.glob(f".work/train-*/adapter/checkpoints/step-{int(saved[1]):07d}"))


def test_mlx_launch_starts_it(tmp_path: Path) -> None:
    """The command of docs/use/two-macs.md, on this machine alone."""
    port = free_ports(1)[0]
    launch = [sys.executable, "-m", "mlx._distributed_utils.launch"]
    script = Path(sys.executable).with_name("mlx.launch")
    command = [str(script)] if script.exists() else launch
    command += ["-n", "2", "--backend", "ring", "--starting-port", str(port), "--"]
    done = subprocess.run(
        [*command, sys.executable, "-m", "upft_mlx", *upft("generate", tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=600,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert "30 solutions" in done.stdout
    assert len(lines(tmp_path / "run" / "solutions.jsonl")) == 30
