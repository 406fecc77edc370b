"""Formats of pictures by suffix: a module for each library, of three functions, and what all of them check.

    header(path) -> Header                  of a picture (C, *S); no values are read
    read(header, window) -> NDArray         (C, *W) of a window, a slice for each of the axes S
    write(path, picture) -> None            with what the format holds of the geometry

Each raises ModuleNotFoundError where its library is not installed, with what installs it. Reading raises
ValueError where a file is damaged, or has what is not read; writing, where the format does not hold the
picture. :mod:`bbdm.pictures.files` chooses the module, checks windows and costs, and gives errors the file's
name.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from PIL import UnidentifiedImageError

from bbdm.base import sizes
from bbdm.base.scripts import StoppedError
from bbdm.pictures.values import Values

SUFFIXES = {  # the module of each, the longest suffix first; that of a TIFF is chosen by its header
    ".nii.gz": "nibabel",
    ".jpeg": "pillow",
    ".tiff": "tifffile",
    ".webp": "pillow",
    ".nrrd": "simpleitk",
    ".bmp": "pillow",
    ".jpg": "pillow",
    ".mha": "simpleitk",
    ".nii": "nibabel",
    ".npy": "numpy",
    ".png": "pillow",
    ".tif": "tifffile",
}
Window = tuple[slice, ...]  # a slice for each spatial axis; () is all of them
LARGEST = 2**33  # bytes of what is read at once: 8 GiB
RATIO = 4096  # bytes that a byte of a file becomes at most: of deflate 1032, of LZW fewer than 4096
DEFLATE = 1032
REAL = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")


class UnknownFormatError(ValueError):
    """A file is not a picture, or one of a format that is not read."""


def suffix_of(path: str | os.PathLike[str]) -> str:
    """The longest suffix of those that are read, in lower case, or "" where the name has none."""
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
    """The module that reads and writes a format."""
    return import_module(f"{__name__}.{name}")


def fail(action: Literal["read", "write"], path: Path | str, error: Exception, unknown: str = "") -> NoReturn:
    """Raise a library's error on a picture as a ValueError with the file's name.

    Missing packages, errors of the disk on writing, and errors that name the file stay as they are.
    ``unknown`` is said of a file of no format.
    """
    if isinstance(error, ModuleNotFoundError | StoppedError):
        raise error
    if action == "read" and isinstance(error, FileNotFoundError):
        raise FileNotFoundError(f"there is no picture {path}") from error
    named = isinstance(error, ValueError) and str(path) in str(error)
    if named or (action == "write" and isinstance(error, OSError)):
        raise error
    is_unknown = isinstance(error, UnknownFormatError | UnidentifiedImageError)
    lines = str(error).strip().splitlines() or [type(error).__name__]  # ITK says first where in its code it was
    reason = unknown if is_unknown and unknown else lines[-1]
    raise (UnknownFormatError if is_unknown else ValueError)(f"cannot {action} the picture {path}: {reason}") from error


def bounds(window: Window, sides: Sequence[int]) -> Window:
    """A window with the first index and the last index + 1 of each axis, () being all of them.

    Raises:
        ValueError: another number of axes, steps, or an empty window.
    """
    window = window or (slice(None),) * len(sides)
    if len(window) != len(sides) or any(part.step not in (None, 1) for part in window):
        raise ValueError(f"a window needs a slice without steps for each of {len(sides)} axes, got {window}")
    found = tuple(slice(*part.indices(length)[:2]) for part, length in zip(window, sides, strict=True))
    if any(part.start >= part.stop for part in found):
        raise ValueError(f"the window {window} holds nothing of a picture of {sizes.shown(sides)}")
    return found


def lengths(window: Sequence[slice]) -> tuple[int, ...]:
    """The lengths of the axes of a window of :func:`bounds`."""
    return tuple(part.stop - part.start for part in window)


def mapped(path: Path, dtype: np.dtype[Any], offset: int, shape: Sequence[int]) -> Any:
    """An array of a file's bytes, mapped into memory; ``numpy.memmap`` takes longer to begin."""
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(data, dtype, prod(shape), offset).reshape(tuple(shape))


def real(dtype: Any) -> np.dtype[Any]:
    """The type in this machine's byte order; truth values become uint8.

    Raises:
        ValueError: it is not one of real numbers of at most 64 bits.
    """
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return np.dtype(np.uint8)
    if kind.kind not in "uif" or kind.itemsize > 8:
        hint = ": save its real and imaginary parts, or its magnitude" if kind.kind == "c" else ""
        raise ValueError(f"its values are {kind}, and real numbers of at most 64 bits are needed{hint}")
    return kind.newbyteorder("=")


def check_cost(shape: Sequence[int], dtype: np.dtype[Any], most: float) -> None:
    """Raise ValueError before memory is spent on values that a file cannot hold, or on too many.

    ``most`` is the bytes of values that the file's size allows.
    """
    needed = prod(shape) * dtype.itemsize
    size = f"{sizes.shown(shape)} values of {dtype}"
    if needed > most:
        raise ValueError(f"{size} cannot be in a file of at most {most} bytes of values: it is truncated or damaged")
    if needed > LARGEST:
        raise ValueError(f"{size} are {needed / 2**30:.1f} GiB, and at most {LARGEST >> 30} GiB are read at once")


def check_held(suffix: str, picture: np.ndarray[Any, Any], types: Sequence[str], axes: Sequence[int] = (2, 3)) -> None:
    """Raise ValueError unless a format can hold the type and the axes of a picture (C, *S)."""
    if picture.dtype.name not in types:
        raise ValueError(f"{suffix} cannot hold {picture.dtype}, but {', '.join(types)}")
    if picture.ndim - 1 not in axes:
        count = " or ".join(map(str, axes))
        raise ValueError(f"{suffix} holds pictures of {count} axes besides the channels, got {picture.shape}")
