"""Natural mistakes, as new users make them: each message names the thing, the value and the next step."""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import MODEL
from helpers.input import assert_fails, no_network, upft

from upft_mlx.rows import read_error, write_error

__all__ = ["no_network"]
pytestmark = pytest.mark.usefixtures("no_network")

QUESTIONS = "".join(json.dumps({"question": f"{n} + 1?", "answer": str(n + 1)}) + "\n" for n in range(60))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder: a model, questions, a recipe, and files of other kinds."""
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    shutil.copytree(MODEL, tmp_path / "models" / "tiny")
    (tmp_path / "q.jsonl").write_text(QUESTIONS)
    (tmp_path / "my.yaml").write_text("model: ./models/tiny\nproblems: {path: q.jsonl}\n")
    (tmp_path / "typo.yaml").write_text("model: ./models/tny\nproblems: {path: q.jsonl}\n")
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(64))
    (tmp_path / "german.csv").write_text("frage;antwort\nWas ist 1 + 1?;2\n")
    (tmp_path / "latin.csv").write_bytes("question,answer\nWie groß?,2\n".encode("latin-1"))
    (tmp_path / "q.xlsx").write_bytes(b"PK\x03\x04")
    (tmp_path / "text.jsonl").write_text('{"text": "Q: 1 + 1? A: 2"}\n')
    (tmp_path / "inf.jsonl").write_text('{"question": "a?", "answer": Infinity}\n')
    (tmp_path / "same.jsonl").write_text('{"id": "x", "question": "a?"}\n{"id": "x", "question": "b?"}\n')
    (tmp_path / "nested.jsonl").write_text('{"input": {"question": "1 + 1?"}, "output": {"result": 2}}\n')
    (tmp_path / "noted").mkdir()
    return tmp_path


MISTAKES: dict[str, tuple[list[str], int, list[str]]] = {
    "a model folder is misspelt in a recipe": (
        ["plan", "typo.yaml"],
        1,
        ["/models/tny: no such model folder; did you mean '", "/models/tiny'? use a folder"],
    ),
    "a model folder is misspelt on the command line": (
        ["new", "models/tny", "q.jsonl"],
        1,
        ["model models/tny: not on this machine", "did you mean 'models/tiny'?"],
    ),
    "half a GGUF file as the model": (
        ["new", "m.gguf", "q.jsonl"],
        1,
        ["m.gguf: not a GGUF file of a model: version 0; 2 and 3 are known; download it again"],
    ),
    "a safetensors file as the model": (
        ["new", "models/tiny/model.safetensors", "q.jsonl"],
        1,
        ["model.safetensors: a file, not a model folder; use its folder, models/tiny"],
    ),
    "model and questions in the other order": (
        ["new", "q.jsonl", "models/tiny"],
        1,
        ["models/tiny: is a folder; name a .jsonl"],
    ),
    "a dataset as the recipe": (
        ["run", "q.jsonl"],
        2,
        ["q.jsonl: a dataset, not a recipe; `upft new MODEL q.jsonl` writes a recipe for it"],
    ),
    "a model as the recipe": (
        ["plan", "models/tiny"],
        2,
        [
            "models/tiny: a model, not a recipe; `upft new models/tiny my-questions.csv` writes a recipe for it, "
            "`upft ask --model models/tiny` asks it"
        ],
    ),
    "the demo's model as the recipe": (["ask", "builtin:arithmetic", "1 + 1?"], 2, ["`upft ask --model builtin:ari"]),
    "a Hub model as the recipe": (
        ["run", "mlx-community/Qwen2.5-0.5B-Instruct-4bit"],
        2,
        ["no such recipe file", "if it is a model on the Hub: `upft new mlx-community/Qwen2.5-0.5B-Instruct-4bit my"],
    ),
    "a recipe is misspelt": (["run", "myy.yaml"], 2, ["myy.yaml: no such recipe file", "did you mean 'my.yaml'?"]),
    "a dataset is misspelt": (
        ["new", "models/tiny", "qq.jsonl"],
        1,
        ["qq.jsonl: no such file; did you mean 'q.jsonl'?"],
    ),
    "Excel's own format": (
        ["new", "models/tiny", "q.xlsx"],
        1,
        ["q.xlsx: not a .jsonl", "export it as CSV (Excel: Save As, CSV UTF-8"],
    ),
    "Latin-1": (
        ["new", "models/tiny", "latin.csv"],
        1,
        ["latin.csv:2: not UTF-8 text; convert it: `iconv -f WINDOWS-1252 -t UTF-8 latin.csv > latin-utf8.csv`"],
    ),
    "columns with other names": (
        ["new", "models/tiny", "german.csv"],
        1,
        [
            "german.csv:2: no column named question",
            "it has frage, antwort; name the question column with --question fra",
        ],
    ),
    "a benchmark's columns with other names": (
        ["evaluate", "my.yaml", "--benchmark", "german.csv"],
        1,
        [
            "it has frage, antwort; name the question column in its entry: --set 'evaluate.benchmarks=[{name: german, ",
            ": frage}]' instead of --benchmark",
        ],
    ),
    "benchmarks in both ways": (
        ["evaluate", "my.yaml", "--benchmark", "german.csv", "--set", "evaluate.benchmarks=[{name: b, path: b.csv}]"],
        2,
        ["give --benchmark or --set evaluate.benchmarks, not both"],
    ),
    "benchmarks in both ways, in their section": (
        ["evaluate", "--model", "models/tiny", "--benchmark", "gsm8k", "--set", "evaluate={benchmarks: math500}"],
        2,
        ["give --benchmark or --set evaluate.benchmarks, not both"],
    ),
    "a benchmark's file of a model without a recipe": (
        ["evaluate", "--model", "models/tiny", "--set", "evaluate.benchmarks=[{name: mine, path: none.csv}]"],
        1,
        ["/none.csv: no such file"],
    ),
    "texts for pre-training": (
        ["new", "models/tiny", "text.jsonl"],
        1,
        ["text.jsonl:1: no column named question", "it has text", "with --question text"],
    ),
    "an answer in a field of a field": (
        ["new", "models/tiny", "nested.jsonl", "--question", "input.question"],
        1,
        [
            'nested.jsonl:1: `output` has fields of its own, found {"result": 2}; name the answer',
            "--answer output.result",
        ],
    ),
    "an answer that is infinite": (
        ["new", "models/tiny", "inf.jsonl"],
        1,
        [
            "inf.jsonl:1: answer: expected text or a number, found Infinity; fix it, or leave such rows out",
            "--skip-bad-rows",
        ],
    ),
    "ids that repeat": (
        ["new", "models/tiny", "same.jsonl"],
        1,
        ["same.jsonl:2: the id 'x' is already used (by same.jsonl:1); give each row its own id", "--id none"],
    ),
    "a benchmark outside its section": (
        ["plan", "my.yaml", "--set", "benchmarks=gsm8k"],
        2,
        ["--set: benchmarks: unknown field; did you mean 'evaluate.benchmarks'?"],
    ),
    "a benchmark is misspelt": (
        ["plan", "my.yaml", "--set", "evaluate.benchmarks=gsm8"],
        2,
        ["evaluate.benchmarks: 'gsm8': unknown benchmark; did you mean 'gsm8k'?"],
    ),
    "benchmarks joined by a comma": (
        ["plan", "my.yaml", "--set", "evaluate.benchmarks=gsm8k,math500"],
        2,
        ["'gsm8k,math500': unknown benchmark; write a list: [gsm8k,math500]"],
    ),
    "a benchmark file that is not there": (
        ["evaluate", "my.yaml", "--benchmark", "tests.csv"],
        2,
        ["'tests.csv': unknown benchmark; check the path; known: "],
    ),
    "mlx-lm's name of a field": (
        ["plan", "my.yaml", "--set", "train.iters=100"],
        2,
        ["--set: train.iters: unknown field; it is called 'train.steps' here"],
    ),
    "PEFT's name of a field": (
        ["plan", "my.yaml", "--set", "lora.lora_alpha=32"],
        2,
        ["--set: lora.lora_alpha: unknown field; it is called 'lora.scale (alpha / rank)' here"],
    ),
    "a number with a unit": (
        ["plan", "my.yaml", "--set", "prefix.length=16tokens"],
        2,
        ["--set: prefix.length: '16tokens': should be a valid integer"],
    ),
    "an adapter that is not there": (
        ["ask", "my.yaml", "1 + 1?", "--adapter", "adapters"],
        1,
        ["adapters: no such adapter folder; use a folder with adapter_config.json and adapters.safetensors"],
    ),
    "a folder that is no adapter": (
        ["evaluate", "my.yaml", "--benchmark", "arithmetic", "--adapter", "noted"],
        1,
        ["noted: not an adapter: adapter_config.json is missing; use a folder with"],
    ),
    "a stage before the one that it needs": (
        ["train", "my.yaml"],
        1,
        ["runs/my: train needs the stage generate, which is not done; run `upft generate` first, or `upft run`"],
    ),
    "a question without a recipe": (
        ["ask", "What is 1 + 1?"],
        2,
        ["the question is empty; give one as the last argument after 'What is 1 + 1?', which is read as a recipe"],
    ),
    "a command is misspelt": (["trian", "my.yaml"], 2, ["No such command 'trian'", "train"]),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_natural_mistake_is_answered_with_the_thing_the_value_and_the_next_step(case: str) -> None:
    arguments, status, parts = MISTAKES[case]
    assert_fails(upft(*arguments), status, *parts)


def test_there_are_at_least_25() -> None:
    assert len(MISTAKES) >= 25


def test_a_prefix_beyond_the_longest_solution_is_pointed_out_by_the_plan() -> None:
    planned = upft("plan", "my.yaml", "--no-calibration", "--set", "prefix.length=2000")
    text = " ".join(planned.stdout.split())
    assert "prefix.length: 2,000 tokens, but full solutions are cut at generate.max_tokens: 1,024" in text
    assert "but full solutions" not in upft("plan", "my.yaml", "--no-calibration").stdout


def test_one_benchmark_needs_no_list() -> None:
    planned = upft("plan", "my.yaml", "--no-calibration", "--set", "evaluate.benchmarks=arithmetic")
    assert planned.exit_code == 0, planned.stderr


# What the machine refuses.


def test_a_prefix_that_most_solutions_do_not_reach_is_pointed_out_by_build(folder: Path) -> None:
    text = "model: builtin:arithmetic\nproblems: {builtin: arithmetic, limit: 16}\nprefix: {length: 60}\n"
    (folder / "long.yaml").write_text(text + "generate: {max_tokens: 64}\n")
    assert upft("generate", "long.yaml", "--plain").exit_code == 0
    built = upft("build", "long.yaml", "--plain")
    assert built.exit_code == 0
    assert re.search(r"\d+ of 16 solutions end before prefix\.length: 60 tokens, and train whole", built.stdout)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "FILE"), "FILE: the disk is full, 12.0 MB free; "),
        (OSError(errno.ENOSPC, "No space left on device"), "runs/my: the disk is full, 12.0 MB free; "),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "FILE"), "FILE: Disk quota exceeded; "),
        (RuntimeError("IoError(Os { code: 28 }) (os error 28)"), ": the disk is full, 12.0 MB free; "),
    ],
    ids=["a file", "no file", "a quota", "a library in Rust"],
)
def test_a_full_disk_is_named_with_what_is_free_and_what_to_do(
    error: Exception, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the run directory, in the file that could not be written, and where a library raises an error of no kind."""
    asked: list[Path] = []

    def usage(place: Path) -> SimpleNamespace:
        asked.append(place)
        return SimpleNamespace(free=12_000_000)

    def refuse(*_: object, **__: object) -> None:
        if isinstance(error, OSError) and error.filename == "FILE":
            error.filename = str(folder / "runs" / "my" / "adapter" / "x.bin")
        raise error

    monkeypatch.setattr("upft_mlx.pipeline.run", refuse)
    monkeypatch.setattr("upft_mlx.cli.edge.shutil.disk_usage", usage)
    done = upft("run", "my.yaml")
    message = message.replace("FILE", str(folder / "runs" / "my" / "adapter" / "x.bin"))
    assert_fails(done, 1, f"{message}make room, then run the same command to continue")
    assert all(place.exists() for place in asked), "the nearest folder that is there is asked, not the file itself"
    assert bool(asked) == ("the disk is full" in message)


