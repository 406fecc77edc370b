"""A picture in a file: its shape, where its pixels lie in the world, and how parts of it are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Affine = tuple[tuple[float, ...], ...]
Window = tuple[slice, ...]  # of the spatial axes
SAME_PLACE = 1e-3  # pixels that two grids may differ by


@dataclass(frozen=True)
class Geometry:
    """Where the pixels of a picture lie, and what its file says besides: opaque, and kept.

    Args:
        affine: (n + 1, n + 1) from an index of the n spatial axes, in their order, to a place in the world;
            None where the file says nothing of it.
        format: the name of the format that ``kept`` is of.
        kept: what the writer of that format writes again.
    """

    affine: Affine | None = None
    format: str = ""
    kept: Mapping[str, Any] = field(default_factory=dict)

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """The length of a pixel along each axis, in the world's unit; None where a file does not say it."""
        if self.affine is None:
            return None
        columns = np.asarray(self.affine, dtype=np.float64)[:-1, :-1]
        return tuple(float(length) for length in np.linalg.norm(columns, axis=0))

    @property
    def orientation(self) -> str:
        """The sides of a patient to which the axes of a medical volume point, such as SPL; else ""."""
        if self.affine is None or self.format != "medical" or len(self.affine) != 4:
            return ""
        columns = np.asarray(self.affine, dtype=np.float64)[:-1, :-1].T
        most = [int(np.abs(column).argmax()) for column in columns]
        return "".join("RLAPIS"[2 * at + (column[at] > 0)] for at, column in zip(most, columns, strict=True))

    def without(self, *names: str) -> Geometry:
        """The geometry without some entries of ``kept``."""
        return replace(self, kept={name: value for name, value in self.kept.items() if name not in names})

    def with_nodata(self, value: float | None) -> Geometry:
        """The geometry with the stored value of pixels that have none; itself without such a value."""
        return self if value is None else replace(self, kept={**self.kept, "nodata": value})


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
