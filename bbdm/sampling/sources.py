"""What a sampler translates: batches, pictures, paths and arrays, alone or in a list, as batches of one size.

Each result gets the type that its source had. Nothing here needs torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from bbdm.base import sizes
from bbdm.base.scripts import warn
from bbdm.data.spec import AXES, Spec
from bbdm.networks.arrays import as_numpy, concatenated, converted
from bbdm.pictures import Picture, formats, images, read
from bbdm.pictures.values import EIGHT_BIT, Values, check_finite, scaled_present

WHITE_PAPER = 0.9  # the mean of a source that may be bright everywhere: a drawing on white
Floats = npt.NDArray[np.float32]


class Item(NamedTuple):
    """One source, and how its result gets the source's type. A volume is of several images, its slices."""

    arrays: list[Floats]  # (C, H, W) in [-1, 1]
    restore: Callable[[list[Floats]], Any]
    floats: bool = False  # whether it was an array or a tensor of them


@dataclass(frozen=True)
class Sources:
    """The images of a call."""

    owners: list[int]  # of each image, the number of the source that it is of
    groups: list[tuple[list[int], Any]]  # images of one size: their indices, and (B, C, H, W) in [-1, 1]
    restore: Callable[[list[tuple[list[int], Any]]], Any]  # parts of groups, results, as what the call returns
    count: int  # of sources
    scale: Scale


@dataclass(frozen=True)
class Scale:
    """What a call's sources and results are: their channels, values and axes."""

    array: type[Any]  # the sampler's arrays: tensors, or those of NumPy
    noun: str  # of one of them, for messages
    channels: int  # of sources
    kind: Spec = Spec()  # of files and pictures
    stored: bool = False  # whether arrays and tensors have the values of ``kind`` too, and not [-1, 1]
    axes: int = 2  # spatial, of pictures; of volumes 3: (D, H, W) where (H, W) is written below

    def scaled(self, array: Any) -> Any:
        """(..., C, H, W) in [-1, 1] of an array or a tensor."""
        if not self.stored:
            return array
        values = self.kind.source_values
        if isinstance(values, Values):
            return values.scaled(array, self.axes)
        raise ValueError("percentiles are of pictures: give (H, W) or (H, W, C) arrays, pictures or paths in a list")

    def unscaled(self, array: Any) -> Any:
        """The result of an array or a tensor: the inverse, in the target's values."""
        return self.kind.target_values.stored(array, self.axes) if self.stored else array

    def warn_of_unit(self, arrays: Iterable[Any]) -> None:
        """Warn where floats, which should be in [-1, 1], look as if they were in [0, 1]."""
        if not self.stored and any(float(each.min()) >= 0 and float(each.mean()) < WHITE_PAPER for each in arrays):
            hint = "if black is 0, pass source_values=(0, 1), target_values=(0, 1)"
            warn(f"source has no negative value: floats are taken to be in [-1, 1]; {hint}")


def read_sources(source: Any, scale: Scale) -> Sources:
    """The images of a call: of a batch (B, C, H, W), a picture, a path, an array, or a list of these.

    Raises:
        FileNotFoundError: a path leads to no file.
        ValueError: a source is refused; the message says which of a list.
    """
    one = isinstance(source, np.ndarray) and source.ndim in (scale.axes, scale.axes + 1)
    if isinstance(source, scale.array | np.ndarray) and not (one or isinstance(source, Picture)):
        return _batch(source, scale)
    elements = source if isinstance(source, list | tuple) else [source]
    if not elements:
        raise ValueError("source must hold at least one picture, got an empty list")
    items: list[Item] = []
    for i, element in enumerate(elements):
        try:
            items.append(_read(element, scale))
        except ValueError as error:
            if elements is not source:
                raise
            raise ValueError(f"source[{i}]: {str(error).removeprefix('source ')}") from error
    scale.warn_of_unit([item.arrays[0] for item in items if item.floats])
    arrays = [image for item in items for image in item.arrays]

    def restore(parts: list[tuple[list[int], Any]]) -> Any:
        outputs = {i: image for indices, batch in parts for i, image in zip(indices, as_numpy(batch), strict=True)}
        ordered = iter(outputs[i] for i in range(len(arrays)))
        results = [item.restore(list(islice(ordered, len(item.arrays)))) for item in items]
        return results[0] if isinstance(source, np.ndarray) else results

    groups: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(arrays):
        groups.setdefault(image.shape, []).append(i)
    stacked = [(indices, np.stack([arrays[i] for i in indices])) for indices in groups.values()]
    return Sources([i for i, item in enumerate(items) for _ in item.arrays], stacked, restore, len(items), scale)


