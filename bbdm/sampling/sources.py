"""What a sampler translates: batches, pictures, paths and arrays, alone or in a list, as batches of one size.

Each result gets the type that its source had. Nothing here needs torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from bbdm.base import sizes
from bbdm.base.machine import free_memory
from bbdm.base.scripts import warn
from bbdm.data.spec import AXES, Spec
from bbdm.networks.arrays import as_numpy, concatenated, converted
from bbdm.pictures import Picture, formats, images, read
from bbdm.pictures.values import EIGHT_BIT, Values, check_finite, scaled_present

WHITE_PAPER = 0.9  # the mean of a source that may be bright everywhere: a drawing on white
BYTES_OF_CALL = 48  # at least, for each value of a source: it, states, noise and results
Floats = npt.NDArray[np.float32]
Parts = list[tuple[list[int], Any]]  # images (B, C, H, W) with their indices
# of an array: in [-1, 1], of a photograph, or stored values
Content = Literal["floats", "uint8", "values"]


class Restore(Protocol):
    """What makes results of images."""

    def __call__(self, results: Any, down: bool = False) -> Any:
        """Results as a call returns them; ``down`` is that of :meth:`bbdm.data.spec.Spec.result`."""
        ...


@dataclass(frozen=True)
class Item:
    """One source of a call.

    Args:
        arrays: its images (C, H, W) in [-1, 1]; several of a volume, its slices.
        restore: makes the result, of the source's type, of the results of the images.
        is_floats: whether it was an array or a tensor of floats.
    """

    arrays: Sequence[Floats]
    restore: Restore
    is_floats: bool = False


@dataclass(frozen=True)
class Sources:
    """The images of a call.

    Args:
        owners: of each image, the number of the source that it is of.
        groups: images of one size in [-1, 1].
        restore: makes what the call returns of parts of groups, which are results.
        count: the number of sources.
        scale: what sources and results are.
    """

    owners: list[int]
    groups: Parts
    restore: Restore
    count: int
    scale: Scale


@dataclass(frozen=True)
class Scale:
    """What a call's sources and results are: their channels, values and axes.

    Args:
        array: the sampler's arrays: tensors, or those of NumPy.
        noun: what one of them is called in messages.
        channels: the number that sources have.
        spec: what files and pictures are.
        stored: whether arrays and tensors have the values of ``spec`` too, and not [-1, 1].
        axes: of space: 2 of pictures; 3 of volumes, (D, H, W) where (H, W) is written below.
    """

    array: type[Any]
    noun: str
    channels: int
    spec: Spec = Spec()
    stored: bool = False
    axes: int = 2

    def scaled(self, array: Any) -> Any:
        """(..., C, H, W) in [-1, 1] of an array or a tensor.

        Raises:
            ValueError: its values have no range of their own: they are percentiles.
        """
        if not self.stored:
            return array
        values = self.spec.source_values
        if isinstance(values, Values):
            return values.scaled(array, self.axes)
        raise ValueError(
            "percentiles are of pictures: give (H, W) or (H, W, C) arrays, pictures or paths in a list"
        )

    def unscaled(self, array: Any) -> Any:
        """The result of an array or a tensor: the inverse, in the target's values."""
        return self.spec.target_values.stored(array, self.axes) if self.stored else array

    def warn_of_unit(self, arrays: Iterable[Any]) -> None:
        """Warn where floats, which should be in [-1, 1], look as if they were in [0, 1]."""
        if self.stored:
            return
        if any(float(array.min()) >= 0 and float(array.mean()) < WHITE_PAPER for array in arrays):
            hint = "if black is 0, pass source_values=(0, 1), target_values=(0, 1)"
            warn(f"source has no negative value: floats are taken to be in [-1, 1]; {hint}")


