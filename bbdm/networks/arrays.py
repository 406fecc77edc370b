"""Arrays of NumPy and tensors of torch by one name, for code that serves both: sizes, channels, conversions.

Torch is imported only where there is a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bbdm.base.sizes import SIDES, shown

if TYPE_CHECKING:
    import torch

Stride = int | tuple[int, ...]  # of all axes, or one of each
NAMES = {2: ("height", "width"), 3: ("depth", "height", "width")}


def along(number: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """A number for each axis, of one for all."""
    if isinstance(number, Sequence):
        return tuple(number)
    return (number,) * axes


def check_images(x: torch.Tensor, channels: int, strides: Sequence[int]) -> None:
    """Raise ValueError where x has other axes or channels, or a side that is not a multiple of its stride."""
    if x.ndim != 2 + len(strides) or x.shape[1] != channels:
        raise ValueError(
            f"x must be (B, {channels}, {SIDES[len(strides)]}), got shape {tuple(x.shape)}"
        )
    if any(side % step for side, step in zip(x.shape[2:], strides, strict=True)):
        raise ValueError(
            f"x must have sides that are multiples of {shown(strides)}, got {shown(x.shape[2:])}"
        )


def check_pictures(axes: int, what: str) -> None:
    """Raise ValueError for a network of volumes, by its axes; ``what`` begins the message."""
    if axes != 2:
        raise ValueError(
            f"{what} is for pictures (B, C, H, W), and this network is of volumes (B, C, D, H, W)"
        )


def in_channels(source: Any, channels: int, endpoint: Sequence[int] | None) -> Any:
    """The source, a tensor or an array (B, C, *S), in the target's channels: (B, channels, *S).

    ``endpoint`` is the source channel for each of them. None takes a source of as many channels as it is; of
    other numbers it takes the mean over the source's channels, repeated.
    """
    count = source.shape[1]
    wanted = range(channels) if endpoint is None else endpoint
    if list(wanted) == list(range(count)):
        return source
    singles = [source[:, channel : channel + 1] for channel in range(count)]
    if endpoint is not None:  # not by a list as an index, which would be copied to a GPU
        return concatenated([singles[channel] for channel in endpoint], 1)
    total = singles[0]
    for other in singles[1:]:  # in this order, so that tensors and arrays have the same bits
        total = total + other
    return concatenated([total / count] * channels, 1)


def concatenated(arrays: Sequence[Any], axis: int = 0) -> Any:
    """Arrays or tensors one after the other along an axis; a single one is not copied."""
    if len(arrays) == 1:
        return arrays[0]
    if isinstance(arrays[0], np.ndarray):
        return np.concatenate(arrays, axis)
    import torch

    return torch.cat(list(arrays), axis)


def as_numpy(array: Any) -> npt.NDArray[Any]:
    """An array, or a tensor on any device as one: bfloat16, which NumPy lacks, becomes float32."""
    if isinstance(array, np.ndarray):
        return array
    tensor = array.detach()
    if str(tensor.dtype) == "torch.bfloat16":
        tensor = tensor.float()
    return tensor.cpu().numpy()


def converted(array: Any, like: Any, dtype: bool = True) -> Any:
    """An array or a tensor in the type, on the device and, by default, in the dtype of another."""
    if isinstance(like, np.ndarray):
        values = as_numpy(array)
        if not dtype:
            return values
        return values.astype(like.dtype, copy=False)
    import torch

    tensor = array if isinstance(array, torch.Tensor) else torch.as_tensor(array)
    if not dtype:
        return tensor.to(like.device)
    return tensor.to(like)


def padded(images: Any, sides: Sequence[int], edge: bool = True) -> Any:
    """Images (B, C, *S) that grow to some sides below and to the right, where the edge is repeated, or 0."""
    missing = [side - before for side, before in zip(sides, images.shape[2:], strict=True)]
    if not any(missing):
        return images
    if isinstance(images, np.ndarray):
        widths = [(0, 0), (0, 0)]
        widths += [(0, count) for count in missing]
        return np.pad(images, widths, "edge" if edge else "constant")
    import torch.nn.functional as F

    ends: list[int] = []
    for count in reversed(missing):  # torch begins with the last axis
        ends += [0, count]
    return F.pad(images, ends, "replicate" if edge else "constant")
