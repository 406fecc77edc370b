"""What the header of a TIFF says, read without a library: who reads the file is chosen by it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import IO

from PIL import Image

STARTS = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}
SIZES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # of the types of the tags that are looked at
SUBFILE, WIDTH, HEIGHT, BITS, CHANNELS, EXTRA, SIGNS = 254, 256, 257, 258, 277, 338, 339
MEANING, ORIENTATION = 262, 274
GEO = {33550, 33922, 34264, 34735}  # pixel scale, tie points, matrix, keys
FIRST = 64  # values of a tag that are looked at
SIDE_FILES = 1 | 4  # kinds of pages besides the picture: reduced copies, masks
Tags = dict[int, tuple[int, ...]]


def is_tiff(path: Path) -> bool:
    """Whether a file begins as a TIFF."""
    with path.open("rb") as file:
        return file.read(4) in STARTS


def pages(path: Path, most: int = 8) -> list[Tags]:
    """The first values of tags of integers, of the first pages. What is damaged is left out."""
    found: list[Tags] = []
    with path.open("rb") as file:
        start = file.read(4)
        order, big = STARTS[start], start[2:3] == b"+" or start[3:4] == b"+"
        try:
            if big:
                file.read(4)
            (place,) = _unpack(file, order + ("Q" if big else "I"))
            while place and len(found) < most:
                page, place = _page(file, place, order, big)
                found.append(page)
        except (struct.error, OverflowError, OSError):
            pass
    return found


def has_place(page: Tags) -> bool:
    """Whether a page says where on Earth it lies."""
    return not GEO.isdisjoint(page)


def is_plain(found: list[Tags]) -> bool:
    """Whether Pillow reads all that is there: one page of 8 bits or fewer, grey or colours, perhaps alpha."""
    if not found:
        return True  # Pillow says what is wrong
    whole = [page for page in found if not _first(page, SUBFILE, 0) & SIDE_FILES]
    page = found[0]
    pixels = _first(page, WIDTH, 0) * _first(page, HEIGHT, 0)
    return (
        len(whole) <= 1
        and max(page.get(BITS) or (1,)) <= 8
        and set(page.get(SIGNS) or (1,)) == {1}
        and _first(page, CHANNELS, 1) <= 4
        and 0 not in page.get(EXTRA, ())
        and pixels <= 2 * (Image.MAX_IMAGE_PIXELS or pixels)
    )


def is_as_stored(page: Tags) -> bool:
    """Whether the values of 8 bits are grey from black to white or RGB, from the top left, without alpha."""
    return (
        set(page.get(BITS) or (1,)) == {8}
        and (_first(page, MEANING, 0), _first(page, CHANNELS, 1)) in ((1, 1), (2, 3))
        and _first(page, ORIENTATION, 1) == 1
    )


def _first(page: Tags, tag: int, default: int) -> int:
    return (page.get(tag) or (default,))[0]


def _page(file: IO[bytes], place: int, order: str, big: bool) -> tuple[Tags, int]:
    """The tags of the page at a place, and the place of the next."""
    file.seek(place)
    (count,) = _unpack(file, order + ("Q" if big else "H"))
    inside, entry = (8, order + "HHQ") if big else (4, order + "HHI")
    size = struct.calcsize(entry) + inside
    data = file.read(min(count, 4096) * size)
    (following,) = _unpack(file, order + ("Q" if big else "I"))
    page: Tags = {}
    for start in range(0, len(data) - size + 1, size):
        tag, kind, length = struct.unpack_from(entry, data, start)
        held = f"{order}{min(length, FIRST)}{SIZES.get(kind, 'B')}"
        value = data[start + size - inside : start + size]
        if struct.calcsize(held[:1] + f"{length}{held[-1]}") > inside:
            file.seek(struct.unpack(order + ("Q" if big else "I"), value)[0])
            value = file.read(struct.calcsize(held))
        page[tag] = struct.unpack_from(held, value) if kind in SIZES else ()
    return page, following


def _unpack(file: IO[bytes], kind: str) -> tuple[int, ...]:
    return struct.unpack(kind, file.read(struct.calcsize(kind)))
