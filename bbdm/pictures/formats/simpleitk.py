"""MetaImage, NRRD and folders of DICOM, by SimpleITK: volumes (C, D, H, W) and pictures (C, H, W).

The axes are SimpleITK's, reversed: D, H, W are z, y, x of the file. The affine maps (d, h, w) to ITK's world,
(x, y, z) in mm toward the patient's left, back and head. Components of vectors are channels. A folder of
DICOM is one series, whose slices are at equal distances; it is not written.
"""

from __future__ import annotations

import math
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.base import optional, sizes
from bbdm.pictures import formats
from bbdm.pictures.formats import detection
from bbdm.pictures.picture import Geometry, Header, Picture, as_affine

sitk: Any = optional.package("SimpleITK", "a medical picture")
sitk.ProcessObject.SetGlobalWarningDisplay(False)
NAME = "itk"
READERS = {".mha": "MetaImageIO", ".nrrd": "NrrdImageIO"}  # by suffix; of DICOM it is GDCMImageIO
TEXTS = {  # lines of headers: the last, one that says that values are compressed, and those that are refused
    ".mha": (
        rb"^[ \t]*elementdatafile[ \t]*=.*(\n|\Z)",
        rb"^[ \t]*compresseddata[ \t]*=[ \t]*[t1]",
        rb"^[ \t]*(elementdatafile[ \t]*=(?![ \t]*local[ \t\r]*\n)|binarydata[ \t]*=(?![ \t]*[t1]))",
    ),
    ".nrrd": (rb"^[ \t\r]*\n", rb"^encoding:[ \t]*gz", rb"^(data ?file:|encoding:(?![ \t]*(raw|gz)))"),
}
HEADER_BYTES = 2**16  # of a file, in which its header must end
CHUNK = 2**20  # bytes that are decompressed at once
SERIES, BITS = "0020|000e", "0028|0100"  # elements of DICOM
IMPLICIT, EXPLICIT, BIG, DEFLATED = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2", ".1.99"))
TOLERANCE = 0.01  # of the distance of slices: more is unequal
SAME = 1e-6  # mm: slices that are nearer are at one place


def header(path: Path) -> Header:
    """The header of a file or of a folder of DICOM.

    Raises:
        ValueError: it is damaged, or has complex numbers, several times, several series, a missing slice, or
            slices at unequal distances.
    """
    if path.is_dir():
        return _series(path)
    offset, packed = _data_of(path)
    reader = _reader(path)
    sides = formats.volume(reader.GetSize())
    count, axes = len(sides), len(reader.GetSize())
    direction = np.reshape(reader.GetDirection(), (axes, axes))[:count, :count]
    affine = as_affine(direction * reader.GetSpacing()[:count], reader.GetOrigin()[:count])
    most = (path.stat().st_size - offset) * (formats.DEFLATE if packed else 1)
    shape = reader.GetNumberOfComponents(), *sides[::-1]
    return Header(path, shape, _dtype(reader), Geometry(affine, NAME), most=most, stored=(offset, packed))


def read(header: Header, window: tuple[slice, ...]) -> npt.NDArray[Any]:
    """(C, *W) of a window of the whole, which is decoded.

    Raises:
        ValueError: values are damaged, or not those of their checksum.
    """
    if header.path.is_dir():
        names: list[str] = header.stored
        reader: Any = sitk.ImageSeriesReader() if len(names) > 1 else sitk.ImageFileReader()
        reader.SetFileNames(names) if len(names) > 1 else reader.SetFileName(names[0])
        reader.SetImageIO("GDCMImageIO")
    else:
        reader = _reader(header.path)
        offset, packed = header.stored
        if packed and header.path.suffix.lower() == ".mha":
            _check_packed(header.path, offset, math.prod(header.shape) * header.dtype.itemsize)
    array = sitk.GetArrayFromImage(reader.Execute()).reshape(*header.sides, header.shape[0])
    return np.moveaxis(array, -1, 0)[(slice(None), *window)]


