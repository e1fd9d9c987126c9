"""What the sections of a recipe are made of: counts, shares, lists, `auto`, and the base of all sections."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer


class FieldError(ValueError):
    """What a section refuses.

    Attributes:
        problem: what is wrong, with the value.
        remedy: what to do; empty where the problem says it.
        field: the field inside the section; empty: the section, or the value that is validated.
    """

    def __init__(self, problem: str, remedy: str = "", *, field: str = "") -> None:
        super().__init__(": ".join(part for part in (field, problem) if part) + (f"; {remedy}" if remedy else ""))
        self.problem, self.remedy, self.field = problem, remedy, field


def as_tuple(value: object) -> object:
    """A list as a tuple, which nobody changes; everything else as it is."""
    return tuple(value) if isinstance(value, list) else value


def _as_subset(value: object) -> object:
    """`{level: 5, subject: [algebra, geometry]}` with every value as a tuple of texts."""
    if not isinstance(value, dict):
        return value
    listed = {name: item if isinstance(item, (list, tuple)) else [item] for name, item in value.items()}
    plain = (str, int)
    return {
        name: tuple(str(i) if isinstance(i, plain) and not isinstance(i, bool) else i for i in items)
        for name, items in listed.items()
    }


def _as_day(value: object) -> object:
    """A day as text; YAML reads `2026-01-31` as a date."""
    if isinstance(value, str):
        try:
            date.fromisoformat(value)
        except ValueError:
            raise FieldError(f"{value!r} is not a day", "write it as 2026-01-31") from None
    return value.isoformat() if type(value) is date else value


def _with_question(value: str) -> str:
    if "{question}" not in value:
        raise FieldError(f"{value!r} has no {{question}} in it, so the model would not be asked")
    return value


AUTO = 0
"""The code's value for `auto`: `MemoryPlan.settle` replaces it with a number before anything is sampled or trained."""
SIZES = ("generate.batch_size", "evaluate.batch_size", "train.batch_size", "train.micro_batch_size")
"""The fields that may be `auto`."""


def _as_sequences(value: object) -> object:
    if value == "auto":
        return AUTO
    if isinstance(value, int) and not isinstance(value, bool) and value < 1:
        raise FieldError(f"{value}: should be at least 1, or auto")
    return value


def _from_sequences(value: int) -> int | str:
    return "auto" if value == AUTO else value


BadRows = Literal["stop", "skip"]
Strings = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]
Count = Annotated[int, Field(ge=1)]
Day = Annotated[str, BeforeValidator(_as_day)]
Turn = Annotated[str, AfterValidator(_with_question)]
Sequences = Annotated[int, BeforeValidator(_as_sequences), PlainSerializer(_from_sequences)]
"""A number of sequences, or `auto`."""
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Subset = Annotated[dict[Literal["level", "subject"], tuple[str, ...]], BeforeValidator(_as_subset)]


class Section(BaseModel):
    """Base of all sections: no unknown keys, no silent conversions, no changes after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
