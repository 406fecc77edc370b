"""NIfTI, MetaImage, NRRD, by SimpleITK: volumes (C, D, H, W) and pictures (C, H, W).

The axes are SimpleITK's, reversed: D, H, W are z, y, x of the file. The affine maps (d, h, w) to ITK's world,
(x, y, z) in mm toward the patient's left, back and head. Components of vectors are channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bbdm.base import optional, sizes
from bbdm.pictures.formats import common, medical_headers
from bbdm.pictures.lazy import Affine, Geometry, LazyPicture

NAME = "medical"
TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
NAMES = ("UInt8", "Int8", "UInt16", "Int16", "UInt32", "Int32", "UInt64", "Int64", "Float32", "Float64")
NOT_KEPT = ("ITK_InputFilterName", "NRRD_")  # beginnings of entries that SimpleITK writes by itself


def open(path: Path) -> LazyPicture:
    """A volume or picture of a file.

    ``geometry.kept`` has spacing, origin and direction, and the other entries of the header as texts.

    Raises:
        ModuleNotFoundError: SimpleITK is not installed.
        ValueError: it is damaged, or has complex numbers or several times.
    """
    package = simpleitk()
    with common.reading(path):
        return _Picture(path, package)


def write(path: Path, array: npt.NDArray[Any], geometry: Geometry) -> None:
    """Write (C, H, W) or (C, D, H, W), channels as components, with spacing, origin and direction.

    Raises:
        ModuleNotFoundError: SimpleITK is not installed.
        ValueError: the format cannot hold the array.
    """
    package = simpleitk()
    common.check_held(path.suffix, array, TYPES, (2, 3))
    pixels = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
    image = package.GetImageFromArray(np.ascontiguousarray(pixels), isVector=len(array) > 1)
    kept = geometry.kept if geometry.format == NAME else {}
    if geometry.affine is not None and len(geometry.affine) == array.ndim:
        place = {name: kept[name] for name in ("spacing", "origin", "direction") if name in kept}
        if not place or affine(**place) != geometry.affine:
            place = _place_of(geometry.affine)
        image.SetSpacing(place["spacing"])
        image.SetOrigin(place["origin"])
        image.SetDirection(place["direction"])
    if kept.get("suffix") == _family(path):
        for key, value in kept["entries"].items():
            image.SetMetaData(key, value)
    package.WriteImage(image, str(path))


def resampled(picture: LazyPicture, like: LazyPicture, nearest: bool) -> npt.NDArray[Any]:
    """(C, *S) of a picture at the pixels of another, by SimpleITK."""
    package = simpleitk()
    images = [_image(package, each.shape[0], each[()], each.geometry.kept) for each in (picture, like)]
    least = float(picture[()].min())
    kind = package.sitkVectorFloat32 if picture.shape[0] > 1 else package.sitkFloat32
    interpolator = package.sitkNearestNeighbor if nearest else package.sitkLinear
    made = package.Resample(*images, package.Transform(), interpolator, least, kind)
    array = channels_first(package.GetArrayFromImage(made), (picture.shape[0], *like.size))
    return (array if picture.dtype.kind == "f" else np.rint(array)).astype(picture.dtype)


def _image(package: Any, channels: int, array: npt.NDArray[Any], place: Mapping[str, Any]) -> Any:
    """SimpleITK's image of (C, *S), at its place."""
    pixels = array[0] if channels == 1 else np.moveaxis(array, 0, -1)
    image = package.GetImageFromArray(np.ascontiguousarray(pixels), isVector=channels > 1)
    image.SetSpacing(place["spacing"])
    image.SetOrigin(place["origin"])
    image.SetDirection(place["direction"])
    return image


