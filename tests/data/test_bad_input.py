"""Bad input, from the command line: a message that names it and says what to do, a status, never a traceback."""

from __future__ import annotations

import errno
import json
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx_lm.utils
import pytest
from helpers.input import MINIMAL, ONE_PROBLEM, assert_fails, no_network, upft, write

__all__ = ["no_network"]
pytestmark = pytest.mark.usefixtures("no_network")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, without the network as far as the Hub's client is concerned."""
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model is a failure: what can be known to be wrong is refused before."""

    def load(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a model was loaded")

    for name in ("load_model", "load_tokenizer"):
        monkeypatch.setattr(mlx_lm.utils, name, load)


MODEL_ONLY = "model: builtin:arithmetic\n"
DATA_ONLY = "problems: {builtin: arithmetic, limit: 4}\n"
TWO = ONE_PROBLEM * 2

# name: the recipe, the dataset in q.jsonl (None: no such file), the status, parts of the message
REFUSED: dict[str, tuple[str, str | None, int, tuple[str, ...]]] = {
    "recipe not YAML": ("model: [\n", None, 2, ("r.yaml:2: not valid YAML", "expected")),
    "recipe empty": ("", None, 2, ("r.yaml: a recipe is a mapping of fields to values, found nothing",)),
    "unknown key": (MINIMAL + "trian: {}\n", None, 2, ("r.yaml:3: trian: unknown field", "mean 'train'?")),
    "wrong type": (
        MINIMAL + "train: {steps: many}\n",
        None,
        2,
        ("r.yaml:3: train.steps: 'many': should be a valid integer",),
    ),
    "out of range": (
        MINIMAL + "lora: {dropout: 1.0}\n",
        None,
        2,
        ("r.yaml:3: lora.dropout: 1.0: should be less than 1",),
    ),
    "eos without a template": (
        MINIMAL + "prefix: {template: none, eos: true}\n",
        None,
        2,
        ("r.yaml:3: prefix.eos: true with template: none", "set eos: false, or a template"),
    ),
    "model path missing": (
        "model: ./nowhere\n" + DATA_ONLY,
        None,
        1,
        ("/nowhere: no such model folder", "use a folder that exists, or a Hub id"),
    ),
    "model folder empty": ("model: .\n" + DATA_ONLY, None, 1, ("config.json is missing", "use a folder that has it")),
    "model neither folder nor id": ("model: qwen\n" + DATA_ONLY, None, 2, ("model: 'qwen'", "Hub id (user/name)")),
    "embedded model unknown": ("model: builtin:x\n" + DATA_ONLY, None, 2, ("'builtin:x'", "builtin:arithmetic")),
    "hub model while offline": (
        "model: user/name\n" + DATA_ONLY,
        None,
        1,
        ("model user/name: not on this machine", "the network is off", "downloads it, or set `model`"),
    ),
    "hub dataset while offline": (
        MODEL_ONLY + "problems: {dataset: user/name}\n",
        None,
        1,
        ("dataset user/name: not on this machine", "the network is off", "or set `path` to a local file"),
    ),
    "dataset missing": (
        MODEL_ONLY + "problems: {path: q.jsonl}\n",
        None,
        1,
        ("/q.jsonl: no such file", "set `path` to a .jsonl, .json, .csv, .tsv or .parquet file"),
    ),
    "dataset of another kind": (
        MODEL_ONLY + "problems: {path: r.yaml}\n",
        None,
        1,
        ("/r.yaml: not a .jsonl, .json, .csv, .tsv or .parquet file", "write it as JSON lines"),
    ),
    "dataset empty": (
        MODEL_ONLY + "problems: {path: q.jsonl}\n",
        "",
        1,
        ("/q.jsonl: no rows; a dataset needs at least one question",),
    ),
    "malformed line in the middle": (
        MODEL_ONLY + "problems: {path: q.jsonl}\n",
        ONE_PROBLEM + '{"question": "a\n' + ONE_PROBLEM,
        1,
        ("/q.jsonl:2: not JSON: Unterminated string", 'found \'{"question": "a\''),
    ),
    "missing column": (
        MODEL_ONLY + "problems: {path: q.jsonl, question: text}\n",
        TWO,
        1,
        ("/q.jsonl:1: no column 'text'; it has question, answer; name the question column with",),
    ),
    "no column found": (
        MODEL_ONLY + "problems: {path: q.jsonl}\n",
        '{"text": "a?"}\n',
        1,
        ("/q.jsonl:1: no column named question, problem, query,", "it has text; name the question column with"),
    ),
    "empty question": (
        MODEL_ONLY + "problems: {path: q.jsonl}\n",
        ONE_PROBLEM + '{"question": " "}\n',
        1,
        ("/q.jsonl:2: question: the question is empty; fix it, or leave such rows out with `bad_rows: skip`",),
    ),
    "rft without answers": (
        MODEL_ONLY + "method: rft\nproblems: {path: q.jsonl}\n",
        '{"question": "a?"}\n',
        1,
        ("method: rft needs answers, 1 of 1 problem has none: 0", "problems.answer, or use method: upft"),
    ),
    "no structure rows": (
        MODEL_ONLY + "method: structure_only\nproblems: {path: q.jsonl}\n",
        ONE_PROBLEM,
        1,
        ("structure_only: 0.1 of 1 problem rounds to zero", "raise prefix.structure_ratio"),
    ),
    "unknown benchmark": (
        MINIMAL + "evaluate: {benchmarks: [gsm8]}\n",
        None,
        2,
        ("evaluate.benchmarks: 'gsm8': unknown benchmark; did you mean 'gsm8k'?", "known: arithmetic, gsm8k"),
    ),
    "unknown benchmark, nothing near": (
        MINIMAL + "evaluate: {benchmarks: [zzz]}\n",
        None,
        2,
        ("'zzz': unknown benchmark; known: arithmetic, gsm8k", "or name your own with `path`"),
    ),
    "unknown benchmark, before the model is looked for": (
        "model: user/name\n" + DATA_ONLY + "evaluate: {benchmarks: [gsm8]}\n",
        None,
        2,
        ("'gsm8': unknown benchmark",),
    ),
    "all unknown benchmarks at once": (
        MINIMAL + "evaluate: {benchmarks: [gsm8, mth500]}\n",
        None,
        2,
        ("did you mean 'gsm8k'?", "did you mean 'math500'?"),
    ),
    "benchmark file missing": (
        MINIMAL + "evaluate: {benchmarks: [{name: mine, path: none.csv}]}\n",
        None,
        1,
        ("/none.csv: no such file",),
    ),
    "benchmark without answers": (
        MINIMAL + "evaluate: {benchmarks: [{name: mine, path: q.jsonl}]}\n",
        '{"question": "a?"}\n{"question": "b?", "answer": ""}\n',
        1,
        ("benchmark mine: 2 problems have no answer (first: 0)", "name the answer's column with `answer`"),
    ),
    "benchmark while offline": (
        MINIMAL + "evaluate: {benchmarks: [{name: mine, dataset: user/name}]}\n",
        None,
        1,
        ("dataset user/name: not on this machine", "the network is off"),
    ),
}


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize("case", REFUSED)
def test_what_can_be_known_to_be_wrong_is_refused_before_anything_is_loaded(folder: Path, case: str) -> None:
    recipe, dataset, status, parts = REFUSED[case]
    write(folder / "r.yaml", recipe)
    if dataset is not None:
        write(folder / "q.jsonl", dataset)
    shown = upft("run", "r.yaml")
    assert_fails(shown, status, "Error: ", *parts)
    assert shown.stdout == ""
    assert not (folder / "runs").exists()


def test_a_missing_recipe_is_status_2(folder: Path) -> None:
    assert_fails(upft("run", "nowhere.yaml"), 2, "nowhere.yaml: no such recipe file", "`upft recipes` lists")
    assert_fails(upft("run", "quickstrt"), 2, "quickstrt", "did you mean the shipped recipe 'quickstart'?")
    assert_fails(upft("run", folder), 2, f"{folder}: is a folder, not a recipe")


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("seed", "--set seed: expected section.field=value"),
        ("sede=1", "--set: sede: unknown field; did you mean 'seed'?"),
        ("prefix.length=0", "--set: prefix.length: 0: should be greater than or equal to 1"),
        ("evaluate.benchmarks.0.limit=5", "a list cannot be set alone; set all of it: --set 'evaluate.benchmarks=[..."),
        ("prefix.length=[", "--set prefix.length=[: '[' is not a valid value"),
    ],
)
def test_a_wrong_override_is_status_2(override: str, part: str) -> None:
    assert_fails(upft("run", "quickstart", "--set", override), 2, part)


# The run directory.


def below_a_file(folder: Path) -> Path:
    return write(folder / "file", "").joinpath("run")


def a_file(folder: Path) -> Path:
    return write(folder / "file", "")


def in_proc(_: Path) -> Path:
    return Path("/proc/upft-run")


def read_only(folder: Path) -> Path:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (folder / "locked").mkdir(mode=0o500)
    return folder / "locked" / "run"


def read_only_itself(folder: Path) -> Path:
    return read_only(folder).parent


def too_long(folder: Path) -> Path:
    return folder / ("x" * 300)


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize("place", [below_a_file, a_file, in_proc, read_only, read_only_itself, too_long])
def test_a_run_directory_that_cannot_be_written_is_named(folder: Path, place: Callable[[Path], Path]) -> None:
    run_dir = place(folder)
    if place is in_proc and not Path("/proc/self").exists():
        pytest.skip("no /proc on this machine")
    write(folder / "r.yaml", MINIMAL)
    shown = upft("run", "r.yaml", "--run-dir", run_dir)
    assert_fails(shown, 1, f"{run_dir}: cannot be used as run directory: ", "choose another with --run-dir")


@pytest.mark.usefixtures("nothing_loads")
def test_a_full_disk_is_named_where_the_run_directory_cannot_be_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    write(folder / "r.yaml", MINIMAL)
    monkeypatch.setattr(Path, "mkdir", full)
    assert_fails(
        upft("run", "r.yaml"), 1, "runs/r: the disk is full, ", "make room, then run the same command to continue"
    )


@pytest.mark.usefixtures("nothing_loads")
def test_a_run_directory_in_use_is_named(folder: Path) -> None:
    from upft_mlx.rundir import RunDir

    write(folder / "r.yaml", MINIMAL)
    with RunDir("runs/r").locked():
        shown = upft("run", "r.yaml")
    assert_fails(shown, 1, "runs/r: another upft process is using this folder; wait for it, or choose")


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize("stage", ["build", "train", "fuse"])
def test_a_stage_whose_predecessor_is_not_done_names_it(folder: Path, stage: str) -> None:
    write(folder / "r.yaml", MINIMAL)
    shown = upft(stage, "r.yaml")
    assert_fails(shown, 1, f"runs/r: {stage} needs the stage generate, which is not done; run `upft generate`")


@pytest.mark.usefixtures("nothing_loads")
def test_a_broken_ledger_is_named(folder: Path) -> None:
    write(folder / "r.yaml", MINIMAL)
    write(folder / "runs/r/ledger.json", "{oops")
    shown = upft("run", "r.yaml")
    assert_fails(shown, 1, "runs/r/ledger.json: not JSON; move it away and run the command again")


SMALL = MINIMAL + "prefix: {length: 2, structure_ratio: 0}\ntrain: {steps: 1, batch_size: 2}\n"


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """A disk on which no file can grow beyond `size` bytes.

    Python would keep the first `size` bytes of a module's bytecode, and each later process would fail to import it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_named_and_the_same_command_continues_when_there_is_room(folder: Path) -> None:
    write(folder / "r.yaml", SMALL)
    with files_at_most(500):
        shown = upft("generate", "r.yaml")
    assert_fails(shown, 1, "runs/r", "File too large; make room, then run the same command to continue")
    assert not list((folder / "runs/r").glob(".*tmp*"))
    done = upft("generate", "r.yaml")
    assert done.exit_code == 0, done.stderr
    solutions = (folder / "runs/r/solutions.jsonl").read_text()
    assert len(solutions.splitlines()) == 4

    assert upft("build", "r.yaml").exit_code == 0
    with files_at_most(10_000):
        shown = upft("train", "r.yaml")
    assert_fails(shown, 1, "runs/r/.work/train-", "cannot be written", "run the same command to continue")
    assert upft("train", "r.yaml").exit_code == 0
    assert (folder / "runs/r/adapter/adapters.safetensors").stat().st_size > 10_000
    assert (folder / "runs/r/solutions.jsonl").read_text() == solutions


