"""From a question to the ids that the model reads, through the model's chat template, or the recipe's own.

What the recipe leaves unset is what the template does by itself: mlx-lm's wrapper would switch thinking on wherever the
vocabulary has `<think>`, so the template is rendered without it. A template that prints the date gets one date for the
whole run (`prompt.date`). A template that leaves out the question is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date
from functools import cached_property
from typing import Any

from upft_mlx.errors import ModelError
from upft_mlx.models.files import own_template
from upft_mlx.models.rendering import render_for
from upft_mlx.recipe.schema import Prompt

PRINTS_DATE = "strftime_now"
"""What a chat template calls to print the date."""
_PINNED = """{%- macro strftime_now(format) -%}
{%- set made = namespace(text=format) -%}
{%- for directive, value in pinned_date.items() -%}{%- set made.text = made.text | replace(directive, value) -%}
{%- endfor -%}
{{- made.text -}}
{%- endmacro +%}"""
"""Goes before a chat template, in place of the function that asks the clock."""
_QUESTION, _ANSWER = "How many apples are left?", "Seven apples are left."
"""A turn of each side that no template has a reason to change."""


class Renderer:
    """Renders user turns; sampling, training and evaluation all use the same one."""

    def __init__(self, tokenizer: Any, prompt: Prompt) -> None:
        self._own = None if prompt.chat_template is None else own_template(prompt.chat_template)
        self._name = prompt.chat_template or getattr(tokenizer, "name_or_path", "") or "the model"
        template = self._own or getattr(tokenizer, "chat_template", None)
        if template is None and not getattr(tokenizer, "has_chat_template", False):
            raise ModelError(
                "has no chat template", "use an instruct model, or set prompt.chat_template", path=self._name
            )
        if isinstance(template, str) and not template.strip():
            raise ModelError(
                "its chat template is empty", "use an instruct model, or fill in the template", path=self._name
            )
        self._tokenizer = tokenizer
        self._prompt = prompt

    def ids(self, user: str) -> list[int]:
        """The ids of a conversation with this user turn, up to and with the generation prompt.

        Raises:
            ModelError: the chat template refuses the conversation (for example a system turn), or leaves it out.
        """
        return self.conversation([user])

    def turn(self, question: str) -> str:
        """The user turn that asks a question: `prompt.instruction` around it."""
        return (self._prompt.instruction or "{question}").replace("{question}", question)

    def asked(self, question: str) -> list[int]:
        """The ids of the prompt that asks a question; sampling, training and evaluation all use this one."""
        return self.ids(self.turn(question))

    def conversation(self, turns: Sequence[str]) -> list[int]:
        """The same for several turns, the user's and the assistant's alternately, the first and the last the user's."""
        text, question = self._rendered(turns, parts=self._takes_parts), turns[-1]
        # A template may escape a question, but not shorten it.
        if question.strip() not in text and len(_squeezed(text)) < self._around + len(_squeezed(question)):
            shown = question if len(question) <= 60 else f"{question[:57]}..."
            raise ModelError(
                f"the chat template leaves out the question {shown!r}", "reword it or remove it", path=self._name
            )
        return self._encoded(text)

    def text(self, ids: list[int]) -> str:
        """The text of sampled ids, special tokens visible."""
        return str(self._tokenizer.decode(ids))

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The text of each id by itself; a part of a character is U+FFFD."""
        pieces = self._tokenizer.convert_ids_to_tokens(list(ids))
        texts = [str(self._tokenizer.decode([token])) for token in ids]
        # SentencePiece tokenizers take a leading space for the text's beginning when they decode one piece.
        spaced = [str(piece).startswith("\u2581") for piece in pieces]
        return [f" {t}" if space and not t.startswith(" ") else t for t, space in zip(texts, spaced, strict=True)]

    @cached_property
    def end_of_turn(self) -> int:
        """The token with which the template ends an assistant turn; the tokenizer's EOS where it writes none."""
        known = {*self._tokenizer.all_special_ids, *self._tokenizer.get_added_vocab().values()}
        try:
            text = self._rendered([_QUESTION, _ANSWER], parts=self._takes_parts, generation=False)
        except ModelError:
            text = ""
        ids = self._encoded(text.rpartition(_ANSWER)[2])
        return next((token for token in ids if token in known), int(self._tokenizer.eos_token_id))

    # What the template makes of it.

    @cached_property
    def _takes_parts(self) -> bool:
        """How the template takes a turn: as a list of parts of which one is the text, or (False) as a text.

        Raises:
            ModelError: neither way it renders the question and the system turn.
        """
        refused: list[ModelError] = []
        for parts in (False, True):
            try:
                text = _squeezed(self._rendered([_QUESTION], parts=parts))
                if _squeezed(_QUESTION) not in text:
                    raise ModelError(
                        "the chat template leaves out the question", "use another template", path=self._name
                    )
                if _squeezed(self._prompt.system or "") not in text:
                    raise ModelError(
                        "the chat template leaves out the system turn", "unset prompt.system", path=self._name
                    )
                return parts
            except ModelError as error:
                refused.append(error)
        raise refused[0]

    @cached_property
    def _around(self) -> int:
        """Characters that the template puts around a question, spaces not counted."""
        return len(_squeezed(self._rendered([_QUESTION], parts=self._takes_parts))) - len(_squeezed(_QUESTION))

    def _rendered(self, turns: Sequence[str], *, parts: bool, generation: bool = True) -> str:
        """The text of a conversation with the recipe's system turn.

        Raises:
            ModelError: the template refuses it.
        """
        import jinja2

        system = [] if self._prompt.system is None else [("system", self._prompt.system)]
        roles = [*system, *((("user", "assistant")[number % 2], text) for number, text in enumerate(turns))]
        messages = [{"role": r, "content": [{"type": "text", "text": text}] if parts else text} for r, text in roles]
        try:
            return str(self._render(messages, add_generation_prompt=generation, **self._prompt.chat_template_args))
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise ModelError(
                f"the chat template refuses the prompt: {error}", "check `prompt`", path=self._name
            ) from None

    @cached_property
    def _render(self) -> Callable[..., str]:
        """The renderer of messages: the recipe's, the tokenizer's, or that which mlx-lm brings for a family."""
        from mlx_lm.tokenizer_utils import TokenizerWrapper

        tokenizer, own = self._tokenizer, self._own
        if own is None and isinstance(tokenizer, TokenizerWrapper):
            if tokenizer._chat_template is not None:
                return tokenizer._chat_template  # type: ignore[no-any-return]
            if "enable_thinking" not in self._prompt.chat_template_args:  # which the wrapper may call otherwise
                tokenizer = tokenizer._tokenizer
        template = own or (tokenizer.get_chat_template() if tokenizer.chat_template else "")
        if PRINTS_DATE not in template:
            if own is not None:
                return lambda messages, **given: render_for(tokenizer, own, messages, self._name, **given)
            return lambda messages, **given: str(tokenizer.apply_chat_template(messages, tokenize=False, **given))
        day = date.fromisoformat(self._prompt.date) if self._prompt.date else date.today()
        dates = {"%-d": str(day.day), "%-m": str(day.month), "%e": f"{day.day:2}", "%F": day.isoformat()}
        dates |= {f"%{letter}": day.strftime(f"%{letter}") for letter in "aAbBcdfHIjmMpSUwWxXyYZ"}  # at midnight
        text = _PINNED + template
        if own is not None:
            return lambda messages, **given: render_for(
                tokenizer, text, messages, self._name, pinned_date=dates, **given
            )
        pinned = {"chat_template": text, "pinned_date": dates}
        return lambda messages, **given: str(tokenizer.apply_chat_template(messages, tokenize=False, **pinned, **given))

    def _encoded(self, text: str) -> list[int]:
        return [int(token) for token in self._tokenizer.encode(text, add_special_tokens=False)]


def end_of_turn(tokenizer: Any) -> int:
    """`Renderer.end_of_turn` of a tokenizer that may have no usable chat template: then its EOS."""
    try:
        return Renderer(tokenizer, Prompt()).end_of_turn
    except ModelError:
        return int(tokenizer.eos_token_id)


def _squeezed(text: str) -> str:
    return "".join(text.split())
