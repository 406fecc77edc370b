"""Reading parts of the pictures of an example, in stored values."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bbdm.base.atomic import stamp
from bbdm.data.collection import Entry, Sides
from bbdm.data.slices import Slice
from bbdm.pictures import formats, images
from bbdm.pictures.lazy import Geometry, LazyPicture, Window, same_grid
from bbdm.pictures.values import Values, without_data

if TYPE_CHECKING:
    from bbdm.data.told import Told

KEPT = 6  # decoded pictures, of files of which no part can be read alone
OPENED = 4096  # examples whose headers are kept
DECODING = 4  # times the bytes of a picture that decoding it whole takes
SAMPLED = 2**24  # pixels of a picture from which percentiles are those of an even share of its rows
Array = npt.NDArray[Any]


class Strips(NamedTuple):
    """A source of which rows are read, in stored values."""

    shape: tuple[int, ...]  # (C, H, W)
    dtype: np.dtype[Any]
    decoded: int  # bytes that decoding takes of files of which no part can be read alone
    nodata: float | None  # what stands for no value in the first file
    masked: bool  # whether a pixel may have no value
    geometry: Geometry
    values: Callable[[], Values]  # of the whole picture
    read: Callable[[slice], tuple[Array, Array]]  # (C, rows, W), and (rows, W) where a pixel has no value
    forget: Callable[[], Any]  # what is decoded


class Decoded(LazyPicture):
    """A picture that a function reads whole."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], read: Callable[[], Array]) -> None:
        self.path, self.shape, self.dtype, self.geometry = path, shape, dtype, Geometry()
        self._read = read

    def __getitem__(self, window: Window) -> Array:
        return self._read()[(slice(None), *window)]