def write(path: Path, picture: Picture) -> None:
    """Write (C, H, W) or (C, D, H, W), channels as components, with spacing, origin and direction."""
    array = np.asarray(picture)
    pixels = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
    image = sitk.GetImageFromArray(np.ascontiguousarray(pixels), isVector=len(array) > 1)
    if (steps := picture.geometry.steps(array.ndim - 1)) is not None:
        columns, origin = steps
        spacing = np.linalg.norm(columns, axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetOrigin(origin.tolist())
        image.SetDirection((columns / spacing).ravel().tolist())
    sitk.WriteImage(image, str(path))


def _reader(path: Path) -> Any:
    """SimpleITK's reader of a file, of which the header is read."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(READERS.get(path.suffix.lower(), "GDCMImageIO"))
    reader.ReadImageInformation()
    return reader


def _dtype(reader: Any) -> np.dtype[Any]:
    """The type of a reader's values. ValueError where they are complex, or labels."""
    text = sitk.GetPixelIDValueAsString(reader.GetPixelID())  # such as "vector of 16-bit unsigned integer"
    found = re.fullmatch(r"(?:vector of )?(\d+)-bit (?:(un)?signed )?(int|float)(?:eger)?", text)
    if found is None:
        raise ValueError(f"its values are {text}, and real numbers are needed")
    bits, unsigned, kind = found.groups()
    return np.dtype(f"{'u' if unsigned else ''}{kind}{bits}")


def _data_of(path: Path) -> tuple[int, bool]:
    """Where a MetaImage's or NRRD's values begin in it, and whether they are compressed."""
    with path.open("rb") as file:
        text = file.read(HEADER_BYTES)
    last, packed, refused = (re.compile(b"(?im)" + line) for line in TEXTS[path.suffix.lower()])
    end = last.search(text)
    if end is None:
        raise ValueError("its header does not end")  # at which NRRD's library crashes
    text = text[: end.end()]
    if line := refused.search(text):
        raise ValueError(f"its values are text, encoded or in another file, after {line[0]!r}: save it in one file")
    return end.end(), packed.search(text) is not None


def _check_packed(path: Path, offset: int, size: int) -> None:
    """Raise ValueError where compressed values end early or have another checksum: ITK checks neither."""
    stream, found = zlib.decompressobj(47), 0  # zlib or gzip
    with path.open("rb") as file:
        file.seek(offset)
        while not stream.eof and (data := stream.unconsumed_tail or file.read(CHUNK)):
            found += len(stream.decompress(data, CHUNK))
    if not stream.eof or found < size:
        raise ValueError(f"its compressed values end after {found} of {size} bytes: it is truncated")


def _slice(file: Path) -> Any:
    """The reader of a slice that GDCM reads rightly, and asks no needless memory for."""
    size, syntax, at = file.stat().st_size, "", detection.DICM + 4
    with file.open("rb") as stream:
        data = stream.read(HEADER_BYTES)
    while data[at : at + 2] == b"\2\0":  # elements before the data set: PS3.10, section 7.1
        element, kind = data[at + 2 : at + 4], data[at + 4 : at + 6]
        first, width = (at + 8, 2) if kind in (b"AE", b"SH", b"UI", b"UL") else (at + 12, 4)
        at = first + int.from_bytes(data[first - width : first], "little")
        if at > len(data) or (width == 4 and kind not in (b"OB", b"UR")):
            raise ValueError(f"{file.name} is damaged or cut off: an element ends after it, at byte {at}")
        syntax = data[first:at].decode("latin-1").strip(" \0") if element == b"\x10\0" else syntax
    reader = _reader(file)
    bits, shape = int(_text(reader, BITS) or 8), reader.GetSize()
    if syntax in ("", DEFLATED) or (syntax == BIG and bits > 16):
        raise ValueError(f"{file.name} has {bits} bits in the transfer syntax {syntax!r}, which is not read")
    # of one component: several may be subsampled, or a palette's
    if syntax in (IMPLICIT, EXPLICIT, BIG) and math.prod(shape) * bits // 8 > size:
        raise ValueError(f"{file.name} is too short for {sizes.shown(shape)} values of {bits} bits")
    return reader


def _series(path: Path) -> Header:
    """The header of the only series of a folder; ``stored`` are its files in the slices' order."""
    files = detection.dicom_files(path)
    if damaged := sorted(each.name for each in path.glob("*.dcm") if each not in files):
        raise ValueError(f"{', '.join(damaged[:9])} cannot be read as DICOM")
    readers = [_slice(file) for file in files]
    series = sorted({_text(reader, SERIES) for reader in readers})
    if len(series) != 1:
        raise ValueError(f"it has {len(series)} series, {', '.join(series)}: put each into a folder of its own")
    first = readers[0]
    kinds = {(each.GetSize(), _dtype(each), *np.round(each.GetDirection(), 4)) for each in readers}
    width, height, depth = (*first.GetSize(), 1)[:3]
    if len(kinds) != 1 or (len(readers) > 1 and depth > 1):
        raise ValueError("its files have several sizes, types or directions, or several slices each")
    direction = np.reshape(first.GetDirection(), (3, 3))
    columns, origin = direction * first.GetSpacing(), first.GetOrigin()
    if len(readers) > 1:
        positions = np.array([reader.GetOrigin() for reader in readers])  # of the first pixels, in mm
        order = np.argsort(positions @ direction[:, 2], kind="stable")
        files, positions = [files[i] for i in order], positions[order]
        _check_distances(positions)
        origin, columns[:, 2] = positions[0], (positions[-1] - positions[0]) / (len(positions) - 1)
    shape = first.GetNumberOfComponents(), depth * len(files), height, width
    most = sum(file.stat().st_size for file in files) * formats.RATIO
    geometry = Geometry(as_affine(columns, origin), NAME)
    return Header(path, shape, _dtype(first), geometry, most=most, stored=[str(file) for file in files])


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
