"""What a sampler translates: batches, pictures, paths and arrays, alone or in a list, as batches of one size.

Each result gets the type that its source had. Nothing here needs torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from bbdm.data.spec import AXES, Spec
from bbdm.pictures import files, images, suffixes
from bbdm.pictures.picture import Picture
from bbdm.pictures.values import EIGHT_BIT, check_finite, scaled_present
from bbdm.sampling.scale import UNIT, Range, Scale, scaled, unscaled, warn_if_positive


class Item(NamedTuple):
    """One source, and how its result gets the source's type. A volume is of several images, its slices."""

    arrays: list[npt.NDArray[np.float32]]  # (C, H, W) in [-1, 1]
    restore: Callable[[list[npt.NDArray[np.float32]]], Any]

    @classmethod
    def of(cls, array: npt.NDArray[np.float32], restore: Callable[[npt.NDArray[np.float32]], Any]) -> Item:
        """A source of one image."""
        return cls([array], lambda made: restore(made[0]))


@dataclass(frozen=True)
class ArrayBackend:
    """The arrays that a sampler computes with."""

    type: type[Any]
    noun: str  # for messages: "a tensor"
    from_numpy: Callable[[npt.NDArray[Any]], Any]
    to_numpy: Callable[[Any], npt.NDArray[Any]]  # of an array on any device
    concatenate: Callable[..., Any]  # of arrays, along an axis or the first
    read: Callable[[Any, int, Scale], Item | None]  # one (C, H, W) array of this kind in a list, or None
    like: Callable[[Any, Any], Any]  # the first array with the dtype and on the device of the second


@dataclass(frozen=True)
class Given:
    """The images of a call."""

    owners: list[int]  # of each image, the number of the source that it is of
    groups: list[tuple[list[int], Any]]  # images of one size: their indices, and a (B, C, H, W) array in [-1, 1]
    restore: Callable[[list[tuple[list[int], Any]]], Any]  # of parts of the groups to what the call returns


NUMPY = ArrayBackend(
    np.ndarray,
    "an array",
    np.asarray,
    np.asarray,
    np.concatenate,
    lambda array, channels, scale: None,
    lambda array, other: array.astype(other.dtype),
)


def given(source: Any, backend: ArrayBackend, channels: int, scale: Scale) -> Given:
    """What a call is given, checked.

    Raises:
        FileNotFoundError: a path leads to no file.
        ValueError: a source is refused; the message names its place in a list.
    """
    if isinstance(source, Picture) or (isinstance(source, np.ndarray) and source.ndim in (scale.axes, scale.axes + 1)):
        return _items(source, [source], backend, channels, scale)
    if isinstance(source, backend.type | np.ndarray):
        return _batch(source, backend, channels, scale)
    if isinstance(source, list | tuple):
        if not source:
            raise ValueError("source must hold at least one picture, got an empty list")
        return _items(source, source, backend, channels, scale)
    return _items(source, [source], backend, channels, scale)


def _batch(source: Any, backend: ArrayBackend, channels: int, scale: Scale) -> Given:
    """A (B, C, H, W) array."""
    array = source if isinstance(source, backend.type) else backend.from_numpy(source)
    array = scale.scaled(array) if scale.given or "float" in str(array.dtype) else array
    images.check(array, channels, scale.axes)
    if scale.range == UNIT and not scale.given:
        warn_if_positive(array)

    def restore(parts: list[tuple[list[int], Any]]) -> Any:
        result = scale.unscaled(backend.concatenate([made for _, made in parts]))
        if isinstance(source, backend.type):
            return backend.from_numpy(result) if isinstance(result, np.ndarray) else result
        return np.asarray(result)

    indices = [i for i, _ in enumerate(array)]
    return Given(indices, [(indices, array)], restore)


