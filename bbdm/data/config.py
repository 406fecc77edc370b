"""The data sets by name: where their pictures lie, and their settings. Nothing here imports torch.

A function for each layout of folders finds its pairs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from PIL import Image

from bbdm.base.settings import setting
from bbdm.data.collection import Entry, Pair
from bbdm.data.degradations import DegradeConfig as DegradeConfig
from bbdm.data.shards import Shards
from bbdm.data.table import Table
from bbdm.pictures.images import SUFFIXES

log = logging.getLogger(__name__)
Direction = Literal["AtoB", "BtoA"]
DIRECTIONS = get_args(Direction)


@dataclass(frozen=True, kw_only=True)
class ColumnsConfig:
    """Where shards and tables have their pictures."""

    columns: str | None = setting(
        None, "SOURCE,TARGET: the endings of the pictures in shards, or the columns of a table; or a source alone"
    )


def _pictures(folder: Path, ending: str = "") -> dict[str, Path]:
    """Pictures by their path below ``folder`` without suffix and ``ending``, in the order of these paths."""
    if folder.is_file():
        raise ValueError(f"{folder} is a file, not a folder of pictures")
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    below = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    below = [path for path in below if not any(part.startswith(".") for part in path.parts)]
    others = Image.registered_extensions().keys() - SUFFIXES
    skipped = [path.suffix.lower() for path in below if path.suffix.lower() in others]
    if skipped:
        count = "1 picture is" if len(skipped) == 1 else f"{len(skipped)} pictures are"
        log.warning("%s skipped in %s, of kinds that are not read (%s)", count, folder, ", ".join(sorted(set(skipped))))
    found = [path for path in below if path.suffix.lower() in SUFFIXES]
    if not found:
        raise ValueError(f"there are no pictures in {folder} (looked for {', '.join(sorted(SUFFIXES))})")
    stems: dict[str, Path] = {}
    for path in found:
        if path.stem.endswith(ending):
            stem = path.with_name(path.stem.removesuffix(ending)).as_posix()
            if stem in stems:
                raise ValueError(f"{stems[stem]} and {folder / path} have the same name: rename or remove one")
            stems[stem] = folder / path
    if not stems:
        raise ValueError(f"there are no pictures *{ending} in {folder}")
    return dict(sorted(stems.items()))


def _match(sources: dict[str, Path], targets: dict[str, Path]) -> list[Pair]:
    single = sorted({**sources, **targets}[stem] for stem in sources.keys() ^ targets.keys())
    if single:
        others = len(single) - 1
        more = "" if not others else ", nor has 1 other" if others == 1 else f", nor have {others} others"
        other = next(iter((targets if single[0] in sources.values() else sources).values())).parent
        rule = "files are matched by name without suffix"
        raise ValueError(f"{single[0]} has no counterpart in {other}{more}: {rule}")
    return [Pair(stem, path, targets[stem]) for stem, path in sources.items()]


def _side_by_side(data_dir: str, split: str) -> list[Pair]:
    root = Path(data_dir) / split
    if (root / "A").is_dir() and (root / "B").is_dir():
        raise ValueError(
            f"{root} has the folders A and B, which is the layout of 'celeba'; here a picture holds both sides"
        )
    return [Pair(stem, path, path) for stem, path in _pictures(root).items()]


def _folders_a_b(data_dir: str, split: str) -> list[Pair]:
    root = Path(data_dir) / split
    return _match(_pictures(root / "A"), _pictures(root / "B"))


def _cityscapes(data_dir: str, split: str) -> list[Pair]:
    labels, photos = Path(data_dir) / "gtFine" / split, Path(data_dir) / "leftImg8bit" / split
    return _match(_pictures(labels, "_gtFine_color"), _pictures(photos, "_leftImg8bit"))


def _paired(data_dir: str, split: str) -> list[Pair]:
    folders = data_dir.replace("{split}", split).split(",")
    if len(folders) != 2:
        raise ValueError(f"data_dir of 'paired' must be two folders, SOURCES,TARGETS; got {data_dir!r}")
    return _match(*(_pictures(Path(folder)) for folder in folders))


def _folder(data_dir: str, split: str) -> list[Pair]:
    root = Path(data_dir.replace("{split}", split))
    if any((root / name).is_dir() for name in ("train", "val")):
        root = root / split
    return [Pair(stem, path, None) for stem, path in _pictures(root).items()]


DATASETS: dict[str, Callable[..., Iterable[Entry]]] = {
    "edge2shoes": _side_by_side,  # SPLIT/*.jpg, source left, target right
    "edge2handbags": _side_by_side,
    "celeba": _folders_a_b,  # SPLIT/A/*, SPLIT/B/*
    "face2comics": _folders_a_b,
    "cityscapes": _cityscapes,  # gtFine/SPLIT/*/*_gtFine_color.png -> leftImg8bit/SPLIT/*/*_leftImg8bit.png
    "paired": _paired,  # SOURCES,TARGETS; {split} in a path is filled in
    "folder": _folder,  # pictures alone: SPLIT/* where there is train/ or val/, else *; {split} is filled in
    "shards": Shards.open,  # tars of NAME.source.png and NAME.target.png: a folder, paths or URLs with {0..9}
    "hub": Table.open,  # a table of the Hugging Face datasets library: a name or a folder
}
COLUMNS = ("shards", "hub")  # those that take columns
