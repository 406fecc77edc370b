"""The sizes in headers of NIfTI, MetaImage and NRRD, checked before a library trusts them.

A file that is shorter than its header says is refused before memory is spent. No other file is read but the
one beside an mhd.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.pictures.formats.common import check_cost
from bbdm.pictures.values import check_finite, not_finite

CHUNK = 2**20  # bytes that are decompressed at once
MOST = 2**16  # bytes of a header that are looked at
NIFTI = {  # dims, their place; type; offset; magic; slope and intercept
    348: ("h", 40, 70, "f", 108, 344, "2f", 112),
    540: ("q", 16, 12, "q", 168, 4, "2d", 176),
}
BITS = {2: 8, 4: 16, 8: 32, 16: 32, 64: 64, 128: 24, 256: 8, 512: 16, 768: 32, 1024: 64, 1280: 64, 2304: 32}
KINDS = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
META = {"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "LONG": 4, "ULONG": 4}
META |= {"LONG_LONG": 8, "ULONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
NRRD = {"char": 1, "short": 2, "int": 4, "float": 4, "double": 8, "longlong": 8, "int8": 1, "int16": 2, "int32": 4}
NRRD |= {"int64": 8}
GZIP = 1100  # deflate makes at most 1032 bytes of one


@dataclass(frozen=True)
class Stored:
    """Where the values of a picture lie: ``size`` bytes, from ``offset`` of a file on.

    Of NIfTI there is the values' ``kind``, and what they are multiplied by, and then added. ITK reads NaN and
    infinity as 0. Packed values begin ``head`` bytes later.
    """

    path: Path
    offset: int
    size: int
    packed: bool
    kind: np.dtype[Any] | None = None
    scale: tuple[float, float] = (1.0, 0.0)
    head: int = 0

    @property
    def floats(self) -> np.dtype[Any] | None:
        """The type of floats of a NIfTI, which may be NaN or infinite."""
        return self.kind if self.kind is not None and self.kind.kind == "f" else None

    def mapped(self, dtype: np.dtype[Any]) -> bool:
        """Whether :meth:`read` gives what ITK does, whose values are of a type."""
        if self.packed or self.kind is None:
            return False
        if self.scale == (1, 0):
            return self.kind.newbyteorder("=") == dtype
        return dtype.kind == "f" and self.scale[0] != 0 and bool(np.isfinite(self.scale).all())  # ITK has its own way

    def read(self, shape: Sequence[int], window: Sequence[slice], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Values in a window of a picture (C, *S), of a type; no others are read.

        Raises:
            ValueError: the file is shorter by now, or floats are not finite.
        """
        assert self.kind is not None
        values = np.memmap(self.path, self.kind, "r", self.offset, tuple(shape))[(slice(None), *window)]
        check_finite(values, [part.start for part in window])
        made = np.asarray(values.astype(dtype))
        if self.scale == (1, 0):
            return made
        with np.errstate(over="ignore"):  # as ITK does it
            return (made.astype(np.float64) * self.scale[0] + self.scale[1]).astype(dtype)

    def check(self, shape: Sequence[int], window: Sequence[slice]) -> None:
        """Raise ValueError for what ITK reads in silence.

        That is values that end early or do not fit their checksum, which are looked at as a whole, and NaN or
        infinity in a window of a picture (C, *S), or anywhere where values are packed.
        """
        if self.packed:
            self._check_packed(shape)
        elif self.floats is not None:
            whole = np.memmap(self.path, self.floats, "r", self.offset, tuple(shape))
            check_finite(whole[(slice(None), *window)], [part.start for part in window])

    def _check_packed(self, shape: Sequence[int]) -> None:
        floats, found, stream = self.floats, 0, zlib.decompressobj(47)  # zlib or gzip
        rest, index, skipped = b"", 0, 0
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read(CHUNK)
            while data and not (stream.eof and found >= self.size):
                if stream.eof:
                    stream = zlib.decompressobj(47)  # a further member of gzip
                made = stream.decompress(data, CHUNK)
                found += len(made)
                if floats is not None:
                    drop = min(self.head - skipped, len(made))
                    skipped, made = skipped + drop, rest + made[drop:]
                    whole = len(made) // floats.itemsize
                    values = np.frombuffer(made, floats, whole)[: prod(shape) - index]
                    if not np.isfinite(values).all():
                        (first, *_) = np.flatnonzero(~np.isfinite(values))
                        channel, *place = np.unravel_index(int(first) + index, tuple(shape))
                        raise not_finite(values[first], int(channel), [int(at) for at in place])
                    rest, index = made[whole * floats.itemsize :], index + whole
                data = (stream.unused_data if stream.eof else stream.unconsumed_tail) or file.read(CHUNK)
        if not stream.eof or found < self.size:
            raise ValueError(f"its compressed values end after {found} of {self.size} bytes: it is truncated")


