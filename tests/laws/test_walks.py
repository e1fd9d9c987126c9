"""The walks in CONTRIBUTING are true, and few modules stand on the way of `prefix.length`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import upft_mlx

PACKAGE = Path(upft_mlx.__file__).parent
CONTRIBUTING = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")


def walk(first: str) -> list[str]:
    """The numbered lines after the line that begins like this."""
    _, _, text = CONTRIBUTING.partition(f"\n{first}")
    assert text, f"no walk {first}"
    return re.findall(r"^\d+\. .*$", text.split("\n\n")[1], re.MULTILINE)


WALKS = {
    name: walk(name) for name in ("How `prefix.length` gets from a recipe", "How `completion_ids` get from the sampler")
}


def test_both_walks_take_at_most_12_lines() -> None:
    assert all(WALKS.values())
    assert sum(map(len, WALKS.values())) <= 12


@pytest.mark.parametrize("line", [line for lines in WALKS.values() for line in lines])
def test_every_name_of_a_walk_is_in_a_module_that_its_line_names(line: str) -> None:
    words = re.findall(r"`([^`]+)`", line)
    files = [word for word in words if word.endswith(".py")]
    assert files
    defined: set[str] = {"--set", "completion_ids"}
    for file in files:
        names = ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8")))
        for node in names:
            if isinstance(node, ast.ClassDef):
                defined |= {f"{node.name}.{f.name}" for f in node.body if isinstance(f, ast.FunctionDef)}
                fields = [f.target for f in node.body if isinstance(f, ast.AnnAssign)]
                defined |= {f"{node.name}.{f.id}" for f in fields if isinstance(f, ast.Name)}
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                defined.add(node.name)
            if isinstance(node, ast.ImportFrom):
                defined |= {alias.name for alias in node.names}
                defined |= {f"{str(node.module).rpartition('.')[2]}.{alias.name}" for alias in node.names}
    assert [word for word in words if word not in {*files, *defined}] == []


def readers(of: str, field: str) -> set[str]:
    """The modules that read a field of a section, from the section itself or from its values by name."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = isinstance(node, ast.Attribute) and node.attr == field and ast.unparse(node.value).endswith(of)
            strings = {a.value for a in ast.walk(node) if isinstance(a, ast.Constant)} if _is_lookup(node) else set()
            if named or {of, field} <= strings:
                found.add(str(path.relative_to(PACKAGE)))
    return found


def _is_lookup(node: ast.AST) -> bool:
    """`section("prefix", "length")` and `data["prefix"]["length"]`."""
    section = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "section"
    return section or isinstance(node, ast.Subscript)


def test_prefix_length_is_read_in_at_most_5_modules() -> None:
    found = readers("prefix", "length")
    assert {"dataset/prefix.py", "forecasting/generation.py"} <= found
    assert len(found) <= 5, found
