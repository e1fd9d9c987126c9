"""What people see, read back from recorded consoles: numbers, room, throttling, texts that cannot harm."""

from __future__ import annotations

import io
import re
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from upft_mlx.events import (
    EvaluationStarted,
    Event,
    Graded,
    Note,
    Progress,
    Side,
    StageDone,
    StageSkipped,
    StageStarted,
    Trained,
)
from upft_mlx.ui import views
from upft_mlx.ui.live import LiveView
from upft_mlx.ui.plain import PlainView
from upft_mlx.ui.state import Meter
from upft_mlx.ui.tally import TURN, Answers, Tally
from upft_mlx.ui.text import clock, count, duration, glyphs_for, memory, points, sparkline

STAGES = ("generate", "build", "train", "evaluate", "fuse")
HOSTILE = "[red]x[/red]\x1b[31m\x1b]0;title\x07\r\n\x00\u202ey[/]"
HARMLESS = "[red]x[/red] y[/]"
NUMBERS = "learning rate 1.00e-05  256 tokens/s  peak 3.2 GB"
ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time

    def tick(self, seconds: float) -> None:
        self.time += seconds


def graded(side: Side, problem: int, correct: bool, *, benchmark: str = "arithmetic", **changes: Any) -> Graded:
    values: dict[str, Any] = {
        "benchmark": benchmark,
        "side": side,
        "problem_id": f"p-{problem}",
        "sample": 0,
        "question": "How many?",
        "completion": "So 7.",
        "answer": "7",
        "gold": "7" if correct else "8",
        "correct": correct,
        "tokens": 3,
    }
    return Graded(**{**values, **changes})


def trained(step: int, loss: float = 1.5, **changes: float) -> Trained:
    metrics: dict[str, float | int] = {
        "step": step,
        "epoch": 1,
        "loss": loss,
        "learning_rate": 1e-5,
        "examples": 8,
        "supervised_tokens": 128,
        "processed_tokens": 900,
        "seconds": 0.5,
        "tokens_per_second": 256.0,
        "peak_memory_bytes": 3_200_000_000,
    }
    return Trained({**metrics, **changes}, 100)


def console(width: int = 80, height: int = 24, **changes: Any) -> Console:
    values: dict[str, Any] = {
        "file": io.StringIO(),
        "force_terminal": True,
        "width": width,
        "height": height,
        "legacy_windows": False,
        "_environ": {"TERM": "xterm-256color"},
    }
    return Console(**{**values, **changes})


def plain_lines(events: list[Event | float]) -> list[str]:
    """What the plain view writes; numbers are seconds that pass."""
    now, target = Clock(), console(force_terminal=False)
    with views.open_view(plain=True, console=target, now=now) as notify:
        for event in events:
            if isinstance(event, float):
                now.tick(event)
            else:
                notify(event)
    return written(target).splitlines()


def written(target: Console) -> str:
    assert isinstance(target.file, io.StringIO)
    return target.file.getvalue()


def frame(view: LiveView, width: int = 80, height: int = 24) -> list[str]:
    """The lines of the screen that the view draws."""
    target = console(width, height)
    target.print(view)
    return ANSI.sub("", written(target)).splitlines()


def watched(*events: Event | float) -> LiveView:
    """A live view that has seen these events; numbers are seconds that pass."""
    now = Clock()
    view = LiveView(console(), STAGES, now)
    for event in events:
        if isinstance(event, float):
            now.tick(event)
        else:
            view(event)
    return view


# Plain lines.


