"""TIFF with a place on Earth, by rasterio: windows, bands, coordinate reference system, affine, nodata, tags.

The affine maps (row, column) to the world's (x, y). As in GDAL, (0, 0) is the corner of the first pixel.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.base import optional
from bbdm.pictures.formats import common
from bbdm.pictures.lazy import Affine, Geometry, LazyPicture, LoadedPicture

NAME = "geotiff"
TILE = 256  # the side of written tiles
ACROSS = 16 * TILE  # columns that are written at once
CACHE = 2**26  # bytes of written tiles that GDAL keeps; a share of all memory if unset
TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")


def open(path: Path) -> LazyPicture:
    """A picture (bands, H, W), of which windows are read.

    ``geometry.kept`` has crs (WKT), nodata, tags, band_tags, descriptions, colors, scales, offsets and units.

    Raises:
        ModuleNotFoundError: rasterio is not installed.
        ValueError: it is damaged, or its values are complex.
    """
    with common.reading(path):
        return _Picture(path)


def write(path: Path, array: npt.NDArray[Any], geometry: Geometry) -> None:
    """Write (C, H, W) as a GeoTIFF in compressed tiles, with what ``geometry`` has of one.

    What is of each band is written where the number of bands is that of the file that was read.

    Raises:
        ModuleNotFoundError: rasterio is not installed.
        ValueError: the format cannot hold the array.
    """
    write_rows(path, LoadedPicture(array, path, geometry))


def write_rows(path: Path, picture: LazyPicture) -> None:
    """Write a picture (C, H, W) as :func:`write` does, some tiles after the other.

    Raises:
        ModuleNotFoundError: rasterio is not installed.
        ValueError: the format cannot hold the picture.
    """
    common.check_held("a GeoTIFF", picture, TYPES, (2,))
    geometry = picture.geometry
    kept = geometry.kept if geometry.format == NAME else {}
    channels, height, width = picture.shape
    profile: dict[str, Any] = {
        "driver": "GTiff",
        **{"count": channels, "height": height, "width": width, "dtype": picture.dtype.name},
        **{"tiled": True, "blockxsize": TILE, "blockysize": TILE, "compress": "deflate", "bigtiff": "if_safer"},
        **({"photometric": "minisblack"} if channels != 3 else {}),
        **{name: kept[name] for name in ("crs",) if kept.get(name) is not None},
        **({} if geometry.nodata is None else {"nodata": geometry.nodata}),
    }
    if geometry.affine is not None and len(geometry.affine) == 3:
        profile["transform"] = _transform(geometry.affine)
    with _quiet(GDAL_CACHEMAX=CACHE) as rasterio, rasterio.open(path, "w", **profile) as file:
        file.update_tags(**kept.get("tags", {}))
        if len(kept.get("colors", ())) == channels:
            file.colorinterp = [rasterio.enums.ColorInterp[name] for name in kept["colors"]]
            for name in ("descriptions", "scales", "offsets", "units"):
                setattr(file, name, kept[name])
            for band, tags in enumerate(kept["band_tags"], start=1):
                file.update_tags(band, **tags)
        for rows, columns in common.windows((height, width), TILE, ACROSS):
            file.write(picture[rows, columns], window=((rows.start, rows.stop), (columns.start, columns.stop)))


def resampled(picture: LazyPicture, like: LazyPicture, nearest: bool) -> npt.NDArray[Any]:
    """(C, H, W) of a picture at the pixels of another, by rasterio."""
    optional.package("rasterio", "a GeoTIFF")
    from rasterio.enums import Resampling
    from rasterio.warp import reproject

    array = picture[()]
    least = array.min() if picture.nodata is None else picture.nodata
    made = np.full((len(array), *like.size), least, array.dtype)
    reproject(
        array,
        made,
        src_transform=_transform(picture.geometry.affine),  # pyright: ignore[reportArgumentType]
        dst_transform=_transform(like.geometry.affine),  # pyright: ignore[reportArgumentType]
        src_crs=picture.geometry.kept["crs"],
        dst_crs=like.geometry.kept["crs"],
        src_nodata=picture.nodata,
        dst_nodata=least,
        resampling=Resampling.nearest if nearest else Resampling.bilinear,
    )
    return made


class _Picture(common.FilePicture):
    def __init__(self, path: Path) -> None:
        self.path = path
        with _quiet() as rasterio, rasterio.open(path, driver="GTiff") as file:
            (self.dtype,) = {common.real(kind) for kind in file.dtypes}
            self.shape = (file.count, file.height, file.width)
            self.nodata = file.nodata
            self.windowed = any(block != self.size for block in file.block_shapes)
            kept = {
                "crs": file.crs.to_wkt() if file.crs else None,
                "tags": file.tags(),
                "band_tags": [file.tags(band) for band in file.indexes],
                "descriptions": file.descriptions,
                "colors": tuple(color.name for color in file.colorinterp),
                **{name: getattr(file, name) for name in ("scales", "offsets", "units")},
            }
            affine = None if file.transform.is_identity else _affine(file.transform)
        self.geometry = Geometry(affine, NAME, kept, self.nodata)

    def _read(self, window: tuple[slice, ...]) -> npt.NDArray[Any]:
        rows, columns = window
        shape = (self.shape[0], *common.lengths(window))
        with _quiet() as rasterio, rasterio.open(self.path, driver="GTiff") as file:
            common.check_cost(shape, self.dtype, self.path.stat().st_size)
            return file.read(window=((rows.start, rows.stop), (columns.start, columns.stop)))


@contextmanager
def _quiet(**settings: Any) -> Iterator[Any]:
    """The package rasterio. GDAL looks at no other file, and that a picture has no place is no news."""
    rasterio = optional.package("rasterio", "a GeoTIFF")
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", **settings), warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        yield rasterio


def _affine(transform: Any) -> Affine:
    """From (row, column, 1) to (x, y, 1), of one from (column, row, 1)."""
    a, b, c, d, e, f = tuple(transform)[:6]
    return common.as_affine([[b, a, c], [e, d, f], [0, 0, 1]])


def _transform(affine: Affine) -> Any:
    (b, a, c), (e, d, f), _ = affine
    return optional.package("affine", "a GeoTIFF").Affine(a, b, c, d, e, f)
