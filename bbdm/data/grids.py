"""The grid of a row's pictures: whether they lie on one, and the windows of crops in it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.base import sizes
from bbdm.base.seeds import keyed
from bbdm.data.rows import Half
from bbdm.pictures import Header, Picture
from bbdm.pictures.checks import Window
from bbdm.pictures.picture import same_grid


def check_grids(
    columns: Mapping[str, Sequence[Any]], heads: Mapping[str, Sequence[Header | Picture]], sized: Collection[str]
) -> None:
    """Raise ValueError where pictures of a row lie on another grid than its target, or its source.

    Args:
        columns: the row's cells, for messages.
        heads: the headers of some columns, or their pictures.
        sized: the columns that must have one size, even where they do not say where they lie.
    """
    role = "target" if columns["target"] else "source"
    if not heads.get(role):
        return
    like, name = heads[role][0], _named(role, columns[role][0])
    for column, others in heads.items():
        for cell, other in zip(columns[column], others, strict=True):
            located = None not in (like.geometry.affine, other.geometry.affine)
            compared = located or column in sized or len(like.sides) != len(other.sides)
            if compared and not same_grid(other, like):
                raise ValueError(
                    f"{_named(column, cell)} and {name} lie on different grids, {other.grid} and {like.grid}: resample "
                    f"the first to the second, {_resampling(like)}"
                )


def _named(column: str, cell: Any) -> str:
    """What messages call a cell: its path, or its column."""
    return str(cell) if isinstance(cell, Half | Path) else column


def _resampling(picture: Header | Picture) -> str:
    """How a picture is brought to the grid of another."""
    if picture.geometry.affine is not None and len(picture.geometry.affine) == 4:
        return "such as SimpleITK.Resample(SimpleITK.ReadImage(FIRST), SimpleITK.ReadImage(SECOND))"
    if picture.geometry.kept.get("crs"):
        return "such as rasterio.warp.reproject, or gdalwarp"
    return "such as skimage.transform.resize(FIRST, SHAPE)"


def crop_window(
    whole: Window,
    size: Sequence[int],
    key: str,
    seed: int,
    in_mask: float = 0.0,
    mask: Callable[[], npt.NDArray[Any]] | None = None,
) -> Window:
    """The window of a random crop in another window.

    Args:
        whole: the window, of a picture or a slice.
        size: the lengths of the crop's axes.
        key: of the crop: another one has another place.
        seed: of the epoch: another one has other places.
        in_mask: the share of crops that are centred on a random pixel of the mask.
        mask: gives an array of the window's sides, not 0 where crops may be centred; None for no mask.

    Raises:
        ValueError: the window is smaller than the crop, or has other axes.
    """
    sides = [part.stop - part.start for part in whole]
    if len(sides) != len(size) or any(side < least for side, least in zip(sides, size, strict=True)):
        raise ValueError(f"it has {sizes.shown(sides)} pixels, and crops have {sizes.shown(size)}")
    random = np.random.Generator(np.random.PCG64(keyed(seed, key)))
    room = np.subtract(sides, size)
    first = [int(random.integers(each + 1)) for each in room]
    if mask is not None and random.random() < in_mask:
        inside = np.flatnonzero(mask())
        if len(inside):
            middle = np.unravel_index(inside[int(random.integers(len(inside)))], sides)
            first = (middle - np.asarray(size) // 2).clip(0, room).tolist()
    at = zip(whole, first, size, strict=True)
    return tuple(slice(part.start + start, part.start + start + length) for part, start, length in at)
