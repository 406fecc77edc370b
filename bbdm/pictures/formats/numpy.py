"""npy, mapped into memory: (H, W) is one channel, (C, H, W) and (C, D, H, W) have the channels first.

Pickled objects are never loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.pictures.picture import Header, Picture


def header(path: Path) -> Header:
    """The header of an npy.

    Raises:
        ValueError: it has objects, or is shorter than its header says.
    """
    array = np.lib.format.open_memmap(path, mode="r")
    shape = (1, *array.shape) if array.ndim == 2 else array.shape
    return Header(path, shape, array.dtype, windowed=True)


def read(header: Header, window: tuple[slice, ...]) -> npt.NDArray[Any]:
    """(C, *W) of a window."""
    array = np.lib.format.open_memmap(header.path, mode="r").reshape(header.shape)
    return np.asarray(array[(slice(None), *window)], header.dtype)


def write(path: Path, picture: Picture) -> None:
    """Write the array as it is; the format has no entry for a geometry."""
    np.save(path, np.asarray(picture))  # a mapped picture is not copied
