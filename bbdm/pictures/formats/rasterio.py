"""TIFF with a place on Earth, by rasterio: windows, bands, coordinate reference system, affine, nodata.

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
from bbdm.pictures import formats
from bbdm.pictures.picture import Geometry, Header, Picture, as_affine

rasterio: Any = optional.package("rasterio", "a GeoTIFF")
NAME = "geotiff"
TILE = 256  # the side of written tiles, whose rows are written at once
CACHE = 2**26  # bytes of written tiles that GDAL keeps; a share of all memory if unset


def header(path: Path) -> Header:
    """The header of a picture (bands, H, W). ``geometry.kept`` has crs (WKT).

    Raises:
        ValueError: it is damaged, or bands have several types.
    """
    with _opened(path) as file:
        (dtype,) = {np.dtype(kind) for kind in file.dtypes}
        a, b, c, d, e, f = tuple(file.transform)[:6]
        affine = None if file.transform.is_identity else as_affine([[a, b], [d, e]], [c, f])
        windowed = any(block != file.shape for block in file.block_shapes)
        geometry = Geometry(affine, NAME, {"crs": file.crs.to_wkt() if file.crs else None}, file.nodata)
        most = formats.RATIO * path.stat().st_size
        return Header(path, (file.count, file.height, file.width), dtype, geometry, windowed, most)


def read(header: Header, window: tuple[slice, ...]) -> npt.NDArray[Any]:
    """(C, *W) of a window, of which only strips or tiles that it touches are decoded."""
    with _opened(header.path) as file:
        return file.read(window=tuple((part.start, part.stop) for part in window))


def write(path: Path, picture: Picture) -> None:
    """Write (C, H, W) as a GeoTIFF in compressed tiles, row after row of them."""
    geometry, array = picture.geometry, np.asarray(picture)
    channels, height, width = array.shape
    profile: dict[str, Any] = {
        **{"driver": "GTiff", "count": channels, "height": height, "width": width, "dtype": array.dtype.name},
        **{"tiled": True, "blockxsize": TILE, "blockysize": TILE, "compress": "deflate", "bigtiff": "if_safer"},
        **{"nodata": geometry.nodata, "crs": geometry.kept.get("crs")},
        **({"photometric": "minisblack"} if channels != 3 else {}),
    }
    if (steps := geometry.steps(2)) is not None:
        profile["transform"] = rasterio.Affine(*np.column_stack(steps).ravel().tolist())
    with _opened(path, "w", **profile) as file:
        for top in range(0, height, TILE):
            rows = top, min(top + TILE, height)
            file.write(array[:, slice(*rows)], window=(rows, (0, width)))


@contextmanager
def _opened(path: Path, mode: str = "r", **profile: Any) -> Iterator[Any]:
    """A file. GDAL looks at no other one, and does not warn of a picture without a place."""
    settings = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_CACHEMAX": CACHE}
    with rasterio.Env(**settings), warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, mode, **({"driver": "GTiff"} | profile)) as file:
            yield file
