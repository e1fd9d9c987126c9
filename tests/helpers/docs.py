"""What is wrong with a page of the documentation: links, code blocks, commands, recipe fields. Each check is a function
from a page to the list of its faults."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import click
from conftest import ROOT
from pydantic import BaseModel

from upft_mlx.cli.main import cli
from upft_mlx.data.benchmarks import resolve
from upft_mlx.errors import UpftError
from upft_mlx.recipe.find import shipped_recipes
from upft_mlx.recipe.load import load_recipe
from upft_mlx.recipe.schema import Recipe

NOT_A_RECIPE = "<!-- not a recipe -->"
"""Stands on the line before a yaml block that is something else."""
LANGUAGES = ("sh", "yaml", "python", "json", "text")
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\S*)[^\n]*\n(?P<body>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE
)
_LINK = re.compile(
    r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|^\[[^\]]+\]:\s*(\S+)|(?:src|href)=\"([^\"]+)\"", re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    language: str
    body: str
    line: int
    marked: bool
    """Whether the line before it says that it is no recipe."""


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page."""
    found = []
    for match in _FENCE.finditer(text):
        before = text[: match.start()].rstrip().rsplit("\n", 1)[-1].strip()
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(match["language"], match["body"], line, before == NOT_A_RECIPE))
    return found


def prose(text: str) -> str:
    """The page without its fenced and its indented code, with as many lines."""
    text = _FENCE.sub(lambda match: "\n" * match[0].count("\n"), text)
    return re.sub(r"(?<=\n\n)(?: {4}[^\n]*\n)+", lambda match: "\n" * match[0].count("\n"), text)


def inline(text: str) -> list[str]:
    """The inline code of a page."""
    return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(text))]


# Links.


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page; mkdocs.yml asks the site for the same ones."""
    seen: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", prose(text), re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        seen[slug] = seen.get(slug, -1) + 1
        if seen[slug]:
            seen[f"{slug}-{seen[slug]}"] = 0
    return set(seen)


def link_faults(page: Path) -> list[str]:
    """Relative links to files that are not there, and to headings that the file does not have."""
    faults = []
    for groups in _LINK.findall(re.sub(r"`[^`\n]*`", "", prose(page.read_text(encoding="utf-8")))):
        link = "".join(groups)
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if not target.exists():
            faults.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(target.read_text(encoding="utf-8")):
            faults.append(f"{link}: no such heading")
    return faults


# Code blocks.


def block_faults(page: Path) -> list[str]:
    """Blocks that bash, Python, JSON or the recipe's loader refuse."""
    checks = {"sh": _bash, "python": _python, "json": _json, "yaml": _recipe}
    faults = []
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.language not in LANGUAGES:
            faults.append(f"line {block.line}: a block's language is one of {', '.join(LANGUAGES)}")
        elif block.language in checks and not block.marked:
            faults += [f"line {block.line}: {fault}" for fault in checks[block.language](block.body)]
    return faults


def _bash(body: str) -> list[str]:
    done = subprocess.run(["bash", "-n"], input=body, capture_output=True, text=True, check=False)
    return [done.stderr.strip()] if done.returncode else []


