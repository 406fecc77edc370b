"""NIfTI by nibabel: volumes (C, D, H, W) and pictures (C, H, W), of versions 1 and 2 in both byte orders.

D, H, W are z, y, x of the file, and the fifth axis is of channels. The affine maps (d, h, w) to mm toward the
patient's left, back and head, as for all medical formats; the file's own is toward right, front and head.
"""

from __future__ import annotations

import gzip
import math
import warnings
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.base import optional, sizes
from bbdm.pictures import formats
from bbdm.pictures.picture import Affine, Geometry, Header, Picture, as_affine

NAME = "nifti"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # of right, front, head
MM = {1: 1000.0, 3: 0.001}  # mm of a metre and a micrometre, by their codes
SCANNER, VECTOR = 1, 1007  # codes: coordinates of the scanner; the fifth axis has components of a vector
EXTENSIONS = 2**26  # bytes that may lie between header and values
FORMS_DIFFER = 1e-2  # of a voxel's length


def header(path: Path) -> Header:
    """The header of a volume or a picture.

    ``geometry.kept`` has the header's bytes. Where sform and qform differ, the sform counts, and a warning
    names the file.

    Raises:
        ValueError: it is damaged, or has complex numbers or several times.
    """
    nifti = _nifti(path)
    dims, dtype = nifti.get_data_shape(), nifti.get_data_dtype()
    if dims[3:4] > (1,) or any(side != 1 for side in dims[5:]):
        raise ValueError(f"it has {len(dims)} axes, {sizes.shown(dims)}, such as times: save each volume as a file")
    count = 2 if len(dims) == 5 and dims[2] == 1 else min(len(dims), 3)
    if count < 2 or min(dims) < 1:
        raise ValueError(f"its header says axes of {tuple(dims)}")
    kind = formats.real(dtype)
    kind = np.dtype(np.float32) if _scale(nifti) is not None and kind.kind in "iu" else kind
    packed = path.suffix.lower() == ".gz"
    stored = path.stat().st_size - (0 if packed else nifti.get_data_offset())
    if packed or math.prod(dims) * dtype.itemsize > stored:
        formats.check_cost(dims, dtype, stored * (formats.DEFLATE if packed else 1))
    geometry = Geometry(_affine(nifti, count, path), NAME, {"header": nifti.binaryblock})
    return Header(path, (math.prod(dims[4:5]), *dims[:count][::-1]), kind, geometry, not packed, stored=nifti)


def read(header: Header, window: tuple[slice, ...]) -> npt.NDArray[Any]:
    """(C, *W) of a window; mapped into memory without compression and scaling.

    Raises:
        ValueError: the file is shorter than its header says, or its checksum is another.
    """
    nifti: Any = header.stored
    dtype, offset = nifti.get_data_dtype(), nifti.get_data_offset()
    if header.windowed:
        array = formats.mapped(header.path, dtype, offset, header.shape)
    else:
        size = math.prod(header.shape) * dtype.itemsize
        with gzip.open(header.path) as file:
            file.seek(offset)
            data = file.read(size)
            file.read(1)  # at its end, the checksum is compared
        if len(data) < size:
            raise ValueError(f"its compressed values end after {len(data)} bytes: it is truncated")
        array = np.frombuffer(data, dtype).reshape(header.shape)
    part = array[(slice(None), *window)]
    if (scale := _scale(nifti)) is None:
        return np.asarray(part, header.dtype)
    with np.errstate(over="ignore"):
        part = part.astype(header.dtype).astype(np.float64)  # as ITK does it
        return (part * scale[0] + scale[1]).astype(header.dtype)


