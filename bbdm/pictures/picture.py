"""A picture: an array of stored values that knows its unit and its place in the world, read and written."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bbdm.base import sizes
from bbdm.base.atomic import write_atomically
from bbdm.pictures import addresses, formats, images, windows
from bbdm.pictures.derivation import Derivation

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
        lost: whether pixels were moved since, so that nobody knows where they lie.
        derivation: what made the picture, which its file says; None to say nothing. It is not read again.
    """

    affine: Affine | None = None
    format: str = ""
    kept: Mapping[str, Any] = field(default_factory=dict)
    nodata: float | None = None
    start: tuple[int, ...] = ()
    lost: bool = False
    derivation: Derivation | None = None

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

    @cached_property
    def axes(self) -> int | None:
        """The number of spatial axes of the place; None where there is no place."""
        if self.affine is not None:
            return len(self.affine) - 1
        if self.kept.get("crs") or not self.kept.keys().isdisjoint(("gcps", "rpcs")):
            return 2
        return None

    def of_part(self, index: Any, shape: Sequence[int]) -> Geometry:
        """The geometry of ``picture[index]`` of a picture of this geometry and shape (C, *S), or (*S).

        That of a window has its own affine. What is no window, such as a step or an integer on a spatial
        axis, loses it.
        """
        if self.axes is None:
            return self
        parts = list(index) if isinstance(index, tuple) else [index]
        ellipsis = next((i for i, part in enumerate(parts) if part is Ellipsis), None)
        if ellipsis is None:
            ellipsis = len(parts)
            parts.append(Ellipsis)
        indexed = sum(part is not None for part in parts) - 1
        parts[ellipsis : ellipsis + 1] = [slice(None)] * (len(shape) - indexed)
        channels = parts[: -self.axes]
        spatial = parts[-self.axes :]
        sides = shape[-self.axes :]
        if len(spatial) != len(sides) or any(
            np.ndim(part) > 1 for part in channels if not isinstance(part, slice)
        ):
            return self.without_place
        starts: list[int] = []
        for part, length in zip(spatial, sides, strict=True):
            if not isinstance(part, slice) or part.step not in (None, 1):
                return self.without_place
            starts.append(part.indices(length)[0])
        if not any(starts):
            return self
        before = self.start if len(self.start) == len(starts) else (0,) * len(starts)
        in_file = tuple(first + further for first, further in zip(before, starts, strict=True))
        if self.affine is None:
            return replace(self, start=in_file)
        matrix = np.array(self.affine, dtype=np.float64)
        matrix[:-1, -1] += matrix[:-1, :-1] @ np.asarray(starts)
        return replace(self, affine=tuple(map(tuple, matrix.tolist())), start=in_file)

    @cached_property
    def without_place(self) -> Geometry:
        """The geometry of pixels that were moved, so that nobody knows where they lie."""
        if self.axes is None:
            return self
        return Geometry(format=self.format, nodata=self.nodata, lost=True)


NOWHERE = Geometry()
OF_PHOTOGRAPH = Geometry(format=PHOTOGRAPH)


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
        return (
            self.geometry.format == PHOTOGRAPH
            and self.dtype == np.uint8
            and self.shape[0] in (1, 3)
        )

    @property
    def grid(self) -> str:
        """The size and the affine, for messages."""
        affine = self.geometry.affine
        if affine is None:
            return sizes.shown(self.sides)
        rows = tuple(tuple(round(number, 6) for number in row) for row in affine[:-1])
        return f"{sizes.shown(self.sides)} at {rows}"


