"""What a translation reads of a data set and writes: 8-bit pictures by Pillow, or pictures of any values.

Both kinds have the same methods. An entry is a pair of files; of a data set of slices, a pair of volumes.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from tqdm.auto import tqdm

from bbdm.base.atomic import file_sha256, write_atomically
from bbdm.data.collection import Entry, Pair, Sides
from bbdm.data.config import with_masks
from bbdm.data.examples import stacked
from bbdm.data.pairs import PairedDataset, open_image
from bbdm.data.reading import Decoded, Reader, Strips
from bbdm.data.slices import Slices
from bbdm.data.survey import survey
from bbdm.data.valued import ValuedDataset, Whole
from bbdm.pictures import formats, images
from bbdm.pictures.kind import AXES
from bbdm.pictures.lazy import LazyPicture, LoadedPicture
from bbdm.pictures.picture import Picture
from bbdm.pictures.values import EIGHT_BIT, Percentiles, Values, check_finite, holds

SCALED = Values(-1, 1, dtype="float32")  # of sources that are scaled already
SHOWN = 512  # pixels of the longest side in a grid
Array = npt.NDArray[Any]
Compared = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


class Source(NamedTuple):
    """A source as the sampler takes it."""

    given: Any
    absent: npt.NDArray[np.bool_] | None = None  # (*S), pixels without a value; None for none
    nodata: float | None = None  # what stands for no value in its file


class Files(ABC):
    """The pictures of a data set by entry, and the files of their results.

    Args:
        dataset: the pairs, or sources alone.
        masks: folder of masks, not 0 where pixels count in scores, in which ``{split}`` is filled in.
        split: of the data set.
        channels: the number that results have.

    Raises:
        ValueError: an entry has no mask, or is no pair of files.
    """

    dataset: Any

    def __init__(self, dataset: Any, masks: Path | None, split: str, channels: int) -> None:
        self.dataset = dataset
        self.channels = channels
        self.entries: Sequence[Entry] = dataset.pairs.volumes if isinstance(dataset.pairs, Slices) else dataset.pairs
        pairs = [entry for entry in self.entries if isinstance(entry, Pair)] if masks is not None else []
        if masks is not None and not pairs:
            raise ValueError("masks are of data sets of files, and these are shards or a table")
        self._masked = None if masks is None else with_masks(pairs, masks, split)

    @property
    def volumes(self) -> bool:
        """Whether an entry is a volume, and a batch."""
        return isinstance(self.dataset.pairs, Slices) or self.dataset.axes == 3

    @property
    def masked(self) -> bool:
        """Whether pixels are left out of scores."""
        return self._masked is not None

    @cached_property
    def masks_digest(self) -> str | None:
        """SHA-256 of the masks; None for none."""
        if self._masked is None:
            return None
        hashes = [file_sha256(file) for pair in self._masked if pair.mask for file in formats.files_of(pair.mask)]
        return hashlib.sha256("\n".join(hashes).encode()).hexdigest()

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of the sampler that say what values the sources have."""
        return {}

    def conditions(self, indices: Sequence[int]) -> dict[str, Any]:
        """The sampler's argument ``conditions`` for some sources; empty where the network is told nothing.

        Of a volume that is translated by slices, further images are (D, K, H, W).

        Raises:
            ValueError: something cannot be read, or does not fit; the message names it.
        """
        dataset = self.dataset
        told = [dataset.conditions(self.entries[index]) for index in indices]
        made: dict[str, Any] = dict.fromkeys(dataset.told.left_out)
        for name in dataset.further.kinds:
            values = [each[name] for each in told]
            if name in dataset.further.images and dataset.kind.slices is not None:
                (volume,) = values
                made[name] = images.scale(volume.movedim(1 + AXES[dataset.kind.slices], 0))
            else:
                joined = stacked(values)
                made[name] = images.scale(joined) if name in dataset.further.images else joined
        return {"conditions": made} if made else {}

    @abstractmethod
    def bad(self, progress: bool) -> dict[str, str]:
        """Why entries cannot be read, by name; all are decoded."""

    @abstractmethod
    def suffix(self, entry: Entry) -> str:
        """Of the result's file."""

    @abstractmethod
    def source(self, index: int) -> Source:
        """The source of an entry."""

    @abstractmethod
    def size(self, index: int) -> tuple[int, int] | None:
        """About the (height, width) of a source; None of volumes, and where headers do not say it."""

    @abstractmethod
    def strips(self, index: int) -> Strips:
        """The source of an entry, of which rows are read."""

    @abstractmethod
    def save(self, result: Any, source: Source, path: Path) -> None:
        """Write the sampler's result of a source, whole or not at all."""

    @abstractmethod
    def compared(self, index: int, paths: Sequence[Path]) -> Compared:
        """(S, C, *S) results and (C, *S) target of an entry for scores, and (1, *S) mask.

        Raises:
            ValueError: there is no target.
        """

    @abstractmethod
    def shown(self, index: int, paths: Sequence[Path]) -> list[Image.Image]:
        """Source, results and target, if there is one, for a grid."""

    def _missing(self, index: int) -> ValueError:
        return ValueError(f"{self.entries[index]} has no target to compare with")