def read_sources(source: Any, scale: Scale) -> Sources:
    """The images of a call: of a batch (B, C, H, W), a picture, a path, an array, or a list of these.

    Raises:
        FileNotFoundError: a path leads to no file.
        ValueError: a source is refused; the message says which of a list.
    """
    is_picture = isinstance(source, np.ndarray) and source.ndim in (scale.axes, scale.axes + 1)
    is_array = isinstance(source, scale.array | np.ndarray)
    if is_array and not is_picture and not isinstance(source, Picture):
        return _batch(source, scale)
    if not isinstance(source, list | tuple):
        items = [_read(source, scale)]
    elif source:
        items = _read_all(source, scale)
    else:
        raise ValueError("source must hold at least one picture, got an empty list")
    floats = [item.arrays[0] for item in items if item.is_floats]
    if floats:
        scale.warn_of_unit(floats)
    arrays = [array for item in items for array in item.arrays]
    owners = [number for number, item in enumerate(items) for _ in item.arrays]
    indices_by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, array in enumerate(arrays):
        indices_by_shape.setdefault(array.shape, []).append(index)
    groups = [
        (indices, np.stack([arrays[index] for index in indices]))
        for indices in indices_by_shape.values()
    ]

    def restore(results: Parts, down: bool = False) -> Any:
        images_of_all: dict[int, Floats] = {}
        for indices, batch in results:
            images_of_all.update(zip(indices, as_numpy(batch), strict=True))
        restored: list[Any] = []
        first = 0
        for item in items:
            last = first + len(item.arrays)
            restored.append(
                item.restore([images_of_all[index] for index in range(first, last)], down)
            )
            first = last
        return restored[0] if isinstance(source, np.ndarray) else restored

    return Sources(owners, groups, restore, len(items), scale)


def _batch(source: Any, scale: Scale) -> Sources:
    """A (B, C, H, W) array."""
    batch = scale.scaled(source)
    images.check(batch, scale.channels, scale.axes)
    scale.warn_of_unit([batch])

    def restore(results: Parts, down: bool = False) -> Any:
        batches = concatenated([batch for _, batch in results])
        return converted(scale.unscaled(batches), source, dtype=False)

    indices = list(range(len(batch)))
    return Sources(indices, [(indices, batch)], restore, len(indices), scale)


def _read_all(sources: Sequence[Any], scale: Scale) -> list[Item]:
    """The sources of a list."""
    items: list[Item] = []
    for number, source in enumerate(sources):
        try:
            items.append(_read(source, scale))
        except ValueError as error:
            raise ValueError(f"source[{number}]: {str(error).removeprefix('source ')}") from error
    return items


def _read(source: Any, scale: Scale) -> Item:
    """A picture, a path, an array or a (C, H, W) tensor."""
    spec = scale.spec
    eight_bit = spec.source in (None, EIGHT_BIT) and spec.target in (None, EIGHT_BIT)
    photographs = eight_bit and scale.axes == 2
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if photographs and formats.is_photograph(path):
            source = images.open_image(
                path, check_size=lambda *size: _check_memory(path, scale.channels, *size)
            )
        else:
            source = read(path)
    if isinstance(source, Image.Image) and photographs:
        return Item(
            [images.to_array(source, scale.channels)],
            lambda results, down=False: images.from_array(results[0]),
        )
    if isinstance(source, Image.Image):
        source = Picture(
            images.pixels(source, scale.channels if scale.channels in (1, 3) else None)
        )
    if isinstance(source, Picture):
        return _picture(source, scale)
    if isinstance(source, np.ndarray):
        return _array(source, scale)
    if hasattr(source, "detach"):
        return _tensor(source, scale)
    expected = f"{scale.noun}, a picture, a path, a NumPy array or a list of them"
    raise ValueError(f"source must be {expected}, got {type(source).__name__}")


def _check_memory(path: Path, channels: int, width: int, height: int) -> None:
    """Raise ValueError for a photograph that a call has no memory for, before it is decoded."""
    needed = width * height * channels * BYTES_OF_CALL
    free = free_memory()
    if needed > free:
        raise ValueError(
            f"{path} of {height} x {width} needs at least {sizes.amount(needed)} of memory in one call, and "
            f"{sizes.amount(free)} are free: bbdm restore and bbdm translate --window go by windows and files"
        )


