"""What the documentation says is what the code does."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from upft_mlx.benchmarks import KNOWN, SOURCES
from upft_mlx.recipe import Recipe

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_recipe_page_is_written_from_the_recipe() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "make_recipe_page.py"))["page"]
    assert (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8") == page()


def test_every_recipe_field_is_documented() -> None:
    missing = [name for name, field in Recipe.model_fields.items() if not field.description]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_files_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    broken = [link for link in links if not link.startswith("http") and not (page.parent / link).exists()]
    assert broken == []


def test_the_evaluation_page_has_every_benchmark_as_it_is_read() -> None:
    rows = {}
    section = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8").split("## Benchmarks")[1].split("\n## ")[0]
    for line in section.splitlines():
        if line.startswith("| `"):
            name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            rows[name.strip("`")] = " ".join(cells)
    assert rows.keys() == SOURCES.keys()
    for name, source in SOURCES.items():
        grader = KNOWN[name].get("grader", "maths")
        assert grader in rows[name]
        for field in ("dataset", "revision", "config", "split"):
            assert name == "gpqa-freeform" or source.get(field, "") in rows[name]


def test_the_readmes_recipe_is_valid() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    assert Recipe.model_validate(yaml.safe_load(blocks[0])).prefix.length == 16


def test_ci_runs_the_readmes_test_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    command = re.search(r"<!-- test-command -->\n```sh\n(.*?)\n```", text)
    assert command is not None
    assert command[1].endswith("-m pytest")
    assert "test-command" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
