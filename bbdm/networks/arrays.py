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
    return (number,) * axes if not isinstance(number, Sequence) else tuple(number)


def check_images(x: torch.Tensor, channels: int, strides: Sequence[int]) -> None:
    """Raise ValueError where x has other axes or channels, or a side that is not a multiple of its stride."""
    if x.ndim != 2 + len(strides) or x.shape[1] != channels:
        raise ValueError(f"x must be (B, {channels}, {SIDES[len(strides)]}), got shape {tuple(x.shape)}")
    if any(side % step for side, step in zip(x.shape[2:], strides, strict=True)):
        raise ValueError(f"x must have sides that are multiples of {shown(strides)}, got {shown(x.shape[2:])}")


def check_pictures(axes: int, what: str) -> None:
    """Raise ValueError for a network of volumes, by its axes; ``what`` begins the message."""
    if axes != 2:
        raise ValueError(f"{what} is for pictures (B, C, H, W), and this network is of volumes (B, C, D, H, W)")


def in_channels(source: Any, channels: int, endpoint: Sequence[int] | None) -> Any:
    """The source, a tensor or an array (B, C, *S), in the target's channels: (B, channels, *S).

    ``endpoint`` is the source channel for each of them. None takes a source of as many channels as it is; of
    other numbers it takes the mean over the source's channels, repeated.
    """
    count = source.shape[1]
    if list(range(count)) == list(range(channels) if endpoint is None else endpoint):
        return source
    single = [source[:, channel : channel + 1] for channel in range(count)]
    if endpoint is not None:  # not by a list as an index, which would be copied to a GPU
        return concatenated([single[channel] for channel in endpoint], 1)
    total = single[0]
    for other in single[1:]:  # in this order, so that tensors and arrays have the same bits
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
    return (array.float() if "bfloat16" in str(array.dtype) else array).detach().cpu().numpy()


def converted(array: Any, like: Any, dtype: bool = True) -> Any:
    """An array or a tensor in the type, on the device and, by default, in the dtype of another."""
    if isinstance(like, np.ndarray):
        return as_numpy(array).astype(like.dtype if dtype else array.dtype, copy=False)
    import torch

    tensor = torch.as_tensor(array)
    return tensor.to(like) if dtype else tensor.to(like.device)


def padded(images: Any, sides: Sequence[int], edge: bool = True) -> Any:
    """Images (B, C, *S) that grow to some sides below and to the right, where the edge is repeated, or 0."""
    missing = [side - before for side, before in zip(sides, images.shape[2:], strict=True)]
    if not any(missing):
        return images
    if isinstance(images, np.ndarray):
        return np.pad(images, [(0, 0), (0, 0), *((0, n) for n in missing)], "edge" if edge else "constant")
    import torch.nn.functional as F

    return F.pad(images, [n for each in reversed(missing) for n in (0, each)], "replicate" if edge else "constant")


def copied(array: Any) -> Any:
    """An array or a tensor in memory of its own."""
    return array.copy() if isinstance(array, np.ndarray) else array.clone()
