"""Whether the Hub may be used, and how its errors and failed attempts are worded."""

from __future__ import annotations

import logging
import os

from upft_mlx.escape import one_line

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


def reason(error: BaseException) -> str:
    """The text of another library's error on one line, without the lists that some append."""
    text = one_line(str(error), 300)
    return one_line(f"{type(error).__name__}: {text}", 300) if isinstance(error, KeyError) or not text else text


def is_offline() -> bool:
    """Whether the network is off (`--offline`, or HF_HUB_OFFLINE=1)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def go_offline() -> None:
    """Let nothing use the network; to be called before huggingface-hub or datasets are imported."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