def stored(path: Path) -> Stored:
    """Where the values of a file lie.

    Raises:
        ValueError: the file is shorter than its header says, or has what is not read.
    """
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return _nifti(path)
    return _nrrd(path) if name.endswith(".nrrd") else _meta(path)


def _nifti(path: Path) -> Stored:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    if packed != path.name.lower().endswith(".gz"):
        raise ValueError(f"it is {'' if packed else 'not '}compressed by gzip, which its suffix does not say")
    with gzip.open(path) if packed else path.open("rb") as file:
        head = file.read(540)
    order = next((order for order in "<>" if head[:4] and struct.unpack(order + "i", head[:4])[0] in NIFTI), None)
    if order is None or len(head) < struct.unpack(order + "i", head[:4])[0]:
        raise ValueError("it is no NIfTI, or its header is cut off")
    length, at, kind_at, real, offset_at, magic, scales, scales_at = NIFTI[struct.unpack(order + "i", head[:4])[0]]
    count, *dims = struct.unpack_from(f"{order}8{length}", head, at)
    (kind,) = struct.unpack_from(order + "h", head, kind_at)
    (offset,) = struct.unpack_from(order + real, head, offset_at)
    if head[magic : magic + 2] not in (b"n+",):
        raise ValueError("its values are in another file, or it is no NIfTI")
    if not 1 <= count <= 7 or min(dims[:count]) < 1:
        raise ValueError(f"its header says axes of {dims[: max(0, count)]}")
    if kind not in BITS:
        raise ValueError(f"its values are of NIfTI's type {kind}, and real numbers are wanted")
    found = _stored(path, list(dims[:count]), BITS[kind] // 8, int(offset), packed)
    if kind in KINDS:
        slope, intercept = struct.unpack_from(order + scales, head, scales_at)
        scale = (slope, intercept) if slope or intercept else (1.0, 0.0)
        found = replace(found, kind=np.dtype(order + KINDS[kind]), scale=scale)
    return replace(found, offset=0, size=found.size + int(offset), head=int(offset)) if packed else found


def _meta(path: Path) -> Stored:
    lines, offset = _lines(path, lambda line: line.startswith("ElementDataFile"))
    said = {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}
    dims = [int(number) for number in said.get("DimSize", "").split()]
    kind = said.get("ElementType", "").removeprefix("MET_").removesuffix("_ARRAY")
    if kind not in META or not dims or said.get("BinaryData", "True") != "True":
        raise ValueError(f"its header has dimensions {dims} and values of {kind or 'no type'}, or they are text")
    packed = said.get("CompressedData", "False") == "True"
    data, where = path, said.get("ElementDataFile", "").split()
    if [each.upper() for each in where] != ["LOCAL"]:
        data, offset = path.with_name(" ".join(where)), 0
        if len(where) != 1 or data.parent != path.parent or "%" in where[0] or not data.is_file():
            raise ValueError(f"its values are in {' '.join(where)!r}, and one file beside it is wanted")
    offset = max(offset, int(said.get("HeaderSize", 0)))
    return _stored(data, [*dims, int(said.get("ElementNumberOfChannels", 1))], META[kind], offset, packed)


def _nrrd(path: Path) -> Stored:
    lines, offset = _lines(path, lambda line: line == "")
    said = {key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if not lines[0].startswith("NRRD") or {"data file", "datafile"} & said.keys():
        raise ValueError("it is no NRRD, or its values are in another file")
    kind = said.get("type", "").removeprefix("unsigned ").removeprefix("signed ").removesuffix("_t")
    kind = kind.removesuffix(" int").replace(" ", "").removeprefix("u")
    encoding = said.get("encoding", "")
    if kind not in NRRD or encoding not in ("raw", "gzip", "gz"):
        raise ValueError(f"its header has type {said.get('type')!r} and encoding {encoding!r}, which are not read")
    sizes = [int(number) for number in said.get("sizes", "").split()]
    return _stored(path, sizes, NRRD[kind], offset, encoding != "raw")


def _lines(path: Path, last: Callable[[str], bool]) -> tuple[list[str], int]:
    """The lines of a header up to the last, and where its values begin."""
    lines: list[str] = []
    with path.open("rb") as file:
        while file.tell() < MOST and (line := file.readline(MOST)):
            lines.append(line.decode("latin-1").rstrip("\r\n"))
            if last(lines[-1]):
                return lines, file.tell()
    raise ValueError("its header does not end")


def _stored(path: Path, sizes: list[int], width: int, offset: int, packed: bool) -> Stored:
    if not sizes or min(sizes) < 1 or offset < 0:
        raise ValueError(f"its header says axes of {sizes}, from byte {offset} on")
    held, size = path.stat().st_size - (0 if packed else offset), prod(sizes) * width
    if packed or size > held:
        check_cost(sizes, np.dtype(f"V{width}"), held, GZIP if packed else 1)
    return Stored(path, offset, size, packed)
