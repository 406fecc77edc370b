"""The stored values of a row's pictures: scaled, and resized by the pixels that have a value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bbdm.data.cells import Cell
from bbdm.pictures import Picture, images
from bbdm.pictures.images import Resize, Size
from bbdm.pictures.values import Values, check_finite

APART = 16  # floats from nodata to what is none: GDAL takes up to 8 for the same number
WHOLE = 1 - 1e-5  # share of a resized pixel from which all of it has a value, but for rounding
Array = npt.NDArray[Any]
Absent = npt.NDArray[np.bool_]  # (*S), or () for all pixels alike
ALL_PRESENT: Absent = np.zeros((), np.bool_)


class Column(NamedTuple):
    """The pictures of a column in a row, or a window of them, in stored values."""

    array: Array  # (C, *S), the channels of all
    absent: Absent  # where a pixel has no value
    pictures: Sequence[Picture]  # as they were read
    cells: Sequence[Cell]
    # those that an example has, by their indices in the window; () for the whole
    slices: Sequence[int] = ()


def present_values(column: Column) -> Array:
    """(C, N) stored values of a column's pixels that have one."""
    return column.array[:, ~np.broadcast_to(column.absent, column.array.shape[1:])]


def share_outside(array: Array, values: Values) -> float:
    """The share of (C, N) values that are outside of their range."""
    if not array.size:
        return 0.0
    low = np.reshape(values.low, (-1, 1))
    high = np.reshape(values.high, (-1, 1))
    return float(((array < low) | (array > high)).mean())


def resized_present(
    array: Array, column: Column, size: Size | None, resize: Resize, empty: float
) -> tuple[Array, npt.NDArray[np.bool_]]:
    """An array resized by the pixels that have a value, whose weights then sum to 1.

    Args:
        array: (C, H, W) of a column.
        column: says which pixels have no value.
        size: what the result has.
        resize: what the size means.
        empty: stands where no pixel has a value.

    Returns:
        The array (C, *size) in its type, and (*size) where all of a pixel has a value.
    """
    present = ~np.broadcast_to(column.absent, array.shape[1:])
    weights = images.fitted(present[None].astype(np.float32), size, resize)[0]
    sums = images.fitted(np.where(present, array, 0).astype(np.float32), size, resize)
    resized = np.full(sums.shape, empty, np.float32)
    np.divide(sums, weights, out=resized, where=weights > 1 - WHOLE)
    if array.dtype.kind != "f":
        resized = np.rint(resized)
    return resized.astype(array.dtype), weights >= WHOLE


def off_nodata(
    array: Array, nodata: float | None, values: Values | None = None, down: bool = False
) -> Array:
    """Stored values of pixels that have one, of which none is nodata: it becomes the next higher value.

    Of floats, it is the sixteenth higher one, which other programs too tell from nodata.

    Args:
        array: (C, *S) of stored values.
        nodata: the stored value that stands for none; None where there is no such value.
        values: the range that no value leaves: at its end, the next value is on the other side. None for the
            range of the type.
        down: whether it becomes the next lower value.

    Returns:
        The same array where no pixel has nodata, else another one of its type.
    """
    if nodata is None or not (array == nodata).any():
        return array
    dtype = array.dtype
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    low = np.asarray(limits.min)
    high = np.asarray(limits.max)
    if values is not None:
        shape = (-1, *[1] * (array.ndim - 1))
        low = np.reshape(values.low, shape)
        high = np.reshape(values.high, shape)
    step = np.ones((), dtype)
    if dtype.kind == "f":
        step = APART * np.spacing(np.abs(dtype.type(nodata)))
    goes_down = nodata >= high
    if down:
        goes_down = nodata > low
    other = np.where(goes_down, nodata - step, nodata + step)
    return np.where(array == nodata, other, array).astype(dtype)


def in_unit_range(name: str, column: Column) -> Array:
    """(C, *S) float32 of floats in [-1, 1], -1 where there is no value; ``name`` is of the column.

    Raises:
        ValueError: a value is not finite, or the values have another range.
    """
    array = column.array
    check_finite(array, column.absent)
    levels = array[:, ~column.absent] if column.absent.any() else array
    if array.dtype.kind != "f" or abs(levels).max(initial=0) > images.RANGE_LIMIT:
        limits, usual = images.ranges(levels)
        remedy = f"give their range, such as {usual}, or 8 bits, or floats in [-1, 1]"
        raise ValueError(f"{name} has values from {limits} in {array.dtype}: {remedy}")
    return np.where(column.absent, -1, array).astype(np.float32)


def of_cells(column: Column, error: ValueError) -> ValueError:
    """An error of a column's values with the name of its file, and what helps pixels of a GeoTIFF."""
    message = str(error)
    cell = column.cells[0]
    if cell.files() and str(cell) not in message:
        message = f"{cell}: {message}"
    if column.array.dtype.kind == "f" and column.pictures[0].geometry.format == "geotiff":
        message = f"{message}; nodata=nan in the file makes such pixels absent"
    return ValueError(message)
