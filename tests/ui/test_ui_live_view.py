"""What people see, read back from recorded consoles: numbers, room, throttling, texts that cannot harm: the live
view.
"""

from __future__ import annotations

import io
import re
import sys
import time

import pytest
from helpers.ui import ANSI, HARMLESS, HOSTILE, STAGES, Clock, a_report, console, graded, trained, written
from rich.console import Console

from upft_mlx.evaluation.sequential import always_valid_difference
from upft_mlx.events import (
    EvaluationStarted,
    Event,
    Expected,
    Note,
    Progress,
    StageDone,
    StageSkipped,
    StageStarted,
)
from upft_mlx.quantities import points
from upft_mlx.ui import views
from upft_mlx.ui.live import LiveView
from upft_mlx.ui.state import Meter
from upft_mlx.ui.tally import Tally


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


def test_header_shows_every_stage() -> None:
    view = watched(StageSkipped("generate", "current: 9"), StageSkipped("build"), StageStarted("train", "a LoRA"))
    assert frame(view)[1] == "✓ generate, build (skipped: current)  ▸ train  · evaluate  · fuse"
    view(StageDone("train", "", 1.0))
    view(StageSkipped("evaluate", "evaluate.benchmarks is empty", current=False))
    assert frame(view)[1:3] == ["✓ generate, build (skipped: current)  ✓ train  · evaluate (skipped)  · fuse"]


def test_a_stage_that_only_some_recipes_have_stands_where_it_ran() -> None:
    view = watched(StageSkipped("answers"), StageStarted("choose"), StageDone("choose", "", 1.0))
    header = "✓ answers (skipped: current)  ✓ choose  · generate  · build  · train  · evaluate  · fuse"
    assert frame(view, 120)[1] == header
    view(StageStarted("generate"))
    assert frame(view, 120)[1].endswith("✓ choose  ▸ generate  · build  · train  · evaluate  · fuse")


def test_what_an_earlier_run_of_several_has_done_waits_in_the_next() -> None:
    """The first cell of a comparison only evaluates."""
    view = watched(StageStarted("evaluate"), StageDone("evaluate", "", 1.0), StageStarted("generate"))
    assert frame(view)[1] == "▸ generate  · build  · train  · evaluate  · fuse"
    for stage in STAGES[:4]:
        view(StageStarted(stage))
        view(StageDone(stage, "", 1.0))
    view(StageSkipped("generate"))
    assert frame(view)[1:] == ["✓ generate (skipped: current)  · build  · train  · evaluate  · fuse"]


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
    lines = text.splitlines()
    plot = lines[lines.index("• batches  ● validation") + 1 :]
    assert [line[:6].strip() for line in plot] == ["3.000", *[""] * (len(plot) - 2), "1.000"]
    columns = [[line.find(sign, 6) for line in plot if sign in line[6:]] for sign in "•●"]
    assert columns == [sorted(columns[0]), [columns[0][1]]], "both at step 2"
    assert max(columns[0]) < 10, "4 of 100 steps"


def test_the_plot_gives_way_to_the_numbers_on_a_small_screen() -> None:
    view = watched(StageStarted("train"), trained(1, 3.0), trained(2, 1.0))
    for height, lines in ((10, 0), (12, 3), (16, 7), (24, 10), (40, 10)):
        text = frame(view, 80, height)
        start = text.index("• batches") + 1 if lines else len(text)
        assert len(text[start:]) == lines
        assert any("learning rate" in line for line in text)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 20), (40, 24), (40, 16), (120, 40)])
def test_a_training_fits_the_screen_down_to_the_plot_s_last_line(width: int, height: int) -> None:
    now = Clock()
    view = LiveView(console(), ("answers", "choose", *STAGES), now)
    view(Expected({"generate": 10.0, "train": 100.0, "evaluate": 40.0, "fuse": 20.0}))
    for stage in ("answers", "generate"):
        view(StageSkipped(stage))
    for stage in ("choose", "build"):
        view(StageDone(stage, "", 1.0))
    view(StageStarted("train", "a LoRA adapter"))
    for step in (1, 2, 3):
        view(Progress("train", step, 10_000, "steps", 12_345 * step, peak_memory_bytes=15_000_000_000))
        view(trained(step, 3.0 - step / 2, fixed_loss=2.5, valid_loss=2.25, development_accuracy=0.5))
        now.tick(500.0)
    lines = frame(view, width, height)
    assert len(lines) <= height - (height > 16)
    assert "skipped: current)" in "\n".join(lines), "no stage is broken"
    plot = lines[lines.index("• fixed rows  ● validation") + 1 :] if "• fixed rows  ● validation" in lines else []
    assert [line.split()[0] for line in (plot[:1] + plot[-1:])] == (["2.500", "2.250"] if height > 16 else [])