def test_plain_lines_of_a_run() -> None:
    assert plain_lines(
        [
            StageStarted("generate", "256 problems"),
            Progress("generate", 0, 256, "solutions", 0),
            2.0,
            Progress("generate", 128, 256, "solutions", 2048),
            2.0,
            Progress("generate", 256, 256, "solutions", 4096),
            StageDone("generate", "256 solutions, 4096 tokens", 12.34),
            StageSkipped("build", "current: 243 prefix rows"),
            StageSkipped("push"),
            StageStarted("train"),
            Note("training continues after step 10"),
            trained(20, valid_loss=1.75),
            trained(30, loss=1.25),
            trained(40, loss=3.0, fixed_loss=0.75),
            StageDone("train", "", 125.0),
        ]
    ) == [
        "▸ generate  256 problems",
        "generate: 256/256 solutions  1,024 tokens/s  0:04 elapsed",
        "✓ generate  256 solutions, 4096 tokens (12.3 s)",
        "· build  skipped: current: 243 prefix rows",
        "· push  skipped: current",
        "▸ train",
        "note: training continues after step 10",
        f"train: step 20/100  loss 1.5000  valid loss 1.7500  {NUMBERS}",
        f"train: step 30/100  loss 1.2500  {NUMBERS}",
        f"train: step 40/100  loss 0.7500 on fixed rows  of batches 3.0000  {NUMBERS}",
        "✓ train  (2 min 05 s)",
    ]


def test_plain_progress_speaks_every_five_seconds() -> None:
    events: list[Event | float] = []
    for done in range(1, 13):
        events += [Progress("generate", done, 12, "solutions", 100 * done), 1.0]
    assert plain_lines(events) == [
        "generate: 6/12 solutions  100 tokens/s  0:05 elapsed  0:06 left",
        "generate: 11/12 solutions  100 tokens/s  0:10 elapsed  0:01 left",
        "generate: 12/12 solutions  100 tokens/s  0:11 elapsed",
    ]


def test_plain_says_every_five_seconds_what_takes_long() -> None:
    """A first step may take minutes; while it does, no event comes."""
    now, file = Clock(), io.StringIO()
    view = PlainView(file, STAGES, now)

    def wait(seconds: int) -> list[str]:
        file.seek(0)
        file.truncate()
        for _ in range(seconds):
            now.tick(1.0)
            view.beat()
        return file.getvalue().splitlines()

    assert wait(20) == [], "nothing has begun"
    view(StageStarted("train"))
    assert wait(11) == ["train: 0:05 elapsed", "train: 0:10 elapsed"]
    view(Progress("train", 0, 6, "steps"))
    assert wait(4) == ["train: 0/6 steps  0:04 elapsed"]
    view(Progress("train", 1, 6, "steps", 100))
    assert wait(5) == ["train: 1/6 steps  25 tokens/s  0:09 elapsed  0:15 left"]
    view(StageDone("train", "", 21.0))
    assert wait(20) == []


def test_plain_evaluation_speaks_per_side_every_five_seconds_and_when_complete() -> None:
    events: list[Event | float] = [EvaluationStarted((("arithmetic", 4), ("gsm8k", 2)))]
    for problem in range(4):
        events += [graded("base", problem, problem != 1), 3.0]
    events += [graded("tuned", 0, True), graded("base", 0, False, benchmark="gsm8k")]
    events += [graded("base", 1, False, benchmark="gsm8k", resumed=True)]
    assert plain_lines(events) == [
        "evaluate: arithmetic base 3/4  accuracy 66.7 % [20.8, 93.9]",
        "evaluate: arithmetic base 4/4  accuracy 75.0 % [30.1, 95.4]",
        "evaluate: gsm8k base 2/2  accuracy 0.0 % [0.0, 65.8]",
    ]


def test_plain_completion_is_said_once_but_again_in_a_second_round() -> None:
    start = EvaluationStarted((("arithmetic", 2),))
    both: list[Event | float] = [graded("base", 0, True), graded("base", 1, True)]
    assert len(plain_lines([start, *both, graded("base", 1, True)])) == 1
    assert len(plain_lines([start, *both, start, *both])) == 2


def test_plain_has_no_control_characters_and_flushes() -> None:
    class Flushed(io.StringIO):
        pending = False

        def write(self, text: str, /) -> int:
            self.pending = True
            return super().write(text)

        def flush(self) -> None:
            self.pending = False

    file = Flushed()
    with views.open_view(plain=True, console=console(file=file)) as notify:
        for event in (StageStarted(HOSTILE, HOSTILE), Note(HOSTILE), StageDone("train", HOSTILE, 1.0)):
            notify(event)
            assert not file.pending
    lines = file.getvalue().split("\n")
    assert lines[1] == f"note: {HARMLESS}"
    assert all(line.isprintable() for line in lines)
    assert len(lines) == 4


