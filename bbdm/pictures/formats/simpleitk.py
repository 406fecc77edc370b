"""MetaImage, NRRD and folders of DICOM, by SimpleITK: volumes (C, D, H, W) and pictures (C, H, W).

The axes are SimpleITK's, reversed: D, H, W are z, y, x of the file. The affine maps (d, h, w) to ITK's world,
(x, y, z) in mm toward the patient's left, back and head. Components of vectors are channels. A folder of
DICOM is one series, whose slices are at equal distances; it is not written.
"""

from __future__ import annotations

import locale
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.base import optional, sizes
from bbdm.pictures import formats
from bbdm.pictures.picture import Geometry, Header, Picture, as_affine

NAME = "itk"
READERS = {".mha": "MetaImageIO", ".nrrd": "NrrdImageIO"}  # by suffix; of DICOM it is GDCMImageIO
HEADER_BYTES = 2**16  # of a MetaImage or NRRD, in which its text must end
ENDS = {".nrrd": rb"\n[ \t\r]*\n", ".mha": rb"(?m:^)[ \t]*ElementDataFile[ \t]*=.*(\n|\Z)"}  # of the text
CHUNK = 2**20  # bytes that are decompressed at once
POSITION, SERIES, BITS = "0020|0032", "0020|000e", "0028|0100"  # elements of DICOM
DICM = 128  # where a file of DICOM has these letters
IMPLICIT, EXPLICIT, BIG, DEFLATED = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2", ".1.99"))
TOLERANCE = 0.01  # of the distance of slices: more is unequal
SAME = 1e-6  # mm: slices that are nearer are at one place


def header(path: Path) -> Header:
    """The header of a file or of a folder of DICOM.

    ``geometry.kept`` has spacing and direction.

    Raises:
        ValueError: it is damaged, or has complex numbers, several times, several series, a missing slice, or
            slices at unequal distances.
    """
    package = _package()
    if path.is_dir():
        return _series(package, path)
    offset, packed = _data_of(path)
    reader = _reader(package, path)
    size, dtype = reader.GetSize(), _dtype(package, reader)
    if any(length != 1 for length in size[3:]):
        raise ValueError(f"it has {len(size)} axes, {sizes.shown(size)}, such as times: save each volume as a file")
    count = min(len(size), 3)
    shape = (reader.GetNumberOfComponents(), *size[:count][::-1])
    most = (path.stat().st_size - offset) * (formats.DEFLATE if packed else 1)
    formats.check_cost(shape, dtype, most)
    direction = np.reshape(reader.GetDirection(), (len(size), len(size)))[:count, :count]
    geometry = _geometry(reader.GetSpacing()[:count], reader.GetOrigin()[:count], direction)
    return Header(path, shape, dtype, geometry, most=most, stored=(offset, packed))


def read(header: Header, window: tuple[slice, ...]) -> npt.NDArray[Any]:
    """(C, *W) of a window of the whole, which is decoded.

    Raises:
        ValueError: values are damaged, or not those of their checksum.
    """
    package = _package()
    if header.path.is_dir():
        names: list[str] = header.stored
        reader: Any = package.ImageSeriesReader() if len(names) > 1 else package.ImageFileReader()
        reader.SetFileNames(names) if len(names) > 1 else reader.SetFileName(names[0])
        reader.SetImageIO("GDCMImageIO")
    else:
        reader = _reader(package, header.path)
        offset, packed = header.stored
        if packed and header.path.suffix.lower() == ".mha":
            _check_packed(header.path, offset, math.prod(header.shape) * header.dtype.itemsize)
    with _locale_kept():
        array = package.GetArrayFromImage(reader.Execute())
    if array.size != math.prod(header.shape):
        raise ValueError(f"its header says {header.shape}, and its values are {array.shape}")
    return np.moveaxis(array.reshape(*header.sides, header.shape[0]), -1, 0)[(slice(None), *window)]


def write(path: Path, picture: Picture) -> None:
    """Write (C, H, W) or (C, D, H, W), channels as components, with spacing, origin and direction."""
    package = _package()
    formats.check_held(path.suffix, picture, formats.REAL)
    array, geometry = np.asarray(picture), picture.geometry
    pixels = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
    image = package.GetImageFromArray(np.ascontiguousarray(pixels), isVector=len(array) > 1)
    kept = geometry.kept if geometry.format == NAME else {}
    if (steps := geometry.steps(array.ndim - 1)) is not None:
        columns, origin = steps
        spacing, direction = kept.get("spacing"), kept.get("direction")
        if spacing is None or _geometry(spacing, origin, direction).affine != geometry.affine:
            spacing = np.linalg.norm(columns, axis=0).tolist()
            direction = (columns / np.asarray(spacing)).ravel().tolist()
        image.SetSpacing(spacing)
        image.SetOrigin(origin.tolist())
        image.SetDirection(direction)
    package.WriteImage(image, str(path))


