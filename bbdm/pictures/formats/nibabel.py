"""NIfTI by nibabel: volumes (C, D, H, W) and pictures (C, H, W), of versions 1 and 2 in both byte orders.

D, H, W are z, y, x of the file, and the fifth axis is of channels. The affine maps (d, h, w) to mm toward the
patient's left, back and head, as for all medical formats; the file's own is toward right, front and head.
"""

from __future__ import annotations

import gzip
import math
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.base import optional
from bbdm.pictures import windows
from bbdm.pictures.derivation import BEGIN
from bbdm.pictures.picture import Affine, Geometry, Header, Picture, as_affine

nibabel: Any = optional.package("nibabel", "a NIfTI file")
NAME = "nifti"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # of right, front, head
MM = {1: 1000.0, 3: 0.001}  # mm of a metre and a micrometre, by their codes
UNIT_OF_LENGTH = 7  # the bits of xyzt_units that have such a code
MILLIMETRE = 2  # the code
SCANNER = 1  # the code of a scanner's coordinates
NO_INTENT = 0
VECTOR = 1007  # the intent whose fifth axis has components of a vector
COMMENT = 6  # the code of an extension of text
VALUE_UNIT = b"unit of values: "  # begins the comment of a picture that has a unit
FORMS_DIFFER = 1e-2  # of a voxel's length
DESCRIP_BYTES = 80  # of the header's description
EXTENSION = 8  # bytes of an extension before its content: its size and its code
EXTENSION_BYTES = 2**24  # of all extensions, from which on they are left out
CHUNK = 2**20  # bytes that are decompressed at once

Matrix = npt.NDArray[np.float64]


def header(path: Path) -> Header:
    """The header of a volume or a picture.

    ``geometry.kept`` has the header of nibabel, and of a flat picture its ``plane`` (4, 4). Where sform and
    qform differ, the sform counts, and a warning names the file.

    Raises:
        ValueError: it is damaged, has several times, or its values are in another file.
    """
    nifti = _read_header(path)
    dims = nifti.get_data_shape()
    sides = _spatial(dims)
    channels = dims[4] if len(dims) > 4 else 1
    dtype = nifti.get_data_dtype()
    if _scale(nifti) is not None and dtype.kind in "iu":
        dtype = np.dtype(np.float32)
    matrix = _matrix(nifti, len(sides), path)
    kept = {"header": nifti}
    if len(sides) == 2:
        kept["plane"] = tuple(map(tuple, matrix.tolist()))
    geometry = Geometry(_affine(matrix, len(sides)), NAME, kept)
    packed = _is_packed(path)
    most = path.stat().st_size
    if packed:
        most *= windows.DEFLATE
    unit = _unit(nifti)
    return Header(path, (channels, *sides[::-1]), dtype, geometry, not packed, most, unit=unit)


def read(header: Header, window: tuple[slice, ...]) -> npt.NDArray[Any]:
    """(C, *W) of a window; mapped into memory without compression and scaling.

    Raises:
        ValueError: the file is shorter than its header says, or its checksum is another.
    """
    nifti: Any = header.geometry.kept["header"]
    dtype = nifti.get_data_dtype()
    offset = nifti.get_data_offset()
    if header.windowed:
        array = windows.mapped(header.path, dtype, offset, header.shape)
    else:
        content = _decompressed(header.path, offset, math.prod(header.shape) * dtype.itemsize)
        array = np.frombuffer(content, dtype).reshape(header.shape)  # or it is truncated
    part = array[(slice(None), *window)]
    scale = _scale(nifti)
    if scale is None:
        return np.asarray(part, header.dtype)
    slope, intercept = scale
    with np.errstate(over="ignore"):
        numbers = part.astype(header.dtype).astype(np.float64)  # as ITK does it
        return (numbers * slope + intercept).astype(header.dtype)


