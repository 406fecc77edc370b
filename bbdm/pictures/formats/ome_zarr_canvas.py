"""OME-Zarr written part by part: the first level by windows, then levels of means, and OME's metadata."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from bbdm.pictures.derivation import NAME as DERIVATION
from bbdm.pictures.formats.ome_zarr_layout import (
    NAME,
    ORDER,
    OWN,
    ZARR_FORMATS,
    Array,
    Layout,
    Window,
    stored_chunks,
    zarr,
)
from bbdm.pictures.picture import Picture

# names of chunks
KEYS = {2: {"name": "v2", "separator": "/"}, 3: {"name": "default", "separator": "/"}}
VERSION = "0.5"  # of pictures of other formats
CHUNK = 512  # pixels of a chunk's side, where the source has no chunks
LONGEST_CHUNK = 2048
SMALLEST = 256  # pixels of the longest side of the last level
TYPES = {"t": "time", "c": "channel"}  # of axes that are not of space
MILLIMETRES = ("nifti", "itk")  # formats whose place is in mm
COLORS = ("FFFFFF", "00FF00", "FF00FF", "00FFFF", "FFFF00", "FF0000", "0000FF")


class Canvas:
    """A picture of OME-Zarr that is written part by part; see :func:`create`."""

    def __init__(self, path: Path, picture: Picture, fill: float | None) -> None:
        geometry = picture.geometry
        kept = geometry.kept if geometry.format == NAME else {}
        self._path = path
        self._kept = kept
        self._geometry = geometry
        self._unit = picture.unit
        self._dtype = picture.dtype
        self._version = kept.get("version", VERSION)
        self._zarr_format = ZARR_FORMATS[self._version]
        depth = kept.get("depth", "z") if picture.ndim == 4 else ""
        self._units = _units(picture, kept, depth)
        self._layout = Layout(tuple(self._units), depth)
        if fill is None:
            fill = geometry.nodata or 0
        self._fill = fill
        self._chunk = tuple(min(side, LONGEST_CHUNK) for side in kept.get("chunk", (CHUNK, CHUNK)))
        self._group = zarr.create_group(str(path), zarr_format=self._zarr_format)
        self._levels: list[Any] = []
        self._add_level(picture.shape)

    def _add_level(self, shape: Sequence[int]) -> None:
        """Add the array of a further level, of a picture (C, *S)."""
        lengths = dict(zip(["c", *self._layout.spatial], shape, strict=True))
        sides = [lengths.get(axis, 1) for axis in self._layout.axes]
        longest = dict(zip("yx", self._chunk, strict=True))
        chunk: list[int] = []
        for axis, side in zip(self._layout.axes, sides, strict=True):
            chunk.append(min(side, longest.get(axis, 1)))
        array = self._group.create_array(
            str(len(self._levels)),
            shape=sides,
            chunks=chunk,
            dtype=self._dtype,
            fill_value=self._dtype.type(self._fill),
            chunk_key_encoding=KEYS[self._zarr_format],
            dimension_names=self._layout.axes if self._zarr_format == 3 else None,
            config={"write_empty_chunks": True},  # one that is left out is one that nobody wrote
        )
        self._levels.append(array)

    def parts(self, sides: Sequence[int]) -> Iterator[Window]:
        """Windows (*S) that are a chunk each."""
        lengths = [*[1] * (len(sides) - 2), *self._chunk]
        starts = [range(0, side, length) for side, length in zip(sides, lengths, strict=True)]
        for corner in product(*starts):
            window: list[slice] = []
            for start, length, side in zip(corner, lengths, sides, strict=True):
                window.append(slice(start, min(start + length, side)))
            yield tuple(window)

    def write(self, window: Window, values: Array) -> None:
        """Write the values (C, *W) of a window; whole chunks are fastest."""
        self._layout.write(self._levels[0], window, values)

    def finish(self) -> None:
        """Write further levels, each of means of 2 x 2 pixels of the one before, and OME's metadata."""
        while max(self._sides()[-2:]) > SMALLEST:
            self._halve()
        low, high = self._extremes()
        image = {
            "name": self._path.name,
            "axes": self._described_axes(),
            "datasets": self._datasets(),
            "type": "mean",
        }
        channels = self._channels(low, high)
        if self._version == "0.4":
            image["version"] = self._version
            attributes: dict[str, Any] = {"multiscales": [image], "omero": {"channels": channels}}
        else:
            ome = {
                "version": self._version,
                "multiscales": [image],
                "omero": {"channels": channels},
            }
            attributes = {"ome": ome}
        of_this_library: dict[str, Any] = {}
        if self._unit:
            of_this_library["unit"] = self._unit
        if self._geometry.nodata is not None:
            of_this_library["nodata"] = (
                f"{self._geometry.nodata:.17g}"  # a text, since JSON has no NaN
            )
        if self._geometry.derivation is not None:
            of_this_library[DERIVATION] = self._geometry.derivation.text
        if of_this_library:
            attributes[OWN] = of_this_library
        self._group.attrs.update(attributes)

    def _sides(self) -> tuple[int, ...]:
        """The sides (*S) of the last level."""
        return self._layout.sides(self._levels[-1].shape)

    def _halve(self) -> None:
        """Add a level of half the height and width, of which parts without a stored chunk are left out."""
        before = self._levels[-1]
        *rest, height, width = self._sides()
        sides = (*rest, -(-height // 2), -(-width // 2))
        stored = stored_chunks(before, self._path / before.path, self._layout)
        self._add_level((self._channel_count(), *sides))
        for window in self.parts(sides):
            rows = slice(2 * window[-2].start, min(2 * window[-2].stop, height))
            columns = slice(2 * window[-1].start, min(2 * window[-1].stop, width))
            above = (*window[:-2], rows, columns)
            if stored.holds(above):
                means = _halved(self._layout.read(before, above), self._geometry.nodata)
                self._layout.write(self._levels[-1], window, means)

    def _channel_count(self) -> int:
        """The number of channels."""
        if "c" not in self._layout.axes:
            return 1
        return self._levels[0].shape[self._layout.axes.index("c")]

    def _extremes(self) -> tuple[Array, Array]:
        """The least and the largest value of each channel, in the last level."""
        window = tuple(slice(0, side) for side in self._sides())
        values = self._layout.read(self._levels[-1], window).astype(np.float64)
        nodata = self._geometry.nodata
        absent = ~np.isfinite(values)
        if nodata is not None:
            absent |= values == nodata
        values = np.where(absent, np.nan, values).reshape(len(values), -1)
        low = np.nan_to_num(np.fmin.reduce(values, axis=1))
        high = np.nan_to_num(np.fmax.reduce(values, axis=1))
        return low, high

    def _described_axes(self) -> list[dict[str, str]]:
        described: list[dict[str, str]] = []
        for axis, unit in self._units.items():
            entry = {"name": axis, "type": TYPES.get(axis, "space")}
            if unit:
                entry["unit"] = unit
            described.append(entry)
        return described

    def _datasets(self) -> list[dict[str, Any]]:
        """The scale of each level, and where the middle of its first pixel lies."""
        scales = dict.fromkeys(self._layout.axes, 1.0)
        starts = dict.fromkeys(self._layout.axes, 0.0)
        names = self._layout.spatial[::-1]  # x, y and the depth
        placed = self._geometry.steps(len(names))
        if placed is not None:
            matrix, origin = placed
            diagonal = np.diag(matrix)
            if np.allclose(matrix, np.diag(diagonal)) and (diagonal > 0).all():
                starts |= dict(zip(names, origin.tolist(), strict=True))
            scales |= dict(zip(names, np.linalg.norm(matrix, axis=0).tolist(), strict=True))
        datasets: list[dict[str, Any]] = []
        for number, level in enumerate(self._levels):
            factor = 2**number
            scale = {
                axis: length * (factor if axis in "yx" else 1) for axis, length in scales.items()
            }
            start = {axis: starts[axis] + (scale[axis] - scales[axis]) / 2 for axis in scales}
            transformations: list[dict[str, Any]] = [{"type": "scale", "scale": [*scale.values()]}]
            if any(start.values()):
                transformations.append({"type": "translation", "translation": [*start.values()]})
            datasets.append({"path": level.path, "coordinateTransformations": transformations})
        return datasets

    def _channels(self, low: Array, high: Array) -> list[dict[str, Any]]:
        """OME's entries of the channels: names, colours, and the values between which they are shown."""
        names = self._kept.get("descriptions", ())
        colors = self._kept.get("colors", COLORS)
        channels: list[dict[str, Any]] = []
        for number, (least, most) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
            channel: dict[str, Any] = {"color": colors[number % len(colors)], "active": True}
            channel["window"] = {"min": least, "max": most, "start": least, "end": most}
            if len(names) == len(low) and names[number]:
                channel["label"] = names[number]
            channels.append(channel)
        return channels


def _units(picture: Picture, kept: Mapping[str, Any], depth: str) -> dict[str, str | None]:
    """The axes of a picture's file in their order, with their units: its source's, and what it needs."""
    units: dict[str, str | None] = dict(kept.get("axes", ()))
    if len(picture) > 1 or not units:
        units.setdefault("c", None)
    length = "millimeter" if picture.geometry.format in MILLIMETRES else None
    for axis in (*depth, "y", "x"):
        units.setdefault(axis, length)
    return {axis: units[axis] for axis in ORDER if axis in units}


def _halved(values: Array, nodata: float | None) -> Array:
    """The means (..., H / 2, W / 2) of 2 x 2 pixels (..., H, W), of which the last are repeated.

    Pixels without a value are left out.
    """
    edges = [(0, 0)] * (values.ndim - 2) + [(0, side % 2) for side in values.shape[-2:]]
    padded = np.pad(values, edges, mode="edge")
    *rest, height, width = padded.shape
    blocks = padded.reshape(*rest, height // 2, 2, width // 2, 2).astype(np.float64)
    if nodata is None:
        means = blocks.mean((-3, -1))
    else:
        absent = np.isnan(blocks) if math.isnan(nodata) else blocks == nodata
        counts = (~absent).sum((-3, -1))
        sums = np.where(absent, 0, blocks).sum((-3, -1))
        means = np.where(counts == 0, nodata, sums / np.maximum(counts, 1))
    if values.dtype.kind == "f":
        return means.astype(values.dtype)
    return np.rint(means).astype(values.dtype)
