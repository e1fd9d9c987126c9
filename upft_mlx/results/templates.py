"""Templates of pages and documents. What comes from models, data and paths is escaped by itself, for the format.

`html` gives HTML, with Jinja2's autoescape; `markdown` gives Markdown, where a value is shown as it is unless it went
through a filter that makes Markdown of it:

    {{ value }}             the text, escaped for the format, without control and bidirectional characters
    {{ value | code }}      Markdown: an inline code span; `fenced(language)`: a block of code
    {{ value | safe }}      what is markup already: a chart, a table of another function; in Markdown, a macro's text
    {{ n | many("step") }}  `1 step`, `1,024 steps`
    {{ n | number(".1f") }} Markdown: a number in that format; a text is refused
    {{ n | percent }}       Markdown: a share as `71.5 %`; a text is refused; likewise `duration` and `memory`
    {{ value | script }}    HTML: JSON inside a script element
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from upft_mlx import escape
from upft_mlx.quantities import duration, many, memory, percent

FOLDER = Path(__file__).parent / "assets"
"""The templates of this package."""


class _Markdown(str):
    """A text that is Markdown already."""

    __slots__ = ()


@cache
def html() -> Environment:
    """The environment of HTML templates; a name that is not given is an error."""
    environment = _environment(FOLDER, autoescape=True)
    environment.finalize = lambda value: escape.plain(value) if type(value) is str else value
    environment.filters["script"] = lambda value: Markup(script(value))
    return environment


@cache
def markdown(folder: Path = FOLDER) -> Environment:
    """The environment of Markdown templates; a name that is not given is an error."""
    environment = _environment(folder, autoescape=False)
    environment.finalize = lambda value: escape.markdown(value) if type(value) is str else value
    environment.filters |= {
        "safe": _Markdown,
        "code": lambda text: _Markdown(escape.code(text)),
        "fenced": lambda text, language="": _Markdown(escape.fenced(text, language)),
        "number": _of_number(format),
        "percent": _of_number(percent),
        "duration": _of_number(duration),
        "memory": _of_number(memory),
    }
    return environment


def _of_number(show: Callable[..., str]) -> Callable[..., _Markdown]:
    """A filter that shows a number with `show`; a text, which could hold anything, is an error."""

    def shown(value: float, *how: Any) -> _Markdown:
        if isinstance(value, str):
            raise TypeError(f"not a number: {value!r}")
        return _Markdown(show(value, *how))

    return shown


def _environment(folder: Path, *, autoescape: bool) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["many"] = many
    return environment


def script(value: Any) -> str:
    """JSON of plain values that no text in it can end the script element of: it has neither `<` nor `>` nor `&`."""
    text = escape.to_json(value, indent=None)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
