"""report.html in a real browser: what people click does what it says, hostile rows do nothing, nothing is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.browser import CHROMIUM, Tab, browser
from helpers.page import answered, facts, four, many, row, written

from upft_mlx.results.page import Material

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")
WIDTHS = (390, 820, 1280)
SECONDS, BYTES = 2.0, 20_000_000
"""A page of 10,000 rows opens in this time (of a processor) and takes this much."""
EVIL = "</script><script>window.evil=1</script><img src=x onerror='window.evil=2'>\"'`{{evil}}&lt;\u202e\x1b[31m"


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with browser() as opened:
        opened.resize(1280, 900)
        yield opened


@pytest.fixture
def address(tmp_path: Path) -> str:
    return written(tmp_path, Material(facts(), four()))


def ids(tab: Tab) -> list[str]:
    """The problems in the table, from top to bottom."""
    code = "[...document.querySelectorAll('#rows td:first-child > button')].map((b) => b.firstChild.textContent)"
    return list(tab.run(code))


def computed(tab: Tab) -> float:
    """The seconds that the page's thread has computed since it was opened, whatever else the machine does."""
    metrics = {metric["name"]: metric["value"] for metric in tab.call("Performance.getMetrics")["metrics"]}
    return float(metrics["TaskDuration"])


def choose(tab: Tab, name: str, value: str) -> None:
    tab.run(
        f"{{ const s = document.getElementById('{name}'); s.value = {json.dumps(value)};"
        " s.dispatchEvent(new Event('change')); }"
    )


def test_flips_stand_on_top(tab: Tab, address: str) -> None:
    tab.open(address)
    assert ids(tab) == ["p-0001", "p-0002", "p-0000", "p-0003"]
    assert tab.complaints == []


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("filter", "flips", ["p-0001", "p-0002"]),
        ("filter", "gained", ["p-0001"]),
        ("filter", "lost", ["p-0002"]),
        ("filter", "stuck", ["p-0003"]),
        ("filter", "wrong", ["p-0002", "p-0003"]),
        ("filter", "right", ["p-0001", "p-0000"]),
        ("level", "=2", ["p-0001"]),
        ("length", "10-10", ["p-0000"]),
        ("length", "cut", []),
        ("sort", "order", ["p-0000", "p-0001", "p-0002", "p-0003"]),
        ("sort", "longest", ["p-0003", "p-0002", "p-0001", "p-0000"]),
        ("sort", "shortest", ["p-0000", "p-0001", "p-0002", "p-0003"]),
    ],
)
def test_what_is_chosen_is_shown_and_stands_in_the_address(
    tab: Tab, address: str, name: str, value: str, expected: list[str]
) -> None:
    tab.open(address)
    choose(tab, name, value)
    assert ids(tab) == expected
    assert tab.run("location.hash") == f"#{name}={value.lstrip('=')}"
    tab.open(f"{address}#{name}={value.lstrip('=')}")
    assert ids(tab) == expected
    assert tab.run(f"document.getElementById('{name}').value") == value


def test_lengths_tell_apart_what_grew_and_what_was_cut(tab: Tab, tmp_path: Path) -> None:
    grown = replace(row(1, True, True), tuned=answered(True, "x", 90, "p-0001", cut=True))
    shrunk = replace(row(2, True, True), tuned=answered(True, "x", 3, "p-0002"))
    address = written(tmp_path, Material(facts(), [row(0, True, True), grown, shrunk]))
    for fragment, expected in (
        ("length=longer", ["p-0001"]),
        ("length=cut", ["p-0001"]),
        ("length=shorter", ["p-0002"]),
        ("sort=longer", ["p-0001", "p-0000", "p-0002"]),
        ("sort=shorter", ["p-0002", "p-0000", "p-0001"]),
        ("filter=nonsense&sort=constructor", ["p-0000", "p-0001", "p-0002"]),
    ):
        tab.open(f"{address}#{fragment}")
        assert ids(tab) == expected, fragment


def test_a_search_looks_into_questions_answers_and_texts(tab: Tab, address: str) -> None:
    tab.open(address)
    tab.press("/")
    for letter in "CHILD 3":
        tab.press(letter)
    tab.wait("document.getElementById('count').textContent === '1 of 4 answers'")
    assert ids(tab) == ["p-0003"]
    tab.open(f"{address}#q=we+see+2")
    assert ids(tab) == ["p-0002"]


def test_a_row_opens_with_both_answers_and_their_difference_marked(tab: Tab, address: str) -> None:
    tab.open(address)
    tab.press("j")
    tab.press("Enter", "\r")
    assert tab.run("[...document.querySelectorAll('mark')].map((m) => m.className + ' ' + m.textContent)") == [
        "gone find",
        "new see",
    ]
    assert "How many pens has child 1?" in tab.run("document.querySelector('tr.detail').textContent")
    assert tab.run("location.hash") == "#open=arithmetic%2Fp-0001%2F0"
    tab.open(f"{address}#open=arithmetic%2Fp-0003%2F0")
    assert "child 3" in tab.run("document.querySelector('tr.detail').textContent")


