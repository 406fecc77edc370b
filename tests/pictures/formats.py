"""Small pictures of each format, for tests."""

from __future__ import annotations

import locale
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.pictures import formats
from bbdm.pictures.lazy import Geometry

NO_PLACE = Geometry()
OBLIQUE = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])  # a turn about z by atan(3/4)


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


def affine_of(spacing: tuple[float, ...], origin: tuple[float, ...], direction: npt.NDArray[Any]) -> Geometry:
    """Of axes (d, h, w), as SimpleITK defines the place of an index (w, h, d)."""
    count = len(spacing)
    matrix = np.eye(count + 1)
    for axis in range(count):
        matrix[:count, count - 1 - axis] = direction[:, axis] * spacing[axis]
    matrix[:count, count] = origin
    return Geometry(tuple(map(tuple, matrix.tolist())))


def write_dicom(
    folder: Path, array: npt.NDArray[np.int16], heights: list[float], series: str = "1.2.3", first: int = 0
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
            **{"0008|0060": "CT", "0008|0016": "1.2.840.10008.5.1.4.1.1.2", "0020|000d": "1.2", "0020|000e": series},
            **{"0008|0018": f"{series}.{i + 1}", "0020|0013": str(i), "0020|0032": f"-10\\5\\{height}"},
            **{"0020|0037": "1\\0\\0\\0\\1\\0", "0028|1052": "-1024", "0028|1053": "1"},
        }
        for key, value in tags.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{first + (i * 7) % 100:02d}.dcm"))
        writer.Execute(image)
    locale.setlocale(locale.LC_ALL, before)  # which GDCM sets to C


def bytes_read() -> int:
    """Of this process, by system calls."""
    return int(Path("/proc/self/io").read_text().split()[1])


def matrix(geometry: Geometry) -> npt.NDArray[np.float64]:
    return np.array(geometry.affine, dtype=np.float64)


def part(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Some inner window."""
    return tuple(slice(1, length - 1) for length in shape[1:])


def read_back(path: Path, array: npt.NDArray[Any], geometry: Geometry = NO_PLACE) -> Any:
    """The picture of what was written, after a look at whole, window and type."""
    formats.write(path, array, geometry)
    picture = formats.open(path)
    assert picture.shape == array.shape
    assert picture.dtype == array.dtype
    whole, window = picture[()], part(array.shape)
    assert whole.dtype == array.dtype
    assert whole.flags.c_contiguous
    assert whole.tobytes() == array.tobytes()
    assert picture[window].tobytes() == array[(slice(None), *window)].tobytes()
    assert pickle.loads(pickle.dumps(picture))[window].tobytes() == picture[window].tobytes()
    return picture