def test_what_is_finished_leaves_the_frame() -> None:
    view = watched(StageStarted("train"), Progress("train", 2, 2, "steps"), trained(1, 3.0), trained(2, 1.0))
    assert len(frame(view)) > 10
    view(StageDone("train", "2 steps", 1.0))
    assert [line for line in frame(view) if line] == ["· generate  · build  ✓ train  · evaluate  · fuse"]


def test_the_time_left_is_that_of_all_stages_scaled_by_what_was_seen() -> None:
    expected = Expected({"generate": 10.0, "train": 100.0, "evaluate": 40.0, "fuse": 20.0})
    view = watched(expected, StageStarted("generate"))
    assert frame(view)[2] == "about 2:50 left over all stages"
    for event in (StageDone("generate", "", 20.0), StageStarted("build")):
        view(event)
    assert frame(view)[2] == "about 5:20 left over all stages", "everything takes twice as long"
    assert "all stages" not in "".join(frame(watched(Expected({"train": 9.0}), StageStarted("train")))), (
        "one is unknown"
    )
    view = watched(
        expected,
        *(StageSkipped(stage) for stage in ("generate", "build")),
        StageStarted("train"),
        Progress("train", 0, 10, "steps"),
        5.0,
        Progress("train", 1, 10, "steps"),
    )
    assert frame(view)[2] == "about 1:45 left over all stages", "45 s of training, 60 s after it"
    assert "all stages" not in "".join(frame(watched(StageStarted("generate")))), "nothing was told"
    ended = [StageDone(stage, "", 1.0) for stage in ("generate", "build", "train", "evaluate")]
    late = watched(Expected({"fuse": 20.0}), *ended, StageStarted("fuse"), 15.0, Progress("fuse", 0, 11, "steps"))
    assert frame(late)[2] == "about 0:05 left over all stages"
    late = watched(Expected({"fuse": 20.0}), *ended, StageStarted("fuse"), 25.0, Progress("fuse", 0, 11, "steps"))
    assert "all stages" not in "".join(frame(late)), "no step is done, and more time has passed than expected"


def test_variants_are_compared_on_what_both_have_answered() -> None:
    view = watched(EvaluationStarted((("arithmetic", 4),)), StageStarted("evaluate"))
    for problem, right in enumerate((True, False, False, False)):
        view(graded("base", problem, right, tokens=10 * (problem + 1)))
    assert "25.0 % [" in "\n".join(frame(view, 120, 40))
    view(graded("tuned", 0, True, tokens=12))
    row = next(line for line in frame(view, 120, 40) if line.startswith("arithmetic  "))
    assert row.count("100.0 % [") == 2
    assert row.endswith("10→12")


def test_the_curve_is_that_of_the_fixed_rows_once_it_has_two_points() -> None:
    view = watched(StageStarted("train", "a LoRA adapter"), Progress("train", 10, 100, "steps"))
    for step, (loss, fixed) in enumerate([(0.5, 4.0), (9.0, None), (1.0, None)], start=1):
        view(trained(step, loss, **({} if fixed is None else {"fixed_loss": fixed})))
    text = "\n".join(frame(view))
    assert "\n• batches\n9.000  •\n" in text, text
    assert "\nloss 1.0000 · fixed rows 4.0000 (step 1)\n" in text
    for step, fixed in ((4, 3.0), (5, 2.0)):
        view(trained(step, 1.0, fixed_loss=fixed))
    text = "\n".join(frame(view))
    assert "\n• fixed rows\n" in text
    assert "\n4.000  •\n" in text
    assert re.search(r"\n2\.000 +•", text)
    assert "\nloss 1.0000 · fixed rows 2.0000 (step 5)\n" in text


def evaluation(benchmarks: int = 1, expected: int = 256) -> LiveView:
    names = ["arithmetic", *(f"b-{index}" for index in range(1, benchmarks))]
    view = watched(
        StageStarted("evaluate", ", ".join(names)),
        EvaluationStarted(tuple((name, expected) for name in names)),
    )
    view(Progress("evaluate", 128, expected, "completions", 9000, part="arithmetic base"))
    for problem in range(128):
        view(graded("base", problem, problem < 92, question="Why? " * 40))
    return view


def test_evaluation_shows_accuracy_interval_and_progress() -> None:
    lines = frame(evaluation())
    assert lines[7].split() == ["benchmark", "progress", "base", "tuned", "tuned", "-", "base", "✗→✓", "✓→✗"]
    assert re.split(r" {2,}", lines[8].strip()) == ["arithmetic", "━━━━━─────", "50 %", "71.9 % [63.5, 78.9]", *"····"]
    assert len(lines) == 9


FOUR = [(False, True), (False, True), (True, False), (True, True)]


