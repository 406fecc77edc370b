"""The data sets by name, and their settings. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from bbdm.base.settings import setting
from bbdm.data import layouts
from bbdm.data.collection import Entry
from bbdm.data.degradations import DegradeConfig as DegradeConfig
from bbdm.data.shards import Shards
from bbdm.data.table import Table

Direction = Literal["AtoB", "BtoA"]
DIRECTIONS = get_args(Direction)
DATASETS: dict[str, Callable[..., Iterable[Entry]]] = {
    "edge2shoes": layouts.side_by_side,  # SPLIT/*.jpg, source left, target right
    "edge2handbags": layouts.side_by_side,
    "celeba": layouts.folders_a_b,  # SPLIT/A/*, SPLIT/B/*
    "face2comics": layouts.folders_a_b,
    "cityscapes": layouts.cityscapes,  # gtFine/SPLIT/*/*_gtFine_color.png -> leftImg8bit/SPLIT/*/*_leftImg8bit.png
    "paired": layouts.paired,  # SOURCES,TARGETS; {split} in a path is filled in
    "folder": layouts.folder,  # pictures alone: SPLIT/* where there is train/ or val/, else *; {split} is filled in
    "shards": Shards.open,  # tars of NAME.source.png and NAME.target.png: a folder, paths or URLs with {0..9}
    "hub": Table.open,  # a table of the Hugging Face datasets library: a name or a folder
}
COLUMNS = ("shards", "hub")  # those that take columns


@dataclass(frozen=True, kw_only=True)
class ColumnsConfig:
    """Where shards and tables have their pictures."""

    columns: str | None = setting(
        None, "SOURCE,TARGET: the endings of the pictures in shards, or the columns of a table; or a source alone"
    )
