"""TIFF by tifffile: any bits, floats, bands and pages; windows read only the strips or tiles that they touch.

The axes of a file are those that tifffile names. X, Y and, in OME and ImageJ files, Z are spatial; samples,
channels and other pages of one shape are channels, in the file's order. Several times are a third axis in the
place of Z; several times of several planes are refused.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bbdm.base import optional
from bbdm.pictures import windows
from bbdm.pictures.picture import Geometry, Header, Picture, as_affine
from bbdm.pictures.values import holds

tifffile: Any = optional.package("tifffile", "this TIFF")
# What it logs of nodata such as "255.0", which is read here, or warned of
logging.getLogger("tifffile").addFilter(lambda record: "GDAL_NODATA" not in record.getMessage())
ALONE = {"_multifile": False}  # without further files that OME can name
NAME = "tiff"
CHANNELS = "CSIQ"  # axes that become channels: channels, samples, pages, and those without a name
SPATIAL = "ZYX"
SEQUENCE = "TYX"  # the axes of several times, in the place of the spatial ones
JPEG = (6, 7, 33007, 34892)  # compressions whose segments need the tables of the page
USUAL = "ADOBE_DEFLATE"  # the compression of results whose sources have a lossy or a rare one
LOSSLESS = (USUAL, "LZW", "PACKBITS", "ZSTD", "LZMA")  # that a result takes from its source
SIZES = ("PhysicalSizeX", "PhysicalSizeY", "PhysicalSizeZ")  # of a pixel, in OME
SIZE_UNITS = tuple(f"{size}Unit" for size in SIZES)
IMAGEJ_UNITS = {
    "micron": "µm",
    "um": "µm",
    "\\u00B5m": "µm",
    "µm": "µm",
    "nm": "nm",
    "mm": "mm",
    "cm": "cm",
    "m": "m",
    "inch": "in",
}
SECONDS = {"µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}  # of OME's units of time
PIXEL = "pixel"  # OME's unit of lengths that only have ratios
# begins the first line of the description of a picture that has a unit
VALUE_UNIT = "unit of values: "
TILE = 256  # the side of written tiles
TILED = 2**22  # values from which on a picture is written in tiles
CLASSIC = 2**32 - 2**25  # bytes of values that a classic TIFF holds
DESCRIPTION = 270  # tags: a text,
ORIENTATION = 274  # where the first row and column are seen,
NODATA = 42113  # and the value that stands for none, as GDAL writes it
UPRIGHT = 1
WHITE_IS_0 = 0  # what values mean
PALETTE = 3
YCBCR = 6
SIDE_FILES = 1 | 4  # kinds of pages besides the picture: reduced copies, masks

Array = npt.NDArray[Any]


def header(path: Path) -> Header:
    """The header of a picture (C, H, W), a volume (C, D, H, W) or a sequence (C, T, H, W).

    ``geometry.kept`` has, where the file has them, resolution and resolutionunit, ome: pixel sizes and their
    units, descriptions: names of channels, compression, and seconds from one time to the next; of a
    sequence depth, t.

    Raises:
        ValueError: it is damaged or not upright, has several pictures, several times of several planes, a
            palette or pages of several sizes; or of 8 bits, white is 0.
    """
    with tifffile.TiffFile(path, **ALONE) as file:
        series = file.series[0]
        _check(file, series)
        page = series.keyframe
        lengths = dict(zip(series.axes, series.shape, strict=True))
        axes = _spatial(series)
        sides = [lengths[axis] for axis in axes]
        channels = math.prod(series.shape) // math.prod(sides)
        dtype = np.dtype(series.dtype).newbyteorder(file.byteorder)
        size = path.stat().st_size
        offset = series.dataoffset
        stored = None
        windowed = True
        most = size * windows.RATIO
        if offset is None:
            windowed = math.prod(page.chunked) * len(series) > 1
        else:
            stored = (dtype, offset, series.shape, series.axes)
            most = size - offset
        geometry = _geometry(file, page, channels, axes, dtype, path)
        shape = (channels, *sides)
        return Header(path, shape, dtype, geometry, windowed, most, stored=stored, unit=_unit(file))


def read(header: Header, window: tuple[slice, ...]) -> Array:
    """(C, *W) of a window; mapped into memory where the values lie in one piece."""
    names = SEQUENCE if header.geometry.kept.get("depth") == "t" else SPATIAL
    spatial = dict(zip(names[-len(window) :], window, strict=True))
    if header.stored:
        dtype, offset, shape, axes = header.stored
        array = windows.mapped(header.path, dtype, offset, shape)
        array = array[tuple(spatial.get(axis, slice(None)) for axis in axes)]
    else:
        with tifffile.TiffFile(header.path, **ALONE) as file:
            axes, array = _decoded(file.series[0], spatial, header)
    of_channels = [i for i, axis in enumerate(axes) if axis not in spatial]
    of_space = [axes.index(axis) for axis in spatial]
    array = array.transpose(of_channels + of_space)
    array = array.reshape(header.shape[0], *windows.lengths(window))
    return np.asarray(array, header.dtype)


def write(path: Path, picture: Picture) -> None:
    """Write (C, H, W) with interleaved bands, or as OME-TIFF (C, D, H, W), (C, T, H, W) and OME's entries.

    A large picture is written tile after tile; BigTIFF where 4 GiB need it.
    """
    array = np.asarray(picture)
    options = _options(picture)
    interleaved = array.ndim == 3 and len(array) > 1 and "ome" not in options
    if interleaved:
        samples = 1
        if len(array) == 3 and array.dtype.kind == "u":
            samples = 3
            options["photometric"] = "rgb"
        options["planarconfig"] = "contig"
        options["extrasamples"] = ["unspecified"] * (len(array) - samples)
        array = array.transpose(1, 2, 0)
    elif "ome" not in options:
        array = array[0]
    if array.size < TILED:
        tifffile.imwrite(path, array, **options)
        return
    planes = array[None] if interleaved else array.reshape(-1, *array.shape[-2:])
    options["tile"] = (TILE, TILE)
    tifffile.imwrite(path, _tiles(planes), shape=array.shape, dtype=array.dtype, **options)


def _check(file: Any, series: Any) -> None:
    """Raise ValueError where several pictures are in a file, or values would be read wrongly."""
    page = series.keyframe
    narrow = page.bitspersample <= 8
    others = [other for other in file.series[1:] if not other.keyframe.subfiletype & SIDE_FILES]
    orientation = page.tags.get(ORIENTATION)
    usual = CHANNELS + (SEQUENCE if _spatial(series) == SEQUENCE else SPATIAL)
    strange = [length > 1 and axis not in usual for axis, length in _axes(series)]
    reason = ""
    if others and series.kind == "ome":
        reason = f"{1 + len(others)} images"
    elif others and series.kind in ("generic", "uniform", "shaped"):
        sizes = [series.shape, *(other.shape for other in others[:8])]
        reason = f"pictures of several sizes or types, {', '.join(map(str, sizes))}"
    elif any(strange):
        reason = "several times of several planes, or other axes"
    elif page.photometric == PALETTE:
        reason = "values that are indices of a palette"
    elif page.photometric == YCBCR and page.compression not in JPEG:
        reason = "values of luminance and colour difference"
    elif narrow and page.photometric == WHITE_IS_0:
        reason = "values of which 0 is white"
    elif page.bitspersample < 8:
        reason = "values of fewer than 8 bits"
    elif orientation is not None and orientation.value != UPRIGHT:
        reason = "values that are turned by a tag"
    if reason:
        raise ValueError(
            f"it has {reason}: save each picture as a file of its own, upright grey or RGB, 0 for black"
        )


def _spatial(series: Any) -> str:
    """The axes that are no channels, in their order: YX, of a volume ZYX, of a sequence TYX."""
    lengths = dict(_axes(series))
    if lengths.get("T", 1) > 1:
        return SEQUENCE
    if "Z" in lengths and series.kind in ("ome", "imagej"):
        return SPATIAL
    return SPATIAL[1:]


def _axes(series: Any) -> list[tuple[str, int]]:
    """The names and lengths of a series' axes."""
    return list(zip(series.axes, series.shape, strict=True))