def write(path: Path, picture: Picture) -> None:
    """Write (C, H, W) or (C, D, H, W), channels as a vector's components, with affine and kept header."""
    geometry = picture.geometry
    nifti = _new_header(picture)
    matrix = _matrix_to_write(geometry, axes=picture.ndim - 1)
    image_type = nibabel.Nifti1Image
    if isinstance(nifti, nibabel.Nifti2Header):
        image_type = nibabel.Nifti2Image
    image = image_type(_in_axes_of_file(picture), matrix, nifti)
    if matrix is not None:
        image.set_sform(matrix, int(nifti["sform_code"]) or SCANNER)
        image.set_qform(matrix, int(nifti["qform_code"]) or SCANNER)
        has_shear = not np.allclose(image.get_qform(), matrix, atol=1e-3)
        if has_shear:  # which a qform cannot hold
            image.set_qform(None, 0)
    image.to_filename(path)


def _is_packed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _open(path: Path) -> Any:
    return gzip.open(path) if _is_packed(path) else path.open("rb")


def _decompressed(path: Path, offset: int, size: int) -> bytes:
    """``size`` bytes from an offset on; the file is read to its end, where the checksum is compared."""
    with _open(path) as file:
        file.seek(offset)
        content = file.read(size)
        while file.read(CHUNK):
            pass
    return content


def _read_header(path: Path) -> Any:
    """The header of nibabel, with its extensions."""
    with _open(path) as file:
        block = file.read(nibabel.Nifti2Header.sizeof_hdr)
        nifti = _parsed_header(block)
        offset = nifti.get_data_offset()
        if nifti.sizeof_hdr < offset <= EXTENSION_BYTES:
            file.seek(nifti.sizeof_hdr)
            nifti.extensions.extend(
                _extensions(file.read(offset - nifti.sizeof_hdr), nifti.endianness)
            )
    return nifti


def _parsed_header(block: bytes) -> Any:
    for header_type in (nibabel.Nifti1Header, nibabel.Nifti2Header):
        if not header_type.may_contain_header(block):
            continue
        nifti = header_type(block[: header_type.sizeof_hdr])
        if (
            not bytes(nifti["magic"]).startswith(b"n+")
            or nifti.get_data_offset() < nifti.sizeof_hdr
        ):
            raise ValueError("its values do not lie behind its header in this file")
        return nifti
    raise ValueError("it is no NIfTI, or its header is cut off")


def _extensions(content: bytes, order: str) -> list[Any]:
    """The extensions behind a header, whose content is not looked at; those that are cut off are left out."""
    extensions: list[Any] = []
    start = 4  # after the flag whose first byte says that there are some
    while content[:1] not in (b"", b"\0") and start + EXTENSION <= len(content):
        size, code = struct.unpack_from(f"{order}2i", content, start)
        if size < EXTENSION or start + size > len(content):
            break
        extensions.append(
            nibabel.nifti1.Nifti1Extension(code, content[start + EXTENSION : start + size])
        )
        start += size
    return extensions


def _spatial(dims: tuple[int, ...]) -> tuple[int, ...]:
    """The lengths along x, y and z; without z of a flat picture. ValueError where there are several times."""
    sides = windows.volume((*dims[:4], *dims[5:]))
    flat = len(dims) == 5 and sides[2] == 1
    return sides[:2] if flat else sides


def _scale(nifti: Any) -> tuple[float, float] | None:
    """Slope and intercept of stored values; None where they are not scaled, as by a slope of 0."""
    slope = float(nifti["scl_slope"])
    intercept = float(nifti["scl_inter"])
    if slope == 0 or not math.isfinite(slope) or not math.isfinite(intercept):
        return None
    if slope == 1 and intercept == 0:
        return None
    return slope, intercept


def _unit(nifti: Any) -> str:
    """The unit of values, as :func:`write` puts it into a comment."""
    for extension in nifti.extensions:
        content = extension.get_content()
        if content.startswith(VALUE_UNIT):
            return content.removeprefix(VALUE_UNIT).rstrip(b"\0").decode("utf-8", errors="replace")
    return ""


