"""Whether sources and targets lie on each other: their shift, by the correlation of their gradients.

The magnitude of gradients is correlated, which does not depend on whether an edge becomes brighter or darker.
Phase correlation proper, where every frequency counts the same, finds fewer: pictures of two kinds share
outlines, not textures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bbdm.base import optional
from bbdm.base.progress import Shown, counted
from bbdm.data.pairs import Pairs
from bbdm.data.rows import shown
from bbdm.data.scaling import Column

SHIFTED = 1.5  # pixels from which on a pair does not lie on each other
COMPARED = 200  # pairs of a data set, at most
BLUR = 1.0  # the standard deviation of the smoothing before gradients, in pixels
FRACTION = 4  # of a pixel: shifts are multiples of 1 / 4
AXES = ("slices", "down", "right")
NEEDED_BY = "the shift between sources and targets"

Array = npt.NDArray[Any]


class Shift(NamedTuple):
    """By how much the target of a row lies off its source."""

    row: str
    # of each axis: down and to the right, in volumes first along the slices
    pixels: tuple[float, ...]

    @property
    def length(self) -> float:
        """In pixels."""
        return float(np.linalg.norm(self.pixels))


def shift(source: Array, target: Array) -> tuple[float, ...]:
    """By how many pixels the content of a target (C, *S) lies off that of its source, along each axis.

    Positive is down and to the right. (0, ...) where one of the two is constant.

    Raises:
        ModuleNotFoundError: scikit-image is not installed.
    """
    registration = optional.package("skimage.registration", NEEDED_BY)
    outlines = [_outlines(array) for array in (target, source)]
    if not all(outline.any() for outline in outlines):
        return (0.0,) * (source.ndim - 1)
    pixels, _, _ = registration.phase_cross_correlation(
        *outlines, normalization=None, upsample_factor=FRACTION
    )
    return tuple(pixels.tolist())


def _outlines(array: Array) -> Array:
    """(*S) the root of the magnitude of gradients, summed over channels, with a mean of 0."""
    filters = optional.package("skimage.filters", NEEDED_BY)
    total = np.zeros(array.shape[1:])
    for channel in array:
        smooth = filters.gaussian(channel.astype(np.float64), BLUR)
        total += filters.sobel(smooth)
    outlines = np.sqrt(total)
    return outlines - outlines.mean()


def shifts(pairs: Pairs, progress: Shown = False) -> list[Shift]:
    """The shift of pairs whose source and target have one size; rows that cannot be read are left out.

    At most 200 pairs are compared, spread over the data set.

    Raises:
        ModuleNotFoundError: scikit-image is not installed.
    """
    count = len(pairs.rows)
    indices = np.unique(
        np.linspace(0, count - 1, min(count, COMPARED)).round().astype(int)
    ).tolist()
    compared: list[Shift] = []
    for index in counted(indices, "comparing", len(indices), "pairs", progress):
        try:
            row = pairs.rows[index]
            columns = pairs.reader.whole(row)
        except (ValueError, FileNotFoundError):  # which the check of rows says
            continue
        source = columns["source"]
        target = columns.get("target")
        if target is not None and source.array.shape[1:] == target.array.shape[1:]:
            compared.append(Shift(shown(row), shift(_filled(source), _filled(target))))
    return compared


def _filled(column: Column) -> Array:
    """(C, *S) values of a column; those of pixels without one are the mean of the others."""
    array = column.array.astype(np.float64)
    present = ~np.broadcast_to(column.absent, array.shape[1:]) & np.isfinite(array).all(axis=0)
    if present.any():
        array[:, ~present] = array[:, present].mean(axis=1, keepdims=True)
    return array


def described(compared: Sequence[Shift]) -> str:
    """A line on the shifts of a data set's pairs; "" where all lie on each other."""
    shifted = [pair for pair in compared if pair.length > SHIFTED]
    if not shifted:
        return ""
    worst = max(shifted, key=lambda pair: pair.length)
    middle: list[float] = np.median([pair.pixels for pair in compared], axis=0).tolist()
    return (
        f"the targets of {len(shifted)} of {len(compared)} pairs seem to lie off their sources by more than "
        f"{SHIFTED:g} pixels: by {_pixels(middle)} ({', '.join(AXES[-len(middle) :])}) in the median, and by "
        f"{_pixels(worst.pixels)} at {worst.row}"
    )


def _pixels(pixels: Sequence[float]) -> str:
    return f"({', '.join(f'{length:g}' for length in pixels)})"
