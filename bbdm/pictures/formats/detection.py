"""Which of several formats a file or a folder has, where its name does not say it."""

from __future__ import annotations

import heapq
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL.TiffImagePlugin import ImageFileDirectory_v2

FILES_LOOKED_AT = 8  # of a folder, to see whether it is one of DICOM
DICM = 128  # where a file of DICOM has these letters
BIG_TIFF = b"+"  # the third or fourth byte of a BigTIFF, 43, whose header has 16 bytes instead of 8
ZARR = ("zarr.json", ".zattrs")  # the files of attributes of Zarr 3 and Zarr 2
# of a place on Earth: pixel scale, tie points, matrix, keys, RPCs
PLACE_TAGS = (33550, 33922, 34264, 34735, 50844)


def has_place(path: Path) -> bool:
    """Whether a TIFF has tags of a place on Earth."""
    # of damaged tags, the library that reads says what is wrong
    with path.open("rb") as file, suppress(Exception):
        start = file.read(8)
        if BIG_TIFF in start[2:4]:
            start += file.read(8)
        tags = ImageFileDirectory_v2(start)
        file.seek(tags.next)
        tags.load(file)
        return any(tag in tags for tag in PLACE_TAGS)
    return False


def ome_zarr(folder: Path) -> dict[str, Any]:
    """What a folder of Zarr says of OME: ``multiscales`` of a picture, ``plate``, ...; {} of other folders.

    Raises:
        ValueError: its file of attributes is damaged.
    """
    for name in ZARR:
        if (folder / name).is_file():
            try:
                content = json.loads((folder / name).read_bytes())
                if name == "zarr.json":
                    content = content.get("attributes", {})
                    content = {**content, **content.get("ome", {})}
                return {**content}
            except (ValueError, TypeError, AttributeError, RecursionError) as error:
                raise ValueError(f"{name} is damaged: {error}") from error
    return {}


def is_ome_zarr(folder: Path) -> bool:
    """Whether a folder is a picture of OME-Zarr; one that is damaged is, and reading it says so."""
    try:
        return "multiscales" in ome_zarr(folder)
    except ValueError:
        return True


def is_dicom(folder: Path) -> bool:
    """Whether one of the first files of a folder is of DICOM."""
    with os.scandir(folder) as entries:
        names = heapq.nsmallest(
            FILES_LOOKED_AT, (entry.name for entry in entries if entry.is_file())
        )
    return any(_is_dicom(folder / name) for name in names)


def dicom_files(folder: Path) -> list[Path]:
    """The files of DICOM in a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.is_file() and _is_dicom(path))


def _is_dicom(path: Path) -> bool:
    if path.name == "DICOMDIR":
        return False
    with path.open("rb") as file:
        file.seek(DICM)
        return file.read(4) == b"DICM"
