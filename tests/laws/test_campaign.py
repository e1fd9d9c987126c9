"""A few cases of the campaign (docs/measured/campaign.md) in each run of the tests: those that failed once, one of each
kind.
"""

from __future__ import annotations

import json
import shutil
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from campaign import mutants
from campaign.faults import Faults
from campaign.world import BAD, arguments, contents, fresh
from conftest import MODEL

from upft_mlx.new.new import Wish, new_recipe

COMMANDS = ("generate", "build", "train", "export dequantized", "train again", "kept restore", "kept remove", "new")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    """A run made by these commands, and the calls of each that can fail."""
    if sys.platform != "linux" or shutil.which("cc") is None:
        pytest.skip("calls are made to fail by a library for Linux, which needs a C compiler")
    made = Faults(tmp_path_factory.mktemp("campaign"), COMMANDS)
    yield made
    made.server.close()


def number_of(world: Faults, command: str, call: str) -> int:
    """The first point of a command whose text begins and ends with the two parts of `call`, separated by `*`."""
    head, _, tail = call.partition("*")
    fits = (n for n, point in enumerate(world.points[command], 1) if point.startswith(head) and point.endswith(tail))
    return next(fits)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "call", "kind"),
    [
        ("generate", "write runs/r/.work/*solutions.partial.jsonl", "torn"),
        ("generate", "rename runs/r/.ledger.json", "killed before"),
        ("generate", "rename runs/r/solutions.jsonl", "killed after"),
        ("build", "fsync runs/r/.work/*", "disk full from here"),
        ("build", "mkdir runs/r/.work", "EACCES"),
        ("train", "write runs/r/.work/*.safetensors", "killed in the middle"),
        ("train again", "rename runs/r/.kept/*adapter", "ENOSPC"),
        ("train again", "read runs/r/dataset/train.jsonl", "EMFILE"),
        ("train", "read runs/r/.work/*best.safetensors", "EIO"),
        ("new", "rename my.yaml", "killed before"),
    ],
)
def test_a_call_that_fails_costs_nothing_and_the_same_command_ends_with_the_same_bytes(
    world: Faults, command: str, call: str, kind: str
) -> None:
    number = number_of(world, command, call)
    assert not world.broken(command, world.points[command][number - 1], number, kind)


@pytest.mark.slow
@pytest.mark.parametrize(("call", "kind"), [("rename runs/r/ledger.json", "EIO"), ("rename runs/r/recipe.json", "EIO")])
def test_a_restoring_that_was_cut_ends_with_the_recipe_of_what_it_restores(world: Faults, call: str, kind: str) -> None:
    """The results were those of the one version and recipe.json, which `upft export RUN` reads, that of the other."""
    number = number_of(world, "kept restore", call)
    assert not world.broken("kept restore", call, number, kind)
    assert contents(world.folder / "case")["runs/r/recipe.json"] == world.expected["kept restore"]["runs/r/recipe.json"]


@pytest.mark.slow
def test_a_removal_that_fails_says_so_and_can_be_repeated(world: Faults) -> None:
    number = number_of(world, "kept remove", "unlink runs/r/.kept/*position.json")
    case = fresh(world.before["kept remove"], world.folder / "case")
    words = arguments("kept remove", case)
    hit = world.server.run(case, words, at=number, errno=13)
    assert (hit.status, "Permission denied" in hit.error) == (1, True), hit.said
    assert world.server.run(case, words).status == 0
    assert not list(case.glob("runs/r/.kept/*"))


@pytest.mark.slow
def test_a_recipe_whose_writing_was_cut_is_written_by_the_same_command_and_other_files_stay(world: Faults) -> None:
    number = number_of(world, "new", "fsync .my-test*")
    assert not world.broken("new", "fsync .my-test.tmp.jsonl", number, "disk full from here")
    case = fresh(world.before["new"], world.folder / "case")
    (case / "my-train.jsonl").write_text("mine\n")
    refused = world.server.run(case, arguments("new", case))
    assert (refused.status, "exists already" in refused.error) == (2, True), refused.said
    assert (case / "my-train.jsonl").read_text() == "mine\n"


@pytest.mark.slow
@pytest.mark.parametrize("call", ["open runs/r/.work/*/tokenizer.json", "write runs/r/.work/*model.safetensors"])
def test_what_other_libraries_fail_to_write_is_an_error_of_the_disk_and_no_export_leaves_its_parts(
    world: Faults, call: str
) -> None:
    """The tokenizers library raises a plain Exception that has the number of the error in its text."""
    number = number_of(world, "export dequantized", call)
    assert not world.broken("export dequantized", call, number, "EIO")
    assert not (world.folder / "case" / "runs" / "r" / ".work").exists()


COMPILING = """
from upft_mlx.models import cpu_layers
cpu_layers.add_fast_activations = lambda model: 0  # as in families whose activation MLX compiles
from upft_mlx.__main__ import main
main()
"""


@pytest.mark.slow
def test_a_kernel_that_mlx_cannot_compile_is_no_unexpected_error(world: Faults) -> None:
    case = fresh(world.before["generate"], world.folder / "case")
    (case / "tmp").rmdir()
    (case / "tmp").write_text("no folder")
    hit = world.server.run(case, arguments("generate", case), code=COMPILING)
    assert hit.status == 1
    assert not BAD.search(hit.said), hit.said
    assert "MLX cannot compile its kernels" in hit.error, hit.said


def test_mutated_recipes_and_data_are_taken_or_refused_by_name(tmp_path: Path) -> None:
    for part in (mutants.recipes, mutants.data):
        for _, case, _ in list(part(tmp_path, 1))[:2]:
            assert case() == ""


def test_a_new_recipe_takes_little_memory_for_each_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All questions were held as objects, 750 bytes for each."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(MODEL, tmp_path / "model")
    peaks = []
    for count in (10, 500, 2_500):  # the first one also imports
        rows = (json.dumps({"question": f"What is {n} + {n % 97}?", "answer": str(n + n % 97)}) for n in range(count))
        (tmp_path / "my.jsonl").write_text("\n".join(rows))
        tracemalloc.start()
        new_recipe(Wish("model", "my.jsonl", tmp_path / f"{count}.yaml"))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 550 * 2_000
