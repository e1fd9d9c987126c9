"""What fidelity.json says: how much of the adapter's effect each form of fusing keeps. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from upft_mlx.quantities import percent
from upft_mlx.rows import from_plain

NO_EFFECT = 1e-12
"""KL(adapter || base), nats, below which float32 cannot tell the two models apart."""


@dataclass(frozen=True)
class Divergence:
    """How far a model is from the adapter's."""

    kl: float
    """KL(adapter || model), nats per position."""
    top1_agreement: float
    """Share of positions with the adapter's most likely token."""
    greedy_agreement: float
    """Share of the adapter's first 32 greedy tokens that the model repeats before it first departs from them."""


@dataclass(frozen=True)
class Fidelity(Divergence):
    """What a form of fusing keeps and weighs."""

    fuse: str
    retained: float
    """1 - kl / kl_base."""
    kl_base: float
    """KL(adapter || base), nats per position."""
    bytes: int
    """Weights of the fused model."""

    @property
    def kept(self) -> str:
        """`97.1 % of the adapter's effect`; below 0, how many times as far from the adapter as the base is."""
        if self.kl_base < NO_EFFECT:
            return "no effect, as the adapter has none"
        if self.retained >= 0:
            return f"{percent(self.retained)} of the adapter's effect"
        return f"none of the adapter's effect ({1 - self.retained:,.1f} times as far from the adapter as the base is)"


@dataclass(frozen=True)
class Fused(Fidelity):
    """The form that was chosen, and what it was measured with: the content of fidelity.json."""

    rows: int
    """Held-out rows that it was measured on."""
    prompts: int
    """Prompts whose greedy answers it was measured on."""
    base: Divergence
    """The base model's."""
    candidates: list[Fidelity] = field(default_factory=list)
    """All forms that were measured."""

    def dump(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def load(cls, data: Mapping[str, Any]) -> Fused:
        """From what `dump` gave; see `from_plain`."""
        return from_plain(cls, data, "fidelity.json")
