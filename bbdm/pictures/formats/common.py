"""What all formats share: errors name the file, and memory is spent only on what the file can hold."""

from __future__ import annotations

import locale
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import UnidentifiedImageError

from bbdm.base.scripts import StoppedError
from bbdm.pictures.checks import UnknownFormatError
from bbdm.pictures.lazy import Affine, LazyPicture, Window

LARGEST = 2**33  # bytes of what is read at once: 8 GiB
STRIP = 2**22  # values that are written at once of a picture that is written by parts
RATIO = 4096  # bytes that a byte of a file can become at most: of deflate 1032, of LZW fewer than 4096


@contextmanager
def reading(path: Path, in_memory: bool = False) -> Iterator[None]:
    """Errors of reading a picture become a ValueError with its name, and the locale stays: GDCM sets C."""
    if not in_memory and not path.exists():
        raise FileNotFoundError(f"there is no picture {path}")
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    except ModuleNotFoundError:
        raise
    except Exception as error:  # libraries raise errors of many kinds on damaged files
        raise _named(f"cannot read the picture {path}", path, error) from error
    finally:
        if locale.setlocale(locale.LC_ALL) != before:
            locale.setlocale(locale.LC_ALL, before)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Errors of a library that cannot write a picture become a ValueError with its name."""
    try:
        yield
    except (ModuleNotFoundError, OSError, StoppedError):
        raise
    except Exception as error:
        raise _named(f"cannot write the picture {path}", path, error) from error


def _named(what: str, path: Path, error: Exception) -> ValueError:
    if isinstance(error, ValueError) and str(path) in str(error):
        return error
    kind = UnknownFormatError if isinstance(error, UnknownFormatError | UnidentifiedImageError) else ValueError
    said = str(error).strip().splitlines()[-1:] or [type(error).__name__]  # ITK says first where in its code it was
    return kind(f"{what}: {said[0]}")


def bounds(window: Window, size: Sequence[int]) -> tuple[slice, ...]:
    """A window with the first and the last index + 1 of each axis, () being all of them.

    Raises:
        ValueError: another number of axes, steps, or nothing inside.
    """
    window = window or (slice(None),) * len(size)
    if len(window) != len(size) or any(part.step not in (None, 1) for part in window):
        raise ValueError(f"a window needs a slice without steps for each of {len(size)} axes, got {window}")
    found = tuple(slice(*part.indices(length)[:2]) for part, length in zip(window, size, strict=True))
    if any(part.start >= part.stop for part in found):
        raise ValueError(f"the window {window} holds nothing of a picture of {' x '.join(map(str, size))}")
    return found


def lengths(window: Sequence[slice]) -> tuple[int, ...]:
    """The lengths of the axes of a window of :func:`bounds`."""
    return tuple(part.stop - part.start for part in window)


def real(dtype: Any) -> np.dtype[Any]:
    """The type in this machine's byte order; truth values become uint8.

    Raises:
        ValueError: it is not one of real numbers of at most 64 bits.
    """
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return np.dtype(np.uint8)
    if kind.kind not in "uif" or kind.itemsize > 8:
        hint = ": save its real and imaginary parts, or its magnitude" if kind.kind == "c" else ""
        raise ValueError(f"its values are {kind}, and real numbers of at most 64 bits are wanted{hint}")
    return kind.newbyteorder("=")


def check_cost(shape: Sequence[int], dtype: np.dtype[Any], stored: int, ratio: int = RATIO) -> None:
    """Raise ValueError before memory is spent that a file of ``stored`` bytes cannot fill, or on too much.

    ``ratio`` is 1 where the values are not compressed.
    """
    wanted = prod(shape) * dtype.itemsize
    size = f"{' x '.join(map(str, shape))} values of {dtype}"
    if wanted > stored * ratio:
        raise ValueError(f"{size} cannot be in a file of {stored} bytes: it is truncated or damaged")
    if wanted > LARGEST:
        raise ValueError(f"{size} are {wanted / 2**30:.1f} GiB, and at most {LARGEST >> 30} GiB are read at once")


def check_held(suffix: str, array: Any, types: Sequence[str], axes: Sequence[int]) -> None:
    """Raise ValueError unless a format can hold the type and the axes of an array or a picture (C, *S)."""
    if array.dtype.name not in types:
        raise ValueError(f"{suffix} cannot hold {array.dtype}, but {', '.join(types)}")
    if len(array.shape) - 1 not in axes:
        wanted = " or ".join(map(str, axes))
        raise ValueError(f"{suffix} holds pictures of {wanted} axes besides the channels, got {array.shape}")


def strips(size: Sequence[int], values: int) -> Iterator[tuple[slice, slice]]:
    """Windows of whole rows of a picture (H, W), of about ``STRIP`` values; a pixel has some."""
    return windows(size, max(1, STRIP // (size[1] * values)), size[1])


def windows(size: Sequence[int], rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """A picture (H, W) in windows, from left to right and then down; the last ones are smaller."""
    for top in range(0, size[0], rows):
        for left in range(0, size[1], columns):
            yield slice(top, min(top + rows, size[0])), slice(left, min(left + columns, size[1]))


def as_affine(matrix: npt.ArrayLike) -> Affine:
    """A matrix as a tuple of rows of floats."""
    return tuple(tuple(row) for row in np.asarray(matrix, dtype=np.float64).tolist())


class FilePicture(LazyPicture):
    """A picture of which ``shape``, ``dtype`` and the rest were read from the header."""

    def __getitem__(self, window: Window) -> npt.NDArray[Any]:
        """See :meth:`bbdm.pictures.lazy.LazyPicture.__getitem__`."""
        with reading(self.path):
            part = bounds(window, self.size)
            made = self._read(part)
            wanted = (self.shape[0], *lengths(part))
            if made.shape != wanted or made.dtype != self.dtype:
                raise ValueError(
                    f"its header says {wanted} of {self.dtype}, and its values are {made.shape} of {made.dtype}"
                )
            return made

    def _read(self, window: tuple[slice, ...]) -> npt.NDArray[Any]:
        """(C, *W) of a window of :func:`bounds`."""
        raise NotImplementedError