def test_what_both_texts_have_between_two_differences_is_not_marked(tab: Tab, tmp_path: Path) -> None:
    base, tuned = (answered(True, text, 5, "p-0001") for text in ("We find 7 pens and stop.", "We see 7 pens or stop."))
    address = written(tmp_path, Material(facts(), [replace(row(1, True, True), base=base, tuned=tuned)]))
    tab.open(f"{address}#open=arithmetic/p-0001/0")
    assert tab.run("[...document.querySelectorAll('mark')].map((m) => m.textContent)") == ["find", "and", "see", "or"]


def test_pages_turn_by_key_and_by_button(tab: Tab, tmp_path: Path) -> None:
    address = written(tmp_path, Material(facts(), [row(number, True, True) for number in range(60)]))
    tab.open(address)
    assert ids(tab)[0] == "p-0000"
    tab.press("n")
    assert ids(tab)[0] == "p-0025"
    tab.run("document.getElementById('next').click()")
    assert ids(tab) == [f"p-{number:04}" for number in range(50, 60)]
    assert tab.run("document.getElementById('next').disabled")
    tab.press("p")
    assert tab.run("document.getElementById('where').textContent") == "page 2 of 3"


def test_dark_and_light_are_the_machines_and_can_be_switched(tab: Tab, address: str) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    tab.open(address)
    dark = tab.run(background)
    tab.press("d")
    light = tab.run(background)
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    tab.open(address)
    assert tab.run(background) == light != dark
    tab.open(f"{address}#theme=dark")
    assert tab.run(background) == dark


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_screen(tab: Tab, tmp_path: Path, width: int) -> None:
    long = row(4, False, True, problem_id="id-" * 60, gold="9" * 200, question="word" * 200)
    address = written(tmp_path, Material(facts("b" * 80), [replace(long, benchmark="b" * 80)]))
    tab.resize(width, 900)
    try:
        tab.open(f"{address}#open={'b' * 80}/{'id-' * 60}/0")
        assert tab.run("document.querySelectorAll('tr.detail').length") == 1
        assert tab.run("document.documentElement.scrollWidth") <= width
    finally:
        tab.resize(1280, 900)


def hostile() -> Material:
    """Every text of a page that comes from elsewhere."""
    variant = answered(False, EVIL, 5, "x")
    bad = replace(variant, answer=EVIL)
    mean: dict[str, Any] = {"benchmark": EVIL, "problem_id": EVIL, "question": EVIL, "gold": EVIL, "level": EVIL}
    rows = [replace(row(1, False, False, **mean), base=bad, tuned=replace(bad, completion=f"other {EVIL}"))]
    stage = {**vars(facts().stages[0]), "detail": EVIL, "stage": EVIL}
    token_row = {
        "id": EVIL,
        "kind": "prefix",
        "place": EVIL,
        "ids": [1],
        "tokens": [EVIL],
        "supervised": [True],
        "shared": 0,
    }
    return Material(
        facts(EVIL, name=EVIL, model=EVIL, method=EVIL, verdict=[f"warning: {EVIL}"], stages=[stage]),
        rows,
        withheld={EVIL: 3},
        preview={"rows": [token_row], "eos_ids": []},
    )


def test_hostile_rows_do_nothing(tab: Tab, tmp_path: Path) -> None:
    address = written(tmp_path, hostile())
    tab.open(address)
    tab.run("document.querySelector('#rows button').click()")
    assert tab.run("typeof window.evil") == "undefined"
    assert tab.run("document.querySelectorAll('img, iframe, object, embed, link, base').length") == 0
    assert tab.run("document.scripts.length") == 2
    assert "window.evil=1" in tab.run("document.querySelector('tr.detail').textContent"), "it is shown as text"
    assert tab.run("document.body.textContent").count("</script><img src=x") > 8
    assert tab.requests == [address]
    assert tab.complaints == []


def test_a_hostile_address_chooses_nothing(tab: Tab, address: str) -> None:
    tab.open(f"{address}#filter=__proto__&level=%3Cimg%20src%3Dx%3E&page=-3&open=%27&theme=%22%3E")
    assert len(ids(tab)) == 4
    assert tab.complaints == []


def test_the_policy_of_the_page_lets_nothing_in_or_out(tab: Tab, address: str) -> None:
    tab.open(address)
    image = '<img src="https://upft.invalid/x.png" onclick="window.evil=3">'
    tab.run(f"document.body.insertAdjacentHTML('beforeend', {json.dumps(image)})")
    tab.run("document.querySelector('img').click()")
    tab.run("fetch('https://upft.invalid/').catch(() => 0).then(() => 1)")
    refused = " ".join(text for text in tab.complaints if "Content Security Policy" in text)
    tab.complaints.clear()
    assert all(what in refused for what in ("inline event handler", "x.png", "Fetch API"))
    assert "csp" in tab.blocked
    assert tab.run("typeof window.evil") == "undefined"


def test_ten_thousand_rows_open_in_time_and_stay_small(tab: Tab, tmp_path: Path) -> None:
    rows = many(10_000)
    assert sum(len(r.base.completion) + len(r.tuned.completion) for r in rows if r.base and r.tuned) > 30_000_000
    address = written(tmp_path, Material(facts(), rows))
    assert (tmp_path / "report.html").stat().st_size < BYTES
    tab.call("Performance.enable", timeDomain="threadTicks")
    tab.open(address)
    assert 0.05 < computed(tab) < SECONDS
    assert len(ids(tab)) == 25
    choose(tab, "filter", "flips")
    assert "of 10,000 answers" in tab.run("document.getElementById('count').textContent")
