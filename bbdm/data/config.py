"""The data sets by name: where their pictures lie, and their settings. Nothing here imports torch.

A function for each layout of folders finds its pairs.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image

from bbdm.base.settings import check, setting
from bbdm.data.collection import Entry, Pair
from bbdm.data.crops import Crops
from bbdm.data.degradations import DegradeConfig as DegradeConfig
from bbdm.data.shards import Shards
from bbdm.data.synthrad import patients
from bbdm.data.table import Table
from bbdm.pictures import formats
from bbdm.pictures.images import Size, as_size, read_sides
from bbdm.pictures.kind import EIGHT_BIT_PICTURES, PictureKind, Plane
from bbdm.pictures.values import EIGHT_BIT, AnyValues, read_values

log = logging.getLogger(__name__)
Direction = Literal["AtoB", "BtoA"]
DIRECTIONS = get_args(Direction)


@dataclass(frozen=True, kw_only=True)
class ColumnsConfig:
    """Where shards and tables have their pictures."""

    columns: str | None = setting(
        None, "SOURCE,TARGET: the endings of the pictures in shards, or the columns of a table; or a source alone"
    )


def read_places(text: str) -> dict[str, str]:
    """Places by name from text, such as ``sar=DATA/sar,depth=DATA/depth``.

    Raises:
        ValueError: the text has another form, or a name is there twice.
    """
    parts = [each.partition("=") for each in text.split(",")]
    places = {name: place for name, _, place in parts}
    if len(places) < len(parts) or not all(name.isidentifier() and place for name, place in places.items()):
        raise ValueError(f"conditions are written as NAME=PLACE, with commas, each name once, got {text!r}")
    return places


@dataclass(frozen=True, kw_only=True)
class ConditionsPlaces:
    """Where a data set has what the network is told besides the source, by name."""

    images: dict[str, str] | None = setting(
        None,
        "further images that the network sees, NAME=PLACE with commas: a folder of pictures by the sources' names, an "
        "ending in shards, or a column of a table; @LOW:HIGH after it is the range of values of other than 8 bits",
        parse=read_places,
    )
    classes: dict[str, str] | None = setting(
        None,
        "classes, NAME=PLACE with commas: a CSV of lines of a source's name and its class, an ending in shards, or a "
        "column of a table; of a trained network also a class, which is that of all sources",
        parse=read_places,
    )
    tokens: dict[str, str] | None = setting(
        None,
        "tokens such as those of bbdm embed, NAME=PLACE with commas: a folder of .npy (L, D) by the sources' names, "
        "an ending in shards, or a column of a table",
        parse=read_places,
    )

    @property
    def places(self) -> dict[str, str]:
        """All places by name, without ranges of values.

        Raises:
            ValueError: two conditions have the same name.
        """
        images = {name: split_values(place)[0] for name, place in (self.images or {}).items()}
        given = [*images.items(), *(self.classes or {}).items(), *(self.tokens or {}).items()]
        twice = next((name for i, (name, _) in enumerate(given) if name in dict(given[:i])), None)
        if twice is not None:
            raise ValueError(f"two conditions are named {twice!r}")
        return dict(given)


def split_values(place: str) -> tuple[str, AnyValues | None]:
    """The place of images, and their values after ``@``, None without them; ``;`` stands between channels."""
    where, mark, values = place.rpartition("@")
    return (where, read_values(values.replace(";", ","))) if mark and ":" in values else (place, None)


@dataclass(frozen=True, kw_only=True)
class ValuesConfig:
    """What the pictures of a data set are."""

    source_values: AnyValues | None = setting(
        None,
        "range of the sources' values, LOW:HIGH or LOW:HIGH:UNIT, or pLOW:HIGH for percentiles of each picture; "
        "of several channels, ranges with commas; the network's if unset, or 0:255",
        parse=read_values,
    )
    target_values: AnyValues | None = setting(None, "range of the targets' values, LOW:HIGH:UNIT", parse=read_values)
    slices: Plane | None = setting(None, "the plane of the slices that volumes are read in")
    resample: bool = setting(False, "resample sources and masks to the targets' grid, where it differs")


@dataclass(frozen=True, kw_only=True)
class PicturesConfig(ValuesConfig, ConditionsPlaces):
    """What the pictures of a data set are, and which parts of them are examples.

    Raises:
        ValueError: a setting is out of range.
    """

    crop: Size | None = setting(
        None, "train on crops of this side, HxW or DxHxW, not on resized pictures", parse=read_sides
    )
    crops_per_picture: int = setting(1, "crops of a picture in an epoch", least=1)
    crops_in_mask: float = setting(0.0, "share of crops that are centred in the mask", least=0)
    masks: Path | None = setting(
        None,
        "folder of masks by the pictures' names, not 0 where pixels count; slices of which nothing counts are left out",
    )
    axes: Literal[2, 3] = 2  # of an example: those of the network
    neighbours: int = setting(0, "slices on each side that the network sees too, as channels of the source", least=0)

    def __post_init__(self) -> None:
        check(self)
        if self.axes == 3 and self.slices is not None:
            raise ValueError(f"slices are of networks of 2 axes, and this one has 3; got {self.slices}")
        if (self.crops_per_picture > 1 or self.crops_in_mask) and self.crop is None:
            raise ValueError("crops_per_picture and crops_in_mask need crop")

    @property
    def plain(self) -> bool:
        """Whether nothing is set but conditions."""
        return replace(self, **{each.name: None for each in fields(ConditionsPlaces)}) == PicturesConfig()

    def of_kind(self, kind: PictureKind) -> PicturesConfig:
        """These settings; those that are left out are of a trained network's pictures."""
        for name, trained in {"source": kind.source, "target": kind.target}.items():
            own = getattr(self, f"{name}_values")
            if kind != EIGHT_BIT_PICTURES and own is not None and str(own) != str(trained):
                raise ValueError(f"{name}_values must be those of the network, {trained}, got {own}")
        values = self.source_values or kind.source, self.target_values or kind.target
        given = (None if each == EIGHT_BIT else each for each in values)
        own = dict(zip(("source_values", "target_values"), given, strict=True))
        if kind.slices is not None and self.neighbours not in (0, kind.neighbours):
            raise ValueError(f"neighbours must be those of the network, {kind.neighbours}, got {self.neighbours}")
        planes = {"slices": self.slices or kind.slices, "neighbours": self.neighbours or kind.neighbours}
        return replace(self, **own, crop=self.crop or kind.crop, **planes)

    @property
    def crops(self) -> Crops | None:
        """Which crops are examples."""
        if self.crop is None:
            return None
        size = self.crop if self.axes == 2 else as_size(self.crop, self.axes)
        return Crops(size, self.crops_per_picture, self.crops_in_mask)


