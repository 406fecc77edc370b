"""TIFF by tifffile: any bits, floats, bands and pages; windows read only the strips or tiles that they touch.

The axes of a file are those that tifffile names. X, Y and, in OME and ImageJ files, Z are spatial; samples,
channels and other pages of one shape are channels, in the file's order. Several times are refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.base import optional
from bbdm.pictures import formats
from bbdm.pictures.picture import Geometry, Header, Picture, as_affine

tifffile: Any = optional.package("tifffile", "this TIFF")
ALONE = {"_multifile": False}  # without further files that OME can name
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
        ValueError: it is damaged, or has a palette, several times, or pages of several sizes; or of 8 bits,
            white is 0, or it is not upright.
    """
    with tifffile.TiffFile(path, **ALONE) as file:
        series, size = file.series[0], path.stat().st_size
        _check(file, series)
        page, offset, lengths = series.keyframe, series.dataoffset, dict(zip(series.axes, series.shape, strict=True))
        sides = [lengths[axis] for axis in ("ZYX" if "Z" in lengths and series.kind in ("ome", "imagej") else "YX")]
        shape = math.prod(series.shape) // math.prod(sides), *sides
        dtype = np.dtype(series.dtype).newbyteorder(file.byteorder)
        windowed = offset is not None or math.prod(page.chunked) * len(series) > 1
        stored = None if offset is None else (dtype, offset, series.shape, series.axes)
        most = size * formats.RATIO if offset is None else size - offset
        return Header(path, shape, dtype, _geometry(file, page, len(sides)), windowed, most, stored=stored)


def read(header: Header, window: tuple[slice, ...]) -> npt.NDArray[Any]:
    """(C, *W) of a window; mapped into memory where the values lie in one piece."""
    spatial = dict(zip("ZYX"[-len(window) :], window, strict=True))
    if header.stored:
        dtype, offset, shape, axes = header.stored
        array = formats.mapped(header.path, dtype, offset, shape)
        array = array[tuple(spatial.get(axis, slice(None)) for axis in axes)]
    else:
        with tifffile.TiffFile(header.path, **ALONE) as file:
            axes, array = _decoded(file.series[0], spatial, header.path.stat().st_size)
    ordered = [i for i, axis in enumerate(axes) if axis not in spatial] + [axes.index(axis) for axis in spatial]
    array = array.transpose(ordered).reshape(header.shape[0], *formats.lengths(window))
    return np.asarray(array, header.dtype)


def write(path: Path, picture: Picture) -> None:
    """Write (C, H, W) with interleaved bands, or as OME-TIFF (C, D, H, W) and what has OME's entries.

    A large picture is written tile after tile; BigTIFF where 4 GiB need it.
    """
    array, geometry = np.asarray(picture), picture.geometry
    kept = geometry.kept if geometry.format == NAME else {}
    options: dict[str, Any] = {name: kept[name] for name in ("resolution", "resolutionunit") if name in kept}
    options |= {"metadata": None, "photometric": "minisblack", "bigtiff": array.nbytes > CLASSIC}
    if geometry.nodata is not None:
        options["extratags"] = [(NODATA, 2, 0, f"{geometry.nodata:.17g}", True)]
    ome, interleaved = kept.get("ome"), False
    if array.ndim == 4 or ome:
        spacing = geometry.spacing if array.ndim == 4 else None
        ome = ome or (_ome_of(spacing[::-1], "mm") if spacing is not None and len(spacing) == 3 else {})
        options |= {"ome": True, "metadata": {**ome, "axes": "CZYX" if array.ndim == 4 else "CYX"}}
    elif interleaved := len(array) > 1:
        colours = len(array) == 3 and array.dtype.kind == "u"
        options |= {"photometric": "rgb"} if colours else {}
        options |= {"planarconfig": "contig", "extrasamples": ["unspecified"] * (len(array) - (3 if colours else 1))}
        array = array.transpose(1, 2, 0)
    else:
        array = array[0]
    if array.size < TILED:
        return tifffile.imwrite(path, array, **options)
    corners = [range(0, side, TILE) for side in picture.sides[-2:]]
    planes = array[None] if interleaved else array.reshape(-1, *array.shape[-2:])
    tiles = (plane[y : y + TILE, x : x + TILE] for plane in planes for y, x in product(*corners))
    tifffile.imwrite(path, tiles, shape=array.shape, dtype=array.dtype, tile=(TILE, TILE), **options)


