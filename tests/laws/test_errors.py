"""Errors carry their parts: the tree in `errors.py` is complete, and no code decides by a text of an error or event."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from upft_mlx import errors
from upft_mlx.errors import ColumnError, OfflineError, ProblemsError, RecipeError, RowsError, UpftError

PACKAGE = Path(errors.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

FOREIGN = {
    "machine/requirements.py: kernel_refusal": "MLX has one class for all its errors",
    "machine/requirements.py: import_refusal": "puts a loader's text on one line",
    "cli/edge.py: edge": "tokenizers and safetensors hold the system's error in a text only",
    "data/source.py: first_line": "a data library's first line is shown, the traceback below it is not",
}
"""Where the text of another library's error is looked into, and why; the text of ours never is."""

CUTTING = {
    *("startswith", "endswith", "find", "rfind", "index", "count", "partition", "rpartition", "split", "rsplit"),
    *("splitlines", "replace", "removeprefix", "removesuffix", "strip", "match", "fullmatch", "search", "sub"),
    "findall",
}
TEXTS = {"problem", "remedy", "args", "detail", "text"}


def looked_into(function: ast.AST) -> Iterator[int]:
    """The lines of a function at which the text of an error or of an event is compared, searched or cut."""
    carriers = set(_carriers(function))
    texts: set[str] = set()

    def is_text(node: ast.AST) -> bool:
        if isinstance(node, ast.Name):
            return node.id in texts
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            return node.value.id in carriers and node.attr in TEXTS
        if isinstance(node, ast.JoinedStr):
            return any(isinstance(part, ast.FormattedValue) and holds(part.value) for part in node.values)
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Name) and called.id in ("str", "repr"):
            return any(holds(argument) for argument in node.args)  # type: ignore[attr-defined]
        return False

    def holds(node: ast.AST) -> bool:
        return is_text(node) or (isinstance(node, ast.Name) and node.id in carriers)

    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and any(is_text(part) for part in ast.walk(node.value)):
            texts |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    for node in ast.walk(function):
        if isinstance(node, ast.Compare):
            if any(is_text(side) for side in (node.left, *node.comparators)):
                yield node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            parts = (node.func.value, *node.args)
            if node.func.attr in CUTTING and any(is_text(part) for part in parts):
                yield node.lineno


def _carriers(function: ast.AST) -> Iterator[str]:
    """The names in a function that are errors or events."""
    kinds = re.compile(r"Error\b|Exception\b|\bEvent\b|\bNote\b|\bStage(Started|Skipped|Done)\b")
    for node in ast.walk(function):
        if isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name
        if isinstance(node, ast.arg) and node.annotation is not None and kinds.search(ast.unparse(node.annotation)):
            yield node.arg
        if isinstance(node, ast.MatchAs) and node.name:
            yield node.name


def functions(source: str) -> Iterator[tuple[str, ast.AST]]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, node


def test_nothing_looks_into_the_text_of_an_error_or_an_event() -> None:
    assert len(MODULES) > 100
    found = {
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in MODULES
        for name, function in functions(path.read_text(encoding="utf-8"))
        if any(looked_into(function))
    }
    assert found == set(FOREIGN)


@pytest.mark.parametrize(
    "body",
    [
        'except ModelError as error:\n  if "no such" in str(error): pass',
        "except ModelError as error:\n  text = str(error)\n  text.replace('a', 'b')",
        "except ModelError as error:\n  re.sub('a', 'b', f'{error}')",
        "except ModelError as error:\n  return error.problem == 'gone'",
        "except ModelError as error:\n  return str(error.args).startswith('x')",
        "except OSError as error:\n  shown = one_line(str(error))\n  return shown.partition(':')",
    ],
)
def test_the_law_sees_each_way_of_looking(body: str) -> None:
    assert list(looked_into(ast.parse(f"def f():\n try:\n  pass\n {body}")))
    assert list(looked_into(ast.parse("def f(event: Event):\n return event.detail.startswith('current')")))
    assert not list(looked_into(ast.parse("def f(event: Event):\n return event.stage == 'train'")))


def test_the_tree_in_the_docstring_is_complete() -> None:
    """Every class with its base and its exit status, in the order of the module."""
    classes = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, UpftError)]
    classes.sort(key=lambda kind: inspect.getsourcelines(kind)[1])
    drawn: list[tuple[str, str | None, int]] = []
    above: list[str] = []
    status: dict[str, int] = {}
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"((?:\|   )*)(\+-- )?(\w+Error) +(?:exit (\d))?", line):
            depth = len(found[1]) // 4 + bool(found[2])
            above[depth:] = [found[3]]
            base = above[depth - 1] if depth else None
            status[found[3]] = int(found[4]) if found[4] else status[str(base)]
            drawn.append((found[3], base, status[found[3]]))
    bases = {kind: kind.__bases__[0].__name__ for kind in classes}
    assert drawn == [(kind.__name__, None if kind is UpftError else bases[kind], kind.exit_status) for kind in classes]


def test_no_error_of_this_package_is_defined_elsewhere() -> None:
    names = {name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, UpftError)}
    elsewhere = [
        (path.name, node.name)
        for path in MODULES
        if path.name != "errors.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and {ast.unparse(base) for base in node.bases} & names
    ]
    assert not elsewhere


def test_the_text_is_made_of_the_parts() -> None:
    assert str(RowsError("not JSON")) == "not JSON"
    assert str(RowsError("not JSON", "move it away", path=Path("a.jsonl"))) == "a.jsonl: not JSON; move it away"
    error = RecipeError("0: too small", "set 1", field="train.steps", path="r.yaml", line=3)
    assert str(error) == "r.yaml:3: train.steps: 0: too small; set 1"
    assert (error.problem, error.remedy, error.field) == ("0: too small", "set 1", "train.steps")
    shown = ProblemsError("expected text", found="12", field="question", path="a.parquet", row=4)
    assert str(shown) == "a.parquet: row 4: question: expected text, found 12"
    assert ColumnError("no column 'a'", column="answer").column == "answer"


def test_several_errors_of_a_recipe_are_one_that_has_each() -> None:
    one = RecipeError("bad", field="a.b")
    assert RecipeError.of_all([one, RecipeError("bad", field="a.b")]) is one
    many = [RecipeError("bad", field=f"a.b{number}") for number in range(errors.MOST + 2)]
    together = RecipeError.of_all(many)
    assert together.each == tuple(many)
    assert str(together).splitlines()[0] == "a.b0: bad"
    assert str(together).splitlines()[errors.MOST :] == ["and 2 more errors"]


def test_the_command_that_fetches_is_put_in_where_one_helps() -> None:
    error = OfflineError("not here", "name a local file", fetched="it")
    assert str(error) == "not here; `upft fetch` downloads it, or name a local file"
    error.fetch_with("upft fetch r.yaml --set seed=1")
    assert error.remedy == "`upft fetch r.yaml --set seed=1` downloads it, or name a local file"
    unhelped = OfflineError("not here", "check the connection")
    unhelped.fetch_with("upft fetch r.yaml")
    assert str(unhelped) == "not here; check the connection"
