"""MetaImage and NRRD by SimpleITK: volumes (C, D, H, W) and pictures (C, H, W).

The axes are SimpleITK's, reversed: D, H, W are z, y, x of the file. The affine maps (d, h, w) to ITK's world,
(x, y, z) in mm toward the patient's left, back and head. Components of vectors are channels. NRRD has an
entry for the unit of values, ``sample units``; MetaImage has none.
"""

from __future__ import annotations

import math
import os
import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bbdm.base import optional
from bbdm.pictures import formats, windows
from bbdm.pictures.derivation import NAME as DERIVATION
from bbdm.pictures.picture import Geometry, Header, Picture, as_affine

sitk: Any = optional.package("SimpleITK", "a medical picture")
sitk.ProcessObject.SetGlobalWarningDisplay(False)
NAME = "itk"
READERS = {".mha": "MetaImageIO", ".nrrd": "NrrdImageIO"}
# what SimpleITK calls types
PIXELS = re.compile(r"(?:vector of )?(\d+)-bit (unsigned |signed )?(integer|float)")
LAST_LINE = {  # of a header
    ".mha": re.compile(rb"^[ \t]*elementdatafile[ \t]*=.*(\n|\Z)", re.IGNORECASE | re.MULTILINE),
    ".nrrd": re.compile(rb"^[ \t\r]*\n", re.MULTILINE),
}
HEADER_BYTES = 2**16  # of a file, in which its header must end
CHUNK = 2**20  # bytes that are decompressed at once
GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
UNIT = "sample units"  # NRRD's field for the unit of values


class Text(NamedTuple):
    """What the text of a header says of the values behind it."""

    offset: int  # where values begin in the file
    packed: bool  # whether they are compressed
    unit: str = ""  # of the values; "" where the text does not say it


def header(path: Path) -> Header:
    """The header of a file.

    Raises:
        ValueError: it is damaged; has complex numbers or several times; or its values are text or in another
            file.
    """
    text = _text_of(path)
    reader = reader_of(path, READERS[path.suffix.lower()])
    reader.ReadImageInformation()
    sides = windows.volume(reader.GetSize())
    axes = len(sides)
    all_axes = len(reader.GetSize())
    direction = np.reshape(reader.GetDirection(), (all_axes, all_axes))[:axes, :axes]
    affine = as_affine(direction * reader.GetSpacing()[:axes], reader.GetOrigin()[:axes])
    most = path.stat().st_size - text.offset
    if text.packed:
        most *= windows.DEFLATE
    return Header(
        path,
        (reader.GetNumberOfComponents(), *sides[::-1]),
        dtype_of(reader),
        Geometry(affine, NAME),
        most=most,
        unit=text.unit,
        stored=text,
    )


def read(header: Header, window: tuple[slice, ...]) -> npt.NDArray[Any]:
    """(C, *W) of a window of the whole, which is decoded.

    Raises:
        ValueError: values are damaged, or not those of their checksum.
    """
    reader = reader_of(header.path, READERS[header.path.suffix.lower()])
    try:
        array = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError:
        if header.stored.packed:  # of damaged values, of which ITK does not say where they end
            size = math.prod(header.shape) * header.dtype.itemsize
            _decompressed_counts(header.path, header.stored.offset, size)
        raise
    if header.stored.packed:
        _check_packed(header.path, header.stored.offset, array)
    return channels_first(array, header)[(slice(None), *window)]


