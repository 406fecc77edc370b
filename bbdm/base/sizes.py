"""Sizes of pictures and amounts of memory, as people write and read them."""

from __future__ import annotations

import re
from collections.abc import Sequence

SIDES = {2: "H, W", 3: "D, H, W"}  # by the number of spatial axes
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def shown(size: int | Sequence[int]) -> str:
    """A size for people, such as 256 x 256."""
    return " x ".join(map(str, (size, size) if isinstance(size, int) else size))


def number_of(count: int, thing: str) -> str:
    """A number of things for people, such as 1 epoch or 2 epochs."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def read_memory(text: str) -> int:
    """Bytes of text such as ``4G`` or ``500M``: powers of 1024.

    Raises:
        ValueError: the text has another form.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None or not float(match[1]):
        raise ValueError(f"an amount of memory is written as 4G or 500M, got {text!r}")
    return int(float(match[1]) * UNITS[match[2].upper()])


def amount(count: int) -> str:
    """Bytes for people, such as ``1.5 GB``: powers of 1024, as in :func:`read_memory`."""
    unit = next(name for name in "TGMK" if count >= UNITS[name] or name == "K")
    return f"{count / UNITS[unit]:.3g} {unit}B"