def both_variants(samples: int = 1) -> LiveView:
    """Four problems, base and tuned; two flips to right, one to wrong."""
    view = watched(StageStarted("evaluate"), EvaluationStarted((("arithmetic", 4 * samples),)))
    for variant, place in (("base", 0), ("tuned", 1)):
        for problem, answers in enumerate(FOUR):
            for sample in range(samples):
                view(graded(variant, problem, answers[place], sample=sample, tokens=30 - 20 * place))  # type: ignore[arg-type]
    return view


def test_evaluation_shows_both_variants_their_difference_and_flips() -> None:
    lines = frame(both_variants(), 120, 40)
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


def test_a_narrow_screen_has_the_difference_below_the_table() -> None:
    lines = frame(both_variants(), 72, 24)
    assert "tuned - base" not in lines[5]
    assert lines[8] == "arithmetic: tuned - base +25.0 [-50.5, +77.8] points"
    assert max(map(len, lines)) <= 72


def test_samples_of_a_problem_do_not_make_the_interval_narrower() -> None:
    """As at the end of the run: 4 problems x 5 samples have the interval of 4 problems."""
    accuracy = frame(both_variants(samples=5), 120, 40)[6]
    assert "50.0 % [0.0, 100.0]" in accuracy
    assert "+25.0 [-50.5, +77.8]" in accuracy


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


def test_an_evaluation_that_may_stop_shows_intervals_that_allow_for_it() -> None:
    texts = []
    for may_stop in (False, True):
        tally = Tally(100, may_stop)
        for problem in range(50):
            tally.add(graded("base", problem, problem % 2 == 0))
            tally.add(graded("tuned", problem, problem % 3 == 0))
        texts.append((tally.accuracy("base"), tally.difference()))
    difference = always_valid_difference([1.0, 0.0] * 25, [float(n % 3 == 0) for n in range(50)])
    low, high = difference.ci95
    assert texts[1][1] == f"{points(difference.delta)} [{points(low)}, {points(high)}]" != texts[0][1]
    assert texts[0][0] != texts[1][0]


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
    assert ("71.9 %" if benchmarks == 5 else "100.0 %") in text
    assert width < 80 or "[" in text, "intervals where there is room"
    assert not [line for line in lines if "%" in line[20:] and "…" in line[20:]], "no number is cut"
    assert sum(line.startswith(last[:7]) and " %" in line for line in lines) == 1, "the benchmark being graded is shown"
    assert ("more" in text) == (benchmarks == 30 and height < 60)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (40, 10), (10, 4), (2, 2)])
def test_every_stage_survives_every_screen(width: int, height: int) -> None:
    train = watched(StageStarted("train", "x " * 99), Progress("train", 1, 100, "steps"), trained(1))
    for view in (watched(), train, evaluation(9), evaluation(40)):
        target = console(width, height)
        with view.live() as live:
            live.console.print()
        target.print(view)
        assert max(map(len, ANSI.sub("", written(target)).splitlines()), default=0) <= width


def test_live_prints_permanent_lines_and_clears_the_last_frame() -> None:
    target = console()
    with views.open_view(plain=False, console=target, stages=("generate", "build")) as notify:
        notify(StageStarted("generate", "256 problems"))
        notify(Progress("generate", 256, 256, "solutions", 4096))
        notify(StageDone("generate", "256 solutions, 4.1 k tokens", 12.34))
        notify(Note(HOSTILE))
    text = ANSI.sub("", written(target))
    assert "✓ generate  256 solutions, 4.1 k tokens (12.3 s)" in text
    assert f"note: {HARMLESS}\n" in text
    end = written(target)[written(target).rindex("\x1b[?25h") :]
    assert ANSI.sub("", end).strip() == "", "the frame is gone, and the cursor visible again"


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


def test_an_error_before_the_first_stage_leaves_no_list_of_stages() -> None:
    target = console()

    def refused() -> None:
        with views.open_view(plain=False, console=target, stages=("train", "evaluate")) as notify:
            notify(Note("the Hub does not answer"))
            raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        refused()
    assert "\x1b[2K" in written(target)[written(target).rindex("· train") :], "what was drawn is erased"


def test_thousands_of_events_cost_little_and_draw_few_frames() -> None:
    target, start, cost = console(), time.monotonic(), time.process_time()
    with views.open_view(plain=False, console=target) as notify:
        notify(StageStarted("evaluate"))
        notify(EvaluationStarted((("arithmetic", 20_000),)))
        for problem in range(20_000):
            notify(graded("base", problem, True, question="long " * 2000))
    seconds = time.monotonic() - start
    assert time.process_time() - cost < 2
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
    assert any(line.startswith(f"{HARMLESS}  1") for line in lines), "the benchmark's name in the table"


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
    assert "?????..." in text


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
    assert max(map(len, frame(view, 120))) == 88
    assert view.broken_lines(120) == 0
    # Longer than 60: the bar with its share (66) and the two lines of the table (88).
    assert view.broken_lines(60) == 3
    assert view.broken_lines(30) > 5
