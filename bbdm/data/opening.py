"""Cells as pictures, and what is kept of them: headers, percentiles, and what was decoded or resized.

A file of which no part can be read alone is decoded whole: once into a cache, or a few are kept in memory.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bbdm import pictures
from bbdm.data.cache import Cache
from bbdm.data.cells import Cell, FileCell
from bbdm.pictures import Geometry, Header, Picture, images
from bbdm.pictures.images import Resize, Size
from bbdm.pictures.picture import OF_PHOTOGRAPH
from bbdm.pictures.values import AnyValues, Values
from bbdm.pictures.windows import Window

KEPT = 6  # decoded pictures in memory
HEADERS = 4096  # that are kept
SAMPLED = 2**24  # pixels of a picture from which percentiles are those of an even share of its rows
Array = npt.NDArray[Any]


class CellReader:
    """Opens cells.

    Args:
        cache: of decoded files and of resized photographs; None to keep a few in memory.
    """

    def __init__(self, cache: Cache | None = None) -> None:
        self.cache = cache
        self.forget()

    def forget(self) -> None:
        """Forget what was decoded and looked at."""
        self._whole = lru_cache(KEPT)(self._decoded)
        self._headers = lru_cache(HEADERS)(lambda cell: cell.header())
        self._photographs = lru_cache(HEADERS)(lambda cell: cell.is_photograph)
        self._placeless = lru_cache(HEADERS)(self._geometry_of_part)
        self._measured = lru_cache(None)(lambda values, cell: values.of(self._sample(cell)))

    def header(self, cell: Cell) -> Header:
        """Sides, type and geometry of a cell."""
        if cell.in_memory:
            return cell.header()
        return self._headers(cell)

    def is_photograph(self, cell: Cell) -> bool:
        """Whether a cell is a photograph of 8 bits, of which only the header is read."""
        return self._photographs(cell)

    def read(self, cell: Cell, window: Window = ()) -> Picture:
        """A cell as a picture (C, *S). A window of what is decoded whole does not know its place.

        Args:
            cell: what a row has.
            window: a slice for each spatial axis, () for all.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged or no picture.
        """
        if cell.in_memory:
            return cell.read(window)
        head = self.header(cell)
        if head.windowed:
            return pictures.read(head, window) if isinstance(cell, FileCell) else cell.read(window)
        picture = self._whole(cell)
        if not window:
            return picture
        part = np.asarray(picture)[(slice(None), *window)]
        return Picture(part, self._placeless(cell), picture.unit, picture.name)

    def resized(self, cell: Cell, size: Size, resize: Resize, channels: int | None) -> Picture:
        """A photograph at a size, by the cache; resizing it before it is an array is faster.

        Args:
            cell: the picture, which is a photograph.
            size: (height, width) of the result, or of a box.
            resize: ``stretch`` to exactly the size, or ``fit`` into the box.
            channels: 1 or 3, which grey and colour become; None for its own.

        Raises:
            ValueError: the picture is damaged.
        """

        def make() -> Array:
            image = cell.image()
            if channels is not None:
                image = images.convert(image, channels)
            return images.pixels(images.resized(image, size, resize))

        if self.cache is None:
            return Picture(make(), OF_PHOTOGRAPH)
        description = f"{channels} channels, {size}, {resize}"
        return Picture(self._stored(cell, description, make), OF_PHOTOGRAPH)

    def values(self, values: AnyValues, cells: Sequence[Cell]) -> Values:
        """The values of some pictures: percentiles are of each channel, and measured once of a file."""
        if isinstance(values, Values):
            return values
        measured: list[Values] = []
        for cell in cells:
            measured.append(
                values.of(self._sample(cell)) if cell.in_memory else self._measured(values, cell)
            )
        if len(measured) == 1:
            return measured[0]
        low = np.concatenate([values.low for values in measured]).tolist()
        high = np.concatenate([values.high for values in measured]).tolist()
        return Values(tuple(low), tuple(high), dtype="float32")

    def _sample(self, cell: Cell) -> Array:
        """(C, N) pixels of a picture that have a value; of a large one, of some rows."""
        head = self.header(cell)
        height, *others = head.sides
        step = -(-math.prod(head.sides) // SAMPLED)
        rows = [slice(0, height)]
        if step > 1:
            rows = [slice(row, row + 1) for row in range(0, height, step)]
        rest = [slice(0, side) for side in others]
        parts = [self.read(cell, (part, *rest)) for part in rows]
        picture = Picture(np.concatenate(parts, axis=1), head.geometry)
        return np.asarray(picture)[:, ~picture.absent()]

    def _stored(self, cell: Cell, description: str, make: Callable[[], Array]) -> Array:
        """What is made of a cell's files as they are now, from the cache; ``description`` says what it is."""
        assert self.cache is not None
        key = hashlib.sha256(f"{description}\n{cell.stamp()}".encode()).hexdigest()[:32]
        stored = self.cache(key, lambda: {"picture": torch.from_numpy(np.array(make()))})
        return stored["picture"].numpy()

    def _decoded(self, cell: Cell) -> Picture:
        """The whole picture of a cell, from the cache where there is one."""
        if self.cache is None:
            return cell.read()
        array = self._stored(cell, "decoded", cell.read)
        return Picture(array, self._headers(cell).geometry, name=Path(str(cell)).name)

    def _geometry_of_part(self, cell: Cell) -> Geometry:
        return replace(self._headers(cell).geometry, affine=None)