@dataclass(frozen=True)
class Header(_Gridded):
    """What a file says of its picture.

    Args:
        path: the file, or the folder of a DICOM series; of a part of a file, its address.
        shape: (C, *S) of what reading gives.
        dtype: of the values that reading gives, in this machine's byte order; truth values become uint8.
        geometry: where the pixels lie.
        windowed: whether a window costs less to read than the whole.
        most: the bytes of values that the file's size allows.
        unit: of the values, such as ``HU``; "" where the file does not say it.
        reader: the name of the library that reads the file.
        stored: what this library reads values by.

    Raises:
        ValueError: it has other axes or no pixels, or its values are not real numbers of at most 64 bits.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    geometry: Geometry = NOWHERE
    windowed: bool = False
    most: float = math.inf
    unit: str = ""
    reader: str = ""
    stored: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.shape) not in (3, 4) or min(self.shape) < 1:
            raise ValueError(f"it must be (C, H, W) or (C, D, H, W), and its shape is {self.shape}")
        dtype = np.dtype(np.uint8 if self.dtype.kind == "b" else self.dtype)
        if dtype.kind not in "uif" or dtype.itemsize > 8:
            raise ValueError(
                f"its values are {dtype}, and real numbers of at most 64 bits are needed"
            )
        object.__setattr__(self, "dtype", dtype.newbyteorder("="))


class Picture(np.ndarray[Any, Any], _Gridded):  # pyright: ignore[reportIncompatibleVariableOverride]  (both have a shape)
    """An array (C, *S) of stored values, with the ``geometry``, ``unit`` and ``name`` of a picture.

    It is a NumPy array in all else, and what is made of it has its unit and its name. Copies and results of
    arithmetic have its geometry. A window, such as ``picture[:, 4:, 8:16]``, has a geometry of its own; any
    channels may be chosen at once. ``picture[0]`` (*S) keeps the place for ``picture[0][None]``. A flip, a
    step, a mask, another order of axes, or an integer on a spatial axis loses the place: files that say where
    pixels lie refuse the array. A picture from a file is read-only.
    """

    unit: str
    name: str

    def __new__(  # noqa: D102  (the class says it)
        cls, array: npt.ArrayLike, geometry: Geometry | None = None, unit: str = "", name: str = ""
    ) -> Picture:
        picture = np.asarray(array).view(cls)
        picture.geometry = geometry or NOWHERE
        picture.unit = unit
        picture.name = name
        return picture

    def __array_finalize__(self, source: Any) -> None:
        self.geometry = NOWHERE
        self.unit = getattr(source, "unit", "")
        self.name = getattr(source, "name", "")
        if isinstance(source, Picture):
            self.geometry = source.geometry.without_place
            # and no view, such as a transposed one, which has its shape only later
            if self.flags.owndata:
                _at_place_of(source, self)

    def __array_wrap__(self, array: Any, *context: Any) -> Any:
        result = super().__array_wrap__(array, *context)
        if not isinstance(result, Picture):
            return result
        if context and context[0] is not None:
            function, operands = context[0][:2]
            result.geometry = _geometry_of_all(operands, result.shape)
            if function.signature:  # such as that of a product of matrices
                result.geometry = result.geometry.without_place
            return result
        # of a sum along an axis, which is the channels' unless another one is left out
        result.geometry = _geometry_of_all([self], result.shape)
        if result.ndim < self.ndim and self.shape[:1] == self.shape[1:2]:
            result.geometry = result.geometry.without_place
        return result

    def __array_function__(self, function: Any, types: Any, arguments: Any, named: Any) -> Any:
        result = super().__array_function__(function, types, arguments, named)
        if isinstance(result, Picture) and function is np.roll:
            result.geometry = result.geometry.without_place
        return result

    def view(self, *types: Any, **named: Any) -> Any:
        """A view, which keeps the place where it has the same sides; see ``numpy.ndarray.view``."""
        return _at_place_of(self, super().view(*types, **named))

    def reshape(self, *shape: Any, **named: Any) -> Any:
        """Values in another shape, at the same place of the same sides; see ``numpy.ndarray.reshape``."""
        return _at_place_of(self, super().reshape(*shape, **named))

    def squeeze(self, axis: Any = None) -> Any:
        """Values without axes of length 1, at the same place; see ``numpy.ndarray.squeeze``."""
        return _at_place_of(self, super().squeeze(axis))

    def take(self, *indices: Any, **named: Any) -> Any:
        """Values at some indices, without a place; see ``numpy.ndarray.take``."""
        values = np.asarray(self).take(*indices, **named)
        if np.ndim(values) == 0:
            return values
        return Picture(values, self.geometry.without_place, self.unit, self.name)

    def __getitem__(self, index: Any) -> Any:
        part = np.asarray(self)[index]
        if part.ndim == 0:
            return part
        picture = part.view(Picture)
        picture.geometry = self.geometry.of_part(index, self.shape)
        picture.unit = self.unit
        picture.name = self.name
        return picture

    def __reduce__(self) -> Any:
        return Picture, (np.asarray(self), self.geometry, self.unit, self.name)

    def __copy__(self) -> Picture:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> Picture:
        return self.copy()

    def copy(self, order: Any = "C") -> Picture:
        """A copy with the same attributes; see ``numpy.ndarray.copy``."""
        return Picture(np.asarray(self).copy(order), self.geometry, self.unit, self.name)

    def astype(self, dtype: Any, *options: Any, **named: Any) -> Picture:
        """The values in another type, with the same attributes; see ``numpy.ndarray.astype``."""
        return Picture(
            np.asarray(self).astype(dtype, *options, **named), self.geometry, self.unit, self.name
        )

    def absent(self) -> npt.NDArray[np.bool_]:
        """(*S), whether a pixel has the value that stands for none in a channel."""
        array = np.asarray(self)
        if self.nodata is None:
            return np.zeros(array.shape[1:], dtype=bool)
        missing = np.isnan(array) if np.isnan(self.nodata) else array == self.nodata
        return np.any(missing, axis=0)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file in the format of the path's suffix, whole or not at all.

        What the format can hold of the geometry is written. A TIFF is a GeoTIFF where the geometry is of one.
        Of a picture that is mapped into memory, npy and TIFF are written by parts.

        Raises:
            ModuleNotFoundError: the format's package is not installed. The message says how to install it.
            ValueError: the suffix is none of those; the format cannot hold the type, channels or axes; or it
                says where pixels lie, and a flip, a step, an index or another order of axes lost that.
        """
        path = Path(path)
        with images.named("write", path):
            module = formats.writer(path, self)
            write_atomically(path, lambda temporary: module.write(temporary, self))


