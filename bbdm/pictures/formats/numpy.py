"""npy and npz: (H, W) is one channel, (C, H, W) and (C, D, H, W) have the channels first.

An npy is mapped into memory, and an npz is read whole. Pickled objects are never loaded.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from bbdm.pictures import checks
from bbdm.pictures.picture import Header, Picture

KEY = "array"  # of an npz with several arrays
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def header(path: Path) -> Header:
    """The header of an npy or npz.

    Raises:
        ValueError: it has objects, complex numbers, or other than 2 to 4 axes; it is shorter than its header
            says; or it has several arrays, and none is named "array".
    """
    with _opened(path) as (file, size, most):
        version = np.lib.format.read_magic(file)
        if version not in HEADERS:
            raise ValueError(f"it has version {version} of npy's header, which is of structured arrays")
        shape, fortran, dtype = HEADERS[version](file)
        if dtype.hasobject:
            raise ValueError("it has pickled objects, which are never loaded: save numbers")
        if math.prod(shape) * dtype.itemsize > size - file.tell():
            raise ValueError(f"its header says {shape} of {dtype}: it is truncated")
        stored = file.tell(), shape, "F" if fortran else "C", dtype
    if len(shape) not in (2, 3, 4) or min(shape) < 1:
        raise ValueError(f"it must be (H, W), (C, H, W) or (C, D, H, W), got {shape}")
    shape, kind = ((1, *shape) if len(shape) == 2 else shape), checks.real(dtype)
    return Header(path, shape, kind, windowed=path.suffix.lower() == ".npy", most=most, stored=stored)


def read(header: Header, window: tuple[slice, ...]) -> npt.NDArray[Any]:
    """(C, *W) of a window.

    Raises:
        ValueError: an npz is damaged.
    """
    offset, shape, order, dtype = header.stored
    if header.windowed:
        array = checks.mapped(header.path, dtype, offset, shape, order)
    else:
        with _opened(header.path) as (file, *_):
            data = file.read(offset + math.prod(shape) * dtype.itemsize)
            file.read(1)  # at its end, the checksum is compared
        array = np.frombuffer(data, dtype, math.prod(shape), offset).reshape(shape, order=order)
    return np.asarray(array.reshape(header.shape)[(slice(None), *window)], header.dtype)


def write(path: Path, picture: Picture) -> None:
    """Write the array as it is; neither format has an entry for a geometry.

    Raises:
        ValueError: the values are not real numbers, or the spatial axes not 2 or 3.
    """
    checks.check_held(path.suffix, picture, (*checks.REAL, "float16"))
    if path.suffix.lower() == ".npz":
        return np.savez_compressed(path, array=np.asarray(picture))  # the name is KEY
    return np.save(path, np.asarray(picture))  # a mapped picture is not copied


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], int, int]]:
    """The bytes of an npy or of the one in an npz, their number, and how many the file's size allows."""
    if path.suffix.lower() == ".npy":
        size = path.stat().st_size
        with path.open("rb") as file:
            yield file, size, size
        return
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        if len(names) != 1 and f"{KEY}.npy" not in names:
            found = ", ".join(name[:-4] for name in names[:9]) or "none"
            raise ValueError(f'it must hold one array, or one that is named "{KEY}"; it has {found}')
        member = archive.getinfo(f"{KEY}.npy" if f"{KEY}.npy" in names else names[0])
        with archive.open(member) as file:
            yield file, member.file_size, checks.RATIO * member.compress_size
