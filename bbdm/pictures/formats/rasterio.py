"""TIFF with a place on Earth, by rasterio: windows, bands, and what the file says of place, bands and scene.

The affine maps (row, column) to the world's (x, y). As in GDAL, (0, 0) is the corner of the first pixel.
"""

from __future__ import annotations

import errno
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.base import optional
from bbdm.pictures import windows
from bbdm.pictures.derivation import NAME as DERIVATION
from bbdm.pictures.picture import Affine, Geometry, Header, Picture, as_affine

rasterio: Any = optional.package("rasterio", "a GeoTIFF")
NAME = "geotiff"
TILE = 256  # the side of written tiles, whose rows are written at once
CACHE = 2**26  # bytes of written tiles that GDAL keeps; a share of all memory if unset
# compressions that a result takes from its source
LOSSLESS = ("deflate", "lzw", "zstd", "lzma", "packbits")
UNSCALED = (1, 0)  # scale and offset of a band without
OF_VALUES = "STATISTICS_"  # begins the names of tags that are of other values than a result's


def header(path: Path) -> Header:
    """The header of a picture (bands, H, W).

    ``geometry.kept`` has crs (WKT) and the compression of results; where the file has them gcps, rows (row,
    column, x, y, z), and their gcps_crs, rpcs by GDAL's names, tags, and of bands descriptions, band_tags,
    scales and offsets; and masked, where it has a mask.

    Raises:
        ValueError: it is damaged, or bands have several types.
    """
    with _opened(path) as file:
        types = sorted(set(file.dtypes))
        if len(types) > 1:
            raise ValueError(
                f"its bands have several types, {', '.join(types)}: save those of one as a file"
            )
        dtype = np.dtype(types[0])
        kept = _kept(file)
        if "scales" in kept:
            _warn_of_scales(path, kept["scales"], kept["offsets"])
        nodata = file.nodata
        if kept.get("masked") and nodata is None:
            nodata = _nodata_of_mask(dtype)
        windowed = any(block != file.shape for block in file.block_shapes)
        most = windows.RATIO * path.stat().st_size
        units = set(file.units)
        unit = units.pop() if len(units) == 1 else None
        geometry = Geometry(_affine(file.transform), NAME, kept, nodata)
        shape = (file.count, file.height, file.width)
        return Header(path, shape, dtype, geometry, windowed, most, unit=unit or "")


def read(header: Header, window: tuple[slice, ...]) -> npt.NDArray[Any]:
    """(C, *W) of a window, of which only strips or tiles that it touches are decoded.

    Where the file has a mask, pixels outside have the geometry's nodata. Where that is not the file's own, a
    pixel inside with this value has the next higher one.
    """
    with _opened(header.path) as file:
        part = tuple((side.start, side.stop) for side in window)
        array = file.read(window=part)
        if header.geometry.kept.get("masked"):
            inside = file.read_masks(1, window=part) != 0
            nodata = array.dtype.type(header.geometry.nodata)
            if file.nodata is None:
                array[array == nodata] += 1
            array[:, ~inside] = nodata
        return array


def write(path: Path, picture: Picture) -> None:
    """Write (C, H, W) as a GeoTIFF in compressed tiles, row after row of them.

    Raises:
        OSError: the file is not what was written, such as on a full disk.
    """
    geometry = picture.geometry
    kept = geometry.kept if geometry.format == NAME else {}
    array = np.asarray(picture)
    channels, height, width = array.shape
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "count": channels,
        "height": height,
        "width": width,
        "dtype": array.dtype.name,
        "tiled": True,
        "blockxsize": TILE,
        "blockysize": TILE,
        "compress": kept.get("compression", LOSSLESS[0]),
        "bigtiff": "if_safer",
        "nodata": geometry.nodata,
        "crs": kept.get("crs"),
    }
    if channels != 3:
        profile["photometric"] = "minisblack"
    steps = geometry.steps(2)
    if steps is not None:
        profile["transform"] = rasterio.Affine(*np.column_stack(steps).ravel().tolist())
    with _opened(path, "w", **profile) as file:
        _write_kept(file, kept, geometry.start)
        if geometry.derivation is not None:
            file.update_tags(**{DERIVATION: geometry.derivation.text})
        if picture.unit:
            file.units = [picture.unit] * channels
        for rows in _rows_of_tiles(height):
            file.write(array[:, slice(*rows)], window=(rows, (0, width)))
    if not _holds(path, array):
        raise OSError(errno.EIO, "what was written cannot be read again, as on a full disk")


def _rows_of_tiles(height: int) -> Iterator[tuple[int, int]]:
    """The first row of each row of tiles, and the row behind its last."""
    for top in range(0, height, TILE):
        yield top, min(top + TILE, height)


