"""CZI, LIF and ND2 of microscopes, by bioio and the plugin of each: scenes, times, planes and channels.

A scene is a picture. Several planes are a volume (C, Z, Y, X), and several times of one plane a sequence
(C, T, Y, X). Lengths are in micrometres. Files are only read; results are OME-TIFF, whose entries ``kept``
has.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bbdm.base import optional
from bbdm.base.atomic import stamp
from bbdm.pictures import formats, windows
from bbdm.pictures.formats.parts import WHOLE, Part
from bbdm.pictures.formats.tifffile import NAME, SIZE_UNITS, SIZES
from bbdm.pictures.picture import Affine, Geometry, Header, as_affine

bioio: Any = optional.package("bioio", "a file of a microscope, which is read from Python 3.11 on,")
CZI = ".czi"
PLUGINS = {CZI: "bioio_czi", ".lif": "bioio_lif", ".nd2": "bioio_nd2"}
UNNAMED = re.compile(r"Channel:[\d:]+")  # what bioio calls channels without a name
OPENED = 8  # scenes that are kept open

Array = npt.NDArray[Any]


class Stored(NamedTuple):
    """Which values of a file a picture has."""

    file: Path
    scene: int
    time: int  # the first one of a sequence
    depth: str  # the axis between channels and rows: Z, T, or "" of a flat picture
    channel: int | None  # None for all


def parts(path: Path) -> list[Part]:
    """A part for each scene, or where a scene has several times of several planes, for each of its times."""
    image = _image(path)
    count = len(image.scenes)
    found: list[Part] = []
    for number in range(count):
        image.set_scene(number)
        lengths = _lengths(image, path)
        scene = number if count > 1 else None
        if lengths["T"] > 1 and lengths["Z"] > 1:
            found += [Part(scene, time) for time in range(lengths["T"])]
        else:
            found.append(Part(scene))
    return found


def header(path: Path, part: Part = WHOLE) -> Header:
    """The header of a scene, or of a time or a channel of it.

    ``geometry.kept`` has, where the file says them, ome: pixel sizes and their units, descriptions: names of
    channels, and seconds from one time to the next.

    Raises:
        ValueError: it is damaged, the part is not in it, or a scene or a time is to be chosen.
    """
    image = _image(path)
    scenes = len(image.scenes)
    Part(part.scene).check(scene=scenes)
    if part.scene is None and scenes > 1:
        raise ValueError(f"it has {scenes} scenes: choose one, such as {path.name}#{replace(part, scene=0)}")
    scene = part.scene or 0
    image.set_scene(scene)
    lengths = _lengths(image, path)
    channels = lengths["C"] * lengths["S"]
    part.check(scene=scenes, time=lengths["T"], channel=channels)
    depth = _depth(path, part, lengths)
    names = tuple(map(str, image.channel_names or ()))
    if part.channel is not None:
        names = names[part.channel : part.channel + 1]
        channels = 1
    sides = [lengths[axis] for axis in f"{depth}YX"]
    stored = Stored(path, scene, part.time or 0, depth, part.channel)
    geometry = _geometry(image, depth, names if len(names) == channels else ())
    windowed = _is_windowed(image, depth)
    dtype = np.dtype(image.dtype)
    return Header(path, (channels, *sides), dtype, geometry, windowed, _most(path), stored=stored)


def read(header: Header, window: tuple[slice, ...]) -> Array:
    """(C, *W) of a window, of which only planes or tiles that it touches are decoded."""
    file, scene, time, depth, channel = header.stored
    image = _opened(file, scene, stamp(file))
    selected: dict[str, Any] = {"T": time, "Z": 0}
    selected |= dict(zip(f"{depth}YX", window, strict=True))
    sides = windows.lengths(window)
    if "S" in image.dims.order:  # whose delayed values are those of the first colour, in bioio-czi 3.0
        colours = image.get_image_data(f"CS{depth}YX", **selected)
        if file.suffix.lower() == CZI:  # blue comes first
            order = [2, 1, 0, *range(3, colours.shape[1])]
            colours = colours[:, order]
        array = colours.reshape(-1, *sides)
        if channel is not None:
            array = array[channel : channel + 1]
    else:
        if channel is not None:
            selected["C"] = slice(channel, channel + 1)
        array = image.get_image_dask_data(f"C{depth}YX", **selected).compute(scheduler="synchronous")
    return np.array(array, header.dtype)


def _image(path: Path) -> Any:
    """A file, opened by its plugin.

    Raises:
        ModuleNotFoundError: the plugin is not installed.
    """
    suffix = formats.suffix_of(path)
    name = PLUGINS[suffix]
    try:
        plugin = optional.package(name, suffix)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        project = name.replace("_", "-")
        message = f"{suffix} needs the plugin {project} of bioio, which is not installed: pip install {project}"
        raise ModuleNotFoundError(message, name=name) from error
    image = bioio.BioImage(path, reader=plugin.Reader)
    if suffix == CZI:
        _name_scenes(image, path)
    return image


def _name_scenes(image: Any, path: Path) -> None:
    """Give names to scenes of a CZI that its metadata does not list, since bioio-czi takes them for one."""
    shapes = optional.package("aicspylibczi", CZI).CziFile(path).get_dims_shape()
    count = 0
    for shape in shapes:
        first, end = shape.get("S", (0, 1))
        count += end - first
    if count > len(image.scenes):
        reader = getattr(image.reader, "_implementation", image.reader)
        reader._scenes = tuple(f"scene {number}" for number in range(count))
    if count > len(image.scenes):
        raise ValueError(f"it has {count} scenes, and bioio-czi finds {len(image.scenes)}: pip install -U bioio-czi")


@lru_cache(OPENED)
def _opened(path: Path, scene: int, stamped: str) -> Any:
    """A scene of a file as it was when it had a stamp."""
    image = _image(path)
    image.set_scene(scene)
    return image


def _lengths(image: Any, path: Path) -> dict[str, int]:
    """The lengths of the axes T, C, Z, Y, X and S, the samples of colours, of a scene.

    Raises:
        ValueError: the file is too small for them, which is known before an array is made of its parts.
    """
    stored = image.reader.dims.shape
    dtype = np.dtype(image.dtype)
    most = _most(path)
    if math.prod(stored) * dtype.itemsize > most:
        windows.check_cost(stored, dtype, most)
    dims = image.dims
    return {"S": 1, **dict(zip(dims.order, dims.shape, strict=True))}


def _most(path: Path) -> float:
    """The bytes of values that a file of its size can hold."""
    return path.stat().st_size * windows.RATIO


def _depth(path: Path, part: Part, lengths: Mapping[str, int]) -> str:
    """The axis between channels and rows."""
    times = lengths["T"]
    planes = lengths["Z"]
    if part.time is None and times > 1:
        if planes > 1:
            address = f"{path.name}#{replace(part, time=0)}"
            raise ValueError(f"it has {times} times of {planes} planes: choose a time, such as {address}")
        return "T"
    return "Z" if planes > 1 else ""


def _is_windowed(image: Any, depth: str) -> bool:
    """Whether a window is read without all planes or tiles."""
    dims = image.dims
    if "S" in dims.order:
        return False
    chunks = dict(zip(dims.order, image.dask_data.chunks, strict=True))
    return any(len(chunks[axis]) > 1 for axis in f"{depth}YX")


def _geometry(image: Any, depth: str, names: tuple[str, ...]) -> Geometry:
    """Scale, names of channels and time of a scene."""
    kept: dict[str, Any] = {}
    if names and not all(UNNAMED.fullmatch(name) for name in names):
        kept["descriptions"] = names
    steps: list[float] = []  # along x, y and the depth
    measured = image.physical_pixel_sizes
    for axis in f"XY{depth if depth == 'Z' else ''}":
        steps.append(float(getattr(measured, axis) or 0))
    if all(steps):
        kept["ome"] = dict(zip(SIZES, steps, strict=False)) | dict.fromkeys(SIZE_UNITS[: len(steps)], "µm")
    if depth == "T":
        interval = image.time_interval
        seconds = 0.0 if interval is None else interval.total_seconds()
        if seconds > 0:
            kept["seconds"] = seconds
        steps.append(seconds or 1.0)
    affine: Affine | None = None
    if all(steps):
        affine = as_affine(np.diag(steps), np.zeros(len(steps)))
    return Geometry(affine, NAME, kept)
