"""What a template makes of hostile values."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from upft_mlx.results import templates

HOSTILE = "</script><img src=x onerror=alert(1)>\x1b[31m\u202e|`*a*` [x](y)"


def test_html_shows_a_value_as_text() -> None:
    page = templates.html().from_string("<p title='{{ text }}'>{{ text }}</p>").render(text=HOSTILE + "'")
    seen: list[str] = []
    texts: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: seen.append(tag)  # type: ignore[method-assign]
    parser.handle_data = texts.append  # type: ignore[method-assign,assignment]
    parser.feed(page)
    assert seen == ["p"]
    assert "".join(texts) == "</script><img src=x onerror=alert(1)>|`*a*` [x](y)'"


def test_json_in_a_script_reads_back_as_it_was_and_cannot_end_it() -> None:
    page = templates.html().from_string("<script>{{ rows | script }}</script>").render(rows=[HOSTILE, "<!--", "&amp;"])
    inside = page.removeprefix("<script>").removesuffix("</script>")
    assert not set("<>&\u202e\x1b") & set(inside)
    assert json.loads(inside) == [HOSTILE, "<!--", "&amp;"]


def test_markdown_shows_a_value_as_text_unless_a_filter_says_otherwise() -> None:
    line = templates.markdown().from_string("# {{ text }} {{ text | code }} {{ '**x**' | safe }} {{ 7 }}")
    assert line.render(text="a|*b*`") == "# a\\|\\*b\\*\\` `` a|*b*` `` **x** 7"


def test_markdown_shows_a_loop_and_a_joined_list_as_text(tmp_path: Path) -> None:
    (tmp_path / "t.md").write_text("{% for name in names %}\n- {{ name }}\n{% endfor %}\n", encoding="utf-8")
    shown = templates.markdown(tmp_path).get_template("t.md").render(names=["<b>", "#x"])
    assert shown == "- \\<b\\>\n- \\#x\n"


def test_markdown_formats_numbers_and_lets_no_text_pass_for_one() -> None:
    template = templates.markdown().from_string("{{ value | number('+.1%') }}")
    assert template.render(value=0.5) == "+50.0%"
    with pytest.raises(TypeError, match="not a number"):
        template.render(value="# 5")


@pytest.mark.parametrize("environment", [templates.html, templates.markdown])
def test_a_name_that_is_not_given_is_an_error(environment: object) -> None:
    assert callable(environment)
    with pytest.raises(UndefinedError):
        environment().from_string("{{ missing }}").render()