class EightBit(Files):
    """8-bit grey or RGB, in PNG files, as :class:`~bbdm.data.pairs.PairedDataset` gives them."""

    dataset: PairedDataset

    def bad(self, progress: bool) -> dict[str, str]:
        """See :func:`~bbdm.data.survey.survey`."""
        return survey(self.dataset, whole=True, progress=progress).bad

    def suffix(self, entry: Entry) -> str:
        """PNG."""
        return ".png"

    def source(self, index: int) -> Source:
        """The resized picture."""
        return Source(self.dataset.images(index)[0])

    def size(self, index: int) -> tuple[int, int] | None:
        """That of the file, or the one that pictures are resized to."""
        entry = self.entries[index]
        if self.dataset.resize != "keep":
            return images.sides(self.dataset.image_size)
        if not isinstance(entry, Pair):
            return None
        height, width = self._opened(entry).size
        return height, width // 2 if entry.in_memory else width

    def _whole(self, index: int) -> Array:
        return images.to_pixels(self.dataset.images(index)[0], self.dataset.channels)

    def _opened(self, entry: Pair) -> LazyPicture:
        return formats.open_parts(entry.source if self.dataset.direction == "AtoB" else entry.target or entry.source)

    def strips(self, index: int) -> Strips:
        """By windows of files that have the channels and keep their size; others are decoded whole."""
        entry, channels = self.entries[index], self.dataset.channels
        if self.dataset.resize != "keep" or not isinstance(entry, Pair):
            picture = LoadedPicture(self._whole(index), Path(str(entry)))
        else:
            picture = self._opened(entry)
            cut = picture.windowed and picture.shape[0] == channels and not entry.in_memory
            if not cut or self.dataset.degradation is not None:
                shape = channels, *(self.size(index) or ())
                picture = Decoded(picture.path, shape, np.dtype(np.uint8), partial(self._whole, index))
        made = Reader(channels, False, False, None).strips([picture], Sides((picture,)), lambda: EIGHT_BIT)
        return made._replace(nodata=None, masked=False)  # as Pillow sees it

    def save(self, result: Image.Image, source: Source, path: Path) -> None:
        """Write a PNG."""
        write_atomically(path, lambda temporary: result.save(temporary, "png"))

    def compared(self, index: int, paths: Sequence[Path]) -> Compared:
        """uint8 as RGB; the mask is resized to the results."""
        target = self.dataset.images(index)[1]
        if target is None:
            raise self._missing(index)
        results = np.stack([images.to_pixels(open_image(path)) for path in paths])
        height, width = results.shape[2:]
        mask = None if self._masked is None else self._mask(self._masked[index], (width, height))
        return torch.from_numpy(results), torch.from_numpy(images.to_pixels(target)), mask

    def _mask(self, pair: Pair, size: tuple[int, int]) -> torch.Tensor:
        """(1, H, W) at a size (width, height)."""
        assert pair.mask is not None
        inside = Image.fromarray((formats.open(pair.mask)[()] != 0).any(axis=0))
        return torch.from_numpy(np.array(inside.resize(size, Image.Resampling.NEAREST)))[None]

    def shown(self, index: int, paths: Sequence[Path]) -> list[Image.Image]:
        """As they are."""
        source, target = self.dataset.images(index)
        return [source, *map(open_image, paths), *([] if target is None else [target])]


