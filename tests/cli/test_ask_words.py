"""What can be typed at the prompt of `upft ask` besides questions, and that the sample questions are answered right."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from upft_mlx.cli import ask
from upft_mlx.grade.correct import is_correct
from upft_mlx.inspection.ask import Conversation, open_asker
from upft_mlx.recipe.load import load_recipe
from upft_mlx.ui import ask as shown

DEMO = ask.DEMO_QUESTIONS


def test_help_lists_sample_questions_and_exit_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    typed, notes = iter(["/help", "/halp", "/exit", "never read"]), list[str]()
    monkeypatch.setattr(shown, "read_question", lambda: next(typed))
    monkeypatch.setattr(shown, "print_note", notes.append)
    asker: Any = SimpleNamespace(variants=("base",))  # no question is asked
    ask._talk(asker, load_recipe("quickstart"), None, None, keep=False, plain=True)
    assert "/help lists what else you can type, /exit or an empty line quits" in notes[0]
    assert all(question in notes[1] for question in ask.DEMO_QUESTIONS)
    assert notes[2] == "/halp: unknown; /help lists what you can type"
    assert next(typed) == "never read"


def test_a_question_that_is_not_utf_8_is_refused_and_the_conversation_goes_on(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = load_recipe("quickstart")
    typed = iter(["What is 3\udcff?", DEMO[0], None])
    monkeypatch.setattr(shown, "read_question", lambda: next(typed))
    ask._talk(open_asker(recipe, None), recipe, None, None, keep=True, plain=True)
    out, err = capfd.readouterr()
    assert "the question cannot be read: '\\udcff' is half of a surrogate pair; write it in UTF-8" in " ".join(
        err.split()
    )
    assert "23" in out


def test_the_demos_model_answers_the_sample_questions_right() -> None:
    asker = open_asker(load_recipe("quickstart"), None, None, 0.0, None)
    for question, gold in zip(ask.DEMO_QUESTIONS, ("23", "18"), strict=True):
        answer = Conversation(asker, keep=False).ask(question, lambda reply: None)["base"]
        assert is_correct(answer.text, gold), (question, answer.text)