def damaged(text: str, number: int, line: str) -> str:
    lines = text.splitlines()
    lines[number - 1] = line
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("{oops", ":2: not JSON: "),
        ("[1]", ":2: expected the fields problem_id, sample, kind, completion_ids, completion, finish_reason"),
        ('{"problem_id": "x"}', ":2: expected the fields problem_id"),
        ("", ":2: not JSON: "),
        ("\x00\x00", ":2: not JSON: "),
    ],
)
def test_a_malformed_row_of_a_run_is_named(folder: Path, line: str, part: str) -> None:
    write(folder / "r.yaml", SMALL)
    rows = write(folder / "runs/r/solutions.jsonl", "")
    (folder / "runs/r/.work").mkdir()  # a run has begun here
    row = {
        "problem_id": "upft-0000",
        "sample": 0,
        "kind": "prefix",
        "completion_ids": [5, 6],
        "completion": "a b",
        "finish_reason": "length",
    }
    write(rows, damaged((json.dumps(row) + "\n") * 3, 2, line))
    shown = build_without_asking(folder)
    assert_fails(shown, 1, f"runs/r/solutions.jsonl{part}")


def build_without_asking(folder: Path) -> Any:
    """Build from solutions.jsonl as it lies there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("upft_mlx.job.Job.require", lambda *_: None)
        return upft("build", folder / "r.yaml")
