"""What is let in: model folders, data, recipes and run directories of strangers run, read and publish nothing: chat
templates, tokenizers, config files.
"""

from __future__ import annotations

import html
import json
import os
import re
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from conftest import MODEL
from helpers.facts import run_report
from helpers.input import assert_fails, no_network, upft, write
from helpers.untrusted import EVIL, QUESTIONS, bomb, change, model, recipe, written

from upft_mlx import escape
from upft_mlx.hub.card import base_of
from upft_mlx.models import rendering
from upft_mlx.models.find import find_model
from upft_mlx.models.load import load_tokenizer
from upft_mlx.results import report
from upft_mlx.results.figures import IntervalRow, intervals

__all__ = ["no_network"]

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, with less patience; take back what commands set in the environment."""
    assert rendering.SECONDS <= 8
    monkeypatch.setattr(rendering, "SECONDS", 2)
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "0")
    return tmp_path


def cpu() -> float:
    """Seconds of CPU of this process and of those that it has ended."""
    rendering._worker().end()  # it serves many tests, and counts when it ends
    found = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in found)


HOSTILE_TEMPLATES = {
    "division by zero": "{{ 1/0 }}",
    "a long range": "{% for i in range(999999999) %}x{% endfor %}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "loops without an end": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a text of 300 MB": "{{ messages[0]['content'] * 300000000 }}",
    "a text that grows": "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "a text in C": "{{ '%999999999d' % 1 }}",
    "nothing but braces": "{" * 10_000,
    "files": "{% include '/etc/passwd' %}",
    "the interpreter": "{{ messages.__class__.__mro__ }}",
}


@pytest.mark.parametrize("kind", HOSTILE_TEMPLATES)
def test_a_hostile_chat_template_ends_in_an_error_within_ten_seconds_and_a_gigabyte(folder: Path, kind: str) -> None:
    change(model(folder) / "tokenizer_config.json", chat_template=HOSTILE_TEMPLATES[kind])
    write(folder / "my.yaml", "model: ./model\nproblems: {builtin: arithmetic, limit: 4}\n")
    load_tokenizer(MODEL)  # what is slow to import
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, cpu()
    others = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # of what other tests have started
    assert_fails(upft("preview", "my.yaml"), 1, "model: the chat template ")
    assert cpu() - start < rendering.SECONDS + 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < max(others + 1, 1_100_000)


def test_a_template_that_was_ended_does_not_stop_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 1)
    loops = "{% for a in range(9999) %}" * 3 + "{% endfor %}" * 3
    with pytest.raises(rendering.EndedError, match="takes more than 1 s"):
        rendering.render(loops, {})
    start = cpu()
    with pytest.raises(rendering.EndedError, match="takes more than 1 s"):
        rendering.render(loops, {})  # is not tried again
    assert cpu() - start < 0.5
    assert rendering.render("{{ messages[0] }}", {"messages": ["a"]}) == "a"


def templates(shared: Path) -> list[Path]:
    return sorted((shared / "data" / "tokenizers" / "templates").glob("*.jinja"))


THREE = (("user", "a"), ("assistant", "<think>b</think> c"), ("user", "d"))


def test_a_template_is_rendered_as_transformers_renders_it(shared: Path) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    talks = [
        [{"role": "user", "content": "1 + 1?\n<|im_end|>"}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "\u00e9\U0001f34e"}],
        [
            {"role": role, "content": text}
            for role, text in (("user", "a"), ("assistant", "<think>b</think> c"), ("user", "d"))
        ],
    ]
    own = "{%- for m in messages %}{% generation %}{{ m | tojson }}{% endgeneration %}\n"
    own += "{%- if loop.index > 1 %}{% break %}{% endif %}\n   {% if true %}\nx{% endif %}\n"
    texts = [own + "{%- endfor %}", *(path.read_text() for path in templates(shared))]
    assert len(texts) > 8
    for text in texts:
        for talk in talks:
            given = {"bos_token": "<s>", "eos_token": "</s>", "enable_thinking": False, "date_string": "26 Jul 2024"}
            wanted, _ = render_jinja_template([talk], chat_template=text, add_generation_prompt=True, **given)
            variables = {"messages": talk, "tools": None, "documents": None, "add_generation_prompt": True, **given}
            assert rendering.render(text, variables) == wanted[0]


def hostile(name: str, **values: object) -> Callable[[Path], None]:
    return lambda folder: change(folder / name, **values)


def header(content: bytes, length: int | None = None) -> Callable[[Path], None]:
    size = struct.pack("<Q", len(content) if length is None else length)
    return written("model.safetensors", size + content)


def vocabulary(**values: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text())
        write(path, json.dumps({**content, **values}))

    return damage


SLOW = {"type": "Split", "pattern": {"Regex": "(a*)*$"}, "behavior": "Isolated", "invert": False}


MANY = {"type": "Replace", "pattern": {"Regex": "."}, "content": "x" * 1_000_000}


HOSTILE_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "ten million layers": (hostile("config.json", num_hidden_layers=10_000_000), "num_hidden_layers: 10000000"),
    "as many in a part": (hostile("config.json", text_config={"num_hidden_layers": 10**7}), "text_config.num_hidden"),
    "900 layers of which 4 exist": (hostile("config.json", num_hidden_layers=900), "the weights have 4 layers"),
    "a text for a number": (hostile("config.json", num_attention_heads="many"), "num_attention_heads: 'many'"),
    "a negative size": (hostile("config.json", hidden_size=-64), "hidden_size: -64"),
    "a size of 10**12": (hostile("config.json", intermediate_size=10**12), "intermediate_size: 1000000000000"),
    "truth for a number": (hostile("config.json", vocab_size=True), "vocab_size: True"),
    "a kind with a line break": (hostile("config.json", model_type=EVIL), "model_type: "),
    "a kind that is a list": (hostile("config.json", model_type=["x"] * 10_000), "model_type: "),
    "code elsewhere": (hostile("config.json", model_file="../../evil.py"), "model_file: '../../evil.py'"),
    "0 bits": (hostile("config.json", quantization={"bits": 0, "group_size": 64}), "quantization.bits: 0"),
    "quantization as text": (hostile("config.json", quantization="4"), "quantization: '4'"),
    "an end as text": (hostile("config.json", eos_token_id="</s>"), "eos_token_id: '</s>'"),
    "a text for top_p": (hostile("generation_config.json", top_p="much"), "top_p: 'much'"),
    "a negative top_p": (hostile("generation_config.json", top_p=-0.5), "top_p: -0.5: expected a number from 0 to 1"),
    "half a token": (hostile("generation_config.json", top_k=2.5), "top_k: 2.5: expected a whole number from -1 to"),
    "a negative temperature": (hostile("generation_config.json", temperature=-1), "temperature: -1: expected a number"),
    "5,000 ends": (hostile("generation_config.json", eos_token_id=[1] * 5_000), "eos_token_id: "),
    "a config of 100 MB": (lambda f: os.truncate(f / "config.json", 100 << 20), "more than 67,108,864"),
    "a template of 10 MB": (
        hostile("tokenizer_config.json", chat_template="x" * 10_000_000),
        "chat_template: 10,000,000",
    ),
    "a template that is a number": (hostile("tokenizer_config.json", chat_template=3), "chat_template: 3"),
    "a parser elsewhere": (hostile("tokenizer_config.json", tool_parser_type="../x"), "tool_parser_type"),
    "arguments": (hostile("tokenizer_config.json", init_inputs=["/etc/passwd"]), "init_inputs"),
    "an id of 4 billion": (vocabulary(added_tokens=[{"id": 4_000_000_000, "content": "x"}]), "vocab: [4000000000]"),
    "an id that is a text": (vocabulary(added_tokens=[{"id": "7", "content": "x"}]), "vocab: ['7']"),
    "10 million values": (
        written("tokenizer.json", f"[{'1,' * 10_000_000}1]"),
        "more than 8,000,000",
    ),
    "a slow pattern": (vocabulary(pre_tokenizer=SLOW), "the tokenizer "),
    "a pattern that grows": (vocabulary(normalizer=MANY), "the tokenizer "),
    "a header of 4 GB": (header(b"{}", 1 << 32), "header is longer than the file"),
    "a header of 2**63": (header(b"{}", 1 << 63), "header is longer than the file"),
    "a header that is a list": (header(b"[]"), "expected a JSON object"),
    "a header nested deeply": (header(b"[" * 100_000), "not JSON"),
    "an array past the end": (
        header(b'{"a.weight":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}'),
        "ends behind the end",
    ),
    "a shape of texts": (header(b'{"a":{"dtype":"F32","shape":["1"],"data_offsets":[0,0]}}'), "needs dtype, shape"),
    "a shape that does not fit": (header(b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,0]}}'), "does not fit"),
}


@pytest.mark.parametrize("kind", HOSTILE_FILES)
def test_a_hostile_model_file_ends_in_an_error_within_ten_seconds_and_a_gigabyte(folder: Path, kind: str) -> None:
    damage, part = HOSTILE_FILES[kind]
    damage(model(folder))
    write(folder / "my.yaml", "model: ./model\nproblems: {builtin: arithmetic, limit: 4}\n")
    load_tokenizer(MODEL)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, cpu()
    found = upft("plan", "my.yaml", "--no-calibration")
    assert_fails(found, 1, f"{folder}/model/", part)
    assert max(map(len, found.stderr.splitlines())) < 1000
    assert cpu() - start < rendering.SECONDS + 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000
    assert_fails(upft("new", "model", str(write(folder / "my.jsonl", QUESTIONS))), 1, part)


def test_numbers_that_real_models_have_are_let_in(folder: Path) -> None:
    real: dict[str, object] = {
        "num_local_experts": 0,
        "n_routed_experts": None,
        "num_key_value_heads": [2, 2, 2, 2],
        "time_step_limit": [0.0, float("inf")],
        "sliding_window": None,
        "head_dim": None,
        "max_position_embeddings": 10_485_760,
        "rope_theta": 1e7,
        "quantization": {
            "group_size": 64,
            "bits": 4,
            "mode": "affine",
            "lm_head": {"group_size": 32, "bits": 6},
            "x": False,
        },
        "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": -1},
        "text_config": {"num_hidden_layers": 4},
        "vision_config": {"image_size": {"height": 224}, "num_hidden_layers": 27},
        "eos_token_id": [3, 4],
        "layer_types": ["full_attention"] * 4,
    }
    change(model(folder) / "config.json", **real)
    change(folder / "model" / "generation_config.json", top_k=-1, temperature=0.6, top_p=0.95)
    change(
        folder / "model" / "tokenizer_config.json",
        model_max_length=10**30,
        chat_template=[{"name": "default", "template": "x"}],
    )
    find_model(recipe(folder / "model"))


ODD = (
    "\x1b[31mred\x1b]0;title\x07 \u202e\u2066\u200b\ufeff\x00\x85\u2028 | <script>&amp; ` ``` **b** [a](http://evil) "
    "![i](x) $x$ \ud800 # h"
)


# Escaping, one function for each format.


def test_markdown_shows_a_text_as_it_is_and_makes_nothing_of_it() -> None:
    from markdown_it import MarkdownIt

    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    wanted = escape.one_line(ODD)
    assert not re.search("[\x1b\u202e]", wanted)
    blocks = ("# head", "- item", "1. one", "+ x", "> quote", "___", "* * *", "a\n\n# b", "[x]: http://evil", "~~s~~")
    for text in (ODD, *blocks):
        shown = " ".join(escape.plain(text).split())
        page = f"- {escape.markdown(text)}\n\n| a | b |\n|---|---|\n| {escape.markdown(text)} | z |\n"
        html_text = reader.render(page)
        assert html_text.count("<li>") == html_text.count("<table>") == 1
        for tag in ("<script", "<a ", "<img", "<strong", "<em", "<h1", "<code", "<s>", "<blockquote", "<hr", "<ol"):
            assert tag not in html_text, (text, html_text)
        assert html_text.count(html.escape(shown, quote=False).replace('"', "&quot;")) == 2, (text, html_text)
        assert html_text.count("<td>") == 2


def test_code_spans_and_blocks_end_where_they_end() -> None:
    from markdown_it import MarkdownIt

    for text in ("a`b", "``", "```\n# out\n```", "`", "", "x ``` y", ODD):
        span = MarkdownIt("commonmark").render(escape.code(text))
        assert span.count("<code>") == 1
        assert re.fullmatch("<p><code>.*</code></p>\n", span)
        block = MarkdownIt("commonmark").render(f"{escape.fenced(text, 'yaml')}\n\nafter")
        assert (block.count("<pre>"), block.count("<h1>")) == (1, 0)
        assert block.endswith("<p>after</p>\n")


def test_json_and_svg_hold_no_raw_control_or_bidirectional_character() -> None:
    text = escape.to_json({"a": [ODD], ODD: 1})
    assert json.loads(text) == {"a": [ODD], ODD: 1}
    text.encode()
    assert not escape.RAW.search(text.replace("\n", ""))
    drawn = intervals(ODD, [IntervalRow(ODD, 0.1, 0.0, 0.2, ODD)], ODD)
    ElementTree.fromstring(drawn)
    assert not escape.RAW.search(drawn.replace("\n", ""))
    assert "<script" not in drawn


def test_a_run_of_odd_names_is_shown_and_published_escaped(folder: Path) -> None:
    label = "odd\u202e <b>**x**</b> |y| \x1b[31m"
    detail = "d\u2066 <i>|"
    facts: dict[str, Any] = {
        "name": "run",
        "model": f"m`\n# x{label}",
        "method": "upft",
        "files": {},
        "fidelity": None,
        "verdict": [f"{label}: better"],
        "stages": [
            {
                "stage": "build",
                "seconds": 1.0,
                "tokens_sampled": 0,
                "tokens_trained": 0,
                "peak_memory_bytes": 1,
                "detail": detail,
            }
        ],
        "benchmarks": {label: {"base": variant(label)}},
    }
    text = report.markdown(run_report(facts))
    assert not escape.RAW.search(text)
    from markdown_it import MarkdownIt

    shown = MarkdownIt("commonmark").enable("table").render(text)
    assert not re.search("<b>|<i>|<strong>", shown)
    assert shown.count("<h1>") == 1
    rows = [line for line in text.split("\n") if line.startswith("|") and "| base |" in line and "| 1 x 1 |" in line]
    assert rows
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 11 for row in rows)


def variant(level: str) -> dict[str, Any]:
    group = {level: {"n": 1, "accuracy": 0.5, "ci95": [0.1, 0.9]}}
    return {
        "n": 1,
        "samples": 1,
        "temperature": 0.0,
        "accuracy": 0.5,
        "ci95": [0.1, 0.9],
        "pass_at_k": {},
        "maj_at_k": {},
        "mean_tokens": 3.0,
        "truncated": 0.0,
        "by_level": group,
        "by_subject": group,
    }


def test_a_card_takes_nothing_over_from_a_models_readme_but_texts(folder: Path) -> None:
    readme = (
        "---\nlicense: 'mit\n\n    # hi <script>'\nbase_model: \"a/b\\n\"\nx: &a [1,1]\ny: "
        + "[*a, *a]\n" * 1
        + "---\n"
    )
    write(model(folder) / "README.md", readme)
    base = base_of(recipe(folder / "model"), folder / "model")
    assert base.hub_id is None
    assert base.license["license"] == "mit # hi <script>"
    write(folder / "model" / "README.md", f"---\n{bomb()}license: mit\n---\n")
    start = cpu()
    assert base_of(recipe(folder / "model"), folder / "model").license == {}
    assert cpu() - start < 5  # 30 s and 500 MB without a bound
