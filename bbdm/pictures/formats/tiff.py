"""TIFF by tifffile: any bits, floats, bands and pages; windows read only the strips or tiles that they touch.

The axes of a file are those that tifffile names. X, Y and, in OME and ImageJ files, Z are spatial; samples,
channels and other pages of one shape are channels, in the file's order. Several times are refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.base import optional
from bbdm.pictures.formats import common, medical, tags
from bbdm.pictures.lazy import Affine, Geometry, LazyPicture

NAME = "tiff"
TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64")
CHANNELS = "CSIQ"  # axes that become channels: channels, samples, pages, and those without a name
JPEG = (6, 7, 33007, 34892)  # compressions whose segments need the tables of the page
SIZES = ("PhysicalSizeX", "PhysicalSizeY", "PhysicalSizeZ")  # of a pixel, in OME
TILE = 256  # the side of written tiles
ACROSS = 16 * TILE  # columns that are written at once
CLASSIC = 2**32 - 2**25  # bytes of values that a classic TIFF holds
NODATA = 42113  # the tag of the value that stands for none
PALETTE, YCBCR = 3, 6  # what values mean


def open(path: Path) -> LazyPicture:
    """A picture (C, H, W) or (C, D, H, W).

    ``geometry.kept`` has resolution, resolutionunit, and ome: pixel sizes, their units and channels' names.

    Raises:
        ModuleNotFoundError: tifffile is not installed.
        ValueError: it is damaged, or has complex numbers, a palette, several times, or pages of several
            sizes.
    """
    optional.package("tifffile", "this TIFF")
    with common.reading(path):
        return _Picture(path)


def write(path: Path, array: npt.NDArray[Any], geometry: Geometry) -> None:
    """Write (C, H, W) with interleaved bands, or (C, D, H, W) as OME-TIFF; BigTIFF where 4 GiB need it.

    Raises:
        ModuleNotFoundError: tifffile is not installed.
        ValueError: the format cannot hold the array.
    """
    package = optional.package("tifffile", "this TIFF")
    common.check_held("a TIFF", array, TYPES, (2, 3))
    options = _options(array.shape, array.dtype, geometry)
    if "ome" not in options:
        array = array[0] if len(array) == 1 else np.ascontiguousarray(array.transpose(1, 2, 0))
    package.imwrite(path, array, **options)


def write_rows(path: Path, picture: LazyPicture) -> None:
    """Write a picture (C, H, W) in tiles with what :func:`write` says of it; BigTIFF where 4 GiB need it.

    Raises:
        ModuleNotFoundError: tifffile is not installed.
        ValueError: the format cannot hold the picture.
    """
    package = optional.package("tifffile", "this TIFF")
    common.check_held("a TIFF", picture, TYPES, (2,))
    options = _options(picture.shape, picture.dtype, picture.geometry)
    channels, *size = picture.shape
    pages: list[Any] = [*range(channels)] if "ome" in options or channels == 1 else [slice(None)]

    def tiles() -> Iterator[npt.NDArray[Any]]:
        for page in pages:
            for rows, columns in common.windows(size, TILE, ACROSS):
                block = picture[rows, columns][page]
                whole = np.zeros((*block.shape[:-2], TILE, -(-block.shape[-1] // TILE) * TILE), picture.dtype)
                whole[..., : block.shape[-2], : block.shape[-1]] = block
                for left in range(0, whole.shape[-1], TILE):
                    tile = whole[..., left : left + TILE]
                    yield np.ascontiguousarray(tile if tile.ndim == 2 else tile.transpose(1, 2, 0))

    shape = picture.shape if "ome" in options else (*size, channels) if channels > 1 else tuple(size)
    big = math.prod(shape) * picture.dtype.itemsize > CLASSIC
    package.imwrite(path, tiles(), shape=shape, dtype=picture.dtype, tile=(TILE, TILE), bigtiff=big, **options)


def _options(shape: Sequence[int], dtype: np.dtype[Any], geometry: Geometry) -> dict[str, Any]:
    """How tifffile writes a picture (C, *S): with ``ome`` as it is, else with interleaved bands."""
    kept = geometry.kept if geometry.format == NAME else {}
    options = {name: kept[name] for name in ("resolution", "resolutionunit") if name in kept}
    if geometry.nodata is not None:
        options["extratags"] = [(NODATA, 2, 0, f"{geometry.nodata:.17g}", True)]
    ome, channels = dict(kept.get("ome", {})), shape[0]
    if len(shape) == 4 or ome:
        ome = ome or _sizes_of(geometry.affine)
        if len(ome.get("Channel", {}).get("Name", ())) != channels:
            ome.pop("Channel", None)
        axes = "CZYX" if len(shape) == 4 else "CYX"
        return {**options, "ome": True, "photometric": "minisblack", "metadata": {**ome, "axes": axes}}
    colours = channels == 3 and dtype.kind == "u"
    options |= {"metadata": None, "photometric": "rgb" if colours else "minisblack"}
    if channels > 1:
        options |= {"planarconfig": "contig", "extrasamples": ["unspecified"] * (channels - (3 if colours else 1))}
    return options


class _Picture(common.FilePicture):
    def __init__(self, path: Path) -> None:
        self.path = path
        with self._opened() as file:
            series = _series(file)
            page = series.keyframe
            if page.photometric == PALETTE:
                raise ValueError("its values are indices of a palette: save it with colours")
            if page.photometric == YCBCR and page.compression not in JPEG:
                raise ValueError("its values are luminance and colour difference: save it as RGB")
            self._axes, self._stored = series.axes, series.shape
            self.dtype = common.real(page.dtype)
            self.shape = _channels(self._axes, self._stored, series.kind)
            self.nodata = float(page.nodata) if NODATA in page.tags else None
            self._place = series.dataoffset  # of all values, where they lie as in memory
            self._type = np.dtype(page.dtype).newbyteorder(file.byteorder)
            self.windowed = self._place is not None or math.prod(page.chunked) * len(series) > 1
            self.geometry = replace(_geometry(file, page, self.size), nodata=self.nodata)
        if self._place is not None:
            end = self._place + math.prod(self._stored) * self._type.itemsize
            if end > path.stat().st_size:
                raise ValueError(f"its header says {self._stored} of {self._type}, and the file is shorter")

    def _opened(self) -> Any:
        """Without the further files that OME can name."""
        return optional.package("tifffile", "this TIFF").TiffFile(self.path, _multifile=False)

    def _read(self, window: tuple[slice, ...]) -> npt.NDArray[Any]:
        spatial = dict(zip("ZYX"[-len(window) :], window, strict=True))
        shape = (self.shape[0], *common.lengths(window))
        size = self.path.stat().st_size
        if self._place is not None:
            common.check_cost(shape, self.dtype, size, ratio=1)
            whole = np.memmap(self.path, self._type, "r", self._place, self._stored)
            axes = self._axes
            found = whole[tuple(spatial.get(axis, slice(None)) for axis in axes)]
        else:
            common.check_cost(shape, self.dtype, size)
            with self._opened() as file:
                axes, found = _decoded(_series(file), spatial, size)
        ordered = [i for i, axis in enumerate(axes) if axis not in spatial] + [axes.index(axis) for axis in spatial]
        return np.array(found.transpose(ordered).reshape(shape), self.dtype, order="C")


def _series(file: Any) -> Any:
    """The picture of a file, at its full size.

    Raises:
        ValueError: there are several of different sizes.
    """
    first, *others = file.series
    if first.kind in ("generic", "uniform", "shaped"):
        others = [each for each in others if not each.keyframe.subfiletype & tags.SIDE_FILES]
        if others:
            sizes = ", ".join(str(each.shape) for each in (first, *others)[:9])
            raise ValueError(f"it has pictures of several sizes or types, {sizes}: save each as a file of its own")
    return first


def _channels(axes: str, stored: Sequence[int], kind: str) -> tuple[int, ...]:
    """(C, *S) of a file's axes."""
    spatial = "ZYX" if "Z" in axes and kind in ("ome", "imagej") else "YX"
    if any(axis not in axes for axis in spatial):
        raise ValueError(f"its axes are {axes}, and Y and X are wanted")
    count = 1
    for axis, length in zip(axes, stored, strict=True):
        if axis in spatial:
            continue
        if length > 1 and axis not in CHANNELS + "Z":
            what = f"{length} times" if axis == "T" else f"{length} along its axis {axis}"
            raise ValueError(f"it has {what}: save each as a file of its own")
        count *= length
    return (count, *(stored[axes.index(axis)] for axis in spatial))


