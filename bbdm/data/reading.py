"""The pictures of a row: its cells opened, cropped once, scaled and resized, for examples and scores alike.

What a cell is as a picture, and what is kept of it, is of :mod:`bbdm.data.opening`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bbdm.data.cache import Cache
from bbdm.data.cells import ROLES, Cell, HalfCell, cell_of
from bbdm.data.degradations import Prepare
from bbdm.data.kinds import kind_of
from bbdm.data.opening import CellReader
from bbdm.data.rows import Row, check_grids, shown, values_of
from bbdm.data.scaling import (
    ALL_PRESENT,
    WHOLE,
    Absent,
    Column,
    in_unit_range,
    of_cells,
    off_nodata,
    resized_present,
)
from bbdm.data.sequences import frames_around
from bbdm.data.spec import AXES, Spec
from bbdm.pictures import Geometry, Header, Picture, formats, images
from bbdm.pictures.values import EIGHT_BIT, AnyValues, Values, scaled_present
from bbdm.pictures.windows import Chunks, Window

DECODING = 4  # times the bytes of a picture that decoding it whole takes
Array = npt.NDArray[Any]


class Strips(NamedTuple):
    """A source that is larger than memory, in stored values, of which parts are read."""

    shape: tuple[int, ...]  # (C, H, W)
    dtype: np.dtype[Any]
    decoded: int  # bytes that decoding takes of files of which no part can be read alone
    masked: bool  # whether a pixel may have no value
    geometry: Geometry  # of the first file
    values: Callable[[], Values]  # of the whole picture
    # (C, rows, columns), and where a pixel has no value
    read: Callable[[slice, slice], tuple[Array, Array]]
    forget: Callable[[], Any]  # what is decoded
    chunks: Chunks | None  # those of its file; None where all are stored, or it has none


class Reader(CellReader):
    """Opens the cells and columns of rows.

    Args:
        spec: what an example is.
        cache: of decoded files and of resized photographs; None to keep a few in memory.
        prepare: changes the arrays of a row; None for none.
        paired: whether the pictures of a row show the same, so that they lie on one grid.

    Attributes: ``masked``, whether pixels may not count.
    """

    def __init__(
        self,
        spec: Spec,
        cache: Cache | None = None,
        prepare: Prepare | None = None,
        paired: bool = True,
    ) -> None:
        super().__init__(cache)
        self.spec = spec
        self.prepare = prepare
        self.paired = paired
        self.masked = False
        self.images = [
            name for name in spec.conditions if kind_of(name, spec.conditions).is_picture
        ]
        self.axis = None if spec.slices is None else AXES[spec.slices]  # across the plane of slices
        # whether examples are parts of pictures
        self._partial = spec.crop is not None or self.axis is not None
        self._size = spec.size if spec.crop is None else None
        self._checked: set[str] = set()  # names of rows whose grids were compared
        self._eight_bit = {role for role in ROLES if getattr(spec, role) in (None, EIGHT_BIT)}

    def __reduce__(self) -> Any:  # each process keeps its own pictures
        return Reader, (self.spec, self.cache, self.prepare, self.paired), {"masked": self.masked}

    def cell(self, row: Row, column: str) -> Cell:
        """The one picture that a row has in a column.

        Raises:
            FileNotFoundError: it is a text.
            ValueError: the row has none.
        """
        if row.get(column) is None:
            raise ValueError(f"{shown(row)} has no {column}")
        return cell_of(row[column], f"{column} of {row['name']}")

    def columns(self, row: Row) -> dict[str, Sequence[Cell]]:
        """The cells of a row's pictures: source and target by the direction, mask, images of conditions."""
        columns: dict[str, Sequence[Cell]] = {}
        for name in (*ROLES, "mask", *self.images):
            value = row.get(name)
            if value is None:
                columns[name] = ()
            elif isinstance(value, Cell):
                columns[name] = (value,)
            else:
                columns[name] = [cell_of(value, row["name"]) for value in values_of(row, name)]
        direction = self.spec.direction
        if direction != "AtoB" and (len(columns["source"]) != 1 or len(columns["target"]) != 1):
            raise ValueError(
                f"{shown(row)}: direction {direction!r} needs one source and one target"
            )
        if direction == "BtoA":
            columns["source"], columns["target"] = columns["target"], columns["source"]
        if not columns["source"]:
            raise ValueError(f"{shown(row)} has no source")
        if self.spec.neighbours and self.spec.slices is None:
            columns["source"] = frames_around(columns["source"], self.spec.neighbours)
        return columns

    def heads(self, row: Row) -> dict[str, list[Header]]:
        """The headers of a row's pictures by column; see :meth:`columns`."""
        return {
            name: [self.header(cell) for cell in cells] for name, cells in self.columns(row).items()
        }

    def channels(self, head: Header | Picture) -> int:
        """The channels that a picture has in examples."""
        if head.photograph and self.spec.channels is not None:
            return self.spec.channels
        return head.shape[0]

    def _around(self, window: Window, cell: Cell) -> tuple[Window, Sequence[int]]:
        """The window of a slice with its neighbours, and the indices in it that a source has."""
        assert self.axis is not None
        index = window[self.axis].start
        indices = self.spec.around(index, self.header(cell).sides[self.axis])
        first = indices[0]
        wider = slice(first, indices[-1] + 1)
        return (*window[: self.axis], wider, *window[self.axis + 1 :]), [
            index - first for index in indices
        ]

    def _column(self, name: str, cells: Sequence[Cell], window: Window = ()) -> Column:
        """Cells of a column in a window, as one: slices with their neighbours, photographs resized."""
        slices: Sequence[int] = ()
        if window and self.axis is not None:
            slices = (0,)
            if name == "source" and self.spec.neighbours:
                window, slices = self._around(window, cells[0])
        channels = self.spec.channels if name in ROLES else None
        resizes = (
            self._size is not None and not window and not self.masked and name in self._eight_bit
        )
        opened: list[Picture] = []
        arrays: list[Array] = []
        absent = ALL_PRESENT
        for cell in cells:
            stores_half = self.cache is not None and isinstance(cell, HalfCell)
            if resizes and not cell.in_memory and (stores_half or self.is_photograph(cell)):
                assert self._size is not None
                picture = self.resized(cell, self._size, self.spec.resize, self.spec.channels)
            elif window or self.cache is not None:
                picture = self.read(cell, window)
            else:
                picture = cell.read()
            array = np.asarray(picture)
            if picture.geometry.nodata is not None:
                absent = absent | picture.absent()
            if channels is not None and len(array) != channels and picture.photograph:
                array = images.recoloured(array, channels)
            opened.append(picture)
            arrays.append(array)
        array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        return Column(array, absent, opened, cells, slices)

    def open(
        self,
        row: Row,
        names: Collection[str] | None = None,
        index: int | None = None,
        crop: tuple[str, int] | None = None,
    ) -> dict[str, Column]:
        """Columns of a row on one grid.

        Args:
            row: of a data set.
            names: of the columns; None for all.
            index: of a slice; None for the whole.
            crop: the key and the seed of a window; None for none.

        Raises:
            FileNotFoundError: a file does not exist.
            ValueError: a file cannot be read, or grids differ.
        """
        columns = self.columns(row)
        window = Window()
        if self._partial and row["name"] not in self._checked:
            check_grids(columns, self.heads(row), columns, self.paired)
            self._checked.add(row["name"])
        if index is not None or (crop is not None and self.spec.crop is not None):
            window = self.spec.window(self.header(columns["source"][0]).shape[1:], index, crop)
        opened: dict[str, Column] = {}
        grids: set[Any] = set()
        for name, cells in columns.items():
            if cells and (names is None or name in names):
                column = self._column(name, cells, window)
                opened[name] = column
                if not self._partial:
                    for picture in column.pictures:
                        place = picture.geometry
                        grids.add((picture.shape[1:], place.affine, place.kept.get("crs")))
        if len(grids) > 1:
            heads = {name: column.pictures for name, column in opened.items()}
            resizes = not self.masked and self.spec.size is not None
            check_grids(
                columns, heads, () if resizes else columns.keys() - self.images, self.paired
            )
        return opened

    def scaled(
        self, name: str, column: Column, values: AnyValues | None, channels: int | None = None
    ) -> Array:
        """(C, *S) as uint8 of 8 bits, else as float32 in [-1, 1]; 0 or -1 where there is no value.

        Whole pictures have the size of examples. The channels of a source are those of all slices around it.

        Args:
            name: of the column, for messages.
            column: the opened pictures, in stored values.
            values: the range of stored values; None for 8 bits, and for floats in [-1, 1].
            channels: 1 or 3, which 8-bit grey and colour become; None for their own.

        Raises:
            ValueError: NaN and infinity, or values other than 8 bits that have no range.
        """
        array = column.array
        absent = column.absent
        has_holes = bool(absent.any())
        empty: float = -1
        if array.dtype == np.uint8 and (values is None or values == EIGHT_BIT):
            empty = 0
            if channels is not None and len(array) != channels:
                array = images.recoloured(array, channels)
            if has_holes:
                array = np.where(absent, np.uint8(empty), array)
        else:
            try:
                if values is None:
                    array = in_unit_range(name, column)
                else:
                    if not isinstance(values, Values):
                        values = self.values(values, column.cells)
                    array = scaled_present(values, array, absent)
            except ValueError as error:
                raise of_cells(column, error) from error
        if column.slices:
            array = self._side_by_side(array, column.slices)
        if self._size is None:
            return np.require(array, requirements=["C", "W"])
        if has_holes:
            return resized_present(array, column, self._size, self.spec.resize, empty)[0]
        return images.fitted(array, self._size, self.spec.resize)

    def mask(self, columns: Mapping[str, Column]) -> Array:
        """(1, *S) float32, 1 where pixels count: in the mask, with a value in source and target.

        Of what is resized, a pixel counts where all of it has a value.
        """
        inside = np.ones((), np.bool_)
        present = np.ones((), np.bool_)
        for name, column in columns.items():
            if name not in (*ROLES, "mask"):
                continue
            has_value = ~np.broadcast_to(column.absent, column.array.shape[1:])
            if name == "mask":
                has_value = (column.array != 0).any(axis=0)
            if column.slices:  # of which the example's own is in the middle
                has_value = has_value.take(column.slices[len(column.slices) // 2], self.axis)
            inside = inside & has_value
            if name != "mask":
                present = present & has_value
        mask = images.fitted(inside[None].astype(np.float32), self._size, self.spec.resize)
        if self._size is not None and not present.all():
            weights = images.fitted(present[None].astype(np.float32), self._size, self.spec.resize)
            mask[weights < WHOLE] = 0
        return mask

    def slices(self, row: Row) -> Sequence[int]:
        """The slices of a volume that are examples: those of which something lies in the mask."""
        assert self.axis is not None
        columns = self.columns(row)
        sides = self.header((columns["target"] or columns["source"])[0]).sides
        if len(sides) != 3:
            raise ValueError(
                f"{shown(row)} has {len(sides)} axes, and slices are of volumes, which have 3"
            )
        if not columns["mask"]:
            return range(sides[self.axis])
        inside = self.open(row, ["mask"])["mask"].array != 0
        others = tuple(axis for axis in range(4) if axis != 1 + self.axis)
        return np.flatnonzero(inside.any(axis=others)).tolist()

    def whole(self, row: Row) -> dict[str, Column]:
        """Source, target and mask of a row, which may be a volume of several examples, in stored values.

        What is resized or prepared for examples is so here too, the mask aside.
        """
        opened = self.open(row, (*ROLES, "mask"))
        if self.spec.size is None and self.prepare is None:
            return opened
        resized = {role: self._whole_resized(opened[role]) for role in ROLES if role in opened}
        if self.prepare is not None:
            arrays = self.prepare(
                {role: column.array for role, column in resized.items()}, row["name"]
            )
            like = resized["source"]
            prepared: dict[str, Column] = {}
            for role, array in arrays.items():
                prepared[role] = resized.get(role, like)._replace(array=array, absent=ALL_PRESENT)
            resized = prepared
        return opened | resized

    def stored(self, column: Column) -> Array:
        """(C, *S) of an example's column in stored values, at the size of examples; none is clipped."""
        array = self._whole_resized(column).array
        if not column.slices:
            return array
        return self._side_by_side(array, column.slices)

    def _side_by_side(self, volume: Array, slices: Sequence[int]) -> Array:
        """(N * C, H, W) of N slices of a volume (C, D, H, W), by their indices."""
        assert self.axis is not None
        planes = [volume.take(index, 1 + self.axis) for index in slices]
        return np.concatenate(planes)

    def _whole_resized(self, column: Column) -> Column:
        """A column at the size of examples; a pixel of which a part has no value gets the file's nodata.

        No other pixel gets it by rounding.
        """
        has_holes = bool(column.absent.any())
        if self._size is None and has_holes:
            return column
        nodata = next(
            (picture.nodata for picture in column.pictures if picture.nodata is not None), None
        )
        if not has_holes:
            array = images.fitted(column.array, self._size, self.spec.resize)
            return column._replace(array=off_nodata(array, nodata), absent=ALL_PRESENT)
        assert nodata is not None
        array, is_present = resized_present(
            column.array, column, self._size, self.spec.resize, nodata
        )
        array = off_nodata(array, nodata)
        array[:, ~is_present] = nodata
        return column._replace(array=array, absent=~is_present)

    def strips(self, row: Row) -> Strips:
        """The source of a row by strips; one that is resized or prepared is read as a whole."""
        cells = self.columns(row)["source"]
        heads = [self.header(cell) for cell in cells]
        shape = (sum(map(self.channels, heads)), *heads[0].sides)
        whole: Column | None = None
        if self.spec.size is not None or self.prepare is not None:
            whole = self.whole(row)["source"]
            shape = whole.array.shape

        def read(rows: slice, columns: slice) -> tuple[Array, Absent]:
            if whole is not None:
                return whole.array[:, rows, columns], np.broadcast_to(whole.absent, shape[1:])[
                    rows, columns
                ]
            column = self._column("source", cells, (rows, columns))
            return column.array, np.broadcast_to(column.absent, column.array.shape[1:])

        decoded = [
            math.prod(head.shape) * head.dtype.itemsize for head in heads if not head.windowed
        ]
        chunks = None
        if whole is None and len(heads) == 1:
            chunks = formats.missing_chunks(heads[0])
        return Strips(
            shape=shape,
            dtype=np.result_type(*(head.dtype for head in heads)),
            decoded=DECODING * sum(decoded),
            masked=any(head.nodata is not None for head in heads),
            geometry=heads[0].geometry,
            values=lambda: self.values(self.spec.source_values, cells),
            read=read,
            forget=self.forget,
            chunks=chunks,
        )