def _items(source: Any, elements: Sequence[Any], backend: ArrayBackend, channels: int, scale: Scale) -> Given:
    """Single images, of any types and sizes."""
    items: list[Item] = []
    for i, element in enumerate(elements):
        try:
            item = backend.read(element, channels, scale) or read(element, channels, scale)
            if item is None:
                wanted = f"{backend.noun}, a picture, a path, a NumPy array or a list of them"
                raise ValueError(f"source must be {wanted}, got {type(element).__name__}")
        except ValueError as error:
            if elements is not source:
                raise
            raise ValueError(f"source[{i}]: {str(error).removeprefix('source ')}") from error
        items.append(item)
    is_float = ["float" in str(getattr(e, "dtype", "")) and not isinstance(e, Picture) for e in elements]
    floats = [item.arrays[0] for item, known in zip(items, is_float, strict=True) if known]
    for array in floats if scale.range == UNIT and not scale.given else []:
        if warn_if_positive(array):
            break
    arrays = [array for item in items for array in item.arrays]
    owners = [i for i, item in enumerate(items) for _ in item.arrays]

    def restore(parts: list[tuple[list[int], Any]]) -> Any:
        made = {i: array for indices, arrays in parts for i, array in zip(indices, np.asarray(arrays), strict=True)}
        images = iter(made[i] for i in sorted(made))
        results = [item.restore(list(islice(images, len(item.arrays)))) for item in items]
        return results[0] if isinstance(source, np.ndarray) else results

    sized: dict[tuple[int, ...], list[int]] = {}
    for i, array in enumerate(arrays):
        sized.setdefault(array.shape, []).append(i)
    groups = list(sized.values())
    stacked = [backend.from_numpy(np.stack([arrays[i] for i in indices])) for indices in groups]
    return Given(owners, list(zip(groups, stacked, strict=True)), restore)


def read(source: Any, channels: int, scale: Scale) -> Item | None:
    """A picture, a path or an array as an item; None for anything else.

    An array is (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, or (H, W) or (H, W, channels) of floats
    in the scale's range, or of any values where these are given. That of a volume is (D, H, W) or
    (channels, D, H, W).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the source cannot become a picture of ``channels``.
    """
    plain = scale.kind.source == scale.kind.target == EIGHT_BIT
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        photograph = suffixes.SUFFIXES.get(suffixes.suffix_of(path)) == "pillow"
        source = images.open_image(path) if plain and scale.axes == 2 and photograph else files.read(path)
    if isinstance(source, Image.Image) and (not plain or scale.axes == 3):
        source = Picture(images.pixels(source, channels if channels in (1, 3) else None))
    if isinstance(source, Picture):
        return _values(source, channels, scale.kind, scale.axes)
    if isinstance(source, Image.Image):
        return Item.of(images.to_array(source, channels), images.from_array)
    if not isinstance(source, np.ndarray):
        return None
    if scale.axes == 3:
        return _volume(source, channels, scale)
    if scale.given:
        return _valued(source, channels, scale.kind)
    if source.dtype == np.uint8:
        array = images.to_array(_picture(source), channels)
    elif source.dtype.kind != "f":
        raise images.more_than_8_bits(source)
    else:
        array = _floats(source, channels, scale.range)
    return Item.of(array, lambda made: _restored(made, source, scale.range))


def _values(picture: Picture, channels: int, kind: Spec, axes: int = 2) -> Item:
    """A picture (C, H, W), or a volume (C, D, H, W) by its slices, of stored values.

    Pixels without a value are -1, and get none in the result.
    """
    array = np.asarray(picture)
    if picture.photograph and array.ndim == 3 and kind.source == EIGHT_BIT and {len(array), channels} == {1, 3}:
        array = images.recoloured(array, channels)
    axis = None if kind.slices is None else 1 + AXES[kind.slices]
    channels //= kind.planes
    volume = axis is not None or axes == 3
    wanted = f"({channels}, D, H, W), a volume" if volume else f"({channels}, H, W)"
    if array.ndim != (4 if volume else 3) or len(array) != channels or 0 in array.shape:
        raise ValueError(f"source must be {wanted}, as in training; {picture.name or 'it'} has shape {array.shape}")
    if kind.source == EIGHT_BIT and array.dtype != np.uint8:
        raise ValueError(
            f"source must have 8 bits, as in training, and {picture.name or 'it'} has {array.dtype} from "
            f"{images.found_range(picture)}: give source_values"
        )
    kind.warn_of_source(picture)
    absent = picture.absent()
    kind.check_nodata(picture.nodata, absent, picture.name)
    try:
        check_finite(array, absent)
    except ValueError as error:
        raise ValueError(f"{picture.name or 'the source'}: {error}") from error
    values = kind.source.of(array[:, ~absent, None] if absent.any() else array)
    made = scaled_present(values, array, absent)
    slices = [made] if axis is None else list(np.moveaxis(made, axis, 0))
    if kind.neighbours:
        around = [kind.around(place, len(slices)) for place in range(len(slices))]
        slices = [np.concatenate([slices[place] for place in places]) for places in around]

    def restore(results: list[npt.NDArray[np.float32]]) -> Picture:
        whole = results[0] if axis is None else np.stack(results, axis)
        return kind.result(whole, picture.geometry, absent, picture.name)

    return Item(slices, restore)


