"""What people see, read back from recorded consoles: numbers, room, throttling, texts that cannot harm."""

from __future__ import annotations

import io

import pytest
from helpers.ui import HARMLESS, HOSTILE, STAGES, Clock, console, graded, trained, written
from rich.console import Console

from upft_mlx.events import (
    EvaluationStarted,
    Event,
    Note,
    Progress,
    StageDone,
    StageSkipped,
    StageStarted,
)
from upft_mlx.ui import views
from upft_mlx.ui.plain import PlainView

NUMBERS = "learning rate 1.00e-05  256 tokens/s  peak 3.2 GB"


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
        f"train: step 40/100  loss 3.0000  fixed rows 0.7500  {NUMBERS}",
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


def test_plain_evaluation_speaks_per_variant_every_five_seconds_and_when_complete() -> None:
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


def test_plain_does_not_speak_of_the_first_unit_of_a_second_run() -> None:
    """Several runs in one process (compare, sweep): a line per five seconds of each."""
    run: list[Event | float] = [
        *(StageStarted("train"), Progress("train", 0, 2, "steps"), 1.0, Progress("train", 1, 2, "steps", 100)),
        *(StageStarted("evaluate"), EvaluationStarted((("arithmetic", 2),)), graded("base", 0, True), 9.0),
        *(Progress("evaluate", 0, 9, "prefixes", part=part) for part in ("prefixes", "answers")),
    ]
    once = plain_lines(run)
    assert once == ["▸ train", "▸ evaluate"]
    assert plain_lines(run * 3) == once * 3


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