def _picture(picture: Picture, scale: Scale) -> Item:
    """A picture (C, H, W), or a volume (C, D, H, W) by its slices, of stored values.

    Pixels without a value are -1, and get none in the result.
    """
    spec = scale.spec
    array = np.asarray(picture)
    recoloured = picture.photograph and {len(array), scale.channels} == {1, 3}
    if recoloured and spec.source_values == EIGHT_BIT:
        array = images.recoloured(array, scale.channels)
    _check_picture(picture, array, scale)
    spec.warn_of_source(picture)
    absent = picture.absent()
    spec.check_nodata(picture.nodata, absent, picture.name)
    try:
        check_finite(array, absent)
    except ValueError as error:
        raise ValueError(f"{picture.name or 'the source'}: {error}") from error
    present = array[:, ~absent, None] if absent.any() else array
    scaled = scaled_present(spec.source_values.of(present), array, absent)
    axis = None if spec.slices is None else 1 + AXES[spec.slices]

    def restore(results: list[Floats], down: bool = False) -> Picture:
        result = results[0] if axis is None else np.stack(results, axis)
        return spec.result(result, picture.geometry, absent, picture.name, down)

    if axis is None:
        return Item([scaled], restore)
    return Item(_slices(scaled, axis, spec), restore)


def _check_picture(picture: Picture, array: npt.NDArray[Any], scale: Scale) -> None:
    """Raise ValueError unless an array has the axes, the channels and the bits of sources in training."""
    spec = scale.spec
    channels = scale.channels // spec.planes
    volume = spec.slices is not None or scale.axes == 3
    axes = 3 if volume else 2
    if array.ndim != 1 + axes or len(array) != channels or 0 in array.shape:
        expected = f"({channels}, D, H, W), a volume" if volume else f"({channels}, H, W)"
        raise ValueError(
            f"source must be {expected}, as in training; {picture.name or 'it'} has shape {array.shape}"
        )
    if spec.source is None and array.dtype != np.uint8:
        values, _ = images.ranges(picture)
        raise ValueError(
            f"source must have 8 bits, as in training, and {picture.name or 'it'} has {array.dtype} from {values}: "
            "give source_values"
        )


def _slices(volume: Floats, axis: int, spec: Spec) -> list[Floats]:
    """The slices of a volume across an axis, each with the channels of its neighbours."""
    slices = list(np.moveaxis(volume, axis, 0))
    if not spec.neighbours:
        return slices
    stacks: list[Floats] = []
    for index in range(len(slices)):
        stacks.append(np.concatenate([slices[other] for other in spec.around(index, len(slices))]))
    return stacks


def _tensor(tensor: Any, scale: Scale) -> Item:
    """A tensor (C, H, W) of floats in the scale's range."""
    array = as_numpy(tensor)
    if array.ndim != 1 + scale.axes:
        expected = f"({scale.channels}, {sizes.SIDES[scale.axes]})"
        raise ValueError(f"a tensor in a list must be {expected}, got shape {array.shape}")

    def restore(results: list[Floats], down: bool = False) -> Any:
        return converted(scale.unscaled(results[0]), tensor, dtype=not scale.stored)

    return Item([_checked(scale.scaled(array), scale)], restore, is_floats=True)


def _array(array: npt.NDArray[Any], scale: Scale) -> Item:
    """An array of stored values, of uint8, or of floats in [-1, 1].

    It is (H, W), (H, W, 3) or (H, W, 4) of uint8, or (H, W) or (H, W, channels) of others; of a volume,
    (D, H, W) or (channels, D, H, W). Its result has no axis of channels where it is grey and the source had
    none.
    """
    content: Content = "floats"
    if scale.stored:
        content = "values"
    elif array.dtype == np.uint8:
        content = "uint8"
    if scale.axes == 2:
        _check_array(array, content, scale.channels)
    planes = _planes(array, scale.axes)
    if content == "floats":
        item = _floats(planes, scale)
    elif content == "uint8" and scale.axes == 2:
        item = _pixels(planes, scale)
    else:
        item = _picture(
            Picture(planes), replace(scale, spec=replace(scale.spec, slices=None, neighbours=0))
        )

    def restore(results: list[Floats], down: bool = False) -> Any:
        result = np.asarray(item.restore(results, down))  # (C, H, W)
        if array.ndim == scale.axes and len(result) == 1:
            return result[0]
        if scale.axes == 2:
            return np.ascontiguousarray(np.moveaxis(result, 0, -1))
        return result

    return Item(item.arrays, restore, item.is_floats)


