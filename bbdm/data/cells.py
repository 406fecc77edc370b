"""Cells: pictures of rows that can be opened, whether they lie in files, in halves of files or in memory.

A cell is made by a layout, or by :func:`cell_of` from what a user's row has. Nothing here imports torch.
"""

from __future__ import annotations

import io
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from bbdm import pictures
from bbdm.base.atomic import stamp
from bbdm.pictures import Geometry, Header, Picture, addresses, formats, images
from bbdm.pictures.formats.parts import WHOLE, Part
from bbdm.pictures.picture import NOWHERE, OF_PHOTOGRAPH
from bbdm.pictures.values import Values
from bbdm.pictures.windows import Window

ROLES = ("source", "target")  # the columns that have values of their own
HEADERS = 4096  # that are kept in memory
PHOTOGRAPHS = 6  # decoded ones of two halves that are kept in memory
ENCODED = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # formats of pictures in bytes
NPY = b"\x93NUMPY"  # the first bytes of an encoded array


class Cell(ABC):
    """A picture of a row that can be opened. What messages call it is ``str(cell)``.

    A class of your own has :meth:`header`, :meth:`read`, :meth:`files` and ``__str__``.
    """

    __slots__ = ()
    in_memory: ClassVar[bool] = False  # whether it has no files
    # whether Pillow reads it: resized as a picture, which is faster
    is_photograph: ClassVar[bool] = False

    @abstractmethod
    def header(self) -> Header:
        """Sides, type and geometry. No values of a file are read.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, or no picture.
        """

    @abstractmethod
    def read(self, window: Window = ()) -> Picture:
        """The picture (C, *S) of stored values, or a window of it.

        Args:
            window: a slice for each spatial axis; () for the whole picture.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, no picture, or the window is outside of it.
        """

    @abstractmethod
    def files(self) -> Sequence[Path]:
        """The files that hold it; () for what is in memory."""

    @abstractmethod
    def __str__(self) -> str:
        """What messages call it."""

    def part(self) -> str:
        """Which part of its files it is, for digests of content; "" of all."""
        return ""

    def result_suffix(self, channels: int, values: Values) -> str:
        """The suffix of a result of so many channels: that of its format, or of PNG or TIFF."""
        return formats.suffix_of_result(None, channels, values)

    def image(self) -> Image.Image:
        """A photograph as Pillow's upright picture.

        Raises:
            ValueError: it cannot be decoded.
        """
        return images.image_of(np.asarray(self.read()))

    def stamp(self) -> str:
        """Paths, sizes and times of all its files, which change with its content; "" in memory."""
        return "\n".join(stamp(path.absolute()) for path in self.files())


