"""Crops of pictures: their places are a function of the epoch's seed, the picture and the crop's number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.base import sizes
from bbdm.base.seeds import keyed
from bbdm.pictures.images import Size, sides
from bbdm.pictures.lazy import Window


@dataclass(frozen=True)
class Crops:
    """Which crops of pictures are examples.

    Args:
        size: the side of the square, (height, width), or (depth, height, width).
        per_picture: the crops of each picture in an epoch, which follow each other.
        in_mask: the share of crops that are centred on a random pixel of the mask.

    Raises:
        ValueError: a number is out of range.
    """

    size: Size
    per_picture: int = 1
    in_mask: float = 0.0

    def __post_init__(self) -> None:
        if self.per_picture < 1:
            raise ValueError(f"crops_per_picture must be at least 1, got {self.per_picture}")
        if not 0 <= self.in_mask <= 1:
            raise ValueError(f"crops_in_mask must be from 0 to 1, got {self.in_mask}")

    def window(
        self, shape: Sequence[int], key: str, seed: int, mask: Callable[[], npt.NDArray[Any]] | None = None
    ) -> Window:
        """The window of a crop in a picture.

        Args:
            shape: of the picture, its spatial axes.
            key: of the crop: another one has another place.
            seed: of the epoch: another one has other places.
            mask: gives an array of the shape, not 0 where crops may be centred; None for no mask.

        Raises:
            ValueError: the picture is smaller than the crop, or has other axes.
        """
        size = sides(self.size)
        if len(shape) != len(size) or any(side < wanted for side, wanted in zip(shape, size, strict=True)):
            found, wanted = map(sizes.shown, (shape, size))
            raise ValueError(f"it has {found} pixels, and crops have {wanted}")
        random = np.random.Generator(np.random.PCG64(keyed(seed, key)))
        room = [side - wanted + 1 for side, wanted in zip(shape, size, strict=True)]
        first = [int(random.integers(each)) for each in room]
        if mask is not None and random.random() < self.in_mask:
            inside = np.flatnonzero(mask())
            if len(inside):
                middle = np.unravel_index(inside[int(random.integers(len(inside)))], shape)
                first = [
                    min(max(int(at) - wanted // 2, 0), most - 1)
                    for at, wanted, most in zip(middle, size, room, strict=True)
                ]
        return tuple(slice(at, at + wanted) for at, wanted in zip(first, size, strict=True))
