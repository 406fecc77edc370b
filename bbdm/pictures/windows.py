"""Windows of pictures: parts of their axes, what of them is stored, and what reading them costs."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.base import sizes

Window = tuple[slice, ...]  # a slice for each spatial axis; () is all of them
LARGEST = "BBDM_LARGEST"  # the environment variable that says how many bytes are read at once
DEFLATE = 1032  # bytes that a byte of deflate becomes at most
RATIO = 4096  # the same of other compressions; of LZW fewer


@dataclass(frozen=True)
class Chunks:
    """Which chunks of a picture (C, *S) are stored, of any of its channels.

    Args:
        lengths: of a chunk along each axis of S.
        stored: whether the chunk of an index is stored, with an axis for each of S.
        fill: the value of all pixels in a chunk that is not.
    """

    lengths: tuple[int, ...]
    stored: npt.NDArray[np.bool_]
    fill: float

    def _touched(self, window: Window) -> npt.NDArray[np.bool_]:
        """``stored`` of the chunks that a window touches."""
        parts: list[slice] = []
        for side, length in zip(window, self.lengths, strict=True):
            parts.append(slice(side.start // length, -(-side.stop // length)))
        return self.stored[tuple(parts)]

    def holds(self, window: Window) -> bool:
        """Whether one of the chunks that a window touches is stored."""
        return bool(self._touched(window).any())

    def stored_in(self, window: Window) -> Iterator[Window]:
        """The parts of a window that lie in one stored chunk each."""
        touched = self._touched(window)
        for index in np.argwhere(touched).tolist():
            part: list[slice] = []
            for number, side, length in zip(index, window, self.lengths, strict=True):
                start = (side.start // length + number) * length
                part.append(slice(max(start, side.start), min(start + length, side.stop)))
            yield tuple(part)


def volume(lengths: Sequence[int]) -> tuple[int, ...]:
    """The lengths of at most three axes (x, y, z).

    Raises:
        ValueError: there are others, such as time.
    """
    if any(length != 1 for length in lengths[3:]):
        shown = sizes.shown(lengths)
        raise ValueError(
            f"it has {len(lengths)} axes, {shown}, such as times: save each volume as a file of its own"
        )
    return tuple(lengths[:3])


def bounds(window: Window, sides: Sequence[int]) -> Window:
    """A window with the first index and the last index + 1 of each axis, () being all of them.

    Raises:
        ValueError: it has another number of axes or steps, or is empty.
    """
    if not window:
        return tuple(slice(0, length) for length in sides)
    slices: list[slice] = []
    if len(window) == len(sides):
        for part, length in zip(window, sides, strict=True):
            start, stop, step = part.indices(length)
            if step == 1 and start < stop:
                slices.append(slice(start, stop))
    if len(slices) != len(sides):
        raise ValueError(
            f"a window is a part of {sizes.shown(sides)}, a slice for each without steps; got {window}"
        )
    return tuple(slices)


def lengths(window: Sequence[slice]) -> tuple[int, ...]:
    """The lengths of the axes of a window of :func:`bounds`."""
    return tuple(part.stop - part.start for part in window)


def mapped(path: Path, dtype: np.dtype[Any], offset: int, shape: Sequence[int]) -> Any:
    """An array of a file's bytes, mapped into memory; ``numpy.memmap`` takes longer to begin."""
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(data, dtype, prod(shape), offset).reshape(tuple(shape))


def check_cost(shape: Sequence[int], dtype: np.dtype[Any], most: float) -> None:
    """Raise ValueError for values that a file of ``most`` bytes cannot hold, or for too many at once."""
    needed = prod(shape) * dtype.itemsize
    limit = 2**33
    text = os.environ.get(LARGEST)
    if text:
        limit = _limit_of(text)
    if needed <= min(most, limit):
        return
    values = f"{sizes.shown(shape)} values of {dtype}"
    if needed > most:
        raise ValueError(
            f"{values} cannot be in a file of at most {most} bytes of values: it is truncated or damaged"
        )
    most_at_once = f"at most {sizes.amount(limit)} are read at once: the environment variable {LARGEST} lifts that"
    raise ValueError(
        f"{values} are {sizes.amount(needed)}, and {most_at_once}, such as {LARGEST}=64G"
    )


def _limit_of(text: str) -> int:
    """The bytes that the environment variable says; ValueError where it has another form."""
    try:
        return sizes.read_memory(text)
    except ValueError as error:
        raise ValueError(f"the environment variable {LARGEST}: {error}") from error