def _batch(source: Any, scale: Scale) -> Sources:
    """A (B, C, H, W) array."""
    batch = scale.scaled(source)
    images.check(batch, scale.channels, scale.axes)
    scale.warn_of_unit([batch])

    def restore(parts: list[tuple[list[int], Any]]) -> Any:
        return converted(scale.unscaled(concatenated([images for _, images in parts])), source, dtype=False)

    indices = list(range(len(batch)))
    return Sources(indices, [(indices, batch)], restore, len(indices), scale)


def _read(source: Any, scale: Scale) -> Item:
    """A picture, a path, an array or a (C, H, W) tensor."""
    kind = scale.kind
    photographs = scale.axes == 2 and kind.source_values == EIGHT_BIT and kind.target_values == EIGHT_BIT
    channels = scale.channels
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        pillow = photographs and formats.is_photograph(path)
        source = images.open_image(path) if pillow else read(path)
    if isinstance(source, Image.Image):
        if photographs:
            return Item([images.to_array(source, channels)], lambda results: images.from_array(results[0]))
        source = Picture(images.pixels(source, channels if channels in (1, 3) else None))
    if isinstance(source, Picture):
        return _picture(source, channels, scale.kind, scale.axes)
    if isinstance(source, np.ndarray) or hasattr(source, "detach"):
        return _array(source, scale)
    expected = f"{scale.noun}, a picture, a path, a NumPy array or a list of them"
    raise ValueError(f"source must be {expected}, got {type(source).__name__}")


def _picture(picture: Picture, channels: int, kind: Spec, axes: int) -> Item:
    """A picture (C, H, W), or a volume (C, D, H, W) by its slices, of stored values.

    Pixels without a value are -1, and get none in the result.
    """
    array, name = np.asarray(picture), picture.name or "the source"
    if picture.photograph and array.ndim == 3 and kind.source_values == EIGHT_BIT and {len(array), channels} == {1, 3}:
        array = images.recoloured(array, channels)
    axis = None if kind.slices is None else 1 + AXES[kind.slices]
    channels //= kind.planes
    volume = axis is not None or axes == 3
    expected = f"({channels}, D, H, W), a volume" if volume else f"({channels}, H, W)"
    if array.ndim != (4 if volume else 3) or len(array) != channels or 0 in array.shape:
        raise ValueError(f"source must be {expected}, as in training; {picture.name or 'it'} has shape {array.shape}")
    if kind.source is None and array.dtype != np.uint8:
        raise ValueError(
            f"source must have 8 bits, as in training, and {picture.name or 'it'} has {array.dtype} from "
            f"{images.ranges(picture)[0]}: give source_values"
        )
    kind.warn_of_source(picture)
    absent = picture.absent()
    kind.check_nodata(picture.nodata, absent, picture.name)
    try:
        check_finite(array, absent)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    values = kind.source_values.of(array[:, ~absent, None] if absent.any() else array)
    whole = scaled_present(values, array, absent)
    slices = [whole] if axis is None else list(np.moveaxis(whole, axis, 0))
    if kind.neighbours:
        around = [kind.around(index, len(slices)) for index in range(len(slices))]
        slices = [np.concatenate([slices[index] for index in indices]) for indices in around]

    def restore(results: list[Floats]) -> Picture:
        result = results[0] if axis is None else np.stack(results, axis)
        return kind.result(result, picture.geometry, absent, picture.name)

    return Item(slices, restore)


