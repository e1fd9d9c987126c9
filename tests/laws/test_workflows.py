"""The workflows name only scripts, commands, options, extras and files that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from helpers.docs import command_faults

FOLDER = ROOT / ".github" / "workflows"
FILES = sorted(FOLDER.glob("*.yml"))
pytestmark = pytest.mark.skipif(not FILES, reason="an unpacked sdist has no workflows")
EXTRA = re.compile(r"\.\[([\w,]+)\]")
SCRIPT = re.compile(r"(?<![\w/])(?:perf|tests|tools|\.ci)/[\w./-]+")


def jobs(path: Path) -> Iterator[dict[str, Any]]:
    yield from yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()


def lines(path: Path) -> list[str]:
    return [line for job in jobs(path) for step in job["steps"] for line in step.get("run", "").splitlines()]


def faults(path: Path, scratch: Path) -> list[str]:
    """What a workflow names and the repository does not have."""
    found = [f"no {name}" for line in lines(path) for name in SCRIPT.findall(line) if not (ROOT / name).exists()]
    stated = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = [name for line in lines(path) for names in EXTRA.findall(line) for name in names.split(",")]
    found += [f"no extra {name}" for name in extras if not re.search(rf"^{name} = \[", stated, re.MULTILINE)]
    page = scratch / "page.md"
    page.write_text("".join(f"```sh\n{line}\n```\n" for line in lines(path)), encoding="utf-8")
    found += command_faults(page)
    options = (ROOT / "perf" / "on_gpu.py").read_text(encoding="utf-8")
    for line in lines(path):
        if "on_gpu.sh" in line:
            found += [
                f"no option {name}" for name in re.findall(r"--\w+", line) if f'add_argument("{name}"' not in options
            ]
    for job in jobs(path):
        if job["runs-on"] not in ("ubuntu-latest", "macos-latest") or "timeout-minutes" not in job:
            found.append("a job needs a machine that GitHub lends, and a time limit")
        kept = [name for step in job["steps"] for name in step.get("with", {}).get("path", "").split()]
        made = "\n".join(step.get("run", "") for step in job["steps"])
        found += [f"nothing makes {name}" for name in kept if f" {name.split('/')[0]}" not in made]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_a_workflow_runs_exists(path: Path, tmp_path: Path) -> None:
    assert faults(path, tmp_path) == []


@pytest.mark.parametrize(
    ("right", "wrong", "fault"),
    [
        ("perf/on_gpu.sh", "perf/on_gpus.sh", "no perf/on_gpus.sh"),
        ("--out on_gpu.md", "--output on_gpu.md", "no option --output"),
        ("upft doctor", "upft doktor", "upft doktor: no command doktor"),
        ("demo/report.html", "run/report.html", "nothing makes run/report.html"),
        ("    timeout-minutes: 45\n", "", "a job needs a machine that GitHub lends, and a time limit"),
        ("install -q -e .", "install -q -e '.[metal]'", "no extra metal"),
    ],
)
def test_each_kind_of_fault_is_seen(right: str, wrong: str, fault: str, tmp_path: Path) -> None:
    text = (FOLDER / "apple.yml").read_text(encoding="utf-8")
    assert right in text
    changed = tmp_path / "apple.yml"
    changed.write_text(text.replace(right, wrong), encoding="utf-8")
    assert fault in faults(changed, tmp_path)


def test_the_tests_run_on_both_systems() -> None:
    machines = {job["runs-on"] for job in jobs(FOLDER / "tests.yml")}
    assert machines == {"ubuntu-latest", "macos-latest"}
    assert "bash .ci/run" in lines(FOLDER / "tests.yml")
