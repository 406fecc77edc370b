"""The windows of crops: a function of the epoch's seed, the picture and the crop's number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.base import sizes
from bbdm.base.seeds import keyed
from bbdm.pictures.checks import Window


def crop_window(
    whole: Window,
    size: Sequence[int],
    key: str,
    seed: int,
    in_mask: float = 0.0,
    mask: Callable[[], npt.NDArray[Any]] | None = None,
) -> Window:
    """The window of a random crop in another window.

    Args:
        whole: the window, of a picture or a slice.
        size: the lengths of the crop's axes.
        key: of the crop: another one has another place.
        seed: of the epoch: another one has other places.
        in_mask: the share of crops that are centred on a random pixel of the mask.
        mask: gives an array of the window's sides, not 0 where crops may be centred; None for no mask.

    Raises:
        ValueError: the window is smaller than the crop, or has other axes.
    """
    sides = [part.stop - part.start for part in whole]
    if len(sides) != len(size) or any(side < least for side, least in zip(sides, size, strict=True)):
        raise ValueError(f"it has {sizes.shown(sides)} pixels, and crops have {sizes.shown(size)}")
    random = np.random.Generator(np.random.PCG64(keyed(seed, key)))
    room = np.subtract(sides, size)
    first = [int(random.integers(each + 1)) for each in room]
    if mask is not None and random.random() < in_mask:
        inside = np.flatnonzero(mask())
        if len(inside):
            middle = np.unravel_index(inside[int(random.integers(len(inside)))], sides)
            first = (middle - np.asarray(size) // 2).clip(0, room).tolist()
    at = zip(whole, first, size, strict=True)
    return tuple(slice(part.start + start, part.start + start + length) for part, start, length in at)
