"""Small pictures of each format, for tests."""

import locale
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.pictures import Geometry, Picture, header, read, write

NO_GEOMETRY = Geometry()
# a turn about z by atan(3/4)
OBLIQUE = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])


def numbers(shape: tuple[int, ...], kind: str, seed: int = 0) -> npt.NDArray[Any]:
    """Random values over all of a type's range; of floats, also the ends and values below 1."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(kind)
    if dtype.kind == "f":
        made = (rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 4, shape)).astype(dtype)
        made.flat[:2] = np.finfo(dtype).min, np.finfo(dtype).tiny
        return made
    limits = np.iinfo(dtype)
    made = rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    made.flat[:2] = limits.min, limits.max
    return made


def write_dicom(
    folder: Path,
    array: npt.NDArray[np.int16],
    heights: list[float],
    series: str = "1.2.3",
    first: int = 0,
) -> None:
    """A file for each slice (H, W), at these heights in mm. The order of names is another."""
    import SimpleITK as sitk  # noqa: N813

    folder.mkdir(exist_ok=True)
    before = locale.setlocale(locale.LC_ALL)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for i, (pixels, height) in enumerate(zip(array, heights, strict=True)):
        image = sitk.GetImageFromArray(pixels[None])
        image.SetSpacing((0.5, 0.25, 1.0))
        tags = {
            **{
                "0008|0060": "CT",
                "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
                "0020|000d": "1.2",
                "0020|000e": series,
            },
            **{
                "0008|0018": f"{series}.{i + 1}",
                "0020|0013": str(i),
                "0020|0032": f"-10\\5\\{height}",
            },
            **{"0020|0037": "1\\0\\0\\0\\1\\0", "0028|1052": "-1024", "0028|1053": "1"},
        }
        for key, value in tags.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{first + (i * 7) % 100:02d}.dcm"))
        writer.Execute(image)
    locale.setlocale(locale.LC_ALL, before)  # which GDCM sets to C


def matrix(geometry: Geometry) -> npt.NDArray[np.float64]:
    return np.array(geometry.affine, dtype=np.float64)


def read_back(path: Path, array: npt.NDArray[Any], geometry: Geometry = NO_GEOMETRY) -> Picture:
    """The picture of what was written, after a look at header, whole and window."""
    write(path, Picture(array, geometry))
    head, picture = header(path), read(path)
    assert (head.shape, head.dtype, picture.flags.writeable) == (array.shape, array.dtype, False)
    assert picture.tobytes() == array.tobytes()
    window = tuple(slice(1, length - 1) for length in array.shape[1:])
    assert read(path, window).tobytes() == array[(slice(None), *window)].tobytes()
    assert pickle.loads(pickle.dumps(picture)).geometry == picture.geometry == head.geometry
    return picture


def nifti(
    path: Path, stored: npt.NDArray[Any], *fields: tuple[int, str, Any], order: str = "<"
) -> Path:
    """A NIfTI-1 of values (..., z, y, x) by the bytes of its standard; fields are (offset, form, values)."""
    codes = {
        "u1": 2,
        "i2": 4,
        "i4": 8,
        "f4": 16,
        "f8": 64,
        "i1": 256,
        "u2": 512,
        "u4": 768,
        "i8": 1024,
        "u8": 1280,
    }
    head, dims = bytearray(352), stored.shape[::-1]
    for offset, form, values in (
        (0, "i", (348,)),
        (40, "8h", (len(dims), *dims, *[1] * (7 - len(dims)))),
        (70, "2h", (codes[stored.dtype.str[1:]], 8 * stored.itemsize)),
        (76, "8f", (1, 0.5, 2, 3, 0, 0, 0, 0)),
        (108, "f", (352,)),
        (344, "4s", (b"n+1",)),
        *fields,
    ):
        struct.pack_into(order + form, head, offset, *values)
    path.write_bytes(head + stored.astype(order + stored.dtype.str[1:]).tobytes())
    return path
