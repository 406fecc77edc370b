"""The samples of a tar in WebDataset's layout, by place: nothing is unpacked, and nothing is decoded here.

Consecutive members ``KEY.ENDING`` with equal keys are a sample. A key ends at the first dot of a file's name.
A name is only a name: it never becomes a path.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple

from bbdm.pictures.images import SUFFIXES

MEMBER = re.compile(r"(?:\./)?(?P<key>(?:.*/|)[^./]+)\.(?P<ending>[^/]*)", re.DOTALL)
BLOCK = 512  # bytes
DAMAGED = (tarfile.TarError, ValueError, ArithmeticError, LookupError, EOFError, RecursionError, MemoryError)


class Span(NamedTuple):
    """Bytes of a tar."""

    offset: int
    size: int


Member = tuple[str, str, Span]  # key, ending, bytes


class Sample(NamedTuple):
    """A sample: where the pictures of its columns are, or why they cannot be read."""

    name: str
    spans: list[Span]
    reason: str = ""


class Tar(NamedTuple):
    """The samples of a tar, and why there are no more, if it is damaged."""

    samples: list[Sample]
    reason: str


def is_inside(name: str) -> bool:
    """Whether a name is a relative path without ``..``, on any system."""
    windows = PureWindowsPath(name)
    outside = PurePosixPath(name).is_absolute() or windows.drive or windows.root or ".." in windows.parts
    return not outside and name.isprintable()


def index(path: Path, columns: tuple[str, ...]) -> Tar:
    """The samples of a tar, in its order; of a damaged one, those before the damage.

    Raises:
        OSError: the file cannot be read.
    """
    members: list[Member] = []
    reason = ""
    try:
        for member in _members(path):
            members.append(member)
    except DAMAGED as error:
        reason = f"{path} is a damaged tar: {error}"
    samples = [_sample(key, list(group), columns) for key, group in groupby(members, lambda each: each[0]) if key]
    if reason and samples and samples[-1].reason:
        samples.pop()  # what is missing is behind the damage
    return Tar(samples, reason)


def _sample(name: str, members: list[Member], columns: tuple[str, ...]) -> Sample:
    spans: dict[str, Span] = {}
    for _, ending, span in members:  # source.png and source are of the column source
        stem, _, suffix = ending.rpartition(".")
        of_stem = ending not in columns and f".{suffix.lower()}" in SUFFIXES
        column = stem if of_stem and stem in columns else ending
        if column in columns and column in spans:
            return Sample(name, [], f"it has several {column}")
        spans[column] = span
    missing = [column for column in columns if column not in spans]
    if not is_inside(name):
        return Sample(name, [], "its name is no relative path")
    if missing:
        there = ", ".join(sorted(ending for _, ending, _ in members))
        return Sample(name, [], f"it has no {' and no '.join(missing)}, but {there}")
    return Sample(name, [spans[column] for column in columns])


def _members(path: Path) -> Iterator[Member]:
    """The regular files of an uncompressed tar; with an empty key those whose name has no dot.

    A tar without the blocks that end one is cut off. Sizes may be negative, and tarfile would then read the
    same members for ever.
    """
    size, place = path.stat().st_size, -1
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue] which tarfile keeps otherwise
            is_file = member.isreg() and not member.issparse()
            end = member.offset_data + member.size if is_file else 0  # a global header can set the size alone
            if member.size < 0 or tar.offset <= place or max(tar.offset, end) > size + BLOCK:
                raise tarfile.ReadError(f"the member at {member.offset} does not end in the file")
            place = tar.offset
            if is_file:
                found = MEMBER.fullmatch(member.name)
                key, ending = ("", "") if found is None else found.group("key", "ending")
                yield key, ending, Span(member.offset_data, member.size)
        file.seek(tar.offset)
        if file.read(BLOCK) != bytes(BLOCK):
            raise tarfile.ReadError("it is cut off, or not a tar from there on")