def _volume(array: npt.NDArray[Any], channels: int, scale: Scale) -> Item:
    """An array (D, H, W) or (C, D, H, W) of floats in the scale's range, of stored values or of uint8."""
    whole = array[None] if array.ndim == 3 else array
    if scale.given or array.dtype == np.uint8:
        item = _values(Picture(whole), channels, scale.kind, axes=3)
    else:
        values = scale.scaled(whole).astype(np.float32)
        images.check(values[None], channels, axes=3)
        item = Item.of(values, lambda made: scale.unscaled(made).astype(array.dtype))

    def restore(results: list[npt.NDArray[np.float32]]) -> npt.NDArray[Any]:
        made = np.asarray(item.restore(results))
        return made[0] if array.ndim == 3 else made

    return Item(item.arrays, restore)


def _valued(array: npt.NDArray[Any], channels: int, kind: Spec) -> Item:
    """An array (H, W) or (H, W, C) of stored values."""
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(f"an array of values must be (H, W) or (H, W, {channels}), got shape {array.shape}")
    item = _values(
        Picture(array.reshape(*array.shape[:2], -1).transpose(2, 0, 1)),
        channels,
        replace(kind, slices=None, neighbours=0),
    )

    def restore(results: list[npt.NDArray[np.float32]]) -> npt.NDArray[Any]:
        made = np.ascontiguousarray(np.asarray(item.restore(results)).transpose(1, 2, 0))
        return made[:, :, 0] if array.ndim == 2 and made.shape[2] == 1 else made

    return Item(item.arrays, restore)


def read_mask(mask: Any, backend: ArrayBackend, source: Any) -> Any:
    """(B, 1, H, W) floats in [0, 1] for a source (B, C, H, W), of its kind, dtype and device.

    Raises:
        FileNotFoundError: a path leads to no file.
        ValueError: another shape, or values outside [0, 1].
    """
    if isinstance(mask, str | os.PathLike):
        mask = images.open_image(Path(mask))
    if isinstance(mask, Image.Image):
        mask = np.asarray(images.convert(mask, 1))
    if isinstance(mask, np.ndarray):
        mask = mask.astype(np.float32) / (255 if mask.dtype == np.uint8 else 1)
        mask = backend.from_numpy(mask[None, None] if mask.ndim == source.ndim - 2 else mask)
    if not isinstance(mask, backend.type):
        wanted = f"{backend.noun}, a picture, a path or an (H, W) array"
        raise ValueError(f"mask must be {wanted}, got {type(mask).__name__}")
    wanted = len(source), 1, *source.shape[2:]
    if tuple(mask.shape) not in (wanted, (1, *wanted[1:])):
        shapes = " or ".join(str(shape) for shape in dict.fromkeys((wanted, (1, *wanted[1:]))))
        raise ValueError(f"mask must have shape {shapes}, got {tuple(mask.shape)}")
    made = backend.like(mask, source) + source[:, :1] * 0  # one for each image
    if not (float(made.min()) >= 0 and float(made.max()) <= 1):
        raise ValueError(f"mask must be in [0, 1], got values from {float(made.min()):.4g} to {float(made.max()):.4g}")
    return made


def _picture(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """A picture of an array of uint8."""
    grey = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 1)
    if (not grey and (pixels.ndim != 3 or pixels.shape[2] not in (3, 4))) or 0 in pixels.shape:
        raise ValueError(f"an array of uint8 must be (H, W), (H, W, 3) or (H, W, 4), got shape {pixels.shape}")
    return Image.fromarray(pixels.reshape(pixels.shape[:2]) if grey else np.ascontiguousarray(pixels))


def _floats(values: npt.NDArray[Any], channels: int, range: Range) -> npt.NDArray[np.float32]:
    """(channels, H, W) in [-1, 1] of an array of floats."""
    colours = values.shape[2:] or (1,)
    if values.ndim not in (2, 3) or 0 in values.shape or colours[0] not in (1, channels):
        raise ValueError(f"an array of floats must be (H, W) or (H, W, {channels}), got shape {values.shape}")
    shape = (*values.shape[:2], channels)
    array = np.broadcast_to(values.reshape(*values.shape[:2], -1), shape).transpose(2, 0, 1)
    images.check(scaled(array[None], range), channels)
    return np.ascontiguousarray(scaled(array, range), dtype=np.float32)


def _restored(made: npt.NDArray[np.float32], source: npt.NDArray[Any], range: Range) -> npt.NDArray[Any]:
    """A result as an array like its source; grey is (H, W) unless the source had three axes."""
    if source.dtype == np.uint8:
        result = np.asarray(images.from_array(made))
    else:
        result = unscaled(made, range).astype(source.dtype).transpose(1, 2, 0)
        result = result[:, :, 0] if result.shape[2] == 1 else np.ascontiguousarray(result)
    return result[:, :, None] if result.ndim == 2 and source.ndim == 3 else result
