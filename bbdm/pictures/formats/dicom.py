"""A folder of DICOM by SimpleITK: one series, a volume (C, D, H, W), whose slices are at equal distances.

The axes and the affine are those of :mod:`bbdm.pictures.formats.simpleitk`. Values are after the rescaling
that the files ask for, such as to HU. It is only read.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.base import optional, sizes
from bbdm.pictures import windows
from bbdm.pictures.formats.detection import DICM, dicom_files
from bbdm.pictures.formats.simpleitk import (
    HEADER_BYTES,
    NAME,
    channels_first,
    dtype_of,
    reader_of,
    sitk,
)
from bbdm.pictures.picture import Affine, Geometry, Header, as_affine

pydicom: Any = optional.package("pydicom", "a folder of DICOM")
VALUE_TYPES: Any = {
    kind.value for kind in optional.package("pydicom.valuerep", "a folder of DICOM").VR
}
IO = "GDCMImageIO"
SERIES = "0020|000e"  # elements of DICOM, as SimpleITK names them
BITS = "0028|0100"
TRANSFER_SYNTAX = 0x00020010
IMPLICIT = "1.2.840.10008.1.2"  # transfer syntaxes
EXPLICIT = "1.2.840.10008.1.2.1"
BIG = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
RLE = "1.2.840.10008.1.2.5"
TOLERANCE = 0.01  # of the distance of slices: more is unequal
SAME = 1e-6  # mm: slices that are nearer are at one place


def header(path: Path) -> Header:
    """The header of the only series of a folder; ``stored`` are its files in the slices' order.

    Raises:
        ValueError: it is damaged, or has complex numbers, several series, a missing slice, slices at unequal
            distances, or values that GDCM reads wrongly.
    """
    files = dicom_files(path)
    damaged = sorted(file.name for file in path.glob("*.dcm") if file not in files)
    if damaged:
        raise ValueError(f"{', '.join(damaged[:9])} cannot be read as DICOM")
    readers = [_opened(file) for file in files]
    _check_series(readers)
    first = readers[0]
    width, height, *depths = first.GetSize()  # the last are of frames in one file
    order, affine = _placed(readers)
    return Header(
        path,
        (first.GetNumberOfComponents(), math.prod(depths) * len(files), height, width),
        dtype_of(first),
        Geometry(affine, NAME),
        most=sum(file.stat().st_size for file in files) * windows.RATIO,
        stored=[str(files[index]) for index in order],
    )


def read(header: Header, window: tuple[slice, ...]) -> npt.NDArray[Any]:
    """(C, *W) of a window of the whole, which is decoded."""
    names: list[str] = header.stored
    reader = reader_of(Path(names[0]), IO)
    if len(names) > 1:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(names)
        reader.SetImageIO(IO)
    array = sitk.GetArrayFromImage(reader.Execute())
    return channels_first(array, header)[(slice(None), *window)]


def _opened(file: Path) -> Any:
    """The reader of a slice that GDCM reads rightly, and asks no needless memory for."""
    syntax = _transfer_syntax(file)
    if not syntax:  # GDCM asks memory for what follows
        raise ValueError(f"{file.name} is damaged: it says no transfer syntax")
    reader = reader_of(file, IO)
    reader.ReadImageInformation()
    bits = int(_text(reader, BITS) or 8)
    if syntax == DEFLATED or (syntax == BIG and bits > 16):
        raise ValueError(
            f"{file.name} has {bits} bits in the transfer syntax {syntax!r}, which is not read"
        )
    # GDCM mixes up the planes of bytes
    if syntax == RLE and bits > 8 and reader.GetNumberOfComponents() > 1:
        raise ValueError(
            f"{file.name} has colours of {bits} bits in the transfer syntax {syntax!r}, which is not read"
        )
    # of one component: several may be subsampled, or a palette's
    needed = math.prod(reader.GetSize()) * bits // 8
    if syntax in (IMPLICIT, EXPLICIT, BIG) and needed > file.stat().st_size:
        raise ValueError(
            f"{file.name} is too short for {sizes.shown(reader.GetSize())} values of {bits} bits"
        )
    return reader


def _transfer_syntax(file: Path) -> str:
    """How a slice encodes its values.

    Raises:
        ValueError: one of the elements before its data set ends after the file: GDCM would ask memory for it.
    """
    with file.open("rb") as stream:
        start = io.BytesIO(stream.read(HEADER_BYTES))
    start.seek(DICM + 4)
    syntax = ""
    elements = pydicom.filereader.data_element_generator(
        start, is_implicit_VR=False, is_little_endian=True, stop_when=_is_of_data_set
    )
    for element in elements:
        whole = element.length == len(element.value or b"")
        if not whole or element.VR not in VALUE_TYPES:
            raise ValueError(
                f"{file.name} is damaged or cut off: its element {element.tag} ends after it"
            )
        if element.tag == TRANSFER_SYNTAX:
            syntax = element.value.decode("latin-1").strip(" \0")
    return syntax


def _is_of_data_set(tag: Any, *_: Any) -> bool:
    return tag.group != 2


def _check_series(readers: Sequence[Any]) -> None:
    """Raise ValueError unless slices are of one series and alike."""
    series = sorted({_text(reader, SERIES) for reader in readers})
    if len(series) != 1:
        raise ValueError(
            f"it has {len(series)} series, {', '.join(series)}: put each into a folder of its own"
        )
    kinds: set[tuple[Any, ...]] = set()
    for reader in readers:
        direction = np.round(reader.GetDirection(), 4)
        kinds.add((reader.GetSize(), dtype_of(reader), *direction))
    volumes = any(length > 1 for length in readers[0].GetSize()[2:])
    if len(kinds) > 1 or (volumes and len(readers) > 1):
        raise ValueError(
            "its files have several sizes, types or directions, or several slices each"
        )


def _placed(readers: Sequence[Any]) -> tuple[list[int], Affine]:
    """The order of slices along their normal, and the affine of the volume."""
    first = readers[0]
    direction = np.reshape(first.GetDirection(), (3, 3))
    columns = direction * first.GetSpacing()
    if len(readers) == 1:
        return [0], as_affine(columns, first.GetOrigin())
    # (slices, 3), of the first pixels in mm
    positions = np.array([reader.GetOrigin() for reader in readers])
    order = np.argsort(positions @ direction[:, 2], kind="stable")
    positions = positions[order]
    _check_distances(positions)
    columns[:, 2] = (positions[-1] - positions[0]) / (len(positions) - 1)
    return order.tolist(), as_affine(columns, positions[0])


def _check_distances(positions: npt.NDArray[np.float64]) -> None:
    """Raise ValueError where two slices in order are at one position, one is missing, or distances differ."""
    gaps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    usual = float(np.median(gaps))
    unequal = np.abs(gaps - usual) > TOLERANCE * usual
    wrong = np.flatnonzero(unequal | (gaps < SAME))
    if not wrong.size:
        return
    index = int(wrong[0])
    places = f"{_point(positions[index])} and {_point(positions[index + 1])} mm"
    gap = f"{gaps[index]:g} mm between slices {index + 1} and {index + 2}, at {places}"
    raise ValueError(
        f"slices are {usual:g} mm apart, but {gap}: each must be there, once, at equal distances"
    )


def _point(position: npt.NDArray[np.float64]) -> str:
    return f"({', '.join(f'{number:g}' for number in position)})"


def _text(reader: Any, key: str) -> str:
    if not reader.HasMetaDataKey(key):
        return ""
    return reader.GetMetaData(key).strip()