def _at_place_of(source: Picture, array: Any) -> Any:
    """An array made of a picture, with its geometry if it is a picture of the same sides."""
    axes = source.geometry.axes or 0
    if (
        isinstance(array, Picture)
        and array.ndim <= axes + 1
        and array.shape[-axes:] == source.shape[-axes:]
    ):
        array.geometry = source.geometry
    return array


def _geometry_of_all(arrays: Sequence[Any], shape: tuple[int, ...]) -> Geometry:
    """The geometry of a result of a shape, of arrays: that of the first picture with a place.

    It is lost where another shape is left, or a picture of this shape has lost its own.
    """
    pictures = [array for array in arrays if isinstance(array, Picture)]
    lost = [picture for picture in pictures if picture.geometry.lost]
    placed = [picture for picture in pictures if picture.geometry.axes is not None]
    if not placed:
        return lost[0].geometry if lost else pictures[0].geometry
    first = placed[0]
    axes = first.geometry.axes or 0
    sides = shape[-axes:]
    was_moved = any(picture.shape[-axes:] == sides for picture in lost)
    if was_moved or first.shape[-axes:] != sides:
        return first.geometry.without_place
    return first.geometry


def read(path: str | os.PathLike[str] | Header, window: windows.Window = ()) -> Picture:
    """The picture of a file, or of a folder of DICOM; of a window, what it needs where the format allows.

    Values of npy, and of NIfTI and TIFF without compression or scaling, are mapped into memory. The array is
    read-only. Its geometry is that of the window.

    Args:
        path: the file or folder, of a part of it ``file.czi#scene=2,channel=1``, where no file has that name;
            or its header, which is not read again.
        window: a slice for each spatial axis, () for all.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: the format's package is not installed. The message says how to install it.
        UnknownFormatError: it is none of the formats.
        ValueError: it is damaged, has what the format's module refuses, or the window is outside.
    """
    head = path if isinstance(path, Header) else header(path)
    with images.named("read", head.path):
        part = windows.bounds(window, head.sides)
        expected = (head.shape[0], *windows.lengths(part))
        windows.check_cost(expected if head.windowed else head.shape, head.dtype, head.most)
        array = formats.module(head.reader).read(head, part)
        if array.shape != expected or array.dtype != head.dtype:
            held = f"its values are {array.shape} of {array.dtype}"
            raise ValueError(f"its header says {expected} of {head.dtype}, and {held}")
    array.flags.writeable = False
    geometry = head.geometry
    if window:
        geometry = geometry.of_part((slice(None), *part), head.shape)
    return Picture(array, geometry, head.unit, head.path.name)


