"""A data set: rows as examples, which are pairs of pictures or volumes, whole, in crops, or as slices."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from bbdm.base.atomic import file_sha256, stamp
from bbdm.data.cache import Cache
from bbdm.data.degradations import Prepare
from bbdm.data.examples import Example, row_conditions, with_sizes
from bbdm.data.reading import Reader
from bbdm.data.rows import LOOKED_AT, BadPicturesError, Row, UnpairedRows, first, named, paths_of, shown
from bbdm.data.spec import ROLES, Condition, Spec
from bbdm.data.tables import FIELDS, ItemRows, MapStyle, Order, StreamedRows, TableRows
from bbdm.networks.conditions import DIRECTION, KINDS, ConditionsConfig, Kind
from bbdm.pictures import formats, images
from bbdm.pictures.picture import scale

log = logging.getLogger(__name__)
Place = tuple[Any, ...]  # the arguments of Pairs.read


class Pairs(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """The examples of rows. Item i is (source, target), each (C, *S) float32 in [-1, 1].

    Args:
        rows: mappings with a name, a source, a target, and what else there is; see
            :func:`~bbdm.data.rows.read_rows`.
        spec: what an example is.
        cache: folder of decoded files of which no part can be read alone, and of resized photographs; None
            to decode them again.
        prepare: changes the arrays of an example by column, after they are cropped and resized, such as a
            :class:`~bbdm.data.degradations.Degradation`; None for none. What it draws is a function of the
            key that it gets.
        skip_bad: the place of an example that cannot be read is taken by the next one that can. It is named
            in a warning, and counted; see :meth:`leave_out`.

    Attributes:
        spec: what an example is, with the sizes and classes of conditions that were found in rows.
        reader: opens the columns of rows.
        image_size: the size of the pictures that examples have.
        channels: the number of channels of targets.
        source_channels: the number of channels of sources.
        masked: whether examples have masks.
        paired: whether a source and its target belong together.
        further: the conditions of examples.
        ends: the number of examples up to each picture's last; slices of a volume are one picture's.
        left_out: why examples could not be read, as far as this process knows.

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
        spec, self.paired = spec or Spec(), not isinstance(rows, UnpairedRows)
        stored = None if cache is None else Cache(cache, "pictures", {})
        self.reader = Reader(spec, stored, prepare, paired=self.paired)
        known = with_sizes(spec.conditions, rows, self.reader)
        self.spec = spec = replace(spec, conditions=known)
        self.rows = rows.select([*ROLES, "mask", *known]) if isinstance(rows, TableRows) else rows
        self.stream = rows if isinstance(rows, StreamedRows) else None  # which is read from its first row on
        self.cache, self.prepare, self.skip_bad = cache, prepare, skip_bad
        self.left_out: set[str] = set()
        row, heads = first(self.rows, lambda row: (row, self.reader.heads(row)), LOOKED_AT if skip_bad else 1)
        sides = heads["source"][0].sides
        axes = len(sides)
        if axes != (spec.axes if spec.slices is None else 3):
            which = "say which slices are meant, such as slices axial" if axes == 3 else "this network is of volumes"
            which = "slices are of volumes, which have 3" if spec.slices else f"examples {spec.axes}: {which}"
            raise ValueError(f"{shown(row)} has {axes} axes, and {which}")
        count, channels = (sum(map(self.reader.channels, heads[role])) for role in ROLES)
        self.channels, self.source_channels = channels or count, spec.planes * count
        if spec.direction == "both" and count != self.channels:
            raise ValueError(
                f"{shown(row)} has a source of {count} and a target of {self.channels} channels, and one network of "
                "direction 'both' makes either: give channels, which photographs are converted to, or train two"
            )
        in_plane = tuple(side for axis, side in enumerate(sides) if axis != self.reader.axis)
        self.image_size = images.as_size(spec.crop or spec.size or in_plane, spec.axes)
        self.masked = bool(heads["mask"]) or any(head.nodata is not None for role in ROLES for head in heads[role])
        self.reader.masked = self.masked
        sized = [(name, each) for name, each in known.items() if each.size is not None]
        further: Any = {what: {name: c.size for name, c in sized if c.kind == kind} for what, kind in KINDS.items()}
        self.further = ConditionsConfig(**further)
        self._bytes = {role: [head.dtype.itemsize == 1 for head in heads[role]] for role in ROLES}
        self._slices: list[tuple[int, int]] = []  # the row and the index of each
        ends: list[int] = []
        for number, row in enumerate(self.rows if spec.slices else ()):
            try:
                self._slices += [(number, index) for index in self.reader.slices(row)]
            except (ValueError, FileNotFoundError) as error:
                if not skip_bad:
                    raise
                self.leave_out([" ".join(str(error).split())])
            ends.append(len(self._slices))
        if spec.slices and not self._slices:
            raise ValueError("no slice has anything in its mask")
        self._count = spec.crops * (len(self._slices) or len(self.rows))
        self.ends: Sequence[int] = ends or range(1, self._count + 1)
        self._files = () if hasattr(type(self.rows), "digest") else self.rows  # others are named by their digest
        self._prepared = "" if prepare is None else getattr(prepare, "__qualname__", None) or str(prepare)

    def __len__(self) -> int:
        return self._count

    def order(self, seed: int) -> Order:
        """The examples of an epoch, a function of the seed; the crops of a picture follow each other."""
        crops = self.spec.crops
        if self.stream is not None:
            return self.stream.order(crops)
        if not self.paired:  # the rows of an epoch are drawn
            return lambda start, end: [*range(start, end)]
        indices = torch.randperm(self._count // crops, generator=torch.Generator().manual_seed(seed))

        def order(start: int, end: int) -> list[int]:
            found = indices[start // crops : -(-end // crops)].tolist()
            return [crops * pair + crop for pair in found for crop in range(crops)][start % crops :][: end - start]

        return order

    def places(self, order: Iterable[int], seed: int) -> Iterator[Place]:
        """The arguments of :meth:`read` for examples in an order; the rows of a stream are read here."""
        if self.stream is None:
            yield from ((index, seed) for index in order)
            return
        groups = [(number, [*each]) for number, each in groupby(order, key=lambda index: index // self.spec.crops)]
        rows = self.stream.rows([number for number, _ in groups], seed)
        for (_, indices), row in zip(groups, rows, strict=True):
            yield from ((index, seed, row) for index in indices)

    def shared(self, rank: int, processes: int) -> Pairs:
        """The data set as one of several processes reads it; a stream is divided among them."""
        if self.stream is not None:
            self.rows = self.stream = self.stream.shared(rank, processes)
        return self

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        example = self.read(index)
        if example.left_out:
            self.leave_out([example.left_out])
        return scale(example.source), scale(example.target)

    def read(self, index: int, seed: int = 0, row: Row | None = None) -> Example:
        """Example ``index``; with ``skip_bad``, the next one that can be read.

        Args:
            index: the number of the example.
            seed: of what is drawn anew for each epoch, such as the place of a crop.
            row: that of the example, of a stream; None to look it up.

        Raises:
            BadPicturesError: it cannot be read; the message names it.
        """
        start = range(self._count)[index] if row is None else index  # IndexError ends iterations
        skips, reasons = self.skip_bad and row is None, dict[str, None]()
        for number in range(start, start + (self._count if skips else 1)):
            at, crop = divmod(number % self._count, self.spec.crops)
            at, slice_index = self._slices[at] if self._slices else (at, None)
            found = row or (self.rows.drawn(at, seed) if isinstance(self.rows, UnpairedRows) else self.rows[at])
            try:
                example = self._example(found, slice_index, crop, seed)
                return example._replace(left_out="\n".join(reasons)) if reasons else example
            except (ValueError, FileNotFoundError) as error:  # other OSErrors say nothing of a file: a disk fails
                reason = named(found, error)
                if not skips:
                    raise BadPicturesError(reason + "; skip_bad leaves it out" * (not self.skip_bad)) from error
                reasons[" ".join(reason.split())] = None
        raise BadPicturesError(f"none of {self._count} pairs can be read; the first: {next(iter(reasons))}")

    def leave_out(self, reasons: Iterable[str]) -> None:
        """Name and count examples that cannot be read, each once, by the lines in :class:`Example`."""
        for reason in chain.from_iterable(map(str.splitlines, reasons)):
            if reason not in self.left_out:
                self.left_out.add(reason)
                log.warning("left out: %s (%d so far)", reason, len(self.left_out))

    def _example(self, row: Row, index: int | None, crop: int, seed: int) -> Example:
        """Uint8 of 8-bit pictures, else float32; pixels without a value are 0, or -1."""
        name = row["name"] if index is None else f"{row['name']}/{index:04d}"
        key = f"{name} {crop}"
        if self.prepare is None and row.get("target") is None:
            raise ValueError(f"{shown(row)} has no target: this data set can only be translated")
        found = self.reader.open(row, None, index, (key, seed))
        arrays: dict[str, Any] = {}
        for role in ROLES:
            if (column := found.get(role)) is not None:
                if self._bytes[role] and self._bytes[role] != [each.dtype.itemsize == 1 for each in column.pictures]:
                    kinds = ", ".join(str(each.dtype) for each in column.pictures)
                    raise ValueError(f"its {role} has values of {kinds}, and that of the first pair other bits")
                arrays[role] = self.reader.scaled(role, column, getattr(self.spec, role))
        if self.prepare is not None:
            arrays = self.prepare(arrays, f"{key} {seed}" if self.spec.crop else name)
        source, target = (torch.from_numpy(arrays[role]) for role in ROLES)
        more = row_conditions(self.spec.conditions, row, found, self.reader) if self.spec.conditions else {}
        return Example(source, target, more, torch.from_numpy(self.reader.mask(found)) if self.masked else None, name)

    def conditions(self, row: Row) -> dict[str, torch.Tensor]:
        """What a row, as a whole, has besides the source: images, classes and tokens."""
        return row_conditions(self.spec.conditions, row, self.reader.open(row, self.reader.images), self.reader)

    @cached_property
    def spacing(self) -> tuple[float, ...] | None:
        """The length of a voxel of volumes along each axis, the median; None where it is not known."""
        found: list[tuple[float, ...]] = []
        for row in self.rows if self.spec.axes == 3 or self.spec.slices else ():
            with suppress(ValueError, FileNotFoundError):
                heads = self.reader.heads(row)
                spacing = (heads["target"] or heads["source"])[0].geometry.spacing
                found += [] if spacing is None else [spacing]
        return tuple(np.median(found, axis=0).round(6).tolist()) if found else None

    def without(self, indices: Collection[int]) -> Pairs:
        """The data set without some of its rows."""
        rows = [self.rows[index] for index in range(len(self.rows)) if index not in indices]
        return Pairs(rows, self.spec, self.cache, self.prepare, self.skip_bad) if indices else self

    def same_rows(self, other: Pairs) -> bool:
        """Whether another data set has the same rows."""
        one, two = (getattr(each.rows, "digest", None) or [*each.rows] for each in (self, other))
        return one == two

    def settings(self) -> dict[str, Any]:
        """What decides the examples besides files: the spec, what prepares them, and classes of all rows."""
        labels = {name: each.label for name, each in self.spec.conditions.items() if each.label is not None}
        prepared = {"degradation": self._prepared} if self._prepared else {}
        return {**self.spec.config(), **prepared, **({"labels": labels} if labels else {})}

    def digest(self, columns: Collection[str] | None = None) -> str:
        """SHA-256 of all names, and of the content of the files in some columns; None for all."""
        digest = hashlib.sha256(self.names_digest().encode())
        for row in self._files:
            hashes = (file_sha256(file) for path in paths_of(row, columns) for file in formats.files_of(path))
            digest.update(f"{row['name']} {' '.join(hashes)}\n".encode())
        return digest.hexdigest()

    def names_digest(self) -> str:
        """SHA-256 of the names of rows, or the digest of rows that have one; of slices, and of conditions."""
        known = self.spec.conditions
        about = {  # of a direction the pairs are the same
            name: [str(each), each.size, None if name == DIRECTION else each.label] for name, each in known.items()
        }
        columns = ["name", *(name for name, each in known.items() if each.kind == "class" and each.label is None)]
        own = getattr(self.rows, "digest", None)
        texts = [own] if own is not None else ("\n".join(str(row.get(name)) for name in columns) for row in self.rows)
        content = "".join([json.dumps([[*self.ends] if self._slices else [], self._prepared, about]), *texts])
        return hashlib.sha256(content.encode()).hexdigest()

    def stamps_digest(self) -> str:
        """SHA-256 of the paths, sizes and times of all files; "" where there are none."""
        paths = {file for row in self._files for path in paths_of(row) for file in formats.files_of(path)}
        stamps = "\n".join(sorted(stamp(path.absolute()) for path in paths))
        return hashlib.sha256(stamps.encode()).hexdigest() if paths else ""


class MappedDataset(Pairs):
    """The items of a map-style data set as examples.

    Args:
        dataset: has ``__len__`` and ``__getitem__``. An item is (source, target), or a mapping with
            ``source``, ``target``, and maybe ``conditions``, ``mask`` (1, H, W) and ``name``. Conditions are
            images (K, H, W) of uint8 or in [-1, 1], numbers of classes, and tokens (L, D), by name.
        item: makes such an item of what the data set has; None where it has such items.
        spec: values, crops and sizes; None for 0 to 255 of uint8, and floats in [-1, 1], as they are.

    Sources and targets are tensors, arrays (C, H, W), of volumes (C, D, H, W), or 8-bit pictures of Pillow. A
    ``digest()`` of the data set names it when a run resumes; without one, its length and some items do.

    Raises:
        ValueError: item 0 is no example; the message says what it is and what is expected.
    """

    def __init__(self, dataset: MapStyle, item: Callable[[Any], Any] | None = None, spec: Spec | None = None) -> None:
        rows = ItemRows(dataset, item)
        row = rows[0]
        kinds: dict[int, Kind] = {0: "class", 2: "tokens"}  # by axes
        found = {name: Condition(kinds.get(np.ndim(v), "image")) for name, v in row.items() if name not in FIELDS}
        super().__init__(rows, replace(spec or Spec(axes=3 if row["target"].ndim == 4 else 2), conditions=found))
        self.read(0)


def as_pairs(dataset: Pairs | MapStyle) -> Pairs:
    """A data set as it is where it is one of this library, else the items of a map-style one."""
    return dataset if isinstance(dataset, Pairs) else MappedDataset(dataset)
