"""A picture: an array of stored values that knows its unit, and where its pixels lie in the world."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.pictures import formats
from bbdm.pictures.lazy import Geometry


class Picture(np.ndarray[Any, Any]):
    """An array (C, *S) of stored values, with the ``geometry``, ``unit`` and ``name`` of a picture.

    It is a NumPy array in all else; what is computed of it is a plain one, or keeps what it had.
    """

    geometry: Geometry
    unit: str
    name: str

    def __new__(  # noqa: D102
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
        formats.write(Path(path), self, self.geometry)