class Valued(Files):
    """Pictures of any values, in files of the source's kind, on its grid.

    Raises:
        ValueError: the data set is degraded.
    """

    dataset: ValuedDataset

    def __init__(self, dataset: ValuedDataset, masks: Path | None, split: str, channels: int) -> None:
        super().__init__(dataset, masks, split, channels)
        if dataset.degradation is not None:
            raise ValueError("degrade is for translating grey and RGB pictures of 8 bits, and these are others")
        self._axis = None if dataset.kind.slices is None else 1 + AXES[dataset.kind.slices]

    @property
    def masked(self) -> bool:
        """Whether there are masks, or pixels without a value."""
        return super().masked or self.dataset.masked

    @property
    def settings(self) -> dict[str, Any]:
        """Values of percentiles are those of a whole picture without the pixels that have none."""
        return {"source_values": SCALED} if isinstance(self.dataset.kind.source, Percentiles) else {}

    def bad(self, progress: bool) -> dict[str, str]:
        """Of sources and targets."""
        found: dict[str, str] = {}
        bar = tqdm(self.entries, "looking at pictures", unit="pair", leave=False, disable=not progress)
        for index, entry in enumerate(bar):
            try:
                check_finite(self.source(index).given)
                self.dataset.conditions(entry)
                self._target(entry)
            except (OSError, ValueError) as error:
                found[entry.name] = str(error) if str(entry) in str(error) else f"{entry}: {error}"
        return found

    def suffix(self, entry: Entry) -> str:
        """The source's, where its format holds the result; else .tif, and for a folder of DICOM .nii.gz."""
        path = next(iter(entry.files), None)
        if isinstance(entry, Pair) and self.dataset.direction == "BtoA":
            path = entry.target
        if path is not None and path.is_dir():
            return ".nii.gz"
        suffix = "" if path is None else formats.suffix_of(path)
        return formats.suffix_of_result(suffix, self.channels, self.dataset.kind.target)

    def source(self, index: int) -> Source:
        """The whole picture; pixels without a value have the lowest of the range."""
        array, geometry, values, absent, nodata = self.dataset.whole(self.entries[index], "source")
        if absent is not None:
            low = np.reshape(values.low, (-1, *[1] * absent.ndim))
            array = np.where(absent, low, array).astype(array.dtype if values == EIGHT_BIT else np.float32)
        if isinstance(self.dataset.kind.source, Percentiles):
            array = values.scaled(array, axes=array.ndim - 1)
        made = Picture(array, geometry.without("nodata"), values.unit, str(self.entries[index]))
        return Source(made, absent, nodata)

    def size(self, index: int) -> tuple[int, int] | None:
        """That of the files; None of volumes."""
        return None if self.volumes else self.strips(index).shape[1:]  # pyright: ignore[reportReturnType]

    def strips(self, index: int) -> Strips:
        """By windows where the files can be read so."""
        return self.dataset.strips(self.entries[index])

    def save(self, result: Picture, source: Source, path: Path) -> None:
        """Write the result with the source's geometry; a pixel without a value in the source gets none."""
        array, geometry = np.array(result), result.geometry
        if source.nodata is not None and holds(array.dtype, source.nodata):
            geometry = geometry.with_nodata(source.nodata)
            if source.absent is not None:
                array[:, source.absent] = source.nodata
        formats.write(path, array, geometry)

    def compared(self, index: int, paths: Sequence[Path]) -> Compared:
        """Stored values: uint8 of 8-bit pictures, else float32. A volume's slices come first."""
        entry = self.entries[index] if self._masked is None else self._masked[index]
        target = self._target(entry)
        if target is None:
            raise self._missing(index)
        absent = [target.absent, self.dataset.whole(entry, "source").absent]
        mask = self.dataset.whole_mask(entry)
        if mask is not None or any(each is not None for each in absent):
            mask = np.ones(target.array.shape[1:], dtype=bool) if mask is None else mask
            for each in absent:
                mask = mask if each is None else mask & ~each
        results = [self._stored(formats.open(path)[()]) for path in paths]
        valid = None if mask is None else torch.from_numpy(self._planes(mask[None]))
        return torch.stack(results), self._stored(target.array), valid

    def _target(self, entry: Entry) -> Whole | None:
        """The target; ValueError where a pixel that has a value is not finite, which no score would show."""
        target = self.dataset.whole(entry, "target")
        if target is not None:
            try:
                target.check()
            except ValueError as error:
                raise ValueError(f"the target of {entry}: {error}") from error
        return target

    def _stored(self, array: Array) -> torch.Tensor:
        made = array if self.dataset.kind.target == EIGHT_BIT else array.astype(np.float32)
        return torch.from_numpy(self._planes(made))

    def _planes(self, array: Array) -> Array:
        return np.ascontiguousarray(array if self._axis is None else np.moveaxis(array, self._axis, 1))

    def shown(self, index: int, paths: Sequence[Path]) -> list[Image.Image]:
        """Their ranges as black to white; of slices, that in the middle, and of a volume, three planes."""
        entry = self.entries[index]
        source, target = self.dataset.whole(entry, "source"), self.dataset.whole(entry, "target")
        sides = [(source.array, source.values), *((formats.open(path)[()], self.dataset.kind.target) for path in paths)]
        sides += [] if target is None else [(target.array, self.dataset.kind.target)]
        return [self._picture(*side) for side in sides]

    def _picture(self, array: Array, values: Values) -> Image.Image:
        if self._axis is not None:
            array = array.take(array.shape[self._axis] // 2, self._axis)
        image = images.preview(values.scaled(np.nan_to_num(array), axes=array.ndim - 1))
        image.thumbnail((SHOWN, SHOWN))
        return image


def files_of(dataset: Any, masks: Path | None, split: str, channels: int) -> Files:
    """The files of a data set; see :class:`Files`."""
    return (Valued if isinstance(dataset, ValuedDataset) else EightBit)(dataset, masks, split, channels)
