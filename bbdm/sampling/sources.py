"""What a sampler translates: batches, pictures, paths and arrays, alone or in a list, as batches of one size.

Each result gets the type that its source had. Nothing here needs torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
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
from bbdm.pictures import files, formats, images
from bbdm.pictures.picture import Picture
from bbdm.pictures.values import EIGHT_BIT, Values, check_finite, scaled_present
from bbdm.sampling.options import UNIT, Options, Range

WHITE_PAPER = 0.9  # the mean of a source that may be bright everywhere: a drawing on white
Floats = npt.NDArray[np.float32]


class Item(NamedTuple):
    """One source, and how its result gets the source's type. A volume is of several images, its slices."""

    arrays: list[Floats]  # (C, H, W) in [-1, 1]
    restore: Callable[[list[Floats]], Any]


@dataclass(frozen=True)
class Sources:
    """The images of a call.

    Attributes:
        owners: of each image, the number of the source that it is of.
        groups: images of one size: their indices, and (B, C, H, W) in [-1, 1].
        restore: parts of the groups, results in [-1, 1], as what the call returns.
        count: the number of sources.
    """

    owners: list[int]
    groups: list[tuple[list[int], Any]]
    restore: Callable[[list[tuple[list[int], Any]]], Any]
    count: int


@dataclass(frozen=True)
class Scale:
    """What a call's sources and results are: their values and axes."""

    range: Range = UNIT  # of floats in arrays and tensors
    kind: Spec = Spec()  # of files and pictures
    stored: bool = False  # whether arrays and tensors have the values of ``kind`` too, not those of ``range``
    axes: int = 2  # spatial, of pictures; of volumes 3: (D, H, W) where (H, W) is written below

    @classmethod
    def of(cls, options: Options, kind: Spec, axes: int) -> Scale:
        """That of a call of a network that was trained on pictures of a kind."""
        source, target = options.source_values, options.target_values
        if source is target is None:
            return cls(options.range, kind, axes=axes)
        valued: Any = {"source": source or kind.source, "target": target or kind.target}
        return cls(options.range, replace(kind, **valued), True, axes)

    def scaled(self, array: Any) -> Any:
        """(..., C, H, W) in [-1, 1] of an array or a tensor."""
        if not self.stored:
            return scaled(array, self.range)
        if isinstance(self.kind.source, Values):
            return self.kind.source.scaled(array)
        raise ValueError("percentiles are of pictures: give (H, W) or (H, W, C) arrays, pictures or paths in a list")

    def unscaled(self, array: Any) -> Any:
        """The result of an array or a tensor."""
        return self.kind.target.stored(array) if self.stored else unscaled(array, self.range)

    def warn_if_positive(self, values: Any) -> bool:
        """Warn where floats, which should be in [-1, 1], look as if they were in [0, 1]."""
        suspect = self.range == UNIT and not self.stored and float(values.min()) >= 0
        suspect = suspect and float(values.mean()) < WHITE_PAPER
        if suspect:
            warn("source has no negative value: floats are taken to be in [-1, 1]; pass range=(0, 1) if black is 0")
        return suspect


def scaled(values: Any, range: Range) -> Any:
    """Values of a range in [-1, 1]: an array or a tensor."""
    low, high = range
    return values if range == UNIT else (values - low) * (2 / (high - low)) - 1


def unscaled(values: Any, range: Range) -> Any:
    """The inverse of :func:`scaled`."""
    low, high = range
    return values if range == UNIT else (values + 1) * ((high - low) / 2) + low


def read_sources(source: Any, array: type[Any], noun: str, channels: int, scale: Scale) -> Sources:
    """The images of a call, checked.

    Args:
        source: a batch (B, C, H, W), a picture, a path, an array, or a list of these.
        array: the sampler's arrays, tensors or those of NumPy.
        noun: of one of them, for messages.
        channels: the number that sources have.
        scale: what the values of sources are.

    Raises:
        FileNotFoundError: a path leads to no file.
        ValueError: a source is refused; the message says which of a list.
    """
    single = isinstance(source, Picture) or (
        isinstance(source, np.ndarray) and source.ndim in (scale.axes, scale.axes + 1)
    )
    if not single and isinstance(source, array | np.ndarray):
        return _batch(source, channels, scale)
    elements = source if isinstance(source, list | tuple) else [source]
    if not elements:
        raise ValueError("source must hold at least one picture, got an empty list")
    items: list[Item] = []
    bright = False  # of floats, whether one was warned of
    for i, element in enumerate(elements):
        try:
            item = read(element, channels, scale)
            if item is None:
                expected = f"{noun}, a picture, a path, a NumPy array or a list of them"
                raise ValueError(f"source must be {expected}, got {type(element).__name__}")
        except ValueError as error:
            if elements is not source:
                raise
            raise ValueError(f"source[{i}]: {str(error).removeprefix('source ')}") from error
        if not bright and "float" in str(getattr(element, "dtype", "")) and not isinstance(element, Picture):
            bright = scale.warn_if_positive(item.arrays[0])
        items.append(item)
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
    return Sources([i for i, item in enumerate(items) for _ in item.arrays], stacked, restore, len(items))


