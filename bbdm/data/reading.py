"""Reading the pictures of a row, whole or in part, in stored values.

A file of which no part can be read alone is decoded whole: once into a cache, or a few are kept in memory.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from bbdm import pictures
from bbdm.base.atomic import stamp
from bbdm.data.cache import Cache
from bbdm.data.crops import Window
from bbdm.data.rows import Half
from bbdm.pictures import Header, Picture, images
from bbdm.pictures.images import Resize, Size
from bbdm.pictures.picture import PHOTOGRAPH, same_grid
from bbdm.pictures.values import (
    EIGHT_BIT,
    AnyValues,
    Values,
    check_finite,
    scaled_present,
    without_data,
)

KEPT = 6  # decoded pictures in memory
HEADERS = 4096  # that are kept
SAMPLED = 2**24  # pixels of a picture from which percentiles are those of an even share of its rows
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # of pictures inside larger files
DECODING = 4  # times the bytes of a picture that decoding it whole takes
NPY = b"\x93NUMPY"  # how an array begins
OF_PHOTOGRAPH = pictures.Geometry(format=PHOTOGRAPH)
Array = npt.NDArray[Any]
Change = Callable[[Image.Image], Image.Image]


class Part(NamedTuple):
    """Pictures of a role, or a window of them, in stored values."""

    array: Array  # (C, *S), the channels of all
    absent: Any  # (*S) where a pixel has no value, or False
    pictures: Sequence[Picture]  # as they were read, to compare their grids

    def scaled(self, name: str, values: Values | None, channels: int | None = None, first: Sequence[int] = ()) -> Array:
        """(C, *S) as uint8 of 8 bits, else as float32 in [-1, 1]; 0 or -1 where there is no value.

        Args:
            name: of the column, for messages.
            values: the range of stored values; None for 0 to 255 of uint8, and for floats in [-1, 1].
            channels: 1 or 3, which 8-bit grey and colour are converted to; None for their own.
            first: the index of the first pixel in its picture, for messages.

        Raises:
            ValueError: values have no range, or are NaN or infinite.
        """
        array, absent, _ = self
        holes = absent is not False and bool(np.any(absent))
        if values not in (None, EIGHT_BIT):
            try:
                return scaled_present(values, array, np.asarray(absent), first)
            except ValueError as error:
                if array.dtype.kind == "f" and self.pictures[0].geometry.format == "geotiff":
                    raise ValueError(f"{error}; nodata=nan in the file makes such pixels absent") from error
                raise
        if array.dtype == np.uint8:
            array = array if channels in (None, len(array)) else images.recoloured(array, channels)
            return np.where(absent, np.uint8(0), array) if holes else array
        present = np.where(absent, array.dtype.type(0), array) if holes else array
        check_finite(array, absent, first)
        if array.dtype.kind != "f" or abs(present).max() > images.RANGE_LIMIT:
            found = array[:, ~absent] if holes else array
            raise ValueError(
                f"{name} has values from {images.found_range(found)} in {array.dtype}: give their range, such as "
                f"{images.usual_range(found)}, or 8 bits, or floats in [-1, 1]"
            )
        return np.where(absent, -1, present).astype(np.float32)


class Reader:
    """Reads the values of rows: paths, halves of files, encoded pictures, and arrays.

    Args:
        cache: of decoded pictures; None to keep a few in memory.
    """

    def __init__(self, cache: Cache | None = None) -> None:
        self._cache = cache
        self.forget()

    def forget(self) -> None:
        """Forget what was decoded and looked at."""
        self._whole = lru_cache(KEPT)(pictures.read if self._cache is None else self._cached)
        self._photograph = lru_cache(KEPT)(lambda path: images.pixels(images.open_image(path)))
        self._headers = lru_cache(HEADERS)(pictures.header)
        self._ranges: dict[Any, Values] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_cache": self._cache}  # each process keeps its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.forget()

    def header(self, value: Any) -> Header | Picture:
        """Sides, type and geometry of a value of a row; of what is in memory, the picture."""
        if isinstance(value, Half):
            head = self._headers(value.path)
            return replace(head, shape=(*head.shape[:-1], head.shape[-1] // 2))
        return self._headers(value) if isinstance(value, Path) else self.read(value)

    def read(self, value: Any, window: Window = (), change: Change | None = None) -> Picture:
        """A value of a row as a picture, or a window of it.

        Args:
            value: of a row's column, such as a path.
            window: a slice for each spatial axis; () for all.
            change: what the photograph of a file becomes, read as a whole.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, or no picture.
        """
        if isinstance(value, Path):
            if not window:
                return pictures.read(value, (), change)
            head = self._headers(value)
            if head.windowed:
                return pictures.read(head, window)
            picture = self._whole(value)
        elif isinstance(value, Half):
            pixels = self._photograph(value.path)
            half, rest = divmod(pixels.shape[2], 2)
            if rest:
                width = pixels.shape[2]
                raise ValueError(f"{value} is {width} pixels wide: two pictures side by side need an even width")
            picture = Picture(pixels[:, :, value.side * half : (value.side + 1) * half], OF_PHOTOGRAPH)
        else:
            picture = decoded(value)
        return cast(Picture, picture[(slice(None), *window)]) if window else picture

    def _cached(self, path: Path) -> Picture:
        """A file as a whole, from the cache."""
        assert self._cache is not None
        key = hashlib.sha256(stamp(path.absolute()).encode()).hexdigest()[:32]
        stored = self._cache(key, lambda: {"picture": torch.from_numpy(np.array(pictures.read(path)))})
        return Picture(stored["picture"].numpy(), self._headers(path).geometry, name=path.name)

    def part(
        self,
        values: Sequence[Any],
        channels: int | None,
        window: Window = (),
        plane: tuple[int, int] | None = None,
        size: Size | None = None,
        resize: Resize = "stretch",
    ) -> Part:
        """The channels of some values of a row, one after another.

        Args:
            values: of a row, of one column or several.
            channels: 1 or 3, which photographs are converted to; None for the files' own.
            window: of the spatial axes, without that across a plane; () for all.
            plane: of a slice: the axis across it, and its index along that; None for the whole.
            size: that whole photographs are resized to, where they are decoded; None to keep theirs.
            resize: what the size means.
        """
        change = None
        if not window and plane is None and (channels or size):
            change = partial(changed, channels=channels, size=size, resize=resize)
        arrays: list[Array] = []
        read: list[Picture] = []
        absent: Any = False
        if plane is not None:
            flat = list(window) or [slice(None), slice(None)]
            window = (*flat[: plane[0]], slice(plane[1], plane[1] + 1), *flat[plane[0] :])
        for value in values:
            picture = self.read(value, window, change)
            read.append(picture)
            array = np.asarray(picture)
            array = array if plane is None else array.take(0, 1 + plane[0])
            if picture.geometry.nodata is not None:
                absent = absent | without_data(array, picture.geometry.nodata)
            if channels is not None and array.ndim == 3 and len(array) != channels and picture.photograph:
                array = images.recoloured(array, channels)
            arrays.append(array)
        return Part(arrays[0] if len(arrays) == 1 else np.concatenate(arrays), absent, read)

    def values(self, values: AnyValues, of: Sequence[Any]) -> Values:
        """The values of some pictures: percentiles are measured once, on the whole ones."""
        if isinstance(values, Values):
            return values
        key = tuple(of) if all(isinstance(each, Path | Half) for each in of) else None
        if key is None or key not in self._ranges:
            found = values.of(np.concatenate([self._sample(each) for each in of]))
            if key is None:
                return found
            self._ranges[key] = found
        return self._ranges[key]

    def _sample(self, value: Any) -> Array:
        """(C, N) pixels of a picture that have a value; of a large one, of some rows."""
        head = self.header(value)
        step = -(-int(np.prod(head.sides)) // SAMPLED)
        if isinstance(head, Header) and head.windowed and step > 1:
            others = [slice(None)] * (len(head.sides) - 1)
            rows = [self.read(value, (slice(row, row + 1), *others)) for row in range(0, head.sides[0], step)]
            array = np.concatenate(rows, axis=1)
        else:
            window = tuple(slice(0, side) for side in head.sides)  # by the cache, or what is kept
            array = np.asarray(self.read(value, window))[:, ::step]
        array = array.reshape(len(array), -1)
        return array[:, ~without_data(array, head.nodata)]


def changed(image: Image.Image, channels: int | None, size: Size | None, resize: Resize) -> Image.Image:
    """A photograph as grey (1 channel) or colour (3 channels) at a size; None keeps what it has."""
    image = image if channels is None else images.convert(image, channels)
    return image if size is None else images.resized(image, size, resize)


def check_grids(first: Header | Picture, others: Sequence[Header | Picture], names: Sequence[Any], sized: bool) -> None:
    """Raise ValueError where pictures of a row do not lie on one grid.

    Args:
        first: the picture whose grid it is.
        others: the further pictures of the row.
        names: what messages call them, the first one's first.
        sized: whether they must have one size, where they do not say where they lie.
    """
    for name, other in zip(names[1:], others, strict=True):
        placed = None not in (first.geometry.affine, other.geometry.affine)
        if (placed or sized or len(first.sides) != len(other.sides)) and not same_grid(other, first):
            raise ValueError(
                f"{name} and {names[0]} lie on different grids, {other.grid} and {first.grid}: resample the first to "
                f"the second, {_resampling(first)}"
            )


def _resampling(picture: Header | Picture) -> str:
    """How a picture is brought to the grid of another."""
    if picture.geometry.affine is not None and len(picture.geometry.affine) == 4:
        return "such as SimpleITK.Resample(SimpleITK.ReadImage(FIRST), SimpleITK.ReadImage(SECOND))"
    if picture.geometry.kept.get("crs"):
        return "such as rasterio.warp.reproject, or gdalwarp"
    return "such as skimage.transform.resize(FIRST, SHAPE)"


def decoded(value: Any) -> Picture:
    """An encoded picture, an array (C, *S), or rows of numbers as (1, L, D); lists are arrays too.

    Raises:
        ValueError: it is none of these, or damaged.
    """
    if isinstance(value, bytes) and value.startswith(NPY):
        array = np.load(io.BytesIO(value), allow_pickle=False)
        return Picture(array[None] if array.ndim == 2 else array)
    if isinstance(value, bytes):
        return Picture(images.pixels(images.open_image(value, "in a table", FORMATS)), OF_PHOTOGRAPH)
    if isinstance(value, list):
        try:
            array = np.array(value, np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(f"it must be lists of as many numbers each, {error}") from error
        return Picture(array if array.ndim > 2 else array[None])
    if isinstance(value, np.ndarray):
        return Picture(value[None] if value.ndim == 2 else value)
    if isinstance(value, str):
        raise FileNotFoundError(f"there is no picture {value}")
    raise ValueError(f"it is neither a picture nor an array, but {value!r}")


class Strips(NamedTuple):
    """A source of which rows of pixels are read, in stored values."""

    shape: tuple[int, ...]  # (C, H, W)
    dtype: np.dtype[Any]
    decoded: int  # bytes that decoding takes of files of which no part can be read alone
    nodata: float | None  # what stands for no value in the first file
    masked: bool  # whether a pixel may have no value
    geometry: pictures.Geometry
    values: Callable[[], Values]  # of the whole picture
    read: Callable[[slice], tuple[Array, Array]]  # (C, rows, W), and (rows, W) where a pixel has no value
    forget: Callable[[], Any]  # what is decoded