def _pictures(folder: Path, ending: str = "") -> dict[str, Path]:
    """Pictures by their path below ``folder`` without suffix and ``ending``, in the order of these paths."""
    if folder.is_file():
        raise ValueError(f"{folder} is a file, not a folder of pictures")
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    below = sorted(path.relative_to(folder) for path in formats.pictures_in(folder))
    below = [path for path in below if not any(part.startswith(".") for part in path.parts)]
    found = [path for path in below if formats.is_picture(folder / path)]
    others = Image.registered_extensions().keys() - set(formats.SUFFIXES)
    skipped = [path.suffix.lower() for path in below if path.suffix.lower() in others and path not in found]
    if skipped:
        count = "1 picture is" if len(skipped) == 1 else f"{len(skipped)} pictures are"
        log.warning("%s skipped in %s, of kinds that are not read (%s)", count, folder, ", ".join(sorted(set(skipped))))
    if not found:
        raise ValueError(f"there are no pictures in {folder} (looked for {', '.join(sorted(formats.SUFFIXES))})")
    stems: dict[str, Path] = {}
    for path in found:
        whole = formats.stem_of(path)
        if whole.endswith(ending):
            stem = path.with_name(whole.removesuffix(ending)).as_posix()
            if stem in stems:
                raise ValueError(f"{stems[stem]} and {folder / path} have the same name: rename or remove one")
            stems[stem] = folder / path
    if not stems:
        raise ValueError(f"there are no pictures *{ending} in {folder}")
    return dict(sorted(stems.items()))


