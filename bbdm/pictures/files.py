"""Files of pictures: reading them, their headers, and which files of a folder they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy.typing as npt
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from bbdm.pictures import formats, images
from bbdm.pictures.formats import UnknownFormatError, Window
from bbdm.pictures.picture import Header, Picture

FILES_LOOKED_AT = 8  # of a folder, to see whether it is one of DICOM
DICM = 128  # where a file of DICOM has these letters
PLACE_TAGS = (33550, 33922, 34264, 34735)  # of a place on Earth: pixel scale, tie points, matrix, keys


def read(
    path: str | os.PathLike[str] | Header,
    window: Window = (),
    change: Callable[[Image.Image], Image.Image] | None = None,
) -> Picture:
    """The picture of a file, or of a folder of DICOM; of a window, what it needs where the format allows.

    Values of npy, and of NIfTI and TIFF without compression or scaling, are mapped into memory. The array is
    read-only. Its geometry is that of the window.

    Args:
        path: the file or folder; or its header, which is not read again.
        window: a slice for each spatial axis, () for all.
        change: what a photograph becomes before it is an array, such as another size, which is faster than
            to change the array; pictures of other formats stay as they are.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: the format's package is not installed. The message says how to install it.
        UnknownFormatError: it is none of the formats.
        ValueError: it is damaged, has what the format's module refuses, or the window is outside.
    """
    known = path if isinstance(path, Header) else None
    path = known.path if known else Path(path)  # pyright: ignore[reportArgumentType]
    with formats.Named("read", path):
        module = formats.module(known.reader if known else _reader(path))
        found: Header = known or module.header(path)
        if change is not None and found.photograph:
            image = change(images.open_image(found.stored or path, str(path)))
            return Picture(images.pixels(image), found.geometry, name=path.name)
        part = formats.bounds(window, found.sides)
        expected = (found.shape[0], *formats.lengths(part))
        formats.check_cost(expected if found.windowed else found.shape, found.dtype, found.most)
        array = module.read(found, part)
        if array.shape != expected or array.dtype != found.dtype:
            held = f"its values are {array.shape} of {array.dtype}"
            raise ValueError(f"its header says {expected} of {found.dtype}, and {held}")
    array.flags.writeable = False
    return Picture(array, found.geometry.of_window([each.start for each in part]), name=path.name)


def header(path: str | os.PathLike[str]) -> Header:
    """What a file, or a folder of DICOM, says of its picture, but values. For errors see :func:`read`."""
    path = Path(path)
    with formats.Named("read", path):
        found: Header = formats.module(name := _reader(path)).header(path)
    if isinstance(found.stored, Image.Image):
        found.stored.close()
        found = replace(found, stored=None)
    return replace(found, reader=name)


def write(path: str | os.PathLike[str], picture: npt.ArrayLike) -> None:
    """Write an array (C, *S); see :meth:`bbdm.pictures.Picture.save`."""
    (picture if isinstance(picture, Picture) else Picture(picture)).save(path)


def pictures_in(folder: Path) -> list[Path]:
    """All files below a folder, whatever they are; a folder of DICOM in place of its slices."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    parents = {path.parent for path in files if path.suffix.lower() in ("", ".dcm")}
    series = {parent for parent in parents if parent != folder and dicom_files(parent, FILES_LOOKED_AT)}
    return [*series, *(path for path in files if path.parent not in series)]


def files_of(path: Path) -> list[Path]:
    """The files of a picture: one, or all in a folder of DICOM."""
    return sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]


def is_picture(path: str | os.PathLike[str]) -> bool:
    """Whether it is a file with a suffix that is read, or a folder with files of DICOM."""
    path = Path(path)
    if path.is_dir():
        return bool(dicom_files(path, FILES_LOOKED_AT))
    return path.is_file() and bool(formats.suffix_of(path))


def dicom_files(folder: Path, most: int | None = None) -> list[Path]:
    """The files of DICOM in a folder, of the first ``most`` of its files."""
    found: list[Path] = []
    for path in files_of(folder)[:most]:
        with path.open("rb") as file:
            file.seek(DICM)
            found += [path] if file.read(4) == b"DICM" and path.name != "DICOMDIR" else []
    return found


def _reader(path: Path) -> str:
    """The name of the module that reads a file, or a folder of DICOM."""
    if not path.exists():
        raise FileNotFoundError(path)
    if path.is_dir():
        if not is_picture(path):
            raise UnknownFormatError("it is a folder, and has no files of DICOM")
        return "simpleitk"
    name = formats.SUFFIXES.get(formats.suffix_of(path))
    if name is None:
        raise UnknownFormatError(f"its name has none of {', '.join(formats.SUFFIXES)}")
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
