"""CZI by pylibCZIrw, the library of Zeiss: scenes, times, planes, channels; windows read only their tiles."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import product
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

from bbdm.base import optional
from bbdm.pictures import windows
from bbdm.pictures.formats import scenes
from bbdm.pictures.formats.parts import WHOLE, Part
from bbdm.pictures.formats.scenes import Scene
from bbdm.pictures.picture import Header

optional.package("pylibCZIrw", ".czi")
czi: Any = optional.package("pylibCZIrw.czi", ".czi")
TYPES = {  # of pixels: the type and the number of samples
    "Gray8": ("uint8", 1),
    "Gray16": ("uint16", 1),
    "Gray32": ("uint32", 1),
    "Gray32Float": ("float32", 1),
    "Bgr24": ("uint8", 3),
    "Bgr48": ("uint16", 3),
    "Bgr96Float": ("float32", 3),
}
CHANNELS = "Metadata/Information/Image/Dimensions/Channels/Channel"
INCREMENT = "Metadata/Information/Image/Dimensions/T/Positions/Interval/Increment"
MICROMETRE = 1e-6  # in metres, in which lengths are stored

# The directory of tiles, by Zeiss' "ZISRAW (CZI) File Format": bytes from the start of the file, of the
# directory's segment, and of an entry, which ends with its dimensions.
DIRECTORY_POSITION = 84
COUNT_POSITION = 32
ENTRIES_POSITION = 160
DIMENSIONS_POSITION = 28
ENTRY_BYTES = 32
DIMENSION_BYTES = 20

Array = npt.NDArray[Any]


def parts(path: Path) -> list[Part]:
    """The parts that are rows, see :func:`bbdm.pictures.formats.scenes.parts`.

    Raises:
        ValueError: the directory of tiles is damaged.
    """
    _check_directory(path)
    with czi.open_czi(str(path)) as file:
        return scenes.parts([_scene(file, path, rectangle) for _, rectangle in _rectangles(file)])


def header(path: Path, part: Part = WHOLE) -> Header:
    """The header of a part, see :func:`bbdm.pictures.formats.scenes.header`.

    Raises:
        ValueError: it is damaged, the part is not in it, or a scene or a time is to be chosen; or channels
            have several types, or one that is not read.
    """
    _check_directory(path)
    with czi.open_czi(str(path)) as file:
        rectangles = _rectangles(file)
        number = scenes.chosen(path, part, len(rectangles))
        rectangle = rectangles[number][1]
        head = scenes.header(path, part, number, _scene(file, path, rectangle))
        windowed = bool(head.stored.depth) or _has_tiles(file, rectangle)
    return Header(
        path, head.shape, head.dtype, head.geometry, windowed, head.most, stored=head.stored
    )


def read(header: Header, window: tuple[slice, ...]) -> Array:
    """(C, *W) of a window, of which only tiles that it touches are decoded. Pixels without a tile are 0."""
    path, number, time, depth, channel = header.stored
    *depths, rows, columns = window
    sides = windows.lengths(window)
    with czi.open_czi(str(path)) as file:
        scene, rectangle = _rectangles(file)[number]
        left = rectangle[0] + columns.start
        top = rectangle[1] + rows.start
        region = (left, top, sides[-1], sides[-2])
        starts = _starts(file)
        samples = _type(file)[1]
        channels = range(header.shape[0] // samples)
        if channel is not None:
            channels = [channel // samples]
        levels = range(depths[0].start, depths[0].stop) if depths else [0]
        planes: list[Array] = []
        for index, level in product(channels, levels):
            plane = {"C": index, "T": time, "Z": 0}
            if depth:
                plane[depth] = level
            plane = {axis: start + plane[axis] for axis, start in starts.items()}
            planes.append(file.read(roi=region, plane=plane, scene=scene))
    stored = np.stack(planes).reshape(len(channels), *sides, -1)
    if samples == 3:
        stored = stored[..., ::-1]  # blue comes first in the file
    array = np.moveaxis(stored, -1, 1).reshape(-1, *sides)
    if channel is not None:
        array = array[channel % samples][None]
    return np.array(array, header.dtype)


def _check_directory(path: Path) -> None:
    """Refuse entries that do not fit into the file: some of them end the process inside of pylibCZIrw."""
    try:
        with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            (directory,) = struct.unpack_from("<q", content, DIRECTORY_POSITION)
            (count,) = struct.unpack_from("<i", content, directory + COUNT_POSITION)
            start = directory + ENTRIES_POSITION
            for _ in range(count):
                (dimensions,) = struct.unpack_from("<i", content, start + DIMENSIONS_POSITION)
                if dimensions < 0:
                    raise ValueError(f"an entry has {dimensions} dimensions")
                start += ENTRY_BYTES + DIMENSION_BYTES * dimensions
            if start > len(content):
                raise ValueError("the file ends within an entry")
    except (struct.error, ValueError) as error:
        raise ValueError(f"its directory of tiles is damaged: {error}") from error


def _rectangles(file: Any) -> list[tuple[int | None, Sequence[int]]]:
    """The number in the file and (left, top, width, height) of each scene; None where it has no scenes."""
    rectangles = file.scenes_bounding_rectangle_no_pyramid
    if rectangles:
        return [(number, tuple(rectangles[number])) for number in sorted(rectangles)]
    return [(None, tuple(file.total_bounding_rectangle_no_pyramid))]


def _starts(file: Any) -> dict[str, int]:
    """The first index along the axes T, C and Z."""
    box = file.total_bounding_box_no_pyramid
    return {axis: box.get(axis, (0, 1))[0] for axis in "TCZ"}


def _type(file: Any) -> tuple[str, int]:
    """The type of values, and the number of samples of a pixel."""
    types = sorted(set(file.pixel_types.values()))
    if len(types) != 1 or types[0] not in TYPES:
        raise ValueError(
            f"its channels are of {', '.join(types)}, and one type is read, of {', '.join(TYPES)}"
        )
    return TYPES[types[0]]


def _scene(file: Any, path: Path, rectangle: Sequence[int]) -> Scene:
    """What the file says of a scene."""
    dtype, samples = _type(file)
    box = file.total_bounding_box_no_pyramid
    lengths: dict[str, int] = {}
    for axis in "TCZ":
        start, stop = box.get(axis, (0, 1))
        lengths[axis] = stop - start
    lengths["X"] = rectangle[2]
    lengths["Y"] = rectangle[3]
    lengths["C"] *= samples
    scenes.check_size(path, list(lengths.values()), np.dtype(dtype))
    metadata = ElementTree.fromstring(file.raw_metadata)
    names = tuple(channel.get("Name", "") for channel in metadata.findall(CHANNELS))
    steps: dict[str, float] = {}
    for axis in "XYZ":
        metres = _number(metadata, f"Metadata/Scaling/Items/Distance[@Id='{axis}']/Value")
        steps[axis] = metres / MICROMETRE
    return Scene(lengths, np.dtype(dtype), names, steps, _number(metadata, INCREMENT))


def _number(metadata: ElementTree.Element, path: str) -> float:
    """The number that an entry of the metadata is; 0 without one."""
    try:
        return float(metadata.findtext(path, "0"))
    except ValueError:
        return 0.0


def _has_tiles(file: Any, rectangle: Sequence[int]) -> bool:
    """Whether a plane of a scene has more than one tile."""
    tiles: list[int] = []

    def count(index: int, tile: Any) -> bool:
        tiles.append(index)
        return len(tiles) < 2

    file.enumerate_subblocks_subset(
        count, plane=_starts(file), roi=tuple(rectangle), only_layer0=True
    )
    return len(tiles) > 1