def test_plain_in_ascii() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    with views.open_view(plain=False, console=Console(file=file)) as notify:
        notify(StageDone("generate", "½ of 北京", 1.0))
    file.seek(0)
    assert file.read() == "+ generate  ? of ?? (1.0 s)\n"


def test_without_a_terminal_lines_go_to_stdout_or_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # a wish for colours, not a terminal
    monkeypatch.setenv("TERM", "xterm")
    for stderr in (False, True):
        with views.open_view(plain=False, stderr=stderr) as notify:
            notify(Note("here"))
        output = capsys.readouterr()
        assert (output.err if stderr else output.out) == "note: here\n"
        assert (output.out if stderr else output.err) == ""


def test_a_dumb_terminal_gets_lines() -> None:
    target = console(_environ={"TERM": "dumb"})
    with views.open_view(plain=False, console=target) as notify:
        notify(Note("here"))
    assert written(target) == "note: here\n"


# The live view.


def test_header_shows_every_stage() -> None:
    view = watched(StageSkipped("generate", "current: 9"), StageSkipped("build"), StageStarted("train", "a LoRA"))
    assert frame(view)[1] == "✓ generate, build (skipped: current)  ▸ train  · evaluate  · fuse"
    view(StageDone("train", "", 1.0))
    view(StageSkipped("evaluate", "evaluate.benchmarks is empty"))
    assert frame(view)[1:3] == ["✓ generate, build (skipped: current)  ✓ train  · evaluate (skipped)  · fuse"]


def test_progress_has_rate_elapsed_and_left() -> None:
    view = watched(
        StageStarted("generate", "40 problems"),
        Progress("generate", 0, 40, "solutions", 0),
        10.0,
        Progress("generate", 10, 40, "solutions", 12_340),
    )
    lines = frame(view)
    assert lines[3] == "generate  40 problems"
    assert lines[4].endswith("  25 %")
    assert lines[5] == "10/40 solutions · 1,234 tokens/s · 0:10 elapsed · 0:30 left"


def test_a_stage_without_progress_shows_its_time() -> None:
    assert frame(watched(StageStarted("fuse", "the adapter"), 65.0))[3] == "fuse  the adapter  1:05"


def test_rate_is_that_of_the_last_seconds_and_steps_add_up() -> None:
    meter = Meter(Progress("generate", 0, 99, "solutions", 0), 0.0)
    for second in range(1, 21):  # 10 tokens a second, then 100
        meter.add(Progress("generate", second, 99, "solutions", max(10 * second, 100 * second - 900)), float(second))
    assert meter.tokens_per_second == 100
    steps = Meter(Progress("train", 0, 9, "steps"), 0.0)
    for step in (1, 2, 3):
        steps.add(Progress("train", step, 9, "steps", 128), 10.0 * step)  # slower than the window
    assert steps.tokens_per_second == 12.8
    assert steps.left(30.0) == 60.0
    assert steps.left(34.0) == 56.0


def test_a_resumed_stage_counts_its_pace_from_where_it_continued() -> None:
    meter = Meter(Progress("train", 80, 100, "steps"), 0.0)
    assert meter.left(5.0) is None
    meter.add(Progress("train", 90, 100, "steps", 1), 10.0)
    assert meter.left(10.0) == 10.0


def test_a_text_is_broken_between_words_on_a_terminal_and_not_in_a_pipe() -> None:
    words = "a recipe for a model and a dataset, with every number that it chose"
    for terminal in (True, False):
        file = io.StringIO()
        views.print_text(words, console=Console(file=file, width=30, force_terminal=terminal, color_system=None))
        lines = file.getvalue().splitlines()
        assert " ".join(lines).split() == words.split()
        assert (max(map(len, lines)) <= 30) == terminal


