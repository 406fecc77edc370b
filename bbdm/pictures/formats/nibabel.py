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

from bbdm.base import optional
from bbdm.pictures import formats
from bbdm.pictures.picture import Affine, Geometry, Header, Picture, as_affine

nibabel: Any = optional.package("nibabel", "a NIfTI file")
NAME = "nifti"
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # of right, front, head
MM = {1: 1000.0, 3: 0.001}  # mm of a metre and a micrometre, by their codes
SCANNER, VECTOR = 1, 1007  # codes: coordinates of the scanner; the fifth axis has components of a vector
FORMS_DIFFER = 1e-2  # of a voxel's length


def header(path: Path) -> Header:
    """The header of a volume or a picture.

    ``geometry.kept`` has the header of nibabel. Where sform and qform differ, the sform counts, and a warning
    names the file.

    Raises:
        ValueError: it is damaged, has several times, or its values are in another file.
    """
    with _opened(path) as file:
        block = file.read(nibabel.Nifti2Header.sizeof_hdr)
    kinds = [kind for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header) if kind.may_contain_header(block)]
    if not kinds:
        raise ValueError("it is no NIfTI, or its header is cut off")
    nifti = kinds[0](block[: kinds[0].sizeof_hdr])
    if not bytes(nifti["magic"]).startswith(b"n+") or nifti.get_data_offset() < nifti.sizeof_hdr:
        raise ValueError("its values do not lie behind its header in this file")
    dims, dtype = nifti.get_data_shape(), nifti.get_data_dtype()
    sides = formats.volume((*dims[:4], *dims[5:]))
    sides = sides[:2] if len(dims) == 5 and sides[2] == 1 else sides
    dtype = np.dtype(np.float32) if _scale(nifti) is not None and dtype.kind in "iu" else dtype
    packed = path.suffix.lower() == ".gz"
    most = path.stat().st_size * (formats.DEFLATE if packed else 1)
    geometry = Geometry(_affine(nifti, len(sides), path), NAME, {"header": nifti})
    return Header(path, (math.prod(dims[4:5]), *sides[::-1]), dtype, geometry, not packed, most)


def read(header: Header, window: tuple[slice, ...]) -> npt.NDArray[Any]:
    """(C, *W) of a window; mapped into memory without compression and scaling.

    Raises:
        ValueError: the file is shorter than its header says, or its checksum is another.
    """
    nifti: Any = header.geometry.kept["header"]
    dtype, offset = nifti.get_data_dtype(), nifti.get_data_offset()
    if header.windowed:
        array = formats.mapped(header.path, dtype, offset, header.shape)
    else:
        with _opened(header.path) as file:
            file.seek(offset)
            data = file.read(math.prod(header.shape) * dtype.itemsize)
            file.read(1)  # at its end, the checksum is compared
        array = np.frombuffer(data, dtype).reshape(header.shape)  # or it is truncated
    part = array[(slice(None), *window)]
    if (scale := _scale(nifti)) is None:
        return np.asarray(part, header.dtype)
    with np.errstate(over="ignore"):
        part = part.astype(header.dtype).astype(np.float64)  # as ITK does it
        return (part * scale[0] + scale[1]).astype(header.dtype)


def write(path: Path, picture: Picture) -> None:
    """Write (C, H, W) or (C, D, H, W), channels as a vector's components, with affine and kept header."""
    geometry, channels, axes = picture.geometry, len(picture), picture.ndim - 1
    array, matrix = np.asarray(picture).T, None
    array = array[..., 0] if channels == 1 else array.reshape(*array.shape[:-1], *[1] * (4 - axes), channels)
    if (steps := geometry.steps(axes)) is not None:
        matrix = np.eye(4)
        matrix[:axes, :axes], matrix[:axes, 3] = steps
        matrix = LPS @ matrix
    kept = geometry.kept.get("header") if geometry.format == NAME else None
    nifti = nibabel.Nifti1Header() if kept is None else kept.copy()
    nifti.set_data_dtype(picture.dtype)
    nifti["scl_slope"], nifti["scl_inter"], nifti["vox_offset"] = np.nan, np.nan, 0
    nifti["cal_min"], nifti["cal_max"] = 0, 0  # of other values
    nifti["xyzt_units"] = 2 + (int(nifti["xyzt_units"]) & ~7)  # mm
    if channels > 1 or int(nifti["intent_code"]) == VECTOR:
        nifti["intent_code"] = VECTOR if channels > 1 else 0
    kind = nibabel.Nifti2Image if isinstance(nifti, nibabel.Nifti2Header) else nibabel.Nifti1Image
    image = kind(array, matrix, nifti)
    if matrix is not None:
        image.set_sform(matrix, int(nifti["sform_code"]) or SCANNER)
        image.set_qform(matrix, int(nifti["qform_code"]) or SCANNER)
        if not np.allclose(image.get_qform(), matrix, atol=1e-3):
            image.set_qform(None, 0)  # it holds no shear
    image.to_filename(path)


def _opened(path: Path) -> Any:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


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
