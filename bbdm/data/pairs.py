"""Rows as examples: pairs of pictures or volumes, whole, in crops, or as slices, as tensors in [-1, 1]."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bbdm.base.atomic import file_sha256, stamp
from bbdm.data import conditions
from bbdm.data.cache import Cache
from bbdm.data.crops import Window, crop_window
from bbdm.data.degradations import Prepare
from bbdm.data.examples import BadPicturesError, Example, Examples, NoTargetError, Order, Place, collate
from bbdm.data.reading import Part, Reader
from bbdm.data.row_pictures import ROLES, RowPictures
from bbdm.data.rows import Row, named, paths_of, shown
from bbdm.data.spec import Spec
from bbdm.data.tables import Streamed, StreamedRows, TableRows
from bbdm.pictures import Header, Picture, files, images
from bbdm.pictures.values import EIGHT_BIT, Values, check_channels

Array = npt.NDArray[Any]
Plane = tuple[int, int]  # of a slice: the axis across it, and its index along that
LOOKED_AT = 64  # rows, to find one that can be read


class Pairs(Examples):
    """The examples of rows.

    Args:
        rows: mappings with a name, a source, a target, and what else there is; see
            :func:`~bbdm.data.rows.read_rows`.
        spec: what an example is.
        cache: folder of decoded pictures, for crops and slices of files of which no part can be read alone;
            None to decode them again.
        prepare: changes the arrays of an example by column, after they are cropped and resized, such as a
            :class:`~bbdm.data.degradations.Degradation`; None for none. What it draws is a function of the
            key that it gets.
        skip_bad: the place of an example that cannot be read is taken by the next one that can. It is named
            in a warning, and counted; see :meth:`leave_out`.

    Attributes:
        pictures: reads the rows as wholes.

    Raises:
        ValueError: no row can be read, or the first one does not fit the spec.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        spec: Spec | None = None,
        cache: Path | None = None,
        prepare: Prepare | None = None,
        skip_bad: bool = False,
    ) -> None:
        spec = spec or Spec()
        reader = Reader(None if cache is None else Cache(cache, "decoded pictures", {}))
        known = conditions.fitted(spec.conditions, rows, reader)
        self.rows = rows.select([*ROLES, "mask", *known]) if isinstance(rows, TableRows) else rows
        self.cache, self.prepare, self.skip_bad = cache, prepare, skip_bad
        self.pictures = RowPictures(self.rows, spec, known, reader, prepare)
        row, heads = self._first()
        axes, sides = len(heads["source"][0].sides), self.pictures.plane_sides(heads["source"][0])
        if axes != (spec.axes if spec.slices is None else 3):
            which = "say which slices are meant, such as slices axial" if axes == 3 else "this network is of volumes"
            which = "slices are of volumes, which have 3" if spec.slices else f"examples {spec.axes}: {which}"
            raise ValueError(f"{shown(row)} has {axes} axes, and {which}")
        count, channels = (sum(map(self.pictures.channels, heads[role])) for role in ROLES)
        for each, values in ((count, spec.source), (channels or count, spec.target)):
            check_channels(values, each, shown(row))
        size = images.as_size(spec.crop or spec.size or sides, spec.axes)
        super().__init__(spec, size, channels or count, spec.planes * count)
        self.masked = bool(heads["mask"]) or any(head.nodata is not None for role in ROLES for head in heads[role])
        self.pictures.masked, self.further = self.masked, conditions.config_of(known)
        self._bytes = {role: [head.dtype.itemsize == 1 for head in heads[role]] for role in ROLES}
        self._planes = None if spec.slices is None else [self._slices(row) for row in self.rows]
        self._ends = [] if self._planes is None else list(accumulate(map(len, self._planes)))
        if self._planes is not None and not self._ends[-1]:
            raise ValueError("no slice has anything in its mask")
        resized = None if self.masked or spec.crop is not None else spec.size  # photographs, before they are arrays
        self._sizes = {role: resized if getattr(spec, role) == EIGHT_BIT else None for role in ROLES}
        self._crop = images.sides(size, spec.axes)
        self._count = spec.crops * (len(self.rows) if self._planes is None else self._ends[-1])

    def _first(self) -> tuple[Row, dict[str, list[Header | Picture]]]:
        """The first row that can be read, and the headers of its pictures."""
        failed: Exception | None = None
        for row in self.rows[: LOOKED_AT if self.skip_bad else 1]:
            try:
                columns = self.pictures.columns(row)
                return row, {
                    name: [self.pictures.reader.header(each) for each in values] for name, values in columns.items()
                }
            except (ValueError, FileNotFoundError) as error:
                failed = failed or error
        raise BadPicturesError(str(failed) if failed else "there are no rows")

    def _slices(self, row: Row) -> Sequence[int]:
        """The slices of a volume that are examples; with ``skip_bad``, none of one that cannot be read."""
        try:
            return self.pictures.slices(row)
        except (ValueError, FileNotFoundError) as error:
            if not self.skip_bad:
                raise
            self.leave_out([" ".join(str(error).split())])
            return ()

    def __len__(self) -> int:
        return self._count

    @property
    def ends(self) -> Sequence[int]:
        """See :attr:`Examples.ends`."""
        return self._ends or super().ends

    def order(self, seed: int) -> Order:
        """The examples of an epoch, a function of the seed; the crops of a picture follow each other."""
        crops = self.spec.crops
        if isinstance(self.rows, StreamedRows):
            return self.rows.order(crops)
        indices = torch.randperm(self._count // crops, generator=torch.Generator().manual_seed(seed))

        def order(start: int, end: int) -> list[int]:
            found = indices[start // crops : -(-end // crops)].tolist()
            return [crops * pair + crop for pair in found for crop in range(crops)][start % crops :][: end - start]

        return order

    def places(self, order: Iterable[int], seed: int) -> Iterator[Place]:
        """What :meth:`read` takes; of a stream, the rows themselves, which are read here in their order."""
        if not isinstance(self.rows, StreamedRows):
            yield from super().places(order, seed)
            return
        crops, order = self.spec.crops, list(order)
        stream = self.rows.rows(dict.fromkeys(index // crops for index in order), seed)
        last: Streamed | None = None
        for index in order:
            if last is None or last.number != index // crops:
                last = next(stream)
            yield Streamed(index, last.row), seed

    def shared(self, rank: int, processes: int) -> Examples:
        """The data set as one of several processes reads it; a stream is divided among them."""
        if isinstance(self.rows, StreamedRows):
            self.rows = self.rows.shared(rank, processes)
        return self

    def read(self, index: int | Streamed, seed: int = 0) -> Example:
        """Example ``index``; with ``skip_bad``, the next one that can be read."""
        streamed = index if isinstance(index, Streamed) else None
        start = index.number if isinstance(index, Streamed) else range(self._count)[index]  # IndexError ends iterations
        reasons: dict[str, None] = {}
        for number in range(start, start + self._count) if self.skip_bad and not streamed else (start,):
            row, plane, name, crop = self._locate(number % self._count if not streamed else number, streamed)
            try:
                example = self._example(row, plane, name, crop, seed)
                return example._replace(left_out="\n".join(reasons)) if reasons else example
            except NoTargetError:
                raise
            except (
                ValueError,
                FileNotFoundError,
            ) as error:  # not other OSErrors: a failing disk says nothing of a file
                reason = named(row, error)
                if not self.skip_bad or streamed:
                    raise BadPicturesError(reason) from error
                reasons[" ".join(reason.split())] = None
        raise BadPicturesError(f"none of {self._count} pairs can be read; the first: {next(iter(reasons))}")

    def batch(self, places: Iterable[Place]) -> Example:
        """A batch of examples. In a stream, others of it take the places of those that cannot be read."""
        if not (self.skip_bad and isinstance(self.rows, StreamedRows)):
            return super().batch(places)
        examples: list[Example | None] = []
        reasons: list[str] = []
        for index, seed in places:
            try:
                examples.append(self.read(index, seed))
            except BadPicturesError as error:
                examples.append(None)
                reasons.append(" ".join(str(error).split()))
        good = [each for each in examples if each is not None]
        if not good:
            raise BadPicturesError(reasons[0])
        full = [good[i % len(good)] if each is None else each for i, each in enumerate(examples)]
        return collate([full[0]._replace(left_out="\n".join(reasons)), *full[1:]])

    def _locate(self, index: int, streamed: Streamed | None) -> tuple[Row, Plane | None, str, int]:
        """The row, plane, name and number of the crop of example ``index``."""
        index, crop = divmod(index, self.spec.crops)
        if self._planes is None or self.pictures.axis is None:
            row = self.rows[index] if streamed is None else streamed.row
            return row, None, row["name"], crop
        volume = bisect_right(self._ends, index)
        row, plane = self.rows[volume], self._planes[volume][index - (self._ends[volume - 1] if volume else 0)]
        return row, (self.pictures.axis, plane), f"{row['name']}/{plane:04d}", crop

    def _example(self, row: Row, plane: Plane | None, name: str, crop: int, seed: int) -> Example:
        """Uint8 of 8-bit pictures, else float32; pixels without a value are 0, or -1."""
        spec, reader, window, key = self.spec, self.pictures.reader, (), f"{name} {crop}"
        columns = self.pictures.columns(row)
        if not columns["target"] and self.prepare is None:
            raise NoTargetError(f"{shown(row)} has no target: this data set can only be translated")
        if spec.crop is not None or plane is not None:
            if row["name"] not in self.pictures.checked:
                self.pictures.check(row, columns)
            if spec.crop is not None:
                window = self._window(columns, plane, key, seed)
        parts: dict[str, Part] = {}
        for column, values in columns.items():
            if values:
                own = column in ROLES
                size = self._sizes[column] if own else None
                parts[column] = reader.part(values, spec.channels if own else None, window, plane, size, spec.resize)
        if spec.crop is None and plane is None:
            heads = {column: part.pictures for column, part in parts.items()}
            if len({(each.shape[1:], each.geometry.affine) for part in heads.values() for each in part}) > 1:
                self.pictures.compare(columns, heads, False)
        first = [part.start for part in window]
        arrays: dict[str, Array] = {}
        for role, values in zip(ROLES, (spec.source, spec.target), strict=True):
            if role in parts:
                found = values if isinstance(values, Values) else reader.values(values, columns[role])
                if self._bytes[role] and self._bytes[role] != [
                    each.dtype.itemsize == 1 for each in parts[role].pictures
                ]:
                    kinds = ", ".join(str(each.dtype) for each in parts[role].pictures)
                    raise ValueError(f"its {role} has values of {kinds}, and that of the first pair other bits")
                around = [parts[role]]
                if plane is not None and spec.neighbours and role == "source":
                    around = self._around(columns, window, plane)
                array = [self.pictures.fitted(part.scaled(role, found, None, first)) for part in around]
                arrays[role] = np.concatenate(array) if len(array) > 1 else array[0]
        if self.prepare is not None:
            arrays = self.prepare(arrays, f"{key} {seed}" if spec.crop else name)
        source, target = (torch.from_numpy(arrays[role]) for role in ROLES)
        conditions = self.pictures.tensors(row, parts, window) if self.pictures.known else {}
        return Example(source, target, conditions, self._mask(parts) if self.masked else None, name)

    def _window(self, columns: Mapping[str, Sequence[Any]], plane: Plane | None, key: str, seed: int) -> Window:
        """The window of a crop, in the plane of a slice."""
        reader = self.pictures.reader
        shape, mask = reader.header(columns["source"][0]).shape[1:], None
        sides = tuple(side for axis, side in enumerate(shape) if axis != self.pictures.axis)
        if columns["mask"]:
            whole = tuple(slice(0, side) for side in sides)
            mask = lambda: (reader.part(columns["mask"], None, whole, plane).array != 0).any(axis=0)  # noqa: E731
        return crop_window(sides, self._crop, key, seed, self.spec.in_mask, mask)

    def _around(self, columns: Mapping[str, Sequence[Any]], window: Window, plane: Plane) -> list[Part]:
        """The source in the slices around a plane, from low to high indices."""
        axis, index = plane
        count = self.pictures.reader.header(columns["source"][0]).sides[axis]
        indices = self.spec.around(index, count)
        return [self.pictures.reader.part(columns["source"], self.spec.channels, window, (axis, i)) for i in indices]

    def _mask(self, parts: Mapping[str, Part]) -> torch.Tensor:
        """(1, *S) float32, 1 where pixels count: in the mask, with a value in source and target."""
        valid = np.ones(parts["source"].array.shape[1:], bool)
        for role in ROLES:
            valid = valid & ~np.asarray(parts[role].absent if role in parts else False)
        if "mask" in parts:
            valid = valid & (parts["mask"].array != 0).any(axis=0)
        return torch.from_numpy(self.pictures.fitted(valid[None].astype(np.float32)))

    @cached_property
    def spacing(self) -> tuple[float, ...] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The length of a voxel of volumes along each axis, the median; None where it is not known."""
        return self.pictures.spacing() if self.spec.axes == 3 or self.spec.slices else None

    @property
    def complete(self) -> Spec:
        """The spec, with the sizes and classes of conditions that were found in rows."""
        return replace(self.spec, conditions=self.pictures.known)

    def same_rows(self, other: Pairs) -> bool:
        """Whether another data set has the same rows."""
        if isinstance(self.rows, TableRows | StreamedRows):
            return isinstance(other.rows, type(self.rows)) and self.rows.digest == other.rows.digest
        return list(self.rows) == list(other.rows)

    def without(self, indices: Collection[int]) -> Pairs:
        """The data set without some of its rows."""
        rows = [self.rows[index] for index in range(len(self.rows)) if index not in indices]
        return Pairs(rows, self.complete, self.cache, self.prepare, self.skip_bad) if indices else self

    def settings(self) -> dict[str, Any]:
        """What decides the examples besides files: the spec, what prepares them, and classes of all rows."""
        labels = {name: each.label for name, each in self.pictures.known.items() if each.label is not None}
        prepared = {} if self.prepare is None else {"degradation": self._prepared}
        return {**super().settings(), **prepared, **({"labels": labels} if labels else {})}

    @property
    def _prepared(self) -> str:
        """The name of what prepares examples, the same in each process; "" for nothing."""
        return "" if self.prepare is None else getattr(self.prepare, "__qualname__", None) or str(self.prepare)

    def digest(self, columns: Collection[str] | None = None) -> str:
        """SHA-256 of all names, and of the content of the files in some columns; None for all."""
        digest = hashlib.sha256(self.names_digest().encode())
        if isinstance(self.rows, TableRows | StreamedRows):
            digest.update(self.rows.digest.encode())
            return digest.hexdigest()
        for row in self.rows:
            hashes = (file_sha256(file) for path in paths_of(row, columns) for file in files.files_of(path))
            digest.update(f"{row['name']} {' '.join(hashes)}\n".encode())
        return digest.hexdigest()

    def names_digest(self) -> str:
        """SHA-256 of the names of rows, or what names a table; of slices, and of conditions."""
        known = self.pictures.known
        about = {name: [str(each), each.size, each.classes, each.label] for name, each in known.items()}
        digest = hashlib.sha256(json.dumps([self._ends, self._prepared, about]).encode())
        if isinstance(self.rows, TableRows | StreamedRows):
            digest.update(f"{len(self.rows)} {self.rows.columns.names} {self.rows.digest}".encode())
            return digest.hexdigest()
        labels = [name for name, each in known.items() if each.kind == "class" and each.label is None]
        for row in self.rows:
            digest.update("\n".join([row["name"], *(str(row.get(name)) for name in labels)]).encode())
        return digest.hexdigest()

    def stamps_digest(self) -> str:
        """SHA-256 of the paths, sizes and times of all files; "" of tables, and where there are none."""
        if isinstance(self.rows, TableRows | StreamedRows):
            return ""
        paths = {file for row in self.rows for path in paths_of(row) for file in files.files_of(path)}
        stamps = "\n".join(sorted(stamp(path.absolute()) for path in paths))
        return hashlib.sha256(stamps.encode()).hexdigest() if paths else ""
