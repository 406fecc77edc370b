"""A data set: rows as examples, which are pairs of pictures or volumes, whole, in crops, or as slices."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from bbdm.base.atomic import file_sha256
from bbdm.data import provenance
from bbdm.data.cache import Cache
from bbdm.data.cells import ROLES
from bbdm.data.columns import GROUP
from bbdm.data.degradations import Prepare
from bbdm.data.examples import Example, row_conditions, with_sizes
from bbdm.data.kinds import kind_of
from bbdm.data.reading import Reader
from bbdm.data.rows import (
    LOOKED_AT,
    BadPicturesError,
    Row,
    UnpairedRows,
    files_of,
    first,
    named,
    shown,
)
from bbdm.data.scaling import Column
from bbdm.data.spec import Spec
from bbdm.data.tables import Order, StreamedRows, TableRows
from bbdm.networks.conditions import DIRECTION, KINDS, ConditionsConfig
from bbdm.pictures import Header, images
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
        spec = spec or Spec()
        self.paired = not isinstance(rows, UnpairedRows)
        stored = None if cache is None else Cache(cache, "pictures", {})
        self.reader = Reader(spec, stored, prepare, paired=self.paired)
        self.spec = replace(spec, conditions=with_sizes(spec.conditions, rows, self.reader))
        self.rows: Sequence[Row] = rows
        if isinstance(rows, TableRows):
            self.rows = rows.select([*ROLES, "mask", GROUP, *self.spec.conditions])
        # which is read from its first row on
        self.stream = rows if isinstance(rows, StreamedRows) else None
        self.cache = cache
        self.prepare = prepare
        self.skip_bad = skip_bad
        self.left_out: set[str] = set()
        row, heads = first(
            self.rows, lambda row: (row, self.reader.heads(row)), LOOKED_AT if skip_bad else 1
        )
        sides = heads["source"][0].sides
        self._check_axes(row, len(sides))
        self.channels, self.source_channels = self._count_channels(row, heads)
        in_plane = tuple(side for axis, side in enumerate(sides) if axis != self.reader.axis)
        self.image_size = images.as_size(
            self.spec.crop or self.spec.size or in_plane, self.spec.axes
        )
        has_nodata = any(head.nodata is not None for role in ROLES for head in heads[role])
        self.masked = bool(heads["mask"]) or has_nodata
        self.reader.masked = self.masked
        self.further = _network_conditions(self.spec)
        self._bytes = {role: [head.dtype.itemsize == 1 for head in heads[role]] for role in ROLES}
        self._slices: list[tuple[int, int]] = []  # the row and the index of each
        if self.spec.slices is None:
            self._count = self.spec.crops * len(self.rows)
            self.ends: Sequence[int] = range(1, self._count + 1)
        else:
            self.ends = self._find_slices()
            self._count = self.spec.crops * len(self._slices)
        # others are named by their digest
        self._files = () if hasattr(type(self.rows), "digest") else self.rows
        self._prepared = ""
        if prepare is not None:
            self._prepared = getattr(prepare, "__qualname__", None) or str(prepare)

    def _check_axes(self, row: Row, axes: int) -> None:
        """Raise ValueError where pictures have other axes than the spec's examples."""
        spec = self.spec
        if spec.slices is not None:
            if axes != 3:
                raise ValueError(
                    f"{shown(row)} has {axes} axes, and slices are of volumes, which have 3"
                )
        elif axes != spec.axes:
            remedy = "this network is of volumes"
            if axes == 3:
                remedy = "say which slices are meant, such as slices axial"
            raise ValueError(f"{shown(row)} has {axes} axes, and examples {spec.axes}: {remedy}")

    def _count_channels(self, row: Row, heads: dict[str, list[Header]]) -> tuple[int, int]:
        """The channels of targets and of sources; without targets, they have those of sources."""
        source = sum(map(self.reader.channels, heads["source"]))
        target = sum(map(self.reader.channels, heads["target"])) or source
        if self.spec.direction == "both" and source != target:
            raise ValueError(
                f"{shown(row)} has a source of {source} and a target of {target} channels, and one network of "
                "direction 'both' makes either: give channels, which photographs are converted to, or train two"
            )
        return target, self.spec.planes * source

    def _find_slices(self) -> list[int]:
        """Look for the slices of all rows, and return the number of slices up to each row's last."""
        ends: list[int] = []
        for number, row in enumerate(self.rows):
            try:
                self._slices += [(number, index) for index in self.reader.slices(row)]
            except (ValueError, FileNotFoundError) as error:
                if not self.skip_bad:
                    raise
                self.leave_out([" ".join(str(error).split())])
            ends.append(len(self._slices))
        if not self._slices:
            raise ValueError("no slice has anything in its mask")
        return ends

    def __len__(self) -> int:
        return self._count

    def order(self, seed: int) -> Order:
        """The examples of an epoch, a function of the seed; the crops of a picture follow each other."""
        crops = self.spec.crops
        if self.stream is not None:
            return self.stream.order(crops)
        if not self.paired:  # the rows of an epoch are drawn
            return lambda start, end: [*range(start, end)]
        indices = torch.randperm(
            self._count // crops, generator=torch.Generator().manual_seed(seed)
        )

        def order(start: int, end: int) -> list[int]:
            rows = indices[start // crops : -(-end // crops)].tolist()
            examples = [crops * row + crop for row in rows for crop in range(crops)]
            first_crop = start % crops
            return examples[first_crop : first_crop + end - start]

        return order

    def places(self, order: Iterable[int], seed: int) -> Iterator[Place]:
        """The arguments of :meth:`read` for examples in an order; the rows of a stream are read here."""
        if self.stream is None:
            for index in order:
                yield index, seed
            return
        crops = self.spec.crops
        numbers: list[int] = []
        examples: list[list[int]] = []
        for number, indices in groupby(order, key=lambda index: index // crops):
            numbers.append(number)
            examples.append([*indices])
        for indices, row in zip(examples, self.stream.rows(numbers, seed), strict=True):
            for index in indices:
                yield index, seed, row

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

    def read(
        self, index: int, seed: int = 0, row: Row | None = None, stored: bool = False
    ) -> Example:
        """Example ``index``; with ``skip_bad``, the next one that can be read.

        Args:
            index: the number of the example.
            seed: of what is drawn anew for each epoch, such as the place of a crop.
            row: that of the example, of a stream; None to look it up.
            stored: add the target's stored values.

        Raises:
            BadPicturesError: it cannot be read; the message names it.
        """
        if row is not None:
            return self._read_row(row, index % self._count, seed, stored)
        start = range(self._count)[index]  # IndexError ends iterations
        if not self.skip_bad:
            return self._read_row(None, start, seed, stored)
        reasons: dict[str, None] = {}
        for number in range(start, start + self._count):
            try:
                example = self._read_row(None, number % self._count, seed, stored)
            except BadPicturesError as error:
                reasons[" ".join(str(error).split())] = None
            else:
                return example._replace(left_out="\n".join(reasons))
        raise BadPicturesError(
            f"none of {self._count} pairs can be read; the first: {next(iter(reasons))}"
        )

    def leave_out(self, reasons: Iterable[str]) -> None:
        """Name and count examples that cannot be read, each once, by the lines in :class:`Example`."""
        for text in reasons:
            for reason in text.splitlines():
                if reason not in self.left_out:
                    self.left_out.add(reason)
                    log.warning("left out: %s (%d so far)", reason, len(self.left_out))

    def _read_row(self, row: Row | None, example: int, seed: int, stored: bool = False) -> Example:
        """Example number ``example``, whose row is looked up where it is None.

        Uint8 of 8-bit pictures, else float32; pixels without a value are 0, or -1.
        """
        number, crop = divmod(example, self.spec.crops)
        index: int | None = None
        if self._slices:
            number, index = self._slices[number]
        if row is None:
            try:
                if isinstance(self.rows, UnpairedRows):
                    row = self.rows.drawn(number, seed)
                else:
                    row = self.rows[number]
            except ValueError as error:
                raise BadPicturesError(f"{error}{self._remedy}") from error
        name = row["name"] if index is None else f"{row['name']}/{index:04d}"
        key = f"{name} {crop}"
        try:
            if self.prepare is None and row.get("target") is None:
                raise ValueError(
                    f"{shown(row)} has no target: this data set can only be translated"
                )
            columns = self.reader.open(row, None, index, (key, seed))
            arrays: dict[str, Any] = {}
            for role in ROLES:
                if role in columns:
                    column = columns[role]
                    are_bytes = [picture.dtype.itemsize == 1 for picture in column.pictures]
                    if self._bytes[role] and are_bytes != self._bytes[role]:
                        raise self._other_bits(role, column)
                    arrays[role] = self.reader.scaled(role, column, getattr(self.spec, role))
            if self.prepare is not None:
                arrays = self.prepare(arrays, f"{key} {seed}" if self.spec.crop else name)
            conditions: dict[str, torch.Tensor] = {}
            if self.spec.conditions:
                conditions = row_conditions(self.spec.conditions, row, columns, self.reader)
            mask = torch.from_numpy(self.reader.mask(columns)) if self.masked else None
            values = (
                self.reader.stored(columns["target"]) if stored and self.prepare is None else None
            )
        except (ValueError, FileNotFoundError) as error:
            # other OSErrors say nothing of a file: a disk fails
            raise BadPicturesError(named(row, error) + self._remedy) from error
        source, target = (torch.from_numpy(arrays[role]) for role in ROLES)
        return Example(source, target, conditions, mask, name, stored=values)

    @property
    def _remedy(self) -> str:
        """The end of a message about an example that cannot be read."""
        return "" if self.skip_bad else "; skip_bad leaves it out"

    def _other_bits(self, role: str, column: Column) -> ValueError:
        """The error where a row has 8 bits and the first one has others, or the other way."""
        types = ", ".join(str(picture.dtype) for picture in column.pictures)
        return ValueError(
            f"its {role} has values of {types}, and that of the first pair other bits"
        )

    def conditions(self, row: Row) -> dict[str, torch.Tensor]:
        """What a row, as a whole, has besides the source: images, classes and tokens."""
        return row_conditions(
            self.spec.conditions, row, self.reader.open(row, self.reader.images), self.reader
        )

    @cached_property
    def spacing(self) -> tuple[float, ...] | None:
        """The length of a voxel of volumes along each axis, the median; None where it is not known."""
        if self.spec.axes != 3 and self.spec.slices is None:
            return None
        spacings: list[tuple[float, ...]] = []
        for row in self.rows:
            with suppress(ValueError, FileNotFoundError):
                heads = self.reader.heads(row)
                spacing = (heads["target"] or heads["source"])[0].geometry.spacing
                if spacing is not None:
                    spacings.append(spacing)
        if not spacings:
            return None
        return tuple(np.median(spacings, axis=0).round(6).tolist())

    def without(self, indices: Collection[int]) -> Pairs:
        """The data set without some of its rows."""
        if not indices:
            return self
        rows = [self.rows[index] for index in range(len(self.rows)) if index not in indices]
        return Pairs(rows, self.spec, self.cache, self.prepare, self.skip_bad)

    def settings(self) -> dict[str, Any]:
        """What decides the examples besides files: the spec, what prepares them, and classes of all rows."""
        settings = self.spec.config()
        if self._prepared:
            settings["degradation"] = self._prepared
        labels: dict[str, Any] = {}
        for name, condition in self.spec.conditions.items():
            if condition.label is not None:
                labels[name] = condition.label
        if labels:
            settings["labels"] = labels
        return settings

    def digest(self, columns: Collection[str] | None = None) -> str:
        """SHA-256 of all names, and of the content of the files in some columns; None for all.

        Of a stream, it is of the sizes and times of files.
        """
        digest = hashlib.sha256(self.names_digest().encode())
        if self.stream is not None:
            digest.update("\n".join(self.stream.stamps).encode())
        for row in self._files:
            hashes = " ".join(self._sha256(path) for path in files_of(row, columns))
            digest.update(f"{row['name']} {hashes}\n".encode())
        return digest.hexdigest()

    def _sha256(self, file: Path) -> str:
        """SHA-256 of a file; with ``skip_bad``, "" of one that cannot be opened."""
        try:
            return file_sha256(file)
        except (FileNotFoundError, PermissionError) as error:
            if self.skip_bad:
                return ""
            if isinstance(error, FileNotFoundError):
                raise FileNotFoundError(images.no_picture(file)) from error
            raise

    def names_digest(self) -> str:
        """SHA-256 of the names of rows, or the digest of rows that have one; of slices, and of conditions."""
        conditions = self.spec.conditions
        of_conditions: dict[str, Any] = {}
        columns = ["name"]
        for name, condition in conditions.items():
            # of a direction the pairs are the same
            label = None if name == DIRECTION else condition.label
            of_conditions[name] = [str(condition), condition.size, label]
            if condition.kind == "class" and condition.label is None:
                columns.append(name)
        ends = [*self.ends] if self._slices else []
        digest = hashlib.sha256(json.dumps([ends, self._prepared, of_conditions]).encode())
        rows_digest = getattr(self.rows, "digest", None)
        if rows_digest is not None:
            digest.update(rows_digest.encode())
        else:
            for row in self.rows:
                digest.update("\n".join(str(row.get(name)) for name in columns).encode())
        return digest.hexdigest()

    @cached_property
    def contents(self) -> provenance.Contents:
        """The digests of all rows, which are read once; see :func:`bbdm.data.provenance.contents`."""
        return provenance.contents(self.rows, self.skip_bad)

    def provenance(self, before: provenance.Record | None = None) -> provenance.Record:
        """What a training records of its pairs.

        Args:
            before: the record of the same training, so that files with the same size and time are not read
                again; None for none.
        """
        known = None if before is None else before.by_stamp
        contents = provenance.contents(self.rows, self.skip_bad, known)
        groups = {group for _, group in provenance.groups(self.rows)}
        return provenance.Record(contents.digests, contents.stamps, sorted(groups))


def _network_conditions(spec: Spec) -> ConditionsConfig:
    """The conditions of examples as a network has them; those without a size are not its own yet."""
    fields: dict[str, Any] = {field: {} for field in KINDS}
    for field, network_kind in KINDS.items():
        for name, condition in spec.conditions.items():
            if (
                condition.size is not None
                and kind_of(name, spec.conditions).network == network_kind
            ):
                fields[field][name] = condition.size
    return ConditionsConfig(**fields)