def _batch(source: Any, channels: int, scale: Scale) -> Sources:
    """A (B, C, H, W) array."""
    batch = scale.scaled(source) if scale.stored or "float" in str(source.dtype) else source
    images.check(batch, channels, scale.axes)
    scale.warn_if_positive(batch)

    def restore(parts: list[tuple[list[int], Any]]) -> Any:
        return converted(scale.unscaled(concatenated([images for _, images in parts])), source, dtype=False)

    indices = list(range(len(batch)))
    return Sources(indices, [(indices, batch)], restore, len(indices))


def read(source: Any, channels: int, scale: Scale) -> Item | None:
    """A picture, a path, an array or a (C, H, W) tensor as an item; None for anything else.

    An array is (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, or (H, W) or (H, W, channels) of floats
    in the scale's range, or of any stored values. That of a volume is (D, H, W) or (channels, D, H, W).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the source cannot become a picture of ``channels``.
    """
    photographs = scale.axes == 2 and scale.kind.source == scale.kind.target == EIGHT_BIT
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        pillow = photographs and formats.SUFFIXES.get(formats.suffix_of(path)) == "pillow"
        source = images.open_image(path) if pillow else files.read(path)
    if isinstance(source, Image.Image):
        if photographs:
            return Item([images.to_array(source, channels)], lambda results: images.from_array(results[0]))
        source = Picture(images.pixels(source, channels if channels in (1, 3) else None))
    if isinstance(source, Picture):
        return _values(source, channels, scale.kind, scale.axes)
    if isinstance(source, np.ndarray):
        return (_volume if scale.axes == 3 else _array)(source, channels, scale)
    return _tensor(source, channels, scale) if hasattr(source, "detach") else None


def _values(picture: Picture, channels: int, kind: Spec, axes: int = 2) -> Item:
    """A picture (C, H, W), or a volume (C, D, H, W) by its slices, of stored values.

    Pixels without a value are -1, and get none in the result.
    """
    array, name = np.asarray(picture), picture.name or "the source"
    if picture.photograph and array.ndim == 3 and kind.source == EIGHT_BIT and {len(array), channels} == {1, 3}:
        array = images.recoloured(array, channels)
    axis = None if kind.slices is None else 1 + AXES[kind.slices]
    channels //= kind.planes
    volume = axis is not None or axes == 3
    expected = f"({channels}, D, H, W), a volume" if volume else f"({channels}, H, W)"
    if array.ndim != (4 if volume else 3) or len(array) != channels or 0 in array.shape:
        raise ValueError(f"source must be {expected}, as in training; {picture.name or 'it'} has shape {array.shape}")
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
        raise ValueError(f"{name}: {error}") from error
    values = kind.source.of(array[:, ~absent, None] if absent.any() else array)
    whole = scaled_present(values, array, absent)
    slices = [whole] if axis is None else list(np.moveaxis(whole, axis, 0))
    if kind.neighbours:
        around = [kind.around(index, len(slices)) for index in range(len(slices))]
        slices = [np.concatenate([slices[index] for index in indices]) for indices in around]

    def restore(results: list[Floats]) -> Picture:
        result = results[0] if axis is None else np.stack(results, axis)
        return kind.result(result, picture.geometry, absent, picture.name)

    return Item(slices, restore)