def _decoded(series: Any, window: dict[str, slice], size: int) -> tuple[str, npt.NDArray[Any]]:
    """Axes and values of a window, of pages that are cut into strips or tiles."""
    axes, stored = series.axes, series.shape
    leading = [i for i, axis in enumerate(axes) if axis not in "SYX"]
    counts = [stored[i] for i in leading]
    if math.prod(counts) != len(series):
        raise ValueError(f"it has {len(series)} pages, and axes {axes} of {stored}")
    numbers = np.arange(len(series)).reshape(counts)
    numbers = numbers[tuple(window.get(axes[i], slice(None)) for i in leading)]
    pages = [_page(series[int(number)], series.keyframe, window["Y"], window["X"], size) for number in numbers.flat]
    found = np.stack(pages).reshape(*numbers.shape, *pages[0].shape)
    return "".join(axes[i] for i in leading) + "SYXs", found


def _page(page: Any, first: Any, rows: slice, columns: slice, size: int) -> npt.NDArray[Any]:
    """(planes, rows, columns, samples) of a page."""
    if page is None:
        raise ValueError("it lacks a page, or names another file that has it")
    planes, depth, height, width, samples = first.shaped
    if depth != 1:
        raise ValueError("it has tiles of three axes, which are not read")
    if first.is_tiled:
        down, across = first.tilelength, first.tilewidth
    else:
        down, across = min(first.rowsperstrip, height), width
    common.check_cost((down, across, samples), np.dtype(first.dtype), size)
    options = {"jpegtables": page.jpegtables, "jpegheader": first.jpegheader} if first.compression in JPEG else {}
    made = np.full((planes, rows.stop - rows.start, columns.stop - columns.start, samples), first.nodata, first.dtype)
    grid = -(-height // down), -(-width // across)
    touched = product(
        range(planes),
        range(rows.start // down, -(-rows.stop // down)),
        range(columns.start // across, -(-columns.stop // across)),
    )
    for plane, row, column in touched:
        index = (plane * grid[0] + row) * grid[1] + column
        place, count = page.dataoffsets[index], page.databytecounts[index]
        if count == 0:
            continue  # a tile that was left out
        if place + count > size:
            raise ValueError(f"strip or tile {index} ends at byte {place + count} of {size}: it is truncated")
        page.parent.filehandle.seek(place)
        data = page.parent.filehandle.read(count)
        segment, (at, _, top, left, _), (_, tall, wide, _) = first.decode(data, index, _fullsize=False, **options)
        begin, end = max(top, rows.start), min(top + tall, rows.stop)
        start, stop = max(left, columns.start), min(left + wide, columns.stop)
        made[at, begin - rows.start : end - rows.start, start - columns.start : stop - columns.start] = segment[
            0, begin - top : end - top, start - left : stop - left
        ]
    return made


def _geometry(file: Any, page: Any, size: Sequence[int]) -> Geometry:
    kept: dict[str, Any] = {}
    resolution = [page.tags.get(name) for name in ("XResolution", "YResolution")]
    if all(resolution):
        kept["resolution"] = tuple(tag.value for tag in resolution)
        kept["resolutionunit"] = int(page.resolutionunit)
    if file.is_ome and file.ome_metadata:
        kept["ome"] = _of_ome(optional.package("tifffile", "this TIFF").xml2dict(file.ome_metadata))
    elif file.is_imagej and len(size) == 3:
        kept["ome"] = _of_imagej(file.imagej_metadata or {}, kept.get("resolution"))
    spacing = [kept.get("ome", {}).get(name) for name in SIZES[: len(size)]]  # x, y, z
    place = medical.affine(spacing, [0] * len(size), np.eye(len(size)).ravel().tolist()) if all(spacing) else None
    return Geometry(place, NAME, kept)


def _of_ome(content: dict[str, Any]) -> dict[str, Any]:
    """Pixel sizes, their units, and the names of channels, as tifffile writes them again."""
    image = content["OME"]["Image"]
    pixels = (image[0] if isinstance(image, list) else image)["Pixels"]
    kept = {name: pixels[name] for name in (*SIZES, *(f"{size}Unit" for size in SIZES)) if name in pixels}
    channels = pixels.get("Channel", [])
    names = [each.get("Name") for each in (channels if isinstance(channels, list) else [channels])]
    return {**kept, "Channel": {"Name": names}} if names and all(names) else kept


def _of_imagej(content: dict[str, Any], resolution: Any) -> dict[str, Any]:
    """OME's pixel sizes of ImageJ's: the spacing of slices, and pixels in a unit."""
    lengths = [below / above if above else 0.0 for above, below in resolution or ()] + [content.get("spacing", 1.0)]
    sizes = {name: length for name, length in zip(SIZES, lengths, strict=False) if len(lengths) == 3 and length}
    unit = {"micron": "µm", "um": "µm"}.get(content.get("unit", ""), content.get("unit", ""))
    return {**sizes, **({f"{name}Unit": unit for name in sizes} if unit in ("µm", "nm", "mm", "cm", "m") else {})}


def _sizes_of(affine: Affine | None) -> dict[str, Any]:
    """OME's pixel sizes, in mm, of the affine of another format."""
    if affine is None or len(affine) != 4:
        return {}
    lengths = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)[::-1].tolist()
    return {**dict(zip(SIZES, lengths, strict=True)), **{f"{size}Unit": "mm" for size in SIZES}}
