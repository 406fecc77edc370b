"""OME-Zarr 0.4 and 0.5, by zarr: windows of the first level are read, and levels are written part by part.

The affine maps (depth, row, column) to (x, y, depth) in the units of the file's axes. The depth of a volume
is z, and that of a sequence t.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bbdm.pictures import windows
from bbdm.pictures.formats.detection import ome_zarr
from bbdm.pictures.formats.ome_zarr_canvas import Canvas
from bbdm.pictures.formats.ome_zarr_layout import (
    NAME,
    ORDER,
    OWN,
    ZARR_FORMATS,
    Array,
    Layout,
    Window,
    open_level,
    stored_chunks,
)
from bbdm.pictures.formats.parts import WHOLE, Part
from bbdm.pictures.picture import Geometry, Header, Picture, as_affine
from bbdm.pictures.values import holds

SECONDS = {
    "nanosecond": 1e-9,
    "microsecond": 1e-6,
    "millisecond": 1e-3,
    "second": 1,
    "minute": 60,
    "hour": 3600,
}


def parts(path: Path) -> list[Part]:
    """A part for each time, where there are several times of several planes; else the picture as a whole."""
    image = ome_zarr(path)["multiscales"][0]
    array = open_level(path, image["datasets"][0]["path"])
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
    array = open_level(path, level["path"])
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
    return np.asarray(layout.read(open_level(path, level), window), header.dtype)


def chunks(header: Header) -> windows.Chunks:
    """Which chunks the folder has; the pixels of others have the fill value of the array."""
    path, level, layout = header.stored
    return stored_chunks(open_level(path, level), path / level, layout)


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
