"""The pictures of a row: its cells opened, cropped once, scaled and resized, for examples and scores alike.

A file of which no part can be read alone is decoded whole: once into a cache, or a few are kept in memory.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from bbdm import pictures
from bbdm.base.atomic import stamp
from bbdm.data.cache import Cache
from bbdm.data.degradations import Prepare
from bbdm.data.rows import Half, Row, check_grids, shown
from bbdm.data.spec import AXES, ROLES, Spec
from bbdm.data.tables import picture_of
from bbdm.pictures import Geometry, Header, Picture, formats, images
from bbdm.pictures.formats import Window
from bbdm.pictures.picture import OF_PHOTOGRAPH
from bbdm.pictures.values import EIGHT_BIT, AnyValues, Values, check_finite, scaled_present

KEPT = 6  # decoded pictures in memory
HEADERS = 4096  # that are kept
SAMPLED = 2**24  # pixels of a picture from which percentiles are those of an even share of its rows
DECODING = 4  # times the bytes of a picture that decoding it whole takes
Array = npt.NDArray[Any]


class Column(NamedTuple):
    """The pictures of a column in a row, or a window of them, in stored values."""

    array: Array  # (C, *S), the channels of all
    absent: Any  # (*S) where a pixel has no value, or False
    pictures: Sequence[Picture]  # as they were read
    cells: Sequence[Any]  # what the row has, such as paths
    slices: Sequence[int] = ()  # those that an example has, by their indices in the window; () for the whole


class Strips(NamedTuple):
    """A source that is larger than memory, in stored values, of which rows of pixels are read."""

    shape: tuple[int, ...]  # (C, H, W)
    dtype: np.dtype[Any]
    decoded: int  # bytes that decoding takes of files of which no part can be read alone
    masked: bool  # whether a pixel may have no value
    geometry: Geometry  # of the first file
    values: Callable[[], Values]  # of the whole picture
    read: Callable[[slice], tuple[Array, Array]]  # (C, rows, W), and (rows, W) where a pixel has no value
    forget: Callable[[], Any]  # what is decoded


class Reader:
    """Opens the cells and columns of rows: paths, halves of files, encoded pictures and arrays.

    Args:
        spec: what an example is.
        cache: of decoded files and of resized photographs; None to keep a few in memory.
        prepare: changes the arrays of a row; None for none.
        paired: whether the pictures of a row show the same, so that they lie on one grid.

    Attributes: ``masked``, whether pixels may not count.
    """

    def __init__(
        self, spec: Spec, cache: Cache | None = None, prepare: Prepare | None = None, paired: bool = True
    ) -> None:
        self.spec, self.cache, self.prepare, self.paired, self.masked = spec, cache, prepare, paired, False
        self.images = [name for name, each in spec.conditions.items() if each.kind == "image"]
        self.axis = None if spec.slices is None else AXES[spec.slices]  # across the plane of slices
        self._partial = spec.crop is not None or self.axis is not None  # whether examples are parts of pictures
        self._checked: set[str] = set()  # names of rows whose grids were compared
        self._size: Any = spec.size if spec.crop is None else None
        self.forget()

    def forget(self) -> None:
        """Forget what was decoded and looked at."""
        self._whole = lru_cache(KEPT)(pictures.read if self.cache is None else self._decoded)
        self._photograph = lru_cache(KEPT)(lambda path: images.pixels(images.open_image(path)))
        self._headers = lru_cache(HEADERS)(pictures.header)
        self._measured = lru_cache(None)(lambda values, cell: values.of(self._sample(cell)))

    def __reduce__(self) -> Any:  # each process keeps its own pictures
        return Reader, (self.spec, self.cache, self.prepare, self.paired), {"masked": self.masked}

    def _stored(self, cell: Path | Half, how: str, make: Callable[[], Array]) -> Array:
        """What is made of a file as it is now, from the cache; ``how`` says what."""
        assert self.cache is not None
        path, side = (cell, "") if isinstance(cell, Path) else cell
        about = f"{how}\n{side} {stamp(path.absolute())}"
        key = hashlib.sha256(about.encode()).hexdigest()[:32]
        return self.cache(key, lambda: {"picture": torch.from_numpy(np.array(make()))})["picture"].numpy()

    def _decoded(self, path: Path) -> Picture:
        """A file as a whole, from the cache."""
        array = self._stored(path, "decoded", lambda: pictures.read(path))
        return Picture(array, self._headers(path).geometry, name=path.name)

    def _resized(self, cell: Path | Half) -> Picture:
        """A photograph at the size of examples, by the cache; resizing what is no array yet is faster."""
        spec = self.spec

        def make() -> Array:
            image = images.open_image(cell) if isinstance(cell, Path) else images.image_of(np.asarray(self.read(cell)))
            image = image if spec.channels is None else images.convert(image, spec.channels)
            return images.pixels(images.resized(image, self._size, spec.resize))

        how = f"{spec.channels} channels, {self._size}, {spec.resize}"
        return Picture(make() if self.cache is None else self._stored(cell, how, make), OF_PHOTOGRAPH)

    def header(self, cell: Any) -> Header | Picture:
        """Sides, type and geometry of a cell; of what is in memory, the picture."""
        if isinstance(cell, Half):
            head = self._headers(cell.path)
            return replace(head, shape=(*head.shape[:-1], head.shape[-1] // 2))
        return self._headers(cell) if isinstance(cell, Path) else self.read(cell)

    def read(self, cell: Any, window: Window = ()) -> Picture:
        """A cell as a picture (C, *S); rows of numbers are (1, L, D), and lists are arrays too.

        ``window`` is a slice for each spatial axis, () for all. ValueError for what is damaged or no picture.
        """
        if isinstance(cell, Path):
            head = self._headers(cell) if window or self.cache is not None else None
            if head is None or head.windowed:
                return pictures.read(head or cell, window)
            picture = self._whole(cell)
        elif isinstance(cell, Half):
            pixels = self._photograph(cell.path)
            half, rest = divmod(width := pixels.shape[2], 2)
            if rest:
                raise ValueError(f"{cell} is {width} pixels wide: two pictures side by side need an even width")
            picture = Picture(pixels[:, :, cell.side * half : (cell.side + 1) * half], OF_PHOTOGRAPH)
        else:
            picture = picture_of(cell)
        return picture[(slice(None), *window)] if window else picture  # pyright: ignore[reportReturnType]

    def values(self, values: AnyValues, cells: Sequence[Any]) -> Values:
        """The values of some pictures: percentiles are of each channel, and measured once of a file."""
        if isinstance(values, Values):
            return values
        found = [
            self._measured(values, cell) if isinstance(cell, Path | Half) else values.of(self._sample(cell))
            for cell in cells
        ]
        low, high = (tuple(chain(*(getattr(each, end) for each in found))) for end in ("low", "high"))
        return Values(low, high, dtype="float32")

    def _sample(self, cell: Any) -> Array:
        """(C, N) pixels of a picture that have a value; of a large one, of some rows."""
        head = self.header(cell)
        (height, *others), step = head.sides, -(-math.prod(head.sides) // SAMPLED)
        rows = [slice(row, row + 1) for row in range(0, height, step)] if step > 1 else [slice(0, height)]
        parts = [self.read(cell, (each, *(slice(0, side) for side in others))) for each in rows]
        picture = Picture(np.concatenate(parts, axis=1), head.geometry)
        return np.asarray(picture)[:, ~picture.absent()]

    def columns(self, row: Row) -> dict[str, tuple[Any, ...]]:
        """The cells of a row's pictures: source and target by the direction, mask, images of conditions."""
        cells = {name: row.get(name) for name in (*ROLES, "mask", *self.images)}
        found = {n: cell if type(cell) is tuple else () if cell is None else (cell,) for n, cell in cells.items()}
        if self.spec.direction != "AtoB" and not len(found["source"]) == len(found["target"]) == 1:
            raise ValueError(f"{shown(row)}: direction {self.spec.direction!r} needs one source and one target")
        if self.spec.direction == "BtoA":
            found["source"], found["target"] = found["target"], found["source"]
        if not found["source"]:
            raise ValueError(f"{shown(row)} has no source")
        return found

    def heads(self, row: Row) -> dict[str, list[Header | Picture]]:
        """The headers of a row's pictures by column; see :meth:`columns`."""
        return {name: [*map(self.header, cells)] for name, cells in self.columns(row).items()}

    def channels(self, head: Header | Picture) -> int:
        """The channels that a picture has in examples."""
        return self.spec.channels or head.shape[0] if head.photograph else head.shape[0]

    def _column(self, name: str, cells: Sequence[Any], window: Window = ()) -> Column:
        """Cells of a column in a window, as one: slices with their neighbours, photographs resized."""
        slices: Sequence[int] = ()
        if window and self.axis is not None:
            around = [window[self.axis].start]
            if name == "source" and self.spec.neighbours:
                around = self.spec.around(around[0], self.header(cells[0]).sides[self.axis])
            window = (*window[: self.axis], slice(around[0], around[-1] + 1), *window[self.axis + 1 :])
            slices = [each - around[0] for each in around]
        channels = self.spec.channels if name in ROLES else None
        kinds: Any = ()  # of cells whose photographs are resized before they are arrays
        if self._size is not None and not window and not self.masked and getattr(self.spec, name, None) == EIGHT_BIT:
            kinds = Path if self.cache is None else Path | Half
        opened: list[Picture] = []
        arrays: list[Array] = []
        absent: Any = False
        for cell in cells:
            early = isinstance(cell, kinds) and formats.is_photograph(str(cell))
            opened.append(picture := self._resized(cell) if early else self.read(cell, window))
            array = np.asarray(picture)
            if picture.geometry.nodata is not None:
                absent = absent | picture.absent()
            if channels is not None and array.ndim == 3 and len(array) != channels and picture.photograph:
                array = images.recoloured(array, channels)
            arrays.append(array)
        return Column(arrays[0] if len(arrays) == 1 else np.concatenate(arrays), absent, opened, cells, slices)

    def open(
        self,
        row: Row,
        names: Collection[str] | None = None,
        index: int | None = None,
        crop: tuple[str, int] | None = None,
    ) -> dict[str, Column]:
        """Columns of a row, None for all, on one grid; ValueError if a file cannot be read or grids differ.

        ``index`` is of a slice, None for the whole; ``crop`` the key and the seed of a window, None for none.
        """
        columns, window = self.columns(row), Window()
        if self._partial and row["name"] not in self._checked:
            check_grids(columns, self.heads(row), columns, self.paired)
            self._checked.add(row["name"])
        if index is not None or (crop is not None and self.spec.crop is not None):
            window = self.spec.window(self.header(columns["source"][0]).shape[1:], index, crop)
        chosen = {name: cells for name, cells in columns.items() if cells and (names is None or name in names)}
        found = {name: self._column(name, cells, window) for name, cells in chosen.items()}
        if not self._partial:
            grids = {(each.shape[1:], each.geometry.affine) for column in found.values() for each in column.pictures}
            if len(grids) > 1:
                sized = columns.keys() - self.images if self.masked or self.spec.size is None else ()
                check_grids(columns, {name: column.pictures for name, column in found.items()}, sized, self.paired)
        return found

    def scaled(self, name: str, column: Column, values: AnyValues, channels: int | None = None) -> Array:
        """(C, *S) as uint8 of 8 bits, else as float32 in [-1, 1]; 0 or -1 where there is no value.

        Whole pictures have the size of examples. The channels of a source are those of all slices around it.
        Values of 8 bits are also of floats in [-1, 1]; others that have no range, NaN and infinity are a
        ValueError. ``channels`` are 1 or 3, which 8-bit grey and colour become; None for their own.
        """
        values = values if isinstance(values, Values) else self.values(values, column.cells)
        array, absent = column.array, column.absent
        holes = absent is not False and bool(np.any(absent))
        if values != EIGHT_BIT:
            try:
                array = scaled_present(values, array, np.asarray(absent))
            except ValueError as error:
                if array.dtype.kind == "f" and column.pictures[0].geometry.format == "geotiff":
                    raise ValueError(f"{error}; nodata=nan in the file makes such pixels absent") from error
                raise
        elif array.dtype == np.uint8:
            array = array if channels in (None, len(array)) else images.recoloured(array, channels)
            array = np.where(absent, np.uint8(0), array) if holes else array
        else:
            check_finite(array, absent)
            levels = array[:, ~absent] if holes else array
            if array.dtype.kind != "f" or abs(levels).max(initial=0) > images.RANGE_LIMIT:
                found, usual = images.ranges(levels)
                how = f"give their range, such as {usual}, or 8 bits, or floats in [-1, 1]"
                raise ValueError(f"{name} has values from {found} in {array.dtype}: {how}")
            array = np.where(absent, -1, array).astype(np.float32)
        if column.slices:
            array = np.concatenate([array.take(index, 1 + (self.axis or 0)) for index in column.slices])
        if self._size is None:
            return np.require(array, requirements=["C", "W"])
        return images.fitted(array, self._size, self.spec.resize)

    def mask(self, columns: Mapping[str, Column]) -> Array:
        """(1, *S) float32, 1 where pixels count: in the mask, with a value in source and target."""
        whole: Any = True
        for name, column in columns.items():
            if name not in (*ROLES, "mask"):
                continue
            inside = ~np.broadcast_to(column.absent, column.array.shape[1:])
            if name == "mask":
                inside = (column.array != 0).any(axis=0)
            if column.slices:  # of which the example's own is in the middle
                inside = inside.take(column.slices[len(column.slices) // 2], self.axis)
            whole = whole & inside
        return images.fitted(np.asarray(whole[None], np.float32), self._size, self.spec.resize)

    def slices(self, row: Row) -> Sequence[int]:
        """The slices of a volume that are examples: those of which something lies in the mask."""
        assert self.axis is not None
        columns = self.columns(row)
        sides = self.header((columns["target"] or columns["source"])[0]).sides
        if len(sides) != 3:
            raise ValueError(f"{shown(row)} has {len(sides)} axes, and slices are of volumes, which have 3")
        if not columns["mask"]:
            return range(sides[self.axis])
        inside = self.open(row, ["mask"])["mask"].array != 0
        return np.flatnonzero(inside.any(axis=tuple(each for each in range(4) if each != 1 + self.axis))).tolist()

    def whole(self, row: Row) -> dict[str, Column]:
        """Source, target and mask of a row, which may be a volume of several examples, in stored values.

        What is resized or prepared for examples is so here too, the mask aside.
        """
        found = self.open(row, (*ROLES, "mask"))
        if self.spec.size is None and self.prepare is None:
            return found
        how = self._size, self.spec.resize
        arrays = {role: images.fitted(found[role].array, *how) for role in ROLES if role in found}
        arrays = arrays if self.prepare is None else self.prepare(arrays, row["name"])
        like = {role: found.get(role, found["source"]) for role in arrays}
        return found | {role: like[role]._replace(array=array, absent=False) for role, array in arrays.items()}

    def strips(self, row: Row) -> Strips:
        """The source of a row by strips; one that is resized or prepared is read as a whole."""
        cells, spec = self.columns(row)["source"], self.spec
        heads = [*map(self.header, cells)]
        array = self.whole(row)["source"].array if spec.size is not None or self.prepare is not None else None

        def read(rows: slice) -> tuple[Array, Any]:
            if array is not None:
                return array[:, rows], np.zeros((rows.stop - rows.start, array.shape[2]), bool)
            found = self._column("source", cells, (rows, slice(0, heads[0].sides[1])))
            return found.array, np.broadcast_to(found.absent, found.array.shape[1:])

        whole = [head for head in heads if not (isinstance(head, Header) and head.windowed)]
        return Strips(
            shape=(sum(map(self.channels, heads)), *heads[0].sides) if array is None else array.shape,
            dtype=np.result_type(*(head.dtype for head in heads)),
            decoded=DECODING * sum(int(np.prod(head.shape)) * head.dtype.itemsize for head in whole),
            masked=any(head.nodata is not None for head in heads),
            geometry=heads[0].geometry,
            values=lambda: self.values(spec.source, cells),
            read=read,
            forget=self.forget,
        )
