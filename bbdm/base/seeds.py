"""Seeds: of a call, one for each image; and by name, for pictures in no order. Nothing here needs torch."""

from __future__ import annotations

import hashlib
import operator
import secrets
from collections.abc import Sequence
from typing import Any


def resolve_seeds(seed: int | Sequence[int] | None, count: int) -> list[int]:
    """One seed for each image: ``seed + i`` for image i, or the given ones; None draws the first.

    Raises:
        ValueError: not integers, not one for each image, or outside [0, 2^63).
    """
    value: Any = secrets.randbelow(2**32) if seed is None else seed
    # a 0-dimensional array is one number
    is_list = hasattr(value, "__iter__") and getattr(value, "ndim", 1) > 0
    try:
        if is_list:
            seeds = [operator.index(item) for item in value]
        else:
            first = operator.index(value)
            seeds = list(range(first, first + count))
    except TypeError as error:
        raise ValueError(f"seed must be an integer or a list of integers, got {seed!r}") from error
    if len(seeds) != count:
        raise ValueError(
            f"seed must be one integer or one for each of {count} images, got {len(seeds)}"
        )
    if not all(0 <= s < 2**63 for s in seeds):
        raise ValueError(f"seed must be in [0, 2^63), got {seed}")
    return seeds


def keyed(seed: int, name: str) -> int:
    """256 random bits that are a function of a seed and of a picture's name: SHA-256 of ``SEED NAME``."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest(), "big")


def seed_of(name: str, seed: int = 0) -> int:
    """The seed in [0, 2^63) of a picture by its name: the first 63 bits of :func:`keyed`.

    It does not depend on the other pictures, so any number of machines gives a picture the same seed.
    """
    return keyed(seed, name) >> 193