@dataclass(frozen=True, slots=True)
class FileCell(Cell):
    """A picture in a file of its own. It is a path for whatever takes one, such as ``open`` and ``tar.add``.

    Args:
        path: that the file has.
    """

    path: Path

    def header(self) -> Header:
        """The header of the file, which is kept in memory until the file changes."""
        return _header(self.path, _changed(self.path))

    def read(self, window: Window = ()) -> Picture:
        """The picture, or what a window of it needs where the format allows that."""
        return pictures.read(self.header(), window)

    def files(self) -> Sequence[Path]:
        """The file."""
        return (self.path,)

    @property
    def suffix(self) -> str:
        """The suffix of the file's format, in lower case."""
        return formats.suffix_of(self.path)

    def result_suffix(self, channels: int, values: Values) -> str:
        """The suffix of a result, of the file's format where that holds it."""
        return formats.suffix_of_result(self.path, channels, values)

    @property
    def is_photograph(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]  (of others one value)
        """Whether Pillow reads the file's format."""
        return formats.is_photograph(self.path)

    def image(self) -> Image.Image:
        """The file as Pillow decodes it."""
        return images.open_image(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __fspath__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class FolderCell(FileCell):
    """A picture in a folder of files: a series of DICOM.

    Args:
        path: that the folder has.
    """

    def files(self) -> Sequence[Path]:
        """All files of the folder, by name."""
        return formats.files_of(self.path)


@dataclass(frozen=True, slots=True)
class PartCell(FileCell):
    """A picture of a file that holds several, such as a scene of a microscope.

    Args:
        path: that the file, or the folder of files, has.
        which: the part of it.
    """

    which: Part

    @property
    def address(self) -> Path:
        """The path with the part, such as ``file.czi#scene=2``."""
        return addresses.joined(self.path, self.which)

    def header(self) -> Header:
        """The header of the part, which is kept in memory until the file changes."""
        return _header(self.path, _changed(self.path), self.which)

    def files(self) -> Sequence[Path]:
        """The file, or all files of the folder, by name."""
        return formats.files_of(self.path)

    def part(self) -> str:
        """The part in words."""
        return str(self.which)

    def stamp(self) -> str:
        """That of the file, and the part."""
        files = "\n".join(stamp(path.absolute()) for path in self.files())
        return f"{self.which} {files}"

    def __str__(self) -> str:
        return str(self.address)


@dataclass(frozen=True, slots=True)
class HalfCell(Cell):
    """The left or the right half of a photograph in a file.

    Args:
        path: that the file has.
        side: 0 for the left half, 1 for the right one.
    """

    path: Path
    side: int

    def header(self) -> Header:
        """The header of the file, with half its width."""
        header = _header(self.path, _changed(self.path))
        width = header.shape[-1] // 2
        return replace(header, shape=(*header.shape[:-1], width), windowed=False)

    def read(self, window: Window = ()) -> Picture:
        """The half, or a window of it. The photograph is decoded once for both halves."""
        try:
            changed = os.stat(self.path).st_mtime_ns
        except FileNotFoundError as error:
            raise FileNotFoundError(images.no_picture(self.path)) from error
        photograph = _photograph(self.path, changed)
        width = photograph.shape[2]
        if width % 2:
            raise ValueError(
                f"{self} is {width} pixels wide: two pictures side by side need an even width"
            )
        start = self.side * width // 2
        half = Picture(photograph[:, :, start : start + width // 2], OF_PHOTOGRAPH)
        return _cut(half, window) if window else half

    def files(self) -> Sequence[Path]:
        """The file of both halves."""
        return (self.path,)

    def result_suffix(self, channels: int, values: Values) -> str:
        """The suffix of a result, of the file's format where that holds it."""
        return formats.suffix_of_result(self.path, channels, values)

    def stamp(self) -> str:
        """That of the file, and the side."""
        return f"{self.side} {stamp(self.path.absolute())}"

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class BytesCell(Cell):
    """A picture that is encoded in memory, as in a tar or a table of the Hub: an .npy or a photograph.

    Args:
        content: the bytes of a file.
        name: what messages call it, such as the tar and the name in it.
    """

    in_memory: ClassVar[bool] = True
    content: bytes
    name: str

    def header(self) -> Header:
        """The header of the decoded picture."""
        return _header_of(self.read(), self)

    def read(self, window: Window = ()) -> Picture:
        """The decoded picture, or a window of it."""
        if not self.content.startswith(NPY):
            image = images.open_image(self.content, self.name, ENCODED)
            return _cut(Picture(images.pixels(image), OF_PHOTOGRAPH), window)
        try:
            array = np.load(io.BytesIO(self.content), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{self} is no array of numbers in .npy: {error}") from error
        return _cut(_picture_of(array), window)

    def files(self) -> Sequence[Path]:
        """None: it is in memory."""
        return ()

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, eq=False)
class ArrayCell(Cell):
    """A picture of numbers in memory.

    Args:
        array: (C, *S), (H, W) of one channel, or lists of numbers of these shapes.
        name: what messages call it.
        geometry: where its pixels lie.
    """

    in_memory: ClassVar[bool] = True
    array: Any
    name: str
    geometry: Geometry = NOWHERE

    def header(self) -> Header:
        """The header of the array."""
        return _header_of(self.read(), self)

    def read(self, window: Window = ()) -> Picture:
        """The array as a picture, or a window of it; lists become float32."""
        array = self.array
        if not isinstance(array, np.ndarray):
            try:
                array = np.array(array, np.float32)
            except (TypeError, ValueError) as error:
                message = "is neither a picture nor an array of as many numbers each"
                raise ValueError(f"{self} {message}, {error}") from error
        return _cut(_picture_of(array, self.geometry), window)

    def files(self) -> Sequence[Path]:
        """None: it is in memory."""
        return ()

    def __str__(self) -> str:
        return self.name


def cell_of(value: object, name: str) -> Cell:
    """The cell of what a row has for a picture. A cell stays as it is.

    Args:
        value: a cell, a path of a file or a folder of DICOM, also with a part such as ``#scene=2``; the bytes
            of a file, a picture of Pillow or of this library, an array, or lists of numbers.
        name: what messages call what has no path.

    Raises:
        FileNotFoundError: it is a text, and no file has that path.
        ValueError: it is a text of a file's path, or a picture of Pillow with more than 8 bits.
    """
    if isinstance(value, Cell):
        return value
    if isinstance(value, os.PathLike):
        path, part = addresses.split(Path(value))
        if part:
            return PartCell(path, part)
        return FolderCell(path) if path.is_dir() else FileCell(path)
    if isinstance(value, bytes):
        return BytesCell(value, name)
    if isinstance(value, str):
        if os.path.exists(value):
            raise ValueError(
                f"the picture {value} must be a pathlib.Path, got a text, which is a label"
            )
        raise FileNotFoundError(f"there is no picture {value}")
    if isinstance(value, Image.Image):
        return ArrayCell(images.pixels(value), name, OF_PHOTOGRAPH)
    if isinstance(value, Picture):
        return ArrayCell(value, name, value.geometry)
    return ArrayCell(value, name)


def parts_of(path: Path) -> list[Part]:
    """The parts of a file that are pictures of their own, see :func:`bbdm.pictures.addresses.parts`.

    [WHOLE] also of a file that cannot be opened, such as a damaged one: reading it says why.
    """
    try:
        return addresses.parts(path)
    except (OSError, ValueError, ModuleNotFoundError):
        return [WHOLE]


def _changed(path: Path) -> tuple[int, int] | None:
    """The time and the size of a file, or the latest time and the size of a folder's; None of neither."""
    try:
        status = os.stat(path)
        latest = status.st_mtime_ns
        size = status.st_size
        if stat.S_ISDIR(status.st_mode):
            for file in formats.files_of(path):
                status = os.stat(file)
                latest = max(latest, status.st_mtime_ns)
                size += status.st_size
    except OSError:  # the library that reads it says what is wrong
        return None
    return latest, size


# Pixels (C, H, W) of a photograph, by its path and the time of its last change.
_photograph = lru_cache(PHOTOGRAPHS)(lambda path, changed: images.pixels(images.open_image(path)))


@lru_cache(HEADERS)
def _header(path: Path, changed: tuple[int, int] | None, part: Part = WHOLE) -> Header:
    """The header of a file, or a part of it, as it was when it changed."""
    return addresses.header(path, part)


def _header_of(picture: Picture, cell: Cell) -> Header:
    """The header of a picture in memory."""
    return Header(Path(str(cell)), picture.shape, picture.dtype, picture.geometry, windowed=True)


def _picture_of(array: npt.NDArray[Any], geometry: Geometry = NOWHERE) -> Picture:
    """A picture (C, *S); an array of 2 axes is of one channel, so that rows (L, D) are (1, L, D)."""
    if array.ndim < 3:
        array = array[None]
    return Picture(array, geometry)


def _cut(picture: Picture, window: Window) -> Picture:
    """A window of a picture in memory; () for all of it."""
    return picture[(slice(None), *window)] if window else picture
