"""One sentence where the Hub's client logs two lines, with an address, for each of its attempts."""

from __future__ import annotations

import logging

_LOGGER = "huggingface_hub.utils._http"
_TOLD = ("thrown while requesting", "Retrying in ", "Rate limited. Waiting ")
"""What the client's lines about a failed attempt hold (huggingface-hub 2.4)."""


class _Once(logging.Filter):
    """Lets the first line about a failed attempt pass, in other words, and no other such line."""

    def __init__(self) -> None:
        super().__init__()
        self._said = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is shown; other lines always are."""
        if not any(part in record.getMessage() for part in _TOLD):
            return True
        said, self._said = self._said, True
        record.msg, record.args = "the Hub does not answer; trying a few times more (Ctrl-C ends it)", ()
        return not said


def tell_attempts_once() -> None:
    """Set the filter; again does no harm. It needs no import of the client, which is slow."""
    logger = logging.getLogger(_LOGGER)
    if not any(isinstance(found, _Once) for found in logger.filters):
        logger.addFilter(_Once())