def test_time_left_goes_by_tokens_where_units_differ_in_length() -> None:
    meter = Meter(Progress("generate", 0, 100, "solutions"), 0.0)
    meter.add(Progress("generate", 10, 100, "solutions", 1000, tokens_left=720), 10.0)
    assert meter.left(10.0) == pytest.approx(7.2), "10 long solutions of 100 tokens are done, 90 prefixes of 8 are left"


def test_a_complete_stage_stands_still() -> None:
    meter = Meter(Progress("build", 0, 2, "rows"), 0.0)
    meter.add(Progress("build", 2, 2, "rows"), 3.0)
    assert meter.numbers(500.0) == ["2/2 rows", "0:03 elapsed"]


def test_training_shows_metrics_and_the_curve() -> None:
    losses = [3.0, 2.0, 1.5, 1.0]
    view = watched(StageStarted("train", "a LoRA adapter"), Progress("train", 10, 100, "steps"))
    for step, loss in enumerate(losses, start=1):
        view(trained(step, loss, **({"valid_loss": 2.25} if step == 2 else {})))
    text = "\n".join(frame(view))
    assert "\nloss 1.0000 · valid loss 2.2500 (step 2)\n" in text
    assert "\nlearning rate 1.00e-05 · 256 tokens/s · peak 3.2 GB\n" in text
    assert "loss 3.000 █▅▃▁ 1.000" in text


def test_the_curve_is_that_of_the_fixed_rows_whatever_the_batches_say() -> None:
    view = watched(StageStarted("train", "a LoRA adapter"), Progress("train", 10, 100, "steps"))
    for step, (loss, fixed) in enumerate([(0.5, 4.0), (9.0, 3.0), (1.0, 2.0)], start=1):
        view(trained(step, loss, fixed_loss=fixed))
    text = "\n".join(frame(view))
    assert "loss 4.000 █▅▁ 2.000" in text
    assert "\nloss 2.0000 on fixed rows · of batches 1.0000\n" in text


def evaluation(benchmarks: int = 1, expected: int = 256) -> LiveView:
    names = ["arithmetic", *(f"b-{index}" for index in range(1, benchmarks))]
    view = watched(
        StageStarted("evaluate", ", ".join(names)),
        EvaluationStarted(tuple((name, expected) for name in names)),
    )
    view(Progress("evaluate arithmetic base", 128, expected, "completions", 9000))
    for problem in range(128):
        view(graded("base", problem, problem < 92, question="Why? " * 40))
    return view


def test_evaluation_shows_accuracy_interval_progress_and_an_answer() -> None:
    lines = frame(evaluation())
    assert lines[7].split() == ["benchmark", "progress", "base", "tuned", "tuned", "-", "base", "✗→✓", "✓→✗"]
    assert re.split(r" {2,}", lines[8].strip()) == ["arithmetic", "━━━━━─────", "50 %", "71.9 % [63.5, 78.9]", *"····"]
    assert re.fullmatch(r"arithmetic p-\d+  gold [78]", lines[10])
    assert lines[11].startswith("  Why? Why? ")
    assert lines[11].endswith("…")
    assert len(lines[11]) == 80
    assert lines[12] in ("  base  ✓ 7  So 7.", "  base  ✗ 7  So 7.")


FOUR = [(False, True), (False, True), (True, False), (True, True)]


def both_sides(samples: int = 1) -> LiveView:
    """Four problems, base and tuned; two flips to right, one to wrong."""
    view = watched(StageStarted("evaluate"), EvaluationStarted((("arithmetic", 4 * samples),)))
    for side, place in (("base", 0), ("tuned", 1)):
        for problem, answers in enumerate(FOUR):
            for sample in range(samples):
                view(graded(side, problem, answers[place], sample=sample, tokens=30 - 20 * place))  # type: ignore[arg-type]
    return view


def test_evaluation_shows_both_sides_their_difference_and_flips() -> None:
    lines = frame(both_sides(), 120, 40)
    assert re.split(r" {2,}", lines[6].strip()) == [
        "arithmetic",
        "4",
        "50.0 % [15.0, 85.0]",
        "75.0 % [30.1, 95.4]",
        "+25.0 [-50.5, +77.8]",
        "2",
        "1",
        "30→10",
    ]
    assert lines[8] == "flips  ✗→✓ p-1, p-0  ✓→✗ p-2"
    assert re.fullmatch(r"arithmetic p-\d  gold 7|arithmetic p-2  gold 8", lines[10])
    assert [line.split()[0] for line in lines[12:14]] == ["base", "tuned"]