def _python(body: str) -> list[str]:
    try:
        compile(body, "<page>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except SyntaxError as error:
        return [str(error)]
    return []


def _json(body: str) -> list[str]:
    try:
        json.loads(body)
    except json.JSONDecodeError as error:
        return [str(error)]
    return []


def _recipe(body: str) -> list[str]:
    """Load it; a part of a recipe is completed with the embedded model and problems."""
    keys = re.findall(r"^(\w+):", body, re.MULTILINE)
    rest = {"model": "builtin:arithmetic", "problems": "{builtin: arithmetic}"}
    missing = "".join(f"\n{name}: {value}" for name, value in rest.items() if name not in keys)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.yaml"
        path.write_text(body + missing + "\n", encoding="utf-8")
        try:
            resolve(load_recipe(path).evaluate)
        except UpftError as error:
            return [str(error)]
    return []


# Commands.

_OPERATORS = re.compile(r"[;&|<>()]+")
_UPFT = ("upft", "$(which upft)")


def commands(line: str) -> Iterator[list[str]]:
    """The arguments of each `upft` on a shell line; comments, pipes and redirections are left out."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    arguments: list[str] | None = None
    for token in lexer:
        if _OPERATORS.fullmatch(token):
            if arguments is not None:
                yield arguments
            arguments = None
        elif arguments is not None:
            arguments.append(token)
        elif token in _UPFT or token.endswith("/bin/upft"):
            arguments = []
    if arguments is not None:
        yield arguments


def command_faults(page: Path) -> list[str]:
    """Commands, options, recipes and `--set` fields that do not exist."""
    text = page.read_text(encoding="utf-8")
    faults = []
    for block in blocks(text):
        if block.language == "sh":
            for line in block.body.replace("\\\n", " ").splitlines():
                for arguments in commands(line):
                    faults += [f"upft {' '.join(arguments)}: {fault}" for fault in _usage(arguments, whole=True)]
    for code in inline(text):
        if re.match(r"upft( |$)", code):
            for arguments in commands(re.sub(r"[\[\]]", "", code)):
                faults += [f"{code}: {fault}" for fault in _usage(arguments, whole=False)]
    return faults


def _usage(arguments: list[str], *, whole: bool) -> list[str]:
    """What click has against a command line; `whole` asks for its arguments and for values of the right type."""
    command: click.Command = cli
    context = click.Context(cli, info_name="upft", **cli.context_settings)  # click keeps what it makes of them
    given = [word for word in arguments if word not in ("-h", "--help", "--version")]
    while isinstance(command, click.Group) and given:
        name, *given = given
        if re.fullmatch(r"[A-Z]+", name):  # COMMAND stands for any
            return []
        below = command.get_command(context, name)
        if below is None:
            return [f"no command {name}"]
        command, context = below, click.Context(below, info_name=name, parent=context)
    asks_for_help = any(word in ("-h", "--help", "--version") for word in arguments)
    try:
        values, _, _ = command.make_parser(context).parse_args(list(given))
        if whole and not asks_for_help:
            command.make_context(context.info_name, list(given), parent=context.parent)
    except click.UsageError as error:
        named_only = not whole and "requires an argument" in error.message  # `upft evaluate --adapter` in a sentence
        files_of_the_readers = "does not exist" in error.message
        return [] if named_only or files_of_the_readers else [error.format_message()]
    return [*_unknown_recipe(command, values), *_unknown_fields(values.get("overrides") or ())]


def _unknown_recipe(command: click.Command, values: dict[str, Any]) -> list[str]:
    name = values.get("recipe") if any(parameter.name == "recipe" for parameter in command.params) else None
    if (
        not isinstance(name, str)
        or name in shipped_recipes()
        or re.fullmatch(r"\.\.\.|[A-Z]+|my-[\w.-]+\.yaml|runs/[\w.-]+", name)
    ):
        return []
    return [] if (ROOT / name).is_file() else [f"{name} is no shipped recipe, no file here and not called my-...yaml"]


def _unknown_fields(overrides: tuple[str, ...]) -> list[str]:
    names = [override.partition("=")[0] for override in overrides]
    return [f"no field {name}" for name in names if not (is_field(name) or re.fullmatch(r"[A-Za-z]*[A-Z.]+", name))]


# Fields.


def is_field(name: str) -> bool:
    """Whether a recipe has this field: `prefix.length`."""
    model: type[BaseModel] | None = Recipe
    for part in name.split("."):
        if model is None or part not in model.model_fields:
            return False
        annotation = model.model_fields[part].annotation
        kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
        model = next((kind for kind in kinds if issubclass(kind, BaseModel)), None)
    return True


def field_faults(page: Path) -> list[str]:
    """Inline code that looks like a recipe's field, `prefix.lenght: 8`, and is none."""
    files = ("py", "jsonl", "json", "md", "yaml", "csv", "parquet", "svg")
    found = []
    for code in inline(page.read_text(encoding="utf-8")):
        match = re.fullmatch(r"(?:--set )?((\w+)\.(\w+))(?:[:=].*)?", code)
        if match and match[2] in Recipe.model_fields and match[3] not in files and not is_field(match[1]):
            found.append(f"{code}: no such field")
    return found
