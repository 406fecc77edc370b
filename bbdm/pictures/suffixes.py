"""Suffixes of files of pictures, and the module of each, which is loaded when it is needed."""

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
    ".mhd": "simpleitk",
    ".nii": "nibabel",
    ".npy": "numpy",
    ".npz": "numpy",
    ".png": "pillow",
    ".tif": "tifffile",
}
LOSSY = ("", ".png", ".jpg", ".jpeg", ".webp", ".bmp")  # suffixes of sources whose results are PNG where that holds


def suffix_of(path: str | os.PathLike[str]) -> str:
    """The longest suffix of those that are read, in lower case, or "" where the name has none."""
    name = Path(path).name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")


def suffix_of_result(source: str, channels: int, values: Values) -> str:
    """The suffix of a result: the source's; of photographs PNG's where it holds the result, else TIFF's."""
    if source in LOSSY:
        return ".png" if channels in (1, 3) and values.dtype in ("uint8", "uint16") else ".tif"
    return source


def stem_of(path: Path) -> str:
    """The name without its suffix; of a folder of DICOM, its name."""
    return path.name if path.is_dir() else path.name[: -len(suffix_of(path) or path.suffix) or None]


def module(name: str) -> Any:
    """The module of ``bbdm.pictures.formats`` that reads and writes a format."""
    return import_module(f"bbdm.pictures.formats.{name}")