def _holds(path: Path, array: npt.NDArray[Any]) -> bool:
    """Whether a file has the values of an array (C, H, W); GDAL does not say what fails as it closes one."""
    try:
        with _opened(path) as file:
            for rows in _rows_of_tiles(array.shape[1]):
                stored = file.read(window=(rows, (0, array.shape[2])))
                if stored.tobytes() != array[:, slice(*rows)].tobytes():
                    return False
    except rasterio.errors.RasterioError:
        return False
    return True


def _affine(transform: Any) -> Affine | None:
    """The affine of a transform from (column, row) to (x, y); None where the file has none."""
    if transform.is_identity:
        return None
    a, b, c, d, e, f = tuple(transform)[:6]
    return as_affine([[a, b], [d, e]], [c, f])


def _nodata_of_mask(dtype: np.dtype[Any]) -> float:
    """What stands outside a mask: NaN, or the least value of integers."""
    return float("nan") if dtype.kind == "f" else float(np.iinfo(dtype).min)


def _warn_of_scales(path: Path, scales: Sequence[float], offsets: Sequence[float]) -> None:
    """Say that values are the stored ones, where a file says how to compute others from them."""
    scaled = [pair for pair in zip(scales, offsets, strict=True) if pair != UNSCALED]
    scale, offset = scaled[0]
    text = f"{path}: bands have a scale of {scale:g} and an offset of {offset:g}, which are not applied"
    warnings.warn(f"{text}: ranges of values are of the stored numbers", stacklevel=2)


def _kept(file: Any) -> dict[str, Any]:
    """What a file says besides its values and affine; see :func:`header`."""
    kept: dict[str, Any] = {"crs": file.crs.to_wkt() if file.crs else None}
    points, crs = file.gcps
    if points:
        kept["gcps"] = tuple((point.row, point.col, point.x, point.y, point.z) for point in points)
        kept["gcps_crs"] = crs.to_wkt() if crs else None
    if file.rpcs:
        kept["rpcs"] = file.rpcs.to_gdal()
    if any(pair != UNSCALED for pair in zip(file.scales, file.offsets, strict=True)):
        kept["scales"] = file.scales
        kept["offsets"] = file.offsets
    if any(file.descriptions):
        kept["descriptions"] = tuple(file.descriptions)
    tags = _lasting(file.tags())
    if tags:
        kept["tags"] = tags
    band_tags = tuple(_lasting(file.tags(band)) for band in file.indexes)
    if any(band_tags):
        kept["band_tags"] = band_tags
    compression = getattr(file.compression, "name", "").lower()
    kept["compression"] = compression if compression in LOSSLESS else LOSSLESS[0]
    flags = file.mask_flag_enums[0]
    of_dataset = rasterio.enums.MaskFlags.per_dataset in flags
    if of_dataset and rasterio.enums.MaskFlags.alpha not in flags:
        kept["masked"] = True
    return kept


def _lasting(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags that are not of values, nor what made them."""
    return {
        name: text for name, text in tags.items() if not name.startswith((OF_VALUES, DERIVATION))
    }


def _write_kept(file: Any, kept: Mapping[str, Any], start: tuple[int, ...]) -> None:
    """Write tags, ground control points, RPCs and, of as many bands, what is of bands."""
    top, left = start or (0, 0)
    if "rpcs" in kept:
        rpcs = rasterio.rpc.RPC.from_gdal(kept["rpcs"])
        rpcs.line_off -= top
        rpcs.samp_off -= left
        file.rpcs = rpcs
    if "gcps" in kept:
        points: list[Any] = []
        for row, column, x, y, z in kept["gcps"]:
            point = rasterio.control.GroundControlPoint(row - top, column - left, x, y, z)
            points.append(point)
        crs = kept["gcps_crs"]
        file.gcps = points, rasterio.CRS.from_wkt(crs) if crs else rasterio.CRS()
    file.update_tags(**kept.get("tags", {}))
    descriptions = kept.get("descriptions", ())
    if len(descriptions) == file.count:
        file.descriptions = descriptions
    if len(kept.get("scales", ())) == file.count:
        file.scales = kept["scales"]
        file.offsets = kept["offsets"]
    band_tags = kept.get("band_tags", ())
    if len(band_tags) == file.count:
        for band, tags in zip(file.indexes, band_tags, strict=True):
            file.update_tags(band, **tags)


@contextmanager
def _opened(path: Path, mode: str = "r", **profile: Any) -> Iterator[Any]:
    """A file. GDAL looks at no other one, and does not warn of a picture without a place."""
    settings = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_CACHEMAX": CACHE}
    profile.setdefault("driver", "GTiff")
    with rasterio.Env(**settings), warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, mode, **profile) as file:
            yield file
