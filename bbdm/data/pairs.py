"""Paired datasets: folders, shards or tables in, (source, target) tensors in [-1, 1] out.

Pictures are turned upright (EXIF), converted to RGB or grey, and resized with antialiased bilinear filtering.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bbdm.data import synthrad
from bbdm.data.collection import Entry, Example, Files, Pairs
from bbdm.data.collection import Pair as Pair
from bbdm.data.config import COLUMNS, DATASETS, ConditionsPlaces, PicturesConfig, with_conditions, with_masks
from bbdm.data.degradations import Degradation
from bbdm.data.examples import NoTargetError, PairExamples
from bbdm.data.reading import Reader
from bbdm.data.slices import Slices
from bbdm.data.told import NOTHING, Told, check_names
from bbdm.data.valued import ValuedDataset
from bbdm.networks.conditions import ConditionsConfig
from bbdm.pictures import images
from bbdm.pictures.images import Resize, Size
from bbdm.pictures.images import open_image as open_image
from bbdm.pictures.kind import AXES, PictureKind
from bbdm.pictures.lazy import LazyPicture
from bbdm.pictures.values import EIGHT_BIT, Values

PLAIN = PicturesConfig()


class PairedDataset(PairExamples):
    """Pairs of 8-bit pictures, each resized, as tensors.

    Args:
        pairs: the examples, as :func:`load_dataset` finds them, or a list of :class:`Pair`.
        image_size: side of the square that pictures are resized to, or (height, width).
        direction: ``AtoB`` translates A into B; ``BtoA`` swaps source and target.
        channels: 3 for RGB, 1 for grey.
        resize: ``stretch`` pictures to the size; ``fit`` them inside it, so that they keep their shape; or
            ``keep`` their size.
        degradation: makes the sources of pictures without targets, after they are resized: item i is
            (degraded, original). None if the files are the pairs.
        skip_bad: the place of a pair that cannot be read is taken by the next one that can. It is named in a
            warning, and counted; see :meth:`leave_out`.
        told: reads what examples are told besides the source. Further images are resized as pictures are.

    Item i is (source, target), each (channels, height, width) float32 in [-1, 1]; :meth:`pixels` returns it
    as uint8.

    Raises:
        ValueError: a picture that cannot be read (the error names the file), an unknown direction, a size
            or a number of channels that pictures cannot have, or a degradation of pairs with targets.
    """

    def __init__(
        self,
        pairs: Iterable[Entry],
        image_size: Size,
        direction: str = "AtoB",
        channels: int = 3,
        resize: Resize = "stretch",
        degradation: Degradation | None = None,
        skip_bad: bool = False,
        told: Told = NOTHING,
    ) -> None:
        if channels not in (1, 3):
            raise ValueError(f"channels of pictures must be 1 or 3, got {channels}")
        pairs = pairs if isinstance(pairs, Pairs) else Files(pairs)  # pyright: ignore[reportArgumentType]
        super().__init__(pairs, direction, degradation, skip_bad, told)
        self.image_size = images.as_size(image_size)
        self.channels = self.source_channels = channels
        self.resize: Resize = resize

    def __len__(self) -> int:
        return len(self.pairs)

    def _of(self, pairs: Pairs, skip_bad: bool) -> PairedDataset:
        kind = self.image_size, self.direction, self.channels, self.resize, self.degradation
        return PairedDataset(pairs, *kind, skip_bad, self.told)

    def images(self, index: int) -> tuple[Image.Image, Image.Image | None]:
        """Source and target of example ``index`` as resized pictures, None for a missing target."""
        return self._images(self.pairs[index])

    def _images(self, pair: Entry) -> tuple[Image.Image, Image.Image | None]:
        sides = [self._resized(side) for side in pair.load()]
        if self.degradation is not None:
            sides.insert(0, self.degradation(sides[0], pair.name))
        source, target = sides if len(sides) > 1 else (sides[0], None)
        if self.direction == "AtoB":
            return source, target
        if target is None:
            raise ValueError("direction 'BtoA' needs a dataset with targets")
        return target, source

    def _resized(self, image: Image.Image) -> Image.Image:
        return images.resized(images.convert(image, self.channels), self.image_size, self.resize)

    def look(self, place: int, whole: bool) -> list[tuple[int, int]]:
        """(width, height) of the files of pair ``place``; see :meth:`PairExamples.look`."""
        pair = self.pairs[place]
        if whole:
            self.conditions(pair)
            return [images.convert(side, self.channels).size for side in pair.load()]
        self.told.check(pair)
        return pair.sizes()

    def conditions(self, entry: Entry) -> dict[str, torch.Tensor]:
        """What an entry is told besides the source; see :meth:`PairExamples.conditions`."""
        return self.told.whole(entry, lambda array: images.fitted(array, self.image_size, self.resize))

    def _read(self, index: int, seed: int) -> Example:
        """Example ``index`` as uint8."""
        pair = self.pairs[index]
        source, target = self._images(pair)
        if target is None:
            raise NoTargetError(f"{pair} has no target: this dataset can only be translated")
        first, second = (torch.from_numpy(images.to_pixels(v, self.channels)) for v in (source, target))
        return Example(first, second, self.conditions(pair), name=pair.name)


def load_dataset(
    name: str,
    data_dir: str,
    split: str = "train",
    image_size: Size = 256,
    direction: str = "AtoB",
    channels: int = 3,
    resize: Resize = "stretch",
    degrade: str | None = None,
    degrade_seed: int = 0,
    columns: str | None = None,
    pictures: PicturesConfig = PLAIN,
    cache: Path | None = None,
    known: ConditionsConfig | None = None,
) -> PairExamples:
    """The data set of a name in :data:`~bbdm.data.config.DATASETS`.

    Args:
        name: of the data set.
        data_dir: its folder or folders. Files of two folders are matched by their path without suffix,
            A/3.png with B/3.jpg.
        split: ``train``, ``val`` or ``test``.
        image_size: the side that pictures are resized to, or (height, width).
        direction: ``AtoB`` translates A into B; ``BtoA`` swaps source and target.
        channels: 3 or 1, which 8-bit pictures are converted to.
        resize: what the size means; see :class:`PairedDataset`. ``fit`` is of 8-bit pictures alone.
        degrade: makes the sources from the pictures of ``folder``, such as ``sr4`` or ``jpeg:5``: see
            :class:`~bbdm.data.degradations.Degradation`.
        degrade_seed: of its random numbers.
        columns: ``SOURCE,TARGET`` or ``SOURCE``, where shards and tables have their pictures.
        pictures: values, crops, masks, slices and conditions.
        cache: folder of decoded pictures, for crops and slices; None to decode them again.
        known: what a trained network is told, by whose classes labels get their numbers; None for the labels
            of this data set.

    Raises:
        ValueError: an unknown name, no pictures, a file without a counterpart, which is named, an unknown
            degradation or one of pairs with targets, columns of another data set, values that nobody gave, or
            conditions that are missing or unknown.
        FileNotFoundError: a folder or a split does not exist.
        OSError: a shard cannot be fetched.
    """
    if name not in DATASETS:
        raise ValueError(f"dataset must be one of {sorted(DATASETS)}, got {name!r}")
    degradation = None if degrade is None else Degradation.read(degrade, degrade_seed)
    if columns is not None and name not in COLUMNS:
        raise ValueError(f"columns are of the data sets {', '.join(COLUMNS)}, got {columns!r} for {name!r}")
    config, same = _own_places(pictures, known, name)
    columns_told = {"told": config.places} if name in COLUMNS and config.places else {}
    found = DATASETS[name](data_dir, split, *([] if columns is None else [columns]), **columns_told)
    pairs = found if isinstance(found, Pairs) else Files(found)  # pyright: ignore[reportArgumentType]
    if name not in COLUMNS:
        pairs = Files(with_conditions(pairs, config, split))
    told = Told.of(pairs, pictures, same, known)
    if name == "synthrad":
        source, target = synthrad.values(pairs[0], direction)
        usual = {"source_values": source, "target_values": target, "slices": "axial" if pictures.axes == 2 else None}
        pictures = replace(pictures, **{key: getattr(pictures, key) or value for key, value in usual.items()})
    if pictures.masks is not None:
        pairs = Files(with_masks(pairs, pictures.masks, split))
    if pictures.crops_in_mask and getattr(pairs[0], "mask", None) is None:
        raise ValueError("crops_in_mask needs masks")
    if pictures.slices is not None:
        pairs = Slices(pairs, AXES[pictures.slices], _inside(pairs, AXES[pictures.slices], pictures, direction, cache))
    if pictures.plain and _is_plain(pairs):
        return PairedDataset(pairs, image_size, direction, channels, resize, degradation, False, told)
    kind = _kind(pairs, direction, pictures)
    size = None if resize == "keep" or pictures.crop is not None or pictures.axes == 3 else image_size
    if kind.crop is None and kind.slices is None:
        cache = None  # whole pictures are cached as they are made
    parts = pictures.crops, size, direction, channels, degradation, pictures.resample, cache, pictures.axes
    return ValuedDataset(pairs, kind, *parts, False, told)


def _own_places(
    pictures: PicturesConfig, known: ConditionsConfig | None, name: str
) -> tuple[ConditionsPlaces, dict[str, str]]:
    """Where each example has its conditions, and the classes that all have: those of a trained network."""
    if known is not None:
        check_names(pictures, known)
    given, _ = pictures.classes or {}, pictures.places
    same: dict[str, str] = {}
    for each, place in given.items():
        names = () if known is None else known.classes.get(each, ())
        if not isinstance(names, tuple) or "{" in place or (name not in COLUMNS and Path(place).exists()):
            continue
        if place in names:
            same[each] = place
        elif names and name not in COLUMNS:
            raise ValueError(f"{place!r} is no file, and no class of {each!r}, which are {', '.join(names)}")
    own = {each: place for each, place in given.items() if each not in same}
    return ConditionsPlaces(images=pictures.images, classes=own, tokens=pictures.tokens), same


def _inside(
    pairs: Pairs, axis: int, pictures: PicturesConfig, direction: str, cache: Path | None
) -> Callable[[Entry], list[int]] | None:
    """What gives the places of slices of which something lies in the mask; None where pairs have no masks."""
    if not isinstance(pairs[0], Pair) or pairs[0].mask is None:
        return None
    reader = Reader(None, True, pictures.resample, cache)

    def inside(entry: Entry) -> list[int]:
        sides = reader.open(entry, direction == "BtoA")
        assert sides.mask is not None
        mask, _ = reader.part((sides.mask,), sides)
        others = tuple(other for other in range(mask.ndim) if other != 1 + axis)
        return np.flatnonzero((mask != 0).any(axis=others)).tolist()

    return inside


def _is_plain(pairs: Pairs) -> bool:
    """Whether the first pair is of pictures that Pillow makes 8 bits of."""
    if not isinstance(pairs, Files):
        return True
    first = pairs[0]
    if first.further or not all(path.suffix.lower() in images.SUFFIXES for path in first.files):
        return False
    try:
        sides = first.opened()
    except ValueError:  # a survey says so, with the other pictures that cannot be read
        return True
    return all(_is_colour(side) for side in (*sides.sources, sides.target) if side is not None)


def _is_colour(picture: LazyPicture) -> bool:
    return picture.dtype == np.uint8 and picture.shape[0] in (1, 3) and len(picture.size) == 2


def _kind(pairs: Pairs, direction: str, pictures: PicturesConfig) -> PictureKind:
    """The values of both sides: those given, or of 8-bit files 0 to 255.

    Raises:
        ValueError: a file has more bits, and no values are given.
    """
    sides = pairs[0].opened().swapped() if direction == "BtoA" else pairs[0].opened()
    given: dict[str, Any] = {"source": pictures.source_values, "target": pictures.target_values}
    unknown: dict[str, Any] = {}  # the first of each side
    for name, of in {"source": sides.sources, "target": (sides.target,)}.items():
        others = [each for each in of if each is not None and each.dtype != np.uint8]
        if given[name] is None and others:
            unknown[name] = others[0][()]
    if unknown:
        found = ", ".join(f"the first {name} has {images.found_range(array)}" for name, array in unknown.items())
        flags = " ".join(f"--{name}_values {images.usual_range(array)}" for name, array in unknown.items())
        kinds = " and ".join(sorted({str(array.dtype) for array in unknown.values()}))
        raise ValueError(
            f"{pairs[0]}: pictures of {kinds} have no agreed range of values, and {found}: give ranges that hold all, "
            f"such as {flags} ({'=, '.join(f'{name}_values' for name in unknown)}= in Python)"
        )
    values: dict[str, Any] = {name: EIGHT_BIT if value is None else value for name, value in given.items()}
    if sides.target is not None and isinstance(given["target"], Values):
        values["target"] = given["target"].stored_like(sides.target.dtype)
    crop = None if pictures.crops is None else pictures.crops.size
    return PictureKind(**values, crop=crop, slices=pictures.slices, neighbours=pictures.neighbours)
