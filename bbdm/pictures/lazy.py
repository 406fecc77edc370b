"""A picture in a file: its shape, where its pixels lie in the world, and how parts of it are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.pictures.picture import Affine as Affine
from bbdm.pictures.picture import Geometry

Window = tuple[slice, ...]  # of the spatial axes
SAME_PLACE = 1e-3  # pixels that two grids may differ by


class LazyPicture(ABC):
    """A picture in a file, of which only what is asked for is read.

    Attributes:
        path: the file, or the folder of DICOM.
        shape: (C, *S) of the whole picture.
        dtype: of the stored values.
        geometry: where it lies, see :class:`Geometry`.
        nodata: the stored value of pixels without a value, or None.
        windowed: whether a window costs less to read than the whole.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    geometry: Geometry
    nodata: float | None = None
    windowed: bool = False

    @abstractmethod
    def __getitem__(self, window: Window) -> npt.NDArray[Any]:
        """(C, *W) of a window of the spatial axes, () for all of them.

        Raises:
            ValueError: the file is damaged.
        """

    @property
    def size(self) -> tuple[int, ...]:
        """The spatial axes' lengths, S."""
        return self.shape[1:]

    @property
    def grid(self) -> str:
        """The size, the affine and the orientation, for messages."""
        affine = self.geometry.affine
        placed = "" if affine is None else f" at {tuple(tuple(round(v, 6) for v in row) for row in affine[:-1])}"
        toward = f" toward {self.geometry.orientation}" if self.geometry.orientation else ""
        return f"{' x '.join(map(str, self.size))}{placed}{toward}"


class LoadedPicture(LazyPicture):
    """A picture that is in memory, or mapped there."""

    windowed = True

    def __init__(self, array: npt.NDArray[Any], path: Path, geometry: Geometry | None = None) -> None:
        self._array = array
        self.path, self.geometry = path, geometry or Geometry()
        self.shape, self.dtype = array.shape, array.dtype

    def __getitem__(self, window: Window) -> npt.NDArray[Any]:
        return self._array[(slice(None), *window)]


def same_grid(one: LazyPicture, other: LazyPicture) -> bool:
    """Whether two pictures have one size and, where both say it, one place in the world."""
    affines = one.geometry.affine, other.geometry.affine
    systems = one.geometry.kept.get("crs"), other.geometry.kept.get("crs")
    if None not in systems and systems[0] != systems[1]:
        return False
    if one.size != other.size or None in affines:
        return one.size == other.size
    first, second = (np.asarray(affine, dtype=np.float64) for affine in affines)
    pixel = np.abs(second[:-1, :-1]).max()  # the length of a pixel's longest side, about
    return bool(np.allclose(first, second, rtol=0, atol=SAME_PLACE * pixel))
