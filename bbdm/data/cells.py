"""The cells of a row that have pictures: reading them, the grid that they lie on, and the windows of crops.

A file of which no part can be read alone is decoded whole: once into a cache, or a few are kept in memory.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from bbdm import pictures
from bbdm.base import sizes
from bbdm.base.atomic import stamp
from bbdm.base.seeds import keyed
from bbdm.data.cache import Cache
from bbdm.data.rows import Half
from bbdm.pictures import Geometry, Header, Picture, images
from bbdm.pictures.formats import Window
from bbdm.pictures.picture import PHOTOGRAPH, same_grid
from bbdm.pictures.values import AnyValues, Values

KEPT = 6  # decoded pictures in memory
HEADERS = 4096  # that are kept
SAMPLED = 2**24  # pixels of a picture from which percentiles are those of an even share of its rows
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # of encoded pictures in a table
NPY = b"\x93NUMPY"  # how an encoded array begins
OF_PHOTOGRAPH = Geometry(format=PHOTOGRAPH)
Array = npt.NDArray[Any]


class Cells:
    """Opens cells: paths, halves of files, encoded pictures and arrays.

    Args:
        cache: of decoded pictures; None to keep a few in memory.
    """

    def __init__(self, cache: Cache | None = None) -> None:
        self.cache = cache
        self.forget()

    def forget(self) -> None:
        """Forget what was decoded and looked at."""
        self._whole = lru_cache(KEPT)(pictures.read if self.cache is None else self._decoded)
        self._photograph = lru_cache(KEPT)(lambda path: images.pixels(images.open_image(path)))
        self._headers = lru_cache(HEADERS)(pictures.header)
        self._measured = lru_cache(None)(lambda values, cell: values.of(self._sample(cell)))

    def stored(self, cells: Iterable[Any], how: str, make: Callable[[], Array]) -> Array:
        """What is made of files as they are now, from the cache; ``how`` says what."""
        assert self.cache is not None
        about = [f"{getattr(cell, 'side', '')} {stamp(getattr(cell, 'path', cell).absolute())}" for cell in cells]
        key = hashlib.sha256("\n".join([how, *about]).encode()).hexdigest()[:32]
        return self.cache(key, lambda: {"picture": torch.from_numpy(make())})["picture"].numpy()

    def _decoded(self, path: Path) -> Picture:
        """A file as a whole, from the cache."""
        array = self.stored([path], "decoded", lambda: np.array(pictures.read(path)))
        return Picture(array, self._headers(path).geometry, name=path.name)

    def header(self, cell: Any) -> Header | Picture:
        """Sides, type and geometry of a cell; of what is in memory, the picture."""
        if isinstance(cell, Half):
            head = self._headers(cell.path)
            return replace(head, shape=(*head.shape[:-1], head.shape[-1] // 2))
        return self._headers(cell) if isinstance(cell, Path) else self.read(cell)

    def read(
        self, cell: Any, window: Window = (), change: Callable[[Image.Image], Image.Image] | None = None
    ) -> Picture:
        """A cell as a picture (C, *S); rows of numbers are (1, L, D), and lists are arrays too.

        ``window`` is a slice for each spatial axis, () for all. ``change`` is what the photograph of a file
        becomes that is read as a whole. What is damaged or no picture is a ValueError.
        """
        if isinstance(cell, Path):
            head = self._headers(cell) if window or (self.cache is not None and change is None) else None
            if head is None or head.windowed:
                return pictures.read(head or cell, window, change)
            picture = self._whole(cell)
        elif isinstance(cell, Half):
            pixels = self._photograph(cell.path)
            half, rest = divmod(width := pixels.shape[2], 2)
            if rest:
                raise ValueError(f"{cell} is {width} pixels wide: two pictures side by side need an even width")
            picture = Picture(pixels[:, :, cell.side * half : (cell.side + 1) * half], OF_PHOTOGRAPH)
        elif isinstance(cell, bytes) and not cell.startswith(NPY):
            picture = Picture(images.pixels(images.open_image(cell, "in a table", FORMATS)), OF_PHOTOGRAPH)
        else:
            array = cell if isinstance(cell, np.ndarray) else _array(cell)
            picture = Picture(array[None] if array.ndim < 3 else array)
        return picture[(slice(None), *window)] if window else picture  # pyright: ignore[reportReturnType]

    def values(self, values: AnyValues, cells: Sequence[Any]) -> Values:
        """The values of some pictures: percentiles are of each channel, and measured once of a file."""
        if isinstance(values, Values):
            return values
        found: list[Values] = []
        for cell in cells:
            kept = isinstance(cell, Path | Half)
            found.append(self._measured(values, cell) if kept else values.of(self._sample(cell)))
        low, high = (tuple(chain(*(getattr(each, end) for each in found))) for end in ("low", "high"))
        return found[0] if len(found) == 1 else Values(low, high, dtype="float32")

    def _sample(self, cell: Any) -> Array:
        """(C, N) pixels of a picture that have a value; of a large one, of some rows."""
        head = self.header(cell)
        step = -(-int(np.prod(head.sides)) // SAMPLED)
        others = tuple(slice(0, side) for side in head.sides[1:])
        if isinstance(head, Header) and head.windowed and step > 1:
            rows = [self.read(cell, (slice(row, row + 1), *others)) for row in range(0, head.sides[0], step)]
            array = np.concatenate(rows, axis=1)
        else:  # by the cache, or what is kept
            array = self.read(cell, (slice(0, head.sides[0]), *others))[:, ::step]
        flat = Picture(array.reshape(len(array), -1), head.geometry)
        return np.asarray(flat)[:, ~flat.absent()]


def _array(cell: Any) -> Array:
    """The array of an encoded one, or of lists of numbers; ValueError for anything else."""
    if isinstance(cell, str):
        raise FileNotFoundError(f"there is no picture {cell}")
    try:
        found = np.load(io.BytesIO(cell), allow_pickle=False) if isinstance(cell, bytes) else np.array(cell, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"it is neither a picture nor an array of as many numbers each, {error}") from error
    return found


def check_grids(
    columns: Mapping[str, Sequence[Any]],
    heads: Mapping[str, Sequence[Header | Picture]],
    sized: Collection[str],
    paired: bool = True,
) -> None:
    """Raise ValueError where pictures of a row lie on another grid than its target, or its source.

    ``heads`` are the headers or pictures of some columns, and those in ``sized`` must have one size even
    where they do not say where they lie. Pictures that are not ``paired`` lie anywhere in the world.
    """
    role = "target" if columns["target"] else "source"
    if not heads.get(role):
        return
    like, name = heads[role][0], columns[role][0]
    for column, others in heads.items():
        for cell, other in zip(columns[column], others, strict=True):
            located = paired and None not in (like.geometry.affine, other.geometry.affine)
            compared = located or column in sized or len(like.sides) != len(other.sides)
            if not compared or (same_grid(other, like) if paired else other.sides == like.sides):
                continue
            how = "skimage.transform.resize(FIRST, SHAPE)"
            if like.geometry.kept.get("crs"):
                how = "rasterio.warp.reproject, or gdalwarp"
            elif len(like.geometry.affine or ()) == 4:
                how = "SimpleITK.Resample(SimpleITK.ReadImage(FIRST), SimpleITK.ReadImage(SECOND))"
            one, two = (x if isinstance(x, Half | Path) else y for x, y in ((cell, column), (name, role)))
            both = f"{one} and {two} lie on different grids, {other.grid} and {like.grid}"
            raise ValueError(f"{both}: resample the first to the second, such as {how}")


def crop_window(whole: Sequence[slice], size: Sequence[int], key: str, seed: int) -> Window:
    """The window of a crop in another, random by key and epoch; ValueError where that is smaller."""
    sides = [part.stop - part.start for part in whole]
    if len(sides) != len(size) or any(side < least for side, least in zip(sides, size, strict=True)):
        raise ValueError(f"it has {sizes.shown(sides)} pixels, and crops have {sizes.shown(size)}")
    random = np.random.Generator(np.random.PCG64(keyed(seed, key)))
    starts = [part.start + int(random.integers(side - n + 1)) for part, side, n in zip(whole, sides, size, strict=True)]
    return tuple(slice(start, start + length) for start, length in zip(starts, size, strict=True))
