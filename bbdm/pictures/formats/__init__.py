"""Formats of pictures: a module for each library, of three functions, and what is checked for all of them.

    header(path) -> Header                  of a picture (C, *S); no values are read
    read(header, window) -> NDArray         (C, *W) of a window, a slice for each of the axes S
    write(path, picture) -> None            with what the format holds of the geometry

A module is imported when its format is met: ModuleNotFoundError says what installs its library. Reading
raises ValueError where a file is damaged, or has what is not read. Axes and types are checked here and by
:class:`bbdm.pictures.Header`, windows and costs by :func:`bbdm.pictures.read`. Which files are pictures, and
which library reads them, is said here too.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from bbdm.base import sizes
from bbdm.pictures.values import Values

REAL = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
Window = tuple[slice, ...]  # a slice for each spatial axis; () is all of them
LARGEST = 2**33  # bytes of what is read at once: 8 GiB
DEFLATE = 1032  # bytes that a byte of deflate becomes at most
RATIO = 4096  # the same of other compressions; of LZW fewer
FILES_LOOKED_AT = 8  # of a folder, to see whether it is one of DICOM
DICM = 128  # where a file of DICOM has these letters
PLACE_TAGS = (33550, 33922, 34264, 34735)  # of a place on Earth: pixel scale, tie points, matrix, keys


class Library(NamedTuple):
    """The files that a library reads, and what it writes to them."""

    suffixes: tuple[str, ...]
    types: tuple[str, ...] = REAL
    axes: tuple[int, ...] = (2, 3)


LIBRARIES = {
    "pillow": Library((".png", ".jpg", ".jpeg", ".webp", ".bmp"), ("uint8",), (2,)),
    "tifffile": Library((".tif", ".tiff"), (*REAL, "float16")),
    "rasterio": Library((), axes=(2,)),  # of TIFF those with a place on Earth
    "nibabel": Library((".nii", ".nii.gz")),
    "simpleitk": Library((".mha", ".nrrd")),
    "numpy": Library((".npy",), (*REAL, "float16")),
}
SUFFIXES = {suffix: name for name, library in LIBRARIES.items() for suffix in library.suffixes}


class UnknownFormatError(ValueError):
    """A file is not a picture, or one of a format that is not read."""


def suffix_of(path: str | os.PathLike[str]) -> str:
    """The suffix of those that are read, in lower case, or "" where the name has none."""
    name = Path(path).name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def suffix_of_result(source: str, channels: int, values: Values) -> str:
    """The suffix of a result: the source's; of photographs PNG's where it holds the result, else TIFF's."""
    if source and SUFFIXES[source] != "pillow":
        return source
    return ".png" if (channels, values.dtype) in ((1, "uint8"), (3, "uint8"), (1, "uint16")) else ".tif"


def stem_of(path: Path) -> str:
    """The name without its suffix; of a folder of DICOM, its name."""
    return path.name if path.is_dir() else path.name[: -len(suffix_of(path) or path.suffix) or None]


def module(name: str) -> Any:
    """The module of a library."""
    return import_module(f"{__name__}.{name}")


