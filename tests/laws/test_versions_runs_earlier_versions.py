"""What is finished is never lost: refused settings, reruns, looks, kills in the wrong moment, earlier layouts: runs of
earlier versions.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.input import write
from helpers.runs import RUN, files, made, run_stage, shown, there
from helpers.versions import ADAPTER, partial

from upft_mlx import job, rows
from upft_mlx.data.benchmarks import BenchmarkSet
from upft_mlx.errors import RowsError, RunDirError
from upft_mlx.evaluation import base_and_tuned
from upft_mlx.evaluation import stage as evaluation_stage
from upft_mlx.evaluation.base_and_tuned import variant_inputs
from upft_mlx.events import Event, Graded, Note, Variant
from upft_mlx.job import Job
from upft_mlx.rows import read_json, write_json
from upft_mlx.rundir import RunDir, fingerprint, remove

__all__ = ["made", "partial", "there"]


def as_before(run: RunDir, unfinished: str | None = None) -> None:
    """The layout of earlier versions: no digests, an entry per side, what is not finished in the places of results."""
    ledger = read_json(run.ledger)
    for entry in ledger.values():
        for name in ("outputs", "adopted", "recipe", "check"):
            del entry[name]
    inputs = ledger["evaluate"]["inputs"]
    inputs.pop("train stage")
    ledger["evaluate"]["fingerprint"] = fingerprint(inputs)
    for name, of in inputs.items():
        label, _, side = name.rpartition(" ")
        ledger[f"evaluate/{label}/{side}"] = {**ledger["fuse"], "fingerprint": of, "done": True, "inputs": None}
    if unfinished:
        ledger[unfinished]["done"] = False
    write_json(run.ledger, ledger)
    run.copy.unlink()
    assert set(ledger["train"]) == {
        *("fingerprint", "done", "inputs", "tokens_sampled", "tokens_trained", "tokens_processed", "seconds"),
        *("peak_memory_bytes", "detail"),
    }, "what they wrote"


@pytest.mark.usefixtures("there")
def test_a_finished_run_of_an_earlier_version_is_taken_as_it_is_and_checked_from_then_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    as_before(RUN)
    before = files(RUN.root)
    monkeypatch.setattr(job, "load_for", None)  # nothing is sampled or trained
    said = shown("run", "r.yaml", "--plain")
    assert "an earlier version made this run and kept no digests" in said
    after = files(RUN.root)
    for name in before.keys() - {"ledger.json", "recipe.json", "report.md", "report.svg", "fused/README.md"}:
        assert after[name] == before[name]
    RUN.solutions.write_bytes(before["solutions.jsonl"].replace(b"1", b"2", 1))
    assert "solutions.jsonl: was changed" in shown("run", "r.yaml", "--plain", status=1)


@pytest.mark.parametrize("stage", ["generate", "train", "evaluate"])
@pytest.mark.usefixtures("there")
def test_an_unfinished_run_of_an_earlier_version_continues(stage: str, partial: bytes) -> None:
    whole = files(RUN.root)
    as_before(RUN, unfinished=stage)
    if stage == "generate":
        RUN.partial.write_bytes(partial[:900])
        remove(RUN.solutions)
    if stage == "train":
        remove(ADAPTER, RUN.adapter / "adapter_config.json", RUN.checkpoints / "step-0000003")
    if stage == "evaluate":
        remove(RUN.summary)
        path = RUN.rows_of("arithmetic", "tuned")
        path.write_bytes(path.read_bytes()[:700])
    events: list[Event] = []
    run_stage(stage, notify=events.append)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert f"{stage}: continues" in notes or stage == "evaluate", "whose rows are taken over"
    if stage == "train":
        assert "training continues after step 2" in notes
    if stage == "evaluate":
        assert {e.resumed for e in events if isinstance(e, Graded)} == {True, False}
    again = {"generate": RUN.solutions, "train": ADAPTER, "evaluate": RUN.summary}[stage]
    assert again.read_bytes() == whole[str(again.relative_to(RUN.root))]
    assert not RUN.partial.exists()


@pytest.mark.usefixtures("there")
def test_a_ledger_that_is_damaged_or_gone_is_its_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "load_for", None)
    whole = RUN.ledger.read_bytes()
    for damage in (b"", whole[:-9], whole.replace(b'"tokens_trained": ', b'"tokens_trained": 1'), b"[]", None):
        remove(RUN.ledger)
        if damage is not None:
            RUN.ledger.write_bytes(damage)
        assert "its copy takes its place" in shown("run", "r.yaml", "--plain")
        assert RUN.ledger.read_bytes() == whole


@pytest.mark.usefixtures("there")
def test_a_ledger_of_a_later_version_is_refused_and_stays() -> None:
    ledger = read_json(RUN.ledger)
    ledger["train"]["invented"] = 1
    for path in (RUN.ledger, RUN.copy):
        write_json(path, ledger)
    with pytest.raises(RunDirError, match="if a later version wrote it, use that one"):
        run_stage("train")
    assert read_json(RUN.ledger) == ledger


# Full disks.


@pytest.mark.parametrize("writer", ["mlx_lm.utils.save", "mlx.core.save_safetensors"])
@pytest.mark.usefixtures("there")
def test_a_disk_that_is_full_for_mlxs_own_writers_is_said_to_be_full(
    monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    """They say only that a file cannot be written; how much room there is tells why."""

    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("[write] Unable to write 4096 bytes to file.")

    before = files(RUN.root)
    stage, setting = ("fuse", "publish.fuse=bf16") if writer[-4:] == "save" else ("train", "lora.rank=3")
    monkeypatch.setattr(writer, full)
    for free, said in ((0, "the disk is full, 0.0 MB free; make room, then"), (2**40, "cannot be")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: shutil._ntuple_diskusage(2**40, 0, free))
        assert said in shown(stage, "r.yaml", "--plain", "--set", setting, status=1)
        assert files(RUN.root) == before


def test_a_reader_of_a_growing_file_leaves_the_torn_line_out_and_no_other(made: Path, tmp_path: Path) -> None:
    lines = (made / "runs/r/solutions.jsonl").read_bytes().splitlines(keepends=True)
    torn = write(tmp_path / "torn.jsonl", lines[0] + lines[1].replace(b'"completion": "', b'"completion": "\xc3')[:-40])
    assert len(list(rows.read_rows(torn, rows.Solution, growing=True))) == 1
    with pytest.raises(RowsError, match=r"torn\.jsonl:2: not JSON"):
        list(rows.read_rows(torn, rows.Solution))
    whole = write(tmp_path / "torn.jsonl", lines[0] + lines[1][:-40] + b"\n" + lines[2])
    with pytest.raises(RowsError, match=r"torn\.jsonl:2: not JSON"):
        list(rows.read_rows(whole, rows.Solution, growing=True))


@pytest.mark.parametrize("earlier", [True, False])
def test_a_benchmarks_file_that_moved_is_not_measured_again(
    there: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    """Earlier versions had its place in the fingerprints: then the rows are taken over."""

    def with_place(job: Job, part: BenchmarkSet, variant: Variant) -> dict[str, Any]:
        found = variant_inputs(job, part, variant)
        return {**found, "benchmark": {**found["benchmark"], "path": part.entry.path}}

    def measured(path: str) -> str:
        return shown(
            "evaluate", "r.yaml", "--plain", "--set", f"evaluate.benchmarks=[{{name: own, label: mine, path: {path}}}]"
        )

    write(there / "own.jsonl", "".join(f'{{"question": "What is {n} + 1?", "answer": "{n + 1}"}}\n' for n in range(4)))
    with monkeypatch.context() as before:
        for module in (base_and_tuned, evaluation_stage) if earlier else ():
            before.setattr(module, "variant_inputs", with_place)
        measured("own.jsonl")
    rows = files(RUN.evaluation / "mine")
    shutil.move(there / "own.jsonl", there / "moved.jsonl")
    monkeypatch.delattr(Job, "load")
    assert ("skipped: current" in measured("moved.jsonl")) != earlier
    assert files(RUN.evaluation / "mine") == rows
