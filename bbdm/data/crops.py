"""The windows of crops: a function of the epoch's seed, the picture and the crop's number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.base import sizes
from bbdm.base.seeds import keyed

Window = tuple[slice, ...]  # of the spatial axes


def crop_window(
    sides: Sequence[int],
    size: Sequence[int],
    key: str,
    seed: int,
    in_mask: float = 0.0,
    mask: Callable[[], npt.NDArray[Any]] | None = None,
) -> Window:
    """The window of a random crop in a picture.

    Args:
        sides: the lengths of the picture's spatial axes.
        size: those of the crop.
        key: of the crop: another one has another place.
        seed: of the epoch: another one has other places.
        in_mask: the share of crops that are centred on a random pixel of the mask.
        mask: gives an array of the picture's sides, not 0 where crops may be centred; None for no mask.

    Raises:
        ValueError: the picture is smaller than the crop, or has other axes.
    """
    if len(sides) != len(size) or any(side < least for side, least in zip(sides, size, strict=True)):
        found, expected = map(sizes.shown, (sides, size))
        raise ValueError(f"it has {found} pixels, and crops have {expected}")
    random = np.random.Generator(np.random.PCG64(keyed(seed, key)))
    room = [side - length + 1 for side, length in zip(sides, size, strict=True)]
    first = [int(random.integers(each)) for each in room]
    if mask is not None and random.random() < in_mask:
        inside = np.flatnonzero(mask())
        if len(inside):
            middle = np.unravel_index(inside[int(random.integers(len(inside)))], tuple(sides))
            first = [
                min(max(int(at) - length // 2, 0), most - 1)
                for at, length, most in zip(middle, size, room, strict=True)
            ]
    return tuple(slice(at, at + length) for at, length in zip(first, size, strict=True))