def _check(file: Any, series: Any) -> None:
    """Raise ValueError where several pictures are in a file, or values would be read wrongly."""
    page, kind, axes = series.keyframe, series.kind, zip(series.axes, series.shape, strict=True)
    others = file.series[1:] if kind in ("generic", "uniform", "shaped") else []
    sizes = [each.shape for each in others if not each.keyframe.subfiletype & SIDE_FILES]
    turn, narrow = page.tags.get(TURN), page.bitspersample <= 8
    wrong = {
        f"pictures of several sizes or types, {series.shape}, {str(sizes[:8])[1:-1]}": bool(sizes),
        "several times, or other axes": any(length > 1 and axis not in CHANNELS + "ZYX" for axis, length in axes),
        "values that are indices of a palette": page.photometric == PALETTE,
        "values of luminance and colour difference": page.photometric == YCBCR and page.compression not in JPEG,
        "values of which 0 is white": narrow and page.photometric == WHITE_IS_0,
        "values of fewer than 8 bits": page.bitspersample < 8,
        "values that are turned by a tag": narrow and turn is not None and turn.value != 1,
    }
    for reason in (reason for reason, found in wrong.items() if found):
        raise ValueError(f"it has {reason}: save each picture as a file of its own, upright grey or RGB, 0 for black")


def _decoded(series: Any, window: dict[str, slice], size: int) -> tuple[str, npt.NDArray[Any]]:
    """Axes and values of a window, of pages that are cut into strips or tiles."""
    leading = [(axis, length) for axis, length in zip(series.axes, series.shape, strict=True) if axis not in "SYX"]
    numbers = np.arange(len(series)).reshape([length for _, length in leading])
    numbers = numbers[tuple(window.get(axis, slice(None)) for axis, _ in leading)]
    pages = [_page(series[int(number)], series.keyframe, window["Y"], window["X"], size) for number in numbers.flat]
    array = np.stack(pages).reshape(*numbers.shape, *pages[0].shape)
    return "".join(axis for axis, _ in leading) + "SYXs", array


def _page(page: Any, first: Any, rows: slice, columns: slice, size: int) -> npt.NDArray[Any]:
    """(planes, rows, columns, samples) of a page, whose strips or tiles lie as those of the first."""
    planes, _, height, width, samples = first.shaped
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


def _geometry(file: Any, page: Any, axes: int) -> Geometry:
    resolution = [page.tags.get(name) for name in ("XResolution", "YResolution")]
    kept: dict[str, Any] = {}
    if all(resolution):
        kept = {"resolution": tuple(tag.value for tag in resolution), "resolutionunit": int(page.resolutionunit)}
    ome: dict[str, Any] = {}
    if file.is_ome and file.ome_metadata:  # sizes and their units, as tifffile writes them
        image = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
        pixels = (image[0] if isinstance(image, list) else image)["Pixels"]
        ome = {name: pixels[name] for name in (*SIZES, *(f"{size}Unit" for size in SIZES)) if name in pixels}
    elif file.is_imagej:
        content = file.imagej_metadata or {}
        unit = IMAGEJ_UNITS.get(content.get("unit", ""))
        lengths = [below / above if above else 0.0 for above, below in kept.get("resolution", ())]
        lengths = [*lengths, content.get("spacing", 1.0)][:axes]
        if len(lengths) == axes and all(lengths) and (unit is not None or axes == 3):
            ome = _ome_of(lengths, unit)
    kept |= {"ome": ome} if ome else {}
    spacing: list[Any] = [ome.get(name) for name in SIZES[:axes]]  # x, y, z
    affine = as_affine(np.diag(spacing), np.zeros(axes)) if all(spacing) else None
    return Geometry(affine, NAME, kept, float(page.nodata) if NODATA in page.tags else None)


def _ome_of(lengths: Sequence[float], unit: str | None) -> dict[str, Any]:
    """OME's pixel sizes of the lengths along x, y and z."""
    found = dict(zip(SIZES, lengths, strict=False))
    return found | ({} if unit is None else {f"{name}Unit": unit for name in found})
