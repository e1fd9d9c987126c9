"""What people see, read back from recorded consoles: numbers, room, throttling, texts that cannot harm: the summary,
its picture, and errors.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from helpers.ui import ANSI, HARMLESS, HOSTILE, a_report, console, variant_value, written
from rich.cells import cell_len
from rich.console import Console

from upft_mlx.quantities import clock, count, disk, duration, memory, points
from upft_mlx.results.facts import RunFacts
from upft_mlx.ui import views
from upft_mlx.ui.text import glyphs_for, interval_bar, plot, wrapped


def summary_text(report: RunFacts, *, verbose: bool = False, **changes: Any) -> str:
    target = console(**{"force_terminal": False, **changes})
    views.print_summary(report, verbose=verbose, console=target)
    return written(target)


def test_summary_has_every_number() -> None:
    text = summary_text(a_report())
    for expected in (
        "demo  upft  models/qwen",
        "12.3 s, 4.1 k tokens sampled, peak 812 MB",
        "71.5 % [65.3, 77.0]   78.1 % [72.7, 82.8]",
        "n 256, greedy",
        "212 tokens",
        "3.1 % cut",
        "+6.6 [+1.2, +12.1]  p 0.017",
        "+0.6 [-1.4, +2.5]  p 0.612",
        "adapter  runs/demo/adapter",
    ):
        assert expected in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_the_summary_leads_with_the_verdict_and_an_interval_around_zero() -> None:
    lines = summary_text(a_report()).splitlines()
    assert lines[2] == "Tuned is better than base on arithmetic; can't tell yet on gsm8k"
    scale, first, second = lines[4:7]
    zero = scale.index("0 ", scale.index("-12.1") + 5)
    assert scale.split()[0::2][:2] == ["-12.1", "+12.1"]
    assert first.index("├") > zero
    assert first[zero] == "│"
    assert second.index("├") < zero < second.index("●") < second.index("┤")
    assert second[zero] == "┼"


def test_a_bar_is_left_out_where_there_is_no_room_and_a_name_is_cut_and_not_broken() -> None:
    name = "a-benchmark-with-a-name-that-never-ends"
    report = a_report()
    report.benchmarks[name] = report.benchmarks.pop("gsm8k")
    for width in (60, 80, 120):
        text = ANSI.sub("", summary_text(report, width=width, force_terminal=True))
        assert all(len(line) <= width for line in text.splitlines())
        assert ("├" in text) == (width > 60)
        assert "a-benchmark-with-a-name-tha…  " in text
    assert "71.5 % [" not in summary_text(report, width=60)


def test_only_who_asks_sees_each_stage_and_what_training_did() -> None:
    movement = {"prompts": 4, "source": "evaluation prompts", "within": 24, "kl": 0.1, "same_first_token": 1.0}
    variants = {variant: {"stop": 0.0, "openings": [], "distinct": 1} for variant in ("base", "tuned")}
    training = {"movement": {**movement, **variants, "openings_kept": 1}, "cut_solutions": None}
    report = a_report(training=training)
    assert "256 solutions" not in summary_text(report)
    assert "moved on 4" not in summary_text(report)
    text = summary_text(report, verbose=True)
    assert "12.3 s     4.1 k             812 MB   256 solutions" in text
    assert "moved on 4 evaluation prompts" in text


def test_files_that_something_was_made_of_are_named_only_to_who_asks() -> None:
    files = {"adapter": "a/adapter", "fused": "a/fused", "report": "a/report.md", "page": "a/report.html"}
    assert summary_text(a_report(files=files)).split()[-4:] == ["fused", "a/fused", "page", "a/report.html"]
    assert "a/adapter" in summary_text(a_report(files=files), verbose=True)
    assert "a/adapter" in summary_text(a_report(files={"adapter": "a/adapter"}))


def test_a_remark_stands_under_the_bars() -> None:
    text = summary_text(a_report(remarks=["arithmetic: completions went from 30 to 12 tokens on average"]))
    assert "▸ arithmetic: completions went from 30 to 12 tokens on average" in text


def test_summary_of_samples_has_pass_and_maj() -> None:
    at = {"pass_at_k": {"1": 0.3, "16": 0.8, "2": 0.5}, "maj_at_k": {"1": 0.3, "16": 0.42, "2": 0.3}}
    report = a_report(benchmarks={"x": {"base": variant_value(0.3, 0.2, 0.4, samples=16, temperature=0.6, **at)}})
    text = summary_text(report)
    assert "n 256 x 16, T 0.6" in text
    assert "pass@16 80.0 %, maj@16 42.0 %" in text


def test_summary_without_tuned_or_anything() -> None:
    only_base = {"arithmetic": {"base": variant_value(0.715, 0.653, 0.77)}}
    line = next(line for line in summary_text(a_report(benchmarks=only_base)).splitlines() if "71.5" in line)
    assert line.split()[-2:] == ["77.0]", "·"]
    assert "Only base is measured: nothing is compared yet" in summary_text(a_report(benchmarks=only_base))
    nothing = a_report(stages=[], benchmarks={}, verdict=[], files={})
    assert summary_text(nothing).split() == ["demo", "upft", "models/qwen"]


def test_only_a_difference_that_is_claimed_has_a_colour() -> None:
    worse: dict[str, Any] = {"delta": -0.05, "ci95": [-0.09, -0.01], "p_value": 0.01}
    touching: dict[str, Any] = {"delta": 0.05, "ci95": [0.0, 0.1], "p_value": 0.05}
    for paired, colour in ((worse, "31"), (touching, "")):
        variants = {"base": variant_value(0.7, 0.6, 0.8), "tuned": variant_value(0.7, 0.6, 0.8)}
        text = summary_text(a_report(benchmarks={"x": {**variants, "paired": paired}}), force_terminal=True)
        coloured = f"\x1b[{colour}m{100 * paired['delta']:+.1f} [" in text
        assert coloured if colour else f"  {100 * paired['delta']:+.1f} [" in text
    text = summary_text(a_report(), force_terminal=True)
    assert "\x1b[32m+6.6 [" in text
    assert "  +0.6 [" in text
    assert text.count("\x1b[32m") == 2, "the bar and the numbers"


def test_a_void_evaluation_has_neither_colour_nor_p() -> None:
    cut = variant_value(0.1, 0.05, 0.2, truncated=0.6)
    paired = {"delta": 0.3, "ci95": [0.1, 0.5], "p_value": 0.001}
    text = summary_text(a_report(benchmarks={"x": {"base": cut, "tuned": cut, "paired": paired}}), force_terminal=True)
    assert "  +30.0 [+10.0, +50.0]  void" in text
    assert "No valid comparison on x" in text
    assert "p 0.001" not in text


def test_paths_are_not_broken() -> None:
    path = "/a folder/" + "long-name/" * 20
    for terminal in (False, True):
        text = ANSI.sub("", summary_text(a_report(files={"adapter": path}), force_terminal=terminal))
        assert f"adapter  {path}\n" in text


def test_summary_shows_hostile_texts_as_they_are() -> None:
    report = a_report(name=HOSTILE, remarks=[HOSTILE], benchmarks={HOSTILE: {"base": variant_value(0.5, 0.4, 0.6)}})
    text = summary_text(report, width=120)
    assert f"{HARMLESS}  upft" in text
    assert f"▸ {HARMLESS}\n" in text
    assert f"\n{HARMLESS}   50.0 %" in text


def test_svg_is_xml_with_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "20")
    path = tmp_path / "run" / "report.svg"
    wide = "w" * 95
    report = a_report(name="<&>\x07\ufffe\ud800" + HOSTILE, remarks=[wide])
    views.save_svg(report, path)
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    text = "".join(root.itertext()).replace("\xa0", " ")
    for expected in (
        "<&>[red]x[/red]",
        "71.5 % [65.3, 77.0]",
        "+6.6 [+1.2, +12.1]",
        "runs/demo/report.md",
        "upft",
    ):
        assert expected in text
    assert f"▸ {wide}" in [(element.text or "").replace("\xa0", " ").strip() for element in root.iter()], "100 columns"
    assert sorted(tmp_path.rglob("*")) == [path.parent, path], "no temporary file is left"
    first = path.read_bytes()
    views.save_svg(report, path)
    assert path.read_bytes() == first


def test_a_picture_reaches_for_no_font_on_a_server_and_keeps_its_text() -> None:
    console = Console(record=True, file=io.StringIO(), width=60)
    assert "@font-face" in console.export_svg(title="upft", clear=False)  # what Rich writes
    console.print("@font-face { kept }", highlight=False)
    shown = views.picture(console, "upft")
    assert "://" not in shown.replace("http://www.w3.org/2000/svg", "").replace("https://www.textualize.io", "")
    assert "@font-face&#160;{&#160;kept&#160;}" in shown


def test_errors_are_printed_literally(capsys: pytest.CaptureFixture[str]) -> None:
    path = "/runs/[bold]demo[/bold]/" + "x" * 300
    views.print_error(f"{path}: [red]bad[/]\x1b[31m\n  lora.rank: 0 is below 1")
    output = capsys.readouterr()
    assert output.err == f"Error: {path}: [red]bad[/]\n  lora.rank: 0 is below 1\n"
    assert output.out == ""


def test_errors_are_broken_between_words_on_a_terminal_and_commands_stay_whole() -> None:
    file = io.StringIO()
    path = "/a/long-folder/that-stays-whole.yaml"
    views.print_error(
        f"{path}: not here; `upft fetch my-recipe.yaml` downloads it\nsecond line",
        console=console(width=36, file=file, no_color=True, color_system=None),
    )
    assert file.getvalue().splitlines() == [
        "Error:",
        f"{path}:",
        "not here;",
        "`upft fetch my-recipe.yaml`",
        "downloads it",
        "second line",
    ]


def test_errors_are_red_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    views.print_error("it broke: 7")
    assert "\x1b[1;31mError: \x1b[0mit broke: 7\n" in capsys.readouterr().err


# Numbers and texts.


def test_numbers() -> None:
    assert [count(n) for n in (0, 999, 1000, 4096, 999_949, 999_950)] == [
        "0", "999", "1.0 k", "4.1 k", "999.9 k", "1.0 M",
    ]  # fmt: skip
    assert [duration(s) for s in (0.04, 59.9, 59.96, 3599.4, 3600, 3725)] == [
        "0.0 s", "59.9 s", "1 min 00 s", "59 min 59 s", "1 h 00 min", "1 h 02 min",
    ]  # fmt: skip
    assert [clock(s) for s in (-1, 0, 59.9, 60, 3723)] == ["0:00", "0:00", "0:59", "1:00", "1:02:03"]
    assert [memory(n) for n in (0, 812e6, 999.4e6, 999.6e6, 3.2e9)] == [
        "0 MB",
        "812 MB",
        "999 MB",
        "1.0 GB",
        "3.2 GB",
    ]
    sizes = (0, 41e3, 999.94e6, 999.95e6, 9.994e9, 9.995e9, 123.4e9)
    assert [disk(n) for n in sizes] == ["0.0 MB", "0.0 MB", "999.9 MB", "1.00 GB", "9.99 GB", "10.0 GB", "123.4 GB"]
    assert [points(d) for d in (0.0123, -0.0123, -0.0001, 0.0)] == ["+1.2", "-1.2", "+0.0", "+0.0"]


def test_a_plot_has_its_greatest_and_least_value_at_its_left_and_a_sign_for_each_curve() -> None:
    curves = [("o", [(1, 4.0), (2, float("nan")), (10, 2.0)]), ("x", [(5, 3.0)])]
    assert plot(curves, 10, 26, 3) == ["4.000   o", "                x", "2.000                    o"]
    assert plot([("o", [(1, 1.0), (5, 1.001)])], 10, 26, 3) == ["1.011", "        o       o", "0.990"], "it is flat"
    assert plot([], 10, 26, 3) == plot(curves, 10, 26, 1) == plot(curves, 10, 7, 3) == []


def test_an_interval_bar_has_zero_in_its_middle() -> None:
    ascii_signs = glyphs_for("ascii")
    assert interval_bar(0.0, -0.2, 0.2, 0.2, 9, ascii_signs) == "[---o---]"
    assert interval_bar(0.1, -0.1, 0.2, 0.2, 9, ascii_signs) == "  [-+-o-]"
    assert interval_bar(-0.2, -0.2, -0.1, 0.2, 9, ascii_signs) == "o-] |    "
    assert interval_bar(0.0, 0.0, 0.0, 0.0, 9, ascii_signs) == "    o    "


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (HOSTILE, HARMLESS),
        ("a\nb\r\n\tc\u2028d", "a b c d"),
        ("\x1b[2J\x1b[1;1Hhome", "home"),
        ("\x9b31mred", "red"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]never ended", "never ended"),
        ("\x1b", ""),
        ("\ud800\ufffe\x7f", ""),
        ("x → 北京 é ½", "x → 北京 é ½"),
    ],
)
def test_untrusted_texts_become_harmless_lines(text: str, line: str) -> None:
    assert glyphs_for("utf-8").line(text) == line
    assert glyphs_for(None).line(text) == line
    assert glyphs_for("cp1252").line(text).isascii()


def test_what_to_look_at_next_fits_and_can_be_run(tmp_path: Path) -> None:
    file = io.StringIO()
    views.print_next(Path("runs/my run"), flips=True, console=console(file=file, force_terminal=False))
    views.print_next(tmp_path / "other", flips=False, console=console(file=file, force_terminal=False, width=40))
    assert file.getvalue().splitlines() == [
        "",
        "next     upft show 'my run' --html   every problem with both answers",
        "         upft ask 'my run'           your questions to base and tuned",
        "",
        f"next     upft ask {tmp_path / 'other'}   your questions to base and tuned",
    ]


def test_characters_of_two_columns_are_counted_as_two() -> None:
    text = " ".join(["学习率必须大于零"] * 8)  # 16 columns each
    lines = wrapped(f"{text} `upft run 我的 食谱.yaml`", 60).split("\n")
    assert [cell_len(line) for line in lines] == [50, 50, 59]
    assert " ".join(lines) == f"{text} `upft run 我的 食谱.yaml`"
