"""From a question to the ids that the model reads, through the model's own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from upft_mlx.errors import ModelError
from upft_mlx.recipe import Prompt


class Renderer:
    """Renders user turns; sampling, training and evaluation all use the same one."""

    def __init__(self, tokenizer: Any, prompt: Prompt) -> None:
        self._name = getattr(tokenizer, "name_or_path", "") or "the model"
        if not getattr(tokenizer, "chat_template", None) and not getattr(tokenizer, "has_chat_template", False):
            raise ModelError(f"{self._name}: has no chat template; use an instruct model, or add chat_template.jinja")
        self._tokenizer = tokenizer
        self._prompt = prompt

    def ids(self, user: str) -> list[int]:
        """The ids of a conversation with this user turn, up to and with the generation prompt.

        Raises:
            ModelError: the chat template refuses the conversation (for example a system turn).
        """
        return self.conversation([user])

    def conversation(self, turns: Sequence[str]) -> list[int]:
        """The same for several turns, the user's and the assistant's alternately, the first and the last the user's."""
        system = self._prompt.system
        messages = [{"role": "system", "content": system}] if system is not None else []
        roles = ("user", "assistant")
        messages += [{"role": roles[number % 2], "content": text} for number, text in enumerate(turns)]
        import jinja2

        try:
            ids = self._tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, **self._prompt.chat_template_args
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise ModelError(f"{self._name}: the chat template refuses the prompt: {error}; check `prompt`") from None
        return [int(token) for token in ids]

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
