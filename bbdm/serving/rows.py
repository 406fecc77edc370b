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
from bbdm.pictures.lazy import LazyPicture
from bbdm.pictures.values import EIGHT_BIT, Values, check_channels, scaled_present

Array = npt.NDArray[Any]


class SourceRows:
    """A picture in a file, of which a network takes rows.

    Args:
        picture: the file, whose header is read.
        kind: what the network was trained on.
        channels: the network's number for sources.

    Attributes: ``size``, (height, width) of the picture; ``geometry``, that of the result.

    Raises:
        ValueError: the picture is not of this kind.
    """

    def __init__(self, picture: LazyPicture, kind: PictureKind, channels: int) -> None:
        sides = Sides.of([picture])
        reader = Reader(channels if channels in (1, 3) else None, same_size=True, resample=False, cache=None)
        found = reader.channels(sides.sources)
        if len(picture.size) != 2 or kind.slices is not None:
            raise ValueError(f"bands are of pictures, and {picture.path} or what the network knows is a volume")
        if found != channels:
            raise ValueError(f"{picture.path} must have {channels} channels, as in training, got {found}")
        if kind.source == EIGHT_BIT and picture.dtype != np.uint8:
            raise ValueError(f"{picture.path} must have 8 bits, as in training, got {picture.dtype}")
        check_channels(kind.source, channels, str(picture.path))
        self._kind, self.size = kind, (picture.size[0], picture.size[1])
        self._source = reader.strips([picture], sides, lambda: kind.source.of(reader.sample(sides.sources)))
        self.geometry = kind.geometry_of_result(picture.geometry, picture.nodata)

    @cached_property
    def _values(self) -> Values:
        return self._kind.source if isinstance(self._kind.source, Values) else self._source.values()

    def scaled(self, rows: slice, size: tuple[int, int]) -> torch.Tensor:
        """(1, C, rows, W) float32 in [-1, 1] of the picture padded below and to the right to a size.

        Pixels without a value are -1.

        Raises:
            ValueError: the file is damaged, or has a value that is not finite.
        """
        inside = slice(rows.start, min(rows.stop, self.size[0]))
        made = scaled_present(self._values, *self._source.read(inside), (inside.start, 0))
        beyond = (0, rows.stop - inside.stop), (0, size[1] - self.size[1])
        return torch.from_numpy(np.pad(made, ((0, 0), *beyond), mode="edge")[None])

    def stored(self, made: Array, rows: slice) -> Array:
        """(C, rows, W) stored values of a result in [-1, 1], (C, rows, W) of the padded picture."""
        inside = slice(rows.start, min(rows.stop, self.size[0]))
        result = self._kind.target.stored(made[:, : inside.stop - inside.start, : self.size[1]])
        nodata = self.geometry.kept.get("nodata")
        if nodata is not None:
            result[:, self._source.read(inside)[1]] = nodata
        return result
