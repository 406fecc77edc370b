"""The pictures of rows as wholes: their columns on one grid, in stored values, and what rows have besides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bbdm.data import conditions
from bbdm.data.crops import Window
from bbdm.data.degradations import Prepare
from bbdm.data.reading import DECODING, Part, Reader, Strips, check_grids
from bbdm.data.rows import Half, Row, shown
from bbdm.data.spec import AXES, Condition, Spec
from bbdm.pictures import Header, Picture, images
from bbdm.pictures.values import Values

Array = npt.NDArray[Any]
ROLES = ("source", "target")


class RowPictures:
    """Reads the pictures of rows.

    Args:
        rows: of a data set.
        spec: what an example is.
        known: its conditions, with their sizes and classes.
        reader: reads values of rows.
        prepare: changes the arrays of a row; None for none.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        spec: Spec,
        known: Mapping[str, Condition],
        reader: Reader,
        prepare: Prepare | None,
    ) -> None:
        self.rows, self.spec, self.known, self.reader, self.prepare = rows, spec, known, reader, prepare
        self.images = [name for name, each in known.items() if each.kind == "image"]
        self.axis = None if spec.slices is None else AXES[spec.slices]  # across the plane of slices
        self.masked = False  # whether pixels may not count
        self.checked: set[str] = set()  # names of rows whose grids were compared

    def columns(self, row: Row) -> dict[str, tuple[Any, ...]]:
        """The values of a row's pictures: source and target by the direction, mask, and images of conditions.

        Raises:
            ValueError: the direction needs one source and one target, and a row has others.
        """
        found = {name: row.get(name) for name in (*ROLES, "mask", *self.images)}
        if self.spec.direction == "BtoA":
            if found["target"] is None or type(found["source"]) is tuple:
                raise ValueError(f"{shown(row)}: direction 'BtoA' needs one source and one target")
            found["source"], found["target"] = found["target"], found["source"]
        if found["source"] is None:
            raise ValueError(f"{shown(row)} has no source")
        return {
            name: () if value is None else value if type(value) is tuple else (value,) for name, value in found.items()
        }

    def compare(self, columns: Mapping[str, Sequence[Any]], heads: Mapping[str, Sequence[Any]], parts: bool) -> None:
        """Raise ValueError where pictures of a row lie on other grids than its target, or its source.

        ``parts`` is whether an example is a part of them, so that all must have one size.
        """
        role = "target" if columns["target"] else "source"
        names = {
            column: [str(each) if isinstance(each, Half | Path) else column for each in values]
            for column, values in columns.items()
        }
        like, name = heads[role][0], names[role][0]
        for column in columns:
            sized = parts or (column not in self.images and (self.masked or self.spec.size is None))
            check_grids(like, heads.get(column, ()), [name, *names[column]], sized)

    def check(self, row: Row, columns: Mapping[str, Sequence[Any]]) -> None:
        """Compare the grids of a row's pictures by their headers, once."""
        if row["name"] not in self.checked:
            heads = {name: [self.reader.header(each) for each in values] for name, values in columns.items()}
            self.compare(columns, heads, self.spec.crop is not None or self.axis is not None)
            self.checked.add(row["name"])

    def channels(self, head: Header | Picture) -> int:
        """The channels that a picture has in examples."""
        return self.spec.channels or head.shape[0] if head.photograph else head.shape[0]

    def plane_sides(self, head: Header | Picture) -> tuple[int, ...]:
        """The sides of an example of a picture: without the axis across the plane of a slice."""
        return tuple(side for axis, side in enumerate(head.sides) if axis != self.axis)

    def slices(self, row: Row) -> Sequence[int]:
        """The slices of a volume that are examples: those of which something lies in the mask.

        Raises:
            ValueError: it is no volume, or cannot be read.
        """
        assert self.axis is not None
        columns = self.columns(row)
        sides = self.reader.header((columns["target"] or columns["source"])[0]).sides
        if len(sides) != 3:
            raise ValueError(f"{shown(row)} has {len(sides)} axes, and slices are of volumes, which have 3")
        if not columns["mask"]:
            return range(sides[self.axis])
        self.check(row, columns)
        inside = self.reader.part(columns["mask"], None, tuple(slice(0, side) for side in sides)).array != 0
        return np.flatnonzero(inside.any(axis=tuple(each for each in range(4) if each != 1 + self.axis))).tolist()

    def fitted(self, array: Array) -> Array:
        """An array at the size that whole pictures are resized to, in memory of its own."""
        if self.spec.size is None or self.spec.crop is not None:
            return np.ascontiguousarray(array) if array.flags.writeable else np.array(array, order="C")
        return images.fitted(array, self.spec.size, self.spec.resize)

    def tensors(self, row: Row, parts: Mapping[str, Part], window: Window) -> dict[str, torch.Tensor]:
        """What a row has besides the source, by name; ``parts`` are of its images, in a window.

        Raises:
            ValueError: something cannot be read, or does not fit; the message names it.
        """
        tensors: dict[str, torch.Tensor] = {}
        for name, each in self.known.items():
            if each.kind == "class":
                tensors[name] = conditions.class_number(name, each, row)
            elif each.kind == "tokens":
                tensors[name] = conditions.tokens(name, row, self.reader, each.size)
            elif name not in parts:
                raise ValueError(f"{shown(row)} has no {name}")
            else:
                values = None if each.values is None else self.reader.values(each.values, (row[name],))
                where, first = f"{name} of {shown(row)}", [part.start for part in window]
                array = self.fitted(parts[name].scaled(where, values, each.size, first))
                if len(array) != each.size:
                    raise ValueError(f"{where} has {len(array)} channels, and others have {each.size}")
                tensors[name] = torch.from_numpy(array)
        return tensors

    def conditions(self, index: int) -> dict[str, torch.Tensor]:
        """What row ``index``, as a whole, has besides the source: images, classes and tokens."""
        row = self.rows[index]
        columns = self.columns(row)
        parts = {name: self.reader.part(columns[name], None) for name in self.images if columns[name]}
        return self.tensors(row, parts, ())

    def whole(self, index: int) -> dict[str, Part]:
        """The source, target and mask of row ``index``, which may be a volume of several examples.

        They are in stored values; photographs have the size of examples.

        Raises:
            ValueError: a file cannot be read, or grids differ.
        """
        row = self.rows[index]
        columns = self.columns(row)
        self.check(row, columns)
        parts = {role: self.reader.part(columns[role], self.spec.channels) for role in ROLES if columns[role]}
        if self.spec.size is not None or self.prepare is not None:
            arrays = {role: self.fitted(part.array) for role, part in parts.items()}
            arrays = arrays if self.prepare is None else self.prepare(arrays, row["name"])
            parts = {
                role: Part(array, False, parts[role if role in parts else "source"].pictures)
                for role, array in arrays.items()
            }
        if columns["mask"]:
            parts["mask"] = self.reader.part(columns["mask"], None)
        return parts

    def headers(self, index: int, role: str) -> list[Header | Picture]:
        """The headers of a role's pictures in row ``index``."""
        return [self.reader.header(each) for each in self.columns(self.rows[index])[role]]

    def values(self, index: int, role: str) -> Values:
        """The range of a role's stored values in row ``index``; of percentiles, that of its own pixels."""
        of = self.spec.target if role == "target" else self.spec.source
        return self.reader.values(of, self.columns(self.rows[index])[role])

    def strips(self, index: int) -> Strips:
        """The source of row ``index``, a picture, of which rows of pixels are read."""
        values, channels = self.columns(self.rows[index])["source"], self.spec.channels
        heads = [self.reader.header(each) for each in values]
        decoded = [head for head in heads if not (isinstance(head, Header) and head.windowed)]
        resized = self.spec.size is not None or self.prepare is not None
        array = self.whole(index)["source"].array if resized else None

        def read(rows: slice) -> tuple[Array, Any]:
            if array is not None:
                return array[:, rows], np.zeros((rows.stop - rows.start, array.shape[2]), bool)
            part = self.reader.part(values, channels, (rows, slice(0, heads[0].sides[1])))
            return part.array, np.broadcast_to(part.absent, part.array.shape[1:])

        return Strips(
            shape=(sum(map(self.channels, heads)), *heads[0].sides) if array is None else array.shape,
            dtype=np.result_type(*(head.dtype for head in heads)),
            decoded=DECODING * sum(int(np.prod(head.shape)) * head.dtype.itemsize for head in decoded),
            nodata=heads[0].nodata,
            masked=any(head.nodata is not None for head in heads),
            geometry=heads[0].geometry,
            values=lambda: self.values(index, "source"),
            read=read,
            forget=self.reader.forget,
        )

    def spacing(self) -> tuple[float, ...] | None:
        """The length of the voxels of targets along each axis, the median; None where files do not say it."""
        found: list[tuple[float, ...]] = []
        for index in range(len(self.rows)):
            with suppress(ValueError, FileNotFoundError):
                head = (self.headers(index, "target") or self.headers(index, "source"))[0]
                found += [] if head.geometry.spacing is None else [head.geometry.spacing]
        return tuple(np.median(found, axis=0).round(6).tolist()) if found else None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "checked": set()}