def write(path: Path, picture: Picture) -> None:
    """Write (C, H, W) or (C, D, H, W), channels as components, with spacing, origin and direction."""
    array = np.asarray(picture)
    pixels = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
    image = sitk.GetImageFromArray(np.ascontiguousarray(pixels), isVector=len(array) > 1)
    steps = picture.geometry.steps(array.ndim - 1)
    if steps is not None:
        columns, origin = steps
        spacing = np.linalg.norm(columns, axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetOrigin(origin.tolist())
        image.SetDirection((columns / spacing).ravel().tolist())
    unit = " ".join(picture.unit.split())  # a line of the header
    if unit and formats.suffix_of(path) == ".nrrd":
        image.SetMetaData(UNIT, unit)
    derivation = picture.geometry.derivation
    if derivation is not None:
        image.SetMetaData(DERIVATION, derivation.text)
    sitk.WriteImage(image, str(path))
    if image.HasMetaDataKey(UNIT):
        _make_field(path, UNIT)


def reader_of(path: Path, image_io: str) -> Any:
    """SimpleITK's reader of a file by one of ITK's modules."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(image_io)
    return reader


def dtype_of(reader: Any) -> np.dtype[Any]:
    """The type of a reader's values.

    Raises:
        ValueError: they are complex, or labels.
    """
    # such as "vector of 16-bit unsigned integer"
    text = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    match = PIXELS.fullmatch(text)
    if match is None:
        raise ValueError(f"its values are {text}, and real numbers are needed")
    bits, sign, kind = match.groups()
    if kind == "float":
        return np.dtype(f"float{bits}")
    return np.dtype(f"uint{bits}" if sign == "unsigned " else f"int{bits}")


def channels_first(array: npt.NDArray[Any], header: Header) -> npt.NDArray[Any]:
    """(C, *S) of SimpleITK's array, (*S) of one component or (*S, C)."""
    return np.moveaxis(array.reshape(*header.sides, header.shape[0]), -1, 0)


def _text_of(path: Path) -> Text:
    """What the text of a header says; ValueError where it does not end, or values are not bytes behind it."""
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        text = file.read(HEADER_BYTES)
    last = LAST_LINE[suffix].search(text)
    if last is None:
        raise ValueError("its header does not end")  # at which NRRD's library crashes
    lines = text[: last.end()].decode("utf-8", "replace").split("\n")
    if suffix == ".nrrd":
        return _text_of_nrrd(lines, last.end())
    return _text_of_metaimage(lines, last.end())


def _text_of_nrrd(lines: list[str], offset: int) -> Text:
    nrrd: Any = optional.package("nrrd", "a NRRD file")
    fields = {
        name.lower().replace(" ", ""): value for name, value in nrrd.read_header(lines).items()
    }
    encoding = str(fields.get("encoding", "")).lower()
    if "datafile" in fields:
        _refuse(f"data file {fields['datafile']}")
    if encoding not in ("raw", "gz", "gzip"):
        _refuse(f"encoding {encoding}")
    return Text(offset, encoding != "raw", str(fields.get("sampleunits", "")).strip('"'))


def _text_of_metaimage(lines: list[str], offset: int) -> Text:
    fields = {"binarydata": "true", "compresseddata": "false"}
    for line in lines:
        name, _, value = line.partition("=")
        fields[name.strip().lower()] = value.strip().lower()
    if fields["elementdatafile"] != "local" or fields["binarydata"][:1] not in ("t", "1"):
        _refuse(
            f"ElementDataFile = {fields['elementdatafile']}, BinaryData = {fields['binarydata']}"
        )
    packed = fields["compresseddata"][:1] in ("t", "1")
    if "compresseddatasize" in fields and not packed:
        raise ValueError(
            "its header is damaged: it says how long compressed values are, and not that they are"
        )
    return Text(offset, packed)


def _refuse(entry: str) -> None:
    raise ValueError(
        f"its values are text, encoded or in another file, by {entry!r}: save it in one file"
    )


def _check_packed(path: Path, offset: int, array: npt.NDArray[Any]) -> None:
    """Raise ValueError where an array is not what a file compresses, of which ITK checks nothing."""
    with path.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        end = file.read()
    # gzip ends with the CRC-32 of the values and their length, zlib with their Adler-32
    if zlib.crc32(array.data) == int.from_bytes(end[:4], "little"):
        return
    if zlib.adler32(array.data) == int.from_bytes(end[4:], "big"):
        return
    # or the file has another order of bytes or axes, in which there are as many of each byte
    if not np.array_equal(_counts(array.data), _decompressed_counts(path, offset, array.nbytes)):
        raise ValueError("its values are not those that it compresses: its header is damaged")


def _counts(data: Any) -> npt.NDArray[np.int64]:
    """(256,), how often each byte is in some data."""
    return np.bincount(np.frombuffer(data, np.uint8), minlength=256)


def _decompressed_counts(path: Path, offset: int, size: int) -> npt.NDArray[np.int64]:
    """(256,), how often each byte is among compressed values, which are read to their end.

    Raises:
        ValueError: they are not ``size`` bytes.
        zlib.error: they are damaged, or have another checksum.
    """
    done = 0
    counts = np.zeros(256, np.int64)
    stream = zlib.decompressobj(GZIP_OR_ZLIB)
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(CHUNK)
        while data and done <= size:
            values = stream.decompress(data, CHUNK)
            counts += _counts(values)
            done += len(values)
            data = stream.unconsumed_tail
            if stream.eof and done >= size:
                break
            if stream.eof:  # gzip may have several members
                data = stream.unused_data
                stream = zlib.decompressobj(GZIP_OR_ZLIB)
            if not data:
                data = file.read(CHUNK)
    if done > size:
        raise ValueError(
            f"its compressed values are more than the {size} bytes of its header: it is damaged"
        )
    if done < size or not stream.eof:
        raise ValueError(f"its compressed values end after {done} of {size} bytes: it is truncated")
    return counts


def _make_field(path: Path, name: str) -> None:
    """Make a field of the header of a NRRD, ``name: value``, of a key that ITK wrote, ``name:=value``."""
    with path.open("r+b") as file:
        at = file.read(HEADER_BYTES).index(f"\n{name}:=".encode())
        file.seek(at + 1 + len(name))
        file.write(b": ")