def test_what_is_refused_for_another_reason_needs_no_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EACCES, "Permission denied", "adapter")

    monkeypatch.setattr("upft_mlx.pipeline.run", refuse)
    done = upft("run", "my.yaml")
    assert_fails(done, 1, "adapter: Permission denied; get access to it, then run the same command to continue")
    assert "room" not in done.stderr


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (
            OSError(errno.EROFS, "Read-only file system", "my"),
            1,
            "my: Read-only file system; get access to it, then run",
        ),
        (OSError(errno.EIO, "Input/output error", "my"), 1, "my: Input/output error; run the same command again"),
        (KeyboardInterrupt(), 130, "Error: interrupted\n"),
    ],
)
def test_a_command_that_keeps_nothing_does_not_say_that_progress_is_saved(
    error: BaseException, status: int, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("upft_mlx.new.new.new_recipe", refuse)
    done = upft("new", "models/tiny", "german.csv")
    assert_fails(done, status, message)
    assert "saved" not in done.stderr


def test_a_writer_that_says_not_why_is_asked_whether_there_was_room(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLX's writers say that a file cannot be written, and not why."""
    monkeypatch.setattr("upft_mlx.rows.shutil.disk_usage", lambda place: SimpleNamespace(free=100))
    path = folder / "new" / "model.safetensors"
    full, other = (write_error(RuntimeError("failed"), path, needed) for needed in (101, 100))
    assert (full.errno, full.filename) == (errno.ENOSPC, str(path))
    assert (other.errno, other.strerror) == (errno.EIO, "cannot be written (failed)")


def test_what_mlx_cannot_read_is_an_error_of_the_system_with_the_file(tmp_path: Path) -> None:
    gone = read_error(RuntimeError("[load_safetensors] Failed to open file"), tmp_path / "x.safetensors")
    assert (gone.errno, gone.filename) == (errno.ENOENT, str(tmp_path / "x.safetensors"))
    (tmp_path / "y.safetensors").write_text("x")
    there = read_error(RuntimeError("Invalid json header"), tmp_path / "y.safetensors")
    assert (there.errno, there.filename) == (errno.EIO, str(tmp_path / "y.safetensors"))
    assert "Invalid json header" in str(there)
