"""Whether the pictures of a row lie on one grid, and how they are brought to one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from bbdm.data.rows import Half
from bbdm.pictures import Header, Picture
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
