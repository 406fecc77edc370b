"""Rows as examples: pairs of pictures or volumes, whole, in crops, or as slices, as tensors in [-1, 1]."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from bbdm.base.atomic import file_sha256, stamp
from bbdm.data import conditions
from bbdm.data.cache import Cache
from bbdm.data.conditions import scaled
from bbdm.data.crops import Window, crop_window
from bbdm.data.examples import BadPicturesError, Example, Examples, NoTargetError, Order, Place, collate
from bbdm.data.reading import DECODING, Part, Reader, Strips, check_grids, is_photograph
from bbdm.data.rows import Row, paths_of, shown
from bbdm.data.spec import AXES, Spec
from bbdm.data.tables import Streamed, StreamedRows, TableRows
from bbdm.pictures import Header, Picture, files, images
from bbdm.pictures.values import EIGHT_BIT, Values, check_channels

Array = npt.NDArray[Any]
Prepare = Callable[[dict[str, Array], str], dict[str, Array]]  # of the columns' arrays (C, *S), and a key
LOOKED_AT = 64  # rows, to find one that can be read
ROLES = ("source", "target")


class Located(NamedTuple):
    """Where an example lies."""

    row: Row
    plane: tuple[int, int] | None  # of a slice: the axis across it, and its index along that
    name: str
    number: int  # of the crop


class Pairs(Examples):
    """The examples of rows.

    Args:
        rows: mappings with a name, a source, a target, and what else there is; see
            :func:`~bbdm.data.rows.read_rows`.
        spec: what an example is.
        cache: folder of decoded pictures, for crops and slices of files of which no part can be read alone;
            None to decode them again.
        prepare: changes the arrays of an example by their columns, after they are cropped and resized, such as
            a :class:`~bbdm.data.degradations.Degradation`; None for none. What it draws is a function of the
            key that it gets.
        skip_bad: the place of an example that cannot be read is taken by the next one that can. It is named in
            a warning, and counted; see :meth:`leave_out`.

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
        decoded = None if cache is None else Cache(cache, "decoded pictures", {})
        self._reader = Reader(decoded)
        complete = conditions.fitted(spec.conditions, rows, self._reader)
        self.rows = rows.select([*ROLES, *complete]) if isinstance(rows, TableRows) else rows
        self._conditions = complete
        self._images = [name for name, each in complete.items() if each.kind == "image"]
        self.prepare, self.skip_bad, self.cache = prepare, skip_bad, cache
        self.spec = spec
        self._checked: set[str] = set()  # names of rows whose grids were compared
        first, heads = self._first()
        source, target = heads["source"], heads["target"]
        self.masked = "mask" in first or any(head.nodata is not None for role in heads.values() for head in role)
        self._axis = None if spec.slices is None else AXES[spec.slices]
        sides = self._plane_sides(source[0])
        if spec.axes == 2 and len(sides) != 2:
            raise ValueError(f"{shown(first)} is a volume: say which slices are meant, such as slices axial")
        if spec.axes != len(sides):
            raise ValueError(
                f"{shown(first)} has {len(sides)} axes, and this network is of volumes, which have {spec.axes}"
            )
        count, channels = (sum(map(self._channels, role)) for role in (source, target))
        for each, values in ((count, spec.source), (channels or count, spec.target)):
            check_channels(values, each, shown(first))
        size = images.as_size(spec.crop or spec.size or sides, spec.axes)
        super().__init__(spec, size, channels or count, spec.planes * count)
        self.further = conditions.config_of(complete)
        self._planes = None if self._axis is None else [self._slices(row) for row in self.rows]
        self._ends = [] if self._planes is None else list(accumulate(map(len, self._planes)))
        if self._planes is not None and not self._ends[-1]:
            raise ValueError("no slice has anything in its mask")

    def _first(self) -> tuple[Row, dict[str, list[Header | Picture]]]:
        """The first row that can be read, and the headers of its pictures."""
        failed: Exception | None = None
        for row in self.rows[: LOOKED_AT if self.skip_bad else 1]:
            try:
                return row, {role: [self._reader.header(each) for each in self._values(row, role)] for role in ROLES}
            except (ValueError, FileNotFoundError) as error:
                failed = failed or error
        raise ValueError(str(failed) if failed else "there are no rows")

    def _values(self, row: Row, role: str) -> tuple[Any, ...]:
        """The source's or the target's values in a row, by the direction; () without a target."""
        if self.spec.direction == "BtoA":
            if row.get("target") is None or type(row["source"]) is tuple:
                raise ValueError(f"{shown(row)}: direction 'BtoA' needs one source and one target")
            role = {"source": "target", "target": "source"}.get(role, role)
        value = row.get(role)
        if value is None and role == "source":
            raise ValueError(f"{shown(row)} has no source")
        return () if value is None else value if type(value) is tuple else (value,)

    def _channels(self, head: Header | Picture) -> int:
        return self.spec.channels or head.shape[0] if is_photograph(head) else head.shape[0]

    def _plane_sides(self, head: Header | Picture) -> tuple[int, ...]:
        """The sides of an example of a picture: without the axis across the plane of a slice."""
        return tuple(side for axis, side in enumerate(head.sides) if axis != self._axis)

    def _slices(self, row: Row) -> Sequence[int]:
        """The slices of a volume that are examples: those of which something lies in the mask."""
        assert self._axis is not None
        try:
            sides = self._reader.header(self._values(row, "source")[0]).sides
            if len(sides) != 3:
                raise ValueError(f"{shown(row)} has {len(sides)} axes, and slices are of volumes, which have 3")
            if (mask := row.get("mask")) is None:
                return range(sides[self._axis])
            inside = self._reader.part((mask,), None, tuple(slice(0, side) for side in sides)).array != 0
            others = tuple(axis for axis in range(4) if axis != 1 + self._axis)
            return np.flatnonzero(inside.any(axis=others)).tolist()
        except (ValueError, FileNotFoundError) as error:
            if not self.skip_bad:
                raise
            self.leave_out([" ".join(str(error).split())])
            return ()

    def _columns(self, row: Row) -> dict[str, tuple[Any, ...]]:
        """The values of a row's pictures by column: source, target, mask, and images of conditions."""
        columns = {role: self._values(row, role) for role in ROLES}
        for name in ("mask", *self._images):
            columns[name] = () if row.get(name) is None else (row[name],)
        return columns

    def _compare(self, columns: Mapping[str, Sequence[Any]], heads: Mapping[str, Sequence[Any]], parts: bool) -> None:
        """Raise ValueError where pictures of a row, by column, lie on other grids than its target, or its source.

        ``parts`` is whether an example is a part of them, which all must have.
        """
        role = "target" if columns["target"] else "source"
        like, name = heads[role][0], columns[role][0]
        for column, values in columns.items():
            sized = parts or (column not in self._images and (self.masked or self.spec.size is None))
            check_grids(like, heads[column], [name, *values], sized)

    def __len__(self) -> int:
        return self.spec.crops * (len(self.rows) if self._planes is None else self._ends[-1])

    @property
    def ends(self) -> Sequence[int]:
        """See :attr:`Examples.ends`."""
        return self._ends or super().ends

    def _locate(self, index: int, row: Row | None) -> Located:
        """Where example ``index`` lies; ``row`` is that of a stream."""
        index, number = divmod(index, self.spec.crops)
        if self._planes is None:
            row = self.rows[index] if row is None else row
            return Located(row, None, row["name"], number)
        volume = bisect_right(self._ends, index)
        assert self._axis is not None
        plane = self._planes[volume][index - (self._ends[volume - 1] if volume else 0)]
        row = self.rows[volume]
        return Located(row, (self._axis, plane), f"{row['name']}/{plane:04d}", number)

    def order(self, seed: int) -> Order:
        """The examples of an epoch, a function of the seed; the crops of a picture follow each other."""
        crops = self.spec.crops
        if isinstance(self.rows, StreamedRows):
            pairs = self.rows.order()
        else:
            indices = torch.randperm(len(self) // crops, generator=torch.Generator().manual_seed(seed))
            pairs: Order = lambda start, end: indices[start:end].tolist()  # noqa: E731

        def order(start: int, end: int) -> list[int]:
            found = pairs(start // crops, -(-end // crops))
            return [crops * pair + crop for pair in found for crop in range(crops)][start % crops :][: end - start]

        return pairs if crops == 1 else order

    def places(self, order: Iterable[int], seed: int) -> Iterator[Place]:
        """What :meth:`read` takes; of a stream, the rows themselves, which are read here in their order."""
        if not isinstance(self.rows, StreamedRows):
            yield from super().places(order, seed)
            return
        crops = self.spec.crops
        last: Streamed | None = None
        order = list(order)
        wanted = dict.fromkeys(index // crops for index in order)
        stream = self.rows.rows(wanted, seed)
        for index in order:
            if last is None or last.index != index // crops:
                last = next(stream)
            yield Streamed(index, last.row), seed

    def shared(self, rank: int, processes: int) -> Examples:
        """The data set as one of several processes reads it; a stream is divided among them."""
        if isinstance(self.rows, StreamedRows):
            self.rows = self.rows.shared(rank, processes)
        return self

    def read(self, index: int | Streamed, seed: int = 0) -> Example:
        """Example ``index``; with ``skip_bad``, the next one that can be read."""
        if isinstance(index, Streamed):
            return self._named(self._locate(index.index, index.row), seed)
        start = range(len(self))[index]  # an IndexError beyond the end, which is what ends an iteration
        if not self.skip_bad:
            return self._named(self._locate(start, None), seed)
        reasons: dict[str, None] = {}
        for number in range(start, start + len(self)):
            try:
                example = self._named(self._locate(number % len(self), None), seed)
                return example._replace(left_out="\n".join(reasons)) if reasons else example
            except BadPicturesError as error:
                reasons[" ".join(str(error).split())] = None
        raise ValueError(f"none of {len(self)} pairs can be read; the first: {next(iter(reasons))}")

    def batch(self, places: Iterable[Place]) -> Example:
        """A batch of examples. In a stream, another of the batch takes the place of one that cannot be read."""
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
        made = [good[i % len(good)] if each is None else each for i, each in enumerate(examples)]
        made[0] = made[0]._replace(left_out="\n".join(reasons))
        return collate(made)

    def _named(self, where: Located, seed: int) -> Example:
        """An example; errors name its row."""
        try:
            return self._example(where, seed)
        except NoTargetError:
            raise
        except (ValueError, FileNotFoundError) as error:  # not other OSErrors: a disk that fails says nothing of a file
            named = any(str(path) in str(error) for path in (*paths_of(where.row), shown(where.row)))
            raise BadPicturesError(str(error) if named else f"{shown(where.row)}: {error}") from error

    def _example(self, where: Located, seed: int) -> Example:
        """Uint8 of 8-bit pictures, else float32; pixels without a value are 0, or -1."""
        row, plane, name, number = where
        spec, columns, key = self.spec, self._columns(where.row), f"{name} {number}"
        if not columns["target"] and self.prepare is None:
            raise NoTargetError(f"{shown(row)} has no target: this data set can only be translated")
        window: Window = ()
        if spec.crop is not None or plane is not None:
            self._check_row(row, columns)
            if spec.crop is not None:
                window = self._window(columns, plane, key, seed)
        parts = {each: self._part(each, values, window, plane) for each, values in columns.items() if values}
        if spec.crop is None and plane is None:
            self._compare(columns, {each: parts[each].pictures if each in parts else () for each in columns}, False)
        valid: Any = (parts["mask"].array != 0).any(axis=0) if "mask" in parts else np.True_
        arrays: dict[str, Array] = {}
        for role, values in zip(ROLES, (spec.source, spec.target), strict=True):
            if role in parts:
                valid = valid & ~np.asarray(parts[role].absent)
                found = self._reader.values(values, columns[role])
                around = [parts[role]] if plane is None or role == "target" else self._around(columns, window, plane)
                scaled_parts = [self._scaled(part, found, role, window) for part in around]
                arrays[role] = np.concatenate(scaled_parts) if len(around) > 1 else scaled_parts[0]
        mask = np.broadcast_to(valid, parts["source"].array.shape[1:])[None].astype(np.float32) if self.masked else None
        if self.prepare is not None:
            arrays = self.prepare(arrays, f"{key} {seed}" if spec.crop else name)
        source, target = (torch.from_numpy(arrays[role]) for role in ROLES)
        told = self._conditions_of(row, {each: parts[each] for each in self._images if each in parts}, window)
        return Example(source, target, told, None if mask is None else torch.from_numpy(self._fitted(mask)), name)

    def _window(
        self, columns: Mapping[str, Sequence[Any]], plane: tuple[int, int] | None, key: str, seed: int
    ) -> Window:
        """The window of a crop, in the plane of a slice."""
        sides = self._plane_sides(self._reader.header(columns["source"][0]))
        mask = None
        if columns["mask"]:
            whole = tuple(slice(0, side) for side in sides)
            mask = lambda: (self._part("mask", columns["mask"], whole, plane).array != 0).any(axis=0)  # noqa: E731
        return crop_window(sides, images.sides(self.image_size, len(sides)), key, seed, self.spec.in_mask, mask)

    def _part(self, column: str, values: Sequence[Any], window: Window, plane: tuple[int, int] | None) -> Part:
        """The channels of a column's values; grey and colour of photographs become one another in sides alone."""
        return self._reader.part(values, self.spec.channels if column in ROLES else None, window, plane)

    def _around(self, columns: Mapping[str, Sequence[Any]], window: Window, plane: tuple[int, int]) -> list[Part]:
        """The source in the slices around a plane, from low to high indices."""
        axis, index = plane
        count = self._reader.header(columns["source"][0]).sides[axis]
        around = self.spec.around(index, count)
        return [self._part("source", columns["source"], window, (axis, each)) for each in around]

    def _scaled(self, part: Part, values: Values, name: str, window: Window) -> Array:
        """Stored values as uint8 of 8 bits, else as float32 in [-1, 1], at the size of examples."""
        first = [each.start for each in window]
        return self._fitted(scaled(name, part, None if values == EIGHT_BIT else values, None, first))

    def _fitted(self, array: Array) -> Array:
        """An array at the size that whole pictures are resized to, each channel for itself."""
        if self.spec.size is None or self.spec.crop is not None:
            return np.ascontiguousarray(array) if array.flags.writeable else np.array(array, order="C")
        return images.fitted(array, self.spec.size, self.spec.resize)

    def _conditions_of(self, row: Row, parts: Mapping[str, Part], window: Window) -> dict[str, torch.Tensor]:
        """What a row has besides the source, by name; ``parts`` are of its images.

        Raises:
            ValueError: something cannot be read, or does not fit; the message names it.
        """
        tensors: dict[str, torch.Tensor] = {}
        for name, each in self._conditions.items():
            if each.kind == "class":
                tensors[name] = conditions.class_number(name, each, row)
            elif each.kind == "tokens":
                tensors[name] = conditions.tokens(name, row, self._reader, each.size)
            elif name not in parts:
                raise ValueError(f"{shown(row)} has no {name}")
            else:
                values = None if each.values is None else self._reader.values(each.values, (row[name],))
                first = [part.start for part in window]
                array = self._fitted(scaled(f"{name} of {shown(row)}", parts[name], values, each.size, first))
                if len(array) != each.size:
                    raise ValueError(f"{name} of {shown(row)} has {len(array)} channels, and others have {each.size}")
                tensors[name] = torch.from_numpy(array)
        return tensors

    def conditions(self, index: int) -> dict[str, torch.Tensor]:
        """What row ``index``, as a whole, has besides the source: images (K, *S), classes () and tokens (L, D)."""
        row = self.rows[index]
        columns = {name: self._columns(row)[name] for name in self._images}
        parts = {name: self._part(name, values, (), None) for name, values in columns.items() if values}
        return self._conditions_of(row, parts, ())

    def whole(self, index: int) -> dict[str, Part]:
        """Row ``index``, which may be a volume of several examples, in stored values, by role: source, target, mask.

        Photographs have the size of examples. A role that the row has not is left out.

        Raises:
            ValueError: a file cannot be read, or grids differ.
        """
        row = self.rows[index]
        columns = self._columns(row)
        self._check_row(row, columns)
        parts = {role: self._part(role, columns[role], (), None) for role in (*ROLES, "mask") if columns[role]}
        if self.spec.size is not None or self.prepare is not None:
            arrays = {role: self._fitted(part.array) for role, part in parts.items() if role in ROLES}
            arrays = arrays if self.prepare is None else self.prepare(arrays, row["name"])
            parts |= {role: Part(array, False, parts["source"].pictures) for role, array in arrays.items()}
        return parts

    @property
    def complete(self) -> Spec:
        """The spec, with the sizes and classes of conditions that were found in rows."""
        return replace(self.spec, conditions=self._conditions)

    def same_rows(self, other: Pairs) -> bool:
        """Whether another data set has the same rows."""
        if isinstance(self.rows, TableRows | StreamedRows):
            return isinstance(other.rows, type(self.rows)) and self.rows.digest == other.rows.digest
        return list(self.rows) == list(other.rows)

    def without(self, indices: Collection[int]) -> Pairs:
        """The data set without some of its rows."""
        if not indices:
            return self
        rows = [self.rows[index] for index in range(len(self.rows)) if index not in indices]
        return Pairs(rows, self.complete, self.cache, self.prepare, self.skip_bad)

    def strips(self, index: int) -> Strips:
        """The source of row ``index``, a picture, of which rows of pixels are read."""
        row = self.rows[index]
        values, reader, channels = self._values(row, "source"), self._reader, self.spec.channels
        heads = [reader.header(each) for each in values]
        parts = [head for head in heads if not (isinstance(head, Header) and head.windowed)]
        resized = self.whole(index)["source"].array if self.spec.size is not None or self.prepare is not None else None

        def read(rows: slice) -> tuple[Array, Any]:
            if resized is not None:
                return resized[:, rows], np.zeros((rows.stop - rows.start, resized.shape[2]), bool)
            part = reader.part(values, channels, (rows, slice(0, heads[0].sides[1])))
            return part.array, np.broadcast_to(part.absent, part.array.shape[1:])

        return Strips(
            (sum(map(self._channels, heads)), *heads[0].sides) if resized is None else resized.shape,
            np.result_type(*(head.dtype for head in heads)),
            DECODING * sum(int(np.prod(head.shape)) * head.dtype.itemsize for head in parts),
            heads[0].nodata,
            any(head.nodata is not None for head in heads),
            heads[0].geometry,
            lambda: self.values(index, "source"),
            read,
            reader.forget,
        )

    def _check_row(self, row: Row, columns: Mapping[str, Sequence[Any]]) -> None:
        """Compare the grids of a row's pictures by their headers, once."""
        if row["name"] not in self._checked:
            heads = {name: [self._reader.header(each) for each in values] for name, values in columns.items()}
            self._compare(columns, heads, self.spec.crop is not None or self._axis is not None)
            self._checked.add(row["name"])

    def values(self, index: int, role: str) -> Values:
        """The range of a role's stored values in row ``index``; of percentiles, those of its own pixels."""
        of = self.spec.target if role == "target" else self.spec.source
        return self._reader.values(of, self._values(self.rows[index], role))

    def headers(self, index: int, role: str) -> list[Header | Picture]:
        """The headers of a role's pictures in row ``index``."""
        return [self._reader.header(each) for each in self._values(self.rows[index], role)]

    @cached_property
    def spacing(self) -> tuple[float, ...] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The length of the voxels of volumes' targets along each axis, the median; None where it is not known."""
        if self.spec.axes == 2 and self._axis is None:
            return None
        found: list[tuple[float, ...]] = []
        for index in range(len(self.rows)):
            with suppress(ValueError, FileNotFoundError):
                head = (self.headers(index, "target") or self.headers(index, "source"))[0]
                found += [] if head.geometry.spacing is None else [head.geometry.spacing]
        return tuple(np.median(found, axis=0).round(6).tolist()) if found else None

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
        """SHA-256 of the names of rows, or what names a table; of their slices; and of labels and settings."""
        about = {name: [str(each), each.size, each.classes, each.label] for name, each in self._conditions.items()}
        digest = hashlib.sha256(json.dumps([self._ends, str(self.prepare or ""), about]).encode())
        if isinstance(self.rows, TableRows | StreamedRows):
            digest.update(f"{len(self.rows)} {self.rows.columns.names}".encode())
            return digest.hexdigest()
        own = [name for name, each in self._conditions.items() if each.kind == "class" and each.label is None]
        for row in self.rows:
            digest.update("\n".join([row["name"], *(str(row.get(name)) for name in own)]).encode())
        return digest.hexdigest()

    def stamps_digest(self) -> str:
        """SHA-256 of the paths, sizes and times of all files; "" of tables."""
        if isinstance(self.rows, TableRows | StreamedRows):
            return ""
        paths = {file for row in self.rows for path in paths_of(row) for file in files.files_of(path)}
        return (
            hashlib.sha256("\n".join(sorted(stamp(path.absolute()) for path in paths)).encode()).hexdigest()
            if paths
            else ""
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_checked": set()}
