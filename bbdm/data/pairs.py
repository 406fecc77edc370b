"""Paired datasets: folders, shards or tables in, (source, target) tensors in [-1, 1] out.

Pictures are turned upright (EXIF), converted to RGB or grey, and resized with antialiased bilinear filtering.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import chain

import torch
from PIL import Image
from torch.utils.data import Dataset, default_collate

from bbdm.data.collection import Entry, Example, Files, Order, Pairs
from bbdm.data.collection import Pair as Pair
from bbdm.data.config import COLUMNS, DATASETS, DIRECTIONS
from bbdm.data.degradations import Degradation
from bbdm.pictures import images
from bbdm.pictures.images import Resize, Size
from bbdm.pictures.images import open_image as open_image

log = logging.getLogger(__name__)


class NoTargetError(ValueError):
    """A data set is of sources alone, and targets are needed."""


class PairedDataset(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Pairs as tensors.

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
    ) -> None:
        if direction not in DIRECTIONS:
            raise ValueError(f"direction must be one of {DIRECTIONS}, got {direction!r}")
        if channels not in (1, 3):
            raise ValueError(f"channels of pictures must be 1 or 3, got {channels}")
        self.pairs = pairs if isinstance(pairs, Pairs) else Files(pairs)  # pyright: ignore[reportArgumentType]
        if degradation is not None and self.pairs.has_targets:
            name = self.pairs[0].name
            raise ValueError(f"degrade is for pictures without targets (the data set 'folder'), {name!r} has one")
        self.image_size = images.as_size(image_size)
        self.direction = direction
        self.channels = self.source_channels = channels
        self.resize: Resize = resize
        self.degradation = degradation
        self.skip_bad = skip_bad
        self.left_out: set[str] = set()  # why pairs could not be read, as far as this process knows

    def __len__(self) -> int:
        return len(self.pairs)

    def order(self, seed: int) -> Order:
        """The order of an epoch; see :meth:`~bbdm.data.collection.Pairs.order`."""
        return self.pairs.order(seed)

    def prefetched(self, order: Iterable[int]) -> Iterator[int]:
        """The same indices, while what they need is fetched; see :mod:`bbdm.data.shards`."""
        return self.pairs.prefetched(order)

    def digest(self) -> str:
        """SHA-256 of all names, of the content of all files, and of the degradation."""
        return self.pairs.digest("" if self.degradation is None else f"{self.degradation}\n")

    def description(self) -> dict[str, str]:
        """What decides the pictures, for manifests: the digest, and the degradation if there is one."""
        degraded = {} if self.degradation is None else {"degradation": str(self.degradation)}
        return {"files": self.digest(), **degraded}

    def names_digest(self) -> str:
        """SHA-256 of all names, or for shards and tables, of what names them."""
        return hashlib.sha256(self.pairs.names.encode()).hexdigest()

    def _of(self, pairs: Iterable[Entry], skip_bad: bool) -> PairedDataset:
        kind = self.image_size, self.direction, self.channels, self.resize, self.degradation
        return PairedDataset(pairs, *kind, skip_bad)

    def without(self, names: Container[str]) -> PairedDataset:
        """The data set without the pairs of some names."""
        return self._of([pair for pair in self.pairs if pair.name not in names], self.skip_bad)

    def skipping(self) -> PairedDataset:
        """The data set with ``skip_bad``."""
        return self._of(self.pairs, True)

    def leave_out(self, reasons: Iterable[str]) -> None:
        """Name and count pairs that cannot be read, each once, by the lines in :class:`Example`."""
        for reason in chain.from_iterable(map(str.splitlines, reasons)):
            if reason not in self.left_out:
                self.left_out.add(reason)
                log.warning("left out: %s (%d so far)", reason, len(self.left_out))

    def images(self, index: int) -> tuple[Image.Image, Image.Image | None]:
        """Source and target of example ``index`` as resized pictures, None for a missing target."""
        pair = self.pairs[index]
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

    def pixels(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Source and target of example ``index``, each (channels, height, width) uint8."""
        example = self.read(index)
        self.leave_out([example.left_out])
        return example.source, example.target

    def read(self, index: int) -> Example:
        """Example ``index`` as uint8; with ``skip_bad``, the next one that can be read."""
        reasons: dict[str, None] = {}
        start = range(len(self))[index]  # an IndexError beyond the end, which is what ends an iteration
        for number in range(start, start + len(self) if self.skip_bad else start + 1):
            place = number % len(self)
            try:
                source, target = self.images(place)
                if target is None:
                    raise NoTargetError(f"{self.pairs[place]} has no target: this dataset can only be translated")
                first, second = (torch.from_numpy(images.to_pixels(v, self.channels)) for v in (source, target))
                return Example(first, second, name=self.pairs[place].name, left_out="\n".join(reasons))
            except ValueError as error:  # not OSError: a network that fails says nothing about a picture
                if not self.skip_bad or isinstance(error, NoTargetError):
                    raise
                reasons[" ".join(str(error).split())] = None
        raise ValueError(f"none of {len(self)} pairs can be read; the first: {next(iter(reasons))}")

    def batch(self, indices: Iterable[int]) -> Example:
        """A batch of examples, for a loader: uint8, a quarter of the bytes."""
        return collate([self.read(index) for index in indices])

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        source, target = self.pixels(index)
        return images.scale(source), images.scale(target)


def collate(examples: Sequence[Example]) -> Example:
    """Examples as a batch: tensors stacked, names and reasons as lists."""
    first = examples[0]
    conditions = {name: default_collate([each.conditions[name] for each in examples]) for name in first.conditions}
    mask = None if first.mask is None else default_collate([each.mask for each in examples])
    source, target = (default_collate([each[side] for each in examples]) for side in (0, 1))
    return Example(source, target, conditions, mask, [each.name for each in examples], [e.left_out for e in examples])


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
) -> PairedDataset:
    """The dataset of a name in :data:`DATASETS`.

    Files of two folders are matched by their path without suffix (A/3.png with B/3.jpg). ``degrade``, such as
    ``sr4`` or ``jpeg:5``, makes the sources from the pictures of ``folder``:
    see :class:`~bbdm.data.degradations.Degradation`. ``columns``, ``SOURCE,TARGET`` or ``SOURCE``, says where
    shards and tables have their pictures.

    Raises:
        ValueError: an unknown name, no pictures, a file without a counterpart, which is named, an unknown
            degradation or one of pairs with targets, or columns of another data set.
        FileNotFoundError: a folder or a split does not exist.
        OSError: a shard cannot be fetched.
    """
    if name not in DATASETS:
        raise ValueError(f"dataset must be one of {sorted(DATASETS)}, got {name!r}")
    degradation = None if degrade is None else Degradation.read(degrade, degrade_seed)
    if columns is not None and name not in COLUMNS:
        raise ValueError(f"columns are of the data sets {', '.join(COLUMNS)}, got {columns!r} for {name!r}")
    pairs = DATASETS[name](data_dir, split, *([] if columns is None else [columns]))
    return PairedDataset(pairs, image_size, direction, channels, resize, degradation)
