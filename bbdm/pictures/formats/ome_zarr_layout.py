"""How pictures lie in the arrays of an OME-Zarr: the order of axes, levels, and which chunks are stored."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bbdm.base import optional
from bbdm.pictures import windows

zarr: Any = optional.package("zarr", "an OME-Zarr, which is read from Python 3.11 on,")
NAME = "ome-zarr"
ZARR_FORMATS = {"0.4": 2, "0.5": 3}  # of Zarr, by the version of OME-Zarr
ORDER = "tczyx"
OWN = "bbdm"  # the attribute of what OME has no place for

Array = npt.NDArray[Any]
Window = windows.Window


class Layout(NamedTuple):
    """How a picture (C, *S) lies in an array."""

    axes: tuple[str, ...]  # of the array
    depth: str  # the axis of depth, z or t; "" of a flat picture
    time: int = 0  # of a picture of one time
    channel: int | None = None  # None for all

    @property
    def spatial(self) -> list[str]:
        """The axes of S."""
        return [*self.depth, "y", "x"]

    def sides(self, lengths: Any) -> tuple[Any, ...]:
        """Of the lengths of the array's axes, those of S."""
        return tuple(lengths[self.axes.index(axis)] for axis in self.spatial)

    def _index(self, window: Window) -> tuple[slice, ...]:
        """The slice of each of the array's axes; the first index alone of those that a picture has not."""
        channels = slice(None)
        if self.channel is not None:
            channels = slice(self.channel, self.channel + 1)
        slices = {"t": slice(self.time, self.time + 1), "c": channels}
        slices |= dict(zip(self.spatial, window, strict=True))
        return tuple(slices.get(axis, slice(0, 1)) for axis in self.axes)

    def read(self, array: Any, window: Window) -> Array:
        """(C, *W) of a window."""
        values = np.asarray(array[self._index(window)])
        order = [axis for axis in ("c", *self.spatial) if axis in self.axes]
        others = [axis for axis in self.axes if axis not in order]
        values = values.transpose([self.axes.index(axis) for axis in others + order])
        return values.reshape(-1, *windows.lengths(window))

    def write(self, array: Any, window: Window, values: Array) -> None:
        """Write the values (C, *W) of a window."""
        order = ["c", *self.spatial]
        others = [axis for axis in self.axes if axis not in order]
        kept = [axis for axis in order if axis in self.axes]
        if "c" not in self.axes:
            values = values[0]
        values = values.reshape(*[1] * len(others), *values.shape)
        array[self._index(window)] = values.transpose(
            [(others + kept).index(axis) for axis in self.axes]
        )


def open_level(path: Path, name: str) -> Any:
    """The array of a level, which lies in the folder of the picture."""
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"its level {name!r} is not in its folder")
    return zarr.open_array(str(path / relative), mode="r")


def stored_chunks(array: Any, folder: Path, layout: Layout) -> windows.Chunks:
    """Which chunks of an array are in its folder."""
    lengths = array.shards or array.chunks
    counts = [-(-side // length) for side, length in zip(array.shape, lengths, strict=True)]
    stored = np.zeros(layout.sides(counts), bool)
    for index in np.ndindex(*counts):
        place = layout.sides(index)
        if not stored[place]:
            stored[place] = (folder / array.metadata.encode_chunk_key(index)).exists()
    fill = 0 if array.fill_value is None else array.fill_value
    return windows.Chunks(layout.sides(lengths), stored, float(fill))
