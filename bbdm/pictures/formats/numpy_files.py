"""npy and npz: (H, W) is one channel, (C, H, W) and (C, D, H, W) have the channels first.

An npy is mapped into memory, and an npz is read whole. Pickled objects are never loaded.
"""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from bbdm.pictures.formats import common
from bbdm.pictures.lazy import Geometry, LazyPicture, LoadedPicture

KEY = "array"  # of an npz with several arrays
MAGIC = b"\x93NUMPY"
TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64")


def open(path: Path) -> LazyPicture:
    """A picture of an npy or npz.

    Raises:
        ValueError: it is damaged; it has objects, complex numbers, or other than 2 to 4 axes; it has several
            arrays, and none is named "array".
    """
    with common.reading(path):
        return _Zipped(path) if path.suffix.lower() == ".npz" else _Mapped(path)


def decode(data: bytes, path: Path) -> LazyPicture:
    """A picture of the bytes of an npy; ``path`` is what messages call it.

    Raises:
        ValueError: it is damaged, or has what :func:`open` refuses.
    """
    with common.reading(path, in_memory=True):
        file = io.BytesIO(data)
        stored, fortran, kind = _header(file)
        offset, shape, dtype = file.tell(), _channels(stored), common.real(kind)
        if offset + math.prod(stored) * kind.itemsize != len(data):
            raise ValueError(f"it has {len(data)} bytes, which are not {stored} of {kind}")
        array = np.frombuffer(data, kind, offset=offset).reshape(stored, order="F" if fortran else "C")
        return LoadedPicture(np.array(array.reshape(shape), dtype, order="C"), path)


def encoded(array: npt.NDArray[Any]) -> bytes:
    """The bytes of an npy."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def write(path: Path, array: npt.NDArray[Any], geometry: Geometry) -> None:
    """Write the array as it is; both formats have no place for a geometry.

    Raises:
        ValueError: the array has values other than real numbers, or other than 2 or 3 spatial axes.
    """
    common.check_held(path.suffix, array, TYPES, (2, 3))
    plain = np.ascontiguousarray(array)
    if path.suffix.lower() == ".npz":
        np.savez_compressed(path, array=plain)  # the name is KEY
    else:
        np.save(path, plain, allow_pickle=False)


def write_rows(path: Path, picture: LazyPicture) -> None:
    """Write a picture (C, H, W) as an npy, some rows after the other.

    Raises:
        ValueError: the picture has values other than real numbers.
    """
    common.check_held(path.suffix, picture, TYPES, (2,))
    channels, height, width = picture.shape
    about = {"descr": np.lib.format.dtype_to_descr(picture.dtype), "fortran_order": False, "shape": picture.shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, about)
        start = file.tell()
        for rows, columns in common.strips((height, width), channels):
            for channel, plane in enumerate(picture[rows, columns]):
                file.seek(start + (channel * height + rows.start) * width * picture.dtype.itemsize)
                file.write(np.ascontiguousarray(plane).data)


class _Mapped(common.FilePicture):
    windowed = True

    def __init__(self, path: Path) -> None:
        self.path, self.geometry = path, Geometry()
        with path.open("rb") as file:
            self._stored, self._fortran, self._type = _header(file)
            self._offset = file.tell()
        self.shape, self.dtype = _channels(self._stored), common.real(self._type)
        if self._offset + math.prod(self._stored) * self._type.itemsize > path.stat().st_size:
            raise ValueError(f"its header says {self._stored} of {self._type}, and the file is shorter")

    def _read(self, window: tuple[slice, ...]) -> npt.NDArray[Any]:
        common.check_cost((self.shape[0], *common.lengths(window)), self.dtype, self.path.stat().st_size, ratio=1)
        order = "F" if self._fortran else "C"
        mapped = np.memmap(self.path, self._type, "r", self._offset, self._stored, order)
        return np.array(mapped.reshape(self.shape)[(slice(None), *window)], self.dtype, order="C")


class _Zipped(common.FilePicture):
    def __init__(self, path: Path) -> None:
        self.path, self.geometry = path, Geometry()
        with zipfile.ZipFile(path) as file:
            self._member = _member(file)
            with file.open(self._member) as stream:
                self._stored, self._fortran, self._type = _header(stream)
                offset = stream.tell()
            info = file.getinfo(self._member)
        self.shape, self.dtype = _channels(self._stored), common.real(self._type)
        if offset + math.prod(self._stored) * self._type.itemsize != info.file_size:
            raise ValueError(f"{self._member} has {info.file_size} bytes, which are not {self._stored} {self._type}")
        common.check_cost(self._stored, self._type, info.compress_size + offset)

    def _read(self, window: tuple[slice, ...]) -> npt.NDArray[Any]:
        with zipfile.ZipFile(self.path) as file, file.open(self._member) as stream:
            _header(stream)
            data = stream.read(math.prod(self._stored) * self._type.itemsize)
            stream.read(1)  # at its end, the checksum is compared
        order = "F" if self._fortran else "C"
        whole = np.frombuffer(data, self._type).reshape(self._stored, order=order).reshape(self.shape)
        return np.array(whole[(slice(None), *window)], self.dtype, order="C")


def _member(file: zipfile.ZipFile) -> str:
    names = [name for name in file.namelist() if name.endswith(".npy")]
    if f"{KEY}.npy" in names:
        return f"{KEY}.npy"
    if len(names) != 1:
        found = ", ".join(name[:-4] for name in names[:9]) or "none"
        raise ValueError(f'it must hold one array, or one that is named "{KEY}"; it has {found}')
    return names[0]


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether the first index changes fastest, and the type."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"it has version {version} of npy's header, which is of structured arrays")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it has pickled objects, which are never loaded: save numbers")
    common.real(dtype)
    if min(shape, default=0) < 1:
        raise ValueError(f"an array of shape {shape} has no pixels")
    return shape, fortran, dtype


def _channels(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(C, *S) of an array's shape."""
    if len(shape) not in (2, 3, 4):
        raise ValueError(f"it must be (H, W), (C, H, W) or (C, D, H, W), got {shape}")
    return (1, *shape) if len(shape) == 2 else shape