class Reader:
    """Opens the pictures of examples, and reads parts of them.

    Args:
        channels: 1 or 3, which 8-bit pictures are converted to; None for those of the files.
        same_size: whether the pictures of an example must lie on one grid.
        resample: resample sources and masks that lie on another grid than the target.
        cache: folder of decoded pictures, where no part of a file can be read alone; None for none.
        told: opens further images of examples; None for none.
        told_apart: whether further images may have another size than the source.
    """

    def __init__(
        self,
        channels: int | None,
        same_size: bool,
        resample: bool,
        cache: Path | None,
        told: Told | None = None,
        told_apart: bool = False,
    ) -> None:
        self._channels, self._same_size, self._resample, self._cache = channels, same_size, resample, cache
        self._told, self._told_apart = told, told_apart
        self._keep()

    def _keep(self) -> None:
        """Keep what will be opened and decoded; forget what was."""
        self._whole = lru_cache(KEPT)(lambda picture: picture[()])
        self._few, self._many = lru_cache(KEPT)(self._open), lru_cache(OPENED)(self._open)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_whole", "_few", "_many")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._keep()  # each process keeps its own

    def open(self, entry: Entry, swapped: bool = False) -> Sides:
        """The pictures of an example, on one grid; ``swapped`` makes the target the source.

        Raises:
            ValueError: a file cannot be read, or the grids differ.
        """
        return (self._few if entry.in_memory or self._resample else self._many)(entry, swapped)

    def _open(self, entry: Entry, swapped: bool) -> Sides:
        if isinstance(entry, Slice):
            return self.open(entry.volume, swapped)._replace(plane=(entry.axis, entry.place))
        sides = entry.opened().swapped() if swapped else entry.opened()
        like = sides.target or sides.sources[0]
        return sides._replace(
            sources=tuple(self._placed(each, like) for each in sides.sources),
            target=None if sides.target is None else self._placed(sides.target, like),
            mask=None if sides.mask is None else self._placed(sides.mask, like, nearest=True),
            told=tuple(
                self._placed(each, like, apart=self._told_apart)
                for each in (() if self._told is None else self._told.pictures(entry))
            ),
        )

    def _placed(
        self, picture: LazyPicture, like: LazyPicture, nearest: bool = False, apart: bool = False
    ) -> LazyPicture:
        """A picture on the grid of another, from the cache where no part of its file can be read alone."""
        placed = None not in (picture.geometry.affine, like.geometry.affine)
        checked = placed or (self._same_size and not apart) or len(picture.size) != len(like.size)
        if checked and not same_grid(picture, like):
            if self._resample:
                return formats.resampled(picture, like, nearest)
            raise ValueError(
                f"{picture.path} and {like.path} lie on different grids, {picture.grid} and {like.grid}: "
                "resample the first to the second by --resample"
            )
        return picture if self._cache is None or picture.windowed else _from_cache(picture, self._cache)

    def channels(self, pictures: Sequence[LazyPicture]) -> int:
        """The channels that :meth:`part` gives."""
        return sum((self._channels or 0) if self._is_converted(each) else each.shape[0] for each in pictures)

    def _is_converted(self, picture: LazyPicture) -> bool:
        """Grey and colour of photographs become one another; the bands of other files stay."""
        plain = picture.geometry.format == "pillow" and picture.dtype == np.uint8
        return self._channels is not None and plain and picture.shape[0] in (1, 3)

    def part(
        self, pictures: Sequence[LazyPicture], sides: Sides, window: Window = (), converted: bool = True
    ) -> tuple[Array, Array]:
        """(C, *W) of all channels in a window of the plane, and (*W) where one has no value; () is all.

        ``converted`` makes grey and colour of photographs one another.
        """
        parts: list[Array] = []
        absent: Any = False
        for picture in pictures:
            whole = _in_volume(window, sides, picture)
            array = picture[whole] if picture.windowed else self._whole(picture)[(slice(None), *whole)]
            array = array if sides.plane is None else array.take(0, 1 + sides.plane[0])
            absent = absent | without_data(array, picture.nodata)
            changed = converted and array.ndim == 3 and self._is_converted(picture)  # volumes by their slices alone
            parts.append(images.recoloured(array, self._channels) if changed else array)  # pyright: ignore[reportArgumentType]
        return (parts[0] if len(parts) == 1 else np.concatenate(parts)), absent

    def strips(self, pictures: Sequence[LazyPicture], sides: Sides, values: Callable[[], Values]) -> Strips:
        """The pictures of a source, of which rows are read."""
        height, width = pictures[0].size
        dtype = np.result_type(*(picture.dtype for picture in pictures))
        whole = [picture for picture in pictures if not picture.windowed]
        return Strips(
            shape=(self.channels(pictures), height, width),
            dtype=dtype,
            decoded=DECODING * sum(int(np.prod(picture.shape)) * picture.dtype.itemsize for picture in whole),
            nodata=pictures[0].nodata,
            masked=any(picture.nodata is not None for picture in pictures),
            geometry=pictures[0].geometry,
            values=values,
            read=lambda rows: self.part(pictures, sides, (rows, slice(None))),
            forget=self._keep,
        )

    def sample(self, pictures: Sequence[LazyPicture]) -> Array:
        """(C, N) pixels of whole pictures without those that have no value; of large ones, of some rows."""
        parts: list[Array] = []
        for picture in pictures:
            rows, step = picture.size[0], -(-int(np.prod(picture.size)) // SAMPLED)
            if picture.windowed and step > 1:
                strips = [
                    picture[(slice(row, row + 1), *[slice(None)] * (len(picture.size) - 1))]
                    for row in range(0, rows, step)
                ]
                array = np.concatenate(strips, axis=1)
            else:
                array = self._whole(picture)[:, ::step]
            parts.append(array.reshape(len(array), -1))
        values = np.concatenate(parts)
        absent = [without_data(part, picture.nodata) for part, picture in zip(parts, pictures, strict=True)]
        return values[:, ~np.any(absent, axis=0)]


def in_plane(size: Sequence[int], sides: Sides) -> tuple[int, ...]:
    """The size of an example of a picture's: without the axis across the plane of a slice."""
    return tuple(side for axis, side in enumerate(size) if sides.plane is None or axis != sides.plane[0])


def _in_volume(window: Window, sides: Sides, picture: LazyPicture) -> Window:
    """A window of the plane as one of the picture."""
    if sides.plane is None:
        return window
    axis, place = sides.plane
    flat = list(window) or [slice(None)] * (len(picture.size) - 1)
    return (*flat[:axis], slice(place, place + 1), *flat[axis:])


def _from_cache(picture: LazyPicture, folder: Path) -> LazyPicture:
    """A picture as a file of an array, which is made where it does not exist."""
    path = folder / f"{hashlib.sha256(stamp(picture.path.absolute()).encode()).hexdigest()[:32]}.npy"
    if not path.exists():
        formats.write(path, picture[()], picture.geometry)
    made = formats.open(path)
    made.geometry, made.nodata = picture.geometry, picture.nodata
    return made