def _check_array(array: npt.NDArray[Any], content: Content, channels: int) -> None:
    """Raise ValueError unless an array (H, W) or (H, W, C) has a type and channels that are read."""
    if content == "floats" and array.dtype.kind != "f":
        raise images.more_than_8_bits(array)
    count = array.shape[2] if array.ndim == 3 else 1
    allowed = {"values": (count,), "uint8": (1, 3, 4), "floats": (1, channels)}[content]
    if array.ndim not in (2, 3) or 0 in array.shape or count not in allowed:
        if content == "uint8":
            shapes = "(H, W), (H, W, 3) or (H, W, 4)"
        else:
            shapes = f"(H, W) or (H, W, {channels})"
        raise ValueError(f"an array of {content} must be {shapes}, got shape {array.shape}")


def _planes(array: npt.NDArray[Any], axes: int) -> npt.NDArray[Any]:
    """(C, *S) of an array (*S), of a picture (H, W, C), or of a volume (C, D, H, W)."""
    if array.ndim == axes:
        return array[None]
    return np.moveaxis(array, -1, 0) if axes == 2 else array


def _floats(planes: npt.NDArray[Any], scale: Scale) -> Item:
    """Floats (C, *S) in [-1, 1]; one channel of a picture becomes all that the network takes."""
    values = planes
    if scale.axes == 2:
        values = np.broadcast_to(planes, (scale.channels, *planes.shape[1:]))
    return Item(
        [_checked(values, scale)],
        lambda results, down=False: results[0].astype(planes.dtype),
        is_floats=True,
    )


def _checked(values: Any, scale: Scale) -> Floats:
    """Floats (C, *S) in [-1, 1] as float32, checked."""
    images.check(values[None], scale.channels, scale.axes)
    return np.ascontiguousarray(values, dtype=np.float32)


def _pixels(planes: npt.NDArray[np.uint8], scale: Scale) -> Item:
    """Grey, colours, or colours with transparency (C, H, W) of 8 bits."""
    array = planes[0] if len(planes) == 1 else np.moveaxis(planes, 0, -1)
    image = Image.fromarray(np.ascontiguousarray(array))
    arrays = [images.to_array(image, scale.channels)]
    return Item(arrays, lambda results, down=False: images.pixels(images.from_array(results[0])))


def check_noise(noise: Any, scale: Scale, expected: tuple[int, ...]) -> None:
    """Raise ValueError unless noise is finite normals of a shape, in the sampler's arrays."""
    got = tuple(noise.shape) if isinstance(noise, scale.array) else type(noise).__name__
    if got != expected:
        raise ValueError(f"noise must be {scale.noun} of shape {expected}, got {got}")
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
        white = 255 if mask.dtype == np.uint8 else 1
        mask = mask.astype(np.float32) / white
        if mask.ndim == scale.axes:
            mask = mask[None, None]
    if not isinstance(mask, scale.array | np.ndarray):
        raise ValueError(
            f"mask must be {scale.noun}, a picture, a path or an (H, W) array, got {type(mask).__name__}"
        )
    one_of_each = (len(source), 1, *source.shape[2:])
    one_of_all = (1, 1, *source.shape[2:])
    if tuple(mask.shape) not in (one_of_each, one_of_all):
        shapes = dict.fromkeys([one_of_each, one_of_all])
        raise ValueError(
            f"mask must have shape {' or '.join(map(str, shapes))}, got {tuple(mask.shape)}"
        )
    result = converted(mask, source) + source[:, :1] * 0  # one for each image
    low = float(result.min())
    high = float(result.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"mask must be in [0, 1], got values from {low:.4g} to {high:.4g}")
    return result
