"""What a picture is: its values, where its pixels lie in the world, and how a file of one is read in parts."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Affine = tuple[tuple[float, ...], ...]
Window = tuple[slice, ...]  # of the spatial axes


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


class Picture(np.ndarray[Any, Any]):
    """An array (C, *S) of stored values, with the ``geometry``, ``unit`` and ``name`` of a picture.

    It is a NumPy array in all else; what is computed of it is a plain one, or keeps what it had.
    """

    geometry: Geometry
    unit: str
    name: str

    def __new__(
        cls, array: npt.ArrayLike, geometry: Geometry | None = None, unit: str = "", name: str = ""
    ) -> Picture:
        made = np.asarray(array).view(cls)
        made.geometry, made.unit, made.name = geometry or Geometry(), unit, name
        return made

    def __array_finalize__(self, source: Any) -> None:
        self.geometry = getattr(source, "geometry", Geometry())
        self.unit = getattr(source, "unit", "")
        self.name = getattr(source, "name", "")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file in the format of its suffix, with the geometry that this format can hold.

        Raises:
            ModuleNotFoundError: the format's package is not installed.
            ValueError: the format cannot hold the values, the channels or the number of axes.
        """
        from bbdm.pictures import formats

        formats.write(Path(path), self, self.geometry)


class LazyPicture(ABC):
    """A picture in a file, of which only what is asked for is read.

    Attributes:
        path: the file, or the folder of DICOM.
        shape: (C, *S).
        dtype: of the stored values.
        geometry: see :class:`Geometry`.
        nodata: the stored value of pixels without a value, or None.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    geometry: Geometry
    nodata: float | None = None

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
    def windowed(self) -> bool:
        """Whether a window costs less to read than the whole."""
        return False
