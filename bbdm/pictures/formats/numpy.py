"""npy and npz: (H, W) is one channel, (C, H, W) and (C, D, H, W) have the channels first.

An npy is mapped into memory, and an npz is read whole. Pickled objects are never loaded.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from bbdm.pictures import checks
from bbdm.pictures.picture import Header, Picture

KEY = "array"  # of an npz with several arrays
TYPES = (*checks.REAL, "float16")
BLOCK = 2**24  # values that are written at once


def header(path: Path) -> Header:
    """The header of an npy or npz.

    Raises:
        ValueError: it has objects, complex numbers, or other than 2 to 4 axes; it is shorter than its header
            says; or it has several arrays, and none is named "array".
    """
    if path.suffix.lower() == ".npy":
        with path.open("rb") as file:
            stored, _, dtype = _layout(file)
            size = path.stat().st_size - file.tell()
        if math.prod(stored) * dtype.itemsize > size:
            raise ValueError(f"its header says {stored} of {dtype}, and the file is shorter")
    else:
        with zipfile.ZipFile(path) as archive, archive.open(member := _member(archive)) as stream:
            stored, _, dtype = _layout(stream)
            size = archive.getinfo(member).file_size - stream.tell()
            checks.check_cost(stored, dtype, archive.getinfo(member).compress_size + stream.tell())
        if math.prod(stored) * dtype.itemsize != size:
            raise ValueError(f"{member} has {size} bytes, which are not {stored} {dtype}")
    return Header(path, _channels(stored), checks.real(dtype), windowed=path.suffix.lower() == ".npy")


def read(header: Header, window: tuple[slice, ...]) -> npt.NDArray[Any]:
    """(C, *W) of a window.

    Raises:
        ValueError: an npz is damaged.
    """
    path = header.path
    if header.windowed:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        checks.check_cost((header.shape[0], *checks.lengths(window)), header.dtype, path.stat().st_size, ratio=1)
    else:
        with zipfile.ZipFile(path) as archive, archive.open(_member(archive)) as stream:
            stored, fortran, dtype = _layout(stream)
            data = stream.read(math.prod(stored) * dtype.itemsize)
            stream.read(1)  # at its end, the checksum is compared
        array = np.frombuffer(data, dtype).reshape(stored, order="F" if fortran else "C")
    part = array.reshape(header.shape)[(slice(None), *window)]
    return np.asarray(part) if part.dtype == header.dtype else np.asarray(part, dtype=header.dtype)


def write(path: Path, picture: Picture) -> None:
    """Write the array as it is, an npy by blocks; neither format has an entry for a geometry.

    Raises:
        ValueError: the values are not real numbers, or the spatial axes not 2 or 3.
    """
    checks.check_held(path.suffix, picture, TYPES)
    array = np.asarray(picture)
    if path.suffix.lower() == ".npz":
        return np.savez_compressed(path, array=array)  # the name is KEY
    layout = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, layout)
        rows = max(1, BLOCK // math.prod(array.shape[2:]))
        for channel in array:
            for start in range(0, len(channel), rows):
                file.write(np.ascontiguousarray(channel[start : start + rows]).data)


def _member(archive: zipfile.ZipFile) -> str:
    names = [name for name in archive.namelist() if name.endswith(".npy")]
    if f"{KEY}.npy" in names:
        return f"{KEY}.npy"
    if len(names) != 1:
        found = ", ".join(name[:-4] for name in names[:9]) or "none"
        raise ValueError(f'it must hold one array, or one that is named "{KEY}"; it has {found}')
    return names[0]


def _layout(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """The shape, whether the first index changes fastest, and the type."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"it has version {version} of npy's header, which is of structured arrays")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it has pickled objects, which are never loaded: save numbers")
    if min(shape, default=0) < 1:
        raise ValueError(f"an array of shape {shape} has no pixels")
    return shape, fortran, dtype


def _channels(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(C, *S) of an array's shape."""
    if len(shape) not in (2, 3, 4):
        raise ValueError(f"it must be (H, W), (C, H, W) or (C, D, H, W), got {shape}")
    return (1, *shape) if len(shape) == 2 else shape