class _Picture(common.FilePicture):
    def __init__(self, path: Path, package: Any) -> None:
        self.path = path
        packed = medical_headers.stored(path).packed
        reader = header(package, path)
        size = reader.GetSize()
        if any(length != 1 for length in size[3:]):
            raise ValueError(
                f"it has {len(size)} axes, {sizes.shown(size)}, such as times: save each volume as a file of its own"
            )
        count = min(len(size), 3)
        self.dtype = type_of(package, reader)
        self.shape = (reader.GetNumberOfComponents(), *size[:count][::-1])
        direction = np.reshape(reader.GetDirection(), (len(size), len(size)))[:count, :count]
        place = {
            "spacing": reader.GetSpacing()[:count],
            "origin": reader.GetOrigin()[:count],
            "direction": tuple(direction.ravel().tolist()),
        }
        self.geometry = Geometry(affine(**place), NAME, {**place, "suffix": _family(path), "entries": _entries(reader)})
        self._axes = len(size)
        # ITK reads parts of NIfTI and MetaImage alone, and misreads parts of vectors
        self.windowed = not packed and self.shape[0] == 1 and _family(path) != "nrrd"

    def _read(self, window: tuple[slice, ...]) -> npt.NDArray[Any]:
        stored = medical_headers.stored(self.path)
        if self.windowed and stored.mapped(self.dtype):
            return stored.read(self.shape, window, self.dtype)
        package = simpleitk()
        stored.check(self.shape, window)
        reader = package.ImageFileReader()
        reader.SetFileName(str(self.path))
        if not self.windowed:
            common.check_cost(self.shape, self.dtype, common.LARGEST)
            whole = channels_first(package.GetArrayFromImage(reader.Execute()), self.shape)
            return np.ascontiguousarray(whole[(slice(None), *window)])
        reader.SetExtractIndex([part.start for part in window[::-1]] + [0] * (self._axes - len(window)))
        reader.SetExtractSize([*common.lengths(window)[::-1]] + [0] * (self._axes - len(window)))
        return package.GetArrayFromImage(reader.Execute())[None]


def simpleitk() -> Any:
    """The package, which is told to keep quiet."""
    package = optional.package("SimpleITK", "a medical picture")
    package.ProcessObject.SetGlobalWarningDisplay(False)
    return package


def header(package: Any, path: str | Path) -> Any:
    """SimpleITK's reader of a file, of which the header is read."""
    reader = package.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader


def type_of(package: Any, reader: Any) -> np.dtype[Any]:
    """The NumPy type of a reader's pixels, or of their components.

    Raises:
        ValueError: they are complex, or labels.
    """
    wanted = reader.GetPixelID()
    for name in NAMES:
        if wanted in (getattr(package, f"sitk{name}"), getattr(package, f"sitkVector{name}")):
            return np.dtype(name.lower())
    raise ValueError(f"its values are {package.GetPixelIDValueAsString(wanted)}, and real numbers are wanted")


def channels_first(array: npt.NDArray[Any], shape: Sequence[int]) -> npt.NDArray[Any]:
    """(C, *S), the wanted shape, of SimpleITK's array, with components last, perhaps with axes of length 1.

    Raises:
        ValueError: it has another number of values.
    """
    *size, channels = (*shape[1:], shape[0])
    if array.size != math.prod(shape):
        raise ValueError(f"its header says {tuple(shape)}, and its values are {array.shape}")
    return np.moveaxis(array.reshape(*size, channels), -1, 0)


def affine(spacing: Sequence[float], origin: Sequence[float], direction: Sequence[float]) -> Affine:
    """From (..., y, x) to the world, of what SimpleITK has of (x, y, ...)."""
    count = len(spacing)
    made = np.eye(count + 1)
    made[:count, :count] = (np.reshape(direction, (count, count)) * np.asarray(spacing))[:, ::-1]
    made[:count, count] = origin
    return common.as_affine(made)


def _place_of(matrix: Affine) -> dict[str, Any]:
    """The inverse of :func:`affine`."""
    whole = np.asarray(matrix)
    columns = whole[:-1, :-1][:, ::-1]
    spacing = np.linalg.norm(columns, axis=0)
    return {
        "spacing": spacing.tolist(),
        "origin": whole[:-1, -1].tolist(),
        "direction": (columns / spacing).ravel().tolist(),
    }


def _entries(reader: Any) -> Mapping[str, str]:
    """What else the header says, as far as it is text."""
    found = {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys() if not key.startswith(NOT_KEPT)}
    return {key: value for key, value in found.items() if value.isprintable()}


def _family(path: Path) -> str:
    """The last suffix, one for each format, of which entries are written again."""
    suffix = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    return "mha" if suffix == "mhd" else suffix
