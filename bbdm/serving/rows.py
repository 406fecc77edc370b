"""Rows of a picture in a file, as a network takes them, and of its result, as they are stored."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bbdm.data.collection import Sides
from bbdm.data.reading import Reader
from bbdm.pictures.kind import PictureKind
from bbdm.pictures.lazy import Geometry, LazyPicture
from bbdm.pictures.values import EIGHT_BIT, Values, check_channels, check_finite

Array = npt.NDArray[Any]


class SourceRows:
    """A picture in a file, of which a network takes rows.

    Args:
        picture: the file, whose header is read.
        kind: what the network was trained on.
        channels: the network's number for sources.

    Attributes: ``size``, (height, width) of the picture.

    Raises:
        ValueError: the picture is not of this kind.
    """

    def __init__(self, picture: LazyPicture, kind: PictureKind, channels: int) -> None:
        self._picture, self._kind, self._sides = picture, kind, Sides.of([picture])
        self._reader = Reader(channels if channels in (1, 3) else None, same_size=True, resample=False, cache=None)
        found = self._reader.channels(self._sides.sources)
        if len(picture.size) != 2 or kind.slices is not None:
            raise ValueError(f"bands are of pictures, and {picture.path} or what the network knows is a volume")
        if found != channels:
            raise ValueError(f"{picture.path} must have {channels} channels, as in training, got {found}")
        if kind.source == EIGHT_BIT and picture.dtype != np.uint8:
            raise ValueError(f"{picture.path} must have 8 bits, as in training, got {picture.dtype}")
        check_channels(kind.source, channels, str(picture.path))
        self.size = picture.size[0], picture.size[1]

    @property
    def geometry(self) -> Geometry:
        """The geometry of the result."""
        return self._kind.geometry_of_result(self._picture.geometry, self._picture.nodata)

    @cached_property
    def _values(self) -> Values:
        values = self._kind.source
        return values if isinstance(values, Values) else values.of(self._reader.sample(self._sides.sources))

    def scaled(self, rows: slice, size: tuple[int, int]) -> torch.Tensor:
        """(1, C, rows, W) float32 in [-1, 1] of the picture padded below and to the right to a size.

        Pixels without a value are -1.

        Raises:
            ValueError: the file is damaged, or has a value that is not finite.
        """
        inside = slice(rows.start, min(rows.stop, self.size[0]))
        array, absent = self._read(inside)
        array = np.where(absent, array.dtype.type(0), array)
        check_finite(array, (inside.start, 0))
        made = np.where(absent, np.float32(-1), self._values.scaled(array))
        beyond = (0, rows.stop - inside.stop), (0, size[1] - self.size[1])
        return torch.from_numpy(np.pad(made, ((0, 0), *beyond), mode="edge")[None])

    def stored(self, made: Array, rows: slice) -> Array:
        """(C, rows, W) stored values of a result in [-1, 1], (C, rows, W) of the padded picture."""
        inside = slice(rows.start, min(rows.stop, self.size[0]))
        result = self._kind.target.stored(made[:, : inside.stop - inside.start, : self.size[1]])
        nodata = self.geometry.kept.get("nodata")
        if nodata is not None:
            result[:, self._read(inside)[1]] = nodata
        return result

    def _read(self, rows: slice) -> tuple[Array, Array]:
        """(C, rows, W) stored values, and (rows, W) where there is none."""
        return self._reader.part(self._sides.sources, self._sides, (rows, slice(None)))