def test_a_narrow_screen_has_the_difference_below_the_table() -> None:
    lines = frame(both_sides(), 72, 24)
    assert "tuned - base" not in lines[5]
    assert lines[8] == "arithmetic: tuned - base +25.0 [-50.5, +77.8] points"
    assert max(map(len, lines)) <= 72


def test_samples_of_a_problem_do_not_make_the_interval_narrower() -> None:
    """As at the end of the run: 4 problems x 5 samples have the interval of 4 problems."""
    accuracy = frame(both_sides(samples=5), 120, 40)[6]
    assert "50.0 % [0.0, 100.0]" in accuracy
    assert "+25.0 [-50.5, +77.8]" in accuracy


def test_the_answers_are_shown_in_turns_each_beside_the_other_sides() -> None:
    answers = Answers()
    for problem in range(3):
        answers.add(graded("base", problem, True))
    single = answers.shown(0.0)
    assert single is not None
    assert single.tuned is None
    for problem in range(3):
        answers.add(graded("tuned", problem, problem != 1))
    pairs = [answers.shown(turn * TURN) for turn in range(3)]
    assert [pair.latest.problem_id for pair in pairs if pair and pair.base and pair.tuned] == ["p-0", "p-1", "p-2"]
    assert [pair.latest.problem_id for pair in answers.flips] == ["p-1"]
    answers.add(graded("base", 0, True, benchmark="next"))
    shown = answers.shown(0.0)
    assert shown is not None
    assert shown.latest.benchmark == "next"


def test_answers_of_an_earlier_process_are_only_remembered_for_the_other_side() -> None:
    answers = Answers()
    answers.add(graded("base", 0, False, resumed=True))
    assert answers.shown(0.0) is None
    answers.add(graded("tuned", 0, True))
    pair = answers.shown(0.0)
    assert pair is not None
    assert pair.base is not None
    assert len(answers.flips) == 1


def test_a_large_screen_shows_both_completions_side_by_side() -> None:
    view = watched(StageStarted("evaluate"), EvaluationStarted((("arithmetic", 1),)))
    view(graded("base", 0, False, completion="left " * 400 + "end of base"))
    view(graded("tuned", 0, True, completion="right " * 400 + "end of tuned"))
    lines = frame(view, 120, 40)
    assert lines[-1].split("  ")[0].endswith("end of base")
    assert lines[-1].rstrip().endswith("end of tuned")
    assert len(lines) < 40
    assert not [line for line in frame(view, 80, 24) if line.startswith("left left")]


def test_flips_compare_the_same_problem_and_sample() -> None:
    tally = Tally(4)
    tally.add(graded("base", 0, False))
    tally.add(graded("tuned", 0, True, sample=1))
    tally.add(graded("tuned", 1, True))
    assert (tally.gained, tally.lost) == (0, 0)
    tally.add(graded("tuned", 0, True))
    assert (tally.gained, tally.lost) == (1, 0)
    tally.add(graded("base", 1, True))
    assert (tally.gained, tally.lost) == (1, 0)


