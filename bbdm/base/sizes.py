"""Sizes in messages."""

from __future__ import annotations

from collections.abc import Sequence

SIDES = {2: "H, W", 3: "D, H, W"}  # by the number of spatial axes


def shown(size: int | Sequence[int]) -> str:
    """A size for people, such as 256 x 256."""
    return " x ".join(map(str, (size, size) if isinstance(size, int) else size))
