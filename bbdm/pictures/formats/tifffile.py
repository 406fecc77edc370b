"""TIFF by tifffile: any bits, floats, bands and pages; windows read only the strips or tiles that they touch.

The axes of a file are those that tifffile names. X, Y and, in OME and ImageJ files, Z are spatial; samples,
channels and other pages of one shape are channels, in the file's order. Several times are refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.base import optional
from bbdm.pictures import formats
from bbdm.pictures.picture import Geometry, Header, Picture, as_affine

NAME = "tiff"
CHANNELS = "CSIQ"  # axes that become channels: channels, samples, pages, and those without a name
JPEG = (6, 7, 33007, 34892)  # compressions whose segments need the tables of the page
SIZES = ("PhysicalSizeX", "PhysicalSizeY", "PhysicalSizeZ")  # of a pixel, in OME
IMAGEJ_UNITS = {"micron": "µm", "um": "µm", "\\u00B5m": "µm"} | {unit: unit for unit in ("µm", "nm", "mm", "cm", "m")}
TILE = 256  # the side of written tiles
TILED = 2**22  # values from which on a picture is written in tiles
CLASSIC = 2**32 - 2**25  # bytes of values that a classic TIFF holds
NODATA = 42113  # the tag of the value that stands for none
WHITE_IS_0, PALETTE, YCBCR = 0, 3, 6  # what values mean
TURN = 274  # the tag of the orientation
SIDE_FILES = 1 | 4  # kinds of pages besides the picture: reduced copies, masks


def header(path: Path) -> Header:
    """The header of a picture (C, H, W) or (C, D, H, W).

    ``geometry.kept`` has resolution, resolutionunit, and ome: pixel sizes and their units.

    Raises:
        ValueError: it is damaged, or has complex numbers, a palette, several times, or pages of several
            sizes; or of 8 bits, white is 0, or it is not upright.
    """
    with _package().TiffFile(path, _multifile=False) as file:  # without further files that OME can name
        series, size = _series(file), path.stat().st_size
        page, offset = series.keyframe, series.dataoffset
        turn, narrow = page.tags.get(TURN), page.bitspersample <= 8
        wrong = {
            "indices of a palette": page.photometric == PALETTE,
            "luminance and colour difference": page.photometric == YCBCR and page.compression not in JPEG,
            "0 for white": narrow and page.photometric == WHITE_IS_0,
            "of fewer than 8 bits": page.bitspersample < 8,
            "turned by a tag": narrow and turn is not None and turn.value != 1,
        }
        if found := [reason for reason, is_so in wrong.items() if is_so]:
            raise ValueError(f"its values are {found[0]}: save it as upright grey or RGB, 0 for black")
        shape = _shape(series)
        if offset is not None and offset + math.prod(series.shape) * np.dtype(page.dtype).itemsize > size:
            raise ValueError(f"its header says {series.shape} of {page.dtype}, and the file is shorter")
        windowed = offset is not None or math.prod(page.chunked) * len(series) > 1
        dtype = np.dtype(series.dtype).newbyteorder(file.byteorder)
        mapped = None if offset is None else (dtype, offset, series.shape, series.axes)
        most = size * (1 if mapped else formats.RATIO)
        return Header(
            path, shape, formats.real(page.dtype), _geometry(file, page, shape), windowed, most, stored=mapped
        )


def read(header: Header, window: tuple[slice, ...]) -> npt.NDArray[Any]:
    """(C, *W) of a window; mapped into memory where the values lie in one piece."""
    spatial = dict(zip("ZYX"[-len(window) :], window, strict=True))
    if header.stored:
        dtype, offset, stored, axes = header.stored
        array = formats.mapped(header.path, dtype, offset, stored)
        array = array[tuple(spatial.get(axis, slice(None)) for axis in axes)]
    else:
        with _package().TiffFile(header.path, _multifile=False) as file:
            axes, array = _decoded(_series(file), spatial, header.path.stat().st_size)
    ordered = [i for i, axis in enumerate(axes) if axis not in spatial] + [axes.index(axis) for axis in spatial]
    array = array.transpose(ordered).reshape(header.shape[0], *formats.lengths(window))
    return np.asarray(array, header.dtype)


def write(path: Path, picture: Picture) -> None:
    """Write (C, H, W) with interleaved bands, or as OME-TIFF (C, D, H, W) and what has OME's entries.

    A large picture is written tile after tile; BigTIFF where 4 GiB need it.
    """
    package = _package()
    formats.check_held("a TIFF", picture, (*formats.REAL, "float16"))
    array, options = np.asarray(picture), _options(picture)
    interleaved = "planarconfig" in options
    if "ome" not in options:
        array = array.transpose(1, 2, 0) if interleaved else array[0]
    options["bigtiff"] = array.nbytes > CLASSIC
    if array.size < TILED:
        return package.imwrite(path, np.ascontiguousarray(array), **options)
    planes = array[None] if interleaved else array.reshape(-1, *array.shape[-2:])
    package.imwrite(path, _tiles(planes), shape=array.shape, dtype=array.dtype, tile=(TILE, TILE), **options)


def _package() -> Any:
    return optional.package("tifffile", "this TIFF")


def _tiles(planes: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """The tiles of (N, H, W) or (N, H, W, C), those at the edge with zeros around."""
    for plane in planes:
        for top, left in product(*(range(0, side, TILE) for side in plane.shape[:2])):
            part = plane[top : top + TILE, left : left + TILE]
            tile = np.zeros((TILE, TILE, *plane.shape[2:]), plane.dtype)
            tile[: part.shape[0], : part.shape[1]] = part
            yield tile


def _options(picture: Picture) -> dict[str, Any]:
    """How tifffile writes a picture."""
    geometry, channels = picture.geometry, len(picture)
    kept = geometry.kept if geometry.format == NAME else {}
    options = {name: kept[name] for name in ("resolution", "resolutionunit") if name in kept}
    if geometry.nodata is not None:
        options["extratags"] = [(NODATA, 2, 0, f"{geometry.nodata:.17g}", True)]
    ome = dict(kept.get("ome", {}))
    if picture.ndim == 4 or ome:
        if not ome and geometry.spacing is not None and len(geometry.spacing) == 3:
            ome = _ome_of(geometry.spacing[::-1], "mm")
        axes = "CZYX" if picture.ndim == 4 else "CYX"
        return {**options, "ome": True, "photometric": "minisblack", "metadata": {**ome, "axes": axes}}
    colours = channels == 3 and picture.dtype.kind == "u"
    options |= {"metadata": None, "photometric": "rgb" if colours else "minisblack"}
    if channels > 1:
        options |= {"planarconfig": "contig", "extrasamples": ["unspecified"] * (channels - (3 if colours else 1))}
    return options


def _series(file: Any) -> Any:
    """The picture of a file, at its full size. Raises ValueError for several of different sizes."""
    first, *others = file.series
    if first.kind in ("generic", "uniform", "shaped"):
        others = [each for each in others if not each.keyframe.subfiletype & SIDE_FILES]
        if others:
            shapes = ", ".join(str(each.shape) for each in (first, *others)[:9])
            raise ValueError(f"it has pictures of several sizes or types, {shapes}: save each as a file of its own")
    return first


def _shape(series: Any) -> tuple[int, ...]:
    """(C, *S) of a file's axes."""
    axes, lengths = series.axes, dict(zip(series.axes, series.shape, strict=True))
    spatial = "ZYX" if "Z" in axes and series.kind in ("ome", "imagej") else "YX"
    if any(axis not in axes for axis in spatial):
        raise ValueError(f"its axes are {axes}, and Y and X are needed")
    for axis, length in lengths.items():
        if length > 1 and axis not in CHANNELS + "ZYX":
            what = f"{length} times" if axis == "T" else f"{length} along its axis {axis}"
            raise ValueError(f"it has {what}: save each as a file of its own")
    sides = tuple(lengths[axis] for axis in spatial)
    return math.prod(series.shape) // math.prod(sides), *sides


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
    array = np.stack(pages).reshape(*numbers.shape, *pages[0].shape)
    return "".join(axes[i] for i in leading) + "SYXs", array