def dicom_files(folder: Path, most: int | None = None) -> list[Path]:
    """The files of DICOM in a folder, of the first ``most`` of its files."""
    found: list[Path] = []
    for path in sorted(folder.iterdir())[:most]:
        if path.is_file() and path.name != "DICOMDIR":
            with path.open("rb") as file:
                file.seek(DICM)
                found += [path] if file.read(4) == b"DICM" else []
    return found


def _package() -> Any:
    package = optional.package("SimpleITK", "a medical picture")
    package.ProcessObject.SetGlobalWarningDisplay(False)
    return package


def _reader(package: Any, path: Path) -> Any:
    """SimpleITK's reader of a file, of which the header is read."""
    reader = package.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(READERS.get(path.suffix.lower(), "GDCMImageIO"))
    with _locale_kept():
        reader.ReadImageInformation()
    return reader


@contextmanager
def _locale_kept() -> Iterator[None]:
    """The locale stays: GDCM sets C, and text files would be read in another encoding."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        if locale.setlocale(locale.LC_ALL) != before:
            locale.setlocale(locale.LC_ALL, before)


def _dtype(package: Any, reader: Any) -> np.dtype[Any]:
    """The type of a reader's values. ValueError where they are complex, or labels."""
    text = package.GetPixelIDValueAsString(reader.GetPixelID())  # such as "vector of 16-bit unsigned integer"
    found = re.fullmatch(r"(?:vector of )?(\d+)-bit (?:(un)?signed )?(int|float)(?:eger)?", text)
    if found is None:
        raise ValueError(f"its values are {text}, and real numbers are needed")
    bits, unsigned, kind = found.groups()
    return np.dtype(f"{'u' if unsigned else ''}{kind}{bits}")


def _geometry(spacing: Sequence[float], origin: npt.ArrayLike, direction: Any) -> Geometry:
    """Of what SimpleITK has of (x, y, ...): its affine is from (..., y, x) to the world."""
    turn = np.reshape(direction, (len(spacing), len(spacing)))
    known = {"spacing": tuple(spacing), "direction": tuple(turn.ravel().tolist())}
    return Geometry(as_affine(turn * np.asarray(spacing), origin), NAME, known)


def _data_of(path: Path) -> tuple[int, bool]:
    """Where a MetaImage's or NRRD's values begin in it, and whether they are compressed."""
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        text = file.read(HEADER_BYTES)
    end = re.search(ENDS[suffix], text)
    if end is None:
        raise ValueError("its header does not end")  # at which NRRD's library crashes
    lines = text[: end.end()].decode("latin-1").splitlines()
    pairs = (line.partition(":" if suffix == ".nrrd" else "=") for line in lines)
    entries = {key.strip().lower(): value.strip() for key, _, value in pairs}
    if suffix == ".nrrd":
        encoding = entries.get("encoding", "").lower()
        if {"data file", "datafile"} & entries.keys() or encoding not in ("raw", "gzip", "gz"):
            raise ValueError(f"it is no NRRD, its encoding {encoding!r} is not read, or its values are in another file")
        return end.end(), encoding != "raw"
    if entries.get("binarydata", "true").lower()[:1] not in ("t", "1"):
        raise ValueError("its values are text")
    if (name := entries["elementdatafile"]).lower() != "local":
        raise ValueError(f"its values are in {name!r}: save it with them, in one file")
    return end.end(), entries.get("compresseddata", "").lower()[:1] in ("t", "1")


def _check_packed(path: Path, offset: int, size: int) -> None:
    """Raise ValueError where compressed values end early or have another checksum: ITK checks neither."""
    stream, found = zlib.decompressobj(47), 0  # zlib or gzip
    with path.open("rb") as file:
        file.seek(offset)
        while not stream.eof and (data := stream.unconsumed_tail or file.read(CHUNK)):
            found += len(stream.decompress(data, CHUNK))
    if not stream.eof or found < size:
        raise ValueError(f"its compressed values end after {found} of {size} bytes: it is truncated")


