"""What somebody put into a run's folder is theirs: no command writes over it, and none removes it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from helpers.input import write
from helpers.runs import RECIPE, RUN, files, made, run_stage, shown, there

from upft_mlx import versions

__all__ = ["made", "there"]


@pytest.mark.parametrize(
    "name", ["report.md", "report.html", "report.svg", "recipe.json", "dataset/train.jsonl", "fused/a"]
)
def test_a_users_folder_becomes_no_run_directory(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "r.yaml", RECIPE)
    write(tmp_path / "adapter/.DS_Store", "an empty folder, as the Finder leaves it")
    write(tmp_path / name, '{"mine": 1}')
    before = files(tmp_path)
    said = shown("generate", "r.yaml", "--plain", "--run-dir", ".", status=1)
    assert f"holds {name.partition('/')[0]}, which upft did not write and would replace" in said
    assert files(tmp_path) == before
    (tmp_path / name).unlink()
    if name.startswith("report"):  # a look leaves them alone
        (tmp_path / name).write_text("mine")
        shown("evaluate", "r.yaml", "--plain", "--run-dir", ".", "--limit", "1")
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    shown("generate", "r.yaml", "--plain", "--run-dir", ".")
    (tmp_path / "ledger.json").unlink()  # what messages advise where they are damaged
    (tmp_path / "recipe.json").unlink()
    shown("generate", "r.yaml", "--plain", "--run-dir", ".")


@pytest.mark.usefixtures("there")
def test_a_version_that_holds_a_file_of_the_users_is_never_dropped_nor_the_one_just_set_aside() -> None:
    write(RUN.fused / "Modelfile", "FROM .")
    for form in ("adapter", "fp16", "adapter"):
        run_stage("fuse", f"publish.fuse={form}", "publish.min_retained=0")
    for version in versions.kept(RUN, "fuse"):  # the clock was set back since
        os.utime(version.folder / "entry.json", (time.time() + 1e6, time.time() + 1e6))
    current = RUN.entry("fuse")
    assert current is not None
    run_stage("fuse", "publish.fuse=bf16", "publish.min_retained=0")
    kept = {version.entry.fingerprint: version.folder for version in versions.kept(RUN, "fuse")}
    assert len(kept) == 2, "of those that are the stage's alone, the last one"
    assert current.fingerprint in kept
    assert [(folder / "fused/Modelfile").exists() for folder in kept.values()].count(True) == 1
    rows = RUN.train.read_text().splitlines(keepends=True)
    RUN.train.write_text("".join(rows[1:]))
    shown("adopt", "r")
    run_stage("build", "prefix.template= z")
    RUN.train.write_text("".join(rows[2:]))  # and not adopted
    for template in "abcdefghij":
        run_stage("build", f"prefix.template= {template}")
    assert [version.entry.adopted is not None for version in versions.kept(RUN, "build")] == [*[False] * 9, True]


@pytest.mark.usefixtures("there")
def test_a_model_card_that_was_changed_by_hand_is_kept_beside_the_new_one() -> None:
    card, aside = RUN.fused / "README.md", RUN.fused / "README-by-hand.md"
    shown("push", "r.yaml", "--dry-run")
    before = card.read_bytes()
    shown("evaluate", "r.yaml", "--plain", "--set", "evaluate.limit=3", "--set", "evaluate.effect=3")
    card.write_text(card.read_text().replace("# r", "# My model", 1))
    said = shown("push", "r.yaml", "--dry-run", "--set", "evaluate.effect=3")
    assert "fused/README.md was changed by hand: renamed to README-by-hand.md" in said
    assert "not uploaded: README-by-hand.md" in said
    assert "# My model" in aside.read_text()
    card.write_text("# All mine")
    said = shown("evaluate", "r.yaml", "--plain")
    assert "fused/README.md was written by hand or by an earlier version: renamed to README-by-hand-2.md" in said
    assert aside.with_name("README-by-hand-2.md").read_text() == "# All mine"
    aside.with_name("README-by-hand-2.md").unlink()
    assert card.read_bytes() == before
    assert [path.name for path in RUN.fused.glob("README*")] in ([card.name, aside.name], [aside.name, card.name])