def header(path: str | os.PathLike[str]) -> Header:
    """What a file or a folder says of its picture, but values. For paths and errors see :func:`read`."""
    return addresses.header(*addresses.split(Path(path)))


def write(path: str | os.PathLike[str], picture: npt.ArrayLike) -> None:
    """Write an array (C, *S); see :meth:`bbdm.pictures.Picture.save`."""
    if not isinstance(picture, Picture):
        picture = Picture(picture)
    picture.save(path)


def scale(pixels: torch.Tensor) -> torch.Tensor:
    """float32 in [-1, 1] of 8-bit pixels, uint8, on their device. Floats stay as they are."""
    import torch

    if pixels.is_floating_point():
        return pixels
    # a tensor: CUDA multiplies by the reciprocal of a number
    half = torch.full((), 127.5, device=pixels.device)
    return pixels.float() / half - 1


def as_affine(steps: npt.ArrayLike, origin: npt.ArrayLike) -> Affine:
    """The affine of axes (..., y, x): of (n, n) steps in the world along x, y, ..., and the first pixel."""
    columns = np.asarray(steps, np.float64)[:, ::-1]
    matrix = np.vstack([np.column_stack([columns, origin]), [0.0] * len(columns) + [1.0]])
    return tuple(map(tuple, matrix.tolist()))


def check_grid(
    one: Header | Picture, other: Header | Picture, names: Sequence[str], paired: bool = True
) -> None:
    """Raise ValueError unless pictures have one size and, if paired and both say it, one place on one map."""
    both = " and ".join(names)
    place = other.geometry
    first = one.geometry.kept.get("crs")
    second = place.kept.get("crs")
    if one.sides == other.sides:
        if not paired:
            return
        if first and second and first != second:
            raise ValueError(
                f"{both} have different coordinate reference systems, {_system(first)} and {_system(second)}: "
                "bring the first to the second, such as by rasterio.warp.reproject, or gdalwarp"
            )
        if _one_place(one.geometry, place):
            return
    advice = "skimage.transform.resize(FIRST, SHAPE)"
    if second:
        advice = "rasterio.warp.reproject, or gdalwarp"
    elif place.affine is not None and len(place.affine) == 4:
        advice = "SimpleITK.Resample(SimpleITK.ReadImage(FIRST), SimpleITK.ReadImage(SECOND))"
    grids = f"{both} lie on different grids, {one.grid} and {other.grid}"
    raise ValueError(f"{grids}: resample the first to the second, such as {advice}")


def _one_place(one: Geometry, other: Geometry) -> bool:
    """Whether two affines are the same within a small share of a pixel; also where one is not known."""
    if one.affine is None or other.affine is None:
        return True
    first = np.asarray(one.affine)
    second = np.asarray(other.affine)
    if first.shape != second.shape:
        return False
    # of about the length of a pixel's longest side
    tolerance = SAME_PLACE * np.abs(second[:-1, :-1]).max()
    return np.allclose(first, second, rtol=0, atol=tolerance)


def _system(text: str) -> str:
    """The name of a coordinate reference system in its well-known text, such as ``WGS 84 / UTM zone 33N``."""
    name = re.match(r'\w+\["([^"]+)"', text)
    if name is None:
        return text
    return name[1]