def write(path: Path, picture: Picture) -> None:
    """Write (C, H, W) or (C, D, H, W), channels as a vector's components, with affine and kept header."""
    package = _package()
    formats.check_held(path.suffix, picture, formats.REAL)
    geometry, channels, axes = picture.geometry, len(picture), picture.ndim - 1
    array = np.asarray(picture).T
    array = array[..., 0] if channels == 1 else array.reshape(*array.shape[:-1], *[1] * (4 - axes), channels)
    matrix = None
    if (steps := geometry.steps(axes)) is not None:
        matrix = np.eye(4)
        matrix[:axes, :axes], matrix[:axes, 3] = steps
        matrix = LPS @ matrix
    kept = geometry.kept.get("header") if geometry.format == NAME else None
    large = kept is not None and len(kept) > package.Nifti1Header.sizeof_hdr
    kind = package.Nifti2Image if large else package.Nifti1Image
    nifti = kind.header_class(kept)
    nifti.set_data_dtype(picture.dtype)
    nifti["scl_slope"], nifti["scl_inter"], nifti["vox_offset"] = np.nan, np.nan, 0
    nifti["cal_min"], nifti["cal_max"] = 0, 0  # of other values
    nifti["xyzt_units"] = 2 + (int(nifti["xyzt_units"]) & ~7)  # mm
    if channels > 1 or int(nifti["intent_code"]) == VECTOR:
        nifti["intent_code"] = VECTOR if channels > 1 else 0
    image = kind(array, matrix, nifti)
    if matrix is not None:
        image.set_sform(matrix, int(nifti["sform_code"]) or SCANNER)
        image.set_qform(matrix, int(nifti["qform_code"]) or SCANNER)
        if not np.allclose(image.get_qform(), matrix, atol=1e-3):
            image.set_qform(None, 0)  # it holds no shear
    image.to_filename(path)


def _package() -> Any:
    return optional.package("nibabel", "a NIfTI file")


def _nifti(path: Path) -> Any:
    """The header, in its own byte order, without extensions."""
    package, packed = _package(), path.suffix.lower() == ".gz"
    with path.open("rb") as file:
        if (file.read(2) == b"\x1f\x8b") != packed:
            raise ValueError(f"it is {'not ' if packed else ''}compressed by gzip, which its suffix does not say")
    with gzip.open(path) if packed else path.open("rb") as file:
        block = file.read(package.Nifti2Header.sizeof_hdr)
    kinds = (package.Nifti1Header, package.Nifti2Header)
    kind = next((kind for kind in kinds if kind.may_contain_header(block) and len(block) >= kind.sizeof_hdr), None)
    if kind is None:
        raise ValueError("it is no NIfTI, or its header is cut off")
    nifti = kind(block[: kind.sizeof_hdr])
    if not bytes(nifti["magic"]).startswith(b"n+"):
        raise ValueError("its values are in another file, or it is no NIfTI")
    if not kind.sizeof_hdr <= nifti.get_data_offset() <= EXTENSIONS:
        raise ValueError(f"its header says that values begin at byte {nifti.get_data_offset()}")
    return nifti


def _scale(nifti: Any) -> tuple[float, float] | None:
    """Slope and intercept of stored values; None where they are not scaled, as by a slope of 0."""
    slope, intercept = float(nifti["scl_slope"]), float(nifti["scl_inter"])
    plain = slope == 0 or not np.isfinite([slope, intercept]).all() or (slope, intercept) == (1, 0)
    return None if plain else (slope, intercept)


def _affine(nifti: Any, count: int, path: Path) -> Affine:
    """From (..., y, x) to mm toward left, back and head; without both forms, the spacing along the axes."""
    forms: list[Any] = []
    for form in (nifti.get_sform, nifti.get_qform):
        with suppress(Exception) if forms else nullcontext():  # a second one may be damaged, and is not needed
            found = form(coded=True)[0]
            forms += [] if found is None else [found]
    if len(forms) == 2 and not np.allclose(*forms, rtol=0, atol=FORMS_DIFFER * np.abs(forms[0][:3, :3]).max()):
        text = "says by its sform and its qform that it lies at two places: the sform is taken"
        warnings.warn(f"{path} {text}", stacklevel=2)
    matrix = LPS @ forms[0] if forms else np.diag([*nifti["pixdim"][1 : count + 1], *[1.0] * (4 - count)])
    matrix[:3] *= MM.get(int(nifti["xyzt_units"]) & 7, 1.0)
    return as_affine(matrix[:count, :count], matrix[:count, 3])