def _decoded(series: Any, window: dict[str, slice], header: Header) -> tuple[str, Array]:
    """Axes and values of a window, of pages that are cut into strips or tiles."""
    of_pages = [(axis, length) for axis, length in _axes(series) if axis not in "SYX"]
    numbers = np.arange(len(series)).reshape([length for _, length in of_pages])
    numbers = numbers[tuple(window.get(axis, slice(None)) for axis, _ in of_pages)]
    grid = Grid.of(series.keyframe)
    pages = [
        _page(series[int(number)], series.keyframe, grid, window, header) for number in numbers.flat
    ]
    array = np.stack(pages).reshape(*numbers.shape, *pages[0].shape)
    axes = "".join(axis for axis, _ in of_pages)
    return f"{axes}SYXs", array


class Grid(NamedTuple):
    """How a page is cut into strips or tiles, in pixels."""

    planes: int
    height: int
    width: int
    samples: int  # that lie side by side
    down: int  # the height of a strip or tile
    across: int  # its width

    @classmethod
    def of(cls, page: Any) -> Grid:
        """The grid of a page, as all pages of its series have it."""
        planes, _, height, width, samples = page.shaped
        if page.is_tiled:
            return cls(planes, height, width, samples, page.tilelength, page.tilewidth)
        return cls(planes, height, width, samples, min(page.rowsperstrip, height), width)

    def touched(self, rows: slice, columns: slice) -> list[int]:
        """The numbers of the strips or tiles of all planes that a window touches."""
        high = -(-self.height // self.down)
        wide = -(-self.width // self.across)
        numbers = np.arange(self.planes * high * wide).reshape(self.planes, high, wide)
        first_row = rows.start // self.down
        last_row = -(-rows.stop // self.down)
        first_column = columns.start // self.across
        last_column = -(-columns.stop // self.across)
        return numbers[:, first_row:last_row, first_column:last_column].ravel().tolist()


def _page(page: Any, first: Any, grid: Grid, window: dict[str, slice], header: Header) -> Array:
    """(planes, rows, columns, samples) of a page, which is encoded as the first of its series."""
    size = header.path.stat().st_size
    rows = window["Y"]
    columns = window["X"]
    windows.check_cost(
        (grid.down, grid.across, grid.samples), np.dtype(first.dtype), size * windows.RATIO
    )
    options = {}
    if first.compression in JPEG:
        options = {"jpegtables": page.jpegtables, "jpegheader": first.jpegheader}
    shape = (grid.planes, *windows.lengths((rows, columns)), grid.samples)
    fill = 0 if header.nodata is None else header.nodata  # of tiles that were left out
    array = np.full(shape, fill, first.dtype)
    for index in grid.touched(rows, columns):
        data = _segment(page, index, size)
        if data is None:
            continue
        segment, (plane, _, top, left, _), (_, high, wide, _) = first.decode(
            data, index, _fullsize=False, **options
        )
        begin = max(top, rows.start)
        end = min(top + high, rows.stop)
        start = max(left, columns.start)
        stop = min(left + wide, columns.stop)
        target = array[
            plane,
            begin - rows.start : end - rows.start,
            start - columns.start : stop - columns.start,
        ]
        target[...] = segment[0, begin - top : end - top, start - left : stop - left]
    return array


def _segment(page: Any, index: int, size: int) -> bytes | None:
    """The bytes of a strip or tile; None of a tile that was left out. ValueError if the file is cut off."""
    if index >= len(page.dataoffsets):
        raise ValueError(
            f"its list of strips or tiles ends at {len(page.dataoffsets)}: it is damaged"
        )
    offset = page.dataoffsets[index]
    count = page.databytecounts[index]
    if count == 0:
        return None
    if offset + count > size:
        raise ValueError(
            f"strip or tile {index} ends at byte {offset + count} of {size}: it is truncated"
        )
    page.parent.filehandle.seek(offset)
    return page.parent.filehandle.read(count)


def _geometry(
    file: Any, page: Any, channels: int, axes: str, dtype: np.dtype[Any], path: Path
) -> Geometry:
    kept: dict[str, Any] = {}
    spatial = axes.replace("T", "")
    seconds = 0.0
    resolution = [page.tags.get(name) for name in ("XResolution", "YResolution")]
    if all(resolution):
        kept["resolution"] = tuple(tag.value for tag in resolution)
        kept["resolutionunit"] = int(page.resolutionunit)
    ome: dict[str, Any] = {}
    if file.is_ome and file.ome_metadata:
        pixels = _ome_image(file)["Pixels"]
        seconds = float(pixels.get("TimeIncrement", 0)) * SECONDS.get(
            pixels.get("TimeIncrementUnit", "s"), 0
        )
        ome = {name: pixels[name] for name in (*SIZES, *SIZE_UNITS) if name in pixels}
        names = _channel_names(pixels)
        if len(names) == channels and any(names):
            kept["descriptions"] = names
    elif file.is_imagej:
        content = file.imagej_metadata or {}
        seconds = float(content.get("finterval", 0))
        ome = _imagej_sizes(content, kept.get("resolution", ()), len(spatial))
    if ome:
        kept["ome"] = ome
    compression = page.compression.name
    if compression != "NONE":
        kept["compression"] = compression if compression in LOSSLESS else USUAL
    spacing = [ome.get(name, 0) for name in SIZES[: len(spatial)]]  # x, y, z
    if axes == SEQUENCE:
        kept["depth"] = "t"
        spacing.append(seconds or 1.0)
        if seconds > 0:
            kept["seconds"] = seconds
    affine = as_affine(np.diag(spacing), np.zeros(len(spacing))) if all(spacing) else None
    return Geometry(affine, NAME, kept, _nodata(page, dtype, path))


def _nodata(page: Any, dtype: np.dtype[Any], path: Path) -> float | None:
    """The value that stands for none; None without one, and, with a warning, of one that no value can be."""
    tag = page.tags.get(NODATA)
    if tag is None:
        return None
    text = str(tag.value).strip(" \0")
    try:
        nodata = float(text)
    except ValueError:
        nodata = None
    if nodata is None or not holds(dtype, nodata):
        warnings.warn(
            f"{path}: its nodata {text!r} is no value of {dtype.name}, so all pixels have values",
            stacklevel=2,
        )
        return None
    return nodata


def _unit(file: Any) -> str:
    """The unit of values, as :func:`write` puts it into a description."""
    description = file.pages.first.description
    if file.is_ome and file.ome_metadata:
        description = str(_ome_image(file).get("Description", ""))
    if not description.startswith(VALUE_UNIT):
        return ""
    return description.removeprefix(VALUE_UNIT).splitlines()[0]


def _ome_image(file: Any) -> dict[str, Any]:
    """OME's entry of the first image."""
    image = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
    return image[0] if isinstance(image, list) else image


def _channel_names(pixels: dict[str, Any]) -> tuple[str, ...]:
    """The names of OME's channels, "" for those without."""
    channels = pixels.get("Channel", [])
    if not isinstance(channels, list):
        channels = [channels]
    return tuple(str(channel.get("Name", "")) for channel in channels if isinstance(channel, dict))


def _imagej_sizes(
    content: dict[str, Any], resolution: Sequence[tuple[int, int]], axes: int
) -> dict[str, Any]:
    """OME's pixel sizes of what ImageJ says; nothing where a length is missing, or the unit is unknown."""
    text = str(content.get("unit", ""))
    unit = IMAGEJ_UNITS.get(text)
    if axes == 3 and text in ("", PIXEL):
        unit = PIXEL
    if unit is None:
        return {}
    lengths = [pixels_of / units if units else 0.0 for units, pixels_of in resolution]
    lengths = [*lengths, content.get("spacing", 1.0)][:axes]
    if len(lengths) < axes or not all(lengths):
        return {}
    return _ome_sizes(lengths, unit)


def _ome_sizes(lengths: Sequence[float], unit: str) -> dict[str, Any]:
    """OME's pixel sizes of the lengths along x, y and z."""
    sizes: dict[str, Any] = dict(zip(SIZES, lengths, strict=False))
    return sizes | dict.fromkeys(SIZE_UNITS[: len(lengths)], unit)


def _options(picture: Picture) -> dict[str, Any]:
    """The arguments of tifffile for a picture; ``ome`` is among them where it becomes an OME-TIFF."""
    geometry = picture.geometry
    kept = geometry.kept if geometry.format == NAME else {}
    options: dict[str, Any] = {
        name: kept[name] for name in ("resolution", "resolutionunit") if name in kept
    }
    options["metadata"] = None
    options["photometric"] = "minisblack"
    options["bigtiff"] = picture.nbytes > CLASSIC
    if "compression" in kept:
        options["compression"] = kept["compression"]
    if geometry.nodata is not None:
        options["extratags"] = [(NODATA, 2, 0, f"{geometry.nodata:.17g}", True)]
    sequence = picture.ndim == 4 and geometry.kept.get("depth") == "t"
    volume = picture.ndim == 4 and not sequence
    sizes = kept.get("ome", {})
    if volume and not sizes and geometry.spacing is not None and len(geometry.spacing) == 3:
        sizes = _ome_sizes(geometry.spacing[::-1], "mm")
    lines: list[str] = []  # of the description
    if picture.unit:
        lines.append(f"{VALUE_UNIT}{picture.unit}")
    if geometry.derivation is not None:
        lines.append(geometry.derivation.text)
    names = kept.get("descriptions", ())
    if len(names) != len(picture):
        names = ()
    if picture.ndim == 4 or sizes or names:
        options["ome"] = True
        options["metadata"] = {**sizes, "axes": "CYX"}
        if volume:
            options["metadata"]["axes"] = f"C{SPATIAL}"
        if sequence:
            options["metadata"]["axes"] = f"C{SEQUENCE}"
        if sequence and "seconds" in geometry.kept:
            options["metadata"]["TimeIncrement"] = geometry.kept["seconds"]
            options["metadata"]["TimeIncrementUnit"] = "s"
        if names:
            options["metadata"]["Channel"] = {"Name": list(names)}
        if lines:
            options["metadata"]["Description"] = "\n".join(lines)
    elif lines:
        options["description"] = "\n".join(lines).encode()
    return options


def _tiles(planes: Array) -> Iterator[Array]:
    """The tiles of (planes, H, W) or (1, H, W, samples), in a file's order."""
    height, width = planes.shape[1:3]
    for plane in planes:
        for top in range(0, height, TILE):
            for left in range(0, width, TILE):
                yield plane[top : top + TILE, left : left + TILE]
