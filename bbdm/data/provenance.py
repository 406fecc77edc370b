"""What pictures hold, row by row: digests of content and groups, by which two sets of rows are compared.

What a training has in common with other rows is :mod:`bbdm.data.trained`.

Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from bbdm.base import manifest
from bbdm.base.atomic import content_sha256, file_sha256, remove_leftovers, stamp
from bbdm.base.sizes import number_of
from bbdm.data.cells import ROLES, BytesCell, Cell, FolderCell, cell_of
from bbdm.data.columns import GROUP
from bbdm.data.rows import Row, UnpairedRows, files_of_value, values_of
from bbdm.data.tables import ItemRows, StreamedRows, TableRows
from bbdm.pictures import formats, images

Digests = Mapping[str, Sequence[str]]  # SHA-256 of the pictures of rows, by name
SHOWN = 3  # names in a message
IDENTITY = 16  # digits of a record's identity
IDENTITIES = re.compile(r"[0-9a-f]+")
KEPT = 64  # films, and other pictures of several parts, whose digests are kept
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


def value_digest(value: object) -> str:
    """SHA-256 of what a row has in a column: of a picture's files, or of what it is in memory.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError: the file may not be read.
    """
    is_picture = isinstance(value, Cell | os.PathLike | bytes | Image.Image) or hasattr(
        value, "__array__"
    )
    if not is_picture:  # a label, or what a kind of conditions of the user's own takes
        return hashlib.sha256(repr(value).encode()).hexdigest()
    cell = cell_of(value, "a picture in memory")
    part = cell.part()
    if part:
        files = tuple(cell.files())
        return digest_of([*_stamped_digests(files, tuple(map(stamp, files))), part])
    if isinstance(cell, FolderCell) and formats.is_tree(cell.path):
        return content_sha256(cell.path)
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


@lru_cache(KEPT)
def _stamped_digests(files: tuple[Path, ...], stamps: tuple[str, ...]) -> list[str]:
    """The digests of files as they were when they had stamps; all parts of a picture share them."""
    return [file_sha256(file) for file in files]


def _digest_in_memory(cell: Cell) -> str:
    """SHA-256 of the bytes of an encoded picture, or of an array with its type and shape."""
    if isinstance(cell, BytesCell):
        return hashlib.sha256(cell.content).hexdigest()
    array = np.ascontiguousarray(cell.read())
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(array.view(np.uint8).data)
    return digest.hexdigest()


def row_digests(row: Row) -> list[str]:
    """SHA-256 of the content of a row's source and of its target; one where they are halves of one file.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError: a file may not be read.
    """
    # one for each part of files: both halves of a photograph are in the same
    known: dict[Any, str] = {}
    digests: list[str] = []
    for role in ROLES:
        of_role: list[str] = []
        for value in values_of(row, role):
            files = files_of_value(value)
            key = (files, _part_of(value)) if files else id(value)
            if key not in known:
                known[key] = value_digest(value)
            of_role.append(known[key])
        if len(of_role) > 1:
            digests.append(digest_of(of_role))
        else:
            digests += of_role
    return [*dict.fromkeys(digests)]


def _part_of(value: object) -> str:
    """Which part of its files a value of a row is; "" of all."""
    return cell_of(value, "").part()


def row_stamp(row: Row) -> str:
    """SHA-256 of paths, sizes and times of the files of a row's source and target; "" with values in memory.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError: a file may not be read.
    """
    stamps: list[str] = []
    for role in ROLES:
        for value in values_of(row, role):
            files = files_of_value(value)
            if not files:
                return ""  # what is in memory may change unseen
            stamps.append(role)
            part = _part_of(value)
            if part:
                stamps.append(part)
            for path in files:
                try:
                    stamps.append(stamp(path.absolute()))
                except FileNotFoundError as error:
                    raise FileNotFoundError(images.no_picture(path)) from error
    return digest_of(stamps)


def distinct_roles(row: Row) -> list[str]:
    """The roles whose pictures are not constant. Constant ones, such as blank ones, are in many data sets."""
    roles: list[str] = []
    for role in ROLES:
        if not all(_is_constant(value) for value in values_of(row, role)):
            roles.append(role)
    return roles


def _is_constant(value: object) -> bool:
    """Whether a picture has one value in each channel."""
    try:
        pixels = np.asarray(cell_of(value, "a picture").read())
    except (OSError, TypeError, ValueError):
        return False  # what cannot be read is no blank picture
    pixels = pixels.reshape(len(pixels), -1)
    return bool((pixels == pixels[:, :1]).all())


class Contents(NamedTuple):
    """Of rows by name: SHA-256 of their pictures, and of the paths, sizes and times of their files."""

    digests: dict[str, list[str]]  # of :func:`row_digests`
    stamps: dict[str, str]  # of rows that are in files alone
    # the numbers of rows in :func:`pictures_of`; none of what is known as a whole
    rows: dict[str, int]


def pictures_of(rows: Sequence[Row]) -> Sequence[Row]:
    """The rows whose content is compared: sources and targets of a table, and of two sets each picture."""
    if isinstance(rows, TableRows):
        return rows.select(ROLES)
    if isinstance(rows, UnpairedRows):
        return rows.pictures()
    return rows


def contents(rows: Sequence[Row], skip_bad: bool = False, known: Digests | None = None) -> Contents:
    """The content of rows by name: SHA-256 of the files of source and target, or of their bytes in a table.

    Of two sets without pairs, each picture of either set is an item. A stream and a map-style data set are
    read only as they are trained on, so their rows are known by number and by the digest of the whole.

    Args:
        rows: of a data set.
        skip_bad: leave out rows that cannot be read.
        known: digests by the stamps of rows, which are not computed again; None for none.

    Returns:
        The digests, the stamps and the numbers, in the order of the rows.

    Raises:
        FileNotFoundError: there is no such file, without ``skip_bad``.
        PermissionError: a file may not be read, without ``skip_bad``.
    """
    if isinstance(rows, StreamedRows | ItemRows):
        whole = rows.digest
        return Contents(
            {str(number): [digest_of([whole, str(number)])] for number in range(len(rows))}, {}, {}
        )
    rows = pictures_of(rows)

    def read(number: int) -> tuple[str, list[str], str] | None:
        try:
            row = rows[number]
            stamped = row_stamp(row)  # before the files are read, which may change
            if known is not None and stamped in known:
                return str(row["name"]), [*known[stamped]], stamped
            return str(row["name"]), row_digests(row), stamped
        except (FileNotFoundError, PermissionError, ValueError):
            if skip_bad:
                return None
            raise

    collected = Contents({}, {}, {})
    for number, item in enumerate(in_threads(read, range(len(rows)))):
        if item is None:
            continue
        name, digests, stamped = item
        # names of tars may occur twice
        key = f"{name} (row {number})" if name in collected.digests else name
        collected.digests[key] = digests
        collected.rows[key] = number
        if stamped:
            collected.stamps[key] = stamped
    return collected


@dataclass(frozen=True)
class Record:
    """What a run keeps of the pairs that its network has learned from, in a file of its folder.

    Args:
        contents: SHA-256 of the pictures of each row by name, see :func:`bbdm.data.provenance.contents`.
        stamps: of rows in files by name, SHA-256 of paths, sizes and times.
        groups: those of all rows, also of earlier ones.
        earlier: the contents of rows that the network has learned from before: of files that have changed
            since, and of a training whose weights it began with.
        unknown: the files of weights that it goes on from whose own pairs no record says.
    """

    contents: Digests
    stamps: Mapping[str, str]
    groups: Sequence[str]
    earlier: Sequence[Digests] = ()
    unknown: Sequence[str] = ()

    @cached_property
    def identity(self) -> str:
        """What files of weights name it by: a digest of all that the network has learned from."""
        content = [self.contents, [*self.groups], [*self.earlier], [*self.unknown]]
        return digest_of([json.dumps(content, sort_keys=True)])[:IDENTITY]

    @staticmethod
    def path(folder: Path, identity: str) -> Path:
        """The file of a record in a run's folder, which keeps those of all its weights."""
        return folder / "records" / f"{identity}.json"

    def write(self, folder: Path) -> None:
        """Write it to the locked folder of a run."""
        path = self.path(folder, self.identity)
        path.parent.mkdir(exist_ok=True)
        remove_leftovers(path.parent)
        manifest.write(path, asdict(self))

    @classmethod
    def read(cls, folder: Path, identity: str) -> Record | None:
        """The record of some weights in the folder of a run; None where it has none."""
        if not IDENTITIES.fullmatch(identity):  # of a stranger's file
            return None
        # it may be another program's
        with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            pairs = json.loads(cls.path(folder, identity).read_text())
            return cls(
                contents=_as_digests(pairs["contents"]),
                stamps={str(name): str(stamp) for name, stamp in pairs["stamps"].items()},
                groups=[str(group) for group in pairs["groups"]],
                earlier=[_as_digests(part) for part in pairs["earlier"]],
                unknown=[str(name) for name in pairs["unknown"]],
            )
        return None

    @property
    def by_stamp(self) -> Digests:
        """The contents of rows by their stamps."""
        contents: dict[str, Sequence[str]] = {}
        for name, digests in self.contents.items():
            if name in self.stamps:
                contents[self.stamps[name]] = digests
        return contents

    def after(self, before: Record) -> Record:
        """The record of a training that goes on with the weights of another, which has a record too."""
        gone: Digests = {}
        for name, digests in before.contents.items():
            if self.contents.get(name) != digests:
                gone[name] = digests
        earlier = [*self.earlier]
        for part in (*before.earlier, gone):
            if part and part not in earlier:
                earlier.append(part)
        groups = {*self.groups, *before.groups}
        unknown = {*self.unknown, *before.unknown}
        return replace(self, groups=sorted(groups), earlier=earlier, unknown=sorted(unknown))


def _as_digests(stored: Mapping[str, Sequence[str]]) -> Digests:
    return {str(name): [str(digest) for digest in digests] for name, digests in stored.items()}


def same_rows(one: Sequence[Row], other: Sequence[Row]) -> bool:
    """Whether two data sets are the same pictures in the same places; streams and items, by their digests."""
    digests = [getattr(rows, "digest", None) for rows in (one, other)]
    if digests[0] is not None and digests[0] == digests[1]:
        return True
    if any(isinstance(rows, StreamedRows | ItemRows) for rows in (one, other)):
        return False
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
        count = counted(len(shared), "group")
        raise ValueError(
            f"{count} on both sides of the split: {first_names(shared.values())}; keep each on one side"
        )


def counted(number: int, what: str) -> str:
    """A number of things, and that they are."""
    return f"{number_of(number, what)} {'is' if number == 1 else 'are'}"


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