def _matrix(nifti: Any, count: int, path: Path) -> Matrix:
    """(4, 4) from (x, y, z) to mm toward left, back and head; without a form, by the spacing alone."""
    sform, qform = _forms(nifti)
    matrix = sform if sform is not None else qform
    if matrix is None:
        matrix = np.eye(4)
        matrix[range(count), range(count)] = nifti["pixdim"][1 : count + 1]
    else:
        matrix = LPS @ matrix
    if sform is not None and qform is not None:
        tolerance = FORMS_DIFFER * np.abs(sform[:3, :3]).max()
        if not np.allclose(sform, qform, rtol=0, atol=tolerance):
            text = "says by its sform and its qform that it lies at two places: the sform is taken"
            warnings.warn(f"{path} {text}", stacklevel=2)
    matrix[:3] *= MM.get(int(nifti["xyzt_units"]) & UNIT_OF_LENGTH, 1.0)
    return matrix


def _forms(nifti: Any) -> tuple[Matrix | None, Matrix | None]:
    """The sform and the qform, None where a code says that there is none."""
    sform = nifti.get_sform(coded=True)[0]
    try:
        qform = nifti.get_qform(coded=True)[0]
    except Exception:  # a damaged one is not needed beside an sform
        if sform is None:
            raise
        qform = None
    return sform, qform


def _affine(matrix: Matrix, count: int) -> Affine:
    return as_affine(matrix[:count, :count], matrix[:count, 3])


def _new_header(picture: Picture) -> Any:
    """The header of a result: the source's, without what is of its values."""
    geometry = picture.geometry
    kept = geometry.kept.get("header") if geometry.format == NAME else None
    nifti = nibabel.Nifti1Header() if kept is None else kept.copy()
    nifti.set_data_dtype(picture.dtype)
    nifti["scl_slope"] = np.nan
    nifti["scl_inter"] = np.nan
    nifti["cal_min"] = 0
    nifti["cal_max"] = 0
    nifti["vox_offset"] = 0
    nifti["xyzt_units"] = MILLIMETRE + (int(nifti["xyzt_units"]) & ~UNIT_OF_LENGTH)
    if len(picture) > 1:
        nifti["intent_code"] = VECTOR
    elif int(nifti["intent_code"]) == VECTOR:
        nifti["intent_code"] = NO_INTENT
    derivation = geometry.derivation
    if derivation is not None:
        nifti["descrip"] = derivation.text.encode()[:DESCRIP_BYTES]
    elif nifti["descrip"].item().startswith(BEGIN.encode()):
        # of a result that the picture was made of
        nifti["descrip"] = b""
    lasting = [
        extension
        for extension in nifti.extensions
        if not extension.get_content().startswith(VALUE_UNIT)
    ]
    if picture.unit:
        lasting.append(nibabel.nifti1.Nifti1Extension(COMMENT, VALUE_UNIT + picture.unit.encode()))
    nifti.extensions[:] = lasting
    return nifti


def _in_axes_of_file(picture: Picture) -> npt.NDArray[Any]:
    """(x, y), (x, y, z), or (x, y, z, 1, C) of several channels."""
    array = np.asarray(picture).T  # (x, y, C) or (x, y, z, C)
    channels = array.shape[-1]
    if channels == 1:
        return array[..., 0]
    spatial = array.shape[:-1]
    padded = (*spatial, *[1] * (4 - len(spatial)))  # (x, y, z, 1)
    return array.reshape(*padded, channels)


def _matrix_to_write(geometry: Geometry, axes: int) -> Matrix | None:
    """(4, 4) from (x, y, z) to mm toward right, front and head; None where the picture lies nowhere."""
    steps = geometry.steps(axes)
    if steps is None:
        return None
    matrix = np.eye(4)
    matrix[:axes, :axes], matrix[:axes, 3] = steps
    if geometry.format == NAME and "plane" in geometry.kept:
        plane = np.array(geometry.kept["plane"])
        first = (*geometry.start, 0, 0)[:2]  # the row and the column of the first pixel in the file
        plane[:3, 3] += plane[:3, :2] @ first[::-1]
        # the picture was not moved since
        if np.allclose(plane[:2, [0, 1, 3]], matrix[:2, [0, 1, 3]]):
            matrix = plane
    return LPS @ matrix
