"""Formats of pictures by suffix: a module for each library, of three functions.

    header(path) -> Header                  of a picture (C, *S); no values are read
    read(header, window) -> NDArray         (C, *W) of a window, a slice for each of the axes S
    write(path, picture) -> None            with what the format holds of the geometry

Each raises ModuleNotFoundError where its library is not installed, with what installs it. Reading raises
ValueError where a file is damaged, or has what is not read; writing, where the format does not hold the
picture.
:mod:`bbdm.pictures.files` chooses the module, checks windows and costs, and gives errors the file's name.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

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