def _page(page: Any, first: Any, rows: slice, columns: slice, size: int) -> npt.NDArray[Any]:
    """(planes, rows, columns, samples) of a page, whose strips or tiles lie as those of the first."""
    if page is None:
        raise ValueError("it lacks a page, or names another file that has it")
    planes, depth, height, width, samples = first.shaped
    if depth != 1:
        raise ValueError("it has tiles of three axes, which are not read")
    down, across = (first.tilelength, first.tilewidth) if first.is_tiled else (min(first.rowsperstrip, height), width)
    formats.check_cost((down, across, samples), np.dtype(first.dtype), size * formats.RATIO)
    options = {"jpegtables": page.jpegtables, "jpegheader": first.jpegheader} if first.compression in JPEG else {}
    array = np.full((planes, *formats.lengths((rows, columns)), samples), first.nodata, first.dtype)
    grid = np.arange(len(page.dataoffsets)).reshape(planes, -(-height // down), -(-width // across))
    touched = grid[:, rows.start // down : -(-rows.stop // down), columns.start // across : -(-columns.stop // across)]
    for index in touched.ravel().tolist():
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        if count == 0:
            continue  # a tile that was left out
        if offset + count > size:
            raise ValueError(f"strip or tile {index} ends at byte {offset + count} of {size}: it is truncated")
        page.parent.filehandle.seek(offset)
        data = page.parent.filehandle.read(count)
        segment, (at, _, top, left, _), (_, tall, wide, _) = first.decode(data, index, _fullsize=False, **options)
        begin, end = max(top, rows.start), min(top + tall, rows.stop)
        start, stop = max(left, columns.start), min(left + wide, columns.stop)
        target = array[at, begin - rows.start : end - rows.start, start - columns.start : stop - columns.start]
        target[...] = segment[0, begin - top : end - top, start - left : stop - left]
    return array


def _geometry(file: Any, page: Any, shape: tuple[int, ...]) -> Geometry:
    kept, axes = dict[str, Any](), len(shape) - 1
    resolution = [page.tags.get(name) for name in ("XResolution", "YResolution")]
    if all(resolution):
        kept = {"resolution": tuple(tag.value for tag in resolution), "resolutionunit": int(page.resolutionunit)}
    ome = dict[str, Any]()
    if file.is_ome and file.ome_metadata:  # sizes and their units, as tifffile writes them
        image = _package().xml2dict(file.ome_metadata)["OME"]["Image"]
        pixels = (image[0] if isinstance(image, list) else image)["Pixels"]
        ome = {name: pixels[name] for name in (*SIZES, *(f"{size}Unit" for size in SIZES)) if name in pixels}
    elif file.is_imagej:
        content = file.imagej_metadata or {}
        unit = IMAGEJ_UNITS.get(content.get("unit", ""))
        lengths = [below / above if above else 0.0 for above, below in kept.get("resolution", ())]
        lengths = [*lengths, content.get("spacing", 1.0)][:axes]
        if len(lengths) == axes and all(lengths) and (unit is not None or axes == 3):
            ome = _ome_of(lengths, unit)
    kept |= {"ome": ome} if ome or file.is_ome else {}
    spacing: list[Any] = [ome.get(name) for name in SIZES[:axes]]  # x, y, z
    affine = as_affine(np.diag(spacing), np.zeros(axes)) if all(spacing) else None
    return Geometry(affine, NAME, kept, float(page.nodata) if NODATA in page.tags else None)


def _ome_of(lengths: Sequence[float], unit: str | None) -> dict[str, Any]:
    """OME's pixel sizes of the lengths along x, y and z."""
    found = dict(zip(SIZES, lengths, strict=False))
    return found | ({} if unit is None else {f"{name}Unit": unit for name in found})