def pictures_in(folder: Path) -> list[Path]:
    """All files below a folder, whatever they are; a folder of DICOM in place of its slices."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    parents = {path.parent for path in files if path.suffix.lower() in ("", ".dcm")}
    series = {parent for parent in parents if parent != folder and dicom_files(parent, FILES_LOOKED_AT)}
    return [*series, *(path for path in files if path.parent not in series)]


def files_of(path: Path) -> list[Path]:
    """The files of a picture: one, or all in a folder of DICOM."""
    return sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]


def is_picture(path: Path) -> bool:
    """Whether it is a file with a suffix that is read, or a folder with files of DICOM."""
    return bool(dicom_files(path, FILES_LOOKED_AT)) if path.is_dir() else path.is_file() and bool(suffix_of(path))


def dicom_files(folder: Path, most: int | None = None) -> list[Path]:
    """The files of DICOM in a folder, of the first ``most`` of its files."""
    found: list[Path] = []
    for path in files_of(folder)[:most]:
        with path.open("rb") as file:
            file.seek(DICM)
            found += [path] if file.read(4) == b"DICM" and path.name != "DICOMDIR" else []
    return found


def reader_of(path: Path) -> str:
    """The name of the module that reads a file, or a folder of DICOM."""
    if not path.exists():
        raise FileNotFoundError(path)
    if not is_picture(path):
        raise UnknownFormatError(f"its name has none of {', '.join(SUFFIXES)}, and it is no folder of DICOM")
    name = "simpleitk" if path.is_dir() else SUFFIXES[suffix_of(path)]
    return "rasterio" if name == "tifffile" and _has_place(path) else name


def _has_place(path: Path) -> bool:
    """Whether a TIFF has tags of a place on Earth."""
    with path.open("rb") as file, suppress(Exception):  # of damaged tags, the library that reads says what is wrong
        start = file.read(8)
        tags = ImageFileDirectory_v2(start + (file.read(8) if b"+" in start[2:4] else b""))
        file.seek(tags.next)
        tags.load(file)
        return any(tag in tags for tag in PLACE_TAGS)
    return False


def writer(path: Path, picture: np.ndarray[Any, Any], earth: bool) -> Any:
    """The module that writes a picture (C, *S) to a path; of TIFF, that of ``earth`` or of others.

    Raises:
        ValueError: the path's format does not hold the type, the channels or the axes.
    """
    suffix = suffix_of(path)
    if not suffix:
        raise ValueError(f"its name must end in one of {', '.join(SUFFIXES)}")
    name = "rasterio" if SUFFIXES[suffix] == "tifffile" and earth else SUFFIXES[suffix]
    _, types, axes = LIBRARIES[name]
    if picture.ndim - 1 not in axes or 0 in picture.shape:
        shapes = " or ".join(f"(C, {sizes.SIDES[count]})" for count in axes)
        raise ValueError(f"{suffix} holds {shapes}, got {picture.shape}")
    types = (*types, "uint16") if suffix == ".png" and len(picture) == 1 else types
    if picture.dtype.name not in types:
        raise ValueError(f"{suffix} cannot hold {picture.dtype}, but {', '.join(types)}")
    if name == "pillow" and len(picture) not in (1, 3):
        raise ValueError(f"{suffix} holds 1 or 3 channels, got {len(picture)}")
    return module(name)


def volume(lengths: Sequence[int]) -> tuple[int, ...]:
    """The lengths of at most three axes (x, y, z); ValueError where others, such as time, are there."""
    if any(length != 1 for length in lengths[3:]):
        shown = sizes.shown(lengths)
        raise ValueError(f"it has {len(lengths)} axes, {shown}, such as times: save each volume as a file of its own")
    return tuple(lengths[:3])


def bounds(window: Window, sides: Sequence[int]) -> Window:
    """A window with the first index and the last index + 1 of each axis, () being all of them.

    Raises:
        ValueError: another number of axes, steps, or an empty window.
    """
    window = window or (slice(None),) * len(sides)
    found = tuple(slice(*part.indices(length)[:2]) for part, length in zip(window, sides, strict=False))
    regular = len(window) == len(sides) and all(part.step in (None, 1) for part in window)
    if not regular or any(part.start >= part.stop for part in found):
        raise ValueError(f"a window is a part of {sizes.shown(sides)}, a slice for each without steps; got {window}")
    return found


def lengths(window: Sequence[slice]) -> tuple[int, ...]:
    """The lengths of the axes of a window of :func:`bounds`."""
    return tuple(part.stop - part.start for part in window)


def mapped(path: Path, dtype: np.dtype[Any], offset: int, shape: Sequence[int]) -> Any:
    """An array of a file's bytes, mapped into memory; ``numpy.memmap`` takes longer to begin."""
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(data, dtype, prod(shape), offset).reshape(tuple(shape))


def check_cost(shape: Sequence[int], dtype: np.dtype[Any], most: float) -> None:
    """Raise ValueError for values that a file of ``most`` bytes cannot hold, or for too many at once."""
    needed = prod(shape) * dtype.itemsize
    if needed > min(most, LARGEST):
        reason = f"are {needed / 2**30:.1f} GiB, and at most {LARGEST >> 30} GiB are read at once"
        if needed > most:
            reason = f"cannot be in a file of at most {most} bytes of values: it is truncated or damaged"
        raise ValueError(f"{sizes.shown(shape)} values of {dtype} {reason}")