def test_a_completion_graded_again_replaces_the_first() -> None:
    tally = Tally(2)
    for correct in (True, False):
        tally.add(graded("base", 0, correct))
    tally.add(graded("tuned", 0, True))
    assert (tally.done("base"), tally.accuracy("base")[:5], tally.gained) == (1, "0.0 %", 1)
    tally.add(graded("tuned", 0, False))
    assert tally.gained == 0


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 60), (60, 20)])
@pytest.mark.parametrize("benchmarks", [1, 5, 30])
def test_evaluation_fits_the_screen(width: int, height: int, benchmarks: int) -> None:
    view = evaluation(benchmarks, expected=1319)
    last = f"b-{benchmarks - 1}" if benchmarks > 1 else "arithmetic"
    view(graded("tuned", 0, True, benchmark=last, question="北京" * 300))
    lines = frame(view, width, height)
    assert len(lines) < height
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert ("71.9 %" if benchmarks < 30 else "100.0 %") in text
    assert width < 80 or "[" in text, "intervals where there is room"
    assert not [line for line in lines if "%" in line[20:] and "…" in line[20:]], "no number is cut"
    assert sum(line.startswith(last[:7]) and " %" in line for line in lines) == 1, "the benchmark being graded is shown"
    assert ("more" in text) == (benchmarks == 30 and height < 60)
    assert any("北京" in line for line in lines[-3:]) or height <= 24


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (40, 10), (10, 4), (2, 2)])
def test_every_stage_survives_every_screen(width: int, height: int) -> None:
    train = watched(StageStarted("train", "x " * 99), Progress("train", 1, 100, "steps"), trained(1))
    for view in (watched(), train, evaluation(9), evaluation(40)):
        target = console(width, height)
        with view.live() as live:
            live.console.print()
        target.print(view)
        assert max(map(len, ANSI.sub("", written(target)).splitlines()), default=0) <= width


def test_live_prints_permanent_lines_and_keeps_the_last_frame() -> None:
    target = console()
    with views.open_view(plain=False, console=target, stages=("generate", "build")) as notify:
        notify(StageStarted("generate", "256 problems"))
        notify(Progress("generate", 256, 256, "solutions", 4096))
        notify(StageDone("generate", "256 solutions, 4.1 k tokens", 12.34))
        notify(Note(HOSTILE))
    text = ANSI.sub("", written(target))
    assert "✓ generate  256 solutions, 4.1 k tokens (12.3 s)" in text
    assert f"note: {HARMLESS}\n" in text
    assert "✓ generate  · build" in text[text.rindex("note:") :]
    assert written(target).endswith("\x1b[?25h"), "the cursor is visible again"


def test_an_interruption_marks_the_stage_and_restores_the_terminal() -> None:
    target, streams = console(), (sys.stdout, sys.stderr)

    def interrupted() -> None:
        with views.open_view(plain=False, console=target, stages=("train", "evaluate")) as notify:
            notify(StageStarted("train"))
            notify(trained(7))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    text = ANSI.sub("", written(target))
    assert "✗ train  · evaluate" in text
    assert "loss 1.5000" in text[text.rindex("✗ train") :]
    assert written(target).endswith("\x1b[?25h")
    assert (sys.stdout, sys.stderr) == streams


def test_thousands_of_events_cost_little_and_draw_few_frames() -> None:
    target, start = console(), time.monotonic()
    with views.open_view(plain=False, console=target) as notify:
        notify(StageStarted("evaluate"))
        notify(EvaluationStarted((("arithmetic", 20_000),)))
        for problem in range(20_000):
            notify(graded("base", problem, True, question="long " * 2000))
    seconds = time.monotonic() - start
    assert seconds < 2
    assert written(target).count("benchmark") <= 8 * seconds + 4
    assert "20,000" in written(target)


def test_texts_from_models_are_shown_as_they_are() -> None:
    view = watched(StageStarted("evaluate", HOSTILE), EvaluationStarted(((HOSTILE, 1),)))
    view(Progress(HOSTILE, 1, 1, "[b]units", 1))
    view(graded("base", 0, True, benchmark=HOSTILE, question=HOSTILE, answer=HOSTILE, gold=HOSTILE))
    target = console(120)
    target.print(view)
    assert "\x1b[31m" not in written(target)
    assert "title" not in written(target)
    lines = frame(view, 120)
    assert lines[3] == HARMLESS
    assert f"{HARMLESS} p-0  gold {HARMLESS}" in lines
    assert f"  {HARMLESS}" in lines
    assert f"  base  ✓ {HARMLESS}  So 7." in lines


