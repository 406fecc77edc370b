"""npy, mapped into memory: (H, W) is one channel, (C, H, W) and (C, D, H, W) have the channels first.

Pickled objects are never loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.pictures import formats
from bbdm.pictures.picture import Header, Picture


def header(path: Path) -> Header:
    """The header of an npy.

    Raises:
        ValueError: it has objects, complex numbers, or other than 2 to 4 axes; or is shorter than its header
            says.
    """
    array = _mapped(path)
    if array.ndim not in (2, 3, 4) or 0 in array.shape:
        raise ValueError(f"it must be (H, W), (C, H, W) or (C, D, H, W), got {array.shape}")
    shape = (1, *array.shape) if array.ndim == 2 else array.shape
    return Header(path, shape, formats.real(array.dtype), windowed=True)


def read(header: Header, window: tuple[slice, ...]) -> npt.NDArray[Any]:
    """(C, *W) of a window."""
    return np.asarray(_mapped(header.path).reshape(header.shape)[(slice(None), *window)], header.dtype)


def write(path: Path, picture: Picture) -> None:
    """Write the array as it is; the format has no entry for a geometry.

    Raises:
        ValueError: the values are not real numbers, or the spatial axes not 2 or 3.
    """
    formats.check_held(path.suffix, picture, (*formats.REAL, "float16"))
    np.save(path, np.asarray(picture))  # a mapped picture is not copied


def _mapped(path: Path) -> npt.NDArray[Any]:
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        raise ValueError(f"it is truncated, or holds no numbers: {error}") from error
