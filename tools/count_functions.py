"""Count the package's lines, modules, functions, and private functions that are called once.

python tools/count_functions.py            # one line per package
python tools/count_functions.py --list     # and each private function that is called once, with its length in lines
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "upft_mlx"


@dataclass(frozen=True)
class Function:
    """A function of a module or a method of a class in it.

    module: its file, relative to the package. line: where it starts. lines: its length, without decorators.
    uses: how often the package names it, besides its definition.
    """

    module: Path
    name: str
    line: int
    lines: int
    uses: int

    @property
    def called_once(self) -> bool:
        """Private, and named in one place only: a step that its caller could take itself."""
        return self.name.startswith("_") and not self.name.endswith("__") and self.uses == 1


def names_used(tree: ast.Module) -> Counter[str]:
    """How often a module names something: `name`, `thing.name` or `from module import name`."""
    used: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            used[node.id] += 1
        elif isinstance(node, ast.Attribute):
            used[node.attr] += 1
        elif isinstance(node, ast.ImportFrom):
            used.update(alias.name for alias in node.names)
    return used


def functions(package: Path = PACKAGE) -> list[Function]:
    """All functions and methods, not those inside functions. A private name is looked for in its own module."""
    found = []
    for path in sorted(package.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        used = names_used(tree)
        bodies = [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))]
        for node in (inner for body in bodies for inner in body.body):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                found.append(Function(path.relative_to(package), node.name, node.lineno, length, used[node.name]))
    return found


def share(counted: list[Function]) -> float:
    """How many of the functions are private and called once, from 0 to 1."""
    return sum(f.called_once for f in counted) / len(counted)


def main() -> None:
    """Print the table, and the list where it is asked for."""
    counted = functions()
    lines: Counter[str] = Counter()
    modules: Counter[str] = Counter()
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).parts[0]
        lines[name] += len(path.read_text(encoding="utf-8").splitlines())
        modules[name] += 1
    print(f"{'':20}{'lines':>7}{'modules':>9}{'functions':>11}{'called once':>13}{'share':>8}")
    for name in sorted(lines, key=lambda name: (name.endswith(".py"), name)):
        of = [f for f in counted if f.module.parts[0] == name]
        once = sum(f.called_once for f in of)
        print(f"{name:20}{lines[name]:7}{modules[name]:9}{len(of):11}{once:13}{once / max(len(of), 1):8.0%}")
    once = sum(f.called_once for f in counted)
    print(f"{'':20}{lines.total():7}{modules.total():9}{len(counted):11}{once:13}{share(counted):8.1%}")
    if "--list" in sys.argv[1:]:
        for f in counted:
            if f.called_once:
                print(f"{f.module}:{f.line} {f.name} {f.lines}")


if __name__ == "__main__":
    main()