def _check_counterparts(sources: dict[str, Path], targets: dict[str, Path]) -> None:
    """Raise ValueError where a file of one folder has none in the other."""
    single = sorted({**sources, **targets}[stem] for stem in sources.keys() ^ targets.keys())
    if single:
        others = len(single) - 1
        more = "" if not others else ", nor has 1 other" if others == 1 else f", nor have {others} others"
        other = next(iter((targets if single[0] in sources.values() else sources).values())).parent
        rule = "files are matched by name without suffix"
        raise ValueError(f"{single[0]} has no counterpart in {other}{more}: {rule}")


def _match(sources: dict[str, Path], targets: dict[str, Path]) -> list[Pair]:
    _check_counterparts(sources, targets)
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
    sources, mark, target = data_dir.replace("{split}", split).rpartition(";" if ";" in data_dir else ",")
    folders = sources.split(",")
    if not all([*folders, target]) or (len(folders) > 1 and mark != ";"):
        also = "; of several sources, FIRST,SECOND;TARGETS"
        raise ValueError(f"data_dir of 'paired' must be two folders, SOURCES,TARGETS; got {data_dir!r}{also}")
    first, *further = (_pictures(Path(folder)) for folder in folders)
    for each in further:
        _check_counterparts(first, each)
    pairs = _match(first, _pictures(Path(target)))
    return [replace(pair, further=tuple(each[pair.name] for each in further)) for pair in pairs]


def with_masks(pairs: Iterable[Pair], folder: Path, split: str) -> list[Pair]:
    """The pairs, each with its mask in a folder, in which ``{split}`` is filled in.

    Raises:
        ValueError: a pair has no mask.
    """
    masks = _pictures(Path(str(folder).replace("{split}", split)))
    missing = next((pair for pair in pairs if pair.name not in masks), None)
    if missing is not None:
        raise ValueError(f"{missing} has no mask in {folder}: files are matched by name without suffix")
    return [replace(pair, mask=masks[pair.name]) for pair in pairs]


def with_conditions(pairs: Iterable[Pair], config: ConditionsPlaces, split: str) -> list[Pair]:
    """The pairs, each with its conditions in folders and CSV files, in whose paths ``{split}`` is filled in.

    Raises:
        ValueError: a place does not exist, or has nothing for a pair, which is named.
    """
    pairs = list(pairs)
    for name, text in config.places.items():
        place = Path(text.replace("{split}", split))
        try:
            found: dict[str, Any] = _labels(place) if name in (config.classes or {}) else _pictures(place)
        except FileNotFoundError as error:
            raise ValueError(f"{name}: {error}") from error
        for pair in pairs:
            if pair.name not in found:
                raise ValueError(f"{pair} has no {name} in {place}: they are matched by its name {pair.name!r}")
            if name in (config.tokens or {}) and found[pair.name].suffix != ".npy":
                raise ValueError(f"tokens are .npy files, and {name} has {found[pair.name]}")
        pairs = [replace(pair, conditions=(*pair.conditions, (name, found[pair.name]))) for pair in pairs]
    return pairs


def _labels(path: Path) -> dict[str, str]:
    """Labels by the names of pairs, from lines ``name,class``."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    found: dict[str, str] = {}
    for number, row in enumerate(csv.reader(path.read_text("utf-8-sig").splitlines()), start=1):
        cells = [cell.strip() for cell in row]
        if not cells:
            continue
        if len(cells) != 2 or not all(cells):
            raise ValueError(f"line {number} of {path} must be NAME,CLASS, got {','.join(row)!r}")
        if found.setdefault(cells[0], cells[1]) != cells[1]:
            raise ValueError(
                f"line {number} of {path}: {cells[0]!r} is of the class {found[cells[0]]!r} above; where two splits "
                "have pictures of one name, give labels_{split}.csv: {split} in a path is train or val"
            )
    return found


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
    "synthrad": patients,  # a folder a patient: mr.mha or cbct.mha, ct.mha, mask.mha
    "hub": Table.open,  # a table of the Hugging Face datasets library: a name or a folder
}
COLUMNS = ("shards", "hub")  # those that take columns
