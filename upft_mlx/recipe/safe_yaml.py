"""YAML as recipes and cards have it: what is read is bounded, what is written reads back as it is."""

from __future__ import annotations

import re
from typing import Any

import yaml

from upft_mlx.escape import RAW, half

ALIASES = 16
"""Aliases (`*name`) that a text may have: nine lists of nine aliases each stand for 3.5 GB of values."""
_NUMBER = re.compile(
    r"""^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?(?:[0-9][0-9_]*)[eE][-+]?[0-9]+
        |\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)
_REPLACED = ("tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")


class Loader(yaml.SafeLoader):
    """A private loader: PyYAML reads `1e-5` as text, and mlx-lm changes the shared one when imported.

    No field is a date, so a value that looks like one stays a text.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._aliases = 0

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        """Refuse text that no file and no tokenizer accepts."""
        found: yaml.ScalarNode = super().compose_scalar_node(anchor)
        if problem := half(found.value):
            raise yaml.composer.ComposerError(None, None, problem, found.start_mark)
        return found

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Count aliases: each can stand for all that the ones before it stand for."""
        if self.check_event(yaml.AliasEvent):
            self._aliases += 1
            if self._aliases > ALIASES:
                mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
                problem = f"more than {ALIASES} aliases (*name); write the values out"
                raise yaml.composer.ComposerError(None, None, problem, mark)
        found: yaml.Node | None = super().compose_node(parent, index)
        return found


class _Dumper(yaml.SafeDumper):
    """Quotes what `Loader` and other readers would not take for the text that it is."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write a value that stands twice twice."""
        return True


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind in (Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+0123456789."))
_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style='"' if RAW.search(text) or "\t" in text else None
    ),
)


def read_yaml(text: str) -> tuple[Any, yaml.Node | None]:
    """The value that a text stands for, and its nodes, which know their lines.

    Raises:
        yaml.YAMLError: it is not YAML, or has more than `ALIASES` aliases.
        ValueError: a tag does not fit its value.
        RecursionError: it is nested too deeply.
    """
    loader = Loader(text)  # a SafeLoader: it builds plain values only
    try:
        node = loader.get_single_node()
        return (None if node is None else loader.construct_document(node)), node
    finally:
        loader.dispose()


def to_yaml(value: Any) -> str:
    """A mapping or list of plain values, a line for each."""
    return _dump(value, default_flow_style=False, width=110)


def yaml_scalar(value: Any) -> str:
    """A text, number, truth value or None, or a mapping of those in braces, on one line, as it stands behind a key."""
    if isinstance(value, dict):
        return _dump(value, default_flow_style=True, width=2**31).removesuffix("\n")
    line = _dump({"k": value}, width=2**31).removeprefix("k: ").removesuffix("\n")
    if isinstance(value, str) and ("\n" in line or line.startswith("'")):
        line = _dump(value, default_style='"', width=2**31).removesuffix("\n")
    return line


def _dump(value: Any, **how: Any) -> str:
    text = str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, **how))
    return RAW.sub(lambda found: f"\\U{ord(found[0]):08X}", text)  # texts with such characters are in double quotes
