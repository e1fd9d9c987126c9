"""The forms in which a row holds its question: text, a conversation, an instruction with input, options. Pure.

{"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]}
{"conversations": [{"from": "human", "value": "1 + 1?"}, {"from": "gpt", "value": "2"}]}      ShareGPT
{"instruction": "Add.", "input": "1 and 1", "output": "2"}                                    Alpaca
{"question": "1 + 1?", "choices": {"text": ["1", "2"], "label": ["A", "B"]}, "answerKey": "B"}
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from upft_mlx.data.source import Notes
from upft_mlx.grade.graders import LETTERS

_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "system": "system"}


def conversation(value: Any) -> list[tuple[str, str]] | None:
    """The turns of a conversation as (role, text); None: it is none, or a turn is not text."""
    if not isinstance(value, list) or not value:
        return None
    turns = []
    for turn in value:
        if not isinstance(turn, dict):
            return None
        name, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if isinstance(content, list):  # content parts
            parts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
            content = "".join(parts) if len(parts) == len(content) else None
        if not isinstance(name, str) or not isinstance(content, str):
            return None
        turns.append((_ROLES.get(name.casefold(), name), content))
    return turns


def asked(turns: Sequence[tuple[str, str]], notes: Notes) -> str | None:
    """The first user turn."""
    roles = [role for role, _ in turns]
    if "user" not in roles:
        return None
    if "system" in roles:
        notes.say("system turns of the conversations are left out; `prompt.system` sets one for all questions")
    if roles.count("user") > 1:
        notes.say("of conversations with several questions, the first one and its answer are taken")
    return turns[roles.index("user")][1]


def replied(turns: Sequence[tuple[str, str]]) -> str | None:
    """The first assistant turn."""
    return next((text for role, text in turns if role == "assistant"), None)


def options_of(value: Any) -> list[tuple[str, str]] | None:
    """The options of a multiple choice as (label, text), without those that are null; empty: the value holds none.

    None: it holds what cannot be used as options: fewer than two, more than there are letters, or other things than
    text and numbers.
    """
    if isinstance(value, dict) and set(value) == {"text", "label"}:
        texts, labels = value["text"], value["label"]
    elif isinstance(value, dict):
        texts, labels = list(value.values()), list(value)
    elif isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        texts, labels = [part.get("text", part) for part in value], [part.get("label") for part in value]
    elif isinstance(value, list):
        texts, labels = value, list(LETTERS)
    else:
        return []
    if texts is None or (isinstance(texts, list) and all(text is None for text in texts)):
        return []
    if not isinstance(texts, list) or not isinstance(labels, list) or len(texts) > len(labels):
        return None
    pairs = list(zip(labels, texts, strict=False))
    if texts is not value:  # the places of a list's options are their numbers: none can be left out
        pairs = [(label, text) for label, text in pairs if text is not None]
    usable = 1 < len(pairs) <= len(LETTERS) and all(isinstance(part, (str, int, float)) for p in pairs for part in p)
    return [(str(label), str(text).strip()) for label, text in pairs] if usable else None


def with_options(question: str, texts: Sequence[str]) -> str:
    """The question with its options below it, unless it has them already."""
    listed = [rf"\(?{letter}[).:]\)?\s*{re.escape(text)}" for letter, text in zip(LETTERS, texts, strict=False)]
    if all(re.search(option, question) for option in listed):
        return question
    return "\n".join([question.strip(), "", *(f"({letter}) {t}" for letter, t in zip(LETTERS, texts, strict=False))])


def letter_of(answer: Any, options: Sequence[tuple[str, str]]) -> str | None:
    """The letter of the option that the answer names by its label, its text or its number from 0; None: of none."""
    said = str(answer).strip()
    bare = said.strip("(). ").casefold()
    labels, texts = [label.casefold() for label, _ in options], [text for _, text in options]
    number = int(said) if re.fullmatch(r"\d{1,2}", said) else len(options)
    if isinstance(answer, str) and bare in labels:
        return LETTERS[labels.index(bare)]
    if isinstance(answer, str) and said in texts:
        return LETTERS[texts.index(said)]
    if labels == list(LETTERS[: len(labels)].lower()) and number < len(options):
        return LETTERS[number]
    for known, name in ((labels, bare), (texts, said)):
        if name in known:
            return LETTERS[known.index(name)]
    if isinstance(answer, float) and answer.is_integer():  # as data frames hold whole numbers beside a gap
        return letter_of(int(answer), options)
    return None
