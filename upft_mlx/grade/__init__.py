"""Grading: an answer and the right one go in, whether they are equal comes out.

Start at correct.py.
"""

from __future__ import annotations

from upft_mlx.grade.correct import Rules, is_correct

__all__ = ["Rules", "is_correct"]
