"""Seeds of a call: one for each image, from an integer, a sequence or an array. Nothing here needs torch."""

from __future__ import annotations

import operator
import secrets
from collections.abc import Sequence
from typing import Any


def resolve_seeds(seed: int | Sequence[int] | None, count: int) -> list[int]:
    """One seed for each image: ``seed + i`` for image i, or the given ones; None draws the first.

    Raises:
        ValueError: not integers, not one for each image, or outside [0, 2^63).
    """
    given: Any = secrets.randbelow(2**32) if seed is None else seed
    several = hasattr(given, "__iter__") and getattr(given, "ndim", 1) > 0  # a 0-dimensional array is one number
    try:
        seeds = [operator.index(s) for s in given] if several else [operator.index(given) + i for i in range(count)]
    except TypeError as error:
        raise ValueError(f"seed must be an integer or a list of integers, got {seed!r}") from error
    if len(seeds) != count:
        raise ValueError(f"seed must be one integer or one for each of {count} images, got {len(seeds)}")
    if not all(0 <= s < 2**63 for s in seeds):
        raise ValueError(f"seed must be in [0, 2^63), got {seed}")
    return seeds
