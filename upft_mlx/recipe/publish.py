"""The section `publish` of a recipe: the fused model, and where it goes."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import model_validator

from upft_mlx.recipe.fields import FieldError, Section, Share


class Publish(Section):
    """The fused model, and where it is published."""

    fuse: Literal["auto", "base", "mixed", "bf16", "fp16", "adapter"] = "auto"
    """Format of the layers with an adapter: `base` (the base's own bits), `mixed` (6 or 8 bits; other layers do not
    change), `bf16` or `fp16`. `adapter` does not fuse. `auto` measures, and chooses the smallest of the first four that
    keeps the adapter's effect."""
    min_retained: Share = 0.9
    """Minimum share of the adapter's effect that fusing must keep; below it, fusing is refused. 0: always fuse."""
    repo: str | None = None
    """The repository for `upft push`: `user/name` on the Hugging Face Hub."""
    private: bool = True
    """Whether a repository that `upft push` creates is private."""

    @model_validator(mode="after")
    def _repo_is_a_name(self) -> Publish:
        repo = self.repo
        allowed = repo is None or (
            re.fullmatch(r"\w[\w.-]*/\w([\w.-]{0,94}\w)?", repo, re.ASCII) and not re.search(r"--|\.\.|\.git$", repo)
        )
        if not allowed:
            raise FieldError(
                f"{repo!r} is not a user/name that the Hub allows: letters, digits, `-`, `_` and `.`, none of "
                "the last three at the ends, no `--` and no `..`, at most 96 characters",
                field="repo",
            )
        return self
