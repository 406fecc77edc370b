"""Arrays of NumPy and tensors of torch by one name, for code that serves both.

Torch is imported only where there is a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def concatenated(arrays: Sequence[Any], axis: int = 0) -> Any:
    """Arrays or tensors one after the other along an axis; a single one is not copied."""
    if len(arrays) == 1:
        return arrays[0]
    if isinstance(arrays[0], np.ndarray):
        return np.concatenate(arrays, axis)
    import torch

    return torch.cat(list(arrays), axis)


def zeros(shape: tuple[int, ...], like: Any) -> Any:
    """Zeros in the type, on the device and in the memory format of another array or tensor."""
    if isinstance(like, np.ndarray):
        return np.zeros(shape, like.dtype)
    import torch

    from bbdm.kernels.elementwise import memory_format_of

    return torch.zeros(shape, dtype=like.dtype, device=like.device).to(memory_format=memory_format_of(like))


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
