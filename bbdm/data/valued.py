"""Pairs of pictures or volumes of any channels and values: whole, in crops, or as slices of volumes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, tee
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from bbdm.base import sizes
from bbdm.data.collection import Entry, Example, Order, Pairs, Sides
from bbdm.data.crops import Crops
from bbdm.data.degradations import Degradation
from bbdm.data.examples import NoTargetError, PairExamples
from bbdm.data.reading import Reader, Strips, in_plane
from bbdm.data.slices import Slices
from bbdm.data.told import NOTHING, Told
from bbdm.pictures import images
from bbdm.pictures.images import Size
from bbdm.pictures.kind import PictureKind
from bbdm.pictures.lazy import Geometry, LazyPicture, Window
from bbdm.pictures.picture import Picture
from bbdm.pictures.values import EIGHT_BIT, AnyValues, Values, check_channels, check_finite, scaled_present

Array = npt.NDArray[Any]


class Whole(NamedTuple):
    """A side of an example in stored values: whole, and of a slice the volume."""

    array: Array  # (C, *S)
    geometry: Geometry
    values: Values
    absent: npt.NDArray[np.bool_] | None  # (*S), pixels without a value; None where all have one
    nodata: float | None

    def check(self) -> None:
        """Raise ValueError where a pixel that has a value is not finite."""
        check_finite(self.array if self.absent is None else np.where(self.absent, 0, self.array))


class ValuedDataset(PairExamples):
    """Pairs of pictures as tensors in [-1, 1], scaled by the values of their side; 8 bits stay uint8.

    Args:
        pairs: where the examples lie, such as a list of files.
        kind: the values of both sides.
        crops: which crops are examples; None for whole pictures.
        image_size: the size that whole pictures are resized to; None to keep their size.
        direction: ``AtoB`` translates A into B; ``BtoA`` swaps source and target.
        channels: 1 or 3, which 8-bit pictures are converted to; None for those of the files.
        degradation: makes the sources of 8-bit pictures without targets, on the crop. With crops, a random
            one is drawn anew in each epoch.
        resample: resample sources and masks that lie on another grid than the target.
        cache: folder of decoded pictures, where no part of a file can be read alone; None for none.
        axes: of an example: 2 for pictures and slices, 3 for volumes.
        skip_bad: the place of a pair that cannot be read is taken by the next one that can.
        told: reads what examples are told besides the source. Further images are cropped, sliced and resized
            as sources are.

    Raises:
        ValueError: the first pair cannot be read, or does not fit its values.
    """

    def __init__(
        self,
        pairs: Pairs,
        kind: PictureKind,
        crops: Crops | None = None,
        image_size: Size | None = None,
        direction: str = "AtoB",
        channels: int | None = None,
        degradation: Degradation | None = None,
        resample: bool = False,
        cache: Path | None = None,
        axes: int = 2,
        skip_bad: bool = False,
        told: Told = NOTHING,
    ) -> None:
        super().__init__(pairs, direction, degradation, skip_bad, told)
        if axes == 3 and degradation is not None:
            raise ValueError("degrade is for pictures, and this network is of volumes")
        self._settings = kind, crops, image_size, direction, channels, degradation, resample, cache, axes
        self.settings = str(self._settings)
        self.kind = kind
        self.crops = crops
        self._resized_to = None if image_size is None or crops is not None else images.sides(image_size)
        self.axes = axes
        sides = pairs[0].opened()
        pictures = chain(*_by_role(sides))
        self.masked = sides.mask is not None or any(each.nodata is not None for each in pictures)
        same_size, told_apart = self.masked or self._resized_to is None, crops is None and kind.slices is None
        self._reader = Reader(channels, same_size, resample, cache, told, told_apart)
        self._ranges: dict[tuple[Path, ...], Values] = {}  # of percentiles
        sides = self._opened(0)
        plane = in_plane(sides.sources[0].size, sides)
        if axes == 2 and len(plane) != 2:
            raise ValueError(f"{pairs[0]} is a volume: say which slices of it are meant, such as --slices axial")
        if axes != len(plane):
            raise ValueError(f"{pairs[0]} has {len(plane)} axes, and this network is of volumes, which have {axes}")
        self.image_size = images.as_size(crops.size if crops else self._resized_to or plane, axes)
        count, self.channels = map(self._reader.channels, _by_role(sides))
        self.channels = self.channels or count
        self.source_channels = kind.planes * count
        for each, values in ((count, kind.source), (self.channels, kind.target)):
            check_channels(values, each, str(pairs[0]))

    @cached_property
    def spacing(self) -> tuple[float, ...] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The spacing of the voxels of targets; see :class:`Examples`."""
        entries = self.pairs.volumes if isinstance(self.pairs, Slices) else self.pairs if self.axes == 3 else []
        found = [(sides.target or sides.sources[0]).geometry.spacing for sides in (entry.opened() for entry in entries)]
        known = [spacing for spacing in found if spacing is not None]
        return tuple(np.median(known, axis=0).round(6).tolist()) if known else None

    @property
    def _each(self) -> int:
        """The examples of a pair."""
        return self.crops.per_picture if self.crops else 1

    def __len__(self) -> int:
        return self._each * len(self.pairs)

    def order(self, seed: int) -> Order:
        """The order of the pairs in an epoch; the crops of one follow each other."""
        order, each = super().order(seed), self._each

        def crops(start: int, end: int) -> list[int]:
            pairs = order(start // each, -(-end // each))
            return [each * pair + crop for pair in pairs for crop in range(each)][start % each :][: end - start]

        return crops

    def prefetched(self, order: Iterable[int]) -> Iterator[int]:
        """The same indices, while what they need is fetched."""
        order, ahead = tee(order)
        for index, _ in zip(order, super().prefetched(index // self._each for index in ahead), strict=True):
            yield index

    def _opened(self, place: int) -> Sides:
        return self._reader.open(self.pairs[place], self.direction == "BtoA")

    def images(self, index: int) -> tuple[Picture, Picture | None]:
        """Source and target of pair ``index``, whole, in stored values; None for a missing target."""
        entry = self.pairs[index]

        def picture(side: Whole) -> Picture:
            return Picture(side.array, side.geometry, side.values.unit, entry.name)

        target = self.whole(entry, "target")
        return picture(self.whole(entry, "source")), None if target is None else picture(target)

    @overload
    def whole(self, entry: Entry, side: Literal["source"]) -> Whole: ...
    @overload
    def whole(self, entry: Entry, side: str) -> Whole | None: ...
    def whole(self, entry: Entry, side: str) -> Whole | None:
        """The source or the target of an entry, a pair of files; None for a missing target."""
        sides = self._reader.open(entry, self.direction == "BtoA")
        pictures = _by_role(sides)[side == "target"]
        if not pictures:
            return None
        array, absent = self._reader.part(pictures, sides)
        values = self._values(self.kind.target if side == "target" else self.kind.source, pictures)
        return Whole(array, pictures[0].geometry, values, absent if absent.any() else None, pictures[0].nodata)

    def strips(self, entry: Entry) -> Strips:
        """The source of an entry, of which rows are read."""
        sides = self._reader.open(entry, self.direction == "BtoA")
        pictures = _by_role(sides)[0]
        return self._reader.strips(pictures, sides, lambda: self._values(self.kind.source, pictures))

    def whole_mask(self, entry: Entry) -> npt.NDArray[np.bool_] | None:
        """(*S) whether pixels of an entry are in its mask; None without one."""
        sides = self._reader.open(entry, self.direction == "BtoA")
        return None if sides.mask is None else self._mask(sides, ())

    def look(self, place: int, whole: bool) -> list[tuple[int, int]]:
        """Nothing; see :meth:`PairExamples.look`. The pair's grids, channels and types are compared."""
        sides = self._opened(place)
        channels = [self._reader.channels(each) for each in _by_role(sides) if each]
        if channels != [self.source_channels // self.kind.planes, self.channels][: len(channels)]:
            raise ValueError(f"{self.pairs[place]} has {channels} channels, and {self.pairs[0]} others")
        size = in_plane(sides.sources[0].size, sides)
        if self.axes == 3 and self.crops is None and size != self.image_size:
            found, wanted = map(sizes.shown, (size, images.sides(self.image_size)))
            raise ValueError(
                f"{self.pairs[place]} has {found} voxels, and {self.pairs[0]} has {wanted}: train on crops, "
                "such as --crop 64x96x96"
            )
        self.told.check(self.pairs[place])
        if whole:
            self.conditions(self.pairs[place])
            for role in ("source", "target"):
                if (side := self.whole(self.pairs[place], role)) is not None:
                    side.check()
        return []

    def _of(self, pairs: Pairs, skip_bad: bool) -> ValuedDataset:
        return ValuedDataset(pairs, *self._settings, skip_bad, self.told)

    def _read(self, index: int, seed: int) -> Example:
        """Example ``index``: uint8 of 8-bit pictures, else float32; pixels without a value are -1, or 0."""
        place, number = divmod(index, self._each)
        pair = self.pairs[place]
        sides = self._opened(place)
        if sides.target is None and self.degradation is None:
            raise NoTargetError(f"{pair} has no target: this dataset can only be translated")
        others = self.told.others(pair)
        try:
            return self._example(pair.name, sides, f"{pair.name} {number}", seed, others)
        except ValueError as error:
            named = any(str(path) in str(error) for path in pair.files)
            raise ValueError(str(error) if named else f"{pair}: {error}") from error

    def _example(self, name: str, sides: Sides, key: str, seed: int, others: Mapping[str, torch.Tensor]) -> Example:
        """The example of opened pictures; ``key`` names its crop, and ``others`` are no images."""
        window: Window = ()
        if self.crops is not None:
            mask = None if sides.mask is None else lambda: self._mask(sides, ())
            window = self.crops.window(in_plane(sides.sources[0].size, sides), key, seed, mask)
        valid: Any = self._mask(sides, window) if sides.mask else np.True_
        made: list[torch.Tensor] = []
        first = [part.start or 0 for part in window]
        for pictures, values in zip(_by_role(sides), (self.kind.source, self.kind.target), strict=True):
            parts: list[torch.Tensor] = []
            for own, each in self._around(sides) if pictures is sides.sources else [(True, sides)]:
                if pictures:
                    array, absent = self._reader.part(pictures, each, window)
                    valid = valid & ~absent if self.masked and own else valid
                    parts.append(self._tensor(array, absent, self._values(values, pictures), first))
            made += [torch.cat(parts)] if len(parts) > 1 else parts
        if self.degradation is not None:
            drawn = f"{key} {seed}" if self.crops else name
            made.insert(0, _degraded(made[0], self.degradation, drawn))
        mask = torch.from_numpy(self._fitted(valid[None].astype(np.float32))) if self.masked else None
        return Example(made[0], made[1], {**others, **self._images(sides, window, self._fitted)}, mask, name)

    def conditions(self, entry: Entry) -> dict[str, torch.Tensor]:
        """What an entry is told besides the source; see :meth:`PairExamples.conditions`."""
        made = self.told.others(entry)
        return {**made, **self._images(self._reader.open(entry, self.direction == "BtoA"), (), np.ascontiguousarray)}

    def _images(self, sides: Sides, window: Window, fit: Callable[[Array], Array]) -> dict[str, torch.Tensor]:
        """The further images of opened pictures, in a window, at the size that a function gives them."""
        first = [part.start or 0 for part in window]
        made: dict[str, torch.Tensor] = {}
        for name, picture in zip(self.told.config.images, sides.told, strict=True):
            values = self.told.values.get(name)
            try:
                array, absent = self._reader.part((picture,), sides, window, converted=False)
                of = None if values is None else self._values(values, (picture,))
                made[name] = torch.from_numpy(fit(self.told.scaled(name, array, absent, of, first)))
            except ValueError as error:
                raise ValueError(f"{picture.path}: {error}") from error
        return made

    def _around(self, sides: Sides) -> list[tuple[bool, Sides]]:
        """The slices of a source from low to high places, and whether each is the example's own."""
        if sides.plane is None:
            return [(True, sides)]
        axis, place = sides.plane
        places = self.kind.places(place, sides.sources[0].size[axis])
        return [(i == self.kind.neighbours, sides._replace(plane=(axis, each))) for i, each in enumerate(places)]

    def _mask(self, sides: Sides, window: Window) -> npt.NDArray[np.bool_]:
        """(H, W) whether pixels are in the mask."""
        assert sides.mask is not None
        return (self._reader.part((sides.mask,), sides, window)[0] != 0).any(axis=0)

    def _values(self, values: AnyValues, pictures: Sequence[LazyPicture]) -> Values:
        """The values of pictures: those of percentiles are measured once on the whole ones."""
        if isinstance(values, Values):
            return values
        key = tuple(picture.path for picture in pictures)
        if key not in self._ranges:
            self._ranges[key] = values.of(self._reader.sample(pictures))
        return self._ranges[key]

    def _tensor(self, array: Array, absent: Array, values: Values, first: Sequence[int]) -> torch.Tensor:
        """(C, *S) of stored values as a tensor; ``first`` is the place of its first pixel in the picture."""
        if values == EIGHT_BIT:
            if array.dtype != np.uint8:
                raise images.more_than_8_bits(array)
            made = np.where(absent, np.uint8(0), array) if absent.any() else array
        else:
            made = scaled_present(values, array, absent, first)
        return torch.from_numpy(self._fitted(made))

    def _fitted(self, array: Array) -> Array:
        """The array at the size that whole pictures are resized to, each channel for itself."""
        if self._resized_to is None or array.shape[1:] == self._resized_to:
            return np.ascontiguousarray(array)
        return images.fitted(array, self._resized_to)


def _by_role(sides: Sides) -> tuple[tuple[LazyPicture, ...], tuple[LazyPicture, ...]]:
    """The pictures of the source, and of the target."""
    return sides.sources, () if sides.target is None else (sides.target,)


def _degraded(target: torch.Tensor, degradation: Degradation, name: str) -> torch.Tensor:
    """The source of a target (1 or 3, H, W) of 8 bits."""
    if target.dtype != torch.uint8 or len(target) not in (1, 3):
        raise ValueError(f"degrade is for grey and colour of 8 bits, got {len(target)} channels of {target.dtype}")
    pixels = target.permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels[:, :, 0] if len(target) == 1 else np.ascontiguousarray(pixels))
    return torch.from_numpy(images.to_pixels(degradation(image, name), len(target)))