def _volume(array: npt.NDArray[Any], channels: int, scale: Scale) -> Item:
    """An array (D, H, W) or (C, D, H, W) of floats in the scale's range, of stored values or of uint8."""
    whole = array[None] if array.ndim == 3 else array
    if scale.stored or array.dtype == np.uint8:
        item = _values(Picture(whole), channels, scale.kind, axes=3)
    else:
        values = scale.scaled(whole).astype(np.float32)
        images.check(values[None], channels, axes=3)
        item = Item([values], lambda results: scale.unscaled(results[0]).astype(array.dtype))

    def restore(results: list[Floats]) -> npt.NDArray[Any]:
        result = np.asarray(item.restore(results))
        return result[0] if array.ndim == 3 else result

    return Item(item.arrays, restore)


def _array(array: npt.NDArray[Any], channels: int, scale: Scale) -> Item:
    """An array (H, W) or (H, W, C) of stored values, of uint8, or of floats in the scale's range.

    Its result is (H, W) where it is grey, unless the source had three axes.
    """
    count = array.shape[2:] or (1,)
    flat = array.ndim in (2, 3) and 0 not in array.shape
    kind = "values" if scale.stored else "uint8" if array.dtype == np.uint8 else "floats"
    if kind == "floats" and array.dtype.kind != "f":
        raise images.more_than_8_bits(array)
    allowed = {"values": count, "uint8": (1, 3, 4), "floats": (1, channels)}[kind]
    if not flat or count[0] not in allowed:
        shapes = "(H, W), (H, W, 3) or (H, W, 4)" if kind == "uint8" else f"(H, W) or (H, W, {channels})"
        raise ValueError(f"an array of {kind} must be {shapes}, got shape {array.shape}")
    planes = array.reshape(*array.shape[:2], -1).transpose(2, 0, 1)
    if kind == "values":
        item = _values(Picture(planes), channels, replace(scale.kind, slices=None, neighbours=0))
    elif kind == "uint8":
        image = Image.fromarray(planes[0] if len(planes) == 1 else np.ascontiguousarray(array))
        item = Item([images.to_array(image, channels)], lambda results: images.from_array(results[0]))
    else:
        values = np.broadcast_to(scaled(planes, scale.range), (channels, *planes.shape[1:]))
        images.check(values[None], channels)
        floats = np.ascontiguousarray(values, dtype=np.float32)
        item = Item([floats], lambda results: unscaled(results[0], scale.range).astype(array.dtype))

    def restore(results: list[Floats]) -> npt.NDArray[Any]:
        result = np.asarray(item.restore(results))
        result = result if kind == "uint8" else np.ascontiguousarray(result.transpose(1, 2, 0))
        if array.ndim == 3 or kind == "values":
            result = result[:, :, None] if result.ndim == 2 else result
            return result[:, :, 0] if array.ndim == 2 and result.shape[2] == 1 else result
        return result[:, :, 0] if result.ndim == 3 and result.shape[2] == 1 else result

    return Item(item.arrays, restore)


def _tensor(tensor: Any, channels: int, scale: Scale) -> Item:
    """One (C, H, W) tensor of a list."""
    if tensor.ndim != 1 + scale.axes:
        sides = sizes.SIDES[scale.axes]
        raise ValueError(f"a tensor in a list must be ({channels}, {sides}), got shape {tuple(tensor.shape)}")
    values = scale.scaled(tensor.detach()) if scale.stored or "float" in str(tensor.dtype) else tensor
    images.check(values[None], channels, scale.axes)

    def restore(results: list[Floats]) -> Any:
        result = converted(scale.unscaled(converted(results[0], tensor, dtype=False)), tensor, dtype=False)
        return result if scale.stored else result.to(tensor.dtype)

    return Item([as_numpy(values).astype(np.float32)], restore)


def read_mask(mask: Any, array: type[Any], noun: str, source: Any) -> Any:
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
    if not isinstance(mask, array | np.ndarray):
        raise ValueError(f"mask must be {noun}, a picture, a path or an (H, W) array, got {type(mask).__name__}")
    expected = len(source), 1, *source.shape[2:]
    if tuple(mask.shape) not in (expected, (1, *expected[1:])):
        shapes = " or ".join(str(shape) for shape in dict.fromkeys((expected, (1, *expected[1:]))))
        raise ValueError(f"mask must have shape {shapes}, got {tuple(mask.shape)}")
    result = converted(mask, source) + source[:, :1] * 0  # one for each image
    low, high = float(result.min()), float(result.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"mask must be in [0, 1], got values from {low:.4g} to {high:.4g}")
    return result