def test_live_without_unicode() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with views.open_view(plain=False, console=console(file=file), stages=STAGES) as notify:
        for event in (
            StageStarted("train"),
            Progress("train", 1, 2, "steps"),
            trained(1, 2.0),
            trained(2, 1.0),
        ):
            notify(event)
        notify(StageStarted("evaluate"))
        notify(EvaluationStarted((("ä" * 90, 2),)))
        notify(graded("base", 0, True, benchmark="ä" * 90, question="½ " * 99))
    file.seek(0)
    text = ANSI.sub("", file.read())
    assert "> evaluate  . fuse" in text
    assert "x->+" in text
    assert " ? ? ?..." in text


@pytest.mark.parametrize("width", [100, 80, 50, 20, 5])
def test_every_width_without_unicode(width: int) -> None:
    target = console(width, file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    view = LiveView(target, STAGES)
    train: list[Event] = [StageStarted("train"), Progress("train", 1, 2, "steps"), trained(1)]
    evaluate: list[Event] = [
        StageStarted("evaluate"),
        EvaluationStarted((("x", 2),)),
        graded("base", 0, True),
    ]
    for events in (train, evaluate):
        for event in events:
            view(event)
        target.print(view)  # what the encoding cannot show raises
    views.print_summary(a_report(), console=target)


def test_lines_broken_by_a_narrower_terminal_are_counted() -> None:
    view = evaluation()
    assert max(map(len, frame(view, 120))) == 120
    assert view.broken_lines(120) == 0
    # Longer than 60: the bar with its share (66), the two lines of the table and the question (120).
    assert view.broken_lines(60) == 4
    assert view.broken_lines(30) > 6


# The summary, its picture, and errors.


def side(accuracy: float, low: float, high: float, **changes: Any) -> dict[str, Any]:
    values = {
        "n": 256,
        "samples": 1,
        "temperature": 0.0,
        "accuracy": accuracy,
        "ci95": [low, high],
        "mean_tokens": 211.7,
        "truncated": 0.031,
        "pass_at_k": {"1": accuracy},
        "maj_at_k": {"1": accuracy},
    }
    return {**values, **changes}


def a_report(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "name": "demo",
        "model": "models/qwen",
        "method": "upft",
        "stages": [
            {
                "stage": "generate",
                "seconds": 12.34,
                "tokens_sampled": 4096,
                "tokens_trained": 0,
                "peak_memory_bytes": 812_000_000,
                "detail": "256 solutions",
            }
        ],
        "benchmarks": {
            "arithmetic": {
                "base": side(0.715, 0.653, 0.77),
                "tuned": side(0.781, 0.727, 0.828, truncated=0.0),
                "paired": {"delta": 0.066, "ci95": [0.012, 0.121], "p_value": 0.0173},
            },
            "gsm8k": {
                "base": side(0.345, 0.32, 0.371),
                "tuned": side(0.351, 0.326, 0.377),
                "paired": {"delta": 0.006, "ci95": [-0.014, 0.025], "p_value": 0.612},
            },
        },
        "verdict": ["gsm8k: no measurable change"],
        "files": {"adapter": "runs/demo/adapter", "report": "runs/demo/report.md"},
    }
    return {**values, **changes}


def summary_text(report: dict[str, Any], **changes: Any) -> str:
    target = console(**{"force_terminal": False, **changes})
    views.print_summary(report, console=target)
    return written(target)


def test_summary_has_every_number() -> None:
    text = summary_text(a_report())
    for expected in (
        "demo  upft  models/qwen",
        "12.3 s    4.1 k           812 MB  256 solutions",
        "71.5 % [65.3, 77.0]  78.1 % [72.7, 82.8]  +6.6 [+1.2, +12.1]",
        "n 256, greedy",
        "212 tokens",
        "3.1 % truncated",
        "p 0.017",
        "p 0.612",
        "gsm8k: no measurable change",
        "adapter  runs/demo/adapter",
    ):
        assert expected in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_summary_of_samples_has_pass_and_maj() -> None:
    at = {"pass_at_k": {"1": 0.3, "16": 0.8, "2": 0.5}, "maj_at_k": {"1": 0.3, "16": 0.42, "2": 0.3}}
    report = a_report(benchmarks={"x": {"base": side(0.3, 0.2, 0.4, samples=16, temperature=0.6, **at)}})
    text = summary_text(report)
    assert "n 256 x 16, T 0.6" in text
    assert "pass@16 80.0 %" in text
    assert "maj@16 42.0 %" in text


def test_summary_without_tuned_or_anything() -> None:
    only_base = {"arithmetic": {"base": side(0.715, 0.653, 0.77)}}
    line = next(line for line in summary_text(a_report(benchmarks=only_base)).splitlines() if "71.5" in line)
    assert line.split()[-2:] == ["·", "·"]
    nothing = a_report(stages=[], benchmarks={}, verdict=[], files={})
    assert summary_text(nothing).split() == ["demo", "upft", "models/qwen"]


def test_only_a_difference_that_is_claimed_has_a_colour() -> None:
    worse: dict[str, Any] = {"delta": -0.05, "ci95": [-0.09, -0.01], "p_value": 0.01}
    touching: dict[str, Any] = {"delta": 0.05, "ci95": [0.0, 0.1], "p_value": 0.05}
    for paired, colour in ((worse, "31"), (touching, "2")):
        sides = {"base": side(0.7, 0.6, 0.8), "tuned": side(0.7, 0.6, 0.8)}
        text = summary_text(a_report(benchmarks={"x": {**sides, "paired": paired}}), force_terminal=True)
        assert f"\x1b[{colour}m{100 * paired['delta']:+.1f} [" in text
    text = summary_text(a_report(), force_terminal=True)
    assert "\x1b[32m+6.6 [" in text
    assert "\x1b[2m+0.6 [" in text
    assert text.count("\x1b[32m") == 1


def test_a_void_evaluation_has_neither_colour_nor_p() -> None:
    cut = side(0.1, 0.05, 0.2, truncated=0.6)
    paired = {"delta": 0.3, "ci95": [0.1, 0.5], "p_value": 0.001}
    text = summary_text(a_report(benchmarks={"x": {"base": cut, "tuned": cut, "paired": paired}}), force_terminal=True)
    assert "\x1b[2m+30.0 [" in text
    assert "void" in text
    assert "p 0.001" not in text


def test_paths_are_not_broken() -> None:
    path = "/a folder/" + "long-name/" * 20
    for terminal in (False, True):
        text = ANSI.sub("", summary_text(a_report(files={"adapter": path}), force_terminal=terminal))
        assert f"adapter  {path}\n" in text


def test_summary_shows_hostile_texts_as_they_are() -> None:
    report = a_report(name=HOSTILE, verdict=[HOSTILE], benchmarks={HOSTILE: {"base": side(0.5, 0.4, 0.6)}})
    text = summary_text(report, width=120)
    assert f"{HARMLESS}  upft" in text
    assert f"\n{HARMLESS}\n" in text
    assert f"\n{HARMLESS}  50.0 %" in text


def test_svg_is_xml_with_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "20")
    path = tmp_path / "run" / "report.svg"
    wide = "w" * 95
    report = a_report(name="<&>\x07\ufffe\ud800" + HOSTILE, verdict=[wide])
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
    assert wide in [(element.text or "").strip() for element in root.iter()], "100 columns"
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
    assert [points(d) for d in (0.0123, -0.0123, -0.0001, 0.0)] == ["+1.2", "-1.2", "+0.0", "+0.0"]


def test_sparkline() -> None:
    levels = "01234567"
    assert sparkline([0, 7, 3.4], 10, levels) == "073"
    assert sparkline([5, 5], 10, levels) == "00"
    assert sparkline([0, 0, 7, 7], 2, levels) == "07"
    assert sparkline([1.0, float("nan"), float("inf"), 2.0], 10, levels) == "07"
    assert (sparkline([], 10, levels), sparkline([1], 0, levels)) == ("", "")
    assert len(sparkline(list(range(1000)), 60, levels)) == 60


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
        "next     upft show 'my run' --flips   what went from wrong to right, and back",
        "         upft ask 'my run'            your questions to base and tuned",
        "",
        f"next     upft ask {tmp_path / 'other'}   your questions to base and tuned",
    ]
