"""OME-Zarr 0.4 and 0.5, by zarr: windows of the first level are read, and levels are written part by part.

The affine maps (depth, row, column) to (x, y, depth) in the units of the file's axes. The depth of a volume
is z, and that of a sequence t.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bbdm.base import optional
from bbdm.pictures import windows
from bbdm.pictures.derivation import NAME as DERIVATION
from bbdm.pictures.formats.detection import ome_zarr
from bbdm.pictures.formats.parts import WHOLE, Part
from bbdm.pictures.picture import Geometry, Header, Picture, as_affine
from bbdm.pictures.values import holds

zarr: Any = optional.package("zarr", "an OME-Zarr, which is read from Python 3.11 on,")
NAME = "ome-zarr"
ZARR_FORMATS = {"0.4": 2, "0.5": 3}  # of Zarr, by the version of OME-Zarr
# names of chunks
KEYS = {2: {"name": "v2", "separator": "/"}, 3: {"name": "default", "separator": "/"}}
VERSION = "0.5"  # of pictures of other formats
OWN = "bbdm"  # the attribute of what OME has no place for
CHUNK = 512  # pixels of a chunk's side, where the source has no chunks
LONGEST_CHUNK = 2048
SMALLEST = 256  # pixels of the longest side of the last level
ORDER = "tczyx"
TYPES = {"t": "time", "c": "channel"}  # of axes that are not of space
SECONDS = {
    "nanosecond": 1e-9,
    "microsecond": 1e-6,
    "millisecond": 1e-3,
    "second": 1,
    "minute": 60,
    "hour": 3600,
}
MILLIMETRES = ("nifti", "itk")  # formats whose place is in mm
COLORS = ("FFFFFF", "00FF00", "FF00FF", "00FFFF", "FFFF00", "FF0000", "0000FF")

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


def parts(path: Path) -> list[Part]:
    """A part for each time, where there are several times of several planes; else the picture as a whole."""
    image = ome_zarr(path)["multiscales"][0]
    array = _level(path, image["datasets"][0]["path"])
    lengths = dict(zip((axis["name"] for axis in image["axes"]), array.shape, strict=True))
    if lengths.get("t", 1) > 1 and lengths.get("z", 1) > 1:
        return [Part(time=time) for time in range(lengths["t"])]
    return [WHOLE]


def header(path: Path, part: Part = WHOLE) -> Header:
    """The header of a picture (C, H, W), a volume (C, D, H, W) or a sequence (C, T, H, W); or a part of it.

    ``geometry.kept`` has version; axes, by name with their unit; chunk, (height, width); where the file has
    them descriptions: names of channels, colors, and seconds from one time to the next.

    Raises:
        ValueError: it is damaged, of another version, or has several times of several planes, or other axes.
    """
    if not path.is_dir():
        raise ValueError("it is a file, and an OME-Zarr is a folder")
    attributes = ome_zarr(path)
    image = attributes["multiscales"][0]
    version = str(attributes.get("version", image.get("version", "0.4")))
    if version not in ZARR_FORMATS:
        raise ValueError(f"it is OME-Zarr {version}, and {' and '.join(ZARR_FORMATS)} are read")
    level = image["datasets"][0]
    array = _level(path, level["path"])
    axes = {axis["name"]: axis.get("unit") for axis in image["axes"]}
    lengths = dict(zip(axes, array.shape, strict=True))
    part.check(time=lengths.get("t", 1), channel=lengths.get("c", 1))
    channels = lengths.get("c", 1)
    kept = _kept(attributes, version, axes, lengths)
    if part.channel is not None:
        channels = 1
        for entry in ("descriptions", "colors"):
            if entry in kept:
                kept[entry] = kept[entry][part.channel : part.channel + 1]
    if part.time is not None:
        lengths["t"] = 1
        kept.pop("depth", None)
    layout = Layout(tuple(axes), _depth(path, lengths), part.time or 0, part.channel)
    kept["chunk"] = layout.sides(array.chunks)[-2:]
    scales, starts = _transformed(level, image, len(axes))
    steps = layout.sides(scales)[::-1]  # along x, y and the depth
    origin = layout.sides(starts)[::-1]
    affine = None
    if any(step != 1 for step in steps) or any(origin) or any(axes[axis] for axis in "yx"):
        affine = as_affine(np.diag(steps), origin)
    if layout.depth == "t" and axes["t"] in SECONDS:
        kept["seconds"] = float(steps[-1] * SECONDS[axes["t"]])
    of_this_library = attributes.get(OWN, {})
    geometry = Geometry(affine, NAME, kept, _nodata(of_this_library, array))
    windowed = any(chunk < length for chunk, length in zip(array.chunks, array.shape, strict=True))
    shape = (channels, *layout.sides(array.shape))
    stored = (path, level["path"], layout)
    return Header(
        path,
        shape,
        array.dtype,
        geometry,
        windowed,
        stored=stored,
        unit=str(of_this_library.get("unit", "")),
    )


def read(header: Header, window: Window) -> Array:
    """(C, *W) of a window, of which only chunks that it touches are decoded."""
    path, level, layout = header.stored
    return np.asarray(layout.read(_level(path, level), window), header.dtype)


def chunks(header: Header) -> windows.Chunks:
    """Which chunks the folder has; the pixels of others have the fill value of the array."""
    path, level, layout = header.stored
    return _chunks(_level(path, level), path / level, layout)


def _chunks(array: Any, folder: Path, layout: Layout) -> windows.Chunks:
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


def write(path: Path, picture: Picture) -> None:
    """Write (C, H, W) or (C, D, H, W) with all levels, chunk after chunk."""
    canvas = create(path, picture)
    array = np.asarray(picture)
    for window in canvas.parts(array.shape[1:]):
        canvas.write(window, array[(slice(None), *window)])
    canvas.finish()


def create(path: Path, picture: Picture, fill: float | None = None) -> Canvas:
    """A picture of no chunks yet.

    Args:
        path: of its folder, which is made.
        picture: whose shape, type, geometry and unit are written, and no values.
        fill: the value of chunks that are never written; None for the geometry's nodata, or 0.
    """
    return Canvas(path, picture, fill)


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
        stored = _chunks(before, self._path / before.path, self._layout)
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


def _level(path: Path, name: str) -> Any:
    """The array of a level, which lies in the folder of the picture."""
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError(f"its level {name!r} is not in its folder")
    return zarr.open_array(str(path / relative), mode="r")


def _depth(path: Path, lengths: Mapping[str, int]) -> str:
    """The axis of depth, z or t; "" of a flat picture."""
    others = [axis for axis, length in lengths.items() if axis not in ORDER and length > 1]
    if others or "y" not in lengths or "x" not in lengths:
        raise ValueError(f"its axes are {', '.join(lengths)}, and t, c, z, y, x are read")
    times = lengths.get("t", 1)
    planes = lengths.get("z", 1)
    if times > 1 and planes > 1:
        raise ValueError(
            f"it has {times} times of {planes} planes: choose a time, such as {path.name}#time=0"
        )
    if times > 1:
        return "t"
    return "z" if planes > 1 else ""


def _kept(
    attributes: Mapping[str, Any],
    version: str,
    axes: Mapping[str, str | None],
    lengths: Mapping[str, int],
) -> dict[str, Any]:
    """What a file says besides its place; see :func:`header`."""
    kept: dict[str, Any] = {"version": version, "axes": tuple(axes.items())}
    if lengths.get("t", 1) > 1:
        kept["depth"] = "t"
    channels = (attributes.get("omero") or {}).get("channels", ())
    if len(channels) == lengths.get("c", 1):
        labels = tuple(str(channel.get("label", "")) for channel in channels)
        if any(labels):
            kept["descriptions"] = labels
        if all("color" in channel for channel in channels):
            kept["colors"] = tuple(str(channel["color"]) for channel in channels)
    return kept


def _transformed(
    level: Mapping[str, Any], image: Mapping[str, Any], axes: int
) -> tuple[Array, Array]:
    """The scale and the translation along each axis: those of a level, then those of all levels."""
    scales = np.ones(axes)
    starts = np.zeros(axes)
    for owner in (level, image):
        for transformation in owner.get("coordinateTransformations", ()):
            if transformation["type"] == "scale":
                scales = scales * transformation["scale"]
                starts = starts * transformation["scale"]
            elif transformation["type"] == "translation":
                starts = starts + transformation["translation"]
    return scales, starts


def _nodata(attributes: Mapping[str, Any], array: Any) -> float | None:
    """The value that stands for none: what this library wrote, or a fill value that is NaN."""
    text = attributes.get("nodata")
    nodata = None if text is None else float(text)
    if (
        nodata is None
        and array.dtype.kind == "f"
        and array.fill_value is not None
        and math.isnan(array.fill_value)
    ):
        nodata = math.nan
    if nodata is not None and not holds(array.dtype, nodata):
        return None
    return nodata


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