def _array(source: Any, scale: Scale) -> Item:
    """An array of stored values, of uint8 or of floats in the scale's range; or a tensor (C, H, W) of floats.

    An array is (H, W), (H, W, 3) or (H, W, 4) of uint8, or (H, W) or (H, W, channels) of others; that of a
    volume is (D, H, W) or (channels, D, H, W). Its result has no axis of channels where it is grey and the
    source had none.
    """
    tensor, array, channels = not isinstance(source, np.ndarray), as_numpy(source), scale.channels
    last = scale.axes == 2 and not tensor  # the axis of channels is the last one
    flat = array.ndim == scale.axes and not tensor  # there is none
    kind = "floats" if tensor else "values" if scale.stored else "uint8" if array.dtype == np.uint8 else "floats"
    if tensor and array.ndim != 1 + scale.axes:
        raise ValueError(f"a tensor in a list must be ({channels}, {sizes.SIDES[scale.axes]}), got shape {array.shape}")
    if last:
        count = array.shape[2:] or (1,)
        if kind == "floats" and array.dtype.kind != "f":
            raise images.more_than_8_bits(array)
        allowed = {"values": count, "uint8": (1, 3, 4), "floats": (1, channels)}[kind]
        if array.ndim not in (2, 3) or 0 in array.shape or count[0] not in allowed:
            shapes = "(H, W), (H, W, 3) or (H, W, 4)" if kind == "uint8" else f"(H, W) or (H, W, {channels})"
            raise ValueError(f"an array of {kind} must be {shapes}, got shape {array.shape}")
    planes = array[None] if flat else np.moveaxis(array, -1, 0) if last else array
    if kind == "uint8" and last:
        image = Image.fromarray(np.ascontiguousarray(array if len(planes) > 1 else planes[0]))
        item = Item([images.to_array(image, channels)], lambda results: images.pixels(images.from_array(results[0])))
    elif kind != "floats":
        item = _picture(Picture(planes), channels, replace(scale.kind, slices=None, neighbours=0), scale.axes)
    else:
        values = scale.scaled(planes)
        values = np.broadcast_to(values, (channels, *values.shape[1:])) if last else values
        images.check(values[None], channels, scale.axes)
        item = Item([np.ascontiguousarray(values, dtype=np.float32)], lambda results: scale.unscaled(results[0]))

    def restore(results: list[Floats]) -> Any:
        result = np.asarray(item.restore(results))  # (C, H, W)
        if tensor:
            return converted(result, source, dtype=not scale.stored)
        result = result.astype(array.dtype) if kind == "floats" else result
        if flat and len(result) == 1:
            return result[0]
        return np.ascontiguousarray(np.moveaxis(result, 0, -1)) if last else result

    return Item(item.arrays, restore, kind == "floats")


def check_noise(noise: Any, scale: Scale, expected: tuple[int, ...]) -> None:
    """Raise ValueError unless noise is finite normals of a shape, in the sampler's arrays."""
    found = tuple(noise.shape) if isinstance(noise, scale.array) else type(noise).__name__
    if found != expected:
        raise ValueError(f"noise must be {scale.noun} of shape {expected}, got {found}")
    if not np.isfinite(float(abs(noise).max())):
        raise ValueError("noise must be finite, got NaN or infinity")


def read_mask(mask: Any, scale: Scale, source: Any) -> Any:
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
        mask = mask[None, None] if mask.ndim == source.ndim - 2 else mask
    if not isinstance(mask, scale.array | np.ndarray):
        raise ValueError(f"mask must be {scale.noun}, a picture, a path or an (H, W) array, got {type(mask).__name__}")
    shapes = dict.fromkeys((count, 1, *source.shape[2:]) for count in (len(source), 1))
    if tuple(mask.shape) not in shapes:
        raise ValueError(f"mask must have shape {' or '.join(map(str, shapes))}, got {tuple(mask.shape)}")
    result = converted(mask, source) + source[:, :1] * 0  # one for each image
    low, high = float(result.min()), float(result.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"mask must be in [0, 1], got values from {low:.4g} to {high:.4g}")
    return result