def _slice(package: Any, file: Path) -> Any:
    """The reader of a slice that GDCM reads rightly, and asks no needless memory for."""
    syntax, size = "", file.stat().st_size
    with file.open("rb") as stream:
        stream.seek(DICM + 4)
        while len(head := stream.read(8)) == 8 and head[:2] == b"\2\0":  # before the data set: PS3.10, section 7.1
            short = head[4:6] in (b"AE", b"SH", b"UI", b"UL")
            length = int.from_bytes(head[6:] if short else stream.read(4), "little")
            if length > size - stream.tell() or not (short or head[4:6] in (b"OB", b"UR")):
                raise ValueError(f"{file.name} is damaged or cut off: an element of {length} bytes ends after it")
            value = stream.read(length)
            syntax = value.decode("latin-1").strip(" \0") if head[2:4] == b"\x10\0" else syntax
    if not syntax:
        raise ValueError(f"{file.name} is damaged: it has no transfer syntax")
    reader = _reader(package, file)
    bits, shape = int(_text(reader, BITS) or 8), reader.GetSize()
    if syntax == DEFLATED or (syntax == BIG and bits > 16):
        raise ValueError(f"{file.name} has {bits} bits in the transfer syntax {syntax}, which is not read")
    # of one component: several may be subsampled, or a palette's
    if syntax in (IMPLICIT, EXPLICIT, BIG) and math.prod(shape) * bits // 8 > size:
        raise ValueError(f"{file.name} is too short for {sizes.shown(shape)} values of {bits} bits")
    return reader


def _series(package: Any, path: Path) -> Header:
    """The header of the only series of a folder; ``stored`` are its files in the slices' order."""
    files = dicom_files(path)
    if damaged := sorted(each.name for each in path.glob("*.dcm") if each not in files):
        raise ValueError(f"{', '.join(damaged[:9])} cannot be read as DICOM")
    readers = [_slice(package, file) for file in files]
    series = sorted({_text(reader, SERIES) for reader in readers})
    if len(series) != 1:
        raise ValueError(f"it has {len(series)} series, {', '.join(series)}: put each into a folder of its own")
    first, dtype = readers[0], _dtype(package, readers[0])
    turns = {tuple(round(value, 4) for value in reader.GetDirection()) for reader in readers}
    if len(turns) != 1 or len({(reader.GetSize(), _dtype(package, reader)) for reader in readers}) != 1:
        raise ValueError("its slices have several sizes, types or directions")
    width, height, depth = (*first.GetSize(), 1)[:3]
    spacing, origin, direction = first.GetSpacing(), first.GetOrigin(), np.reshape(first.GetDirection(), (3, 3))
    if len(readers) > 1:
        if depth > 1:
            raise ValueError("it has several files of several slices: put each into a folder of its own")
        if lost := [file.name for file, reader in zip(files, readers, strict=True) if not _text(reader, POSITION)]:
            raise ValueError(f"{lost[0]} does not say where its slice lies")
        positions = np.array([reader.GetOrigin() for reader in readers])  # of the first pixels, in mm
        order = np.argsort(positions @ direction[:, 2], kind="stable")
        files, positions = [files[i] for i in order], positions[order]
        _check_distances(positions)
        step = (positions[-1] - positions[0]) / (len(positions) - 1)
        length = float(np.linalg.norm(step))
        spacing, origin = (*spacing[:2], length), positions[0]
        direction = np.column_stack([direction[:, :2], step / length])
    shape = first.GetNumberOfComponents(), depth * len(files), height, width
    most = sum(file.stat().st_size for file in files) * formats.RATIO
    geometry = _geometry(spacing, origin, direction)
    return Header(path, shape, dtype, geometry, most=most, stored=[str(file) for file in files])


def _text(reader: Any, key: str) -> str:
    return reader.GetMetaData(key).strip() if reader.HasMetaDataKey(key) else ""


def _check_distances(positions: npt.NDArray[np.float64]) -> None:
    """Raise ValueError where two slices in order are at one position, one is missing, or distances differ."""
    gaps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    usual = float(np.median(gaps))
    for i in np.flatnonzero((abs(gaps - usual) > TOLERANCE * usual) | (gaps < SAME)):
        one, two = (f"({', '.join(f'{number:g}' for number in position)})" for position in positions[i : i + 2])
        wrong = f"{gaps[i]:g} mm between slices {i + 1} and {i + 2}, at {one} and {two} mm"
        raise ValueError(f"slices are {usual:g} mm apart, but {wrong}: each must be there, once, at equal distances")
