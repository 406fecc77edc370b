"""What pictures hold, row by row: digests of content and groups, by which two sets of rows are compared.

Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from bbdm.base.atomic import file_sha256, stamp
from bbdm.data.cells import ROLES, BytesCell, Cell, cell_of
from bbdm.data.columns import GROUP
from bbdm.data.rows import Row, UnpairedRows, files_of, values_of
from bbdm.data.tables import ItemRows, StreamedRows, TableRows
from bbdm.pictures import images

SHOWN = 3  # names in a message
WAITING = 4096  # values that wait for a thread, of maybe a million
Value = TypeVar("Value")
Result = TypeVar("Result")


def in_threads(function: Callable[[Value], Result], values: Sequence[Value]) -> list[Result]:
    """The results of a function of each value, in their order. Threads hash files at once."""
    results: list[Result] = []
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(values), WAITING):
            results += pool.map(function, values[start : start + WAITING])
    return results


def first_names(names: Iterable[str]) -> str:
    """The first names for a message, and how many more there are."""
    names = [*names]
    more = len(names) - SHOWN
    shown = ", ".join(names[:SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown


def digest_of(parts: Iterable[str]) -> str:
    """SHA-256 of some texts in their order."""
    return hashlib.sha256(json.dumps([*parts]).encode()).hexdigest()


def value_digest(value: Any) -> str:
    """SHA-256 of what a row has in a column: of a picture's files, or of what it is in memory.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError: the file may not be read.
    """
    is_picture = isinstance(value, Cell | os.PathLike | bytes | Image.Image) or hasattr(value, "__array__")
    if not is_picture:  # a label, or what a kind of conditions of the user's own takes
        return hashlib.sha256(repr(value).encode()).hexdigest()
    cell = cell_of(value, "a picture in memory")
    files = [_file_digest(path) for path in cell.files()]
    if len(files) == 1:
        return files[0]
    if files:
        return digest_of(files)
    return _digest_in_memory(cell)


def _file_digest(path: Path) -> str:
    try:
        return file_sha256(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(images.no_picture(path)) from error


def _digest_in_memory(cell: Cell) -> str:
    """SHA-256 of the bytes of an encoded picture, or of an array with its type and shape."""
    if isinstance(cell, BytesCell):
        return hashlib.sha256(cell.content).hexdigest()
    array = np.ascontiguousarray(cell.read())
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(array.view(np.uint8).data)
    return digest.hexdigest()


def row_digest(row: Row) -> str:
    """SHA-256 of the content of a row's source and target, whichever of them is the source.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError: a file may not be read.
    """
    values: dict[Any, Any] = {}  # one for each file: both halves of a photograph are in the same
    for role in ROLES:
        for value in values_of(row, role):
            files = value.files() if isinstance(value, Cell) else ()
            values[files or id(value)] = value
    digests = {value_digest(value) for value in values.values()}
    if len(digests) == 1:  # of both halves of a photograph, or of a source alone
        return digests.pop()
    return digest_of(sorted(digests))


def row_stamp(row: Row) -> str:
    """SHA-256 of paths, sizes and times of the files of a row's source and target; "" where there are none.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError: a file may not be read.
    """
    stamps: list[str] = []
    for path in files_of(row, ROLES):
        try:
            stamps.append(stamp(path.absolute()))
        except FileNotFoundError as error:
            raise FileNotFoundError(images.no_picture(path)) from error
    return digest_of(sorted(stamps)) if stamps else ""


class Contents(NamedTuple):
    """Of rows by name: SHA-256 of what they hold, and of the paths, sizes and times of their files."""

    digests: dict[str, str]
    stamps: dict[str, str]  # of rows that have files


def contents(rows: Sequence[Row], skip_bad: bool = False, known: Mapping[str, str] | None = None) -> Contents:
    """The content of rows by name: SHA-256 of the files of source and target, or of their bytes in a table.

    Of two sets without pairs, each picture of either set is an item. A stream and a map-style data set are
    read only as they are trained on, so their rows are known by number and by the digest of the whole.

    Args:
        rows: of a data set.
        skip_bad: leave out rows that cannot be read.
        known: digests by the stamps of rows, which are not computed again; None for none.

    Returns:
        The digests and the stamps, in the order of the rows.

    Raises:
        FileNotFoundError: there is no such file, without ``skip_bad``.
        PermissionError: a file may not be read, without ``skip_bad``.
    """
    if isinstance(rows, StreamedRows | ItemRows):
        whole = rows.digest
        return Contents({str(number): digest_of([whole, str(number)]) for number in range(len(rows))}, {})
    if isinstance(rows, TableRows):
        rows = rows.select(ROLES)
    elif isinstance(rows, UnpairedRows):
        rows = rows.pictures()

    def read(number: int) -> tuple[str, str, str] | None:
        try:
            row = rows[number]
            stamped = row_stamp(row)  # before the files are read, which may change
            digest = None if known is None else known.get(stamped)
            return str(row["name"]), digest or row_digest(row), stamped
        except (FileNotFoundError, PermissionError, ValueError):
            if skip_bad:
                return None
            raise

    found = Contents({}, {})
    for number, item in enumerate(in_threads(read, range(len(rows)))):
        if item is None:
            continue
        name, digest, stamped = item
        key = f"{name} (row {number})" if name in found.digests else name  # names of tars may occur twice
        found.digests[key] = digest
        if stamped:
            found.stamps[key] = stamped
    return found


def same_rows(one: Sequence[Row], other: Sequence[Row]) -> bool:
    """Whether two data sets are of the same pictures in the same places; streams by their paths."""
    if isinstance(one, StreamedRows) and isinstance(other, StreamedRows):
        return one.digest == other.digest
    return len(one) == len(other) and all(a == b for a, b in zip(one, other, strict=True))


def groups(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """The name and the group of each row with one, from the column ``group``.

    Those of a stream and of a map-style data set are not looked at, which would read all of it.
    """
    if isinstance(rows, StreamedRows | ItemRows | UnpairedRows):
        return []
    if isinstance(rows, TableRows):
        if GROUP not in rows.columns:
            return []
        rows = rows.select([GROUP])
    return [(str(row["name"]), str(row[GROUP])) for row in rows if row.get(GROUP) is not None]


def check_groups(train: Sequence[Row], validation: Sequence[Row]) -> None:
    """Raise ValueError where a group has rows for training and rows for validation."""
    trained = {group: name for name, group in groups(train)}
    shared: dict[str, str] = {}
    for name, group in groups(validation):
        if group in trained:
            shared.setdefault(group, f"{group!r} ({trained[group]}, and {name} for validation)")
    if shared:
        count = _counted(len(shared), "group")
        raise ValueError(f"{count} on both sides of the split: {first_names(shared.values())}; keep each on one side")


def _counted(number: int, what: str) -> str:
    """A number of things, and that they are."""
    return f"1 {what} is" if number == 1 else f"{number} {what}s are"


@dataclass(frozen=True)
class Trained:
    """The pairs of a training.

    Args:
        where: what says so, for messages.
        contents: digests of :func:`contents` by the names of rows.
        groups: those of its rows.
    """

    where: str
    contents: Mapping[str, str]
    groups: frozenset[str]

    @classmethod
    def of(cls, rows: Sequence[Row], where: str) -> Trained:
        """The pairs of rows; those that cannot be read were in no training."""
        return cls(where, contents(rows, skip_bad=True).digests, frozenset(group for _, group in groups(rows)))

    @classmethod
    def of_file(cls, path: Path | None) -> Trained | None:
        """The pairs that a network's file was trained on, by the record of its run.

        Args:
            path: ``OUT.pt``, whose run is in ``OUT.run`` or in the folder that the file is in; None for none.

        Returns:
            What the record says; None where there is none.
        """
        if path is None:
            return None
        for folder in (path.with_suffix(".run"), path.parent):
            record = folder / "config.json"
            with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):  # it may be another program's
                pairs = json.loads(record.read_text())["pairs"]
                digests = {str(name): str(digest) for name, digest in pairs["contents"].items()}
                return cls(str(record), digests, frozenset(map(str, pairs["groups"])))
        return None

    def overlap(self, rows: Sequence[Row], skip_bad: bool = False) -> Overlap:
        """What rows and the training have in common; ``skip_bad`` leaves out rows that cannot be read."""
        names = {digest: name for name, digest in self.contents.items()}
        own = contents(rows, skip_bad).digests
        pairs = {name: names[digest] for name, digest in own.items() if digest in names}
        shared: dict[str, str] = {}
        for name, group in groups(rows):
            if group in self.groups and name not in pairs:
                shared.setdefault(group, name)
        return Overlap(self.where, len(own), pairs, shared)


@dataclass(frozen=True)
class Overlap:
    """What a data set and a training have in common.

    Args:
        where: what says what was trained on.
        count: the number of the data set's items.
        pairs: of the items that were in training, the name in training by their own.
        groups: of the groups that were in training too, the name of the first pair that was not.
    """

    where: str
    count: int
    pairs: Mapping[str, str]
    groups: Mapping[str, str]

    def __str__(self) -> str:
        """How many pairs were in training, and their first names."""
        names = [name if name == other else f"{name} (as {other})" for name, other in self.pairs.items()]
        were = "pair was" if self.count == 1 else "pairs were"
        return f"{len(names)} of {self.count} {were} in training, by {self.where}: {first_names(names)}"

    def check_groups(self, remedy: str) -> None:
        """Raise ValueError where a group has pairs in training, and others here; ``remedy`` ends it."""
        if not self.groups:
            return
        shown = [f"{group!r} (of {name})" for group, name in self.groups.items()]
        count = _counted(len(shown), "group")
        raise ValueError(f"{count} in training too, by {self.where}: {first_names(shown)}; {remedy}")


def columns_digest(columns: Mapping[str, Sequence[Any]]) -> str:
    """SHA-256 of what a row has in some columns, by their names.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError: a file may not be read.
    """
    parts: list[str] = []
    for name, values in columns.items():
        parts += [name, *map(value_digest, values)]
    return digest_of(parts)
