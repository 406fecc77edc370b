"""A picture: an array of stored values that knows its unit and its place in the world, read and written."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bbdm.base import sizes
from bbdm.base.atomic import write_atomically
from bbdm.pictures import formats, images

if TYPE_CHECKING:
    import torch

Affine = tuple[tuple[float, ...], ...]
SAME_PLACE = 1e-3  # pixels that two grids may differ by
PHOTOGRAPH = "photograph"  # the format of PNG, JPEG, WebP and BMP


@dataclass(frozen=True)
class Geometry:
    """Where the pixels of a picture lie, and what else its file says.

    Args:
        affine: (n + 1, n + 1), from an index of the n spatial axes, in their order, to a point in the world;
            None where the file has none.
        format: the format that ``kept`` is of.
        kept: entries that the writer of this format writes again.
        nodata: the stored value of pixels that have no value; None where all have one.
        start: the index of the first pixel in the picture that ``kept`` is of, of a window; () for the first.
    """

    affine: Affine | None = None
    format: str = ""
    kept: Mapping[str, Any] = field(default_factory=dict)
    nodata: float | None = None
    start: tuple[int, ...] = ()

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """The length of a pixel along each axis, in the world's unit; None without an affine."""
        if self.affine is None:
            return None
        columns = np.asarray(self.affine, dtype=np.float64)[:-1, :-1]
        return tuple(float(length) for length in np.linalg.norm(columns, axis=0))

    def steps(self, axes: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
        """The arguments of :func:`as_affine`; None without an affine of so many axes."""
        if self.affine is None or len(self.affine) != axes + 1:
            return None
        matrix = np.asarray(self.affine, np.float64)
        return matrix[:-1, -2::-1], matrix[:-1, -1]

    def of_window(self, start: Sequence[int]) -> Geometry:
        """The geometry of a window whose first pixel has the index ``start``."""
        if not any(start):
            return self
        before = self.start or (0,) * len(start)
        in_file = tuple(first + further for first, further in zip(before, start, strict=True))
        if self.affine is None:
            return replace(self, start=in_file)
        matrix = np.array(self.affine, dtype=np.float64)
        matrix[:-1, -1] += matrix[:-1, :-1] @ np.asarray(start)
        return replace(self, affine=tuple(map(tuple, matrix.tolist())), start=in_file)


NOWHERE, OF_PHOTOGRAPH = Geometry(), Geometry(format=PHOTOGRAPH)


class _Gridded:
    """What a header and a picture share: a shape (C, *S) and a geometry."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    geometry: Geometry

    @property
    def sides(self) -> tuple[int, ...]:
        """The length of each spatial axis, S."""
        return tuple(self.shape[1:])

    @property
    def nodata(self) -> float | None:
        """The stored value of pixels that have no value; None where all have one."""
        return self.geometry.nodata

    @property
    def photograph(self) -> bool:
        """Whether it has 8-bit grey or colours of PNG, JPEG, WebP or BMP, which become one another."""
        return self.geometry.format == PHOTOGRAPH and self.dtype == np.uint8 and self.shape[0] in (1, 3)

    @property
    def grid(self) -> str:
        """The size and the affine, for messages."""
        affine = self.geometry.affine
        origin = "" if affine is None else f" at {tuple(tuple(round(v, 6) for v in row) for row in affine[:-1])}"
        return f"{sizes.shown(self.sides)}{origin}"


@dataclass(frozen=True)
class Header(_Gridded):
    """What a file says of its picture.

    Args:
        path: the file, or the folder of a DICOM series.
        shape: (C, *S) of what reading gives.
        dtype: of the values that reading gives, in this machine's byte order; truth values become uint8.
        geometry: where the pixels lie.
        windowed: whether a window costs less to read than the whole.
        most: the bytes of values that the file's size allows.
        reader: the module that reads the file.
        stored: what this module reads values by.
        unit: of the values, such as ``HU``; "" where the file has none.

    Raises:
        ValueError: it has other axes or no pixels, or its values are not real numbers of at most 64 bits.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    geometry: Geometry = NOWHERE
    windowed: bool = False
    most: float = math.inf
    reader: str = ""
    stored: Any = field(default=None, compare=False, repr=False)
    unit: str = ""

    def __post_init__(self) -> None:
        if len(self.shape) not in (3, 4) or min(self.shape) < 1:
            raise ValueError(f"it must be (C, H, W) or (C, D, H, W), and its shape is {self.shape}")
        dtype = np.dtype(np.uint8 if self.dtype.kind == "b" else self.dtype)
        if dtype.kind not in "uif" or dtype.itemsize > 8:
            raise ValueError(f"its values are {dtype}, and real numbers of at most 64 bits are needed")
        object.__setattr__(self, "dtype", dtype.newbyteorder("="))


class Picture(np.ndarray[Any, Any], _Gridded):  # pyright: ignore[reportIncompatibleVariableOverride]
    """An array (C, *S) of stored values, with the ``geometry``, ``unit`` and ``name`` of a picture.

    It is a NumPy array in all else. Results of arithmetic keep these attributes; slices do too, though the
    affine stays that of the whole. A picture from a file is read-only.
    """

    unit: str
    name: str

    def __new__(  # noqa: D102
        cls, array: npt.ArrayLike, geometry: Geometry | None = None, unit: str = "", name: str = ""
    ) -> Picture:
        picture = np.asarray(array).view(cls)
        picture.geometry, picture.unit, picture.name = geometry or NOWHERE, unit, name
        return picture

    def __array_finalize__(self, source: Any) -> None:
        self.geometry = getattr(source, "geometry", NOWHERE)
        self.unit = getattr(source, "unit", "")
        self.name = getattr(source, "name", "")

    def __reduce__(self) -> Any:
        return Picture, (np.asarray(self), self.geometry, self.unit, self.name)

    def absent(self) -> npt.NDArray[np.bool_]:
        """(*S), whether a pixel has the value that stands for none in a channel."""
        array, nodata = np.asarray(self), self.nodata
        if nodata is None:
            return np.zeros(array.shape[1:], dtype=bool)
        return np.any(np.isnan(array) if np.isnan(nodata) else array == nodata, axis=0)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file in the format of the path's suffix, whole or not at all.

        What the format can hold of the geometry is written. A TIFF is a GeoTIFF where the geometry is of one.
        Of a picture that is mapped into memory, npy and TIFF are written by parts.

        Raises:
            ModuleNotFoundError: the format's package is not installed. The message says how to install it.
            ValueError: the suffix is none of those, or the format cannot hold the type, channels or axes.
        """
        path = Path(path)
        with images.named("write", path):
            module = formats.writer(path, self, self.geometry.format == "geotiff")
            write_atomically(path, lambda temporary: module.write(temporary, self))


def read(path: str | os.PathLike[str] | Header, window: formats.Window = ()) -> Picture:
    """The picture of a file, or of a folder of DICOM; of a window, what it needs where the format allows.

    Values of npy, and of NIfTI and TIFF without compression or scaling, are mapped into memory. The array is
    read-only. Its geometry is that of the window.

    Args:
        path: the file or folder; or its header, which is not read again.
        window: a slice for each spatial axis, () for all.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: the format's package is not installed. The message says how to install it.
        UnknownFormatError: it is none of the formats.
        ValueError: it is damaged, has what the format's module refuses, or the window is outside.
    """
    found = path if isinstance(path, Header) else header(path)
    with images.named("read", found.path):
        part = formats.bounds(window, found.sides)
        expected = (found.shape[0], *formats.lengths(part))
        formats.check_cost(expected if found.windowed else found.shape, found.dtype, found.most)
        array = formats.module(found.reader).read(found, part)
        if array.shape != expected or array.dtype != found.dtype:
            held = f"its values are {array.shape} of {array.dtype}"
            raise ValueError(f"its header says {expected} of {found.dtype}, and {held}")
    array.flags.writeable = False
    geometry = found.geometry.of_window([each.start for each in part])
    return Picture(array, geometry, found.unit, found.path.name)


def header(path: str | os.PathLike[str]) -> Header:
    """What a file, or a folder of DICOM, says of its picture, but values. For errors see :func:`read`."""
    path = Path(path)
    with images.named("read", path):
        name = formats.reader_of(path)
        return replace(formats.module(name).header(path), reader=name)


def write(path: str | os.PathLike[str], picture: npt.ArrayLike) -> None:
    """Write an array (C, *S); see :meth:`bbdm.pictures.Picture.save`."""
    (picture if isinstance(picture, Picture) else Picture(picture)).save(path)


def scale(pixels: torch.Tensor) -> torch.Tensor:
    """float32 in [-1, 1] of 8-bit pixels, uint8, on their device. Floats stay as they are."""
    import torch

    if pixels.is_floating_point():
        return pixels
    half = torch.full((), 127.5, device=pixels.device)  # a tensor: CUDA multiplies by the reciprocal of a number
    return pixels.float() / half - 1


def as_affine(steps: npt.ArrayLike, origin: npt.ArrayLike) -> Affine:
    """The affine of axes (..., y, x): of (n, n) steps in the world along x, y, ..., and the first pixel."""
    columns = np.asarray(steps, np.float64)[:, ::-1]
    matrix = np.vstack([np.column_stack([columns, origin]), [0.0] * len(columns) + [1.0]])
    return tuple(map(tuple, matrix.tolist()))


def check_grid(one: Header | Picture, other: Header | Picture, names: Sequence[str], paired: bool = True) -> None:
    """Raise ValueError unless pictures have one size and, if paired and both have an affine, one place."""
    first, second, how = one.geometry, other.geometry, "skimage.transform.resize(FIRST, SHAPE)"
    same = one.sides == other.sides
    if paired and same:
        same = len({geometry.kept.get("crs") for geometry in (first, second)} - {None}) < 2
        if same and first.affine is not None and second.affine is not None:
            matrix, further = np.asarray(first.affine), np.asarray(second.affine)
            most = SAME_PLACE * np.abs(further[:-1, :-1]).max()  # of about the length of a pixel's longest side
            same = matrix.shape == further.shape and np.allclose(matrix, further, rtol=0, atol=most)
    if same:
        return
    if second.kept.get("crs"):
        how = "rasterio.warp.reproject, or gdalwarp"
    elif len(second.affine or ()) == 4:
        how = "SimpleITK.Resample(SimpleITK.ReadImage(FIRST), SimpleITK.ReadImage(SECOND))"
    both = f"{' and '.join(names)} lie on different grids, {one.grid} and {other.grid}"
    raise ValueError(f"{both}: resample the first to the second, such as {how}")
