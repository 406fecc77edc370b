"""Formats of pictures: which module reads and writes a suffix. Modules are loaded when they are needed."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.base.atomic import write_named_atomically
from bbdm.pictures.checks import UnknownFormatError
from bbdm.pictures.formats import common, tags
from bbdm.pictures.lazy import Geometry, LazyPicture, LoadedPicture
from bbdm.pictures.values import Values

SUFFIXES = {  # the module of each, the longest suffix first; that of a TIFF is chosen by its header
    ".nii.gz": "medical",
    ".jpeg": "pillow_files",
    ".tiff": "tiff",
    ".webp": "pillow_files",
    ".nrrd": "medical",
    ".bmp": "pillow_files",
    ".jpg": "pillow_files",
    ".mha": "medical",
    ".mhd": "medical",
    ".nii": "medical",
    ".npy": "numpy_files",
    ".npz": "numpy_files",
    ".png": "pillow_files",
    ".tif": "tiff",
}
LOSSY = ("", ".png", ".jpg", ".jpeg", ".webp", ".bmp")  # suffixes of sources whose results are PNG where that holds
BY_ROWS = (".npy", ".png", ".tif", ".tiff")  # suffixes of pictures that are written by rows
LOOKED_AT = 8  # files of a folder, to see whether it is one of DICOM


def suffix_of(path: str | Path) -> str:
    """The longest suffix of those that are read, in lower case, or "" where the name has none."""
    name = Path(path).name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def suffix_of_result(source: str, channels: int, values: Values) -> str:
    """A source's suffix where its format holds a result of some channels and values; else PNG's or TIFF's."""
    if source in LOSSY:
        return ".png" if channels in (1, 3) and values.dtype in ("uint8", "uint16") else ".tif"
    return source


def stem_of(path: Path) -> str:
    """The name without its suffix; of a folder of DICOM, its name."""
    return path.name if path.is_dir() else path.name[: -len(suffix_of(path) or path.suffix) or None]


def pictures_in(folder: Path) -> list[Path]:
    """All files below a folder, whatever they are; one of DICOM in place of its slices."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    parents = {path.parent for path in files if path.suffix.lower() in ("", ".dcm")}
    series = {parent for parent in parents if parent != folder and _holds_dicom(parent)}
    return [*series, *(path for path in files if path.parent not in series)]


def files_of(path: Path) -> list[Path]:
    """The files of a picture: one, or all in a folder of DICOM."""
    return sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]


def is_picture(path: str | Path) -> bool:
    """Whether it is a file with a suffix that is read, or a folder with files of DICOM."""
    path = Path(path)
    return _holds_dicom(path) if path.is_dir() else path.is_file() and bool(suffix_of(path))


def open(path: str | Path) -> LazyPicture:
    """The picture of a file, or of a folder of DICOM; its header is read, and nothing else.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: the format's package is not installed. The message says how to install it.
        UnknownFormatError: it is none of the formats.
        ValueError: it is damaged, or has what the format's module refuses.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no picture {path}")
    if path.is_dir():
        if not _holds_dicom(path):
            raise UnknownFormatError(f"cannot read the picture {path}: it is a folder, and has no files of DICOM")
        return _module("dicom").open(path)
    module = SUFFIXES.get(suffix_of(path))
    if module is None:
        raise UnknownFormatError(f"cannot read the picture {path}: its name has none of {', '.join(SUFFIXES)}")
    if module in ("pillow_files", "tiff") and tags.is_tiff(path):
        return _module(_of_tiff(path)).open(path)
    return _module("pillow_files" if module == "tiff" else module).open(path)


def open_parts(path: str | Path) -> LazyPicture:
    """As :func:`open`; a TIFF that Pillow reads whole is read by tifffile where both see the same picture."""
    picture = open(path)
    plain = picture.geometry.format == "pillow_files" and tags.is_tiff(picture.path)
    known = plain and any(map(tags.is_as_stored, tags.pages(picture.path, 1)))
    return _module("tiff").open(picture.path) if known and find_spec("tifffile") else picture


def write(path: str | Path, array: npt.NDArray[Any], geometry: Geometry) -> None:
    """Write an array (C, *S) in the format of the path's suffix, whole or not at all.

    What the format can hold of the geometry is written. A TIFF is a GeoTIFF where the geometry is of one.

    Raises:
        ModuleNotFoundError: the format's package is not installed. The message says how to install it.
        ValueError: the suffix is none of those, or the format cannot hold the type, channels or axes.
    """
    path, array = Path(path), np.asarray(array)
    module = _written_by(path, geometry)
    if module == "tiff" and array.dtype == np.uint8 and array.ndim == 3 and len(array) in (1, 3):
        module = "tiff" if geometry.format == "tiff" else "pillow_files"
    if array.ndim < 3 or 0 in array.shape:
        raise ValueError(f"cannot write the picture {path}: it must be (C, H, W) or (C, D, H, W), got {array.shape}")
    writer = _module(module)
    with common.writing(path):
        write_named_atomically(path, lambda named: writer.write(named, array, geometry))


def write_rows(path: str | Path, picture: LazyPicture) -> None:
    """Write a picture (C, H, W), of which parts are in memory, as :func:`write` does, whole or not at all.

    What of the picture's geometry the format can hold is written.

    Raises:
        ModuleNotFoundError: the format's package is not installed. The message says how to install it.
        ValueError: the format is not one that is written by rows, or cannot hold the picture.
    """
    path = Path(path)
    writer = _writer_of_rows(path, picture.geometry)
    with common.writing(path):
        write_named_atomically(path, lambda named: writer.write_rows(named, picture))


def check_rows(path: Path, geometry: Geometry) -> None:
    """Raise ValueError unless a picture can be written to a file of this name by rows."""
    _writer_of_rows(path, geometry)


def _writer_of_rows(path: Path, geometry: Geometry) -> Any:
    writer = _module(_written_by(path, geometry))
    if suffix_of(path) not in BY_ROWS:
        raise ValueError(f"cannot write the picture {path} by rows: {', '.join(BY_ROWS)} can be written so")
    return writer


def _written_by(path: Path, geometry: Geometry) -> str:
    """The module that writes a file of values. Raises ValueError where the suffix is none of those."""
    module = SUFFIXES.get(suffix_of(path))
    if module is None:
        raise ValueError(f"cannot write the picture {path}: its name must end in one of {', '.join(SUFFIXES)}")
    return "geotiff" if module == "tiff" and geometry.format == "geotiff" else module


def resampled(picture: LazyPicture, like: LazyPicture, nearest: bool = False) -> LazyPicture:
    """A picture on the grid of another, linearly interpolated, in memory. Outside it has its least value.

    With ``nearest``, as labels and masks need it, each pixel is that of the nearest one.

    Raises:
        ValueError: a file does not say where its pixels lie, or they are of different formats.
    """
    sides = picture.geometry, like.geometry
    kinds = {"" if side.affine is None else side.format for side in sides}
    if kinds not in ({"medical"}, {"geotiff"}):
        raise ValueError(f"{picture.path} cannot be resampled to {like.path}: two medical files or GeoTIFFs can")
    made = LoadedPicture(_module(kinds.pop()).resampled(picture, like, nearest), picture.path, like.geometry)
    made.nodata = picture.nodata
    return made


def _module(name: str) -> Any:
    return import_module(f"bbdm.pictures.formats.{name}")


def _of_tiff(path: Path) -> str:
    """The module that reads a TIFF. Without rasterio, Pillow reads one of 8 bits that has a place."""
    found = tags.pages(path)
    plain = tags.is_plain(found)
    if found and tags.has_place(found[0]) and (find_spec("rasterio") or not plain):
        return "geotiff"
    return "pillow_files" if plain else "tiff"


def _holds_dicom(folder: Path) -> bool:
    return bool(import_module("bbdm.pictures.formats.dicom").dicom_files(folder, LOOKED_AT))
